"""The profiler on real small networks, with meters that answer as the vendors' do."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from exitbench.harness.costs import CostTable
from exitbench.harness.energy import Energies, UnitEnergy
from exitbench.harness.errors import ExitbenchError
from exitbench.harness.meters.modelled import ModelledMeter
from exitbench.harness.profiler import Profile, _count_columns, profile
from exitbench.harness.runtime.base import Prepared
from exitbench.harness.runtime.eager import prepare_eager
from exitbench.harness.timing import Limits
from exitbench.models.counting import Counts, forecast_counts
from exitbench.models.network import ExitNetwork
from exitbench.models.resnet import resnet34
from exitbench.models.vgg import vgg19
from torch import Tensor

QUICK = Limits(seconds=0.4, interval=0.5, energy_seconds=5.0)


def small(
    build: Callable[..., ExitNetwork], batch: int = 2, **arguments: object
) -> tuple[ExitNetwork, Prepared, Tensor]:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    network = build(width=0.125, **arguments).eval()
    prepared = prepare_eager(network, "fp32", torch.device("cpu"), None, "")
    return network, prepared, torch.randn(batch, 3, 32, 32)


def take(meter: object = None, batch: int = 2, limits: Limits = QUICK) -> Profile:
    network, prepared, inputs = small(vgg19, batch, exits=(2, 9))
    return profile(
        prepared,
        network.counts(),
        inputs,
        lambda logits: logits.softmax(1),
        limits,
        meter,  # type: ignore[arg-type]
        forecast_counts=forecast_counts(10, 8),
    )


@pytest.mark.parametrize("build", [vgg19, resnet34])
def test_every_part_gets_a_row_that_makes_a_valid_cost_table(
    build: Callable[..., ExitNetwork],
) -> None:
    network, prepared, inputs = small(build, exits=(1, 5, 8))
    result = profile(prepared, network.counts(), inputs, None, QUICK, None)
    prices = CostTable.from_rows(result.rows).select("fp32", 2)
    assert prices.exits == 3
    assert prices.full()["macs"] == network.counts().full.macs
    assert (prices.segments["latency_ms"] > 0).all()
    assert np.isnan(prices.forecasts["latency_ms"]).all()
    names = [row["name"] for row in result.rows if row["kind"] == "segment"]
    assert names == [*network.counts().exit_names, "classifier"]


def test_rows_carry_their_setting_and_are_per_sample() -> None:
    result = take(batch=4)
    units = [(row["kind"], row["index"]) for row in result.rows]
    assert len(units) == len(set(units)) == 3 + 2 + 2 + 1 + 2
    for row in result.rows:
        assert row["batch_size"] == 4
        assert (row["precision"], row["runtime"], row["device"]) == ("fp32", "eager", "cpu")
        label = f"{row['kind']} {row['index']}"
        assert row["latency_ms"] == pytest.approx(np.median(result.samples_ms[label]))
        assert row["repeats"] == len(result.samples_ms[label])
    forecasts = [row for row in result.rows if row["kind"] == "forecast"]
    assert {row["macs"] for row in forecasts} == {800}


def test_weights_are_read_once_per_batch() -> None:
    one, four = take(batch=1), take(batch=4)
    network, _, _ = small(vgg19, exits=(2, 9))
    last = network.counts().segments[-1]
    saved = one.rows[-2]["bytes"] - four.rows[-2]["bytes"]
    assert one.rows[-2]["kind"] == "segment"
    assert saved == last.weight_bytes * 3 // 4


@pytest.mark.parametrize(("kind", "size"), [("segment", 2), ("head", 4), ("classifier", 4)])
def test_heads_and_the_classifier_have_four_bytes_an_element(kind: str, size: int) -> None:
    part = (kind, 3 if kind != "head" else 1)
    counts = Counts(macs=1, bytes=120, weight_bytes=40)
    columns = _count_columns(part, counts, "bf16", 1)
    assert columns["bytes"] == counts.bytes_per_sample(1, size)


def test_the_whole_network_is_timed_beside_its_parts() -> None:
    result = take()
    parts = sum(r["latency_ms"] for r in result.rows if r["kind"] in ("segment", "classifier"))
    whole = result.whole
    assert whole["latency_ms"] > 0
    assert whole["parts_latency_ms"] == pytest.approx(parts)
    assert whole["residue_latency_ms"] == pytest.approx(whole["latency_ms"] - parts)
    assert whole["residue_energy_mj"] is None


def test_each_part_is_timed_on_its_own_input() -> None:
    network, prepared, inputs = small(resnet34, exits=(1, 2))
    seen: dict[int, set[tuple[int, ...]]] = {}

    @dataclass
    class Watched:
        inner: Prepared

        def __getattr__(self, name: str) -> object:
            return getattr(self.inner, name)

        def run_head(self, number: int, state: object) -> Tensor:
            main = state[0] if isinstance(state, tuple) else state
            seen.setdefault(number, set()).add((isinstance(state, tuple), *main.shape))
            return self.inner.run_head(number, state)  # type: ignore[arg-type]

    watched: Prepared = Watched(prepared)  # type: ignore[assignment]
    profile(watched, network.counts(), inputs, None, QUICK, None)
    # Exit 1 lies inside a block, where the state carries the shortcut; exit 2 at its end.
    assert seen == {1: {(True, 2, 8, 32, 32)}, 2: {(False, 2, 8, 32, 32)}}


def test_without_a_meter_energy_is_unavailable() -> None:
    for row in take().rows:
        assert row["energy_mj"] is None
        assert row["energy_source"] == "unavailable"


def test_modelled_energy_is_power_times_latency() -> None:
    meter = ModelledMeter("assumed power", "cpu", 20.0, True, time.perf_counter)
    result = take(meter)
    for row in (row for row in result.rows if row["kind"] != "gather"):
        # W x ms = mJ; the power comes back through a division, hence not exactly
        assert row["energy_mj"] == pytest.approx(20.0 * row["latency_ms"], rel=1e-9)
        assert row["cpu_energy_mj"] == row["energy_mj"]
        assert row["gpu_energy_mj"] is None
        assert row["gpu_energy_source"] == "unavailable"
        assert row["energy_source"] == row["cpu_energy_source"] == "modelled"
        assert row["power_w"] == pytest.approx(20.0)
    assert result.whole["residue_energy_mj"] == pytest.approx(
        20.0 * result.whole["residue_latency_ms"], rel=1e-6, abs=1e-9
    )
    assert CostTable.from_rows(result.rows).select().energy_source == "modelled"


def unit_energies(whole_j: float, part_j: float, unsure_j: float | None) -> dict[str, UnitEnergy]:
    """Measured energies of a network with one exit: two segments, a classifier, the whole."""
    parts = ("segment 1", "segment 2", "classifier 2", "head 1")
    joules = dict.fromkeys(parts, part_j) | {"whole": whole_j}
    return {
        name: UnitEnergy(value, uncertainty_j=unsure_j, source="measured")
        for name, value in joules.items()
    }


def residue_of(
    monkeypatch: pytest.MonkeyPatch, whole_j: float, part_j: float, unsure_j: float | None
) -> Profile:
    """A profile whose energies are these; latencies are real."""
    found = Energies(unit_energies(whole_j, part_j, unsure_j))
    monkeypatch.setattr("exitbench.harness.profiler.measure_energy", lambda *a, **k: found)
    network, prepared, inputs = small(vgg19, 1, exits=(2,))
    meter = ModelledMeter("any", "cpu", 20.0, True, time.perf_counter)
    return profile(prepared, network.counts(), inputs, None, QUICK, meter)


def test_a_residue_beyond_what_the_uncertainties_explain_is_noted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # 3 x 2 J of parts, 7 J of the whole, each 0.1 J unsure: 1 J of residue, 0.4 J explained
    result = residue_of(monkeypatch, 7.0, 2.0, 0.1)
    assert result.whole["residue_energy_mj"] == pytest.approx(1000.0)
    assert result.whole["residue_energy_share"] == pytest.approx(1 / 7)
    assert result.whole["residue_energy_explained_mj"] == pytest.approx(400.0)
    noted = [note for note in result.notes if "residue" in note]
    assert len(noted) == 1
    assert "+1e+03 mJ (+14.3%) is more than the 400 mJ" in noted[0]


def test_a_residue_within_the_uncertainties_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    result = residue_of(monkeypatch, 7.0, 2.0, 0.3)
    assert result.whole["residue_energy_explained_mj"] == pytest.approx(1200.0)
    assert not [note for note in result.notes if "residue" in note]


def test_what_a_residue_means_is_not_known_where_an_uncertainty_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result = residue_of(monkeypatch, 7.0, 2.0, None)
    assert result.whole["residue_energy_explained_mj"] is None
    assert not [note for note in result.notes if "residue" in note]


def test_targets_that_were_missed_are_told_by_name() -> None:
    result = take(limits=Limits(seconds=0.05, interval=1e-9))
    assert any("segment 1" in note and "95% interval" in note for note in result.notes)


def test_counts_of_another_network_are_refused() -> None:
    network, prepared, inputs = small(vgg19, exits=(2, 9))
    other = vgg19(width=0.125, exits=(2,)).counts()
    with pytest.raises(ExitbenchError, match="2 exits, its counts have 1"):
        profile(prepared, other, inputs, None, QUICK, None)
    with pytest.raises(ExitbenchError, match="no images"):
        profile(prepared, network.counts(), inputs[:0], None, QUICK, None)
    with pytest.raises(ExitbenchError, match="together with its counts"):
        profile(prepared, network.counts(), inputs, lambda z: z, QUICK, None)


def test_uncounted_operators_stand_in_their_row() -> None:
    network, prepared, inputs = small(vgg19, exits=(2,))
    odd = Counts(macs=1, uncounted=("aten.sin", "aten.sin"))
    result = profile(
        prepared, network.counts(), inputs, lambda z: z.sin(), QUICK, None, forecast_counts=odd
    )
    by_kind = {row["kind"]: row["uncounted"] for row in result.rows}
    assert by_kind["forecast"] == "aten.sin x2"
    assert by_kind["segment"] is None

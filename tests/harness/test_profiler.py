"""The profiler on real small networks, with meters that answer as the vendors' do."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from exitbench.harness.costs import CostTable
from exitbench.harness.energy import measure_energy
from exitbench.harness.errors import ExitbenchError
from exitbench.harness.meters.base import Reading, too_short
from exitbench.harness.meters.modelled import ModelledMeter
from exitbench.harness.profiler import Profile, _count_columns, profile
from exitbench.harness.runtime.base import Prepared
from exitbench.harness.runtime.eager import prepare_eager
from exitbench.harness.timing import Limits, Timing
from exitbench.models.counting import Counts, forecast_counts
from exitbench.models.network import ExitNetwork
from exitbench.models.resnet import resnet34
from exitbench.models.vgg import vgg19
from torch import Tensor

QUICK = Limits(seconds=0.4, interval=0.5, energy_seconds=5.0)


class Bench:
    """A fake machine: a clock in seconds, and a counter of its energy read in steps."""

    def __init__(self, power_w: float, update_period_s: float) -> None:
        self.power_w = power_w
        self.update_period_s = update_period_s
        self.now_s = 0.0
        self.windows: list[float] = []

    @property
    def counter_j(self) -> float:
        return int(self.now_s / self.update_period_s) * self.update_period_s * self.power_w

    def unit(self, seconds: float) -> Callable[[], None]:
        def work() -> None:
            self.now_s += seconds

        return work


@dataclass
class CounterMeter:
    """A counter that reads the fake machine; what it cannot resolve is None, as in real ones."""

    bench: Bench
    name: str = "fake counter"
    domains: tuple[str, ...] = ("gpu",)
    source: str = "measured"
    extra: dict[str, float | None] = field(default_factory=dict)

    @property
    def update_period_s(self) -> float:
        return self.bench.update_period_s

    def open(self) -> CounterWindow:
        return CounterWindow(self, self.bench.now_s, self.bench.counter_j)


@dataclass
class CounterWindow:
    meter: CounterMeter
    opened_s: float
    opened_j: float

    def close(self) -> Reading:
        bench = self.meter.bench
        seconds = bench.now_s - self.opened_s
        bench.windows.append(seconds)
        note = too_short(seconds, bench.update_period_s)
        joules = None if note else bench.counter_j - self.opened_j
        return Reading(seconds, {"gpu": joules, **self.meter.extra}, "measured", note)


def timing(seconds: float) -> Timing:
    return Timing(np.full(6, seconds), calls=1, target_reached=True, warm=True)


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
    assert len(units) == len(set(units)) == 3 + 2 + 2 + 1
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
    for row in result.rows:
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


def test_a_window_of_a_counter_spans_fifty_updates() -> None:
    bench = Bench(power_w=100.0, update_period_s=0.02)
    units = {"short": bench.unit(0.001), "long": bench.unit(3.0)}
    timings = {"short": timing(0.001), "long": timing(3.0)}
    limits = Limits(energy_seconds=60.0)
    energies, notes = measure_energy(units, timings, CounterMeter(bench), limits)
    assert notes == []
    assert min(bench.windows) >= 50 * 0.02
    # Each edge may be one update of 50 off.
    assert energies["short"].total_j == pytest.approx(0.1, rel=0.02)
    assert energies["long"].total_j == pytest.approx(300.0, rel=0.02)
    assert energies["short"].source == energies["short"].gpu_source == "measured"
    assert energies["short"].power_w == pytest.approx(100.0, rel=0.02)
    assert energies["short"].interval_j is not None
    assert energies["short"].cpu_j is None


def test_few_windows_give_an_energy_without_an_interval() -> None:
    bench = Bench(power_w=100.0, update_period_s=0.02)
    limits = Limits(energy_seconds=3.0)
    energies, _ = measure_energy(
        {"a": bench.unit(0.01)}, {"a": timing(0.01)}, CounterMeter(bench), limits
    )
    assert len(bench.windows) == 2
    assert energies["a"].total_j is not None
    assert energies["a"].interval_j is None


def test_a_time_limit_too_short_for_the_counter_is_said_and_nothing_is_measured() -> None:
    bench = Bench(power_w=100.0, update_period_s=0.1)
    units = {name: bench.unit(0.001) for name in "abcd"}
    timings = {name: timing(0.001) for name in "abcd"}
    energies, notes = measure_energy(
        units, timings, CounterMeter(bench), Limits(energy_seconds=20.0)
    )
    assert bench.windows == []
    assert {energy.source for energy in energies.values()} == {"unavailable"}
    assert {energy.total_j for energy in energies.values()} == {None}
    assert notes == [
        "energy unavailable: fake counter updates every 0.1 s, so windows of 5 s for 4 units need "
        "22 s, but 20 s are allowed; give more with --energy-seconds"
    ]


def test_the_time_of_a_counter_follows_from_the_units_and_is_told_first() -> None:
    bench, said = Bench(power_w=100.0, update_period_s=0.1), []
    units = {str(number): bench.unit(0.001) for number in range(63)}
    timings = {name: timing(0.001) for name in units}
    meter = CounterMeter(bench)

    def say(line: str) -> None:
        said.append((line, len(bench.windows)))

    energies, notes = measure_energy(units, timings, meter, Limits(), say=say)
    assert notes == []
    assert len(bench.windows) == 3 * 63
    assert energies["7"].total_j == pytest.approx(0.1, rel=0.02)
    assert said == [("energy: 3 windows of 5 s for each of 63 units, about 1040 s", 0)]


def test_the_time_of_a_counter_has_a_cap_unless_it_is_asked_for() -> None:
    bench = Bench(power_w=100.0, update_period_s=1.0)
    units = {str(number): bench.unit(1.0) for number in range(40)}
    timings = {name: timing(1.0) for name in units}
    energies, notes = measure_energy(units, timings, CounterMeter(bench), Limits())
    assert energies["7"].total_j is None
    assert "2.24e+03 s, but 1.8e+03 s are allowed" in notes[0]
    asked = Limits(energy_seconds=3000.0)
    energies, notes = measure_energy(units, timings, CounterMeter(bench), asked)
    assert energies["7"].total_j is not None
    assert notes == []


def test_a_unit_that_runs_faster_than_it_was_timed_gets_a_wider_window() -> None:
    bench = Bench(power_w=50.0, update_period_s=0.01)
    energies, notes = measure_energy(
        {"a": bench.unit(0.001)}, {"a": timing(0.004)}, CounterMeter(bench), Limits()
    )
    assert bench.windows[0] < 0.5 <= bench.windows[1]
    assert notes == []
    assert energies["a"].total_j == pytest.approx(0.05, rel=0.02)


def test_a_window_that_stays_too_short_is_unresolved_with_its_reason() -> None:
    bench = Bench(power_w=50.0, update_period_s=0.01)
    energies, notes = measure_energy(
        {"a": lambda: None}, {"a": timing(0.01)}, CounterMeter(bench), Limits()
    )
    assert energies["a"].total_j is None
    assert energies["a"].source == "unavailable"
    assert len(notes) == 1
    assert "too short for a counter" in notes[0]
    # Ten times the calls it was timed for, then no more, however often it is asked.
    assert len(bench.windows) < 3 * 8


def test_a_domain_without_a_reading_makes_the_total_unavailable_and_not_smaller() -> None:
    bench = Bench(power_w=50.0, update_period_s=0.001)
    meter = CounterMeter(bench, extra={"cpu": None})
    energies, _ = measure_energy({"a": bench.unit(0.01)}, {"a": timing(0.01)}, meter, Limits())
    assert energies["a"].gpu_j == pytest.approx(0.5, rel=0.02)
    assert energies["a"].total_j is None
    assert energies["a"].source == "unavailable"
    assert energies["a"].gpu_source == "measured"


def test_the_device_is_waited_for_at_both_edges_of_an_energy_window() -> None:
    events: list[str] = []
    bench = Bench(power_w=50.0, update_period_s=0.001)

    class Loud(CounterMeter):
        def open(self) -> CounterWindow:
            events.append("open")
            return super().open()

    measure_energy(
        {"a": bench.unit(1.0)},
        {"a": timing(1.0)},
        Loud(bench),
        Limits(energy_seconds=1.0),
        synchronise=lambda: events.append("wait"),
    )
    assert events == ["wait", "open", "wait"]


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

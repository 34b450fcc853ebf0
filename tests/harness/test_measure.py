"""Really running settings: the same decisions as the replay, energies with their source."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from exitbench.harness.bench import Bench, Live
from exitbench.harness.configs import (
    DataConfig,
    ProfileConfig,
    RunConfig,
    SweepConfig,
    TraceConfig,
)
from exitbench.harness.costs import CostTable
from exitbench.harness.limits import faults
from exitbench.harness.live import chosen_settings, read_sweep, run_run
from exitbench.harness.measure import run_settings
from exitbench.harness.measured import measured_key, replayed_beside
from exitbench.harness.meters.base import Reading, minimum_window_s
from exitbench.harness.meters.choose import ChosenMeter
from exitbench.harness.onepass import run_pass
from exitbench.harness.profiling import run_profile
from exitbench.harness.rundir import RunDirectory
from exitbench.harness.settings import Setting, make_policy
from exitbench.harness.subject import load_subject
from exitbench.harness.sweeping import load_traces, prices_for, run_sweep
from exitbench.harness.tracing import run_trace
from pipeline_fixtures import CPU, Inputs, Said, refused, silent

SETTINGS = [
    Setting("full"),
    Setting("every-exit", "softmax", 0.32, 1),
    Setting("every-exit", "activation", 0.9, 2),
    Setting("predictive", "softmax", 0.32, 1, "convolution"),
    Setting("predictive", "margin", 0.1, 1, "table"),
    Setting("fixed", start_layer=3),
]


@pytest.fixture(scope="session")
def resnet_run(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a study, but command by command."""
    run = tmp_path_factory.mktemp("resnet") / "run"
    run_trace(TraceConfig(run, inputs.resnet, device=CPU), silent)
    run_profile(ProfileConfig(run, batch_sizes=(4,), seconds=0.2, device=CPU), silent)
    run_sweep(SweepConfig(run, criteria=("softmax",), beta_count=5), silent)
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished study without its measurements."""
    copied = shutil.copytree(finished, tmp_path / "run")
    (copied / "measurements.jsonl").unlink()
    return copied


def measured(run: Path) -> list[dict[str, Any]]:
    return RunDirectory(run, create=False).read_measurements()


NOTHING = ChosenMeter((), (), "cpu", "")


def bench_of(run: Path, checkpoint: Path, batch_size: int, meter: Any = NOTHING) -> Bench:
    subject = load_subject(checkpoint, DataConfig(), CPU, silent)
    directory = RunDirectory(run, create=False)
    traces = load_traces(directory, "fp32")
    prices = prices_for(CostTable.read(directory.cost), traces, None)
    prepared = subject.prepare("fp32")
    return Bench(subject, prepared, traces, prices, meter, batch_size, np.arange(60))


@pytest.fixture(params=["vgg", "resnet"])
def bench(request: pytest.FixtureRequest, inputs: Inputs) -> Bench:
    name = {"vgg": "finished", "resnet": "resnet_run"}[request.param]
    return bench_of(request.getfixturevalue(name), getattr(inputs, request.param), 7)


def test_live_decisions_are_those_of_the_replay(bench: Bench) -> None:
    rows = run_settings(bench, SETTINGS, 1, 0, silent)
    assert len({row["exit_histogram"] for row in rows}) >= 4  # they do not all do the same
    for row in rows:
        assert row["same_decisions"] == 1.0
        assert row["accuracy"] == row["replay_accuracy"]


def test_what_happened_at_every_exit_adds_up(bench: Bench) -> None:
    full, classic, _, predictive, *_ = run_settings(bench, SETTINGS, 1, 0, silent)
    exits = bench.subject.network.num_exits
    assert [row["checked"] for row in full["stat_each_layer"]] == [0] * exits
    assert full["prediction_accuracy"] is None
    for row in (classic, predictive):
        histogram = [int(count) for count in row["exit_histogram"].split()]
        layers = row["stat_each_layer"]
        assert sum(histogram) == row["samples"] == 60
        assert [layer["left"] for layer in layers] == histogram[:-1]
        assert layers[0]["checked"] == 60
        assert all(layer["correct"] <= layer["left"] <= layer["checked"] for layer in layers)
    forecasts = sum(layer["forecasts"] for layer in predictive["stat_each_layer"])
    hits = sum(layer["prediction_hits"] for layer in predictive["stat_each_layer"])
    assert forecasts == np.sum(predictive["confusion"]) > 0
    assert hits == np.trace(predictive["confusion"])
    assert predictive["prediction_accuracy"] == hits / forecasts


def test_how_many_decisions_agree_is_counted(bench: Bench) -> None:
    exits, traces = bench.subject.network.num_exits, bench.traces
    live = Live(SETTINGS[1], make_policy(SETTINGS[1], exits, traces.scales, traces.calibration))
    outcome, _ = run_pass(bench, live)
    exit_at, label = outcome.exit_at.copy(), outcome.label.copy()
    exit_at[[3, 40]] = np.where(exit_at[[3, 40]] == 1, 2, 1)
    label[7] = (label[7] + 1) % 4
    live.outcome = replace(outcome, exit_at=exit_at, label=label)
    assert replayed_beside(bench, live).same_decisions == 57 / 60


@dataclass
class Counter:
    """A meter that reads 2 J from every window but those it cannot resolve."""

    unresolved: tuple[int, ...] = ()
    opened: int = 0
    name: str = "counter"
    domains: tuple[str, ...] = ("cpu",)
    source: str = "measured"
    update_period_s: float | None = None

    def open(self) -> Counter:
        self.opened += 1
        return self

    def close(self) -> Reading:
        if self.opened in self.unresolved:
            return Reading(0.1, {"cpu": None}, "measured", "the window is too short")
        return Reading(0.1, {"cpu": 2.0}, "measured")


def test_energy_is_that_of_a_timed_pass_per_sample(finished: Path, inputs: Inputs) -> None:
    bench = bench_of(finished, inputs.vgg, 64, Counter())
    (row,) = run_settings(bench, SETTINGS[:1], 3, 0, silent)
    assert row["energy_mj"] == pytest.approx(2.0 * 1e3 / 60)
    assert (row["energy_source"], row["meters"], row["repeats"]) == ("measured", ["counter"], 3)
    assert 0 < row["latency_low_ms"] <= row["latency_ms"] <= row["latency_high_ms"]


def test_one_unresolved_pass_makes_the_energy_unavailable_and_says_why(
    finished: Path, inputs: Inputs
) -> None:
    # The first window is that of the pass that is not timed.
    bench = bench_of(finished, inputs.vgg, 64, Counter(unresolved=(2,)))
    (row,) = run_settings(bench, SETTINGS[:1], 2, 0, silent)
    assert row["energy_mj"] is None
    assert row["energy_source"] == "unavailable"
    assert row["energy_note"] == "the window is too short"


@dataclass
class Worked:
    """A slow counter that counts work instead of energy: 1 mJ per image that enters the network.

    It stands before the network too, so that it sees them.
    """

    prepared: Any
    images: int = 0
    widths_s: list[float] = field(default_factory=list)
    name: str = "counter of work"
    domains: tuple[str, ...] = ("cpu",)
    source: str = "measured"
    update_period_s: float = 0.002

    def __getattr__(self, name: str) -> Any:
        return getattr(self.prepared, name)

    def run_stretch(self, first: int, last: int, state: Any, *, owned: bool = False) -> Any:
        self.images += len(state) if first == 1 else 0
        return self.prepared.run_stretch(first, last, state, owned=owned)

    def run_check(
        self, first: int, last: int, state: Any, question: Any, *, owned: bool = False
    ) -> Any:
        self.images += len(state) if first == 1 else 0
        return self.prepared.run_check(first, last, state, question, owned=owned)

    def open(self) -> WorkedWindow:
        return WorkedWindow(self, self.images, time.perf_counter())


@dataclass
class WorkedWindow:
    """Work since the window was opened."""

    meter: Worked
    images: int
    opened_s: float

    def close(self) -> Reading:
        seconds = time.perf_counter() - self.opened_s
        self.meter.widths_s.append(seconds)
        return Reading(seconds, {"cpu": (self.meter.images - self.images) * 1e-3}, "measured")


def test_a_pass_that_is_too_short_for_the_counter_is_repeated_in_one_window(
    finished: Path, inputs: Inputs
) -> None:
    bench = bench_of(finished, inputs.vgg, 64)
    meter = Worked(bench.prepared)
    bench = replace(bench, prepared=meter, meter=meter)
    (row,) = run_settings(bench, SETTINGS[-1:], 2, 0, silent)
    # Fixed at exit 3, 60 images take a fraction of the 0.1 s that 50 updates need.
    assert min(meter.widths_s[1:]) >= minimum_window_s(meter) == 0.1
    assert meter.images > 3 * 60
    # However often it ran, an image costs what it costs once.
    assert row["energy_mj"] == pytest.approx(1.0, rel=1e-12)
    assert row["same_decisions"] == 1.0


def test_without_a_meter_energy_is_unavailable_never_0(bench: Bench) -> None:
    for row in run_settings(bench, SETTINGS[:2], 1, 0, silent):
        assert row["energy_mj"] is None
        assert row["energy_source"] == "unavailable"
        assert row["latency_ms"] > 0


def test_a_measurement_is_one_line_of_json(bench: Bench) -> None:
    (row,) = run_settings(bench, SETTINGS[3:4], 1, 0, silent)
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert measured_key(json.loads(json.dumps(row))) == measured_key(row)


def test_settings_that_know_the_truth_cannot_be_run(bench: Bench) -> None:
    perfect = Setting("predictive", "softmax", 0.5, 1, "perfect")
    for setting in (perfect, Setting("oracle")):
        assert "can only be replayed" in refused(run_settings, bench, [setting], 1, 0, silent)


def test_repeats_below_1_are_refused(bench: Bench) -> None:
    message = refused(run_settings, bench, SETTINGS, 0, 0, silent)
    assert "repeats is 0; it must be at least 1" in message


def test_a_run_measures_the_roles_of_the_comparison(run: Path) -> None:
    run_run(RunConfig(run, repeats=1, device=CPU), silent)
    rows = measured(run)
    policies = [row["policy"] for row in rows]
    assert {"full", "every-exit", "predictive"} <= set(policies)
    assert len({measured_key(row) for row in rows}) == len(rows)
    swept = read_sweep(RunDirectory(run, create=False))
    for row in rows:
        assert row["same_decisions"] == 1.0
        assert (row["samples"], row["batch_size"], row["device"]) == (60, 1, "cpu")
        match = swept[(swept.split == "test") & (swept.policy == row["policy"])]
        for name in ("criterion", "beta", "start_layer", "predictor"):
            match = match[match[name].isna() if row[name] is None else match[name] == row[name]]
        assert len(match) == 1
        swept_row = match.iloc[0]
        # What was swept is what was run; nine digits are written to sweep.csv.
        assert row["accuracy"] == pytest.approx(swept_row.accuracy, rel=1e-8)
        assert row["exit_histogram"] == swept_row.exit_histogram
        assert row["replay_latency_ms"] == pytest.approx(swept_row.latency_ms, rel=1e-8)
        assert row["macs"] == pytest.approx(swept_row.macs, rel=1e-8)


def test_what_was_measured_is_left_out_when_run_again(run: Path) -> None:
    config = RunConfig(run, settings=("full", "every-exit"), repeats=1, device=CPU)
    run_run(config, silent)
    before = (run / "measurements.jsonl").read_bytes()
    said = Said()
    run_run(config, said)
    assert said.starting("run fp32: already measured")
    assert (run / "measurements.jsonl").read_bytes() == before
    run_run(replace(config, settings=("full", "predictive")), said)
    after = (run / "measurements.jsonl").read_bytes()
    assert after.startswith(before)
    assert [row["policy"] for row in measured(run)] == ["full", "every-exit", "predictive"]
    run_run(replace(config, settings=("full",), limit=10), said)
    assert [row["samples"] for row in measured(run)] == [60, 60, 60, 10]


def test_a_limit_spreads_over_the_split(run: Path, inputs: Inputs) -> None:
    run_run(RunConfig(run, settings=("full",), limit=4, repeats=1, device=CPU), silent)
    trace = load_traces(RunDirectory(run, create=False), "fp32").test
    spread = [0, 20, 39, 59]
    (row,) = measured(run)
    assert row["same_decisions"] == 1.0
    assert row["accuracy"] == trace.correct()[-1, spread].mean()


def test_the_batch_size_is_that_of_the_sweep(run: Path) -> None:
    run_sweep(SweepConfig(run, criteria=("softmax",), beta=("0.3",), batch_size=8), silent)
    run_run(RunConfig(run, settings=("full",), repeats=1, device=CPU), silent)
    assert measured(run)[0]["batch_size"] == 8
    message = refused(run_run, RunConfig(run, batch_size=3, device=CPU), silent)
    assert "no rows for fp32, batch 3" in message


def test_a_setting_can_be_named_by_its_row(run: Path) -> None:
    swept = read_sweep(RunDirectory(run, create=False))
    number = int(swept.index[swept.predictor == "table"][0])
    (setting,) = chosen_settings(swept, (str(number),))
    assert (setting.policy, setting.predictor) == ("predictive", "table")
    assert setting.beta == swept.beta[number]


def test_what_happened_at_every_exit_is_left_out_on_request(run: Path) -> None:
    run_run(
        RunConfig(run, settings=("full",), repeats=1, device=CPU, stat_each_layer=False), silent
    )
    assert measured(run)[0]["stat_each_layer"] == []


def test_forward_mode_accuracy_judges_the_forecasts_from_every_exit(run: Path) -> None:
    before = pd.read_csv(run / "prediction.csv")
    config = RunConfig(run, settings=("predictive",), forward_mode="accuracy", device=CPU)
    run_run(config, silent)
    found = pd.read_csv(run / "prediction_live.csv")
    expected = before[before.predictor == "convolution"].reset_index(drop=True)
    pd.testing.assert_frame_equal(found, expected, check_dtype=False)
    confusion = pd.read_csv(run / "prediction_live_confusion.csv")
    assert confusion["count"].sum() == found.forecasts.sum()
    hits = confusion[confusion.forecast_jump == confusion.true_jump]["count"].sum()
    assert hits == found.hits.sum()
    assert not (run / "measurements.jsonl").exists()
    run_run(replace(config, start_layer=2, limit=10), silent)
    few = pd.read_csv(run / "prediction_live.csv")
    assert few.start_layer.tolist() == [2]
    assert few.forecasts.sum() <= 10
    assert pd.read_csv(run / "prediction.csv").equals(before), "the sweep's own table stays"


def test_forward_mode_accuracy_needs_a_forecast_and_an_exit(run: Path) -> None:
    config = RunConfig(run, settings=("full",), forward_mode="accuracy", device=CPU)
    assert "no predictive setting was chosen" in refused(run_run, config, silent)
    for start in (0, 6):
        wrong = replace(config, settings=("predictive",), start_layer=start)
        message = refused(run_run, wrong, silent)
        assert f"start layer is {start}; this network has exits 1 to 5" in message


def test_the_network_and_the_data_are_those_of_the_trace(
    inputs: Inputs, tmp_path: Path
) -> None:
    """What a trace was limited to or split by need not be said again to profile and to run it."""
    run = tmp_path / "run"
    data = DataConfig(calibration_samples=20, split_seed=3)
    run_trace(TraceConfig(run, inputs.vgg, limit=10, data=data, device=CPU), silent)
    run_profile(ProfileConfig(run, batch_sizes=(1,), seconds=0.1, device=CPU), silent)
    run_sweep(SweepConfig(run, criteria=("softmax",), beta=("0.3",)), silent)
    run_run(RunConfig(run, settings=("full",), repeats=1, device=CPU), silent)
    (row,) = measured(run)
    assert (row["samples"], row["same_decisions"]) == (10, 1.0)
    other = replace(data, calibration_samples=5)
    message = refused(run_trace, TraceConfig(run, inputs.vgg, data=other, device=CPU), silent)
    assert f"{run} was made with other splits" in message


def test_a_network_can_be_profiled_before_it_is_traced(inputs: Inputs, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_profile(
        ProfileConfig(run, inputs.vgg, batch_sizes=(2,), seconds=0.1, energy=False, device=CPU),
        silent,
    )
    run_trace(TraceConfig(run, inputs.vgg, limit=10, device=CPU), silent)
    run_sweep(SweepConfig(run, criteria=("softmax",), beta=("0.3",)), silent)
    rows = pd.read_csv(run / "sweep.csv")
    assert (rows.batch_size == 2).all()
    assert rows.latency_ms.notna().all()
    assert (rows.energy_source == "unavailable").all()


# --- throughput mode --------------------------------------------------------------------------


def test_a_rebatched_run_decides_alike_and_tells_how_samples_waited(bench: Bench) -> None:
    alone = run_settings(bench, SETTINGS, 2, 0, silent)
    together = replace(bench, manner=replace(bench.manner, rebatch_wait=3))
    for plain, row in zip(alone, run_settings(together, SETTINGS, 2, 0, silent), strict=True):
        same = ("accuracy", "mean_exit", "exit_histogram", "confusion", "prediction_accuracy")
        assert [row[name] for name in same] == [plain[name] for name in same]
        assert row["same_decisions"] == 1.0
        for mine, other in zip(row["stat_each_layer"], plain["stat_each_layer"], strict=True):
            known = {name: value for name, value in other.items() if value is not None}
            assert mine.keys() == other.keys()
            # Sums are made in another order.
            assert {name: mine[name] for name in known} == pytest.approx(known, rel=1e-6)
        assert (row["rebatch_wait"], plain["rebatch_wait"]) == (3, None)
        assert plain["waited_batches"] is plain["rows_per_segment"] is None
        assert 0 <= row["waited_batches"] <= row["longest_wait_batches"] <= 3
        assert 1 <= row["rows_per_segment"] <= 7
        assert row["latency_ms"] > 0
        assert json.loads(json.dumps(row, allow_nan=False)) == row
        assert measured_key(row) != measured_key(plain)
        assert measured_key(plain) == measured_key(
            {name: value for name, value in plain.items() if name != "rebatch_wait"}
        )
    assert any(row["longest_wait_batches"] > 0 for row in run_settings(
        together, SETTINGS[1:4], 1, 0, silent
    ))  # fmt: skip


def test_samples_wait_only_for_those_that_are_held_with_them(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Seven images are held at once: a batch, for which no further one is fed.
    image_bytes = 4 * bench.subject.parts["test"].images[0].size
    monkeypatch.setattr("exitbench.harness.onepass.CHUNK_BYTES", 7 * image_bytes)
    bench = replace(bench, manner=replace(bench.manner, rebatch_wait=3))
    (row,) = run_settings(bench, SETTINGS[1:2], 1, 0, silent)
    assert (row["samples"], row["same_decisions"]) == (60, 1.0)
    assert row["longest_wait_batches"] == 0


def test_a_command_puts_batches_together(run: Path) -> None:
    run_sweep(SweepConfig(run, criteria=("softmax",), beta=("0.3",), batch_size=8), silent)
    config = RunConfig(run, settings=("every-exit",), repeats=1, rebatch_wait=2, device=CPU)
    said = Said()
    run_run(config, said)
    (told,) = said.starting("measured every-exit")
    assert "rebatched, so that this is throughput: answers came" in told
    (row,) = measured(run)
    assert (row["rebatch_wait"], row["batch_size"], row["same_decisions"]) == (2, 8, 1.0)
    run_run(config, said)
    assert said.starting("run fp32: already measured")
    run_run(replace(config, rebatch_wait=None), silent)
    run_run(replace(config, rebatch_wait=0), silent)
    assert [row["rebatch_wait"] for row in measured(run)] == [2, None, 0]


def test_batches_of_one_are_not_put_together(run: Path) -> None:
    config = RunConfig(run, settings=("full",), rebatch_wait=4, device=CPU)
    before = (run / "manifest.json").read_bytes()
    message = refused(run_run, config, silent)
    assert f"rebatch_wait is 4, but {run} was swept with batch size 1" in message
    assert (run / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rebatch_wait": -1}, "rebatch_wait is -1; allowed: a whole number of batches from 0"),
        ({"batch_size": 1}, "rebatch_wait is 4 beside batch_size 1; give --batch-size 2 or more"),
        ({"governor": "deadline"}, "rebatch_wait is 4 beside a governor"),
        ({"scene": "periodic", "period_ms": 5.0}, "rebatch_wait is 4 beside a periodic scene"),
        ({"forward_mode": "accuracy"}, "rebatch_wait is 4, but forward_mode accuracy"),
    ],
)
def test_what_puts_no_batches_together_is_refused_at_once(
    changes: dict[str, Any], words: str
) -> None:
    config = replace(RunConfig(Path("run"), rebatch_wait=4), **changes)
    (fault,) = faults(config)
    assert fault.startswith(words)

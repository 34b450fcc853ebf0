"""Really run settings in scenes and tiers, on a machine whose clock and counter a test moves."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exitbench.harness.bench import Bench
from exitbench.harness.configs import DataConfig, MeteringConfig, RunConfig
from exitbench.harness.costs import CostTable
from exitbench.harness.idle import Idle
from exitbench.harness.live import run_run
from exitbench.harness.manner import Manner, Windows, plan
from exitbench.harness.measure import run_settings
from exitbench.harness.measured import measured_key
from exitbench.harness.meters.base import Reading
from exitbench.harness.meters.card import CHECK
from exitbench.harness.meters.choose import ChosenMeter
from exitbench.harness.passes import Pass
from exitbench.harness.rundir import RunDirectory
from exitbench.harness.scenes import Scene
from exitbench.harness.settings import Setting
from exitbench.harness.stretches import typical
from exitbench.harness.subject import Subject, load_subject
from exitbench.harness.sweeping import load_traces, prices_for
from exitbench.harness.tiers import TIERS
from fake_counter import Bench as Machine
from fake_counter import CounterMeter
from pipeline_fixtures import CPU, Inputs, Said, silent

FULL, SMALL = Setting("full"), Setting("fixed", start_layer=1)
SEGMENT_S = 0.004  # what the fake machine takes for a segment; there are six
WORK_W, IDLE_W = 10.0, 2.0


@pytest.fixture(scope="module")
def subject(inputs: Inputs) -> Subject:
    return load_subject(inputs.vgg, DataConfig(), CPU, silent)


@dataclass
class Timed:
    """The real network on a machine that takes ``SEGMENT_S`` for each segment."""

    prepared: Any
    machine: Machine
    served: list[float] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.prepared, name)

    def run_stretch(self, first: int, last: int, state: Any, *, owned: bool = False) -> Any:
        self._take_time(first, last)
        return self.prepared.run_stretch(first, last, state, owned=owned)

    def run_check(
        self, first: int, last: int, state: Any, question: Any, *, owned: bool = False
    ) -> Any:
        self._take_time(first, last)
        return self.prepared.run_check(first, last, state, question, owned=owned)

    def _take_time(self, first: int, last: int) -> None:
        if first == 1:
            self.served.append(self.machine.now_s)
        for _ in range(first, last + 1):
            self.machine.unit(SEGMENT_S)()


def bench_of(
    finished: Path, subject: Subject, machine: Machine, samples: int, manner: Manner
) -> Bench:
    traces = load_traces(RunDirectory(finished, create=False), "fp32")
    prices = prices_for(CostTable.read(finished / "cost.csv"), traces, 1)
    prepared = Timed(subject.prepare("fp32"), machine)
    clocked = Scene(manner.scene.period_s, clock=machine, sleep=machine.sleep)
    return Bench(
        subject, prepared, traces, prices, CounterMeter(machine), 1, np.arange(samples),
        replace(manner, scene=clocked),
    )  # fmt: skip


def machine_of(update_period_s: float = 1e-4) -> Machine:
    return Machine(WORK_W, update_period_s, IDLE_W)


def test_a_periodic_scene_pays_for_the_idle_until_the_next_request(
    finished: Path, subject: Subject
) -> None:
    machine = machine_of()
    manner = Manner(scene=Scene(0.1), idle=Idle(IDLE_W, "measured"))
    bench = bench_of(finished, subject, machine, 10, manner)
    (row,) = run_settings(bench, [FULL], 2, 0, silent)
    busy_s = 6 * SEGMENT_S
    joules = WORK_W * busy_s + IDLE_W * (0.1 - busy_s)
    # The fake counter is read at multiples of its period, where it is exact.
    assert row["energy_mj"] == pytest.approx(joules * 1e3, rel=1e-6)
    assert row["net_energy_mj"] == pytest.approx((joules - IDLE_W * 0.1) * 1e3, rel=1e-6)
    assert row["power_w"] == pytest.approx(joules / 0.1, rel=1e-6)
    assert row["energy_per_hour_j"] == pytest.approx(joules * 36_000, rel=1e-6)
    assert row["latency_ms"] == pytest.approx(busy_s * 1e3)
    assert (row["scene"], row["period_ms"], row["samples"]) == ("periodic", 100.0, 10)
    assert (row["late"], row["keeps_up"]) == (0.0, True)
    assert row["busy_share"] == pytest.approx(busy_s / 0.1)
    assert (row["idle_w"], row["idle_source"]) == (IDLE_W, "measured")
    assert (row["energy_source"], row["latency_source"]) == ("measured", "measured")
    assert row["same_decisions"] == 1.0


def test_requests_start_at_their_slots(finished: Path, subject: Subject) -> None:
    machine = machine_of()
    bench = bench_of(finished, subject, machine, 5, Manner(scene=Scene(0.1)))
    run_settings(bench, [FULL], 1, 0, silent)
    timed = np.array(bench.prepared.served[5:])  # the first five made the decisions, unpaced
    assert timed - timed[0] == pytest.approx(np.arange(5) * 0.1)


def test_an_early_exit_saves_less_in_a_scene_than_on_its_own(
    finished: Path, subject: Subject
) -> None:
    """Idle power is paid either way: that is what the scene is there to show."""
    shares = []
    for scene in (Scene(), Scene(0.1)):
        bench = bench_of(finished, subject, machine_of(), 10, Manner(scene=scene))
        full, small = run_settings(bench, [FULL, SMALL], 1, 0, silent)
        shares.append(small["energy_mj"] / full["energy_mj"])
    assert shares[0] == pytest.approx(1 / 6, rel=1e-6)  # one segment of six
    assert shares[1] == pytest.approx((0.04 + 0.192) / (0.24 + 0.152), rel=1e-6)


def test_a_setting_that_cannot_keep_up_says_so(finished: Path, subject: Subject) -> None:
    bench = bench_of(finished, subject, machine_of(), 10, Manner(scene=Scene(0.02)))
    full, small = run_settings(bench, [FULL, SMALL], 1, 0, silent)
    assert (full["keeps_up"], small["keeps_up"]) == (False, True)
    assert full["late"] == pytest.approx(0.9)  # all but the first
    assert full["latency_ms"] > 24.0  # each waits for those before
    # It never idles: its energy is that of its own rate.
    assert full["energy_mj"] == pytest.approx(240.0, rel=1e-6)
    assert full["energy_per_hour_j"] == pytest.approx(36_000.0, rel=1e-6)


def test_replay_beside_a_scene_holds_the_idle_too(finished: Path, subject: Subject) -> None:
    manner = Manner(scene=Scene(1.0), idle=Idle(IDLE_W, "measured"))
    bench = bench_of(finished, subject, machine_of(), 10, manner)
    plain = bench_of(finished, subject, machine_of(), 10, Manner())
    (row,), (continuous,) = (run_settings(b, [FULL], 1, 0, silent) for b in (bench, plain))
    latency_s = row["replay_latency_ms"] * 1e-3
    assert latency_s == continuous["replay_latency_ms"] * 1e-3
    if continuous["replay_energy_mj"] is None:
        pytest.skip("this machine has no energy of its costs")
    idle_mj = IDLE_W * (1.0 - latency_s) * 1e3
    assert row["replay_energy_mj"] == pytest.approx(continuous["replay_energy_mj"] + idle_mj)


@dataclass
class Watts:
    """A meter whose watts are those of a hardware profile."""

    machine: Machine
    idle_w: float | None
    power_w: float = WORK_W
    name: str = "power of a profile"
    domains: tuple[str, ...] = ("cpu",)
    source: str = "modelled"
    update_period_s: None = None
    opened_s: float = 0.0

    def open(self) -> Watts:
        return replace(self, opened_s=self.machine.now_s)

    def close(self) -> Reading:
        seconds = self.machine.now_s - self.opened_s
        return Reading(seconds, {"cpu": self.power_w * seconds}, "modelled")


def test_modelled_watts_of_a_scene_are_those_of_work_and_of_idle(
    finished: Path, subject: Subject
) -> None:
    machine = machine_of()
    bench = bench_of(finished, subject, machine, 10, Manner(scene=Scene(0.1)))
    known = replace(bench, meter=Watts(machine, IDLE_W))
    (row,) = run_settings(known, [FULL], 1, 0, silent)
    assert row["energy_mj"] == pytest.approx(240.0 + 152.0)
    assert row["energy_source"] == "modelled"
    (row,) = run_settings(replace(bench, meter=Watts(machine, None)), [FULL], 1, 0, silent)
    assert (row["energy_mj"], row["energy_source"]) == (None, "unavailable")
    assert "does not state the idle power" in row["energy_note"]


def test_the_net_energy_is_less_idle_and_may_be_below_0(finished: Path, subject: Subject) -> None:
    bench = bench_of(finished, subject, machine_of(), 10, Manner(idle=Idle(12.0, "measured")))
    (row,) = run_settings(bench, [FULL], 1, 0, silent)
    assert row["energy_mj"] == pytest.approx(240.0, rel=1e-6)
    assert row["net_energy_mj"] == pytest.approx(-48.0, rel=1e-6)
    unknown = replace(bench, manner=replace(bench.manner, idle=Idle()))
    (row,) = run_settings(unknown, [FULL], 1, 0, silent)
    assert row["net_energy_mj"] is None
    assert row["idle_source"] == "unavailable"


def test_what_a_reading_tells_stands_in_the_row(finished: Path, subject: Subject) -> None:
    machine = machine_of()
    more = {
        "uncertainty_j": {"gpu": 0.5},
        "flags": ("the card was throttled",),
        "conditions": {"gpu_mhz": 1410, "gpu_throttle": []},
        "checks": {"power x time": 2.0},
        "overhead_s": 0.024,
    }
    bench = bench_of(finished, subject, machine, 10, Manner(idle=Idle(note="the fan was on")))
    bench = replace(bench, meter=CounterMeter(machine, more=more))
    (row,) = run_settings(bench, [FULL], 1, 0, silent)
    assert row["energy_uncertainty_mj"] == pytest.approx(50.0)
    assert row["energy_checks"] == {"power x time": pytest.approx(200.0)}
    assert row["energy_conditions"] == {"gpu_mhz": 1410, "gpu_throttle": []}
    assert row["meter_overhead"] == pytest.approx(0.1)
    throttled, overhead, idle = row["energy_flags"]
    assert (throttled, idle) == ("the card was throttled", "the fan was on")
    assert "10.0% of a window, more than 1%" in overhead
    assert json.loads(json.dumps(row, allow_nan=False)) == row


@pytest.mark.parametrize(("check_j", "flagged"), [(2.5, False), (2.9, True)])
def test_passes_whose_counter_and_power_lie_apart_together_are_flagged(
    finished: Path, subject: Subject, check_j: float, flagged: bool
) -> None:
    machine = machine_of()
    bench = bench_of(finished, subject, machine, 10, Manner())
    bench = replace(bench, meter=CounterMeter(machine, more={"checks": {CHECK: check_j}}))
    (row,) = run_settings(bench, [FULL], 2, 0, silent)
    # ten requests of 240 mJ in each of two passes, beside 2.5 J (4% more) or 2.9 J (21%)
    said = "all windows together: the energy counter says 4.8 J, NVML instant power 5.8 J: they "
    assert row["energy_flags"] == ([f"{said}differ by 21%"] if flagged else [])


def test_a_tier_says_how_wide_windows_are_and_how_many(finished: Path, subject: Subject) -> None:
    machine = machine_of()
    bench = bench_of(finished, subject, machine, 10, Manner(tier=TIERS["quick"]))
    (row,) = run_settings(bench, [SMALL], 3, 0, silent)
    assert (row["tier"], row["repeats"], row["asked_repeats"]) == ("quick", 5, 3)
    timed = machine.windows[1:]
    assert len(timed) == 5
    assert min(timed) >= 1.0
    # However often the samples ran in a window, one of them costs what it costs.
    assert row["energy_mj"] == pytest.approx(WORK_W * SEGMENT_S * 1e3, rel=1e-6)
    assert row["latency_ms"] == pytest.approx(SEGMENT_S * 1e3)


def test_a_slow_counter_needs_wider_windows_than_the_tier() -> None:
    fast, slow = (CounterMeter(machine_of(period)) for period in (0.001, 0.1))
    manner = Manner(tier=TIERS["quick"])
    assert plan(manner, fast, 3) == Windows(1.0, 5, cap_s=5.0)
    assert plan(manner, slow, 3).floor_s == 5.0  # 50 updates
    assert plan(manner, fast, 9).least == 9
    standard = plan(Manner(tier=TIERS["standard"]), fast, 3)
    assert (standard.floor_s, standard.least, standard.target) == (5.0, 6, 0.02)
    assert standard.cap_s == 120.0
    publish = plan(Manner(tier=TIERS["publish"]), fast, 3)
    assert publish.floor_s * publish.least >= 600
    assert plan(Manner(), fast, 3) == Windows(0.05, 3)


def test_what_any_window_logged_in_a_list_is_told_of_all() -> None:
    logged = [{"gpu_throttle": [], "gpu_mhz": mhz} for mhz in (1400, 1410)]
    late = {"gpu_throttle": ["software power cap"], "gpu_mhz": 1300}
    assert typical([*logged, late]) == {"gpu_throttle": ["software power cap"], "gpu_mhz": 1400}


def test_what_a_meter_is_unsure_of_is_shared_by_all_that_ran_in_its_window(
    finished: Path, subject: Subject
) -> None:
    machine = machine_of()
    more = {"uncertainty_j": {"gpu": 0.5}, "checks": {"other": 10.0}, "overhead_s": 0.005}
    bench = bench_of(finished, subject, machine, 10, Manner(tier=TIERS["quick"]))
    bench = replace(bench, meter=CounterMeter(machine, more=more))
    (row,) = run_settings(bench, [SMALL], 5, 0, silent)
    # 250 samples of 4 ms in a window of a second; once more round ten samples may fit in.
    assert row["energy_uncertainty_mj"] == pytest.approx(0.5e3 / 250, rel=0.05)
    assert row["energy_checks"] == {"other": pytest.approx(10e3 / 250, rel=0.05)}
    assert row["meter_overhead"] == pytest.approx(0.005, rel=0.05)


def test_samples_that_come_in_several_stretches_get_windows_that_the_counter_resolves(
    finished: Path, subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two images are held at once, so that a pass has five windows.
    image_bytes = 4 * subject.parts["test"].images[0].size
    monkeypatch.setattr("exitbench.harness.onepass.CHUNK_BYTES", 2 * image_bytes)
    machine = machine_of(0.1)
    bench = bench_of(finished, subject, machine, 10, Manner(tier=TIERS["quick"]))
    (row,) = run_settings(bench, [SMALL], 5, 0, silent)
    timed = machine.windows[5:]  # after the windows of the first pass, which are for no numbers
    assert len(timed) == 5 * 5
    assert min(timed) >= 50 * 0.1
    assert row["energy_mj"] == pytest.approx(WORK_W * SEGMENT_S * 1e3, rel=0.05)


def passes(*joules: float | None) -> list[Pass]:
    return [Pass(Reading(1.0, {"gpu": j}, "measured"), 5.0) for j in joules]


def test_standard_goes_on_until_the_interval_is_narrow_or_the_cap_is_reached() -> None:
    windows = Windows(5.0, 6, target=0.02, cap_s=40.0)
    assert not windows.suffice(passes(*[1.0] * 5))
    assert windows.suffice(passes(*[1.0] * 6))
    assert not windows.suffice(passes(*[1.0] * 5, 1.1))
    assert windows.suffice(passes(*[1.0] * 7, 1.1))  # 40 s
    # Without energy the times, which agree here, are all there is to go by.
    assert windows.suffice(passes(*[1.0] * 5, None))


def test_a_standard_run_stops_by_itself(finished: Path, subject: Subject) -> None:
    machine = machine_of()
    bench = bench_of(finished, subject, machine, 10, Manner(tier=TIERS["standard"]))
    (row,) = run_settings(bench, [SMALL], 2, 0, silent)
    assert (row["repeats"], row["asked_repeats"]) == (6, 2)


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished study without its measurements."""
    copied = shutil.copytree(finished, tmp_path / "run")
    (copied / "measurements.jsonl").unlink()
    return copied


def measured(run: Path) -> list[dict[str, Any]]:
    return RunDirectory(run, create=False).read_measurements()


def test_a_command_runs_a_scene_and_says_how_long_it_takes(run: Path) -> None:
    config = RunConfig(
        run, settings=("full",), repeats=2, limit=5, scene="periodic", period_ms=20.0, device=CPU
    )
    said = Said()
    run_run(config, said)
    assert said.starting("run: a request every 20 ms, 5 of them in a pass, 2 passes of 1 settings")
    run_run(config, said)
    assert said.starting("run fp32: already measured")
    run_run(replace(config, scene="continuous", period_ms=None), said)
    periodic, continuous = measured(run)
    assert (periodic["scene"], continuous["scene"]) == ("periodic", "continuous")
    assert measured_key(periodic) != measured_key(continuous)
    assert periodic["batch_size"] == continuous["batch_size"] == 1


@pytest.mark.parametrize(("period_ms", "samples"), [(500.0, 20), (10.0, 60), (60_000.0, 1)])
def test_a_scene_without_a_limit_takes_about_ten_seconds_a_pass(
    run: Path, monkeypatch: pytest.MonkeyPatch, period_ms: float, samples: int
) -> None:
    found: list[Bench] = []

    def look(bench: Bench, *arguments: Any) -> list[dict[str, Any]]:
        found.append(bench)
        return []

    monkeypatch.setattr("exitbench.harness.live.run_settings", look)
    run_run(
        RunConfig(run, settings=("full",), scene="periodic", period_ms=period_ms, device=CPU),
        silent,
    )
    assert len(found[0].positions) == samples


def test_measurements_of_before_there_were_scenes_are_continuous_ones(run: Path) -> None:
    config = RunConfig(run, settings=("full",), repeats=1, device=CPU)
    run_run(config, silent)
    (row,) = measured(run)
    if row["energy_source"] == "measured":
        pytest.skip("this machine has a counter, whose runs have a tier")
    new = ("scene", "period_ms", "tier", "governor", "operating_point", "deadline_ms", "clocks",
           "operating_costs", "asked_repeats")  # fmt: skip
    old = {name: value for name, value in row.items() if name not in new}
    assert measured_key(old) == measured_key(row)
    (run / "measurements.jsonl").write_text(json.dumps(old) + "\n")
    said = Said()
    run_run(config, said)
    assert said.starting("run fp32: already measured")
    (run / "measurements.jsonl").write_text(json.dumps({**old, "costs": "others"}) + "\n")
    run_run(config, silent)
    assert len(measured(run)) == 1  # the new run takes the place of the stale one


def test_another_tier_is_another_measurement_where_a_counter_reads(
    finished: Path, subject: Subject
) -> None:
    rows = []
    for tier in ("quick", "standard"):
        bench = bench_of(finished, subject, machine_of(), 10, Manner(tier=TIERS[tier]))
        rows += run_settings(bench, [SMALL], 1, 0, silent)
    assert measured_key(rows[0]) != measured_key(rows[1])


def test_a_modelled_run_has_no_tier(run: Path) -> None:
    config = RunConfig(run, settings=("full",), repeats=1, device=CPU)
    run_run(config, silent)
    (row,) = measured(run)
    if row["energy_source"] == "measured":
        pytest.skip("this machine has a counter")
    assert row["tier"] is None
    said = Said()
    run_run(replace(config, metering=MeteringConfig(tier="publish")), said)
    assert said.starting("run fp32: already measured")


def test_no_meter_leaves_the_scene_without_energy_but_with_times(
    finished: Path, subject: Subject
) -> None:
    machine = machine_of()
    bench = bench_of(finished, subject, machine, 5, Manner(scene=Scene(0.1)))
    (row,) = run_settings(
        replace(bench, meter=ChosenMeter((), (), "cpu", "")), [FULL], 1, 0, silent
    )
    assert (row["energy_mj"], row["power_w"], row["energy_per_hour_j"]) == (None, None, None)
    assert row["latency_ms"] == pytest.approx(24.0)

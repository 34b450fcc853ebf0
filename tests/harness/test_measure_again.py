"""Measured runs that are stale, killed, or would use other watts than their prices."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from exitbench.harness import live, measure
from exitbench.harness.configs import MeteringConfig, ProfileConfig, RunConfig, SweepConfig
from exitbench.harness.idle import Idle
from exitbench.harness.live import run_run
from exitbench.harness.measure import Progress
from exitbench.harness.measured import measured_key
from exitbench.harness.meters.base import Reading
from exitbench.harness.passes import Pass, PassLog, Requests
from exitbench.harness.profiling import run_profile
from exitbench.harness.rundir import RunDirectory
from exitbench.harness.sweeping import run_sweep
from fake_counter import Bench as Machine
from fake_counter import CounterMeter
from pipeline_fixtures import CPU, Killed, Said, refused, silent

KEY = ("full", None, 0.5)


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished study without its measurements."""
    copied = shutil.copytree(finished, tmp_path / "run")
    (copied / "measurements.jsonl").unlink()
    return copied


def config(run: Path, **changes: Any) -> RunConfig:
    return replace(RunConfig(run, settings=("full",), repeats=1, device=CPU), **changes)


def measured(run: Path) -> list[dict[str, Any]]:
    return RunDirectory(run, create=False).read_measurements()


def test_other_costs_make_a_run_be_measured_again_in_place_of_the_old_one(run: Path) -> None:
    run_run(config(run), silent)
    (old,) = measured(run)
    profiling = ProfileConfig(run, batch_sizes=(1,), seconds=0.1, device=CPU)
    run_profile(profiling, silent)
    run_sweep(SweepConfig(run, criteria=("softmax",), beta=("0.3",)), silent)
    said = Said()
    run_run(config(run), said)
    assert not said.starting("run fp32: already measured")
    (new,) = measured(run)
    assert new["replay_latency_ms"] != old["replay_latency_ms"]
    assert new["costs"] != old["costs"]
    assert new["trace"] == old["trace"]


def test_the_key_of_a_run_holds_what_its_numbers_hang_on(run: Path) -> None:
    run_run(config(run), silent)
    (row,) = measured(run)
    for name in ("costs", "trace", "runtime", "threads"):
        assert measured_key(row | {name: "another"}) != measured_key(row)
    assert measured_key(row | {"meters": ["another"]}) != measured_key(row)


def test_a_run_takes_the_hardware_profile_of_the_cost_table(run: Path) -> None:
    directory = RunDirectory(run, create=False)
    run_profile(
        ProfileConfig(run, batch_sizes=(1,), seconds=0.1, hardware="jetson-tx2", device=CPU), silent
    )
    run_run(config(run), silent)
    assert RunDirectory(run).manifest["hardware"]["profile"] == "jetson-tx2"
    before = directory.measurements.read_bytes()
    message = refused(run_run, config(run, hardware="generic-x86"), silent)
    assert "were taken with hardware profile jetson-tx2" in message
    assert "profile again with --hardware generic-x86" in message
    assert directory.measurements.read_bytes() == before
    # Measured energies follow no profile, but what is governed later must be the same device.
    directory.update(hardware={**RunDirectory(run).manifest["hardware"], "source": "measured"})
    assert "both must be the same" in refused(
        run_run, config(run, hardware="generic-x86"), silent
    )
    assert RunDirectory(run).manifest["hardware"]["profile"] == "jetson-tx2"


def test_forecasts_timed_at_another_horizon_are_refused(run: Path) -> None:
    run_profile(ProfileConfig(run, batch_sizes=(1,), seconds=0.1, horizon=2, device=CPU), silent)
    message = refused(run_sweep, SweepConfig(run, criteria=("softmax",)), silent)
    assert "profile again with --horizon 8" in message


def test_a_killed_run_goes_on_after_the_last_whole_pass(run: Path) -> None:
    log = PassLog(run / "passes.jsonl")
    with pytest.raises(Killed):
        run_run(config(run, repeats=3), Said(stop_at="run: timed pass 3"))
    assert len(log.path.read_text().splitlines()) == 2
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    lines[0]["reading"]["seconds"] = 1e6  # told from all others
    log.path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"key": ["fu')
    run_run(config(run, repeats=3), silent)
    (row,) = measured(run)
    assert row["latency_high_ms"] == pytest.approx(1e9 / 60)
    assert row["repeats"] == 3
    assert not log.path.exists()


def test_passes_are_read_as_they_were_written(tmp_path: Path) -> None:
    log = PassLog(tmp_path / "passes.jsonl")
    assert log.passes(KEY) == []
    reading = Reading(
        1.5, {"gpu": 2.0, "cpu": None}, "modelled", "why", {"gpu": "measured"},
        uncertainty_j={"gpu": 0.1}, flags=("the card was throttled",),
        conditions={"gpu_mhz": 1410}, checks={"power x time": 2.1}, overhead_s=0.01,
    )  # fmt: skip
    first = Pass(reading, 6.0, Requests(0.2, 0.4, 0.0, True, 0.1, 1.5, {"854.25 MHz": 1.0}))
    log.add(KEY, first)
    with log.path.open("a") as handle:
        handle.write('{"key": ["full", nu')
    log.add(KEY, replace(first, window_s=7.0))
    log.add(("full", None, 0.6), first)
    assert log.passes(KEY) == [first, replace(first, window_s=7.0)]


def test_passes_of_an_older_exitbench_are_read_and_others_left_out(tmp_path: Path) -> None:
    log = PassLog(tmp_path / "passes.jsonl")
    old = {"seconds": 1.5, "joules": {"cpu": 2.0}, "source": "measured", "note": "", "sources": {}}
    lines = [
        {"key": list(KEY), "reading": old},
        {"key": list(KEY), "reading": {"seconds": 1.5}},
        {"key": list(KEY), "reading": None},
        {"key": list(KEY), "reading": {**old, "of_tomorrow": 1}, "requests": {"of_tomorrow": 2}},
    ]
    log.path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    same = Pass(Reading(1.5, {"cpu": 2.0}, "measured"), 1.5)
    assert log.passes(KEY) == [same, same]


def test_runs_to_publish_know_idle_power_of_both_sides_and_record_the_settings(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meter = CounterMeter(Machine(10.0, 0.001))
    powers = iter([Idle(10.0, "measured"), Idle(10.2, "measured"), Idle(11.0, "measured")])
    found: list[Idle] = []

    def look(*arguments: Any) -> list[dict[str, Any]]:
        found.append(arguments[-1]())
        return []

    monkeypatch.setattr(live, "choose_energy", lambda *arguments, **named: meter)
    monkeypatch.setattr(live, "measure_idle", lambda meter, seconds: next(powers))
    monkeypatch.setattr(live, "run_settings", look)
    run_run(config(run, metering=MeteringConfig(tier="publish")), silent)
    assert found[0].power_w == pytest.approx(10.1)
    recorded = RunDirectory(run).manifest["hardware"].pop("settings")
    assert list(recorded) == ["before", "after"]
    assert "clock_policies" in recorded["before"]
    run_run(config(run), silent)
    assert found[1].power_w == 11.0


def test_progress_tells_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    said, clock = Said(), iter([0.0, 4.0, 12.0, 16.0, 48.0])
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock))
    progress = Progress(400, said)
    for _ in range(4):
        progress(100)
    assert said.lines == ["run: 50% done, about 12 s left"]


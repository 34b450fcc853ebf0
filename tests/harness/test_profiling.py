"""``exitbench profile`` with meters: what stands in the cost table and in the manifest."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from exitbench.harness.configs import DataConfig, MeteringConfig, ProfileConfig
from exitbench.harness.costs import CostTable
from exitbench.harness.energy import measure_energy
from exitbench.harness.meters.base import Reading, Source
from exitbench.harness.meters.choose import ChosenMeter
from exitbench.harness.overhead import measure_overhead
from exitbench.harness.pipeline import study
from exitbench.harness.profiling import run_profile
from exitbench.harness.rundir import RunDirectory
from exitbench.harness.tiers import TIERS
from pipeline_fixtures import CPU, Inputs, Killed, Said, silent, study_config

POWER_W, IDLE_W = 30.0, 12.0


@dataclass
class WallCounter:
    """A counter that goes on with real time: at work by 30 W, and by 12 W while the test sleeps."""

    name: str = "fake counter"
    domains: tuple[str, ...] = ("cpu",)
    source: Source = "measured"
    update_period_s: float | None = 1e-5
    slept_s: float = 0.0
    flags: tuple[str, ...] = ()

    def sleep(self, seconds: float) -> None:
        self.slept_s += seconds

    def now_s(self) -> float:
        return time.perf_counter() + self.slept_s

    def open(self) -> WallWindow:
        return WallWindow(self, self.now_s(), self.slept_s)


@dataclass
class WallWindow:
    meter: WallCounter
    opened_s: float
    slept_s: float

    def close(self) -> Reading:
        seconds = self.meter.now_s() - self.opened_s
        slept_s = self.meter.slept_s - self.slept_s
        joules = POWER_W * (seconds - slept_s) + IDLE_W * slept_s
        return Reading(
            seconds, {"cpu": joules}, "measured", uncertainty_j={"cpu": 1e-6},
            flags=self.meter.flags, overhead_s=1e-6,
        )  # fmt: skip


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> WallCounter:
    """The meter that every run gets."""
    meter = WallCounter()
    chosen = ChosenMeter((meter,), (), "", "CPU energy is measured by the fake counter.")

    @dataclass(frozen=True)
    class Chosen(ChosenMeter):
        def open(self) -> Any:
            return meter.open()

    chosen = Chosen(chosen.meters, (), "", chosen.words)
    monkeypatch.setattr("exitbench.harness.profiling.open_meter", lambda *a, **k: chosen)
    for place, function in (("profiler", measure_energy), ("profiling", measure_overhead)):
        waiting = partial(function, sleep=meter.sleep)
        monkeypatch.setattr(f"exitbench.harness.{place}.{function.__name__}", waiting)
    return meter


def profiled(inputs: Inputs, run: Path, say: Any = silent, **changes: Any) -> dict[str, Any]:
    """The manifest of a profile of batch size 1."""
    values: dict[str, Any] = {
        "batch_sizes": (1,), "seconds": 0.1, "energy_seconds": 1.0, "device": CPU,
        "data": DataConfig(dataset=inputs.dataset), "hardware": "generic-x86",
    }  # fmt: skip
    run_profile(ProfileConfig(run, inputs.vgg, **values | changes), say)
    manifest: dict[str, Any] = json.loads((run / "manifest.json").read_text())
    return manifest


def with_energy(path: Path) -> pd.DataFrame:
    """The rows of a cost table but for gathers, which have a latency alone."""
    frame = CostTable.read(path).frame
    return frame[frame["kind"] != "gather"]


def test_a_counter_gives_gross_and_net_energy_with_its_uncertainty(
    counter: WallCounter, inputs: Inputs, tmp_path: Path
) -> None:
    manifest = profiled(inputs, tmp_path / "run")
    frame = with_energy(tmp_path / "run/cost.csv")
    assert set(frame["energy_source"]) == {"measured"}
    assert (frame["energy_uncertainty_mj"] > 0).all()
    # 30 W gross and 12 W idle: whatever the time was, 60% of it is net.
    share = frame["net_energy_mj"] / frame["energy_mj"]
    assert share.tolist() == pytest.approx([1 - IDLE_W / POWER_W] * len(frame), rel=0.05)
    hardware = manifest["hardware"]
    # Opening and closing a window takes some time at work.
    assert hardware["idle_w"] == pytest.approx(IDLE_W, rel=0.05)
    assert hardware["idle_source"] == "measured"
    assert hardware["overhead"]["open_close_s"] > 0
    assert hardware["overhead"]["share"] < 0.01


def test_the_manifest_says_with_what_and_how_well_energy_was_read(
    counter: WallCounter, inputs: Inputs, tmp_path: Path
) -> None:
    counter.flags = ("the card was throttled",)
    said = Said()
    manifest = profiled(inputs, tmp_path / "run", said)
    hardware, entry = manifest["hardware"], manifest["profile"]["fp32, batch 1"]
    assert hardware["device_class"] == "cpu"
    assert hardware["tier"] == "quick"
    assert hardware["meters"] == [
        {
            "name": "fake counter", "domains": ["cpu"], "source": "measured",
            "update_period_s": 1e-5,
        }
    ]  # fmt: skip
    assert all({"value", "source", "assumption"} <= set(p) for p in hardware["peaks"].values())
    energy = entry["energy"]
    assert energy["tier"] == "below quick"
    assert energy["windows"] >= 1
    assert energy["flags"] == ["all units: the card was throttled"]
    assert any("the tier quick was not reached" in note for note in entry["notes"])
    assert said.starting("energy (below quick): ")
    assert entry["how"]["tier"] == "quick"


def test_idle_power_is_measured_once_and_before_and_after_each_to_publish(
    counter: WallCounter, inputs: Inputs, tmp_path: Path
) -> None:
    profiled(inputs, tmp_path / "quick", batch_sizes=(1, 2))
    once_s, counter.slept_s = counter.slept_s, 0.0
    manifest = profiled(
        inputs, tmp_path / "publish", batch_sizes=(1, 2), metering=MeteringConfig("publish")
    )
    # A tenth of the time allowed, and a fifth of that to calm down; then the meter's own cost.
    assert once_s == pytest.approx(0.12, rel=0.05)
    assert counter.slept_s == pytest.approx(4 * 0.12, rel=0.05)
    energy = manifest["profile"]["fp32, batch 2"]["energy"]
    assert energy["tier"] == "below publish"
    assert {"before", "after"} == set(energy["settings"])
    assert "clock_policies" in energy["settings"]["before"]


def test_idle_power_that_one_batch_had_no_time_for_is_measured_with_the_next(
    counter: WallCounter, inputs: Inputs, tmp_path: Path
) -> None:
    counter.update_period_s = 0.1  # so that no window of 5 s fits into the second allowed

    def say(line: str) -> None:
        if line.startswith("profile fp32, batch 2"):
            counter.update_period_s = 1e-5

    manifest = profiled(inputs, tmp_path / "run", say, batch_sizes=(1, 2))
    assert any("energy unavailable" in n for n in manifest["profile"]["fp32, batch 1"]["notes"])
    assert manifest["hardware"]["idle_w"] == pytest.approx(IDLE_W, rel=0.05)
    rows = with_energy(tmp_path / "run/cost.csv")
    assert rows[rows.batch_size == 1].net_energy_mj.isna().all()
    assert rows[rows.batch_size == 2].net_energy_mj.notna().all()


def test_the_layers_are_summed_and_the_residue_is_told(
    counter: WallCounter, inputs: Inputs, tmp_path: Path
) -> None:
    entry = profiled(inputs, tmp_path / "run")["profile"]["fp32, batch 1"]
    whole = entry["whole"]
    residue = whole["energy_mj"] - whole["parts_energy_mj"]
    assert whole["residue_energy_mj"] == pytest.approx(residue)
    assert whole["residue_energy_share"] == pytest.approx(residue / whole["energy_mj"])
    assert whole["residue_energy_explained_mj"] > 0
    told = any("the uncertainties explain" in note for note in entry["notes"])
    assert told == (abs(residue) > whole["residue_energy_explained_mj"])


def test_modelled_energy_needs_no_windows_and_takes_the_idle_power_of_the_profile(
    inputs: Inputs, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    values = {"device": CPU, "data": DataConfig(dataset=inputs.dataset), "seconds": 0.1}
    run_profile(
        ProfileConfig(run, inputs.vgg, batch_sizes=(1,), hardware="generic-x86", **values),  # type: ignore[arg-type]
        silent,
    )
    directory = RunDirectory(run)
    hardware = directory.manifest["hardware"]
    if hardware["source"] == "measured":
        pytest.skip("this machine has a counter")
    assert hardware["idle_source"] == "modelled"
    frame = with_energy(directory.cost)
    net = frame["energy_mj"] - hardware["idle_w"] * frame["latency_ms"]
    assert np.allclose(frame["net_energy_mj"], net)
    assert directory.manifest["profile"]["fp32, batch 1"]["energy"]["tier"] is None


def test_another_tier_or_meter_is_another_way_of_measuring(
    counter: WallCounter, inputs: Inputs, tmp_path: Path
) -> None:
    hows = [
        profiled(inputs, tmp_path / str(number), metering=metering)["profile"]["fp32, batch 1"]
        for number, metering in enumerate(
            (MeteringConfig(), MeteringConfig("standard"), MeteringConfig(external="wattmeter"))
        )
    ]
    assert len({json.dumps(entry["how"]) for entry in hows}) == 3


def test_without_energy_there_is_no_meter_and_no_word_of_one(
    inputs: Inputs, tmp_path: Path
) -> None:
    manifest = profiled(inputs, tmp_path / "run", energy=False)
    assert "hardware" not in manifest
    assert manifest["profile"]["fp32, batch 1"]["energy"] == {}


def windows_of(run: Path) -> int:
    path = run / "windows.jsonl"
    lines = map(json.loads, path.read_text().splitlines()) if path.exists() else iter(())
    return sum("unit" in line for line in lines)


def killed_in(counter: WallCounter, monkeypatch: pytest.MonkeyPatch, windows: int) -> None:
    """The next process is killed when it opens a window after so many."""
    real, opened = WallCounter.open, [0]

    def open_window(self: WallCounter) -> WallWindow:
        opened[0] += 1
        if opened[0] > windows:
            monkeypatch.setattr(WallCounter, "open", real)
            raise Killed
        return real(self)

    monkeypatch.setattr(WallCounter, "open", open_window)


def killed_profile(
    counter: WallCounter, inputs: Inputs, run: Path, monkeypatch: pytest.MonkeyPatch, **more: Any
) -> int:
    """How many windows a killed profile has left: of 17 units, after those of idle power."""
    killed_in(counter, monkeypatch, 30)
    with pytest.raises(Killed):
        profiled(inputs, run, energy_seconds=None, **more)
    kept = windows_of(run)
    assert 0 < kept < 30
    return kept


@pytest.fixture
def short_tier(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiers that need no minutes."""
    for name in ("quick", "publish"):
        short = replace(TIERS[name], seconds=0.05, idle_s=0.1, windows=3)
        monkeypatch.setitem(TIERS, name, short)


@pytest.mark.usefixtures("short_tier")
@pytest.mark.parametrize("tier", ["quick", "publish"])
def test_a_killed_profile_goes_on_with_its_windows_and_leaves_no_file(
    counter: WallCounter, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tier: Any
) -> None:
    run, how = tmp_path / "run", MeteringConfig(tier)
    kept = killed_profile(counter, inputs, run, monkeypatch, metering=how)
    manifest = profiled(inputs, run, energy_seconds=None, metering=how)
    energy = manifest["profile"]["fp32, batch 1"]["energy"]
    assert (energy["tier"], energy["kept_windows"]) == (tier, kept)
    assert not (run / "windows.jsonl").exists()
    assert "windows.jsonl" not in manifest["checksums"]
    # The next one begins anew.
    manifest = profiled(inputs, run, energy_seconds=None, metering=how)
    assert manifest["profile"]["fp32, batch 1"]["energy"]["kept_windows"] == 0


@pytest.mark.usefixtures("short_tier")
def test_a_killed_profile_does_not_measure_again_what_it_had_finished(
    counter: WallCounter, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, said = tmp_path / "run", Said()
    sizes = {"batch_sizes": (1, 2), "energy_seconds": None}
    with pytest.raises(Killed):
        profiled(inputs, run, Said(stop_at="profile fp32, batch 2"), **sizes)
    profiled(inputs, run, said, **sizes)
    assert said.starting("profile fp32, batch 1: already there")
    assert not (run / "windows.jsonl").exists()
    # One that has ended is over: the next one, the same or not, measures all of it.
    for more in ({}, {"seconds": 0.11}):
        again = Said()
        profiled(inputs, run, again, **{**sizes, **more})
        assert not again.starting("profile fp32, batch 1: already there")


@pytest.mark.usefixtures("short_tier")
@pytest.mark.parametrize("change", ["tier", "meter", "settings", "deleted"])
def test_windows_of_another_tier_meter_or_setting_are_not_gone_on_with(
    counter: WallCounter,
    inputs: Inputs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: str,
) -> None:
    run, metering = tmp_path / "run", MeteringConfig()
    kept, said = killed_profile(counter, inputs, run, monkeypatch, metering=metering), Said()
    if change == "tier":
        metering = MeteringConfig("publish")
    elif change == "meter":
        counter.name = "another counter"
    elif change == "settings":
        monkeypatch.setattr("exitbench.harness.profiling.settings", lambda: {"boost": "0"})
    else:
        (run / "windows.jsonl").unlink()
    manifest = profiled(inputs, run, said, energy_seconds=None, metering=metering)
    assert manifest["profile"]["fp32, batch 1"]["energy"]["kept_windows"] == 0
    assert not (run / "windows.jsonl").exists()
    told = said.starting(f"profile fp32, batch 1: {kept} windows of an interrupted profile")
    assert len(told) == (change != "deleted")


@pytest.mark.usefixtures("short_tier")
def test_a_killed_study_goes_on_with_the_windows_of_its_profile(
    counter: WallCounter, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with pytest.raises(Killed):  # of this one nothing stays in the file
        profiled(inputs, run, Said(stop_at="profile fp32, batch 1"))
    assert (run / "windows.jsonl").exists()
    config = study_config(inputs.vgg, run, batch_sizes=(1,), energy_seconds=None)
    killed_in(counter, monkeypatch, 30)
    with pytest.raises(Killed):
        study(config, silent)
    kept = windows_of(run)
    monkeypatch.setattr("exitbench.harness.pipeline.run_sweep", partial(kill, Killed))
    with pytest.raises(Killed):
        study(config, silent)
    (entry,) = json.loads((run / "manifest.json").read_text())["profile"].values()
    assert entry["energy"]["kept_windows"] == kept > 0
    assert not (run / "windows.jsonl").exists()


def kill(how: type[Exception], *given: Any) -> None:
    raise how

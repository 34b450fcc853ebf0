"""Profiles at clocks that are really set, on a folder that looks like sysfs."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from exitbench.harness.clocks.base import ClockError
from exitbench.harness.configs import DataConfig, ProfileConfig
from exitbench.harness.costs import CostTable
from exitbench.harness.profiling import run_profile
from exitbench.harness.setpoints import SETTLE_S, SetPoint, find_set_points
from exitbench.profiles.loading import load_profile
from fake_clocks import Kernel, add_policy, content, install, refuse
from pipeline_fixtures import CPU, Inputs, Said, refused, silent

LEVELS_KHZ = (800_000, 1_600_000, 3_200_000)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Kernel:
    """A CPU of three levels, with the kernel behind its files."""
    from exitbench.harness.clocks import sysfs

    monkeypatch.setattr(sysfs, "put_text", sysfs.put_text)  # is put back after the test
    add_policy(tmp_path / "machine", 0, LEVELS_KHZ)
    return install(Kernel())


def points(folder: Path, *names: str, profile: str = "generic-x86", **more: Any) -> Any:
    return find_set_points(
        names, load_profile(profile), "cpu", root=folder / "machine",
        journal=folder / "state/clocks.json", **more,
    )  # fmt: skip


def config(inputs: Inputs, run: Path, *names: str) -> ProfileConfig:
    return ProfileConfig(
        run, inputs.vgg, batch_sizes=(1,), seconds=0.1, operating_points=names, device=CPU,
        data=DataConfig(dataset=inputs.dataset), hardware="generic-x86",
    )  # fmt: skip


def profiled(inputs: Inputs, folder: Path, *names: str, say: Any = silent) -> Path:
    run = folder / "run"
    run_profile(
        config(inputs, run, *names), say, root=folder / "machine",
        journal=folder / "state/clocks.json",
    )  # fmt: skip
    return run


def test_a_level_of_the_device_needs_no_list_in_the_profile(kernel: Kernel, tmp_path: Path) -> None:
    found = points(tmp_path, "800 MHz", "1600MHz")
    assert [(p.name, p.clock_mhz, p.own_mhz) for p in found.points] == [
        ("800 MHz", {"cpu": 800.0}, 800.0), ("1600 MHz", {"cpu": 1600.0}, 1600.0),
    ]  # fmt: skip
    assert list(found.actuators) == ["cpu"]
    # Less power at a lower clock, and less still than in proportion: the voltage falls too.
    low, high = (p.power_factor for p in found.points)
    assert 0 < low < high < 1


def test_modelled_power_hangs_on_how_much_of_the_cpu_works(kernel: Kernel, tmp_path: Path) -> None:
    all_cores = points(tmp_path, "800 MHz").points[0].power_factor
    one_core = points(tmp_path, "800 MHz", busy=0.1).points[0].power_factor
    assert all_cores < one_core < 1


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("900 MHz",), "no level '900 MHz'"),
        (("turbo",), "no operating point 'turbo'"),
        (("800 MHz", "800 MHz"), "given twice: 800 MHz"),
        (("800 MHz", "800.0 MHz"), "are the same"),
    ],
)
def test_what_is_no_operating_point_is_refused(
    kernel: Kernel, tmp_path: Path, names: tuple[str, ...], words: str
) -> None:
    assert words in refused(points, tmp_path, *names)


def test_a_machine_that_sets_no_clocks_says_why(tmp_path: Path) -> None:
    with pytest.raises(ClockError, match="cpufreq"):
        points(tmp_path, "800 MHz")


def test_rows_at_a_set_clock_carry_its_name_and_everything_is_put_back(
    kernel: Kernel, tmp_path: Path, inputs: Inputs
) -> None:
    before = content(tmp_path / "machine")
    clocks: list[str] = []

    def say(line: str) -> None:
        if line.startswith("profile fp32, batch 1") and "at most" in line:
            policy = tmp_path / "machine/sys/devices/system/cpu/cpufreq/policy0"
            clocks.append((policy / "scaling_max_freq").read_text().strip())

    run = profiled(inputs, tmp_path, "800 MHz", "1600 MHz", say=say)
    # First with the clocks as they are, then at the points, in the order they were named.
    assert clocks == ["3200000", "800000", "1600000"]
    assert content(tmp_path / "machine") == before
    table = CostTable.read(run / "cost.csv")
    assert table.settings() == [
        ("fp32", 1, "default"), ("fp32", 1, "800 MHz"), ("fp32", 1, "1600 MHz"),
    ]  # fmt: skip
    frame = table.frame[table.frame["operating_point"] == "800 MHz"]
    assert set(frame["clock_mhz"]) == {800.0}
    assert set(frame["latency_source"]) == {"measured"}
    assert (run / "cost-samples-fp32-1-800_MHz.npz").is_file()
    manifest = json.loads((run / "manifest.json").read_text())
    assert set(manifest["profile"]) == {
        "fp32, batch 1", "fp32, batch 1, 800 MHz", "fp32, batch 1, 1600 MHz",
    }  # fmt: skip
    assert manifest["profile"]["fp32, batch 1, 800 MHz"]["how"]["clock_mhz"] == {"cpu": 800.0}


def test_modelled_energy_at_a_set_clock_is_the_power_there_times_the_measured_time(
    kernel: Kernel, tmp_path: Path, inputs: Inputs
) -> None:
    run = profiled(inputs, tmp_path, "800 MHz")
    manifest = json.loads((run / "manifest.json").read_text())
    factor = manifest["profile"]["fp32, batch 1, 800 MHz"]["whole"]["power_w"]
    factor /= manifest["profile"]["fp32, batch 1"]["whole"]["power_w"]
    wanted = points(tmp_path, "800 MHz", busy=_busy()).points[0].power_factor
    assert factor == pytest.approx(wanted)
    frame = CostTable.read(run / "cost.csv").frame
    low = frame[(frame["operating_point"] == "800 MHz") & (frame["kind"] != "gather")]
    power_w = low["energy_mj"] / low["latency_ms"]
    assert power_w.tolist() == pytest.approx([low["power_w"].iloc[0]] * len(low))
    idle_w = (low["energy_mj"] - low["net_energy_mj"]) / low["latency_ms"]
    assert idle_w.tolist() == pytest.approx([manifest["hardware"]["idle_w"]] * len(low))
    assert set(low["energy_source"]) == {"modelled"}


def test_without_permission_nothing_is_written(
    kernel: Kernel, tmp_path: Path, inputs: Inputs
) -> None:
    kernel.rules["scaling_max_freq"] = refuse(errno.EACCES)
    before = content(tmp_path / "machine")
    with pytest.raises(ClockError) as caught:
        profiled(inputs, tmp_path, "800 MHz")
    assert caught.value.exit_status == 2
    assert content(tmp_path / "machine") == before
    assert not (tmp_path / "run").exists()


def test_a_profile_that_fails_at_a_set_clock_puts_it_back(
    kernel: Kernel, tmp_path: Path, inputs: Inputs
) -> None:
    before = content(tmp_path / "machine")
    with pytest.raises(Exception, match="clocks set to 800 MHz"):
        profiled(inputs, tmp_path, "800 MHz", say=Said(stop_at="profile: clocks set"))
    with pytest.raises(Exception, match="fp32, batch 1, 800 MHz"):
        profiled(inputs, tmp_path, "800 MHz", say=Said(stop_at="profile fp32, batch 1, 800 MHz"))
    assert content(tmp_path / "machine") == before


def _busy() -> float:
    import os

    return 1 / (os.cpu_count() or 1)


def test_a_change_is_waited_for(kernel: Kernel, tmp_path: Path) -> None:
    waited: list[float] = []
    found = replace(points(tmp_path, "800 MHz"), sleep=waited.append)
    with found.session() as set_point:
        set_point(found.points[0])
    assert waited == [SETTLE_S]


def test_a_point_where_power_is_not_known_has_no_energy() -> None:
    from exitbench.harness.profiler import Profile
    from exitbench.harness.setpoints import repriced

    row: dict[str, Any] = {
        "energy_mj": 3.0, "energy_low_mj": None, "energy_high_mj": None, "gpu_energy_mj": None,
        "cpu_energy_mj": 3.0, "power_w": 3.0, "net_energy_mj": 1.0, "energy_source": "modelled",
        "cpu_energy_source": "modelled", "gpu_energy_source": "unavailable",
    }  # fmt: skip
    unknown = repriced(Profile([row], row, (), {}), SetPoint("x", {}, 1.0, None))
    assert unknown.rows[0]["energy_mj"] is None
    assert unknown.rows[0]["net_energy_mj"] is None
    assert unknown.rows[0]["energy_source"] == "unavailable"
    assert "energy unavailable at x" in unknown.notes[0]
    half = repriced(Profile([row], row, (), {}), SetPoint("x", {}, 1.0, 0.5)).rows[0]
    # gross 3 to 1.5; the idle 2 of it stays: it may come out below zero
    assert (half["energy_mj"], half["net_energy_mj"]) == (1.5, -0.5)

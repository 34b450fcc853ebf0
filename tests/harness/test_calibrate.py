"""A machine that is measured becomes a hardware profile that says what it is worth."""

from __future__ import annotations

import threading
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from exitbench.harness.calibrate import run_hardware_calibrate
from exitbench.harness.calibrated import LevelRun, Measured, calibrated_profile, without
from exitbench.harness.cli import parse
from exitbench.harness.clocks import sysfs
from exitbench.harness.clocks.base import LeftChanged
from exitbench.harness.configs import DeviceConfig, MeteringConfig
from exitbench.harness.configs_device import HardwareCalibrateConfig
from exitbench.harness.dvfs import dvfs_of, points_of
from exitbench.harness.errors import ExitbenchError
from exitbench.harness.loads import Load, Rate, convolution, fastest, product, rate_of
from exitbench.profiles.detect import Machine, why_it_fits
from exitbench.profiles.loading import load_profile
from exitbench.profiles.nvml import Gpu
from exitbench.profiles.schema import Profile
from exitbench.profiles.shape import faults_of
from exitbench.profiles.writing import profile_text
from fake_clocks import Kernel, add_policy, add_range_policy, content
from fake_machine import fake_nvml

CPU = torch.device("cpu")
CPUINFO = (
    "processor: 0\nvendor_id: X\nmodel name: Some CPU [A] @ 2*1.5GHz\nphysical id: 0\ncore id: 0\n"
)
WATTS = 40.0
X86 = Machine(machine="x86_64", cpu_model="Some CPU [A] @ 2*1.5GHz")


def rate(best: float, typical: float | None = None) -> Rate:
    return Rate("some work", best, best / 2 if typical is None else typical, 9)


def measured(**changed: object) -> Measured:
    base = Measured(
        device_class="cpu",
        date="2026-01-31",
        covers="cpu",
        device="4 CPU threads",
        meter="some meter",
        load="some load",
        idle_w=20.0,
        active_w=50.0,
        peaks={"fp32_gflops": rate(100e9), "bandwidth_gb_s": rate(20e9)},
        convolution=rate(80e9, 60e9),
    )
    return replace(base, **changed)  # type: ignore[arg-type]


def profile_of(
    found: Measured, folder: Path, *, base: str = "generic-x86", machine: Machine = X86
) -> Profile:
    """The calibrated profile as it comes back from its file."""
    profile = calibrated_profile("mine", load_profile(base), machine, found)
    file = folder / "mine.toml"
    file.write_text(profile_text(profile), encoding="utf-8")
    assert load_profile(file) == replace(profile, path=file)
    return profile


def test_what_was_measured_stands_with_command_date_meter_and_load(tmp_path: Path) -> None:
    profile = profile_of(measured(), tmp_path)
    power = profile.power["cpu"]
    assert (power.covers, power.active_w.value, power.active_w.assumption) == ("cpu", 50, False)
    for words in (
        "measured by exitbench hardware calibrate, 2026-01-31",
        "some meter",
        "some load",
    ):
        assert words in power.active_w.source
    assert power.idle_w is not None
    assert (power.idle_w.value, power.idle_w.assumption) == (20, False)
    fp32 = profile.peaks["cpu"]["fp32_gflops"]
    assert (fp32.value, fp32.assumption) == (100, False)
    assert "some work on 4 CPU threads: best of 9, the median was 50" in fp32.source
    assert "fp32_flop_per_cycle_per_core" not in profile.peaks["cpu"]
    assert profile.model["cpu"]["efficiency"].value == 0.8
    assert profile.model["cpu"]["bandwidth_efficiency"].value == 1


def test_what_was_not_measured_is_taken_over_as_an_assumption_and_told(tmp_path: Path) -> None:
    found = measured(idle_w=None, active_w=None, meter="")
    profile = profile_of(found, tmp_path)
    active = profile.power["cpu"].active_w
    assert (active.value, active.assumption) == (65, True)
    assert active.source.startswith("hardware profile generic-x86: no published")
    assert all(each.assumption for each in profile.dvfs["cpu"].values())
    told = without(profile, found)
    assert told == [
        "power: 10 W idle and 65 W at work",
        "clocks: 800 to 3600 MHz",
        "power and time over the clocks",
    ]


def test_even_a_published_figure_is_an_assumption_on_this_machine(tmp_path: Path) -> None:
    machine = Machine(machine="aarch64", device_tree_model="Raspberry Pi 5 Model B Rev 1.0")
    found = measured(idle_w=None, active_w=None)
    profile = profile_of(found, tmp_path, base="raspberry-pi-5", machine=machine)
    assert not load_profile("raspberry-pi-5").power["cpu"].active_w.assumption
    assert profile.power["cpu"].active_w.assumption


def test_watts_of_another_machine_go_where_this_one_is_measured(tmp_path: Path) -> None:
    # The generic profile's 15 W of static power would not even fit under 12 W at work.
    profile = profile_of(measured(idle_w=6.0, active_w=12.0), tmp_path)
    assert "static_w" not in profile.dvfs["cpu"]
    assert dvfs_of(profile, "cpu").static_w == 6


def test_power_of_some_threads_is_taken_to_all_cpus_as_modelled_power_counts_them(
    tmp_path: Path,
) -> None:
    power = profile_of(measured(working=0.5), tmp_path).power["cpu"]
    assert power.active_w.value == 20 + (50 - 20) / 0.5
    assert (
        "50 W with 50% of the logical CPUs at work, taken to all of them" in power.active_w.source
    )


def test_clocks_that_were_measured_are_levels_and_points_of_the_model(tmp_path: Path) -> None:
    runs = (LevelRun(1000, 0.004, 30.0), LevelRun(1500, 0.003, 36.0), LevelRun(2000, 0.002, 50.0))
    found = measured(levels=(1000.0, 1500.0, 2000.0), actuator="cpufreq policy0", runs=runs)
    profile = profile_of(found, tmp_path)
    levels = profile.clocks["cpu"].levels_mhz
    assert levels is not None
    assert "read from cpufreq policy0" in levels.source
    model, points = dvfs_of(profile, "cpu"), points_of(profile, "cpu")
    assert [point.name for point in points] == ["1000 MHz", "1500 MHz", "2000 MHz"]
    assert [model.power_w(point) for point in points] == [30, 36, 50]
    assert [model.time_factor(point) for point in points] == [2, 1.5, 1]
    assert "power and time over the clocks" not in without(profile, found)


def test_clocks_without_a_meter_still_tell_the_time(tmp_path: Path) -> None:
    runs = (LevelRun(1000, 0.004, None), LevelRun(2000, 0.002, None))
    found = measured(levels=(1000.0, 2000.0), runs=runs, idle_w=None, active_w=None)
    slow = points_of(profile_of(found, tmp_path), "cpu")[0]
    assert (slow.stated_w, slow.stated_time) == (None, 2)


def test_the_range_that_the_kernel_tells_goes_before_that_of_the_profile(tmp_path: Path) -> None:
    profile = profile_of(measured(span_mhz=(400.0, 4700.0)), tmp_path)
    clock = profile.clocks["cpu"]
    assert (clock.levels[0], clock.levels[-1]) == (400, 4700)
    assert clock.max_mhz is not None
    assert "cpuinfo_max_freq" in clock.max_mhz.source


def test_operating_points_that_this_machine_has_no_levels_for_are_dropped(tmp_path: Path) -> None:
    machine = Machine(machine="aarch64", device_tree_model="NVIDIA Jetson TX2 Developer Kit")
    found = measured(levels=(345.6, 1113.6, 2035.2), actuator="cpufreq", covers="module")
    profile = profile_of(found, tmp_path, base="jetson-tx2", machine=machine)
    names = [point.name for point in profile.operating_points]
    assert names == ["MAXN", "MAXQ", "MAXP_CORE_DENVER"]
    assert profile.rails is not None
    assert profile.power["gpu"].active_w.assumption


def test_the_rule_fits_this_machine_by_its_literal_name_and_no_other(tmp_path: Path) -> None:
    profile = profile_of(measured(), tmp_path)
    assert why_it_fits(profile, X86)
    assert not why_it_fits(profile, replace(X86, cpu_model="Some CPU A @ 2x1.5GHz"))
    assert profile.priority > load_profile("jetson-tx2").priority


def test_a_convolution_above_the_peak_is_taken_as_the_peak_and_said(tmp_path: Path) -> None:
    profile = profile_of(measured(convolution=rate(110e9)), tmp_path)
    efficiency = profile.model["cpu"]["efficiency"]
    assert efficiency.value == 1
    assert efficiency.source.endswith("its best call to the fp32 peak, 1.1 of it, taken as 1")


def test_a_card_is_known_by_its_name_and_keeps_the_efficiency_of_the_profile(
    tmp_path: Path,
) -> None:
    machine = Machine("x86_64", gpus=(Gpu(0, "NVIDIA H200", "GPU-a", None, False),))
    found = measured(device_class="gpu", covers="gpu", idle_w=75.0, active_w=600.0)
    profile = profile_of(found, tmp_path, base="nvidia-h200", machine=machine)
    assert why_it_fits(profile, machine) == "gpu_name is 'NVIDIA H200'"
    # One image is mostly launching, which has a figure of its own.
    assert profile.model["gpu"]["efficiency"].assumption
    assert profile.model["gpu"]["bandwidth_efficiency"].value == 1
    assert profile.peaks["gpu"]["int8_gops"].assumption


def test_a_rate_is_the_amount_by_the_time_of_the_fastest_call() -> None:
    now = [0.0]
    steps = iter([0.0, 0.4, 0.1, 0.2, 0.3])

    def run() -> None:
        now[0] += next(steps)

    found = rate_of(Load("work", run, 2.0), 0.5, lambda: None, lambda: now[0])
    assert (found.best, found.typical, found.calls) == pytest.approx((2 / 0.1, 2 / 0.2, 3))


def test_a_series_of_loads_ends_where_a_larger_one_is_no_faster() -> None:
    now = [0.0]
    speeds = {1: 10.0, 8: 20.0, 64: 20.1, 512: 99.0}

    def load(amount: int) -> Load:
        def run() -> None:
            now[0] += amount / speeds[amount]

        return Load(f"{amount}", run, float(amount))

    found, speed = fastest(map(load, speeds), 1000.0, lambda: None, lambda: now[0])
    assert found.words == "64"
    assert speed.best == pytest.approx(20.1)


def test_loads_count_what_they_do() -> None:
    assert product("fp32", 64, CPU).amount == 2 * 64**3
    assert convolution(CPU).amount == 2 * (256 * 256 * 9) * (16 * 16)
    result = convolution(CPU).run()
    assert isinstance(result, torch.Tensor)
    assert result.shape == (1, 256, 16, 16)


def config(folder: Path, **changed: object) -> HardwareCalibrateConfig:
    base = HardwareCalibrateConfig(
        write=folder / "mine.toml", seconds=0.02, device=DeviceConfig("cpu", threads=1)
    )
    return replace(base, **changed)  # type: ignore[arg-type]


def calibrate(root: Path, asked: HardwareCalibrateConfig) -> tuple[Profile, str]:
    (root / "proc").mkdir(parents=True, exist_ok=True)
    (root / "proc/cpuinfo").write_text(CPUINFO)
    lines: list[str] = []
    journal = root / "state/clocks.json"
    nvml = fake_nvml(driver=False)
    run_hardware_calibrate(asked, lines.append, root=root, nvml=nvml, journal=journal)
    assert not journal.exists()
    return load_profile(asked.write), "\n".join(lines)


@contextmanager
def wall_meter(file: Path) -> Iterator[str]:
    """A file that counts joules at 40 W, a thousand times a second: a lab's instrument."""
    done, begin_s = threading.Event(), time.perf_counter()
    temporary = file.with_suffix(".new")

    def count() -> None:
        while not done.wait(0.001):
            temporary.write_text(f"{WATTS * (time.perf_counter() - begin_s):.6f}\n")
            temporary.replace(file)

    file.write_text("0\n")
    thread = threading.Thread(target=count)
    thread.start()
    try:
        yield f"file:{file}"
    finally:
        done.set()
        thread.join()


def test_a_machine_without_meter_and_clocks_gets_a_profile_that_says_so(tmp_path: Path) -> None:
    profile, said = calibrate(tmp_path, config(tmp_path))
    assert profile.peaks["cpu"]["fp32_gflops"].value > 0
    assert not profile.peaks["cpu"]["fp32_gflops"].assumption
    assert profile.peaks["cpu"]["bandwidth_gb_s"].value > 0
    assert profile.power["cpu"].active_w.assumption
    assert "power is not measured: no meter measures this device here" in said
    assert "clocks are not measured: the clock of cpu cannot be set" in said
    assert "taken over from generic-x86 as an assumption: power: 10 W idle and 65 W" in said
    assert f"written: {tmp_path / 'mine.toml'}" in said
    assert why_it_fits(profile, X86)


@pytest.mark.cuda
def test_a_card_is_measured_in_its_own_formats(tmp_path: Path) -> None:
    asked = HardwareCalibrateConfig(
        write=tmp_path / "card.toml", seconds=0.2, device=DeviceConfig("cuda:0", threads=1)
    )
    run_hardware_calibrate(asked, lambda line: None, journal=tmp_path / "clocks.json")
    profile = load_profile(asked.write)
    peaks = profile.peaks["gpu"]
    assert peaks["fp16_gflops"].value > peaks["fp32_gflops"].value > 0
    assert peaks["bandwidth_gb_s"].value > 0
    assert profile.power["gpu"].covers == "gpu"


def test_an_instrument_of_the_users_own_gives_the_watts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A load that draws no more than idle tells nothing, and this instrument counts evenly.
    monkeypatch.setattr("exitbench.harness.calibrate._LEAST_RISE", 0.0)
    with wall_meter(tmp_path / "joules") as source:
        metering = MeteringConfig(external=source, external_unit="joules", external_covers="board")
        profile, _ = calibrate(tmp_path, config(tmp_path, metering=metering))
    power = profile.power["cpu"]
    assert power.covers == "module"
    assert not power.active_w.assumption
    assert power.idle_w is not None
    # Windows of 50 updates are within 2%, but a busy test machine lets updates come late.
    assert power.idle_w.value == pytest.approx(WATTS, rel=0.25)
    assert "external meter" in power.active_w.source
    assert "updates every" in (tmp_path / "mine.toml").read_text()


def test_power_that_does_not_rise_with_work_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The instrument counts evenly; on a busy test machine it may seem to rise a little.
    monkeypatch.setattr("exitbench.harness.calibrate._LEAST_RISE", 2.0)
    with wall_meter(tmp_path / "joules") as source:
        metering = MeteringConfig(external=source, external_unit="joules", external_covers="cpu")
        add_policy(tmp_path, 0, (1_000_000, 2_000_000))
        profile, said = calibrate(tmp_path, config(tmp_path, metering=metering))
    assert "W idle tells nothing" in said
    assert profile.power["cpu"].active_w.assumption
    assert [point.stated_w for point in points_of(profile, "cpu")] == [None, None]


def test_clocks_are_measured_one_by_one_and_put_back(tmp_path: Path) -> None:
    folder = add_policy(tmp_path, 0, (1_000_000, 1_500_000, 2_000_000))
    before = content(tmp_path)
    profile, said = calibrate(tmp_path, config(tmp_path))
    assert content(tmp_path) == before
    assert (folder / "scaling_max_freq").read_text() == "2000000\n"
    assert profile.clocks["cpu"].levels == (1000, 1500, 2000)
    points = points_of(profile, "cpu")
    assert [point.name for point in points] == ["1000 MHz", "1500 MHz", "2000 MHz"]
    assert points[-1].stated_time == 1
    assert all(point.stated_time is not None for point in points)
    assert "at 1500 MHz: " in said
    assert "policy0: governor schedutil" in (tmp_path / "mine.toml").read_text()


def test_clocks_that_are_not_back_end_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_policy(tmp_path, 0, (1_000_000, 2_000_000))
    kernel = Kernel()
    monkeypatch.setattr(sysfs, "put_text", kernel.put_text)

    def stuck_after_the_lowest(path: Path, value: str) -> str | None:
        if path.with_name("scaling_min_freq").read_text() == "1000000\n" and value == "2000000":
            raise PermissionError
        return value

    kernel.rules["scaling_max_freq"] = stuck_after_the_lowest
    with pytest.raises(LeftChanged, match="not all clocks could be put back"):
        calibrate(tmp_path, config(tmp_path))
    assert not (tmp_path / "mine.toml").exists()


def test_of_many_clocks_some_are_measured_both_ends_among_them(tmp_path: Path) -> None:
    add_range_policy(tmp_path, 0, 800_000, 4_800_000)
    profile, said = calibrate(tmp_path, config(tmp_path))
    assert said.count("ms a convolution") == 8
    assert "at 800 MHz" in said
    assert "at 4800 MHz" in said
    assert len(profile.clocks["cpu"].levels) > 8


def test_a_file_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    asked = config(tmp_path)
    asked.write.write_text("precious")
    with pytest.raises(ExitbenchError, match="is there already, and measurements in it") as caught:
        calibrate(tmp_path, asked)
    assert caught.value.exit_status == 2
    assert asked.write.read_text() == "precious"


def test_a_place_that_cannot_be_written_is_told_before_anything_is_measured(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_text("no folder")
    said: list[str] = []
    asked = config(tmp_path, write=tmp_path / "file" / "mine.toml")
    with pytest.raises(ExitbenchError, match=r"cannot write .*Choose a folder"):
        run_hardware_calibrate(asked, said.append)
    assert not said


def test_a_file_that_would_not_be_known_for_a_profile_is_refused(tmp_path: Path) -> None:
    asked = config(tmp_path, write=tmp_path / "mine.txt")
    with pytest.raises(ExitbenchError, match=r"ends in \.toml.*Write .*mine\.txt\.toml"):
        calibrate(tmp_path, asked)


def test_the_profile_is_named_as_asked_or_after_its_file(tmp_path: Path) -> None:
    profile, _ = calibrate(tmp_path, config(tmp_path))
    assert profile.name == "mine"
    asked = config(tmp_path, write=tmp_path / "other.toml", name="my desk")
    assert calibrate(tmp_path, asked)[0].name == "my desk"


def test_the_file_is_an_option_of_the_command() -> None:
    parsed = parse(["hardware", "calibrate", "--write", "my-machine.toml", "--seconds", "2"])
    assert parsed.write == Path("my-machine.toml")
    assert parsed.seconds == 2


def test_every_calibrated_profile_keeps_the_schema() -> None:
    for base in ("generic-x86", "jetson-tx2", "nvidia-a100"):
        own = "gpu" if base == "nvidia-a100" else "cpu"
        found = measured(device_class=own, covers=own)
        text = profile_text(calibrated_profile("mine", load_profile(base), X86, found))
        assert faults_of(tomllib.loads(text)) == []

"""Meters of modules, instruments of one's own, and modelled power."""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from exitbench.harness.meters.base import Unavailable, minimum_window_s
from exitbench.harness.meters.external import ExternalMeter, find_external
from exitbench.harness.meters.ina3221 import Ina3221Meter, find_ina3221
from exitbench.harness.meters.modelled import ModelledMeter, find_modelled, process_cpu_s
from exitbench.profiles.loading import load_profile
from fake_machine import Clock, Load, Rails

X86 = load_profile("generic-x86")
TX2 = load_profile("jetson-tx2")
XAVIER = load_profile("jetson-agx-xavier")
ORIN = load_profile("jetson-orin-nano")
TX2_CHIPS = (
    ("VDD_SYS_GPU", "VDD_SYS_SOC", "VDD_4V0_WIFI"),
    ("VDD_IN", "VDD_SYS_CPU", "VDD_SYS_DDR"),
)
XAVIER_CHIPS = (("GPU", "CPU", "SOC"), ("CV", "VDDRQ", "SYS5V"))


# INA3221


def drawn(rails: Rails, clock: Clock, **loads: Load) -> None:
    """From now on the rails show these loads."""

    shown: list[float] = []

    def update() -> None:
        if shown != [clock.now_s]:
            shown[:] = [clock.now_s]
            for label, load in loads.items():
                rails.set_w(label, load.watts(clock.now_s))

    clock.on_tick = update


def module(root: Path, clock: Clock, profile: object = None) -> Ina3221Meter:
    meter = find_ina3221(profile, root, clock=clock, threaded=False)  # type: ignore[arg-type]
    assert isinstance(meter, Ina3221Meter), meter
    clock.every(meter.update_period_s, meter.sampler.sample)
    return meter


@pytest.mark.parametrize("old", [False, True])
def test_both_drivers_show_the_module_and_its_parts(tmp_path: Path, old: bool) -> None:
    rails, clock = Rails(tmp_path, TX2_CHIPS, old), Clock()
    drawn(rails, clock, VDD_IN=Load((102, 5.0), (108, 11.0)), VDD_SYS_GPU=Load((0, 4.0)))
    meter = module(tmp_path, clock, TX2)
    assert meter.domains == ("module", "gpu", "cpu", "dram")
    assert minimum_window_s(meter) == pytest.approx(2.5)
    window = meter.open()
    clock.sleep(10)
    reading = window.close()
    # 5 W for 2 s, a ramp of 8 W for 6 s, 11 W for 2 s; files hold whole mA and mW.
    assert reading.joules["module"] == pytest.approx(80, rel=1e-3)
    assert reading.total_j == reading.joules["module"]
    assert reading.gpu_j == pytest.approx(40, rel=1e-3)
    # Half a step of the sensor: 40 uV over 5 mOhm at 5 V is 40 mW.
    assert 0.02 * 10 <= reading.uncertainty_j["module"] < 0.03 * 10
    assert reading.source == "measured"


def test_a_module_without_an_input_rail_is_the_sum_that_is_said(tmp_path: Path) -> None:
    rails, clock = Rails(tmp_path, XAVIER_CHIPS), Clock()
    for label in ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"):
        rails.set_w(label, 2.0)
    named, unnamed = module(tmp_path, clock, XAVIER), module(tmp_path, clock)
    assert "rails GPU + CPU + SOC + CV + VDDRQ + SYS5V" in named.name
    assert "no input rail: the sum of" in unnamed.name
    assert (named.domains, unnamed.domains) == (("module", "gpu", "cpu", "dram"), ("module",))
    for meter in (named, unnamed):
        window = meter.open()
        clock.sleep(5)
        assert window.close().total_j == pytest.approx(60, rel=1e-3)


def test_a_rail_that_the_gpu_shares_is_not_called_its_own(tmp_path: Path) -> None:
    Rails(tmp_path, (("VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"),))
    assert module(tmp_path, Clock(), ORIN).domains == ("module",)
    assert "input rail VDD_IN" in module(tmp_path, Clock()).name


def test_a_part_whose_rail_is_missing_is_said_and_left_out(tmp_path: Path) -> None:
    Rails(tmp_path, (("VDD_IN", "VDD_SYS_CPU"),))
    meter = module(tmp_path, Clock(), TX2)
    assert meter.domains == ("module", "cpu")
    assert "no rail of its own for the GPU: the board has not VDD_SYS_GPU" in meter.name


def test_rails_that_are_not_connected_and_sums_are_left_out(tmp_path: Path) -> None:
    Rails(tmp_path, (("VDD_IN", "NC", "NC"),))
    assert module(tmp_path, Clock()).domains == ("module",)


def test_a_rail_that_is_off_is_left_out_and_one_that_does_not_tell_is_read(tmp_path: Path) -> None:
    rails = Rails(tmp_path, (("VDD_IN", "VDD_SYS_CPU", "VDD_SYS_GPU"),))
    off, untold = (rails.files(f"VDD_SYS_{part}")[0] for part in ("CPU", "GPU"))
    off.with_name("in2_enable").write_text("0\n")
    off.unlink()
    # A folder cannot be read as a file, as a file for root only; root reads any file.
    untold.with_name("in3_enable").mkdir()
    assert module(tmp_path, Clock(), TX2).domains == ("module", "gpu")


def test_a_slow_sensor_is_read_at_its_own_pace(tmp_path: Path) -> None:
    rails = Rails(tmp_path, (("VDD_IN",),))
    (rails.files("VDD_IN")[0].parent / "update_interval").write_text("200\n")
    assert module(tmp_path, Clock()).update_period_s == pytest.approx(0.2)


def test_sensors_that_are_slow_to_read_are_read_for_a_hundredth_of_the_time(tmp_path: Path) -> None:
    Rails(tmp_path, (("VDD_IN",),))
    # Every look at this clock takes 2 ms, and a read is between two.
    meter = module(tmp_path, Clock(0.002))
    assert meter.update_period_s == pytest.approx(0.2)


def test_a_machine_without_sensors_says_so(tmp_path: Path) -> None:
    found = find_ina3221(TX2, tmp_path)
    assert isinstance(found, Unavailable)
    assert "no INA3221 power sensors" in found.reason


def test_the_sensors_are_read_by_a_thread_while_a_window_is_open(tmp_path: Path) -> None:
    rails = Rails(tmp_path, (("VDD_IN",),))
    rails.set_w("VDD_IN", 6.0)
    meter = find_ina3221(None, tmp_path)
    assert isinstance(meter, Ina3221Meter)
    outer, inner = meter.open(), meter.open()
    # Real time, as much as the sensor needs and a bit.
    time.sleep(minimum_window_s(meter) + 0.1)
    readings = [inner.close(), outer.close()]
    for reading in readings:
        if reading.note:
            # Only a machine that stalls for half a second leaves such a gap.
            assert "was not read for" in reading.note
            continue
        assert reading.total_j == pytest.approx(6.0 * reading.seconds, rel=1e-3)
        assert reading.overhead_s > 0
    assert meter.sampler.samples == []


# External


def test_joules_of_a_file_are_read_at_the_edges(tmp_path: Path) -> None:
    clock, load, path = Clock(), Load((0, 75.0)), tmp_path / "meter"
    shown: list[float] = []

    def update() -> None:
        tick_s = clock.now_s // 0.2 * 0.2
        if shown != [tick_s]:
            path.write_text(f"{load.joules(tick_s):.1f}\n")
            shown[:] = [tick_s]

    clock.on_tick = update
    update()
    meter = find_external(f"file:{path}", "joules", "board", clock=clock, sleep=clock.sleep)
    assert isinstance(meter, ExternalMeter), meter
    assert (meter.domains, meter.source) == (("board",), "measured")
    assert meter.update_period_s == pytest.approx(0.2, rel=0.02)
    window = meter.open()
    clock.sleep(30)
    reading = window.close()
    assert reading.total_j == pytest.approx(2250, rel=1e-3)
    assert 0 < reading.uncertainty_j["board"] < 1.2 * 75 * 0.2


def test_a_pipe_is_not_waited_for_forever(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "serial")
    found = find_external(f"file:{tmp_path / 'serial'}")
    assert isinstance(found, Unavailable)
    assert "give a command that reads one number from it" in found.reason


def test_watts_of_a_command_are_sampled(tmp_path: Path) -> None:
    meter = find_external("echo 42.5", "watts", "module", threaded=False)
    assert isinstance(meter, ExternalMeter), meter
    # Watts that never change tell nothing of the instrument; a second is taken.
    assert meter.update_period_s >= 1.0
    assert meter.name == "external meter 'echo 42.5' (watts of the module)"
    short = meter.open().close()
    assert short.joules == {"module": None}
    assert "too short" in short.note


def test_the_pace_of_an_instrument_is_found_from_its_changes(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "meter"

    def update() -> None:
        path.write_text(f"{50 + clock.now_s // 0.25 % 7}\n")

    clock.on_tick = update
    update()
    meter = find_external(f"file:{path}", clock=clock, sleep=clock.sleep, threaded=False)
    assert isinstance(meter, ExternalMeter)
    assert meter.update_period_s == pytest.approx(0.25, rel=0.1)


@pytest.fixture
def wall_meter(tmp_path: Path) -> Iterator[Path]:
    """A file whose joules grow with real time: 40 W, ten times a second."""
    path, over = tmp_path / "joules", threading.Event()

    def run() -> None:
        begin_s = time.perf_counter()
        while not over.wait(0.1):
            whole = tmp_path / "next"
            whole.write_text(f"{40 * (time.perf_counter() - begin_s):.4f}")
            whole.replace(path)

    path.write_text("0")
    thread = threading.Thread(target=run)
    thread.start()
    yield path
    over.set()
    thread.join()


def test_an_instrument_in_real_time_is_within_its_stated_uncertainty(wall_meter: Path) -> None:
    meter = find_external(f"file:{wall_meter}", "joules", "board")
    assert isinstance(meter, ExternalMeter), meter
    window = meter.open()
    time.sleep(minimum_window_s(meter) + 0.2)
    reading = window.close()
    assert reading.total_j is not None, reading.note
    # A shared machine may let the writer sleep late by an update or two.
    late_j = 40 * 0.2
    assert abs(reading.total_j - 40 * reading.seconds) < reading.uncertainty_j["board"] + late_j


def test_a_command_is_split_as_a_shell_would_and_no_shell_is_started(tmp_path: Path) -> None:
    script = tmp_path / "a meter.py"
    script.write_text("import sys\nprint(len(sys.argv[1]))\n")
    meter = find_external(f"{sys.executable} '{script}' '$HOME'", threaded=False)
    assert isinstance(meter, ExternalMeter), meter


# Modelled


def modelled(**changes: object) -> ModelledMeter:
    meter = find_modelled(X86, "cpu", threads=1)
    assert isinstance(meter, ModelledMeter)
    return replace(meter, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("cpu_s", "watts"), [(0.0, 10.0), (5.0, 10 + 55 / 8), (40.0, 65.0), (500.0, 65.0)]
)
def test_modelled_power_follows_the_cpu_time_of_the_process(cpu_s: float, watts: float) -> None:
    clock, used = Clock(), [100.0]
    meter = modelled(clock=clock, processors=4, cpu_time=lambda: used[0])
    window = meter.open()
    clock.sleep(10)
    used[0] += cpu_s
    reading = window.close()
    # 10 W idle to 65 W with 40 CPU seconds in 10 s on 4 CPUs; a clock that is wrong adds nothing.
    assert reading.total_j == pytest.approx(watts * 10)
    assert reading.source == "modelled"
    assert reading.total_uncertainty_j is None


def test_a_short_window_is_priced_by_the_threads_of_the_run() -> None:
    clock = Clock()
    meter = modelled(clock=clock, share=0.5, cpu_time=lambda: math.nan)
    window = meter.open()
    clock.sleep(0.4)
    assert window.close().total_j == pytest.approx(0.4 * 37.5)
    assert meter.power_w == 37.5


def test_the_threads_of_a_run_fill_at_most_the_machine() -> None:
    assert modelled(share=1.0).power_w == 65
    more = find_modelled(X86, "cpu", threads=10_000)
    every = find_modelled(X86, "cpu")
    assert isinstance(more, ModelledMeter)
    assert isinstance(every, ModelledMeter)
    assert (more.power_w, every.power_w) == (65, 65)


def test_a_gpu_and_a_device_of_unknown_idle_power_draw_active_power_throughout() -> None:
    clock = Clock()
    gpu = find_modelled(TX2, "gpu", threads=1, clock=clock)
    assert isinstance(gpu, ModelledMeter)
    window = gpu.open()
    clock.sleep(10)
    assert window.close().total_j == pytest.approx(110)
    assert gpu.model == "11 W"
    unknown = modelled(idle_w=None, clock=clock, cpu_time=lambda: math.nan)
    window = unknown.open()
    clock.sleep(10)
    assert window.close().total_j == pytest.approx(650)
    assert (unknown.power_w, unknown.model) == (65, "65 W")


def test_the_cpu_time_of_this_process_goes_on_with_its_work() -> None:
    before_s = process_cpu_s()
    # Work until the system's clock of 10 ms has counted it.
    while process_cpu_s() == before_s:
        sum(range(10_000))
    assert process_cpu_s() > before_s

"""The RAPL meter on a folder that looks like powercap."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from exitbench.harness.meters import rapl
from exitbench.harness.meters.base import (
    UPDATES_PER_WINDOW,
    Reading,
    Unavailable,
    minimum_window_s,
)
from exitbench.harness.meters.counters import PLAUSIBLE_W
from exitbench.harness.meters.rapl import RaplMeter, find_rapl
from fake_machine import RANGE_UJ, Clock, Load, Powercap, Ticking

STEP_S = 0.001
"""A 1 ms counter, as RAPL's is."""


def package(
    tmp_path: Path, watts: float = 50.0, *, offset: int = 0, range_uj: int = RANGE_UJ
) -> tuple[RaplMeter, Clock, Ticking]:
    """The meter of one package, its clock and its counter."""
    clock, cap = Clock(), Powercap(tmp_path)
    cap.zone("intel-rapl:0", "package-0", range_uj=range_uj)
    ticking = Ticking(clock, Load((0, watts)), STEP_S, 1e-6, range_uj, offset)
    cap.drive(clock, ("intel-rapl:0", ticking))
    meter = find_rapl(tmp_path, clock=clock, sleep=clock.sleep)
    assert isinstance(meter, RaplMeter)
    return meter, clock, ticking


def test_packages_are_added_and_their_parts_and_psys_are_not_counted_again(tmp_path: Path) -> None:
    clock, cap = Clock(), Powercap(tmp_path)
    zones = []
    for name, label, watts in [
        ("intel-rapl:0", "package-0", 10),
        ("intel-rapl:0:0", "core", 6),
        ("intel-rapl:0:1", "uncore", 3),
        ("intel-rapl:0:2", "dram", 0.7),
        ("intel-rapl:1", "package-1", 5),
        ("intel-rapl:2", "psys", 99),
        ("intel-rapl-mmio:0", "package-0", 10),
    ]:
        cap.zone(name, label)
        zones.append((name, Ticking(clock, Load((0, watts)), STEP_S, 1e-6)))
    cap.drive(clock, *zones)
    meter = find_rapl(tmp_path, clock=clock, sleep=clock.sleep)
    assert isinstance(meter, RaplMeter)
    assert meter.domains == ("cpu", "dram")
    window = meter.open()
    clock.sleep(10)
    reading = window.close()
    # Edges of one update in 10,000.
    assert reading.joules == pytest.approx({"cpu": 150, "dram": 7}, rel=1e-4)
    assert (reading.source, reading.note) == ("measured", "")
    assert reading.cpu_j == pytest.approx(157, rel=1e-4)
    assert reading.gpu_j is None
    assert (reading.cpu_source, reading.gpu_source) == ("measured", "unavailable")
    assert reading.total_uncertainty_j is not None
    assert abs(157 - (reading.cpu_j or 0)) <= reading.total_uncertainty_j < 0.1


def test_the_update_period_is_found_by_polling(tmp_path: Path) -> None:
    meter, _, _ = package(tmp_path)
    # Polling sees each tick up to a twentieth late.
    assert meter.update_period_s == pytest.approx(STEP_S, rel=0.02)
    assert minimum_window_s(meter) == pytest.approx(UPDATES_PER_WINDOW * STEP_S, rel=0.02)


def test_a_wrap_is_a_step_over_the_end_of_the_range(tmp_path: Path) -> None:
    # The counter stands at 100 s x 50 W past the offset when the clock starts.
    meter, clock, _ = package(tmp_path, offset=RANGE_UJ - 5_010_000_000)
    window = meter.open()
    clock.sleep(1)
    assert window.close().joules["cpu"] == pytest.approx(50, rel=1e-3)


def test_several_wraps_in_one_window_are_counted_when_it_is_read_in_between(
    tmp_path: Path,
) -> None:
    meter, clock, _ = package(tmp_path, 400, range_uj=60_000_000_000)
    window = meter.open()
    for _ in range(10):
        clock.sleep(50)
        meter.refresh()
    assert window.close().joules["cpu"] == pytest.approx(200_000, rel=1e-5)


def test_a_window_much_longer_than_a_wrap_is_read_often_enough_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It wraps every 60 s at 50 W, and may go unread for 3 s. The thread runs here, by the clock.
    meter, clock, _ = package(tmp_path, range_uj=3_000_000_000)
    started: list[Callable[[], None]] = []

    def start(target: Callable[..., None], args: tuple[Any, ...], daemon: bool) -> Any:
        assert daemon
        started.append(lambda: target(*args))
        return SimpleNamespace(start=lambda: None)

    readings: list[Reading] = []
    monkeypatch.setattr(rapl.threading, "Thread", start)
    window = meter.open()

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        if clock.now_s > 1000 and not readings:
            readings.append(window.close())

    monkeypatch.setattr(rapl, "time", SimpleNamespace(sleep=sleep))
    (run,) = started
    run()  # ends by itself once no window is open
    (reading,) = readings
    assert reading.seconds > 800
    assert reading.total_j == pytest.approx(50 * reading.seconds, rel=1e-5), reading.note


def test_a_gap_in_which_it_may_have_wrapped_twice_is_unresolved(tmp_path: Path) -> None:
    meter, clock, _ = package(tmp_path)
    window = meter.open()
    clock.sleep(RANGE_UJ * 1e-6 / PLAUSIBLE_W + 1)
    reading = window.close()
    assert reading.joules == {"cpu": None}
    assert "may have wrapped" in reading.note
    # A long pause before a window is no fault of that window.
    clock.sleep(10_000)
    window = meter.open()
    clock.sleep(1)
    assert window.close().joules["cpu"] == pytest.approx(50, rel=1e-3)


def test_a_counter_that_was_reset_is_not_taken_for_a_wrap(tmp_path: Path) -> None:
    meter, clock, ticking = package(tmp_path, offset=9_000_000_000)
    window = meter.open()
    ticking.reset_s = clock.now_s + 0.5
    clock.sleep(1)
    reading = window.close()
    assert reading.total_j is None
    assert "went backwards" in reading.note


def test_nested_and_overlapping_windows_each_see_their_own_energy(tmp_path: Path) -> None:
    meter, clock, _ = package(tmp_path, 1.0)
    outer = meter.open()
    clock.sleep(1)
    inner = meter.open()
    clock.sleep(1)
    late = meter.open()
    clock.sleep(1)
    # Opening another window takes up to one update of a thousand.
    assert inner.close().joules["cpu"] == pytest.approx(2.0, rel=2e-3)
    clock.sleep(1)
    assert late.close().joules["cpu"] == pytest.approx(2.0, rel=2e-3)
    assert outer.close().joules["cpu"] == pytest.approx(4.0, rel=2e-3)


def test_a_window_of_few_updates_is_unresolved_with_the_reason(tmp_path: Path) -> None:
    meter, clock, _ = package(tmp_path)
    window = meter.open()
    clock.sleep(0.01)
    reading = window.close()
    assert reading.joules == {"cpu": None}
    assert "too short" in reading.note
    assert reading.cpu_source == "unavailable"


def test_a_counter_that_does_not_move_is_never_zero_energy(tmp_path: Path) -> None:
    meter, clock, ticking = package(tmp_path)
    window = meter.open()
    ticking.stuck_s = clock.now_s
    clock.sleep(10)
    reading = window.close()
    assert reading.joules == {"cpu": None}
    assert "did not move" in reading.note
    found = find_rapl(tmp_path, clock=clock, sleep=clock.sleep)
    assert isinstance(found, Unavailable)
    assert "does not move" in found.reason


def test_a_memory_counter_that_does_not_move_is_left_out_and_said(tmp_path: Path) -> None:
    clock, cap = Clock(), Powercap(tmp_path)
    cap.zone("intel-rapl:0", "package-0")
    cap.zone("intel-rapl:0:0", "dram")
    cap.drive(clock, ("intel-rapl:0", Ticking(clock, Load((0, 50.0)), STEP_S, 1e-6)))
    meter = find_rapl(tmp_path, clock=clock, sleep=clock.sleep)
    assert isinstance(meter, RaplMeter)
    assert meter.domains == ("cpu",)
    assert "without dram, which does not move" in meter.name
    window = meter.open()
    clock.sleep(1)
    assert window.close().total_j == pytest.approx(50, rel=1e-3)


def test_a_file_that_vanishes_leaves_the_window_unresolved(tmp_path: Path) -> None:
    meter, clock, _ = package(tmp_path)
    window = meter.open()
    clock.sleep(10)
    (tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj").unlink()
    reading = window.close()
    assert reading.joules == {"cpu": None}
    assert "No such file" in reading.note


def test_a_machine_without_powercap_says_so(tmp_path: Path) -> None:
    found = find_rapl(tmp_path)
    assert isinstance(found, Unavailable)
    assert "virtual machines" in found.words


def test_a_counter_that_is_no_number_is_unavailable(tmp_path: Path) -> None:
    cap = Powercap(tmp_path)
    (cap.zone("intel-rapl:0", "package-0") / "energy_uj").write_text("<hidden>")
    found = find_rapl(tmp_path)
    assert isinstance(found, Unavailable)
    assert "cannot be read" in found.reason


@pytest.fixture
def open_to_others() -> Iterator[Path]:
    """A folder that another user can enter; pytest's own are for one user only."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_permission_denied_comes_with_the_exact_remedy(open_to_others: Path) -> None:
    cap = Powercap(open_to_others)
    counter = cap.zone("intel-rapl:0", "package-0") / "energy_uj"
    counter.chmod(0o400 if os.geteuid() == 0 else 0)
    user = os.geteuid()
    if user == 0:
        # root may read anything, so the question is asked as nobody.
        os.seteuid(65534)
    try:
        found = find_rapl(open_to_others)
    finally:
        os.seteuid(user)
    assert isinstance(found, Unavailable)
    assert "only root may read" in found.reason
    assert "sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj" in found.remedy

"""The RAPL meter on a folder that looks like powercap."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from exitbench.harness.meters.base import UPDATES_PER_WINDOW, Unavailable, minimum_window_s
from exitbench.harness.meters.rapl import PLAUSIBLE_W, RaplMeter, find_rapl
from fake_machine import RANGE_UJ, Clock, Powercap

# One look at the clock is one millisecond, and the counter moves at every look: a 1 ms counter.
STEP_S = 0.001


@pytest.fixture
def clock() -> Clock:
    return Clock(STEP_S)


def usable(root: Path, cap: Powercap, clock: Clock, ticking: str = "intel-rapl:0") -> RaplMeter:
    """The meter, found while a counter moves; the counters stand still afterwards."""
    clock.on_tick = lambda: cap.add_uj(ticking, 10_000)
    meter = find_rapl(root, clock=clock)
    clock.on_tick = lambda: None
    assert isinstance(meter, RaplMeter)
    return meter


def test_packages_are_added_and_their_parts_and_psys_are_not_counted_again(
    tmp_path: Path, clock: Clock
) -> None:
    cap = Powercap(tmp_path)
    for name, label in [
        ("intel-rapl:0", "package-0"),
        ("intel-rapl:0:0", "core"),
        ("intel-rapl:0:1", "uncore"),
        ("intel-rapl:0:2", "dram"),
        ("intel-rapl:1", "package-1"),
        ("intel-rapl:2", "psys"),
        ("intel-rapl-mmio:0", "package-0"),
    ]:
        cap.zone(name, label)
    meter = usable(tmp_path, cap, clock)
    assert meter.domains == ("cpu", "dram")
    window = meter.open()
    clock.now_s += 10
    for name, joules in [("0", 100), ("0:0", 60), ("0:1", 30), ("0:2", 7), ("1", 50), ("2", 999)]:
        cap.add_uj(f"intel-rapl:{name}", joules * 1_000_000)
    reading = window.close()
    assert reading.joules == pytest.approx({"cpu": 150, "dram": 7})
    assert (reading.source, reading.note) == ("measured", "")
    assert reading.cpu_j == pytest.approx(157)
    assert reading.gpu_j is None
    assert (reading.cpu_source, reading.gpu_source) == ("measured", "unavailable")


def test_the_update_period_is_found_by_polling(tmp_path: Path, clock: Clock) -> None:
    cap = Powercap(tmp_path)
    cap.zone("intel-rapl:0", "package-0")
    meter = usable(tmp_path, cap, clock)
    # Floating-point sums of the fake clock's steps; anything but whole steps would be far off.
    assert meter.update_period_s == pytest.approx(STEP_S, rel=1e-6)
    assert minimum_window_s(meter) == pytest.approx(UPDATES_PER_WINDOW * STEP_S, rel=1e-6)


def test_a_wrap_is_a_step_over_the_end_of_the_range(tmp_path: Path, clock: Clock) -> None:
    cap = Powercap(tmp_path)
    cap.zone("intel-rapl:0", "package-0", energy_uj=RANGE_UJ - 2_000_000)
    meter = usable(tmp_path, cap, clock)
    cap.set_uj("intel-rapl:0", RANGE_UJ - 1_000_000)
    window = meter.open()
    clock.now_s += 1
    cap.set_uj("intel-rapl:0", 4_000_000)
    assert window.close().joules["cpu"] == pytest.approx(5.0)


def test_several_wraps_in_one_window_are_counted_when_it_is_read_in_between(
    tmp_path: Path, clock: Clock
) -> None:
    range_uj = 60_000_000_000
    cap = Powercap(tmp_path)
    cap.zone("intel-rapl:0", "package-0", range_uj=range_uj)
    meter = usable(tmp_path, cap, clock)
    window = meter.open()
    for _ in range(10):
        clock.now_s += 50
        cap.add_uj("intel-rapl:0", 20_000_000_000, range_uj)
        meter.refresh()
    assert window.close().joules["cpu"] == pytest.approx(200_000)


def test_a_gap_in_which_it_may_have_wrapped_twice_is_unresolved(
    tmp_path: Path, clock: Clock
) -> None:
    cap = Powercap(tmp_path)
    cap.zone("intel-rapl:0", "package-0")
    meter = usable(tmp_path, cap, clock)
    window = meter.open()
    clock.now_s += RANGE_UJ * 1e-6 / PLAUSIBLE_W + 1
    cap.add_uj("intel-rapl:0", 5_000_000)
    reading = window.close()
    assert reading.joules == {"cpu": None}
    assert "may have wrapped" in reading.note
    # A long pause before a window is no fault of that window.
    clock.now_s += 10_000
    window = meter.open()
    clock.now_s += 1
    cap.add_uj("intel-rapl:0", 5_000_000)
    assert window.close().joules["cpu"] == pytest.approx(5.0)


def test_a_counter_that_was_reset_is_not_taken_for_a_wrap(tmp_path: Path, clock: Clock) -> None:
    cap = Powercap(tmp_path)
    cap.zone("intel-rapl:0", "package-0", energy_uj=9_000_000_000)
    meter = usable(tmp_path, cap, clock)
    window = meter.open()
    clock.now_s += 1
    cap.set_uj("intel-rapl:0", 0)
    reading = window.close()
    assert reading.total_j is None
    assert "went backwards" in reading.note


def test_nested_and_overlapping_windows_each_see_their_own_energy(
    tmp_path: Path, clock: Clock
) -> None:
    cap = Powercap(tmp_path)
    cap.zone("intel-rapl:0", "package-0")
    meter = usable(tmp_path, cap, clock)

    def work() -> None:
        clock.now_s += 1
        cap.add_uj("intel-rapl:0", 1_000_000)

    outer = meter.open()
    work()
    inner = meter.open()
    work()
    late = meter.open()
    work()
    assert inner.close().joules["cpu"] == pytest.approx(2.0)
    work()
    assert late.close().joules["cpu"] == pytest.approx(2.0)
    assert outer.close().joules["cpu"] == pytest.approx(4.0)


def test_a_window_of_few_updates_is_unresolved_with_the_reason(
    tmp_path: Path, clock: Clock
) -> None:
    cap = Powercap(tmp_path)
    cap.zone("intel-rapl:0", "package-0")
    meter = usable(tmp_path, cap, clock)
    window = meter.open()
    cap.add_uj("intel-rapl:0", 1_000_000)
    reading = window.close()
    assert reading.joules == {"cpu": None}
    assert "too short" in reading.note
    assert reading.cpu_source == "unavailable"


def test_a_counter_that_does_not_move_is_never_zero_energy(tmp_path: Path, clock: Clock) -> None:
    cap = Powercap(tmp_path)
    cap.zone("intel-rapl:0", "package-0")
    meter = usable(tmp_path, cap, clock)
    window = meter.open()
    clock.now_s += 10
    assert window.close().joules == {"cpu": None}
    found = find_rapl(tmp_path, clock=clock)
    assert isinstance(found, Unavailable)
    assert "does not move" in found.reason


def test_a_file_that_vanishes_leaves_the_window_unresolved(tmp_path: Path, clock: Clock) -> None:
    cap = Powercap(tmp_path)
    folder = cap.zone("intel-rapl:0", "package-0")
    meter = usable(tmp_path, cap, clock)
    window = meter.open()
    clock.now_s += 10
    (folder / "energy_uj").unlink()
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

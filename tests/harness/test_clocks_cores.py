"""The number of CPU cores that are online."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from exitbench.harness.clocks.base import ClockError
from exitbench.harness.clocks.cores import find_cores
from fake_clocks import Kernel, add_cores, content, ignore, refuse, write_files


def online(folder: Path) -> list[int]:
    return [int(path.parent.name[3:]) for path in sorted(folder.glob("cpu*/online"))
            if path.read_text() == "1\n"]  # fmt: skip


def test_the_cores_with_the_lowest_numbers_stay(tmp_path: Path, kernel: Kernel) -> None:
    folder = add_cores(tmp_path, 6)
    actuator = find_cores(tmp_path)

    actuator.set(3.0)

    assert online(folder) == [1, 2]
    assert actuator.current() == 3.0
    assert actuator.levels() == (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)


def test_cores_that_are_online_stay_before_others_come(tmp_path: Path, kernel: Kernel) -> None:
    # A Jetson TX2 in its default mode: cpu1 and cpu2, of another kind, are off.
    folder = add_cores(tmp_path, 6, offline=(1, 2))
    actuator = find_cores(tmp_path)

    for count, expected in ((4, [3, 4, 5]), (2, [3]), (4, [3, 4, 5]), (5, [1, 3, 4, 5])):
        actuator.set(float(count))
        assert online(folder) == expected


def test_cpu0_is_never_touched_even_where_it_could_be(tmp_path: Path, kernel: Kernel) -> None:
    folder = add_cores(tmp_path, 4)
    write_files(folder / "cpu0", online=1)

    cores = find_cores(tmp_path)
    cores.set(1.0)

    assert cores.levels() == (1.0, 2.0, 3.0, 4.0)
    assert online(folder) == [0]
    with pytest.raises(ClockError, match="from 1 to 4"):
        cores.set(0.0)
    assert all(path.parent.name != "cpu0" for path, _ in kernel.writes)


def test_cores_that_were_offline_are_so_again(tmp_path: Path, kernel: Kernel) -> None:
    add_cores(tmp_path, 6, offline=(1, 2))
    before = content(tmp_path)
    actuator = find_cores(tmp_path)
    snapshot = actuator.snapshot()

    actuator.set(6.0)
    actuator.set(2.0)
    actuator.restore(snapshot)
    actuator.restore(snapshot)

    assert content(tmp_path) == before


@pytest.mark.parametrize("count", [0.0, -1.0, 7.0, 2.5])
def test_counts_that_there_are_not_are_refused(
    tmp_path: Path, kernel: Kernel, count: float
) -> None:
    add_cores(tmp_path, 6)

    with pytest.raises(ClockError, match=r"a whole number from 1 to 6"):
        find_cores(tmp_path).set(count)

    assert kernel.writes == []


def test_a_core_that_will_not_go_is_an_error_and_the_others_come_back(
    tmp_path: Path, kernel: Kernel
) -> None:
    add_cores(tmp_path, 4)
    before = content(tmp_path)
    kernel.rules["cpu2/online"] = refuse(errno.EBUSY)

    with pytest.raises(ClockError, match=r"cpu2 could not be switched: .* busy"):
        find_cores(tmp_path).set(1.0)

    assert content(tmp_path) == before


def test_a_core_that_only_says_it_goes_is_an_error(tmp_path: Path, kernel: Kernel) -> None:
    add_cores(tmp_path, 4)
    kernel.rules["cpu3/online"] = ignore

    with pytest.raises(ClockError, match="cpu3 could not be switched: the kernel ignored it"):
        find_cores(tmp_path).set(3.0)


def test_a_machine_without_hotplug_is_told_why(tmp_path: Path) -> None:
    add_cores(tmp_path, 1)

    with pytest.raises(ClockError, match="no CPU hotplug"):
        find_cores(tmp_path)

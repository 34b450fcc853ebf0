"""The CPU clock by cpufreq: levels, the order of writes, and what is put back."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from exitbench.harness.clocks.base import ClockError
from exitbench.harness.clocks.cpufreq import find_cpufreq, grid
from fake_clocks import (
    TX2_CPU_KHZ,
    Kernel,
    add_policy,
    add_range_policy,
    content,
    round_up,
    write_files,
)  # fmt: skip
from hypothesis import given
from hypothesis import strategies as st


def limits(folder: Path) -> tuple[int, int]:
    return tuple(int((folder / f"scaling_{end}_freq").read_text()) for end in ("min", "max"))  # type: ignore[return-value]


def test_levels_are_those_that_the_driver_lists(tmp_path: Path) -> None:
    add_policy(tmp_path, 0)

    assert find_cpufreq(tmp_path).levels() == tuple(khz / 1000 for khz in TX2_CPU_KHZ)


def test_boost_levels_count_only_where_boost_is_on(tmp_path: Path) -> None:
    folder = add_policy(tmp_path, 0, (1000000, 2000000))
    write_files(folder, scaling_boost_frequencies="2500000 2600000", cpuinfo_max_freq=2500000)

    assert find_cpufreq(tmp_path).levels() == (1000.0, 2000.0, 2500.0)


def test_without_a_list_levels_are_a_grid_over_the_range_and_the_name_says_so(
    tmp_path: Path,
) -> None:
    add_range_policy(tmp_path, 0, 1250000, 1600000)
    actuator = find_cpufreq(tmp_path)

    assert actuator.levels() == (1250.0, 1300.0, 1400.0, 1500.0, 1600.0)
    assert actuator.name == "cpufreq policy0 (the driver lists no levels: steps of 100 MHz)"


@given(
    low=st.integers(1, 5_000_000), width=st.integers(0, 5_000_000), step=st.sampled_from((25, 100))
)
def test_a_grid_rises_from_one_end_of_the_range_to_the_other(
    low: int, width: int, step: int
) -> None:
    levels = grid(low / 1000, (low + width) / 1000, step)

    assert levels[0] == low / 1000
    assert levels[-1] == (low + width) / 1000
    assert all(a < b for a, b in pairwise(levels))
    assert all(level % step == 0 for level in levels[1:-1])


def test_a_level_is_held_by_both_limits_of_every_policy(tmp_path: Path, kernel: Kernel) -> None:
    folders = [add_policy(tmp_path, number) for number in (0, 1)]
    actuator = find_cpufreq(tmp_path)

    actuator.set(960.0)

    assert [limits(folder) for folder in folders] == [(960000, 960000)] * 2
    assert actuator.current() == 960.0
    assert actuator.name == "cpufreq policy0, policy1"


def test_limits_never_cross_on_the_way_up_and_down(tmp_path: Path, kernel: Kernel) -> None:
    # The fake kernel refuses limits that cross, as Linux does.
    folder = add_policy(tmp_path, 0)
    actuator = find_cpufreq(tmp_path)

    for mhz in (345.6, 2035.2, 806.4, 960.0, 499.2, 2035.2):
        actuator.set(mhz)
        assert limits(folder) == (round(mhz * 1000), round(mhz * 1000))
    order = [path.name for path, value in kernel.writes if value == "960000"]

    assert order == ["scaling_max_freq", "scaling_min_freq"]


def test_what_is_already_set_is_not_written_again(tmp_path: Path, kernel: Kernel) -> None:
    add_policy(tmp_path, 0)
    actuator = find_cpufreq(tmp_path)
    actuator.set(960.0)
    written = len(kernel.writes)

    actuator.set(960.0)

    assert len(kernel.writes) == written


def test_limits_and_governor_are_put_back_as_often_as_one_likes(
    tmp_path: Path, kernel: Kernel
) -> None:
    folder = add_policy(tmp_path, 0)
    write_files(folder, scaling_min_freq=499200, scaling_max_freq=1267200, scaling_cur_freq=499200)
    before = content(tmp_path)
    actuator = find_cpufreq(tmp_path)
    snapshot = actuator.snapshot()
    actuator.set(2035.2)
    write_files(folder, scaling_governor="performance")

    actuator.restore(snapshot)
    actuator.restore(snapshot)

    assert content(tmp_path) == before


def test_slower_clusters_follow_at_the_same_share_of_their_top_clock(
    tmp_path: Path, kernel: Kernel
) -> None:
    slow = add_policy(tmp_path, 0, (500000, 1000000, 1500000))
    fast = add_policy(tmp_path, 4, (1000000, 2000000, 3000000))
    actuator = find_cpufreq(tmp_path)

    actuator.set(2000.0)

    assert actuator.levels() == (1000.0, 2000.0, 3000.0)
    assert (limits(slow), limits(fast)) == ((1000000,) * 2, (2000000,) * 2)


def test_a_policy_whose_cores_are_all_offline_is_left_alone(tmp_path: Path, kernel: Kernel) -> None:
    add_policy(tmp_path, 0)
    # Linux answers every read of such a policy with an error.
    (tmp_path / "sys/devices/system/cpu/cpufreq/policy1").mkdir()
    actuator = find_cpufreq(tmp_path)

    actuator.set(960.0)

    assert {path.parent.name for path, _ in kernel.writes} == {"policy0"}


def test_a_policy_that_comes_online_later_is_refused_because_its_state_was_never_seen(
    tmp_path: Path, kernel: Kernel
) -> None:
    add_policy(tmp_path, 0)
    actuator = find_cpufreq(tmp_path)
    add_policy(tmp_path, 4)

    with pytest.raises(ClockError, match="policy4 came after exitbench had looked"):
        actuator.set(960.0)

    assert kernel.writes == []


def test_an_unknown_level_is_refused_with_those_that_there_are(
    tmp_path: Path, kernel: Kernel
) -> None:
    add_policy(tmp_path, 0, (1000000, 2000000))

    with pytest.raises(ClockError, match=r"no level 1500 MHz; it has 1000, 2000 MHz"):
        find_cpufreq(tmp_path).set(1500.0)

    assert kernel.writes == []


def test_a_clock_that_the_driver_rounds_is_an_error_and_is_undone(
    tmp_path: Path, kernel: Kernel
) -> None:
    add_range_policy(tmp_path, 0, 800000, 4800000)
    before = content(tmp_path)
    kernel.rules["scaling_min_freq"] = kernel.rules["scaling_max_freq"] = round_up(800000)

    with pytest.raises(ClockError, match="did not take it as it is"):
        find_cpufreq(tmp_path).set(2500.0)

    assert content(tmp_path) == before


def test_a_machine_without_cpufreq_is_told_why(tmp_path: Path) -> None:
    with pytest.raises(ClockError, match="has no policy"):
        find_cpufreq(tmp_path)

"""GPU and memory clocks of systems on a chip."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from exitbench.harness.clocks.base import ClockError
from exitbench.harness.clocks.devfreq import find_devfreq, find_emc
from fake_clocks import (
    DEVFREQ,
    EMC,
    EMC_FREE_HZ,
    TX2_GPU_HZ,
    Kernel,
    add_devfreq,
    add_emc,
    content,
    ignore,
    refuse,
    round_up,
    write_files,
)  # fmt: skip

NODE = "17000000.gp10b"


def test_the_level_list_is_the_firmwares(tmp_path: Path) -> None:
    add_devfreq(tmp_path, NODE)

    actuator = find_devfreq(tmp_path, "gpu", ("*.gp10b",))

    assert actuator.levels() == tuple(hz / 1e6 for hz in TX2_GPU_HZ)
    assert actuator.name == f"devfreq {NODE}"


def test_a_level_is_held_by_both_limits_whichever_way_it_goes(
    tmp_path: Path, kernel: Kernel
) -> None:
    folder = add_devfreq(tmp_path, NODE)
    actuator = find_devfreq(tmp_path, "gpu", (NODE,))

    for mhz in (1300.5, 114.75, 854.25, 1122.0):
        actuator.set(mhz)
        read = {name: int((folder / name).read_text()) for name in ("min_freq", "max_freq")}
        assert read == dict.fromkeys(("min_freq", "max_freq"), round(mhz * 1e6))
        assert actuator.current() == mhz


def test_both_limits_are_put_back(tmp_path: Path, kernel: Kernel) -> None:
    folder = add_devfreq(tmp_path, NODE)
    write_files(folder, min_freq=854250000, max_freq=1122000000, cur_freq=854250000)
    before = content(tmp_path)
    actuator = find_devfreq(tmp_path, "gpu", (NODE,))
    snapshot = actuator.snapshot()
    actuator.set(114.75)

    actuator.restore(snapshot)
    actuator.restore(snapshot)

    assert content(tmp_path) == before


def test_names_that_are_links_to_one_device_are_one_node(tmp_path: Path) -> None:
    folder = add_devfreq(tmp_path, NODE)
    (folder.parent / "gpu.0").symlink_to(folder)

    assert find_devfreq(tmp_path, "gpu", ("*gp*",)).levels() != ()


def test_the_first_pattern_that_fits_counts(tmp_path: Path) -> None:
    add_devfreq(tmp_path, "17000000.gpu")
    add_devfreq(tmp_path, "15340000.vic")

    assert find_devfreq(tmp_path, "gpu", ("*.gpu", "*")).folder.name == "17000000.gpu"


def test_two_devices_that_fit_are_not_guessed_among(tmp_path: Path) -> None:
    add_devfreq(tmp_path, "17000000.gpu")
    add_devfreq(tmp_path, "18000000.gpu")

    with pytest.raises(ClockError, match=r"17000000.gpu and 18000000.gpu .* all fit"):
        find_devfreq(tmp_path, "gpu", ("*.gpu",))


def test_a_missing_node_is_told_with_those_that_there_are(tmp_path: Path) -> None:
    add_devfreq(tmp_path, "15340000.vic")

    with pytest.raises(ClockError, match=r"is called \*.gp10b; there are: 15340000.vic"):
        find_devfreq(tmp_path, "gpu", ("*.gp10b",))


def test_a_clock_that_does_not_follow_its_limits_is_an_error(
    tmp_path: Path, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = add_devfreq(tmp_path, NODE)
    before = content(tmp_path)
    monkeypatch.setattr("fake_clocks._follow", lambda folder, name: None)

    with pytest.raises(ClockError, match=r"the clock is 114.75 MHz instead of 854.25"):
        find_devfreq(tmp_path, "gpu", (NODE,)).set(854.25)

    assert content(tmp_path) == before
    assert folder.is_dir()


def test_a_device_that_is_switched_off_has_no_clock_to_judge(
    tmp_path: Path, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = add_devfreq(tmp_path, NODE)
    write_files(folder / "device/power", runtime_status="suspended")
    monkeypatch.setattr("fake_clocks._follow", lambda folder, name: None)

    find_devfreq(tmp_path, "gpu", (NODE,)).set(854.25)

    assert (folder / "max_freq").read_text() == "854250000\n"


def test_waiting_ends_as_soon_as_the_clock_is_in_force(tmp_path: Path, kernel: Kernel) -> None:
    folder = add_devfreq(tmp_path, NODE)
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            write_files(folder, cur_freq=854250000)

    found = find_devfreq(tmp_path, "gpu", (NODE,), switch_s=0.005)
    actuator = type(found)(found.folder, found.sets, found.settle_s, sleep)
    actuator.limits.write(854250000, 854250000)
    write_files(folder, cur_freq=114750000)
    actuator.set(854.25)

    assert len(waits) == 3


def test_the_memory_clock_is_locked_and_given_back(tmp_path: Path, kernel: Kernel) -> None:
    folder = add_emc(tmp_path)
    before = content(tmp_path)
    actuator = find_emc(tmp_path)
    snapshot = actuator.snapshot()

    actuator.set(2133.0)
    assert actuator.current() == 2133.0
    assert (folder / "mrq_rate_locked").read_text() == "1\n"
    actuator.restore(snapshot)
    actuator.restore(snapshot)

    assert actuator.levels() == (204.0, 665.6, 2133.0)
    assert content(tmp_path) == before


def test_a_memory_clock_that_was_free_is_free_again_whatever_the_firmware_says_to_its_rate(
    tmp_path: Path, kernel: Kernel
) -> None:
    folder = add_emc(tmp_path)
    actuator = find_emc(tmp_path)
    snapshot = actuator.snapshot()
    actuator.set(2133.0)

    kernel.rules["emc/rate"] = refuse(errno.EINVAL)
    actuator.restore(snapshot)

    assert (folder / "mrq_rate_locked").read_text() == "0\n"


def test_a_memory_clock_that_was_held_before_is_held_again(tmp_path: Path, kernel: Kernel) -> None:
    folder = add_emc(tmp_path)
    write_files(folder, mrq_rate_locked=1, rate=204000000)
    before = content(tmp_path)
    actuator = find_emc(tmp_path)
    snapshot = actuator.snapshot()

    actuator.set(2133.0)
    actuator.restore(snapshot)

    assert content(tmp_path) == before


def test_a_memory_rate_that_the_firmware_rounds_is_an_error_and_is_undone(
    tmp_path: Path, kernel: Kernel
) -> None:
    add_emc(tmp_path)
    before = content(tmp_path)
    kernel.rules[f"{EMC}/rate"] = round_up(665600000)

    with pytest.raises(ClockError, match="asked for 204000000, the firmware set 665600000"):
        find_emc(tmp_path).set(204.0)

    assert content(tmp_path) == before
    assert int((tmp_path / EMC / "rate").read_text()) == EMC_FREE_HZ


def test_firmware_that_lists_no_rates_gets_those_of_the_profile_in_its_range(
    tmp_path: Path,
) -> None:
    add_emc(tmp_path, ())

    assert find_emc(tmp_path, fallback=(100.0, 204.0, 1600.0, 3199.0)).levels() == (204.0, 1600.0)


def test_debugfs_that_cannot_be_read_asks_for_root(tmp_path: Path) -> None:
    with pytest.raises(ClockError, match="which only root sees: run the command as root"):
        find_emc(tmp_path)


def test_limits_that_are_ignored_are_an_error(tmp_path: Path, kernel: Kernel) -> None:
    add_devfreq(tmp_path, NODE)
    before = content(tmp_path)
    kernel.rules["min_freq"] = kernel.rules["max_freq"] = ignore

    with pytest.raises(ClockError, match="the driver ignored it"):
        find_devfreq(tmp_path, "gpu", (NODE,)).set(854.25)

    assert content(tmp_path) == before
    assert (tmp_path / DEVFREQ / NODE).is_dir()

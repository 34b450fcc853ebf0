"""Which clocks can be set for a run, and what is said where none can."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from exitbench.harness.clocks.base import ClockError
from exitbench.harness.clocks.choose import clocks_words, find_actuators, level, survey_actuators
from exitbench.harness.dvfs import points_of
from exitbench.profiles.loading import list_profiles, load_profile
from exitbench.profiles.schema import ClockDomain
from fake_clocks import (
    ClockCard,
    add_cores,
    add_devfreq,
    add_emc,
    add_policy,
    lockable_nvml,
)  # fmt: skip


def no_uuid(index: int) -> None:
    return None


def jetson(root: Path) -> None:
    add_policy(root, 0)
    add_policy(root, 1)
    add_cores(root, 6)
    add_devfreq(root, "17000000.gp10b")
    add_emc(root)


def test_a_jetson_has_all_four_whichever_device_runs(tmp_path: Path) -> None:
    jetson(tmp_path)
    profile = load_profile("jetson-tx2")

    for device in ("cpu", "cuda"):
        found = find_actuators(profile, device, simulated=False, root=tmp_path, cuda_uuid=no_uuid)
        assert list(found) == ["cpu", "gpu", "memory", "cores"]
        assert not any(actuator.simulated for actuator in found.values())


def test_a_server_has_the_clocks_of_its_card(tmp_path: Path) -> None:
    add_policy(tmp_path, 0)
    library = lockable_nvml(ClockCard("NVIDIA H200"))

    found = find_actuators(
        None, "cuda:0", simulated=False, root=tmp_path, nvml=library, environ={}, cuda_uuid=no_uuid
    )

    assert list(found) == ["cpu", "gpu", "memory"]
    assert found["gpu"].name == "NVML graphics clock of GPU 0 (NVIDIA H200)"


def test_a_run_on_the_cpu_leaves_the_card_alone(tmp_path: Path) -> None:
    add_policy(tmp_path, 0)
    library = lockable_nvml(ClockCard("NVIDIA H200"))

    survey = survey_actuators(None, "cpu", root=tmp_path, nvml=library)

    assert list(survey.actuators) == ["cpu"]
    assert survey.missing["gpu"] == "the run is on the CPU, which leaves the clocks of a card alone"
    assert "no CPU hotplug" in survey.missing["cores"]


def test_a_profile_can_say_that_nothing_sets_a_clock(tmp_path: Path) -> None:
    add_policy(tmp_path, 0)
    clock = ClockDomain(actuator="none", actuator_source="a note")
    profile = replace(load_profile("generic-x86"), clocks={"cpu": clock})

    with pytest.raises(ClockError, match=r"clock of cpu cannot be set: .* sets it \(a note"):
        find_actuators(profile, "cpu", simulated=False, root=tmp_path)


def test_what_is_needed_is_asked_for_and_its_reason_is_told(tmp_path: Path) -> None:
    add_cores(tmp_path, 4)

    found = find_actuators(None, "cpu", simulated=False, needed=("cores",), root=tmp_path)
    assert list(found) == ["cores"]
    with pytest.raises(ClockError, match=r"the clock of cpu cannot be set: .* has no policy"):
        find_actuators(None, "cpu", simulated=False, root=tmp_path)
    with pytest.raises(ClockError, match=r"nothing here sets the GPU clock: .* of a card alone"):
        find_actuators(None, "cpu", simulated=False, needed=("cores", "gpu"), root=tmp_path)


def test_where_nothing_can_be_set_every_reason_is_told(tmp_path: Path) -> None:
    with pytest.raises(ClockError, match=r"the CPU clock: .* GPU clock: .* number of CPU cores: "):
        find_actuators(None, "cpu", simulated=False, needed=(), root=tmp_path)


def test_the_step_of_the_profile_is_the_grid_where_the_driver_lists_no_levels(
    tmp_path: Path,
) -> None:
    from fake_clocks import add_range_policy

    add_range_policy(tmp_path, 0, 800000, 1600000)
    profile = load_profile("generic-x86")
    step = profile.clocks["cpu"].step_mhz
    assert step is not None

    found = find_actuators(profile, "cpu", simulated=False, root=tmp_path)

    assert found["cpu"].levels()[:2] == (800.0, 800.0 + step.value)


@pytest.mark.parametrize("name", list_profiles())
def test_every_point_of_every_shipped_profile_can_be_simulated(name: str) -> None:
    profile = load_profile(name)
    found = find_actuators(profile, "cpu", simulated=True)

    assert all(actuator.simulated for actuator in found.values())
    for device_class in ("cpu", "gpu"):
        for point in points_of(profile, device_class):
            for domain, mhz in point.clock_mhz.items():
                found[domain].set(mhz)  # type: ignore[index]
                assert found[domain].current() == mhz  # type: ignore[index]


def test_simulated_clocks_remember_and_go_back() -> None:
    actuator = find_actuators(load_profile("jetson-tx2"), "cuda", simulated=True)["gpu"]
    snapshot = actuator.snapshot()

    actuator.set(854.25)
    with pytest.raises(ClockError, match=r"simulated gpu of jetson-tx2 has no level 855 MHz"):
        actuator.set(855.0)
    assert actuator.current() == 854.25
    actuator.restore(snapshot)

    assert actuator.current() == 1300.5


def test_nothing_is_simulated_without_a_profile_or_without_levels() -> None:
    with pytest.raises(ClockError, match="none fits this machine"):
        find_actuators(None, "cpu", simulated=True)
    bare = replace(load_profile("generic-x86"), clocks={}, operating_points=(), cores=None)
    with pytest.raises(ClockError, match="knows no clock levels to simulate"):
        find_actuators(bare, "cpu", simulated=True)


def test_levels_are_counted_from_one_the_slowest(tmp_path: Path) -> None:
    add_policy(tmp_path, 0, (1000000, 1500000, 2000000))
    actuator = find_actuators(None, "cpu", simulated=False, root=tmp_path)["cpu"]

    assert [level(actuator, number) for number in (1, 2, 3)] == [1000.0, 1500.0, 2000.0]
    for number in (0, 4, -1):
        with pytest.raises(ClockError, match=r"levels are 1 to 3, in MHz: 1000, 1500, 2000"):
            level(actuator, number)


def test_words_say_by_what_and_over_which_levels(tmp_path: Path) -> None:
    add_policy(tmp_path, 0, (1000000, 2000000))
    add_cores(tmp_path, 4)

    found = find_actuators(None, "cpu", simulated=False, root=tmp_path)

    assert clocks_words(found) == (
        "CPU clock by cpufreq policy0 (2 levels, 1000 to 2000 MHz); number of CPU cores by CPU "
        "hotplug (4 levels, 1 to 4 cores)."
    )
    assert clocks_words({}) == "no clock can be set."


def test_a_file_that_may_not_be_written_is_told_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_policy(tmp_path, 0)
    # The tests may run as root, who may write everything.
    monkeypatch.setattr("os.access", lambda path, mode: False)

    with pytest.raises(ClockError, match=r"no permission to write .*scaling_min_freq: run .* root"):
        find_actuators(None, "cpu", simulated=False, root=tmp_path)

"""The hardware profiles that come with exitbench."""

from __future__ import annotations

from dataclasses import fields, is_dataclass

import pytest
from exitbench.profiles.loading import list_profiles, load_profile
from exitbench.profiles.schema import Figure, Levels


def test_ten_profiles_are_shipped() -> None:
    assert list_profiles() == (
        "generic-arm64", "generic-x86", "jetson-agx-xavier", "jetson-orin-nano", "jetson-tx2",
        "nvidia-a100", "nvidia-h100", "nvidia-h200", "raspberry-pi-5", "rtx-4090",
    )  # fmt: skip


@pytest.mark.parametrize("name", list_profiles())
def test_a_shipped_profile_is_named_after_its_file_and_states_power(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name == profile.path.stem
    assert profile.power


def test_the_clock_levels_of_the_jetson_tx2() -> None:
    clocks = load_profile("jetson-tx2").clocks
    gpu, cpu = clocks["gpu"].levels_mhz, clocks["cpu"].levels_mhz
    assert gpu is not None
    assert cpu is not None
    assert gpu.value == (
        *(114.75, 216.75, 318.75, 420.75, 522.75, 624.75, 726.75),
        *(854.25, 930.75, 1032.75, 1122, 1236.75, 1300.5),
    )
    assert cpu.value[-1] == clocks["cpu"].top_mhz == 2035.2


def figures_in(value: object, key: str = "") -> list[tuple[str, Figure | Levels]]:
    """Every figure inside a profile with the name of its key."""
    if isinstance(value, Figure | Levels):
        return [(key, value)]
    if isinstance(value, dict):
        parts = list(value.items())
    elif isinstance(value, tuple):
        parts = [(key, item) for item in value]
    else:
        parts = (
            [(each.name, getattr(value, each.name)) for each in fields(value)]
            if is_dataclass(value)
            else []
        )
    return [found for name, part in parts for found in figures_in(part, str(name))]


@pytest.mark.parametrize("name", list_profiles())
def test_a_figure_that_nobody_published_is_marked_as_an_assumption(name: str) -> None:
    figures = figures_in(load_profile(name))
    unproven = (
        "no published",
        "from memory",
        "assumption",
        "as the ",
        "as an ",
        "taken ",
        "chosen",
    )
    unmarked = [
        (key, figure.source)
        for key, figure in figures
        if any(words in figure.source for words in unproven) and not figure.assumption
    ]
    assert len(figures) > 5
    assert unmarked == []


@pytest.mark.parametrize("name", list_profiles())
def test_a_shipped_profile_says_meters_clock_actuator_and_a_model(name: str) -> None:
    profile = load_profile(name)
    assert profile.meters[-1] == "modelled"
    assert ("ina3221" in profile.meters) == name.startswith("jetson")
    for device_class, power in profile.power.items():
        assert power.idle_w is not None
        assert profile.clocks[device_class].actuator != "none"
        assert profile.clocks[device_class].switch_ms is not None
        assert profile.dvfs[device_class]
    expected = 0 if "generic" in name else 50 if name.startswith(("nvidia", "rtx")) else 100
    assert profile.priority == expected


def test_the_module_of_each_jetson_is_the_sum_of_its_own_rails() -> None:
    totals = {name: rails.total for name in list_profiles() if (rails := load_profile(name).rails)}
    assert totals == {
        "jetson-tx2": ("VDD_IN",),
        "jetson-orin-nano": ("VDD_IN",),
        "jetson-agx-xavier": ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),
    }


def test_peaks_are_those_of_the_formats_a_device_has() -> None:
    tx2, xavier = (
        load_profile("jetson-tx2").peaks["gpu"],
        load_profile("jetson-agx-xavier").peaks["gpu"],
    )
    assert tx2.keys() == {"fp32_gflops", "fp16_gflops", "bandwidth_gb_s"}
    assert xavier.keys() == {"fp32_gflops", "fp16_gflops", "int8_gops", "bandwidth_gb_s"}
    assert load_profile("nvidia-a100").peaks["gpu"]["int8_gops"].value == 624_000
    assert load_profile("rtx-4090").peaks["gpu"]["int8_gops"].value == 660_600

"""Hardware profiles: the shipped ones, and what is told of a wrong file."""

from __future__ import annotations

from pathlib import Path

import pytest
from exitbench.harness.errors import ExitbenchError
from exitbench.profiles.loading import list_profiles, load_profile
from exitbench.profiles.schema import Figure, Profile

GOOD = """
schema = 1
name = "bench"
description = "a bench"
priority = 5

[[match]]
machine = ["x86_64"]
source = "uname"

[power.cpu]
covers = "cpu"
idle_w = { value = 10, source = "wall meter" }
active_w = { value = 65.5, source = "guess", assumption = true }

[clocks.cpu]
levels_mhz = { value = [1000, 1500.5, 2000], source = "sysfs" }

[[operating_points]]
name = "slow"
clock_mhz = { cpu = 1000 }
source = "sysfs"
"""


def read(folder: Path, text: str) -> Profile:
    file = folder / "bench.toml"
    file.write_text(text)
    return load_profile(file)


def faults(folder: Path, text: str) -> str:
    with pytest.raises(ExitbenchError) as caught:
        read(folder, text)
    assert caught.value.exit_status == 2
    return str(caught.value)


def test_three_profiles_are_shipped() -> None:
    assert list_profiles() == ("generic-x86", "jetson-tx2", "nvidia-h200")


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


def test_a_file_is_read_with_the_source_of_each_figure(tmp_path: Path) -> None:
    profile = read(tmp_path, GOOD)
    assert profile.power["cpu"].idle_w == Figure(10, "wall meter")
    assert profile.power["cpu"].active_w == Figure(65.5, "guess", assumption=True)
    assert profile.operating_points[0].clock_mhz == {"cpu": 1000}
    assert profile.peaks == {}
    assert load_profile(str(tmp_path / "bench.toml")) == profile


def test_every_fault_is_named_at_once_with_key_value_and_what_is_allowed(tmp_path: Path) -> None:
    text = GOOD.replace('covers = "cpu"', 'covers = "toaster"').replace("65.5", "-3")
    text = text.replace("[1000, 1500.5, 2000]", "[2000, 1000]").replace("priority = 5\n", "")
    message = faults(tmp_path, text + 'wattage = "much"\n')
    assert f"{tmp_path / 'bench.toml'} has 5 faults" in message
    assert "power.cpu.covers = 'toaster': must be one of cpu, gpu, module" in message
    assert "power.cpu.active_w.value = -3: must be a number above 0" in message
    assert "clocks.cpu.levels_mhz.value = [2000, 1000]: must rise" in message
    assert "priority is missing" in message
    assert "operating_points[0].wattage = 'much': unknown key; allowed: name" in message


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("schema = 1", "schema = 2", "schema = 2: must be 1"),
        ("schema = 1", "schema = true", "schema = True: must be 1"),
        ('name = "bench"\nd', 'name = " "\nd', "name = ' ': must be a text"),
        ("priority = 5", "priority = 5.5", "must be a whole number from 0 to 1000"),
        ('["x86_64"]', '"x86_64"', "must be a list of one or more texts"),
        ('machine = ["x86_64"]\n', "", "match[0] is missing: a rule needs one of machine"),
        ('{ value = 10, source = "wall meter" }', "10", "a figure has a source"),
        (', source = "wall meter"', "", "power.cpu.idle_w.source is missing"),
        ("value = 10", "value = nan", "power.cpu.idle_w.value = nan: must be a number above 0"),
        ("value = 10", "value = 0", "power.cpu.idle_w.value = 0: must be a number above 0"),
        ("value = 10", "value = 90", "must be at most active_w, which is 65.5"),
        ("assumption = true", 'assumption = "yes"', "must be true or false"),
        ("[power.cpu]", "[power.tpu]", "unknown key; allowed: cpu, gpu"),
        ("clock_mhz = { cpu = 1000 }", "clock_mhz = { cpu = 1001 }", "1000, 1500.5, 2000"),
        ("clock_mhz = { cpu = 1000 }", "clock_mhz = { gpu = 1000 }", "there is no [clocks.gpu]"),
        ("[[operating_points]]", "[operating_points]", "each under [[operating_points]]"),
    ],
)
def test_a_wrong_value_is_told_with_what_would_be_right(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    assert old in GOOD
    assert said in faults(tmp_path, GOOD.replace(old, new))


def test_a_file_that_is_no_toml_is_told_with_the_place(tmp_path: Path) -> None:
    message = faults(tmp_path, "schema = = 1")
    assert "bench.toml is not valid TOML" in message
    assert "line 1" in message


def test_a_file_that_is_no_text_or_not_there_is_told(tmp_path: Path) -> None:
    (tmp_path / "bench.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ExitbenchError, match="is not UTF-8 text"):
        load_profile(tmp_path / "bench.toml")
    with pytest.raises(ExitbenchError, match=r"none\.toml: No such file"):
        load_profile(tmp_path / "none.toml")


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ExitbenchError, match="generic-x86, jetson-tx2, nvidia-h200"):
        load_profile("jetson-tx3")

"""Reading hardware profiles, and what is told of a wrong file."""

from __future__ import annotations

from pathlib import Path

import pytest
from exitbench.harness.errors import ExitbenchError
from exitbench.profiles.loading import load_profile
from exitbench.profiles.schema import ClockDomain, Figure, Levels, Profile, Rails

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


FULL = (
    GOOD.replace("priority = 5", 'priority = 5\nmeters = ["ina3221", "external", "modelled"]')
    .replace(
        'source = "sysfs" }\n\n[[op',
        """source = "sysfs" }
voltage_mv = { value = [700, 700, 900.5], source = "regulator" }
actuator = "devfreq"
actuator_source = "sysfs"
nodes = ["*.gp10b"]
switch_ms = { value = 5, source = "stop watch" }

[[op""",
    )
    .replace(
        "clock_mhz = { cpu = 1000 }",
        """clock_mhz = { cpu = 1000 }
cores = { value = 2, source = "sysfs" }
gpu_units = { value = 0.5, source = "datasheet" }
power_w = { value = 30, source = "wall meter" }
idle_w = { value = 8, source = "wall meter" }
time_factor = { value = 1.9, source = "stop watch" }""",
    )
    + """
[rails]
total = ["VDD_IN"]
gpu = ["VDD_GPU"]
cpu = ["VDD_CPU"]
source = "schematic"

[cores]
actuator = "hotplug"
counts = { value = [1, 2, 4], source = "sysfs" }

[dvfs.cpu]
static_w = { value = 12, source = "wall meter" }
memory_w = { value = 0, source = "wall meter" }
voltage_floor = { value = 0.8, source = "regulator" }
voltage_knee = { value = 1, source = "regulator" }
fixed_time_share = { value = 0, source = "stop watch" }
memory_time_share = { value = 0.25, source = "stop watch" }

[model.cpu]
efficiency = { value = 0.5, source = "guess", assumption = true }
bandwidth_efficiency = { value = 1, source = "guess", assumption = true }
launch_ms = { value = 0.02, source = "guess", assumption = true }
"""
)


def read(folder: Path, text: str) -> Profile:
    file = folder / "bench.toml"
    file.write_text(text)
    return load_profile(file)


def faults(folder: Path, text: str) -> str:
    with pytest.raises(ExitbenchError) as caught:
        read(folder, text)
    assert caught.value.exit_status == 2
    return str(caught.value)


def test_a_file_is_read_with_the_source_of_each_figure(tmp_path: Path) -> None:
    profile = read(tmp_path, GOOD)
    assert profile.power["cpu"].idle_w == Figure(10, "wall meter")
    assert profile.power["cpu"].active_w == Figure(65.5, "guess", assumption=True)
    assert profile.operating_points[0].clock_mhz == {"cpu": 1000}
    assert profile.peaks == {}
    assert load_profile(str(tmp_path / "bench.toml")) == profile


def test_meters_rails_actuators_voltages_cores_and_models_are_read(tmp_path: Path) -> None:
    profile = read(tmp_path, FULL)
    clock, point = profile.clocks["cpu"], profile.operating_points[0]
    assert profile.meters == ("ina3221", "external", "modelled")
    assert profile.rails == Rails(("VDD_IN",), "schematic", gpu=("VDD_GPU",), cpu=("VDD_CPU",))
    assert clock.voltage_mv == Levels((700, 700, 900.5), "regulator")
    assert (clock.actuator, clock.actuator_source, clock.nodes) == (
        "devfreq",
        "sysfs",
        ("*.gp10b",),
    )
    assert clock.switch_ms == Figure(5, "stop watch")
    assert profile.cores is not None
    assert profile.cores.counts.value == (1, 2, 4)
    stated = (point.cores, point.gpu_units, point.power_w, point.idle_w, point.time_factor)
    assert [figure and figure.value for figure in stated] == [2, 0.5, 30, 8, 1.9]
    assert profile.dvfs["cpu"]["memory_w"] == Figure(0, "wall meter")
    assert profile.dvfs["cpu"]["memory_time_share"].value == 0.25
    assert profile.model["cpu"]["launch_ms"] == Figure(0.02, "guess", assumption=True)


def figure(value: float) -> Figure:
    return Figure(value, "bench")


@pytest.mark.parametrize(
    ("clock", "levels"),
    [
        (ClockDomain(), ()),
        (ClockDomain(min_mhz=figure(800)), ()),
        (ClockDomain(max_mhz=figure(1800)), (1800,)),
        (ClockDomain(min_mhz=figure(800), max_mhz=figure(1800)), (800, 1800)),
        (ClockDomain(None, None, figure(800), figure(1800), figure(500)), (800, 1300, 1800)),
        # The top belongs to the range also where the steps miss it.
        (ClockDomain(None, None, figure(800), figure(1800), figure(400)), (800, 1200, 1600, 1800)),
        (
            ClockDomain(None, None, figure(0.3), figure(0.9), figure(0.1)),
            (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
        ),
        (ClockDomain(None, None, figure(800), figure(800), figure(100)), (800,)),
        (ClockDomain(Levels((1, 2, 5), "bench"), None, figure(800), figure(1800)), (1, 2, 5)),
    ],
)
def test_a_clock_has_the_levels_of_its_list_or_of_its_range(
    clock: ClockDomain, levels: tuple[float, ...]
) -> None:
    assert clock.levels == levels
    assert clock.top_mhz == (levels[-1] if levels else None)


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


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            '["ina3221", "external"',
            '["tegrastats"',
            "meters[0] = 'tegrastats': must be one of nvml",
        ),
        ('"external", "modelled"]', '"external", "external"]', "must stand there once"),
        ('meters = ["ina3221", "external", "modelled"]', "meters = []", "must be a list of one or"),
        ('["ina3221", "external"', '["external"', "must name ina3221, which reads [rails]"),
        ("[rails]", "[identity]\n[tails]", "unknown key; allowed: schema, name"),
        ('total = ["VDD_IN"]', 'total = ["VDD_IN", "VDD_IN"]', "must name each rail once"),
        ('cpu = ["VDD_CPU"]', 'cpu = ["VDD_GPU"]', "is in rails.gpu too"),
        ('total = ["VDD_IN"]\n', "", "rails.total is missing"),
        (
            "[700, 700, 900.5]",
            "[700, 600, 900.5]",
            "clocks.cpu.voltage_mv.value = [700, 600, 900.5]: must not fall",
        ),
        ("[700, 700, 900.5]", "[700, 900.5]", "one voltage for each of the 3 levels_mhz"),
        ('"devfreq"', '"magic"', "must be one of nvml, cpufreq, devfreq, none"),
        ('actuator_source = "sysfs"\n', "", "clocks.cpu.actuator_source is missing"),
        ('"devfreq"', '"cpufreq"', "clocks.cpu.nodes = ['*.gp10b']: needs actuator"),
        ('nodes = ["*.gp10b"]\n', "", "clocks.cpu.nodes is missing: devfreq needs"),
        ("{ value = 5, source", "{ value = 0, source", "clocks.cpu.switch_ms.value = 0: must be"),
        ("[1, 2, 4]", "[1, 4, 2]", "cores.counts.value = [1, 4, 2]: must rise"),
        ("[1, 2, 4]", "[1, 2.5]", "must be a list of whole numbers"),
        (
            "[1, 2, 4]",
            "[1, 4]",
            "operating_points[0].cores.value = 2: must be one of cores.counts: 1, 4",
        ),
        ('"hotplug"', '"magic"', "cores.actuator = 'magic': must be one of hotplug"),
        (
            'value = 0.5, source = "data',
            'value = 1.5, source = "data',
            "gpu_units.value = 1.5: must be a number above 0 and at most 1",
        ),
        (
            "value = 8, source",
            "value = 31, source",
            "idle_w.value = 31: must be at most power_w, which is 30",
        ),
        (
            "value = 12, source",
            "value = 66, source",
            "static_w and memory_w must be at most active_w together, which is 65.5",
        ),
        (
            'value = 0, source = "wall',
            'value = -1, source = "wall',
            "memory_w.value = -1: must be a number from 0",
        ),
        (
            "value = 0.8, source",
            "value = 0, source",
            "voltage_floor.value = 0: must be a number above 0 and",
        ),
        (
            'value = 1, source = "reg',
            'value = 1.1, source = "reg',
            "voltage_knee.value = 1.1: must be",
        ),
        ('value = 0, source = "stop', 'value = 0.8, source = "stop', "must be at most 1 together"),
        (
            "value = 0.25",
            "value = 1.25",
            "memory_time_share.value = 1.25: must be a number from 0 to 1",
        ),
        ("[dvfs.cpu]", "[dvfs.gpu]", "power.gpu is missing: [dvfs.gpu] shares out its active_w"),
        (
            "value = 0.02",
            "value = true",
            "model.cpu.launch_ms.value = True: must be a number above 0",
        ),
        ("efficiency = {", "speed = {", "model.cpu.speed"),
    ],
)
def test_a_wrong_value_of_the_clock_model_or_the_sensors_is_told(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    assert old in FULL
    assert said in faults(tmp_path, FULL.replace(old, new, 1))


def test_the_meter_of_the_rails_needs_their_names(tmp_path: Path) -> None:
    text = GOOD.replace("priority = 5", 'priority = 5\nmeters = ["ina3221"]')
    assert "rails is missing: the meter ina3221 adds the rails" in faults(tmp_path, text)


def test_two_operating_points_of_one_name_are_refused(tmp_path: Path) -> None:
    point = '\n[[operating_points]]\nname = "slow"\nclock_mhz = { cpu = 2000 }\nsource = "x"\n'
    assert "another point has this name" in faults(tmp_path, GOOD + point)


def test_a_clock_of_a_point_lies_in_the_range_where_there_is_no_list(tmp_path: Path) -> None:
    levels = 'levels_mhz = { value = [1000, 1500.5, 2000], source = "sysfs" }'
    span = 'min_mhz = { value = 1100, source = "sysfs" }'
    text = GOOD.replace(levels, span)
    assert "must lie in the range of clocks.cpu: 1100 to inf" in faults(tmp_path, text)


def test_a_profile_without_any_power_is_refused(tmp_path: Path) -> None:
    text = GOOD[: GOOD.index("[power.cpu]")] + "[power]\n"
    assert "power is missing: the file needs one of cpu, gpu there" in faults(tmp_path, text)


def test_a_file_that_is_no_toml_is_told_with_the_place(tmp_path: Path) -> None:
    message = faults(tmp_path, "schema = = 1")
    assert "bench.toml is not valid TOML" in message
    assert "line 1" in message


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (GOOD.replace("65.5", "1" + "0" * 400), "power.cpu.active_w.value = 1000"),
        (GOOD.replace("65.5", "1" + "0" * 5000), "is not valid TOML"),
        ("x = " + "[" * 5000 + "]" * 5000, "nested too deep"),
    ],
    ids=["beyond any float", "too many digits", "nested too deep"],
)
def test_what_is_beyond_all_bounds_is_told(tmp_path: Path, text: str, told: str) -> None:
    assert told in faults(tmp_path, text)


def test_a_file_that_is_no_text_or_not_there_is_told(tmp_path: Path) -> None:
    (tmp_path / "bench.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ExitbenchError, match="is not UTF-8 text"):
        load_profile(tmp_path / "bench.toml")
    with pytest.raises(ExitbenchError, match=r"none\.toml: No such file"):
        load_profile(tmp_path / "none.toml")


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ExitbenchError, match="Choose one of generic-arm64, generic-x86, jetson"):
        load_profile("jetson-tx3")

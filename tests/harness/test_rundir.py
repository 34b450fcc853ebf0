"""A run directory: its manifest, who may add to it, and measurements that survive a kill."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from exitbench.harness.configs import SweepConfig, TraceConfig
from exitbench.harness.environment import IDENTITY, environment, unlike
from exitbench.harness.files import sha256
from exitbench.harness.options import read_options, to_plain
from exitbench.harness.rundir import RunDirectory
from pipeline_fixtures import leftovers, refused

HERE = dict.fromkeys(IDENTITY, "x") | {"exitbench": "0.1.0", "load_1min": 0.5}
FIRST, SECOND = {"policy": "full", "latency_ms": 1.5}, {"policy": "oracle", "latency_ms": None}


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    made = RunDirectory(tmp_path / "run")
    made.begin("trace", to_plain(TraceConfig(made.path, horizon=4)), HERE)
    return made


def test_a_folder_without_a_manifest_is_no_run_directory(tmp_path: Path) -> None:
    message = refused(RunDirectory, tmp_path, create=False)
    assert f"{tmp_path} is no run directory (it has no manifest.json)" in message
    assert "'exitbench study'" in message


def test_a_folder_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = refused(RunDirectory, tmp_path / "file" / "run")
    assert f"cannot make {tmp_path / 'file' / 'run'}: Not a directory" in message


@pytest.mark.parametrize("text", ['{"schema": 2}', "{}", "[1]", '{"schema": "1"}'])
def test_a_manifest_of_another_schema_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    message = refused(RunDirectory, tmp_path)
    assert f"{tmp_path / 'manifest.json'}: schema" in message
    assert "this version of exitbench reads 1" in message
    assert "use another run directory" in message


def test_a_manifest_that_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"schema": 1,')
    assert f"{tmp_path / 'manifest.json'} is not valid JSON" in refused(RunDirectory, tmp_path)


@pytest.mark.parametrize("name", IDENTITY)
def test_numbers_of_an_unlike_environment_are_refused(directory: RunDirectory, name: str) -> None:
    before = directory.manifest_path.read_bytes()
    message = refused(directory.begin, "profile", {}, {**HERE, name: "y"})
    assert f"{directory.path} holds numbers of another environment" in message
    assert f"{name} (x and y)" in message
    assert "choose another run directory" in message
    assert directory.manifest_path.read_bytes() == before


def test_what_changes_from_hour_to_hour_is_no_other_environment(directory: RunDirectory) -> None:
    directory.begin("profile", {}, {**HERE, "load_1min": 7.0, "exitbench": "0.1.1"})
    assert directory.manifest["environment"]["load_1min"] == 0.5
    assert directory.manifest["exitbench"] == "0.1.1"


def test_this_machine_is_like_itself() -> None:
    first, second = environment("cpu", 1), environment("cpu", 2)
    assert unlike(first, environment("cpu", 1)) == []
    assert unlike(first, second) == ["threads (1 and 2)"]
    assert all(first[name] is not None for name in IDENTITY if name not in ("gpu", "cores"))
    assert first["gpu"] is None
    json.dumps(first)


def test_the_manifest_keeps_the_first_command_and_every_later_one(directory: RunDirectory) -> None:
    sweep = SweepConfig(directory.path, beta=("0.5", "0.9"), criteria=("margin",))
    directory.begin("sweep", to_plain(sweep), HERE)
    directory.finish("sweep")
    manifest = json.loads(directory.manifest_path.read_text())
    assert manifest["command"] == "trace"
    assert manifest["config"]["horizon"] == 4
    assert set(manifest["commands"]) == {"trace", "sweep"}
    assert manifest["commands"]["trace"]["finished"] is None
    assert manifest["commands"]["sweep"]["finished"] >= manifest["commands"]["sweep"]["started"]


def test_every_command_can_be_repeated_from_the_manifest(directory: RunDirectory) -> None:
    sweep = SweepConfig(directory.path, beta=("0.5", "0.9"), criteria=("margin",))
    directory.begin("sweep", to_plain(sweep), HERE)
    path = directory.manifest_path
    assert read_options(path, SweepConfig, "sweep") == sweep
    assert read_options(path, TraceConfig, "trace") == TraceConfig(directory.path, horizon=4)


def test_dictionaries_in_the_manifest_are_merged(directory: RunDirectory) -> None:
    directory.update(precisions={"fp32": {"available": True}}, names=["a"])
    directory.update(precisions={"int8": {"available": False}}, names=["b"])
    again = RunDirectory(directory.path, create=False).manifest
    assert again["precisions"] == {"fp32": {"available": True}, "int8": {"available": False}}
    assert again["names"] == ["b"]


def test_checksums_are_those_of_the_files(directory: RunDirectory) -> None:
    (directory.path / "sweep.csv").write_text("policy\nfull\n")
    directory.trace("test", "fp32").write_bytes(b"trace")
    (directory.path / ".half.csv").write_text("hidden")
    (directory.path / "notes.txt").write_text("of the user")
    directory.append_measurement(FIRST)
    directory.finish("trace")
    names = ["measurements.jsonl", "sweep.csv", "trace-test-fp32.npz"]
    expected = {name: sha256(directory.path / name) for name in names}
    assert directory.manifest["checksums"] == expected
    (directory.path / "sweep.csv").unlink()
    directory.finish("trace")
    assert "sweep.csv" not in directory.manifest["checksums"]


def test_measurements_are_read_as_they_were_written(directory: RunDirectory) -> None:
    assert directory.read_measurements() == []
    directory.append_measurement(FIRST)
    directory.append_measurement(SECOND)
    assert directory.read_measurements() == [FIRST, SECOND]
    with pytest.raises(ValueError, match="not JSON compliant"):
        directory.append_measurement({"latency_ms": math.nan})
    assert directory.read_measurements() == [FIRST, SECOND]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scene", "periodic"), ("period_ms", 100.0), ("governor", "deadline"),
        ("operating_point", "800 MHz"), ("deadline_ms", 20.0), ("clocks", "device"),
        ("rebatch_wait", 0),
    ],
)  # fmt: skip
def test_a_setting_run_in_another_scene_or_by_another_governor_stands_beside_it(
    directory: RunDirectory, name: str, value: object
) -> None:
    directory.append_measurement(FIRST)
    other = {**FIRST, name: value}
    directory.append_measurement(other)
    assert directory.read_measurements() == [FIRST, other]
    again = {**other, "latency_ms": 9.0}
    directory.append_measurement(again)
    assert directory.read_measurements() == [FIRST, again]


@pytest.mark.parametrize("cut", range(1, 8))
def test_a_last_line_that_was_cut_short_is_measured_again(
    directory: RunDirectory, cut: int
) -> None:
    directory.append_measurement(FIRST)
    directory.append_measurement(SECOND)
    whole = directory.measurements.read_bytes()
    directory.measurements.write_bytes(whole[: -cut * 5])
    assert directory.read_measurements() == [FIRST]
    directory.append_measurement(SECOND)
    # The new line does not stick to the rest of the old one.
    assert directory.measurements.read_bytes() == whole
    assert directory.read_measurements() == [FIRST, SECOND]
    assert leftovers(directory.path) == []


def test_a_last_line_that_lacks_only_its_end_counts(directory: RunDirectory) -> None:
    directory.append_measurement(FIRST)
    directory.measurements.write_bytes(directory.measurements.read_bytes()[:-1])
    assert directory.read_measurements() == [FIRST]
    directory.append_measurement(SECOND)
    assert directory.read_measurements() == [FIRST, SECOND]


@pytest.mark.parametrize("broken", ['{"policy": "fu', "3", ""])
def test_a_broken_line_in_the_middle_is_named(directory: RunDirectory, broken: str) -> None:
    lines = [json.dumps(FIRST), broken, json.dumps(SECOND)]
    directory.measurements.write_text("\n".join(lines) + "\n")
    message = refused(directory.read_measurements)
    assert f"{directory.measurements}, line 2 is no JSON of a measured run" in message
    assert "delete the line to measure that run again" in message


def test_a_complete_last_line_that_is_no_json_is_damage_not_a_kill(
    directory: RunDirectory,
) -> None:
    directory.measurements.write_text(json.dumps(FIRST) + "\nnonsense\n")
    assert "line 2 is no JSON" in refused(directory.read_measurements)

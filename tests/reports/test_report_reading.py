"""A wrong file gives one message that names it, and nothing is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from exitbench.harness.errors import ExitbenchError
from exitbench.harness.files import sha256
from exitbench.reports import write_report
from exitbench.reports.reading import read_run


@pytest.fixture
def run(synthetic_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(synthetic_run, tmp_path / "run"))


def spoil(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExitbenchError, match="nowhere is no run directory"):
        write_report(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["manifest.json", "sweep.csv"])
def test_a_needed_file_that_is_missing_is_named(run: Path, name: str) -> None:
    (run / name).unlink()
    with pytest.raises(ExitbenchError, match=name):
        write_report(run)
    assert not (run / "report").exists()


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("manifest.json", '"schema": 1', '"schema": 9', "schema is 9"),
        ("manifest.json", "{", "", "not valid JSON"),
        ("sweep.csv", "accuracy", "acuracy", "missing column accuracy"),
        ("sweep.csv", "\ntest,", "\ntest,1,2,3,", "cannot be read as a CSV"),
        ("cost.csv", ",200,", ",many,", "line 2, column repeats: 'many'"),
        ("cost.csv", "\nsegment,1,", "\nsegment,,", "column index: an empty cell is wrong"),
        ("cost.csv", "modelled", "guessed", "measured, modelled, unavailable"),
        ("cost.csv", "modelled", "", "beside a value in energy_mj"),
        ("scenarios.csv", ",periodic,", ",weekly,", "one of continuous, periodic"),
        ("scenarios.csv", ",periodic,100", ",periodic,", "the ms between two requests"),
        ("measurements.jsonl", '"accuracy"', '"exactness"', "line 1: the field 'accuracy'"),
        ("measurements.jsonl", "{", "", "line 1: no valid JSON"),
        ("measurements.jsonl", '"latency_ms": ', '"latency_ms": -', "not below 0"),
        ("measurements.jsonl", '"latency_ms": ', '"latency_ms": NaN, "x": ', "finite"),
        ("measurements.jsonl", '"accuracy": ', '"accuracy": 9', "a number from 0 to 1"),
        ("measurements.jsonl", '"modelled"', "null", "energy_source is None"),
    ],
)
def test_a_wrong_file_gives_one_clear_message(
    run: Path, name: str, old: str, new: str, message: str
) -> None:
    spoil(run / name, old, new)
    with pytest.raises(ExitbenchError, match=name) as error:
        write_report(run)
    assert message in str(error.value)
    assert not (run / "report").exists()


def test_an_accuracy_above_one_is_refused_with_its_line(run: Path) -> None:
    lines = (run / "sweep.csv").read_text().splitlines()
    place = lines[0].split(",").index("accuracy")
    cells = lines[3].split(",")
    cells[place] = "97.5"
    lines[3] = ",".join(cells)
    (run / "sweep.csv").write_text("\n".join(lines))
    with pytest.raises(ExitbenchError, match="line 4, column accuracy") as error:
        read_run(run)
    assert "column accuracy: 97.5 is wrong" in str(error.value)
    assert "a share between 0 and 1" in str(error.value)
    assert f"'exitbench sweep --run {run}'" in str(error.value)


def test_a_wrong_table_of_governors_names_the_command_that_writes_it(run: Path) -> None:
    table = next(run.glob("governed-*.csv"))
    spoil(table, "modelled", "guessed")
    with pytest.raises(ExitbenchError, match=f"'exitbench govern --run {run}'"):
        read_run(run)


def test_a_governor_that_nobody_knows_is_refused(run: Path) -> None:
    table = next(run.glob("governed-*.csv"))
    spoil(table, ",deadline-safe,", ",clairvoyant,")
    with pytest.raises(ExitbenchError, match="column governor: 'clairvoyant' is wrong"):
        read_run(run)


def test_a_sweep_without_test_rows_is_refused(run: Path) -> None:
    text = (run / "sweep.csv").read_text().replace("\ntest,", "\ncalibration,")
    (run / "sweep.csv").write_text(text)
    with pytest.raises(ExitbenchError, match="no row of the split 'test'"):
        read_run(run)


def test_an_empty_cell_stays_unknown(run: Path) -> None:
    sweep = read_run(run).sweep
    full = sweep[sweep["policy"] == "full"]
    assert full["beta"].isna().all()
    assert (full["criterion"] == "").all()


def test_half_a_last_line_of_an_interrupted_run_is_left_out_and_said(run: Path) -> None:
    before = len(read_run(run).measurements)
    with (run / "measurements.jsonl").open("a") as handle:
        handle.write('{"policy": "full", "prec')
    found = read_run(run)
    assert len(found.measurements) == before
    assert "broken off" in found.notes[0]


def test_a_file_that_changed_after_the_manifest_is_noted(run: Path) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["checksums"] = {"cost.csv": sha256(run / "cost.csv"), "sweep.csv": "0" * 64}
    (run / "manifest.json").write_text(json.dumps(manifest))
    notes = read_run(run).notes
    assert len(notes) == 1
    assert notes[0].startswith("sweep.csv changed")


def test_a_folder_that_cannot_be_written_is_named(run: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(ExitbenchError, match="cannot write"):
        write_report(run, blocked / "report")

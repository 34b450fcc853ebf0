"""A study from trace to report, killed at every stage and run again."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from exitbench.harness.configs import ReportConfig, StudyConfig
from exitbench.harness.costs import CostTable
from exitbench.harness.files import sha256
from exitbench.harness.measured import measured_key
from exitbench.harness.options import read_options
from exitbench.harness.pipeline import run_report, study
from exitbench.harness.rundir import RunDirectory
from pipeline_fixtures import Inputs, Killed, Said, leftovers, refused, silent, study_config

TABLES = (
    "sweep.csv", "comparison.csv", "scenarios.csv", "prediction.csv", "prediction_confusion.csv",
)  # fmt: skip
TRACES = ("trace-calibration-fp32.npz", "trace-test-fp32.npz")
COSTS = ("cost.csv", "cost-samples-fp32-1.npz", "cost-samples-fp32-8.npz")
FILES = (*COSTS, *TABLES, *TRACES, "measurements.jsonl")


def contents(run: Path, names: tuple[str, ...] = TABLES) -> dict[str, bytes]:
    return {name: (run / name).read_bytes() for name in names}


def governed(run: Path) -> str:
    """The table of governors on this machine's own clocks."""
    return f"governed-{RunDirectory(run).manifest['hardware']['profile']}.csv"


def stamps(run: Path, names: tuple[str, ...]) -> dict[str, int]:
    """When each file was last written, in nanoseconds."""
    return {name: (run / name).stat().st_mtime_ns for name in names if (run / name).exists()}


def priced(finished: Path, run: Path) -> Path:
    """A run directory of which only the profile is done: costs are measured, so they must be
    the same for two studies to be compared byte by byte."""
    run.mkdir()
    shutil.copy(finished / "cost.csv", run)
    manifest = json.loads((finished / "manifest.json").read_text())
    del manifest["commands"], manifest["checksums"]
    (run / "manifest.json").write_text(json.dumps(manifest))
    return run


def test_a_finished_study_holds_every_file_of_a_run_directory(finished: Path) -> None:
    assert leftovers(finished) == []
    files = {path.name for path in finished.iterdir()}
    assert files == {"manifest.json", *FILES, governed(finished)}
    rows = pd.read_csv(finished / "sweep.csv")
    assert set(rows.split) == {"calibration", "test"}
    assert rows[["accuracy", "macs", "latency_ms"]].notna().all(axis=None)
    assert CostTable.read(finished / "cost.csv").settings() == [
        ("fp32", 1, "default"), ("fp32", 8, "default"),
    ]  # fmt: skip
    assert all(row["same_decisions"] == 1 for row in RunDirectory(finished).read_measurements())


def test_the_manifest_says_what_was_done_with_what(finished: Path, inputs: Inputs) -> None:
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["command"] == "study"
    assert manifest["checkpoint"]["sha256"] == sha256(inputs.vgg)
    assert manifest["checkpoint"]["dataset"] == inputs.dataset
    assert manifest["checkpoint"]["samples"] == {"calibration": 12, "test": 60}
    assert len(manifest["exit_names"]) == 6
    assert manifest["exit_names"][-1] == "classifier"
    assert manifest["precisions"]["fp32"]["available"] is True
    assert manifest["environment"]["threads"] == 1
    assert manifest["hardware"]["source"] in ("measured", "modelled", "unavailable")
    assert set(manifest["profile"]) == {"fp32, batch 1", "fp32, batch 8"}
    written = sorted((*FILES, governed(finished)))
    assert manifest["checksums"] == {name: sha256(finished / name) for name in written}


def test_scenes_are_priced_for_every_role(finished: Path) -> None:
    rows = pd.read_csv(finished / "scenarios.csv")
    chosen = pd.read_csv(finished / "comparison.csv")
    assert list(rows.role.unique()) == list(chosen.role.unique())
    assert len(rows) == len(chosen) * 3
    assert set(rows.period_ms.dropna()) == {100.0, 1000.0}
    full = rows[(rows.role == "full") & (rows.period_ms == 1000)].iloc[0]
    idle_w = RunDirectory(finished).manifest["hardware"]["idle_w"]
    busy_mj = chosen[chosen.role == "full"].iloc[0].energy_mj
    idle_mj = idle_w * (1000 - full.latency_ms)
    # the file keeps nine digits
    assert full.energy_per_request_mj == pytest.approx(busy_mj + idle_mj, rel=1e-6)
    assert full.energy_per_hour_j == pytest.approx(3.6 * full.energy_per_request_mj, rel=1e-6)


def test_hardware_without_clocks_is_left_out_of_governing_and_said(
    finished: Path, inputs: Inputs, tmp_path: Path, checkout: Path
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    text = (checkout / "profiles/generic-x86.toml").read_text()
    bare = tmp_path / "bare.toml"
    lines, kept = text.splitlines(), True
    with bare.open("w") as handle:
        for line in lines:
            if line.startswith("["):
                kept = not line.startswith(("[clocks", "[[operating_points", "[dvfs"))
            if kept:
                handle.write(line + "\n")
    said = Said()
    study(study_config(inputs.vgg, run, govern=("auto", str(bare))), said)
    assert len(said.starting(f"govern {bare}: left out: ")) == 1


def test_a_wrong_name_of_hardware_to_govern_is_refused_before_anything_is_done(
    inputs: Inputs, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    message = refused(study, study_config(inputs.vgg, run, govern=("jetson-tx3",)), silent)
    assert "jetson-tx3" in message
    assert not run.exists()


def test_a_study_can_be_repeated_from_its_manifest(finished: Path, inputs: Inputs) -> None:
    config = read_options(finished / "manifest.json", StudyConfig, "study")
    assert config == study_config(inputs.vgg, finished)


def test_a_study_that_is_run_again_does_nothing_twice(
    finished: Path, inputs: Inputs, tmp_path: Path
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    kept = (*COSTS, *TRACES, "measurements.jsonl")
    before, written = contents(run), stamps(run, kept)
    said = Said()
    study(study_config(inputs.vgg, run), said)
    assert contents(run) == before
    assert stamps(run, kept) == written
    for line in (
        "trace calibration fp32: already there", "trace test fp32: already there",
        "profile fp32, batch 1: already there", "profile fp32, batch 8: already there",
        "run fp32: already measured",
    ):  # fmt: skip
        assert said.starting(line)


STAGES = [
    "trace calibration fp32: 12 images",
    "trace calibration fp32: accuracy",
    "trace test fp32: 60 images",
    "energy: ",
    "sweep fp32 test",
    "sweep: ",
    "run: timed pass 1",
    "measured every-exit",
]


@pytest.mark.parametrize("stage", STAGES)
def test_a_study_killed_at_any_stage_ends_as_if_it_had_not_been(
    finished: Path, inputs: Inputs, tmp_path: Path, stage: str
) -> None:
    run = priced(finished, tmp_path / "run")
    config = study_config(inputs.vgg, run)
    with pytest.raises(Killed):
        study(config, Said(stop_at=stage))
    assert leftovers(run) == []
    done = stamps(run, TRACES)
    measured = run / "measurements.jsonl"
    lines = measured.read_bytes() if measured.exists() else b""
    said = Said()
    study(config, said)
    assert contents(run) == contents(finished)
    assert contents(run, ("cost.csv", *TRACES)) == contents(finished, ("cost.csv", *TRACES))
    assert stamps(run, TRACES).items() >= done.items()
    assert len(said.starting("trace")) == 4 - len(done)  # one line if it is there, else two
    assert measured.read_bytes().startswith(lines)
    keys = [measured_key(row) for row in RunDirectory(run).read_measurements()]
    wanted = [measured_key(row) for row in RunDirectory(finished).read_measurements()]
    assert sorted(map(str, keys)) == sorted(map(str, wanted))
    assert json.loads((run / "manifest.json").read_text())["commands"]["study"]["finished"]


def test_a_study_killed_while_it_profiles_keeps_what_was_profiled(
    inputs: Inputs, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    config = study_config(inputs.vgg, run)
    with pytest.raises(Killed):
        study(config, Said(stop_at="profile fp32, batch 8"))
    first = (run / "cost.csv").read_text()
    said = Said()
    study(config, said)
    assert said.starting("profile fp32, batch 1: already there")
    assert not said.starting("profile fp32, batch 8: already there")
    assert (run / "cost.csv").read_text().startswith(first)
    # An uninterrupted study with these costs has the same sweep.
    other = priced(run, tmp_path / "other")
    study(study_config(inputs.vgg, other), silent)
    assert contents(other) == contents(run)


def test_lost_costs_are_measured_again(finished: Path, inputs: Inputs, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "cost.csv").unlink()
    said = Said()
    study(study_config(inputs.vgg, run), said)
    assert not [line for line in said.starting("profile") if "already there" in line]
    assert len(CostTable.read(run / "cost.csv").settings()) == 2


def test_a_damaged_trace_is_recorded_again(finished: Path, inputs: Inputs, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    path = run / TRACES[1]
    path.write_bytes(path.read_bytes()[:1000])
    said = Said()
    study(study_config(inputs.vgg, run), said)
    assert said.starting("trace test fp32: 60 images")
    assert contents(run, (*TABLES, *TRACES)) == contents(finished, (*TABLES, *TRACES))


def test_another_horizon_is_traced_and_measured_anew(
    finished: Path, inputs: Inputs, tmp_path: Path
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    said = Said()
    study(study_config(inputs.vgg, run, horizon=2), said)
    assert len(said.starting("trace test fp32: 60 images")) == 1
    assert not [line for line in said.starting("profile") if "already there" in line]


def test_a_study_without_energy_has_none_anywhere(inputs: Inputs, tmp_path: Path) -> None:
    run = tmp_path / "run"
    study(study_config(inputs.vgg, run, energy=False, batch_sizes=(1,)), silent)
    rows = RunDirectory(run).read_measurements()
    assert rows
    for row in rows:
        assert (row["energy_mj"], row["replay_energy_mj"]) == (None, None)
        assert row["energy_source"] == "unavailable"
    table = pd.read_csv(run / "sweep.csv")
    assert table.energy_mj.isna().all()
    assert json.loads((run / "manifest.json").read_text())["hardware"]["source"] == "unavailable"


def test_numbers_of_another_machine_are_not_mixed_in(
    finished: Path, inputs: Inputs, tmp_path: Path
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["environment"]["cpu"] = "Another CPU"
    (run / "manifest.json").write_text(json.dumps(manifest))
    before = contents(run)
    message = refused(study, study_config(inputs.vgg, run), silent)
    assert "holds numbers of another environment" in message
    assert "cpu (Another CPU and " in message
    assert contents(run) == before


SCRIPT = """
import sys
from exitbench.harness.configs import StudyConfig
from exitbench.harness.options import read_options
from exitbench.harness.pipeline import study
from pathlib import Path
study(read_options(Path(sys.argv[1]), StudyConfig, "study"), lambda line: print(line, flush=True))
"""


def toml(values: dict[str, Any]) -> str:
    flat = [f"{k} = {json.dumps(v)}\n" for k, v in values.items() if not isinstance(v, dict)]
    tables = [f"[{k}]\n{toml(v)}" for k, v in values.items() if isinstance(v, dict)]
    return "".join([*flat, *tables])


@pytest.mark.parametrize("stage", ["trace test fp32: 60 images", "run: timed pass 1"])
def test_a_study_whose_process_is_killed_goes_on(
    finished: Path, inputs: Inputs, tmp_path: Path, stage: str
) -> None:
    run = priced(finished, tmp_path / "run")
    config = study_config(inputs.vgg, run)
    options = {
        "checkpoint": str(inputs.vgg), "run": str(run), "precisions": ["fp32"],
        "batch_sizes": [1, 8], "seconds": 0.2, "repeats": 1, "criteria": ["softmax"],
        "beta_count": 5, "device": {"device": "cpu", "threads": 1},
    }  # fmt: skip
    (tmp_path / "study.toml").write_text(toml(options))
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "study.toml")],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(stage):
            process.send_signal(signal.SIGKILL)
            break
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    study(config, silent)
    assert contents(run) == contents(finished)
    assert [name for name in leftovers(run) if name.startswith(".trace-")] == []


def test_the_report_is_made_from_the_files_of_a_study_alone(
    finished: Path, tmp_path: Path
) -> None:
    said = Said()
    run_report(ReportConfig(finished, tmp_path / "report"), said)
    page = tmp_path / "report" / "index.html"
    assert said.starting(f"report: {page}")
    assert page.stat().st_size > 10_000
    assert not (finished / "report").exists()

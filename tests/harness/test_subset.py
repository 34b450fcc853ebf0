"""``exitbench subset``: lists of easy and hard samples, and what is run on them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from exitbench.harness.configs import (
    DataConfig,
    ProfileConfig,
    RunConfig,
    SubsetConfig,
    SweepConfig,
    TraceConfig,
)
from exitbench.harness.live import run_run
from exitbench.harness.pipeline import run_subset
from exitbench.harness.profiling import run_profile
from exitbench.harness.rundir import RunDirectory
from exitbench.harness.subject import load_subject
from exitbench.harness.sweeping import run_sweep
from exitbench.harness.trace import Trace
from exitbench.harness.tracing import run_trace, traced_subject
from pipeline_fixtures import CPU, Inputs, Said, refused, silent


def positions(path: Path) -> list[int]:
    return json.loads(path.read_text())["positions"]


@pytest.fixture
def test_trace(finished: Path) -> Trace:
    return Trace(finished / "trace-test-fp32.npz")


def test_easy_and_hard_samples_by_their_confidence(
    finished: Path, test_trace: Trace, tmp_path: Path
) -> None:
    surest = test_trace.confidence("softmax")
    beta = 0.35
    easy = SubsetConfig(finished, tmp_path / "easy.json", "easy", exit=2, beta=beta)
    hard = SubsetConfig(finished, tmp_path / "hard.json", "hard", beta=beta)
    said = Said()
    run_subset(easy, said)
    run_subset(hard, said)
    by_hand = np.flatnonzero((surest[:2] >= np.float32(beta)).any(0))
    assert positions(easy.out) == by_hand.tolist() != []
    by_hand = np.flatnonzero((surest < np.float32(beta)).all(0))
    assert positions(hard.out) == by_hand.tolist() != []
    assert said.starting(f"{len(positions(easy.out))} of 60 test samples are easy")
    listed = json.loads(easy.out.read_text())
    assert listed["chosen"] == {
        "difficulty": "easy",
        "setting": "every-exit, softmax, beta 0.35, start 1, fp32",
        "last_exit": 2,
    }


def test_without_beta_half_of_the_confidences_reach_it(finished: Path, tmp_path: Path) -> None:
    run_subset(SubsetConfig(finished, tmp_path / "easy.json"), silent)
    listed = json.loads((tmp_path / "easy.json").read_text())
    calibration = Trace(finished / "trace-calibration-fp32.npz").confidence("softmax")
    assert f"beta {np.median(calibration):.6g}" in listed["chosen"]["setting"]
    assert listed["chosen"]["last_exit"] == 1  # a quarter of five


@pytest.fixture
def hard(finished: Path, tmp_path: Path) -> Path:
    """The samples that reach the classifier."""
    out = tmp_path / "hard.json"
    run_subset(SubsetConfig(finished, out, "hard", beta=0.4), silent)
    assert 3 < len(positions(out)) < 60
    return out


def test_every_list_that_is_written_can_be_used(
    hard: Path, inputs: Inputs, tmp_path: Path
) -> None:
    assert not hasattr(SubsetConfig(hard, hard), "split"), "only test lists are taken by --subset"
    data = DataConfig(subset=hard)
    assert len(load_subject(inputs.vgg, data, CPU, silent).parts["test"]) == len(positions(hard))


@pytest.fixture
def on_hard(inputs: Inputs, hard: Path, tmp_path: Path) -> Path:
    """A run directory with the trace of the hard samples."""
    run = tmp_path / "run"
    run_trace(TraceConfig(run, inputs.vgg, data=DataConfig(subset=hard), device=CPU), silent)
    return run


def test_a_trace_of_the_hard_samples_is_that_of_all_cut_down(
    on_hard: Path, hard: Path, test_trace: Trace
) -> None:
    part = Trace(on_hard / "trace-test-fp32.npz")
    rows = positions(hard)
    assert part.indices.tolist() == rows
    assert (part.truth == test_trace.truth[rows]).all()
    assert (part.label == test_trace.label[:, rows]).all()
    # Other batches may add up in another order.
    np.testing.assert_allclose(
        part.confidence("softmax"), test_trace.confidence("softmax")[:, rows], rtol=1e-4
    )
    assert Trace(on_hard / "trace-calibration-fp32.npz").meta.samples == 12


def test_the_commands_that_follow_stay_on_the_subset(on_hard: Path, hard: Path) -> None:
    run_profile(ProfileConfig(on_hard, batch_sizes=(1,), seconds=0.1, device=CPU), silent)
    run_sweep(SweepConfig(on_hard, criteria=("softmax",), beta=("0.4",)), silent)
    rows = pd.read_csv(on_hard / "sweep.csv")
    test = rows[(rows.split == "test") & (rows.policy == "every-exit") & (rows.start_layer == 1)]
    count = len(positions(hard))
    # Hard are those that leave nowhere under this very setting.
    assert test.exit_histogram.tolist() == [f"0 0 0 0 0 {count}"]
    run_run(RunConfig(on_hard, settings=("full",), repeats=1, device=CPU), silent)
    (row,) = RunDirectory(on_hard, create=False).read_measurements()
    assert (row["samples"], row["same_decisions"]) == (count, 1.0)


def test_a_list_made_on_a_subset_speaks_of_the_whole_split(
    on_hard: Path, hard: Path, inputs: Inputs, tmp_path: Path
) -> None:
    config = SubsetConfig(on_hard, tmp_path / "harder.json", "hard", beta=0.5)
    run_subset(config, silent)
    listed = json.loads(config.out.read_text())
    assert listed["size"] == 60
    assert set(listed["positions"]) <= set(positions(hard))
    again = tmp_path / "again"
    data = DataConfig(subset=config.out)
    run_trace(TraceConfig(again, inputs.vgg, data=data, device=CPU), silent)
    assert Trace(again / "trace-test-fp32.npz").indices.tolist() == listed["positions"]


def test_the_whole_split_does_not_enter_the_run_directory_of_a_subset(
    on_hard: Path, inputs: Inputs
) -> None:
    message = refused(run_trace, TraceConfig(on_hard, inputs.vgg, device=CPU), silent)
    assert f"{on_hard} was made with other splits" in message


def test_another_subset_of_the_same_size_is_refused(
    on_hard: Path, hard: Path, inputs: Inputs, tmp_path: Path
) -> None:
    listed = json.loads(hard.read_text())
    moved = [position for position in range(60) if position not in listed["positions"]]
    moved = (moved + listed["positions"])[: len(listed["positions"])]
    other = tmp_path / "other.json"
    other.write_text(json.dumps(listed | {"positions": sorted(moved)}))
    before = (on_hard / "manifest.json").read_bytes()
    data = DataConfig(subset=other)
    message = refused(run_trace, TraceConfig(on_hard, inputs.vgg, data=data, device=CPU), silent)
    assert f"{on_hard} was made with other splits" in message
    assert "as many samples, but other ones, in test" in message
    assert (on_hard / "manifest.json").read_bytes() == before


def test_one_option_about_data_does_not_drop_the_others_of_the_trace(
    on_hard: Path, hard: Path, tmp_path: Path
) -> None:
    known = RunDirectory(on_hard, create=False)
    given = DataConfig(data_root=tmp_path)
    _, data, _ = traced_subject(known, None, given)
    assert data == DataConfig(data_root=tmp_path, subset=hard, split_seed=0)


def test_a_list_of_other_data_is_refused(inputs: Inputs, hard: Path, tmp_path: Path) -> None:
    copy = shutil.copy(inputs.npz, tmp_path / "copy.npz")
    data = DataConfig(dataset=f"npz:{copy}", subset=hard)
    config = TraceConfig(tmp_path / "run", inputs.vgg, data=data, device=CPU)
    message = refused(run_trace, config, silent)
    assert f"{hard} does not fit" in message
    assert inputs.dataset in message
    assert not config.run.exists()


def test_nothing_is_written_when_no_sample_is_that_easy_or_hard(
    finished: Path, tmp_path: Path
) -> None:
    easy = SubsetConfig(finished, tmp_path / "easy.json", beta=1.01)
    assert "Choose a later exit or a smaller beta" in refused(run_subset, easy, silent)
    hard = replace(easy, difficulty="hard", beta=0.1)
    assert "Choose a larger beta" in refused(run_subset, hard, silent)
    assert list(tmp_path.iterdir()) == []


def test_an_untraced_precision_names_the_trace_that_is_missing(
    finished: Path, tmp_path: Path
) -> None:
    config = SubsetConfig(finished, tmp_path / "easy.json", precision="int8")
    message = refused(run_subset, config, silent)
    assert f"no trace at {finished / 'trace-calibration-int8.npz'}" in message
    assert "record one with 'exitbench trace'" in message

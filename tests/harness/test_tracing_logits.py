"""``exitbench trace --logits``: networks of other frameworks judged by their logits alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from exitbench.harness.calibration import thresholds
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
from exitbench.harness.sweeping import run_sweep
from exitbench.harness.trace import Trace
from exitbench.harness.tracing import run_trace
from pipeline_fixtures import Said, cost_rows, refused, silent, write_cost

CALIBRATION = np.array(
    [
        [[3.0, 1.0, -1.0], [4.0, 0.0, 2.0], [9.0, 0.0, 0.0]],
        [[-5.0, 2.0, 0.0], [1.0, 6.0, 2.0], [0.0, 9.0, 0.0]],
    ],
    dtype=np.float32,
)


def save(path: Path, logits: Any, labels: Any, **others: Any) -> Path:
    np.savez(path, logits=logits, labels=labels, **others)
    return path


def random_logits(samples: int = 40, exits: int = 3, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Logits of three classes that grow surer with depth, and labels."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, samples)
    logits = generator.normal(size=(samples, exits + 1, 3)).astype(np.float32)
    logits[np.arange(samples), :, labels] += np.linspace(0.5, 5, exits + 1, dtype=np.float32)
    return logits, labels


@pytest.fixture
def config(tmp_path: Path) -> TraceConfig:
    """40 samples of 3 exits in one file, and a cost table of MACs alone."""
    return TraceConfig(
        tmp_path / "run",
        logits=save(tmp_path / "logits.npz", *random_logits()),
        cost=write_cost(tmp_path / "cost.csv", cost_rows([100, 200, 300, 400], [10, 20, 30])),
    )


@pytest.fixture
def by_hand(tmp_path: Path) -> TraceConfig:
    """Two calibration samples and one test sample of 2 exits."""
    return TraceConfig(
        tmp_path / "run",
        logits=save(tmp_path / "test.npz", CALIBRATION[:1] * 2, [0]),
        calibration_logits=save(tmp_path / "calibration.npz", CALIBRATION, [0, 1]),
        cost=write_cost(tmp_path / "cost.csv", cost_rows([100, 200, 300], [10, 20])),
    )


def test_thresholds_of_every_criterion_by_hand(by_hand: TraceConfig) -> None:
    run_trace(by_hand, silent)
    found = thresholds(Trace(by_hand.run / "trace-calibration-fp32.npz"))
    assert {name: values.tolist() for name, values in found.items()} == {
        "softmax": [1.0, 1.0],
        "margin": [1.0, 1.0],
        "entropy": [1.0, 1.0],
        # Mean of the largest logits: (3 + 2) / 2 and (4 + 6) / 2.
        "activation": [2.5, 5.0],
        # Mean of all logits, (3 + 1 - 1 - 5 + 2 + 0) / 6 = 0 and 15 / 6.
        "reference": [0.0, 2.5],
    }


def test_thresholds_are_never_taken_from_the_test_split(by_hand: TraceConfig) -> None:
    run_trace(by_hand, silent)
    path = by_hand.run / "trace-test-fp32.npz"
    message = refused(thresholds, Trace(path))
    assert f"{path} is a trace of the test split" in message
    assert "calibration split only" in message


def test_two_files_are_the_two_splits(by_hand: TraceConfig) -> None:
    run_trace(by_hand, silent)
    calibration, test = (
        Trace(by_hand.run / f"trace-{split}-fp32.npz") for split in ("calibration", "test")
    )
    assert calibration.label.tolist() == CALIBRATION.argmax(-1).T.tolist()
    assert (calibration.truth.tolist(), test.truth.tolist()) == ([0, 1], [0])
    assert test.confidence("activation")[:, 0].tolist() == [6.0, 8.0]
    assert test.meta.exit_names == ("exit 1", "exit 2", "classifier")


def test_one_file_is_cut_into_disjoint_halves_by_the_seed(config: TraceConfig) -> None:
    said = Said()
    run_trace(config, said)
    parts = [Trace(config.run / f"trace-{split}-fp32.npz") for split in ("calibration", "test")]
    positions = [trace.indices.tolist() for trace in parts]
    assert sorted(positions[0] + positions[1]) == list(range(40))
    assert len(positions[0]) == len(positions[1]) == 20
    logits, labels = random_logits()
    for trace in parts:
        assert (trace.truth == labels[trace.indices]).all()
        assert (trace.label == logits[trace.indices].argmax(-1).T).all()
    assert said.starting(f"trace: {config.logits} is cut in halves")
    again = replace(config, run=config.run.parent / "again", data=DataConfig(split_seed=1))
    run_trace(again, silent)
    assert Trace(again.run / "trace-test-fp32.npz").indices.tolist() != positions[1]


def test_from_logits_to_a_priced_sweep_a_comparison_and_a_subset(config: TraceConfig) -> None:
    run_trace(config, silent)
    said = Said()
    run_sweep(SweepConfig(config.run, criteria=("softmax",), beta_count=6), said)
    rows = pd.read_csv(config.run / "sweep.csv")
    full = rows[(rows.policy == "full") & (rows.split == "test")].iloc[0]
    assert full.macs == 100 + 200 + 300 + 400 + 5
    second = rows[(rows.policy == "fixed") & (rows.start_layer == 2)]
    assert second.macs.tolist() == [100 + 200 + 20] * 2
    # What the table does not say is empty, not 0.
    assert rows[["flops", "latency_ms"]].isna().all(axis=None)
    assert rows.energy_mj.isna().all()
    assert (rows.energy_source == "unavailable").all()
    assert set(rows.samples) == {20}
    comparison = pd.read_csv(config.run / "comparison.csv")
    assert {"full", "every-exit", "every-exit-best", "recommended"} <= set(comparison.role)
    assert (comparison.split == "test").all()
    assert (config.run / "prediction.csv").is_file()
    assert said.starting("recommended: ")
    out = config.run.parent / "hard.json"
    run_subset(SubsetConfig(config.run, out, "hard", beta=0.9), silent)
    listed = json.loads(out.read_text())
    # The list speaks of the file of logits, not of its half.
    assert listed["size"] == 40
    assert listed["dataset"] == str(config.logits)
    trace = Trace(config.run / "trace-test-fp32.npz")
    hard = (trace.confidence("softmax") < 0.9).all(0)
    assert listed["positions"] == trace.indices[hard].tolist()


def test_a_table_with_energies_prices_a_sweep_with_their_source(config: TraceConfig) -> None:
    rows = cost_rows(
        [100, 200, 300, 400], [10, 20, 30], energy_mj=lambda kind, index: 2.0,
        energy_source=lambda kind, index: "measured",
    )  # fmt: skip
    run_trace(replace(config, cost=write_cost(config.run.parent / "e.csv", rows)), silent)
    run_sweep(SweepConfig(config.run, criteria=("margin",), beta=("0.5",)), silent)
    table = pd.read_csv(config.run / "sweep.csv")
    assert (table.energy_source == "measured").all()
    assert table[table.policy == "full"].energy_mj.tolist() == [10.0, 10.0]


def test_the_run_directory_tells_where_its_numbers_come_from(config: TraceConfig) -> None:
    run_trace(config, silent)
    manifest = json.loads((config.run / "manifest.json").read_text())
    assert manifest["checkpoint"]["path"] == str(config.logits)
    assert manifest["checkpoint"]["model"] == "logits"
    assert manifest["exit_names"] == ["exit 1", "exit 2", "exit 3", "classifier"]
    assert manifest["commands"]["trace"]["finished"] is not None
    assert sorted(manifest["checksums"]) == [
        "cost.csv", "trace-calibration-fp32.npz", "trace-test-fp32.npz",
    ]  # fmt: skip


def test_raw_logits_are_kept_on_request(config: TraceConfig) -> None:
    run_trace(replace(config, keep_logits=True), silent)
    trace = Trace(config.run / "trace-test-fp32.npz")
    assert (trace.array("logits") == random_logits()[0][trace.indices]).all()


def test_a_limit_thins_out_both_splits(config: TraceConfig) -> None:
    run_trace(replace(config, limit=5), silent)
    for split in ("calibration", "test"):
        assert Trace(config.run / f"trace-{split}-fp32.npz").meta.samples == 5


def test_other_floating_point_types_and_label_types_are_read(config: TraceConfig) -> None:
    logits, labels = random_logits()
    path = save(config.run.parent / "half.npz", logits.astype(np.float16), labels.astype(np.uint8))
    run_trace(replace(config, logits=path), silent)
    assert Trace(config.run / "trace-test-fp32.npz").meta.samples == 20


LOGITS, LABELS = random_logits(6)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"logits": LOGITS}, ["lacks the array(s) labels", "labels (N,)"]),
        ({"labels": LABELS}, ["lacks the array(s) logits", "(N, exits + 1, classes)"]),
        ({"logits": LOGITS[:, 0], "labels": LABELS}, ["shape (6, 3)", "(N, exits + 1, classes)"]),
        ({"logits": LOGITS[:, :1], "labels": LABELS}, ["shape (6, 1, 3)"]),
        ({"logits": LOGITS[:0], "labels": LABELS[:0]}, ["shape (0, 4, 3)"]),
        ({"logits": LOGITS, "labels": LABELS[:5]}, ["labels have shape (5,), expected (6,)"]),
        ({"logits": LOGITS.astype(int), "labels": LABELS}, ["int64, expected floating point"]),
        ({"logits": LOGITS, "labels": LABELS * 1.0}, ["float64, expected integers"]),
        ({"logits": LOGITS * np.nan, "labels": LABELS}, ["not finite"]),
        ({"logits": LOGITS, "labels": LABELS + 1}, ["labels run from 1 to 3, expected 0 to 2"]),
        ({"logits": LOGITS, "labels": LABELS - 1}, ["labels run from -1 to 1, expected 0 to 2"]),
        (
            {"logits": LOGITS.astype(int), "labels": LABELS[:2] * 1.0},
            ["shape (2,)", "expected floating point", "expected integers"],
        ),
    ],
)
def test_faulty_arrays_are_named_with_their_file(
    config: TraceConfig, arrays: dict[str, np.ndarray], words: list[str]
) -> None:
    path = config.run.parent / "faulty.npz"
    np.savez(path, **arrays)
    message = refused(run_trace, replace(config, logits=path), silent)
    assert message.startswith(str(path))
    for part in words:
        assert part in message
    assert not config.run.exists()


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "npy", "cut", "pickled"])
def test_a_file_that_is_no_npz_of_arrays_is_refused(config: TraceConfig, kind: str) -> None:
    path = config.run.parent / "odd.npz"
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("logits")
    elif kind == "npy":
        with path.open("wb") as handle:
            np.save(handle, LOGITS)
    elif kind == "cut":
        np.savez_compressed(path, logits=LOGITS, labels=LABELS)
        path.write_bytes(path.read_bytes()[:-60])
    elif kind == "pickled":
        np.savez(path, logits=np.array([{"harm": 1}], dtype=object), labels=LABELS)
    message = refused(run_trace, replace(config, logits=path), silent)
    assert f"cannot read {path} as an npz file of arrays" in message
    assert "numpy.savez" in message
    assert not config.run.exists()


def test_a_text_file_brings_no_advice_to_unpickle_it(config: TraceConfig) -> None:
    path = config.run.parent / "c.csv"
    path.write_text("logits,labels\n1,2\n")
    message = refused(run_trace, replace(config, logits=path), silent)
    assert "no npz file" in message
    assert "allow_pickle" not in message
    assert "unsafe" not in message


def test_a_list_of_samples_cuts_the_test_half_down(config: TraceConfig) -> None:
    run_trace(config, silent)
    run_sweep(SweepConfig(config.run, criteria=("softmax",), beta=("0.8",)), silent)
    hard = config.run.parent / "hard.json"
    run_subset(SubsetConfig(config.run, hard, "hard", beta=0.9), silent)
    listed = json.loads(hard.read_text())["positions"]
    part = replace(config, run=config.run.parent / "hard", data=DataConfig(subset=hard))
    run_trace(part, silent)
    assert Trace(part.run / "trace-test-fp32.npz").indices.tolist() == listed
    assert Trace(part.run / "trace-calibration-fp32.npz").meta.samples == 20
    other = replace(
        part, run=config.run.parent / "new", data=DataConfig(subset=hard, split_seed=1)
    )
    message = refused(run_trace, other, silent)
    assert f"{hard} names samples of the half" in message
    assert not other.run.exists()


def test_a_damaged_compressed_file_is_refused(config: TraceConfig) -> None:
    path = config.run.parent / "damaged.npz"
    np.savez_compressed(path, logits=random_logits(400)[0], labels=LABELS)
    whole = bytearray(path.read_bytes())
    whole[200:300] = b"\x00" * 100
    path.write_bytes(whole)
    message = refused(run_trace, replace(config, logits=path), silent)
    assert f"cannot read {path} as an npz file of arrays" in message


def test_logits_need_a_cost_table(config: TraceConfig) -> None:
    message = refused(run_trace, replace(config, cost=None), silent)
    assert "--logits needs --cost" in message
    assert "kind, index and macs" in message


def test_a_cost_table_of_another_number_of_exits_is_refused(config: TraceConfig) -> None:
    cost = write_cost(config.run.parent / "two.csv", cost_rows([1, 2, 3], [1, 2]))
    message = refused(run_trace, replace(config, cost=cost), silent)
    assert f"{cost} prices 2 exits" in message
    assert f"{config.logits} holds logits of 3 exits and the classifier" in message
    assert not config.run.exists()


def test_a_cost_table_of_another_precision_is_refused(config: TraceConfig) -> None:
    message = refused(run_trace, replace(config, precisions=("int8",)), silent)
    assert "has no rows for int8" in message
    assert "fp32, batch 1" in message


def test_calibration_logits_of_another_network_are_refused(config: TraceConfig) -> None:
    other = save(config.run.parent / "other.npz", *random_logits(6, exits=2))
    message = refused(run_trace, replace(config, calibration_logits=other), silent)
    assert f"{other} holds logits (N, 3, 3)" in message
    assert f"{config.logits} (N, 4, 3)" in message
    assert "same network" in message


def test_one_sample_cannot_be_two_splits(config: TraceConfig) -> None:
    path = save(config.run.parent / "one.npz", LOGITS[:1], LABELS[:1])
    message = refused(run_trace, replace(config, logits=path), silent)
    assert f"{path} holds one sample" in message
    assert "--calibration-logits" in message


@pytest.mark.parametrize("both", [True, False])
def test_exactly_one_of_checkpoint_and_logits_is_needed(config: TraceConfig, both: bool) -> None:
    wrong = replace(config, checkpoint=Path("net.safetensors"))
    if not both:
        wrong = replace(config, logits=None)
    message = refused(run_trace, wrong, silent)
    assert "either --checkpoint" in message
    assert "or --logits" in message


def test_logits_are_of_one_precision(config: TraceConfig) -> None:
    message = refused(run_trace, replace(config, precisions=("fp32", "bf16")), silent)
    assert "name it alone in --precisions" in message


def test_logits_of_another_network_do_not_enter_a_run_directory(config: TraceConfig) -> None:
    run_trace(config, silent)
    before = (config.run / "trace-test-fp32.npz").read_bytes()
    other = save(config.run.parent / "other.npz", *random_logits(seed=1))
    message = refused(run_trace, replace(config, logits=other), silent)
    assert f"{config.run} was made with another network" in message
    assert "choose another run directory" in message
    assert (config.run / "trace-test-fp32.npz").read_bytes() == before


def test_there_is_no_network_to_run_or_to_profile(config: TraceConfig) -> None:
    run_trace(config, silent)
    run_sweep(SweepConfig(config.run, criteria=("softmax",), beta=("0.8",)), silent)
    for call, other in ((run_run, RunConfig(config.run)), (run_profile, ProfileConfig(config.run))):
        message = refused(call, other, silent)
        assert f"{config.run} was made from logits" in message
        assert "no network to run" in message

"""The trace file: what goes in comes out, memory stays bounded, damage is named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from exitbench.harness.criteria import CRITERIA, encode_rounds
from exitbench.harness.errors import ExitbenchError
from exitbench.harness.predictors import convolution_stack, convolve
from exitbench.harness.trace import Trace, TraceMeta, TraceWriter, writing
from pipeline_fixtures import leftovers, refused, sure, trace_of


def meta_of(samples: int, exits: int, classes: int, horizon: int = 8) -> TraceMeta:
    names = (*(f"conv{number}" for number in range(1, exits + 1)), "classifier")
    return TraceMeta(
        "test", "fp32", samples, exits, classes, (1.0, 1.0, 1.0), horizon, "digits", "abc", names
    )


def write(path: Path, logits: np.ndarray, keep: bool = False, batch: int = 3) -> np.ndarray:
    """A trace of logits (N, E + 1, classes), batch by batch; its labels."""
    samples, depth, classes = logits.shape
    truth = np.arange(samples) % classes
    meta = meta_of(samples, depth - 1, classes)
    with writing(path, meta, truth, np.arange(samples) + 100, keep) as writer:
        for start in range(0, samples, batch):
            for exit in range(1, depth + 1):
                part = torch.from_numpy(logits[start : start + batch, exit - 1])
                writer.add(exit, start, part)
    return truth


@pytest.fixture
def logits() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(8, 4, 5)).astype(np.float32) * 3


@pytest.fixture
def path(tmp_path: Path, logits: np.ndarray) -> Path:
    write(tmp_path / "trace.npz", logits)
    return tmp_path / "trace.npz"


def test_what_was_recorded_is_read_again(tmp_path: Path, logits: np.ndarray) -> None:
    truth = write(tmp_path / "trace.npz", logits)
    trace = Trace(tmp_path / "trace.npz")
    assert trace.meta == meta_of(8, 3, 5)
    assert (trace.truth == truth).all()
    assert trace.indices.tolist() == list(range(100, 108))
    assert (trace.label == logits.argmax(-1).T).all()
    assert (trace.correct() == (truth == logits.argmax(-1).T)).all()
    stack = convolution_stack(5)
    for name, criterion in CRITERIA.items():
        heads = torch.from_numpy(logits[:, :3])
        assert (trace.confidence(name) == criterion.confidence(heads).numpy().T).all()
        for exit in range(3):
            rounds = criterion.confidence(convolve(heads[:, exit], stack))
            stored = encode_rounds(name, rounds).numpy()
            # einsum may add up in another order for another batch size: a step of float16.
            np.testing.assert_allclose(trace.rounds(name)[exit], stored, rtol=2e-3, atol=1e-6)
    # Sums of 40 float32 values in float64.
    np.testing.assert_allclose(
        trace.array("logit_mean"), logits[:, :3].mean((0, 2), dtype=np.float64), rtol=1e-9
    )


def test_a_trace_does_not_depend_on_the_batches_it_came_in(
    tmp_path: Path, logits: np.ndarray
) -> None:
    for batch in (1, 8):
        write(tmp_path / f"{batch}.npz", logits, batch=batch)
    one, eight = Trace(tmp_path / "1.npz"), Trace(tmp_path / "8.npz")
    for name in ("label", "truth", *(f"confidence_{name}" for name in CRITERIA)):
        assert (one.array(name) == eight.array(name)).all()


def test_logits_are_stored_on_request_only(tmp_path: Path, logits: np.ndarray) -> None:
    write(tmp_path / "without.npz", logits)
    write(tmp_path / "with.npz", logits, keep=True)
    without, kept = Trace(tmp_path / "without.npz"), Trace(tmp_path / "with.npz")
    assert (kept.array("logits") == logits).all()
    assert kept.holds("logits")
    assert not without.holds("logits")
    assert "lacks the array 'logits'" in refused(without.array, "logits")


def test_imagenet_with_32_exits_stays_well_under_300_mb(tmp_path: Path) -> None:
    samples, exits, classes = 2, 32, 1000
    write(tmp_path / "trace.npz", np.zeros((samples, exits + 1, classes), np.float32))
    with np.load(tmp_path / "trace.npz") as file:
        arrays = {name: file[name] for name in file.files if name != "meta"}
    per_sample = sum(a.nbytes for n, a in arrays.items() if n != "logit_mean") / samples
    # 5 confidences of 4 bytes and 5 x 8 rounds of 2 bytes at every exit, and the answers.
    assert per_sample == 32 * (5 * 4 + 5 * 8 * 2) + 33 * 2 + 2 * 8
    assert per_sample * 50_000 < 200e6
    assert "logits" not in arrays
    # No other array grows with the number of classes.
    assert all(classes not in array.shape for array in arrays.values())


def test_all_that_grows_with_the_samples_lies_on_disk(tmp_path: Path) -> None:
    meta = meta_of(500, 6, 10)
    writer = TraceWriter(meta, np.zeros(500, int), np.arange(500), tmp_path, keep_logits=True)
    held = [writer._label, *writer._confidence.values(), *writer._rounds.values(), writer._logits]
    assert all(isinstance(array, np.memmap) for array in held)
    arrays = [value for value in vars(writer).values() if isinstance(value, np.ndarray)]
    in_memory = [array for array in arrays if not isinstance(array, np.memmap)]
    assert [array.shape for array in in_memory] == [(6,)]


def test_memory_holds_a_batch_not_a_split(tmp_path: Path) -> None:
    meta = meta_of(50_000, 4, 10)
    truth = np.zeros(meta.samples, np.int64)
    tracemalloc.start()
    try:
        with writing(tmp_path / "trace.npz", meta, truth, truth) as writer:
            for exit in range(1, 6):
                writer.add(exit, 0, torch.randn(64, 10))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / "trace.npz").stat().st_size > 20e6
    assert peak < 4e6


def test_an_interrupted_trace_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, logits: np.ndarray
) -> None:
    path = tmp_path / "trace.npz"
    write(path, logits)
    before = path.read_bytes()

    def interrupted() -> None:
        with writing(path, meta_of(8, 3, 5), np.zeros(8, int), np.arange(8)) as writer:
            writer.add(1, 0, torch.zeros(4, 5))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["trace.npz"]


def test_a_first_trace_that_is_interrupted_leaves_no_file(tmp_path: Path) -> None:
    def broken() -> None:
        with writing(tmp_path / "t.npz", meta_of(4, 2, 3), np.zeros(4, int), np.arange(4)) as w:
            w.add(2, 1, torch.tensor([[0.0, float("nan"), 1.0]]))

    message = refused(broken)
    assert "exit 2 gives logits that are not finite for samples 1 to 1" in message
    assert "precision fp32" in message
    assert "train it again" in message
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_swept_up_but_not_that_of_a_living_one(
    tmp_path: Path, logits: np.ndarray
) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left, living = (tmp_path / f".trace-{pid}-abc" for pid in (dead.pid, os.getpid()))
    for folder in (left, living):
        folder.mkdir()
        (folder / "label.npy").write_bytes(b"half")
    write(tmp_path / "trace.npz", logits)
    assert leftovers(tmp_path) == [living.name]


def test_a_missing_trace_says_which_command_records_one(tmp_path: Path) -> None:
    message = refused(Trace, tmp_path / "trace-test-fp32.npz")
    assert f"no trace at {tmp_path / 'trace-test-fp32.npz'}" in message
    assert "'exitbench trace'" in message


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_trace_is_no_complete_trace(path: Path, share: float) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    message = refused(Trace, path)
    assert f"{path} is not a complete trace" in message
    assert "delete it and record it again" in message


def test_a_file_of_another_kind_is_no_trace(tmp_path: Path) -> None:
    text, array, other = (tmp_path / name for name in ("a.npz", "b.npz", "c.npz"))
    text.write_text("accuracy,energy\n")
    with array.open("wb") as handle:
        np.save(handle, np.zeros(3))
    np.savez(other, x_train=np.zeros(3))
    for path in (text, array, other, tmp_path):
        assert f"{path} is not a complete trace" in refused(Trace, path)


def change_meta(path: Path, change: dict[str, object], drop: str | None = None) -> None:
    with np.load(path) as file:
        arrays = dict(file)
    fields = {**json.loads(str(arrays["meta"])), **change}
    fields.pop(drop, None)
    np.savez(path, **{**arrays, "meta": np.array(json.dumps(fields))})


def test_a_trace_of_another_schema_says_which_this_version_reads(path: Path) -> None:
    change_meta(path, {"schema": 2})
    message = refused(Trace, path)
    assert f"{path}: trace schema 2, this version of exitbench reads 1" in message
    assert "record it again" in message


@pytest.mark.parametrize("name", ["kernel", "exits"])
def test_a_trace_that_does_not_say_what_it_is_of_is_refused(path: Path, name: str) -> None:
    change_meta(path, {}, drop=name)
    message = refused(Trace, path)
    assert f"{path}: what the trace says of itself is incomplete" in message
    assert name in message


def test_a_damaged_array_is_named(path: Path) -> None:
    whole = bytearray(path.read_bytes())
    at = whole.find(b"rounds_margin.npy") + 400  # well behind the array's own header
    whole[at] ^= 0xFF
    path.write_bytes(whole)
    trace = Trace(path)
    assert len(trace.truth) == 8
    with pytest.raises(ExitbenchError, match=r"lacks the array 'rounds_margin' or it is damaged"):
        trace.rounds("margin")


def test_forgotten_arrays_are_read_again(path: Path) -> None:
    trace = Trace(path)
    first = trace.confidence("softmax")
    assert trace.confidence("softmax") is first
    trace.forget("softmax")
    assert trace.confidence("softmax") is not first
    assert (trace.confidence("softmax") == first).all()


def test_the_answers_of_more_than_256_classes_are_kept_whole(tmp_path: Path) -> None:
    logits = np.zeros((1, 2, 300), np.float32)
    logits[0, 0, 299] = logits[0, 1, 256] = 1
    write(tmp_path / "trace.npz", logits)
    assert Trace(tmp_path / "trace.npz").label[:, 0].tolist() == [299, 256]


def test_a_trace_of_logits_by_hand(tmp_path: Path) -> None:
    trace = trace_of(tmp_path, "test", [[sure(0.9), sure(0.6, 1)]], [1])
    assert trace.label[:, 0].tolist() == [0, 1]
    assert trace.correct()[:, 0].tolist() == [False, True]
    # float32 has 24 bits.
    assert trace.confidence("softmax")[0, 0] == pytest.approx(0.9, rel=1e-6)
    assert trace.confidence("margin")[0, 0] == pytest.approx(0.8, rel=1e-6)

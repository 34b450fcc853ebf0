"""``exitbench trace``: from a network, or from logits of any framework, to traces."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .calibration import CALIBRATION
from .configs import TraceConfig
from .costs import CostTable
from .environment import environment
from .errors import ExitbenchError
from .files import sha256
from .options import to_plain
from .predictors import convolution_stack
from .rundir import RunDirectory
from .subject import Subject, load_subject, usable_precisions
from .trace import Trace, TraceMeta, read_logits, record, trace_logits, writing

Say = Callable[[str], None]
SPLITS = (CALIBRATION, "test")


def run_trace(config: TraceConfig, say: Say) -> None:
    """Record the evidence of both splits at every exit, per precision.

    A trace that is there already and was recorded in the same way is kept.

    Raises:
        ExitbenchError: the network, the data, the device or the logits cannot be used.
    """
    if (config.checkpoint is None) == (config.logits is None):
        raise ExitbenchError(
            "give either --checkpoint, a network with exits, or --logits, the logits of one"
        )
    convolution_stack(2, config.kernel, config.horizon)  # refuses a wrong kernel or horizon early
    if config.batch_size < 1:
        raise ExitbenchError(f"batch size is {config.batch_size}; it must be at least 1")
    if config.logits is not None:
        _from_logits(config, config.logits, say)
        return
    assert config.checkpoint is not None
    subject = load_subject(config.checkpoint, config.data, config.device, say, config.limit)
    directory = RunDirectory(config.run)
    directory.begin(
        "trace", to_plain(config), environment(str(subject.device), subject.threads)
    )
    note_subject(directory, subject)
    precisions, _ = usable_precisions(config.precisions, subject.device, True, say)
    trace_subject(directory, subject, precisions, config, say)
    directory.finish("trace")


def note_subject(directory: RunDirectory, subject: Subject) -> None:
    """Put network, data and exits into the manifest.

    Raises:
        ExitbenchError: the directory belongs to another network or other data.
    """
    known = directory.manifest.get("checkpoint", {})
    data = {name: len(part) for name, part in subject.parts.items()}
    for what, old, new in (
        ("network", known.get("sha256"), subject.digest),
        ("dataset", known.get("dataset"), subject.dataset),
        ("splits", known.get("samples"), data),
    ):
        if old is not None and old != new:
            raise ExitbenchError(
                f"{directory.path} was made with another {what} ({old}, now {new}); choose another "
                "run directory, or delete this one"
            )
    training = subject.checkpoint.training
    directory.update(
        checkpoint={
            "path": str(subject.path),
            "sha256": subject.digest,
            "model": subject.checkpoint.model,
            "arguments": to_plain(subject.checkpoint.arguments),
            "dataset": subject.dataset,
            "samples": data,
            "training": {key: value for key, value in training.items() if key != "history"},
        },
        exit_names=list(subject.exit_names),
    )


def trace_subject(
    directory: RunDirectory,
    subject: Subject,
    precisions: list[str],
    config: TraceConfig,
    say: Say,
) -> dict[str, Any]:
    """Record both splits in every precision; gives the prepared networks by precision."""
    prepared = {}
    for precision in precisions:
        prepared[precision] = subject.prepare(precision)
        say(f"{precision}: {prepared[precision].words}")
        directory.update(
            precisions={
                precision: {
                    "runtime": prepared[precision].name,
                    "available": True,
                    "reason": None,
                    "words": prepared[precision].words,
                }
            }
        )
        for split in SPLITS:
            _record(directory, subject, split, precision, prepared[precision], config, say)
    return prepared


def _record(
    directory: RunDirectory,
    subject: Subject,
    split: str,
    precision: str,
    prepared: Any,
    config: TraceConfig,
    say: Say,
) -> None:
    part = subject.parts[split]
    path = directory.trace(split, precision)
    meta = TraceMeta(
        split=split,
        precision=precision,
        samples=len(part),
        exits=subject.network.num_exits,
        classes=subject.network.classes,
        kernel=config.kernel,
        horizon=config.horizon,
        dataset=subject.dataset,
        network=subject.digest,
        exit_names=subject.exit_names,
    )
    if _is_there(path, meta, part.indices):
        say(f"trace {split} {precision}: already there")
        return
    say(f"trace {split} {precision}: {len(part)} images, {meta.exits} exits")
    with writing(path, meta, part.labels, part.indices, config.keep_logits) as writer:
        record(writer, subject.batches(split, config.batch_size), prepared)
    trace = Trace(path)
    final = float(trace.correct()[-1].mean())
    say(f"trace {split} {precision}: accuracy of the full network {final:.2%}")


def _is_there(path: Path, meta: TraceMeta, indices: np.ndarray) -> bool:
    if not path.is_file():
        return False
    try:
        trace = Trace(path)
        return trace.meta == meta and np.array_equal(trace.indices, indices)
    except ExitbenchError:
        return False


def _from_logits(config: TraceConfig, path: Path, say: Say) -> None:
    if config.cost is None:
        raise ExitbenchError(
            "--logits needs --cost, a cost table (CSV) of the same network; docs/counting.md "
            "describes its columns, of which kind, index and macs are enough"
        )
    if len(config.precisions) != 1:
        raise ExitbenchError("--logits are of one precision; name it alone in --precisions")
    costs = CostTable.read(config.cost)
    logits, labels = read_logits(path)
    positions = np.arange(len(logits))
    if config.calibration_logits is not None:
        first, first_labels = read_logits(config.calibration_logits)
        if first.shape[1:] != logits.shape[1:]:
            raise ExitbenchError(
                f"{config.calibration_logits} holds logits (N, {first.shape[1]}, "
                f"{first.shape[2]}), {path} (N, {logits.shape[1]}, {logits.shape[2]}); they must "
                "be of the same network"
            )
        parts = {
            CALIBRATION: (first, first_labels, np.arange(len(first))),
            "test": (logits, labels, positions),
        }
    else:
        if len(logits) < 2:
            raise ExitbenchError(f"{path} holds one sample; two splits need at least two")
        chosen = np.zeros(len(logits), dtype=bool)
        order = np.random.default_rng(config.data.split_seed).permutation(len(logits))
        chosen[order[: len(logits) // 2]] = True
        parts = {
            split: (logits[rows], labels[rows], positions[rows])
            for split, rows in ((CALIBRATION, chosen), ("test", ~chosen))
        }
        say(f"trace: {path} is cut in halves, one to choose settings on and one to report on")
    exits, classes = logits.shape[1] - 1, logits.shape[2]
    precision = config.precisions[0]
    priced = costs.select(precision).exits
    if priced != exits:
        raise ExitbenchError(
            f"{config.cost} prices {priced} exits, but {path} holds logits of {exits} exits and "
            "the classifier"
        )
    directory = RunDirectory(config.run)
    directory.begin("trace", to_plain(config), environment())
    names = (*(f"exit {number}" for number in range(1, exits + 1)), "classifier")
    directory.update(
        checkpoint={"path": str(path), "sha256": sha256(path), "model": "logits", "dataset": ""},
        exit_names=list(names),
        precisions={
            precision: {"runtime": "none", "available": True, "reason": None, "words": "logits"}
        },
    )
    for split, (values, truth, indices) in parts.items():
        meta = TraceMeta(
            split, precision, len(values), exits, classes, config.kernel, config.horizon,
            str(path), sha256(path), names,
        )  # fmt: skip
        trace_logits(directory.trace(split, precision), values, truth, indices, meta)
        say(f"trace {split} {precision}: {len(values)} samples, {exits} exits")
    costs.write(directory.cost)
    directory.finish("trace")

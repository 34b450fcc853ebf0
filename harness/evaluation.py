"""Evaluating one setting of one checkpoint, live, without a run directory."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .calibration import CALIBRATION, thresholds
from .configs import DataConfig, DeviceConfig
from .errors import ExitbenchError
from .evidence import IntArray
from .judging import Judged, judge
from .policies import Full, Policy, Predictive
from .predictors import DEFAULT_HORIZON, DEFAULT_KERNEL, convolution_stack
from .scheduler import LayerStatistics, Outcome, merge, walk
from .settings import Setting, make_policy, true_leaves
from .sources import LiveSource
from .subject import Subject, load_subject
from .trace import Trace, TraceMeta, record, writing

Say = Callable[[str], None]


@dataclass(frozen=True)
class Evaluation:
    """What a setting does on the test split.

    Attributes:
        setting: what was evaluated.
        samples: how many test images.
        accuracy: share of right answers, 0..1.
        mean_exit: mean exit number, the classifier counting as E + 1.
        seconds: wall-clock time of the run; None in forward mode ``accuracy``.
        stat_each_layer: one row per exit, empty if not asked for.
        prediction_accuracy: share of forecasts that named the right exit; None if none was judged.
        confusion: forecast jump (row) against true jump (column), both from 1; None likewise.
        exit_names: names of the exits, the classifier last.
        histogram: samples that left at each exit, the classifier last.
    """

    setting: Setting
    samples: int
    accuracy: float
    mean_exit: float
    seconds: float | None
    stat_each_layer: list[dict[str, Any]]
    prediction_accuracy: float | None
    confusion: list[list[int]] | None
    exit_names: tuple[str, ...]
    histogram: tuple[int, ...]

    def lines(self) -> list[str]:
        """The result in lines for people."""
        lines = [
            self.setting.words(),
            f"accuracy {self.accuracy:.2%} on {self.samples} test images, mean exit "
            f"{self.mean_exit:.2f} of {len(self.exit_names)}",
        ]
        if self.seconds is not None:
            lines.append(f"time {self.seconds:.3f} s, batch by batch, images ready in memory")
        if self.prediction_accuracy is not None:
            lines.append(f"prediction accuracy {self.prediction_accuracy:.2%}")
        if self.stat_each_layer:
            lines += _statistics_lines(self)
        return lines


def _statistics_lines(evaluation: Evaluation) -> list[str]:
    columns = (
        "checked", "left", "correct", "mean_confidence", "mean_forecast", "mean_true_jump",
    )  # fmt: skip
    lines = ["exit  " + "  ".join(f"{name:>15}" for name in columns)]
    for row in evaluation.stat_each_layer:
        cells = []
        for name in columns:
            value = row[name]
            form = "-" if value is None else f"{value:.3f}" if isinstance(value, float) else value
            cells.append(f"{form:>15}")
        lines.append(f"{row['exit']:>4}  " + "  ".join(cells))
    return lines


def evaluate_checkpoint(
    checkpoint: Path,
    *,
    policy: str,
    criterion: str,
    beta: float | None,
    start_layer: int,
    predictor: str,
    precision: str,
    data: DataConfig,
    device: DeviceConfig,
    batch_size: int = 64,
    forward_mode: str = "normal",
    stat_each_layer: bool = False,
    limit: int | None = None,
    say: Say,
) -> Evaluation:
    """One setting evaluated on the test split, thresholds taken on the calibration split.

    Forward mode ``normal`` runs with the policy. ``accuracy`` runs every exit and judges the
    forecasts that are made at ``start_layer``.

    Raises:
        ExitbenchError: the checkpoint, the data, the device, or a value of the setting is wrong.
    """
    if batch_size < 1:
        raise ExitbenchError(f"batch size is {batch_size}; it must be at least 1")
    subject = load_subject(checkpoint, data, device, say, limit, needs_exits=policy != "full")
    setting = Setting(policy, precision=precision)
    if policy != "full":
        setting = replace(setting, criterion=criterion, beta=beta, start_layer=start_layer)
    if policy == "predictive":
        setting = replace(setting, predictor=predictor)
    prepared = subject.prepare(precision)
    say(f"{precision}: {prepared.words}")
    judging = forward_mode == "accuracy"
    with tempfile.TemporaryDirectory(prefix="exitbench-") as folder:
        bench = _Bench(subject, prepared, Path(folder), batch_size, say)
        made = _make(bench, setting, judging, judging or stat_each_layer)
    truth = subject.parts["test"].labels
    statistics = LayerStatistics(subject.network.num_exits, truth, made.leaves)
    observe = statistics if stat_each_layer else None
    outcome, seconds = _run(subject, prepared, setting, made.policy, batch_size, observe)
    judged = made.judged
    right = outcome.label == truth
    confusion = None
    if judged is not None:
        confusion = judged.confusion
    elif stat_each_layer and made.leaves is not None:
        confusion = statistics.confusion
    return Evaluation(
        setting=setting,
        samples=len(right),
        accuracy=float(right.mean()),
        mean_exit=float(outcome.exit_at.mean()),
        seconds=seconds if forward_mode == "normal" and not stat_each_layer else None,
        stat_each_layer=statistics.rows() if stat_each_layer else [],
        prediction_accuracy=judged.accuracy if judged else statistics.prediction_accuracy(),
        confusion=None if confusion is None else confusion.tolist(),
        exit_names=subject.exit_names,
        histogram=tuple(outcome.histogram().tolist()),
    )


@dataclass(frozen=True)
class _Bench:
    subject: Subject
    prepared: Any
    folder: Path
    batch_size: int
    say: Say


@dataclass(frozen=True)
class _Made:
    """A policy, and what its forecasts are held against where they are judged."""

    policy: Policy
    leaves: IntArray | None = None
    judged: Judged | None = None


def _make(bench: _Bench, setting: Setting, judging: bool, needs_truth: bool) -> _Made:
    exits = bench.subject.network.num_exits
    if setting.policy == "full":
        return _Made(Full(exits))
    calibration = _trace(bench, CALIBRATION)
    scales = thresholds(calibration)
    policy = make_policy(setting, exits, scales, calibration)
    if setting.policy != "predictive" or not needs_truth:
        return _Made(policy)
    test = _trace(bench, "test")
    judged = None
    if judging:
        assert setting.start_layer is not None
        judged = judge(setting, test, scales, calibration, [setting.start_layer])[0]
    return _Made(policy, true_leaves(setting, test, scales), judged)


def _trace(bench: _Bench, split: str) -> Trace:
    subject, part = bench.subject, bench.subject.parts[split]
    bench.say(f"{split}: {len(part)} images through every exit")
    meta = TraceMeta(
        split, bench.prepared.precision, len(part), subject.network.num_exits,
        subject.network.classes, DEFAULT_KERNEL, DEFAULT_HORIZON, subject.dataset, subject.digest,
        subject.exit_names,
    )  # fmt: skip
    path = bench.folder / f"{split}.npz"
    with writing(path, meta, part.labels, part.indices) as writer:
        record(writer, subject.batches(split, bench.batch_size), bench.prepared)
    return Trace(path)


def _run(
    subject: Subject,
    prepared: Any,
    setting: Setting,
    policy: Policy,
    batch_size: int,
    observe: LayerStatistics | None,
) -> tuple[Outcome, float]:
    stack = None
    if isinstance(policy, Predictive):
        stack = convolution_stack(subject.network.classes).to(subject.device)
    outcomes, seconds, start = [], 0.0, 0
    for images in subject.batches("test", batch_size):
        samples = np.arange(start, start + len(images))
        source = LiveSource(
            prepared, subject.network.num_exits, images, samples,
            setting.criterion or "softmax", stack,
        )  # fmt: skip
        prepared.synchronise()
        opened = time.perf_counter()
        outcomes.append(walk(policy, source, observe))
        prepared.synchronise()
        seconds += time.perf_counter() - opened
        start += len(images)
    return merge(outcomes), seconds

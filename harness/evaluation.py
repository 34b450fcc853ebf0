"""Evaluating one setting of one checkpoint, live, without a run directory."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .calibration import CALIBRATION, thresholds
from .circumstances import NONE, Circumstances, SetClocks, find_clocks
from .configs import DataConfig, DeviceConfig
from .data import subset
from .dvfs_errors import model_error_words
from .errors import ExitbenchError
from .evaluation_cost import Cost, run_timed
from .evidence import IntArray
from .hardware import hardware_profile
from .judging import Judged, judge
from .meters.choose import ChosenMeter, choose_meter
from .onepass import chunks_of
from .policies import Full, Policy, Predictive
from .predictors import DEFAULT_HORIZON, DEFAULT_KERNEL, convolution_stack
from .scheduler import LayerStatistics, Outcome, merge, walk
from .settings import Setting, make_policy, true_leaves
from .sources import LiveSource
from .subject import Subject, load_subject, thinned
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
        cost: time and energy of the run; None where every exit was run or watched.
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
    cost: Cost | None
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
        if self.cost is not None:
            lines += self.cost.lines()
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
    circumstances: Circumstances = NONE,
    say: Say,
) -> Evaluation:
    """One setting evaluated on the test split, thresholds taken on the calibration split.

    Forward mode ``normal`` runs with the policy, timed and metered. ``accuracy`` runs every exit
    and judges the forecasts that are made at ``start_layer``.

    Args:
        limit: use at most this many test images, evenly spread.
        circumstances: cores, clocks and scene of the timed run.

    Raises:
        ExitbenchError: the checkpoint, the data, the device, or a value of the setting is wrong;
            or clocks cannot be set.
    """
    for what, value in (("batch size", batch_size), ("limit", limit)):
        if value is not None and value < 1:
            raise ExitbenchError(f"{what} is {value}; it must be at least 1")
    subject = load_subject(checkpoint, data, device, say, needs_exits=policy != "full")
    subject = _fewer(subject, limit)
    judging = forward_mode == "accuracy"
    timing = None
    if not judging and (circumstances.acts or not stat_each_layer):
        timing = _timing(subject, circumstances, say)
    setting = Setting(policy, precision=precision)
    if policy != "full":
        setting = replace(setting, criterion=criterion, beta=beta, start_layer=start_layer)
    if policy == "predictive":
        setting = replace(setting, predictor=predictor)
    prepared = subject.prepare(precision)
    say(f"{precision}: {prepared.words}")
    with tempfile.TemporaryDirectory(prefix="exitbench-") as folder:
        bench = _Bench(subject, prepared, Path(folder), batch_size, say)
        made = _make(bench, setting, judging, judging or stat_each_layer)
    truth = subject.parts["test"].labels
    statistics = LayerStatistics(subject.network.num_exits, truth, made.leaves)
    walking = _Walking(subject, prepared, setting, made.policy)
    cost = None
    if judging or stat_each_layer:
        outcome = _watched(walking, batch_size, statistics if stat_each_layer else None)
    if timing is not None:
        outcome, cost = run_timed(
            subject, prepared, walking, batch_size, timing.meter, circumstances.scene, timing.clocks
        )
    return _evaluation(subject, setting, made, outcome, statistics, stat_each_layer, cost)


def _fewer(subject: Subject, limit: int | None) -> Subject:
    """The subject with at most ``limit`` test images, evenly spread."""
    test = subject.parts["test"]
    few = subset(test, thinned(len(test), limit))
    return replace(subject, parts={**subject.parts, "test": few})


def _evaluation(
    subject: Subject,
    setting: Setting,
    made: _Made,
    outcome: Outcome,
    statistics: LayerStatistics,
    stat_each_layer: bool,
    cost: Cost | None,
) -> Evaluation:
    judged = made.judged
    right = outcome.label == subject.parts["test"].labels
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
        cost=cost,
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


@dataclass(frozen=True)
class _Timing:
    """What a run is timed with."""

    meter: ChosenMeter
    clocks: SetClocks


def _timing(subject: Subject, circumstances: Circumstances, say: Say) -> _Timing:
    """Meter and clocks, said aloud; refuses clocks that cannot be set before any work is done."""
    device = str(subject.device)
    profile = hardware_profile(circumstances.hardware, device).profile
    clocks = find_clocks(circumstances, profile, device, subject.threads)
    for note in clocks.notes:
        say(f"note: {note}")
    clocks.prove()
    meter = choose_meter(device, profile, threads=subject.threads)
    if clocks.source != "simulated":
        say(f"energy: {meter.words}")
    elif clocks.model is not None:
        if clocks.model.assumptions:
            say(f"assumed of the clocks: {'; '.join(clocks.model.assumptions)}")
        say(model_error_words())
    scene, images = circumstances.scene, len(subject.parts["test"])
    if scene.period_s is not None and clocks.source != "simulated":
        say(
            f"one image every {scene.period_s:g} s: {images} images take "
            f"{images * scene.period_s:.0f} s; --limit N evaluates fewer"
        )
    return _Timing(meter, clocks)


class _Walking:
    """Decides batches of images on the live network."""

    def __init__(self, subject: Subject, prepared: Any, setting: Setting, policy: Policy) -> None:
        self.subject, self._prepared = subject, prepared
        self._policy, self._criterion = policy, setting.criterion or "softmax"
        self._stack = None
        if isinstance(policy, Predictive):
            self._stack = convolution_stack(subject.network.classes).to(subject.device)

    def __call__(
        self, images: Tensor, positions: IntArray, observe: LayerStatistics | None = None
    ) -> Outcome:
        source = LiveSource(
            self._prepared, self.subject.network.num_exits, images, positions, self._criterion,
            self._stack,
        )  # fmt: skip
        return walk(self._policy, source, observe)


def _watched(walking: _Walking, batch_size: int, observe: LayerStatistics | None) -> Outcome:
    """The decisions over the test split, with what happens at every exit; not timed."""
    positions = np.arange(len(walking.subject.parts["test"]))
    return merge(
        [
            walking(images[low : low + batch_size], some[low : low + batch_size], observe)
            for some, images in chunks_of(walking.subject, positions, batch_size)
            for low in range(0, len(images), batch_size)
        ]
    )

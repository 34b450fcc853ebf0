"""Really running settings, measured, and setting them beside their replay.

A pass is one run over all samples, batch by batch. The first pass of every setting is not timed:
it warms up, collects ``stat_each_layer`` and gives the decisions. The timed passes of all settings
are interleaved in a fresh random order each round, so that drift meets all alike. Normalising
the images happens outside the timed stretches. A stretch that is too short for the meter's counter
is run again and again within one window; what it cost is then divided by how often it ran.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor

from .costs import Prices
from .errors import ExitbenchError
from .evidence import IntArray
from .meters.base import Meter, Reading, minimum_window_s
from .passes import PassLog
from .policies import Policy, Predictive
from .predictors import ConvolutionPredictor, convolution_stack
from .scheduler import LayerStatistics, Outcome, merge, walk
from .settings import Setting, make_policy, true_leaves
from .sources import LiveSource, TraceSource
from .subject import Subject
from .sweep import SETTING_COLUMNS, Traces, price

CHUNK_BYTES = 256 * 2**20  # normalised images held at once: few stretches, each of many batches
SAID_EVERY_S = 10.0
Say = Callable[[str], None]


@dataclass
class Live:
    """A setting made ready to run, with what its passes gave.

    Attributes:
        setting: what is run.
        policy: made from the calibration trace; knows no truth.
        outcome: the decisions, from the first pass.
        statistics: ``stat_each_layer``, from the first pass.
        passes: one reading per timed pass.
    """

    setting: Setting
    policy: Policy
    outcome: Outcome | None = None
    statistics: LayerStatistics | None = None
    passes: list[Reading] = field(default_factory=list)


@dataclass(frozen=True)
class Bench:
    """All that the settings of one precision are run on.

    Attributes:
        subject: network and data.
        prepared: the network in that precision.
        traces: its traces; thresholds come from the calibration trace.
        prices: its prices, for the replay beside the run.
        meter: reads the energy of a timed stretch.
        batch_size: images per batch.
        positions: the images of the test split that are run.
    """

    subject: Subject
    prepared: Any
    traces: Traces
    prices: Prices
    meter: Meter
    batch_size: int
    positions: IntArray


def run_settings(
    bench: Bench,
    settings: Sequence[Setting],
    repeats: int,
    seed: int,
    say: Say,
    stat_each_layer: bool = True,
    log: PassLog | None = None,
) -> list[dict[str, Any]]:
    """The settings really run: one row of measurements.jsonl each.

    Args:
        stat_each_layer: put what happened at every exit into the rows.
        log: timed passes are kept there as they end, and those it holds are not run again.

    Raises:
        ExitbenchError: a setting needs the truth (oracle, perfect predictor), or ``repeats`` is
            below 1.
    """
    if repeats < 1:
        raise ExitbenchError(f"repeats is {repeats}; it must be at least 1")
    exits = bench.subject.network.num_exits
    lives = [
        Live(s, make_policy(s, exits, bench.traces.scales, bench.traces.calibration))
        for s in settings
    ]
    keys = [measured_key(sought(setting, bench, repeats)) for setting in settings]
    if log is not None:
        for live, key in zip(lives, keys, strict=True):
            live.passes = log.readings(key)[:repeats]
    missing = sum(1 + repeats - len(live.passes) for live in lives)
    progress = Progress(missing * len(bench.positions), say)
    for live in lives:
        say(f"run {live.setting.words()}: decisions over {len(bench.positions)} samples")
        live.statistics = _statistics(bench, live.setting)
        live.outcome, _ = run_pass(bench, live, live.statistics, progress)
    generator = np.random.default_rng(seed)
    for number in range(1, repeats + 1):
        say(f"run: timed pass {number} of {repeats} over {len(lives)} settings")
        for index in generator.permutation(len(lives)):
            if len(lives[index].passes) < number:
                _, reading = run_pass(bench, lives[index], progress=progress)
                lives[index].passes.append(reading)
                if log is not None:
                    log.add(keys[index], reading)
    return [measurement(bench, live, stat_each_layer) for live in lives]


class Progress:
    """Says how far the passes are, and how long they will take, at most every ten seconds.

    Args:
        total: samples of all passes.
        say: takes one line.
    """

    def __init__(self, total: int, say: Say) -> None:
        self._total, self._done, self._say = total, 0, say
        self._begin_s = self._said_s = time.perf_counter()

    def __call__(self, samples: int) -> None:
        """So many more samples are done."""
        self._done += samples
        now_s = time.perf_counter()
        if now_s - self._said_s >= SAID_EVERY_S and self._done < self._total:
            left_s = (now_s - self._begin_s) / self._done * (self._total - self._done)
            self._said_s = now_s
            self._say(f"run: {self._done / self._total:.0%} done, about {left_s:.0f} s left")


def run_pass(
    bench: Bench,
    live: Live,
    observe: LayerStatistics | None = None,
    progress: Progress | None = None,
) -> tuple[Outcome, Reading]:
    """One pass of a setting over the samples: what was decided, and time and energy.

    Args:
        observe: collects what happens at every exit; such a pass is not for its numbers.
        progress: told of every batch, but not of repetitions for the meter's sake.
    """
    narrowest_s = 0.0 if observe else minimum_window_s(bench.meter)
    stack = _stack(bench, live.policy)
    criterion = live.setting.criterion or "softmax"
    exits = bench.subject.network.num_exits
    outcomes: list[Outcome] = []
    readings: list[Reading] = []

    times = 0

    def stretch(positions: IntArray, images: Tensor) -> list[Outcome]:
        found = []
        for low in range(0, len(images), bench.batch_size):
            rows = slice(low, low + bench.batch_size)
            source = LiveSource(
                bench.prepared, exits, images[rows], positions[rows], criterion, stack
            )
            found.append(walk(live.policy, source, observe))
            if progress is not None and times == 0:
                progress(len(images[rows]))
        bench.prepared.synchronise()
        return found

    for positions, images in _chunks(bench):
        bench.prepared.synchronise()
        window = bench.meter.open()
        opened, seconds, times = time.perf_counter(), 0.0, 0
        while times == 0 or seconds < narrowest_s:
            found = stretch(positions, images)
            seconds = time.perf_counter() - opened
            times += 1
        outcomes += found
        readings.append(_once(window.close().lasting(seconds), times))
    return merge(outcomes), _total(readings)


def _once(reading: Reading, times: int) -> Reading:
    """A reading of a stretch that ran several times, as if it had run once."""
    joules = {name: None if j is None else j / times for name, j in reading.joules.items()}
    return replace(reading, seconds=reading.seconds / times, joules=joules)


def _stack(bench: Bench, policy: Policy) -> Tensor | None:
    if isinstance(policy, Predictive) and isinstance(policy.predictor, ConvolutionPredictor):
        meta = bench.traces.calibration.meta
        stack = convolution_stack(meta.classes, meta.kernel, meta.horizon)
        return stack.to(bench.subject.device)
    return None


def _chunks(bench: Bench) -> Iterator[tuple[IntArray, Tensor]]:
    held = CHUNK_BYTES // (4 * bench.subject.parts["test"].images[0].size)
    size = max(bench.batch_size, held - held % bench.batch_size)
    for start in range(0, len(bench.positions), size):
        positions = bench.positions[start : start + size]
        yield positions, bench.subject.at("test", positions)


def _total(readings: Sequence[Reading]) -> Reading:
    joules: dict[str, float | None] = {}
    for domain in readings[0].joules:
        values = [reading.joules[domain] for reading in readings]
        known = [value for value in values if value is not None]
        joules[domain] = sum(known) if len(known) == len(values) else None
    seconds = sum(reading.seconds for reading in readings)
    notes = "; ".join(dict.fromkeys(r.note for r in readings if r.note))
    return Reading(seconds, joules, readings[0].source, notes, readings[0].sources)


def _statistics(bench: Bench, setting: Setting) -> LayerStatistics:
    leaves = None
    if setting.policy == "predictive":
        leaves = true_leaves(setting, bench.traces.test, bench.traces.scales)
    truth: IntArray = bench.subject.parts["test"].labels
    return LayerStatistics(bench.subject.network.num_exits, truth, leaves)


@dataclass(frozen=True)
class Beside:
    """The replay of a live setting on the same samples."""

    accuracy: float
    latency_ms: float | None
    energy_mj: float | None
    macs: float
    same_decisions: float


def replayed_beside(bench: Bench, live: Live) -> Beside:
    """The same setting walked over the test trace, priced, and how many decisions agree."""
    assert live.outcome is not None
    criterion = live.setting.criterion or "softmax"
    source = TraceSource(bench.traces.test, criterion, bench.positions)
    outcome = walk(live.policy, source)
    same = (outcome.exit_at == live.outcome.exit_at) & (outcome.label == live.outcome.label)
    counts = (outcome.histogram()[None], outcome.checks[None], outcome.forecasts[None])
    cost = {name: float(value[0]) for name, value in price(*counts, bench.prices).items()}
    truth = bench.subject.parts["test"].labels[bench.positions]
    return Beside(
        float((outcome.label == truth).mean()),
        _known(cost["latency_ms"]),
        _known(cost["energy_mj"]),
        cost["macs"],
        float(same.mean()),
    )


def measurement(bench: Bench, live: Live, stat_each_layer: bool = True) -> dict[str, Any]:
    """The row of measurements.jsonl of a setting that has been run.

    Latency and energy are means per sample of a pass; the median over the passes is reported,
    with the smallest and the largest pass as ``low`` and ``high``.
    """
    assert live.outcome is not None
    assert live.statistics is not None
    beside = replayed_beside(bench, live)
    truth, samples = bench.subject.parts["test"].labels[bench.positions], len(bench.positions)
    latency = [reading.seconds * 1e3 / samples for reading in live.passes]
    joules = [reading.total_j for reading in live.passes]
    energy = [value * 1e3 / samples for value in joules if value is not None]
    resolved = len(energy) == len(joules)
    return {
        **asdict(live.setting),
        "batch_size": bench.batch_size,
        "samples": samples,
        "repeats": len(live.passes),
        "device": str(bench.subject.device),
        "threads": bench.subject.threads,
        "runtime": bench.prepared.name,
        "accuracy": float((live.outcome.label == truth).mean()),
        "macs": beside.macs,
        "mean_exit": float(live.outcome.exit_at.mean()),
        "latency_ms": float(np.median(latency)),
        "latency_low_ms": min(latency),
        "latency_high_ms": max(latency),
        "energy_mj": float(np.median(energy)) if resolved else None,
        "energy_source": live.passes[0].total_source if resolved else "unavailable",
        "energy_note": live.passes[0].note,
        "replay_accuracy": beside.accuracy,
        "replay_latency_ms": beside.latency_ms,
        "replay_energy_mj": beside.energy_mj,
        "same_decisions": beside.same_decisions,
        "exit_histogram": " ".join(map(str, live.outcome.histogram().tolist())),
        "prediction_accuracy": live.statistics.prediction_accuracy(),
        "costs": price_digest(bench.prices),
        "trace": trace_digest(bench.traces),
        "stat_each_layer": live.statistics.rows() if stat_each_layer else [],
        "confusion": live.statistics.confusion.tolist(),
        "meters": [bench.meter.name],
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def measured_key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What makes two measured runs the same, so that a resumed study leaves one out."""
    how = ("batch_size", "samples", "repeats", "threads", "runtime", "costs", "trace")
    return (*(row.get(n) for n in (*SETTING_COLUMNS, *how)), *row.get("meters", ()))


def sought(setting: Setting, bench: Bench, repeats: int) -> dict[str, Any]:
    """What ``measured_key`` reads, of a measurement that is yet to be made."""
    values: dict[str, Any] = {name: getattr(setting, name) for name in SETTING_COLUMNS}
    return values | {
        "batch_size": bench.batch_size,
        "samples": len(bench.positions),
        "repeats": repeats,
        "threads": bench.subject.threads,
        "runtime": bench.prepared.name,
        "costs": price_digest(bench.prices),
        "trace": trace_digest(bench.traces),
        "meters": [bench.meter.name],
    }


def price_digest(prices: Prices) -> str:
    """Ten hex digits that differ where prices do."""
    plain = {
        name: {key: np.asarray(value).tolist() for key, value in part.items()}
        for name in ("segments", "heads", "forecasts", "classifier")
        for part in (getattr(prices, name),)
    }
    return _digest([plain, prices.operating_point, prices.energy_source])


def trace_digest(traces: Traces) -> str:
    """Ten hex digits that differ where what two traces were recorded with does."""
    return _digest([asdict(traces.calibration.meta), asdict(traces.test.meta)])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:10]


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)

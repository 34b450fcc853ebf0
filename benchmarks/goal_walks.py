"""Real time of walks under exit policies against the sum of the parts that they visit.

The ideal is what the cost table says: every visited segment, head, forecast and classifier at the
price that the profiler measured for it, in this process, for the same batch size. Samples leave by
a script, at random depths of a given mean; the policies are the real ones, which read label,
confidence and rounds as ever, and are then told the script's instead. Profile and runs take turns,
and a run is held to the mean of the profiles before and after it, so that drift hits both.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from exitbench.harness.answers import Question
from exitbench.harness.compaction import Compaction
from exitbench.harness.costs import CostTable, Prices
from exitbench.harness.evidence import Evidence, FloatArray, IntArray
from exitbench.harness.policies import EveryExit, Policy, Predictive
from exitbench.harness.predictors import (
    DEFAULT_HORIZON,
    DEFAULT_KERNEL,
    ConvolutionPredictor,
    convolution_stack,
)
from exitbench.harness.profileinputs import profile_images, profile_limits, timed_forecast
from exitbench.harness.profiler import profile
from exitbench.harness.rebatching import Rebatching
from exitbench.harness.scheduler import Outcome, merge, walk
from exitbench.harness.sources import LiveSource
from exitbench.harness.subject import Subject
from exitbench.harness.timing import Limits
from exitbench.models.counting import forecast_counts
from goal_rows import Row
from goal_subject import make_subject

JOB = "walks"
MEANS = (8.0, 4.0, 1.5)
DEEP = 14.0  # for the figure alone
GOALS = {("predictive", 1): 1.05, ("predictive", 64): 1.15, ("every-exit", 64): 1.25}
SAMPLES = {1: 128, 64: 512}
WAIT = 4  # batches, where samples are rebatched
LIMIT = np.float32(0.5)


@dataclass(frozen=True)
class Script:
    """Where samples leave, (N,), and how far each is sent on from every exit, (E, N).

    What a policy is told of it is made beforehand: looking it up is all that a run pays for.
    """

    leave_at: IntArray
    jump: IntArray

    @cached_property
    def confidence(self) -> FloatArray:
        """1 where a sample leaves, else 0: (E, N)."""
        exits = np.arange(1, len(self.jump) + 1)
        return (self.leave_at == exits[:, None]).astype(np.float32)

    @cached_property
    def rounds(self) -> FloatArray:
        """1 in the round that is the jump, else 0: (E, N, R)."""
        numbers = np.arange(1, DEFAULT_HORIZON + 1)
        return (self.jump[..., None] == numbers).astype(np.float32)


def make_script(exits: int, samples: int, mean: float, seed: int) -> Script:
    """Geometric depths 1..E + 1 of that mean; half of the forecasts right, none too far."""
    generator = np.random.default_rng(seed)
    depths = np.arange(1, exits + 2)
    low, high = -0.9, 1 - 1e-6  # of the chance to leave at an exit; below 0 the late ones gain
    for _ in range(60):
        chance = (low + high) / 2
        weights = (1 - chance) ** depths
        low, high = (chance, high) if (weights @ depths) / weights.sum() > mean else (low, chance)
    # Evenly spread over the distribution, so that a small sample has its mean too.
    places = (generator.permutation(samples) + 0.5) / samples
    leave_at = 1 + np.searchsorted(np.cumsum(weights) / weights.sum(), places)
    left = np.clip(leave_at - np.arange(1, exits + 1)[:, None], 1, DEFAULT_HORIZON)
    short = generator.integers(1, left + 1)
    script = Script(leave_at, np.where(generator.random(left.shape) < 0.5, left, short))
    assert script.confidence.shape + script.rounds.shape[2:] == (*left.shape, DEFAULT_HORIZON)
    return script


class ScriptedEvidence:
    """Asks the network for all that it is asked for, and answers with the script."""

    def __init__(self, exit: int, evidence: Evidence, script: Script) -> None:
        self._exit, self._evidence, self._script = exit, evidence, script
        self.samples = evidence.samples

    @property
    def label(self) -> IntArray:
        return self._evidence.label

    @property
    def confidence(self) -> FloatArray:
        _ = self._evidence.confidence
        return self._script.confidence[self._exit - 1][self.samples]

    def rounds(self, rows: IntArray) -> FloatArray:
        self._evidence.rounds(rows)
        return self._script.rounds[self._exit - 1][self.samples[rows]]


@dataclass(frozen=True)
class ScriptedEveryExit(EveryExit):
    """The real policy on scripted evidence."""

    script: Script | None = None

    def decide(self, exit: int, evidence: Evidence) -> IntArray:
        assert self.script is not None
        return super().decide(exit, ScriptedEvidence(exit, evidence, self.script))


@dataclass(frozen=True)
class ScriptedPredictive(Predictive):
    """The real policy on scripted evidence."""

    script: Script | None = None

    def decide(self, exit: int, evidence: Evidence) -> IntArray:
        assert self.script is not None
        return super().decide(exit, ScriptedEvidence(exit, evidence, self.script))


def scripted(name: str, exits: int, script: Script) -> Policy:
    """``every-exit`` or ``predictive`` from exit 1, under a script."""
    limits = np.full(exits, LIMIT)
    if name == "every-exit":
        return ScriptedEveryExit(limits, script=script)
    return ScriptedPredictive(limits, 1, ConvolutionPredictor(limits), script=script)


@dataclass(frozen=True)
class Work:
    """A policy with a script that is walked over images in batches of one size."""

    name: str
    mean: float
    batch: int
    policy: Policy
    script: Script


class Walks:
    """A network with images, its cost table, and walks over them."""

    def __init__(self, subject: Subject, prepared: Any) -> None:
        self.subject, self.prepared = subject, prepared
        self.exits = subject.network.num_exits
        self.images = subject.images("test")
        self.counts = subject.network.counts()
        classes = subject.network.classes
        self.stack = convolution_stack(classes, DEFAULT_KERNEL, DEFAULT_HORIZON)
        self.forecast_counts = forecast_counts(classes, DEFAULT_HORIZON)
        self._rows: dict[int, list[dict[str, Any]]] = {}

    def prices(self, batch: int, seconds: float) -> Prices:
        """The cost table of one batch size, by the profiler."""
        limits = _limits(self.subject, seconds)
        found = profile(
            self.prepared, self.counts, profile_images(self.subject, batch),
            timed_forecast(self.subject, DEFAULT_HORIZON, batch), limits, None,
            forecast_counts=self.forecast_counts,
        )  # fmt: skip
        # What is known of other batch sizes tells what a call costs beside its rows.
        self._rows[batch] = found.rows
        table = CostTable.from_rows([row for rows in self._rows.values() for row in rows])
        return table.select(self.prepared.precision, batch)

    def run(
        self, work: Work, prepared: Any, compaction: Compaction, wait: int | None = None
    ) -> tuple[float, Outcome]:
        """Seconds of walking all samples, batch by batch, and what became of them.

        Args:
            wait: rebatched, with so many further batches at most until a sample's answer.
        """
        starts = range(0, SAMPLES[work.batch], work.batch)
        places = [np.arange(first, first + work.batch) for first in starts]
        start = time.perf_counter()
        if wait is None:
            outcome = merge([self._walked(work, prepared, rows, compaction) for rows in places])
        else:
            question = Question("softmax", self.stack)
            driver = Rebatching(
                prepared, work.policy, question, work.batch, wait, compaction=compaction
            )
            outcome, _ = driver.run((self.images[rows], rows) for rows in places)
        seconds = time.perf_counter() - start
        if not (outcome.exit_at == work.script.leave_at).all():
            raise RuntimeError("the walk did not follow its script; its time would mean nothing")
        return seconds, outcome

    def _walked(
        self, work: Work, prepared: Any, rows: IntArray, compaction: Compaction
    ) -> Outcome:
        source = LiveSource(
            prepared, self.exits, self.images[rows], rows, "softmax", self.stack, compaction
        )
        return walk(work.policy, source)


def ideal(outcome: Outcome, prices: Prices) -> tuple[float, float]:
    """The price of all that was visited, in seconds; and as a share of the full network's MACs."""
    histogram = outcome.histogram()
    inside = histogram[::-1].cumsum()[::-1]
    found = prices.price(
        segments=inside, heads=outcome.checks, forecasts=outcome.forecasts,
        classifier=histogram[-1], samples=1,
    )  # fmt: skip
    share = float(found["macs"]) / prices.full()["macs"]
    return float(found["latency_ms"]) * 1e-3, share * prices.full()["latency_ms"] * 1e-3


def measure_walks(folder: Path, threads: int, quick: bool) -> tuple[list[Row], dict[str, Any]]:
    """The rows of all policies, batch sizes and depths; call in a process of its own."""
    subject = make_subject(folder, "vgg19", max(SAMPLES.values()), threads)
    walks = Walks(subject, subject.prepare("fp32"))
    rows: list[Row] = []
    points: list[dict[str, Any]] = []
    for batch, seconds in ((1, 2.0 if quick else 4.0), (64, 6.0 if quick else 12.0)):
        cycles = 2 if quick else 6
        found = _measured(walks, _works(walks, batch, quick), seconds, cycles)
        points += [point for _, point in found]
        rows += [row for work, point in found for row in _rows(work, point)]
    return rows, {"walks": points, "runtime": walks.prepared.words}


def _rows(work: Work, point: dict[str, Any]) -> list[Row]:
    """The row of a work that has a goal, and what rebatching makes of it."""
    goal = GOALS.get((work.name, work.batch))
    if goal is None or work.mean not in MEANS:
        return []
    what = f"{work.name} run / its parts: vgg19, batch {work.batch}, mean exit {work.mean:g}"
    rows = [Row(JOB, what, goal, point["ratio"], note=_why(point), detail=point)]
    if "rebatched" in point:
        note = f"answers up to {WAIT} batches later"
        rows.append(Row(JOB, f"rebatched: {what}", None, point["rebatched"], note=note))
    return rows


def _works(walks: Walks, batch: int, quick: bool) -> list[Work]:
    found = []
    for number, mean in enumerate(MEANS if quick else (DEEP, *MEANS)):
        script = make_script(walks.exits, SAMPLES[batch], mean, number)
        for name in ("predictive", "every-exit"):
            policy = scripted(name, walks.exits, script)
            found.append(Work(name, mean, batch, policy, script))
    return found


def _measured(
    walks: Walks, works: list[Work], seconds: float, cycles: int
) -> list[tuple[Work, dict[str, Any]]]:
    """Each work's point: profile, run, profile, run, ..., profile."""
    batch = works[0].batch
    waits = (None,) if batch == 1 else (None, WAIT)
    profiles = [walks.prices(batch, seconds)]
    real: dict[tuple[int, int | None], list[float]] = defaultdict(list)
    outcomes: list[Outcome] = []
    for _ in range(cycles):
        for number, work in enumerate(works):
            for wait in waits:
                taken, outcome = walks.run(work, walks.prepared, profiles[-1].compaction, wait)
                real[number, wait].append(taken)
            outcomes.append(outcome)
        profiles.append(walks.prices(batch, seconds))
    found = []
    for number, work in enumerate(works):
        ends = [ideal(outcomes[number], prices) for prices in profiles]
        parts, macs = ([(a + b) / 2 for a, b in pairwise(each)] for each in zip(*ends, strict=True))
        point = _point(work, real[number, None], parts, macs)
        if batch > 1:
            point["rebatched"] = _ratio(real[number, WAIT], parts)
        found.append((work, point | _spent(walks, work, profiles[-1], point["ratio"])))
    return found


def _ratio(real: list[float], parts: list[float]) -> float:
    return median(a / b for a, b in zip(real, parts, strict=True))


def _point(
    work: Work, real: list[float], parts: list[float], macs: list[float]
) -> dict[str, Any]:
    samples = SAMPLES[work.batch]
    return {
        "policy": work.name, "batch_size": work.batch, "mean_exit": work.mean,
        "real_ms": median(real) / samples * 1e3, "ideal_ms": median(parts) / samples * 1e3,
        "by_macs_ms": median(macs) / samples * 1e3, "ratio": _ratio(real, parts),
        "real_s": real, "parts_s": parts,
    }  # fmt: skip


KINDS = {"select": "gathering", "join": "gathering"}


class Watched:
    """A prepared network that notes how long each kind of call takes."""

    def __init__(self, prepared: Any) -> None:
        self._prepared = prepared
        self.seconds: dict[str, float] = defaultdict(float)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._prepared, name)
        if name.startswith("run_") or name in KINDS:
            return partial(self._timed, KINDS.get(name, "network"), found)
        return found

    def _timed(self, kind: str, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        start = time.perf_counter()
        found = call(*args, **options)
        self.seconds[kind] += time.perf_counter() - start
        return found


def _spent(walks: Walks, work: Work, prices: Prices, ratio: float) -> dict[str, Any]:
    """What the ratio is made of: the shares of the time of one more run, which is watched."""
    watched = Watched(walks.prepared)
    seconds, _ = walks.run(work, watched, prices.compaction)
    shares = {kind: watched.seconds[kind] / seconds * ratio for kind in ("network", "gathering")}
    return {"spent": {**shares, "deciding": ratio - sum(shares.values())}}


def _why(point: dict[str, Any]) -> str:
    spent = point["spent"]
    return (
        f"{point['real_ms']:.3g} ms per image, the parts {point['ideal_ms']:.3g} ms, the full "
        f"network's time by share of its MACs {point['by_macs_ms']:.3g} ms. The ratio, as a "
        f"watched run spends its time: segments, heads and classifier {spent['network']:.2f}, "
        f"taking batches apart {spent['gathering']:.2f}, decisions and the loop "
        f"{spent['deciding']:.2f}"
    )


def _limits(subject: Subject, seconds: float) -> Limits:
    """The limits of a profile of this device, ended by time alone."""
    from exitbench.harness.configs import ProfileConfig

    config = ProfileConfig(Path(), seconds=seconds, interval=1e-6)
    return replace(profile_limits(config, subject), warmup_share=0.2)

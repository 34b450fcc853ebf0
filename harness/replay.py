"""Replay: policies walked over a trace; no network is run.

The decisions of a policy at every exit do not depend on where the walk starts, so they are taken
once for all samples and every start layer walks over the same table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .evidence import Evidence, IntArray
from .policies import Policy, Predictive
from .scheduler import walk
from .settings import Setting, make_policy, true_leaves
from .sources import TraceEvidence, TraceSource
from .trace import Trace


@dataclass(frozen=True)
class Decided:
    """A policy whose decisions on a trace were all taken beforehand; a policy itself.

    Attributes:
        following: next exit for every exit (row) and sample (column), (E, N).
        start: the exit that is checked first.
        forecasts: whether a sample that stays pays for a forecast.
    """

    following: IntArray
    start: int
    forecasts: bool

    def first(self, samples: IntArray) -> IntArray:
        return np.full(len(samples), self.start)

    def decide(self, exit: int, evidence: Evidence) -> IntArray:
        return self.following[exit - 1][evidence.samples]


def decide_all(policy: Policy, trace: Trace, criterion: str) -> IntArray:
    """The decisions of a policy for every exit and every sample of a trace: (E, N)."""
    everyone = np.arange(trace.meta.samples)
    return np.stack(
        [
            policy.decide(exit, TraceEvidence(trace, criterion, exit, everyone)).astype(np.int16)
            for exit in range(1, trace.meta.exits + 1)
        ]
    )


@dataclass(frozen=True)
class Replayed:
    """What a setting does on a split, before prices.

    Attributes:
        setting: what was replayed.
        accuracy: share of right answers, 0..1.
        histogram: samples that left at each exit, the classifier last, (E + 1,).
        checks: heads run at each exit, (E,).
        forecasts: forecasts paid for at each exit, (E,).
        judged: forecasts made (paid for or not), and how many named the right exit.
    """

    setting: Setting
    accuracy: float
    histogram: IntArray
    checks: IntArray
    forecasts: IntArray
    judged: tuple[int, int] | None = None

    @property
    def prediction_accuracy(self) -> float | None:
        """Share of the forecasts that named the right exit; None if there were none."""
        if self.judged is None or self.judged[0] == 0:
            return None
        return self.judged[1] / self.judged[0]


def replay(setting: Setting, policy: Policy, trace: Trace) -> Replayed:
    """One setting walked over one trace."""
    return _summary(setting, policy, trace, setting.criterion or "softmax", None)


def _summary(
    setting: Setting,
    policy: Policy,
    trace: Trace,
    criterion: str,
    hits: NDArray[np.bool_] | None,
) -> Replayed:
    made = right = 0

    def judge(exit: int, evidence: Evidence, following: IntArray) -> None:
        nonlocal made, right
        assert hits is not None
        made += int(np.count_nonzero(following != exit))
        right += int(np.count_nonzero(hits[exit - 1][evidence.samples]))

    outcome = walk(policy, TraceSource(trace, criterion), None if hits is None else judge)
    accuracy = float((outcome.label == trace.truth).mean())
    judged = None if hits is None else (made, right)
    return Replayed(
        setting, accuracy, outcome.histogram(), outcome.checks, outcome.forecasts, judged
    )


def replay_starts(
    setting: Setting,
    starts: Sequence[int],
    scales: Mapping[str, NDArray[Any]],
    calibration: Trace,
    trace: Trace,
) -> Iterator[Replayed]:
    """One setting of ``every-exit`` or ``predictive`` from each start layer in turn."""
    assert setting.criterion is not None
    criterion, setting = setting.criterion, replace(setting, start_layer=starts[0])
    policy = make_policy(setting, trace.meta.exits, scales, calibration, truth_of=trace)
    following = decide_all(policy, trace, criterion)
    hits = None
    if isinstance(policy, Predictive):
        hits = following == true_leaves(setting, trace, scales)
    for start in starts:
        decided = Decided(following, start, policy.forecasts)
        yield _summary(replace(setting, start_layer=start), decided, trace, criterion, hits)

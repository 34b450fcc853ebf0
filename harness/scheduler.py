"""The one loop: walk a batch from exit to exit under a policy.

Where the evidence comes from is the source's business: the live network (``LiveSource``) or a
trace (``TraceSource``). What is swept is therefore what is run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from .evidence import Evidence, IntArray
from .policies import Policy

Observer = Callable[[int, Evidence, IntArray], None]


class Source(Protocol):
    """Samples on their way through the network. Rows count the samples still inside."""

    @property
    def exits(self) -> int:
        """E, the number of exits besides the classifier."""

    @property
    def samples(self) -> IntArray:
        """Positions in the split of the samples still inside, shape (n,)."""

    def advance(self, first: int, last: int) -> None:
        """Bring the samples still inside through segments ``first`` to ``last`` (1..E + 1)."""

    def evidence(self, exit: int, rows: IntArray) -> Evidence:
        """Evidence at ``exit``, where the samples are now, of those in ``rows``."""

    def keep(self, rows: IntArray) -> None:
        """Let all but those in ``rows``, at least one, leave: later segments run on fewer."""

    def classify(self) -> IntArray:
        """The classifier's answers for the samples still inside, shape (n,)."""


class Steer(Protocol):
    """Sets the clocks while a batch is walked; ``governors.py`` has those that do."""

    def begin(self, first: int) -> None:
        """A batch starts; ``first`` (1..E + 1) is the last exit that its samples are due at."""

    def forecast(self, exit: int, following: int) -> None:
        """At ``exit`` the samples that stay were sent to ``following`` (..E + 1) at the latest."""

    def end(self, exit: int) -> None:
        """The last sample has left at ``exit`` (E + 1: the classifier)."""


@dataclass(frozen=True)
class Outcome:
    """What became of a batch of n samples.

    Attributes:
        exit_at: where each left, E + 1 for the classifier; (n,), in the order they came.
        label: the answer each got, (n,).
        checks: heads run at each exit, (E,).
        forecasts: forecasts made at each exit, (E,).
    """

    exit_at: IntArray
    label: IntArray
    checks: IntArray
    forecasts: IntArray

    def histogram(self) -> IntArray:
        """How many samples left at each exit, the classifier last: (E + 1,)."""
        return np.bincount(self.exit_at - 1, minlength=len(self.checks) + 1)


class Going:
    """A batch on its way under a policy: who is inside, which exit each checks next, who left.

    ``walk`` moves it from exit to exit; the profiler times its ``check`` alone. A sample that is
    alone, in a batch of one or as the last one inside, needs no looking for who is due or leaves.

    Attributes:
        inside: which of the batch are inside, (n,).
        due: the exit that each of them checks next, (n,).
        next_due: the first of these; E + 1 when nobody checks any more.
    """

    def __init__(self, policy: Policy, source: Source) -> None:
        exits, count = source.exits, len(source.samples)
        self.policy, self.source = policy, source
        self.inside: IntArray = np.arange(count)
        self.due = np.array(policy.first(source.samples))
        self.exit_at, self.label = np.full(count, exits + 1), np.zeros(count, dtype=np.int64)
        self.checks, self.forecasts = np.zeros((2, exits), dtype=np.int64)
        self.next_due = _first_of(self.due, exits + 1)

    def again(self, inside: IntArray, due: IntArray) -> None:
        """Put other samples where these are; how the profiler repeats one step of a walk."""
        self.inside, self.due = inside, due
        self.next_due = _first_of(due, self.source.exits + 1)

    def check(self, exit: int, observe: Observer | None = None) -> None:
        """Ask the policy about those due at ``exit``, where the batch is; some may leave."""
        alone = len(self.inside) == 1
        here = _FIRST if alone else np.flatnonzero(self.due == exit)
        evidence = self.source.evidence(exit, here)
        following = self.policy.decide(exit, evidence)
        if observe is not None:
            observe(exit, evidence, following)
        if alone:
            left = self._move_one(exit, evidence, following)
        else:
            left = self._move(exit, here, evidence, following)
        self.checks[exit - 1] += len(here)
        if self.policy.forecasts:
            self.forecasts[exit - 1] += len(here) - left

    def _move_one(self, exit: int, evidence: Evidence, following: IntArray) -> int:
        """Send the only sample on, or let it leave; returns how many left."""
        bound = int(following[0])
        if bound != exit:
            self.due[0] = self.next_due = bound
            return 0
        row = self.inside[0]
        self.exit_at[row], self.label[row] = exit, evidence.label[0]
        self.inside, self.due = self.inside[1:], self.due[1:]
        self.next_due = self.source.exits + 1
        return 1

    def _move(self, exit: int, here: IntArray, evidence: Evidence, following: IntArray) -> int:
        """Send those in rows ``here`` on, or let them leave; returns how many left."""
        leaving = following == exit
        left = int(np.count_nonzero(leaving))
        self.due[here] = following
        if left:
            gone = self.inside[here[leaving]]
            self.exit_at[gone], self.label[gone] = exit, evidence.label[leaving]
            stay = np.flatnonzero(self.due != exit)
            self.inside, self.due = self.inside[stay], self.due[stay]
            if len(stay):
                self.source.keep(stay)
        self.next_due = _first_of(self.due, self.source.exits + 1)
        return left

    def finish(self) -> Outcome:
        """What became of all; the classifier answers for those still inside."""
        if len(self.inside):
            self.label[self.inside] = self.source.classify()
        return Outcome(self.exit_at, self.label, self.checks, self.forecasts)


_FIRST = np.zeros(1, dtype=np.int64)


def _first_of(due: IntArray, none: int) -> int:
    """The smallest of some exits; ``none`` if there are none."""
    return int(due[0]) if len(due) == 1 else int(due.min(initial=none))


def walk(
    policy: Policy, source: Source, observe: Observer | None = None, steer: Steer | None = None
) -> Outcome:
    """Run the samples of ``source`` under ``policy``; every sample leaves exactly once.

    Args:
        observe: called as (exit, evidence, next exits) for every batch of checks.
        steer: told where the batch is and where it is bound for, so that it can set the clocks.
            No decision depends on it.
    """
    going = Going(policy, source)
    if steer is not None and len(going.inside):
        steer.begin(int(going.due.max()))
    for exit in onward(going, observe=observe):
        if steer is not None:
            _tell(steer, going, exit)
    outcome = going.finish()
    if steer is not None and len(going.inside):
        steer.end(source.exits + 1)
    return outcome


def onward(going: Going, at: int = 0, observe: Observer | None = None) -> Iterator[int]:
    """Bring samples from check to check and at last to the classifier, if any are left.

    Yields the exit of each check, once it is made. There a batch may be left to wait.

    Args:
        at: the exit where the samples are; 0 for images.
    """
    source = going.source
    while len(going.inside) and going.next_due <= source.exits:
        exit = going.next_due
        # What lies between two checks is one stretch: an exit where nobody is due costs nothing.
        source.advance(at + 1, exit)
        going.check(exit, observe)
        at = exit
        yield exit
    if len(going.inside):
        source.advance(at + 1, source.exits + 1)


def _tell(steer: Steer, going: Going, exit: int) -> None:
    """Tell the steer what a check at ``exit`` has brought."""
    if len(going.inside):
        steer.forecast(exit, int(going.due.max()))
    else:
        steer.end(exit)


def merge(outcomes: list[Outcome]) -> Outcome:
    """The outcome of several batches in a row."""
    return Outcome(
        np.concatenate([outcome.exit_at for outcome in outcomes]),
        np.concatenate([outcome.label for outcome in outcomes]),
        np.sum([outcome.checks for outcome in outcomes], axis=0),
        np.sum([outcome.forecasts for outcome in outcomes], axis=0),
    )


class LayerStatistics:
    """``stat_each_layer``: what happened at every exit; an observer for ``walk``.

    Args:
        truth: labels of the split, (N,).
        leaves: optionally, for every exit and sample, the first later exit at which the sample
            really would leave, (E, N), as ``predictors.first_later_leave`` gives it. With it the
            forecasts are judged: "prediction accuracy" is the share of forecasts that name
            exactly that exit, and the confusion table counts forecast jump against true jump.
        exits: E.
    """

    def __init__(self, exits: int, truth: IntArray, leaves: IntArray | None = None) -> None:
        self.exits = exits
        self._truth = truth
        self._leaves = leaves
        shape = exits
        self.checked, self.left, self.correct = (np.zeros(shape, np.int64) for _ in range(3))
        self._confidence, self._forecast, self._true_jump = (np.zeros(shape) for _ in range(3))
        self.forecasts, self.hits = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        self.confusion = np.zeros((exits, exits), np.int64)

    def __call__(self, exit: int, evidence: Evidence, following: IntArray) -> None:
        row = exit - 1
        leaving = following == exit
        right = evidence.label == self._truth[evidence.samples]
        self.checked[row] += len(following)
        self.left[row] += np.count_nonzero(leaving)
        self.correct[row] += np.count_nonzero(right & leaving)
        self._confidence[row] += float(evidence.confidence.sum(dtype=np.float64))
        jump = following[~leaving] - exit
        self.forecasts[row] += len(jump)
        self._forecast[row] += jump.sum()
        if self._leaves is not None and len(jump):
            true = self._leaves[row, evidence.samples[~leaving]].astype(np.int64) - exit
            self._true_jump[row] += true.sum()
            self.hits[row] += np.count_nonzero(jump == true)
            np.add.at(self.confusion, (jump - 1, true - 1), 1)

    def prediction_accuracy(self) -> float | None:
        """Share of forecasts that named the right exit; None if none was judged."""
        total = int(self.forecasts.sum())
        return None if self._leaves is None or total == 0 else float(self.hits.sum()) / total

    def rows(self) -> list[dict[str, Any]]:
        """One row per exit; what has no value, such as a mean over nothing, is None."""
        judged = self._leaves is not None

        def mean(total: float, count: int) -> float | None:
            return float(total) / int(count) if count else None

        return [
            {
                "exit": row + 1,
                "checked": int(self.checked[row]),
                "left": int(self.left[row]),
                "correct": int(self.correct[row]),
                "mean_confidence": mean(self._confidence[row], self.checked[row]),
                "forecasts": int(self.forecasts[row]),
                "mean_forecast": mean(self._forecast[row], self.forecasts[row]),
                "mean_true_jump": mean(self._true_jump[row], self.forecasts[row] * judged),
                "prediction_hits": int(self.hits[row]) if judged else None,
            }
            for row in range(self.exits)
        ]

"""When samples that left are dropped from a batch, and when those due reach a head alone.

A sample that left may ride along in the batch: dropping it means to move others, and where what
comes next is cheap, that costs more than it saves. The same at an exit where only some are due:
their rows are gathered for the head, or the head runs on all and some of its answers are taken.
No decision of a policy depends on it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import numpy as np


class Compaction(Protocol):
    """Decides where the rows of a batch are gathered; rows held are those of samples inside, and
    of samples that left and ride along."""

    def drops(self, first: int, last: int, held: int, inside: int, due: int) -> bool:
        """Whether, before segments ``first`` to ``last``, those that left are dropped.

        Args:
            held: rows in the batch.
            inside: rows of samples that are still inside, 1 or more, fewer than ``held``.
            due: how many of them are checked at exit ``last``; 0 at the classifier.
        """

    def separates(self, exit: int, held: int, due: int) -> bool:
        """Whether at ``exit`` only ``due`` of ``held`` rows go to the head, gathered for it."""

    def joins(self, exit: int, rows: int, size: int) -> bool:
        """Whether ``rows`` at ``exit`` had better be copied into a batch of ``size`` with others.

        Asked where batches are put together; that samples wait for it costs nothing here.
        """


@dataclass(frozen=True)
class Fixed:
    """The same everywhere; what is done without a cost table is ``ALWAYS``."""

    gathers: bool

    def drops(self, first: int, last: int, held: int, inside: int, due: int) -> bool:
        return self.gathers

    def separates(self, exit: int, held: int, due: int) -> bool:
        return self.gathers

    def joins(self, exit: int, rows: int, size: int) -> bool:
        return True


ALWAYS, NEVER = Fixed(True), Fixed(False)


@dataclass(frozen=True)
class Calls:
    """What calls of parts of one kind cost by their rows: ``fixed + rows x row``, in ms.

    Attributes:
        fixed: of a call on however many rows, by the number of the part from 1 on.
        row: of one row more.
    """

    fixed: tuple[float, ...]
    row: tuple[float, ...]

    @property
    def known(self) -> bool:
        """Whether every value is a number."""
        return not any(map(math.isnan, (*self.fixed, *self.row)))


AHEAD = 2
"""Segments within which putting batches together has to pay: more of them may find nobody left."""


class ByCost:
    """Gathers where it pays, by the costs of the parts.

    Assumed is that a call costs a fixed time and the same for every row: true of a convolution
    with rows enough, and near enough for less. The fixed part of segments and heads is the same
    whatever is dropped; it is what batches that are put together share. Looked at is the next
    stretch alone: whoever rides along over a cheap stretch is dropped before a dear one.

    Args:
        segments: E + 1 parts.
        heads: E parts.
        gathers: E parts; a row of ``gathers`` is one that is moved, at the state of that exit.
    """

    def __init__(self, segments: Calls, heads: Calls, gathers: Calls) -> None:
        self._until = (0.0, *accumulate(segments.row))  # ms of a row through segments 1 to i
        self._calls = (0.0, *accumulate(segments.fixed))  # ms of the calls of segments 1 to i
        self._heads, self._gathers = heads, gathers

    def drops(self, first: int, last: int, held: int, inside: int, due: int) -> bool:
        if first == 1:
            return True  # no row of the gathers tells what images cost
        left = held - inside
        saved = left * (self._until[last] - self._until[first - 1])
        if due:
            saved += self._check(last, held, due) - self._check(last, inside, due)
        # Holes are filled with rows from the end, unless it is fewer to copy all that stay.
        return saved > self._gather(first - 1, min(left, inside))

    def separates(self, exit: int, held: int, due: int) -> bool:
        return self._gather(exit, due) < (held - due) * self._heads.row[exit - 1]

    def joins(self, exit: int, rows: int, size: int) -> bool:
        end = min(exit + AHEAD, len(self._calls) - 1)
        calls = self._calls[end] - self._calls[exit] + sum(self._heads.fixed[exit:end])
        if self._calls[-1] == 0.0:
            return True  # costs of one batch size do not tell what a call costs
        # Copied once to free the memory of the others, and once more into the new batch.
        return 2 * self._gather(exit, rows) < (1 - rows / size) * calls

    def _check(self, exit: int, held: int, due: int) -> float:
        """ms of the head on ``due`` of ``held`` rows, by the cheaper of the two ways."""
        row = self._heads.row[exit - 1]
        return min(held * row, due * row + (self._gather(exit, due) if due < held else 0.0))

    def _gather(self, exit: int, moved: int) -> float:
        return self._gathers.fixed[exit - 1] + moved * self._gathers.row[exit - 1]


def fit(sizes: Sequence[int], ms: Sequence[Sequence[float] | np.ndarray]) -> Calls:
    """Costs of calls from what they cost a sample at one batch size or two.

    Of one size the whole cost is taken to be that of its rows, as in the prices of a walk.

    Args:
        sizes: one batch size, or two different ones.
        ms: for each size the ms per sample of every part; NaN is unknown.
    """
    own = [np.asarray(values, dtype=np.float64) for values in ms]
    fixed, row = np.zeros_like(own[0]), own[0]
    if len(sizes) == 2:
        slope = (sizes[1] * own[1] - sizes[0] * own[0]) / (sizes[1] - sizes[0])
        row = np.maximum(slope, 0.0)  # keeps what is unknown, NaN
        fixed = np.maximum(sizes[0] * (own[0] - row), 0.0)
    return Calls(tuple(fixed.tolist()), tuple(row.tolist()))


def by_cost(segments: Calls, heads: Calls, gathers: Calls) -> Compaction:
    """What these costs decide; ``ALWAYS`` where one of them is not known."""
    if not all(part.known for part in (segments, heads, gathers)):
        return ALWAYS
    return ByCost(segments, heads, gathers)

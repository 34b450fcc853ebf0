"""Throughput mode: what is left of several batches is put together at an exit and runs on as one.

As samples leave, a batch shrinks, and few rows cost more time each than many: weights are read for
fewer. Here a batch that has shrunk to half of its size stops at the next exit where that pays (see
``compaction.py``; at large maps copying costs more than it saves) and waits for others. As soon as
a whole batch waits at an exit, it runs on, the oldest samples first; otherwise new images are fed:

    images ── exit 1 ── ... ── exit 7: half are left, or fewer ──┬── pool at exit 7 ── exit 8 ...
     batch by batch                            of other batches ──┘    a whole batch

The deepest full pool goes first, so that few samples are under way. Whoever may wait no longer runs
with all others that there is room for, however few they are.

Why not sooner, and not sorted by the exit where samples are due next: either costs more copies than
it saves. A batch of 50 of 64 would be copied whole for a gain of one call in five. Sorted, samples
wait for longer until a whole batch is due at the same exit, and whoever can wait no longer is taken
apart and put together again at every stop; rows that are due farther on ride along for little.

Why a second driver beside ``scheduler.walk``, which follows one batch from its images to its last
answer: here which samples move next is the question. How they move is one code: ``onward`` is the
loop of both, and a group of samples a ``LiveSource`` that starts at an exit. Policies decide by the
evidence alone, so that decisions are those of the walk.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from ..models.blocks import State
from .answers import Question
from .compaction import ALWAYS, Compaction
from .evidence import IntArray
from .policies import Policy
from .runtime.base import Prepared
from .scheduler import Going, Observer, Outcome, onward
from .sources import LiveSource

HELD_BATCHES = 16
"""How many batches of samples may wait in all while one is fed, unless a driver is told so."""


@dataclass(frozen=True)
class Waiting:
    """How samples waited, and what it brought.

    Attributes:
        mean: batches that were fed between a sample's own and its answer, mean over the samples.
        longest: the same of the sample that waited longest.
        rows: samples in a stretch from one stop to the next, mean over its segments.
        held: the most samples that waited in all while a batch was fed.
    """

    mean: float = 0.0
    longest: int = 0
    rows: float = 0.0
    held: int = 0


@dataclass(frozen=True, eq=False)
class Group:
    """Samples at one exit as one batch.

    Attributes:
        at: the exit where they are; 0 for images.
        due: the exit that each checks next, E + 1 for the classifier, (n,).
        numbers: theirs in the order in which samples came, (n,).
        state: theirs; nobody else's but where ``at`` is 0.
    """

    at: int
    due: IntArray
    numbers: IntArray
    state: State

    def __len__(self) -> int:
        return len(self.numbers)


class Pools:
    """Groups that wait, by the exit where they are.

    Args:
        prepared: takes states apart and puts them together.
        size: samples in a whole batch.
    """

    def __init__(self, prepared: Prepared, size: int) -> None:
        self._prepared, self._size = prepared, size
        self._pools: dict[int, list[Group]] = {}

    def __len__(self) -> int:
        """How many samples wait in all."""
        return sum(map(self.count, self._pools))

    def count(self, exit: int) -> int:
        """How many samples wait at ``exit``."""
        return sum(map(len, self._pools.get(exit, ())))

    def add(self, group: Group) -> None:
        """Let a group wait."""
        self._pools.setdefault(group.at, []).append(group)

    def full(self) -> int | None:
        """The deepest exit where a whole batch waits."""
        return max((at for at in self._pools if self.count(at) >= self._size), default=None)

    def fullest(self) -> int:
        """The exit where most wait, the deepest of several."""
        return max(self._pools, key=lambda at: (self.count(at), at))

    def late(self, until: int) -> int | None:
        """The first exit where a sample of a number below ``until`` waits."""
        late = (
            at
            for at, pool in self._pools.items()
            if any(group.numbers.min() < until for group in pool)
        )
        return min(late, default=None)

    def take(self, exit: int) -> Group:
        """The oldest samples that wait at ``exit``, a whole batch at most, put together."""
        waiting = self._pools.pop(exit)
        numbers = np.concatenate([group.numbers for group in waiting])
        if len(numbers) > self._size:
            taken = np.zeros(len(numbers), dtype=bool)
            taken[np.argsort(numbers)[: self._size]] = True
            waiting = self._divide(waiting, taken)
        if len(waiting) == 1:
            return waiting[0]
        return Group(
            exit,
            np.concatenate([group.due for group in waiting]),
            np.concatenate([group.numbers for group in waiting]),
            self._prepared.join([group.state for group in waiting]),
        )

    def _divide(self, groups: list[Group], taken: np.ndarray) -> list[Group]:
        """The part of groups that is taken; the other part waits on."""
        found = []
        ends = np.cumsum([len(group) for group in groups])[:-1]
        for group, some in zip(groups, np.split(taken, ends), strict=True):
            if some.any():
                found.append(self._part(group, some))
            if not some.all():
                self.add(self._part(group, ~some))
        return found

    def _part(self, group: Group, some: np.ndarray) -> Group:
        if some.all():
            return group
        rows = np.flatnonzero(some)
        state = self._prepared.select(group.state, torch.from_numpy(rows))
        return Group(group.at, group.due[rows], group.numbers[rows], state)


class Rebatching:
    """Runs batches under a policy, and what is left of them together.

    Args:
        prepared: the network.
        policy: decides who leaves, and who is due where.
        question: what the policy wants to know from the heads.
        size: samples in a whole batch, which none that is fed exceeds.
        wait: a sample has its answer before more than so many further batches are fed; 0: before
            the next one, so that nobody waits.
        held: no batch is fed while more samples wait in all; ``HELD_BATCHES`` of them if None. With
            those of the batch that is fed this bounds the memory. So does ``wait``, to as many
            batches and the one that is fed.
        compaction: where it pays to put samples together, and when rows of samples that left are
            dropped; no decision depends on it.
        observe: called as (exit, evidence, next exits) for every batch of checks.
    """

    def __init__(
        self,
        prepared: Prepared,
        policy: Policy,
        question: Question,
        size: int,
        wait: int,
        *,
        held: int | None = None,
        compaction: Compaction = ALWAYS,
        observe: Observer | None = None,
    ) -> None:
        self._prepared, self._policy, self._question = prepared, policy, question
        self._size, self._wait = size, wait
        self._held = HELD_BATCHES * size if held is None else held
        self._compaction, self._observe = compaction, observe

    def run(self, batches: Iterable[tuple[State, IntArray]]) -> tuple[Outcome, Waiting]:
        """Run images with their positions in the split, batch by batch; every sample leaves once.

        Returns:
            What became of the samples, in the order in which they came, and how they waited.
        """
        stream = _Stream(self._prepared.num_exits)
        self._pools, self._stream = Pools(self._prepared, self._size), stream
        for images, samples in batches:
            stream.feed(samples, len(self._pools))
            numbers = np.arange(*stream.starts[-2:])
            until = stream.starts[max(0, len(stream.starts) - 1 - self._wait)]
            self._go(Group(0, self._policy.first(samples), numbers, images), until)
            self._settle(until)
        self._settle(stream.starts[-1])
        return stream.outcome(), stream.waiting()

    def _settle(self, until: int) -> None:
        """Move whoever need not wait, and all of numbers below ``until`` to their end."""
        while (exit := self._ready(until)) is not None:
            self._go(self._pools.take(exit), until)

    def _ready(self, until: int) -> int | None:
        """The exit whose samples go on next; None if a batch can be fed."""
        if (exit := self._pools.full()) is not None:
            return exit
        if (exit := self._pools.late(until)) is not None:
            return exit
        return self._pools.fullest() if len(self._pools) > self._held else None

    def _go(self, group: Group, until: int) -> None:
        """Bring a group from check to check until it has left or waits."""
        prepared, question = self._prepared, self._question
        source = LiveSource(
            prepared, prepared.num_exits, group.state, self._stream.samples[group.numbers],
            question.criterion, question.stack, self._compaction, owned=group.at > 0,
        )  # fmt: skip
        going = Going(self._policy, source)
        going.again(np.arange(len(group)), group.due.copy())
        rows, at = len(group), group.at
        for exit in onward(going, group.at, self._observe):
            self._stream.ran(exit - at, rows)
            rows, at = len(going.inside), exit
            numbers = group.numbers[going.inside]
            if self._stops(exit, numbers, until):
                state, waiting = source.state_of(np.arange(rows)), going.inside
                self._pools.add(Group(exit, going.due, numbers, state))
                break
        else:
            self._stream.ran(prepared.num_exits + 1 - at if rows else 0, rows)
            going.finish()
            waiting = going.inside[:0]
        self._stream.leave(group.numbers, going, waiting)

    def _stops(self, exit: int, numbers: IntArray, until: int) -> bool:
        """Whether samples wait at ``exit``; those that may not do so only for others to join."""
        if not 0 < 2 * len(numbers) <= self._size:
            return False
        if numbers.min() < until and not self._pools.count(exit):
            return False
        return self._compaction.joins(exit, len(numbers), self._size)


class _Stream:
    """The samples in the order in which they came, and what became of them.

    Attributes:
        starts: the number of the first sample of each batch, and of the next one.
        samples: their positions in the split.
    """

    def __init__(self, exits: int) -> None:
        self.starts, self.samples = [0], np.zeros(0, dtype=np.int64)
        self._left: list[tuple[IntArray, IntArray, IntArray]] = []
        self._waited: list[IntArray] = []
        self._checks, self._forecasts = np.zeros((2, exits), dtype=np.int64)
        self._segments = self._rows = self._held = 0

    def feed(self, samples: IntArray, waiting: int) -> None:
        """A batch comes while so many samples wait."""
        self.starts.append(self.starts[-1] + len(samples))
        self.samples = np.concatenate([self.samples, samples])
        self._held = max(self._held, waiting)

    def ran(self, segments: int, rows: int) -> None:
        """So many samples went through so many segments."""
        self._segments += segments
        self._rows += segments * rows

    def leave(self, numbers: IntArray, going: Going, waiting: IntArray) -> None:
        """All of a group have left but those in rows ``waiting``."""
        gone = np.delete(np.arange(len(numbers)), waiting)
        own = np.searchsorted(self.starts, numbers[gone], side="right")
        self._left.append((numbers[gone], going.exit_at[gone], going.label[gone]))
        self._waited.append(len(self.starts) - 1 - own)
        self._checks += going.checks
        self._forecasts += going.forecasts

    def outcome(self) -> Outcome:
        """What became of all, once all have left."""
        exit_at, label = np.zeros((2, self.starts[-1]), dtype=np.int64)
        for numbers, exits, labels in self._left:
            exit_at[numbers], label[numbers] = exits, labels
        return Outcome(exit_at, label, self._checks, self._forecasts)

    def waiting(self) -> Waiting:
        """How all waited."""
        waited = np.concatenate([np.zeros(0, dtype=np.int64), *self._waited])
        return Waiting(
            float(waited.mean()) if len(waited) else 0.0,
            int(waited.max(initial=0)),
            self._rows / self._segments if self._segments else 0.0,
            self._held,
        )

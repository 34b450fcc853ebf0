"""The energy between two moments, from counters that move in ticks.

::

    work                  |=============================|
    window                O                             C
    ticks       .    .    t0   .    .    .    .    .    tc   .    tf
    reads       r rrrrr r r                             r  r r r rr

A window opens right after a tick, because only there the counter shows the energy of the moment. At
the close the counter is read at once, and then watched until its next tick. A counter never goes
down, so the energy at C lies between what it showed last before C and what it showed first after;
between the two the time tells. Half of what was left open, the stretch from t0 to O, and the time
that a slow read took are in the stated uncertainty.

The wait sleeps in steps of a twentieth of the period. A counter that does not tick ends the wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .base import Clock, too_short
from .counters import SHORTEST_PAUSE_S, Counter, Sleep, Stamp, Unreadable

POLLS = 20
"""Reads in one period while waiting for a tick."""

_PATIENCE = 5  # periods without a tick after which a counter counts as stuck
_GRACE_S = 0.1
_LEAST_READS = 3  # before a wait may end: one slow read can use up all its time
_MOST_READS = 100 * POLLS


@dataclass(frozen=True)
class Tick:
    """A change of a counter.

    Attributes:
        joules: what it showed afterwards.
        earliest_s, latest_s: it came between these moments.
        updates: how many of its periods lie between the reads that saw it.
        rate_w: mean power over the step.
    """

    joules: float
    earliest_s: float
    latest_s: float
    updates: int
    rate_w: float

    @property
    def middle_s(self) -> float:
        """The likeliest moment."""
        return (self.earliest_s + self.latest_s) / 2


@dataclass(frozen=True)
class Share:
    """What one counter took: joules and their uncertainty, or a note why they are not known."""

    joules: float | None
    uncertainty_j: float = 0.0
    note: str = ""


class EdgeWindow:
    """A window of several counters with one opening and one closing moment.

    Made by opening it: returns as soon as every counter has ticked or is given up.
    """

    def __init__(self, counters: Sequence[Counter], clock: Clock, sleep: Sleep) -> None:
        self._counters, self._clock, self._sleep = tuple(counters), clock, sleep
        before = [_read(counter) for counter in self._counters]
        self._first = _ticks(self._counters, before, clock, sleep, latest=True)
        self._faults = [len(counter.faults) for counter in self._counters]
        self._spent_s = sum(counter.spent_s for counter in self._counters)
        self._last: list[Stamp | str] = []
        self.overhead_s = 0.0
        self.opened_s = clock()
        self.closed_s: float | None = None

    @property
    def seconds(self) -> float:
        """From the opening to the closing moment."""
        assert self.closed_s is not None
        return self.closed_s - self.opened_s

    def stop(self) -> None:
        """Set the closing moment and read every counter; does not wait. A second call is none."""
        if self.closed_s is not None:
            return
        self.closed_s = self._clock()
        self.overhead_s = sum(counter.spent_s for counter in self._counters) - self._spent_s
        self._last = [_read(counter) for counter in self._counters]

    def shares(self) -> list[Share]:
        """What every counter took; waits for the next tick of those that are worth it."""
        self.stop()
        short = [too_short(self.seconds, counter.period.seconds) for counter in self._counters]
        if any(short):
            note = next(filter(None, short))
            return [Share(None, note=note) for _ in self._counters]
        following = _ticks(self._counters, self._last, self._clock, self._sleep, latest=False)
        return [self._share(number, tick) for number, tick in enumerate(following)]

    def _share(self, number: int, following: Tick | str) -> Share:
        counter, first, last = self._counters[number], self._first[number], self._last[number]
        new = counter.faults[self._faults[number] :]
        if new:
            return Share(None, note=new[0])
        for edge in (first, last, following):
            if isinstance(edge, str):
                return Share(None, note=edge)
        assert isinstance(first, Tick)
        assert isinstance(last, Stamp)
        assert isinstance(following, Tick)
        if last.joules == first.joules:
            return Share(None, note=f"{counter.label} did not move")
        assert self.closed_s is not None
        return between(first, self.opened_s, last, self.closed_s, following, counter)


def between(
    first: Tick, opened_s: float, last: Stamp, closed_s: float, following: Tick, counter: Counter
) -> Share:
    """The energy from ``opened_s`` to ``closed_s``.

    Args:
        first: the tick that the window waited for.
        last: the read at its close.
        following: the first tick after that read.
    """
    step_s = following.updates * counter.period.seconds
    mean_w = (last.joules - first.joules) / (closed_s - first.middle_s)
    peak_w = max(first.rate_w, mean_w, following.rate_w)
    # A tick may have come while the counter was read: then it shows more than at the close.
    lowest_j = last.joules - peak_w * (last.end_s - closed_s)
    since_s = closed_s - (following.middle_s - step_s)
    end_j = last.joules + since_s / step_s * (following.joules - last.joules)
    end_j = min(max(end_j, lowest_j), following.joules)
    bracket_j = max(following.joules - end_j, end_j - lowest_j)
    # Between the tick and the opening nothing ran but the wait, as in the update before.
    lead_j = first.rate_w * (opened_s - first.middle_s)
    start_j = peak_w * (opened_s - first.earliest_s)
    uncertainty_j = bracket_j + start_j + counter.period.resolution_j
    return Share(end_j - first.joules - lead_j, uncertainty_j)


def _ticks(
    counters: Sequence[Counter],
    seen: Sequence[Stamp | str],
    clock: Clock,
    sleep: Sleep,
    *,
    latest: bool,
) -> list[Tick | str]:
    """The first tick of every counter after it was ``seen``, or why there was none.

    Args:
        latest: of counters that tick while others are waited for, take the latest tick.
    """
    found: list[Tick | str | None] = [each if isinstance(each, str) else None for each in seen]
    last = list(seen)
    begin_s = clock()
    for reads in range(_MOST_READS):
        waiting = [number for number, each in enumerate(found) if each is None]
        waited_s = clock() - begin_s
        if reads >= _LEAST_READS:
            for number in waiting:
                if waited_s > _PATIENCE * counters[number].period.seconds + _GRACE_S:
                    found[number] = f"{counters[number].label} did not move for {waited_s:.2g} s"
        waiting = [number for number, each in enumerate(found) if each is None]
        if not waiting:
            break
        shortest_s = min(counters[number].period.seconds for number in waiting)
        _pause(shortest_s, waited_s, [last[number] for number in waiting], sleep)
        for number in range(len(counters)) if latest else waiting:
            _look(counters[number], number, last, found)
    return [
        f"{counter.label} did not move" if each is None else each
        for counter, each in zip(counters, found, strict=True)
    ]


def _look(
    counter: Counter, number: int, last: list[Stamp | str], found: list[Tick | str | None]
) -> None:
    before = last[number]
    if isinstance(before, str):
        return
    after = last[number] = _read(counter)
    if isinstance(after, str):
        found[number] = after
    elif after.joules != before.joules:
        found[number] = _tick(before, after, counter.period.seconds)


def _tick(before: Stamp, after: Stamp, period_s: float) -> Tick:
    apart_s = after.middle_s - before.middle_s
    updates = max(1, round(apart_s / period_s)) if period_s else 1
    over_s = updates * period_s or apart_s
    # What was shown when the read began is at most one period old; two, where it is uneven.
    earliest_s = max(before.begin_s, after.begin_s - 2 * period_s)
    rate_w = (after.joules - before.joules) / over_s if over_s > 0 else 0.0
    return Tick(after.joules, earliest_s, after.end_s, updates, rate_w)


def _pause(period_s: float, waited_s: float, last: Sequence[Stamp | str], sleep: Sleep) -> None:
    # A read that takes long is not followed by the next at once, and a counter that is late is
    # looked at less and less.
    took_s = max((each.end_s - each.begin_s for each in last if isinstance(each, Stamp)), default=0)
    late_s = waited_s if waited_s > 2 * period_s else 0.0
    sleep(max((period_s + late_s) / POLLS, min(took_s, period_s), SHORTEST_PAUSE_S))


def _read(counter: Counter) -> Stamp | str:
    try:
        return counter.read()
    except Unreadable as error:
        return str(error)

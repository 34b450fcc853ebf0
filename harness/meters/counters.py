"""Energy counters followed from read to read, and the time between two of their updates.

A counter shows the joules so far, moves in ticks, may wrap and may be reset. Every read is followed
by the same object, whoever asks, so that no wrap is missed and a reset is a fault of every window
that was open at the time. A value was valid at some moment between the begin and the end of its
read; a slow read is therefore known less well in time, and says so.
"""

from __future__ import annotations

import math
import statistics
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..errors import ExitbenchError
from .base import Clock

Sleep = Callable[[float], None]

PLAUSIBLE_W = 1000.0
"""More than any package draws: a counter that seems to run faster has been reset, and one that was
not read for longer than it takes to wrap at this power may have wrapped twice."""

SHORTEST_PAUSE_S = 2e-5
LONGEST_PAUSE_S = 0.05
MOST_READS = 20_000

# A counter read twice in quick succession may catch one whole update between the reads.
_SLACK_S = 1.0
_PAUSE_SHARE = 0.05  # of the time since the last tick: every period takes as many reads
_SURE_SHARE = 0.7  # of the shortest time between ticks so far, in which none is awaited
_UPDATES, _FEW_UPDATES = 20, 4
_ENOUGH_S, _PATIENCE_S = 2.0, 6.0
_ALIKE = 0.25  # a tick that comes this much late is one that was missed


class Unreadable(ExitbenchError):
    """A counter or sensor does not answer; the message says which and why."""


@dataclass(frozen=True)
class Stamp:
    """What a counter showed: ``joules``, valid at some moment from ``begin_s`` to ``end_s``."""

    joules: float
    begin_s: float
    end_s: float

    @property
    def middle_s(self) -> float:
        """The likeliest moment."""
        return (self.begin_s + self.end_s) / 2


@dataclass(frozen=True)
class Period:
    """How a counter moves: seconds between its ticks, and the joules of its smallest step."""

    seconds: float
    resolution_j: float


class Counter:
    """One counter, followed from read to read.

    Args:
        label: the counter in the user's words.
        raw: its present value in whole units; raises ``Unreadable``.
        unit_j: joules of one unit.
        clock: a monotonic clock in seconds.
        range_raw: units after which it starts again at 0; None if it never does.
        reset: why it may go backwards, for the note.
    """

    def __init__(
        self,
        label: str,
        raw: Callable[[], int],
        unit_j: float,
        clock: Clock,
        *,
        range_raw: int | None = None,
        reset: str = "it has been reset",
    ) -> None:
        self.label = label
        self.unit_j = unit_j
        self.period = Period(0.0, unit_j)
        self.faults: list[str] = []
        self.spent_s = 0.0
        self._raw, self._clock, self._range, self._reset = raw, clock, range_raw, reset
        self._lock = threading.Lock()
        self._last: int | None = None
        self._last_s = 0.0
        self._total = 0

    @property
    def safe_gap_s(self) -> float:
        """How long it may go unread without the chance of two wraps."""
        return math.inf if self._range is None else self._range * self.unit_j / PLAUSIBLE_W

    def read(self) -> Stamp:
        """The joules since it was first read; what cannot be trusted becomes a fault.

        Raises:
            Unreadable: it does not answer.
        """
        with self._lock:
            begin_s = self._clock()
            raw = self._raw()
            end_s = self._clock()
            self.spent_s += end_s - begin_s
            self._follow(raw, end_s)
            return Stamp(self._total * self.unit_j, begin_s, end_s)

    def _follow(self, raw: int, now_s: float) -> None:
        last, gap_s = self._last, now_s - self._last_s
        self._last, self._last_s = raw, now_s
        if last is None:
            return
        step = raw - last
        if step < 0 and self._range is not None:
            step += self._range
        if gap_s > self.safe_gap_s:
            self.faults.append(f"{self.label} was not read for {gap_s:.0f} s and may have wrapped")
        elif step < 0 or self._too_fast(step, gap_s):
            self.faults.append(f"{self.label} went backwards: {self._reset}")
        else:
            self._total += step

    def _too_fast(self, step: int, gap_s: float) -> bool:
        # Only of a counter that wraps: there a step back looks like a very long step forward.
        most_j = PLAUSIBLE_W * (gap_s + _SLACK_S)
        return self._range is not None and step * self.unit_j > most_j


def find_period(counter: Counter, clock: Clock, sleep: Sleep) -> Period | None:
    """How a counter moves, found by watching it for 20 ticks, or for some seconds of a slow one.

    Returns:
        None when it ticked less than twice in six seconds: it is stuck.

    Raises:
        Unreadable: it does not answer.
    """
    last = counter.read()
    begin_s, changed_s = last.begin_s, last.begin_s
    ticks: list[float] = []
    steps: list[int] = []
    for _ in range(MOST_READS):
        stamp = counter.read()
        if stamp.joules != last.joules:
            ticks.append(stamp.middle_s)
            steps.append(round((stamp.joules - last.joules) / counter.unit_j))
            last, changed_s = stamp, stamp.middle_s
        waited_s = clock() - begin_s
        enough = len(ticks) > _FEW_UPDATES and waited_s > _ENOUGH_S
        if len(ticks) > _UPDATES or enough or waited_s > _PATIENCE_S:
            break
        pause_s = _pause_s(ticks, clock() - changed_s)
        sleep(max(min(pause_s, LONGEST_PAUSE_S), SHORTEST_PAUSE_S, stamp.end_s - stamp.begin_s))
    if len(ticks) < 2:
        return None
    return Period(_between(ticks), _resolution(steps) * counter.unit_j)


def _pause_s(ticks: Sequence[float], since_s: float) -> float:
    """How long to wait before the next look at a counter that last ticked ``since_s`` ago."""
    if len(ticks) < 2:
        return _PAUSE_SHARE * since_s
    shortest_s = min(later - earlier for earlier, later in pairwise(ticks))
    return max(_SURE_SHARE * shortest_s - since_s, _PAUSE_SHARE * shortest_s)


def _between(ticks: Sequence[float]) -> float:
    # The mean of those near the median: polling shifts each tick a little, and the shifts cancel
    # in a mean, while a tick that was missed must not count.
    gaps = [later - earlier for earlier, later in pairwise(ticks)]
    middle = statistics.median(gaps)
    return statistics.fmean(gap for gap in gaps if abs(gap - middle) <= _ALIKE * middle)


def _resolution(steps: Sequence[int]) -> int:
    # Steps that are all the same tell of a steady load, not of how finely the counter counts.
    return max(1, math.gcd(*steps)) if len(set(steps)) > 1 else 1

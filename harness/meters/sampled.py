"""Energy from a sensor that only shows watts: read now and then, and summed over time.

One thread per sensor reads it while any window is open; windows that nest or overlap share its
samples. A window takes a sample at its opening and one after its close, so that the power at both
edges lies between two samples; energy is the trapezoid over them. What lies between two samples
nobody has seen: the uncertainty is how much the result changes when only every second sample is
used, and at least that of one step between two samples; with it the resolution of the sensor, for
reads that take long the doubt about their moment, and for a stretch in which the thread was kept
from reading, whatever lies between the powers that were seen.
"""

from __future__ import annotations

import statistics
import threading
import weakref
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from .base import Clock
from .counters import Unreadable

THREAD = "exitbench sampler"
_LONGEST_GAP = 10
"""Periods without a sample after which a window counts as not watched."""
_GAP_SHARE = 0.05  # of the window; a shorter gap is within the uncertainty


@dataclass(frozen=True)
class Sample:
    """What a sensor showed at some moment of one read.

    Attributes:
        watts: per name.
        state: whatever else was looked at.
    """

    begin_s: float
    end_s: float
    watts: Mapping[str, float]
    state: Mapping[str, Any] = field(default_factory=dict)

    @property
    def middle_s(self) -> float:
        """The likeliest moment."""
        return (self.begin_s + self.end_s) / 2


Look = Callable[[], tuple[Mapping[str, float], Mapping[str, Any]]]


class Sampler:
    """A sensor, read in a thread while a watch is open.

    Args:
        look: watts per name, and whatever else is of interest; raises ``Unreadable``.
        period_s: time between two reads.
        clock: a monotonic clock in seconds.
        most_share: of the time that reading may take; slow reads are made rarer for it.
        threaded: read in a thread; else only whoever calls ``sample`` reads.
    """

    def __init__(
        self,
        look: Look,
        period_s: float,
        clock: Clock,
        *,
        most_share: float = 1.0,
        threaded: bool = True,
    ) -> None:
        self.period_s = period_s
        self.clock = clock
        self.spent_s = 0.0
        self.samples: list[Sample] = []
        self.faults: list[tuple[float, str]] = []
        self.look, self._most_share, self._threaded = look, most_share, threaded
        self._reading, self._keeping = threading.Lock(), threading.Lock()
        self._watches: weakref.WeakSet[Watch] = weakref.WeakSet()
        self._wake: threading.Event | None = None

    def sample(self) -> None:
        """Read the sensor once; a read that fails is kept as a fault."""
        with self._reading:
            begin_s = self.clock()
            try:
                watts, state = self.look()
            except Unreadable as error:
                self.faults.append((begin_s, str(error)))
            else:
                self.samples.append(Sample(begin_s, self.clock(), watts, state))
            self.spent_s += self.clock() - begin_s

    @property
    def pause_s(self) -> float:
        """Time until the next read: the period, or longer where reading takes long."""
        if not self.samples:
            return self.period_s
        latest = self.samples[-1]
        return max(self.period_s, (latest.end_s - latest.begin_s) / self._most_share)

    def watch(self) -> Watch:
        """Start to watch; ends with its ``close``."""
        with self._keeping:
            watch = Watch(self)
            self._watches.add(watch)
        self.sample()
        watch.begin()
        with self._keeping:
            if self._threaded and self._wake is None:
                self._wake = threading.Event()
                threading.Thread(
                    target=_keep_sampling,
                    args=(weakref.ref(self), self._wake),
                    name=THREAD,
                    daemon=True,
                ).start()
        return watch

    def dismisses(self, wake: threading.Event) -> bool:
        """Whether the thread that waits for ``wake`` must end: nobody watches, or another does."""
        with self._keeping:
            # A window that was dropped unclosed watches no more.
            if len(self._watches) == 0:
                self._wake = None
            return self._wake is not wake

    def leave(self, watch: Watch) -> tuple[tuple[Sample, ...], tuple[str, ...]]:
        """Called by a watch that has closed: its samples and faults; what no open one needs goes.

        Returns:
            The samples in their order, and why reads failed.
        """
        with self._keeping:
            self._watches.discard(watch)
            since_s = min((each.since_s for each in self._watches), default=float("inf"))
            if not self._watches and self._wake is not None:
                self._wake.set()
                self._wake = None
        with self._reading:
            samples = tuple(each for each in self.samples if each.end_s >= watch.since_s)
            faults = tuple(why for when_s, why in self.faults if when_s >= watch.since_s)
            self.samples = [each for each in self.samples if each.end_s >= since_s]
            self.faults = [each for each in self.faults if each[0] >= since_s]
        return samples, faults


class Watch:
    """An open stretch of time in which a sensor is watched."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler
        self.since_s = sampler.clock()
        self.opened_s = self.since_s
        self.closed_s: float | None = None
        self.overhead_s = 0.0
        self._spent_s = 0.0

    def begin(self) -> None:
        """Set the opening moment."""
        self._spent_s = self.sampler.spent_s
        self.opened_s = self.sampler.clock()

    def stop(self) -> None:
        """Set the closing moment; does not read. A second call is none."""
        if self.closed_s is None:
            self.closed_s = self.sampler.clock()
            self.overhead_s = self.sampler.spent_s - self._spent_s

    def close(self) -> Watched:
        """What was seen from a moment before the opening to one after the close."""
        self.stop()
        assert self.closed_s is not None
        self.sampler.sample()
        samples, faults = self.sampler.leave(self)
        return Watched(self.opened_s, self.closed_s, self.sampler.period_s, samples, faults)


@dataclass(frozen=True)
class Watched:
    """What a watch has seen.

    Attributes:
        opened_s, closed_s: the stretch.
        period_s: time that was meant to lie between two samples.
        samples: from before the opening to after the close.
        faults: why reads failed.
    """

    opened_s: float
    closed_s: float
    period_s: float
    samples: tuple[Sample, ...]
    faults: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """Length of the stretch."""
        return self.closed_s - self.opened_s

    @property
    def gap(self) -> str:
        """Why the samples do not cover the stretch; empty when they do."""
        times = [each.middle_s for each in self.samples]
        if len(times) < 2 or times[-1] < self.closed_s:
            return self.faults[-1] if self.faults else "it was not read at both ends"
        longest_s = max(later - earlier for earlier, later in pairwise(times))
        if longest_s > max(_LONGEST_GAP * self.period_s, _GAP_SHARE * self.seconds):
            why = f": {self.faults[-1]}" if self.faults else ""
            return f"it was not read for {longest_s:.2g} s{why}"
        return ""

    def joules(
        self, name: str, *, resolution_w: float = 0.0, delay_s: float = 0.0
    ) -> tuple[float, float]:
        """Energy of one name over the stretch, and its uncertainty.

        Args:
            resolution_w: how far a shown value may lie off for being shown in steps.
            delay_s: how old a value may be when it is read.
        """
        points = [(each.middle_s, each.watts[name]) for each in self.samples if name in each.watts]
        inner = _cut(points, self.opened_s, self.closed_s)
        whole_j = _trapezoid(inner)
        halves = [
            _cut([*points[:1], *points[start:-1:2], *points[-1:]], self.opened_s, self.closed_s)
            for start in (1, 2)
        ]
        sampling_j = max(abs(_trapezoid(half) - whole_j) for half in halves)
        step_j = max(
            (abs(b[1] - a[1]) * (b[0] - a[0]) / 2 for a, b in pairwise(inner)), default=0.0
        )
        slow_s = max((each.end_s - each.begin_s) / 2 for each in self.samples) + delay_s
        seen = [watts for _, watts in points]
        doubt_s = slow_s + _unseen_s([time_s for time_s, _ in points])
        doubt_j = doubt_s * (max(seen) - min(seen)) + resolution_w * self.seconds
        return whole_j, max(sampling_j, step_j) + doubt_j


def _unseen_s(times: Sequence[float]) -> float:
    """Time in pauses much longer than is usual: the thread that reads was kept from it."""
    gaps = [later - earlier for earlier, later in pairwise(times)]
    usual_s = statistics.median(gaps) if gaps else 0.0
    return sum(gap - usual_s for gap in gaps if gap > 2 * usual_s)


def _cut(
    points: Sequence[tuple[float, float]], opened_s: float, closed_s: float
) -> list[tuple[float, float]]:
    """The points inside a stretch with those at its edges, which lie between two points."""
    times = [time_s for time_s, _ in points]
    inside = points[bisect_right(times, opened_s) : bisect_left(times, closed_s)]
    return [(opened_s, _at(points, opened_s)), *inside, (closed_s, _at(points, closed_s))]


def _at(points: Sequence[tuple[float, float]], time_s: float) -> float:
    """Watts at a moment; beyond the points those of the nearest."""
    place = bisect_left([point[0] for point in points], time_s)
    if place == 0 or place == len(points):
        return points[min(place, len(points) - 1)][1]
    (before_s, before_w), (after_s, after_w) = points[place - 1], points[place]
    if after_s == before_s:
        return after_w
    return before_w + (after_w - before_w) * (time_s - before_s) / (after_s - before_s)


def _trapezoid(points: Sequence[tuple[float, float]]) -> float:
    return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(points))


def _keep_sampling(reference: weakref.ref[Sampler], wake: threading.Event) -> None:
    # Holds no reference to the sampler while it sleeps, so that a dropped one ends the thread.
    took_s = 0.0
    while True:
        sampler = reference()
        if sampler is None or sampler.dismisses(wake):
            return
        pause_s = max(sampler.pause_s - took_s, 0.0)
        del sampler
        if wake.wait(pause_s):
            return
        sampler = reference()
        if sampler is None:
            return
        begin_s = sampler.clock()
        sampler.sample()
        took_s = sampler.clock() - begin_s
        del sampler

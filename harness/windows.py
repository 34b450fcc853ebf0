"""Windows of a meter around units that are repeated until its counter resolves them.

All units are interleaved: every round takes one window of each in a fresh random order, so that a
drift of the clock or of the temperature meets all alike.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .meters.base import Clock, Meter, Reading, minimum_window_s
from .tiers import MARGIN, Plan, calls_for
from .timing import median_interval

Unit = Callable[[], object]

_WIDEST = 10  # times the calls that the measured latency asks for; more would never end
_SILENT = 10  # windows in a row that a meter may leave unresolved before it is given up
_LATE = 1.1  # a round that would end later than this share of the time allowed is not begun


@dataclass(frozen=True)
class Taken:
    """One window.

    Attributes:
        calls: how often the unit was called in it.
        reading: what was read.
        took_s: time that taking it took, with its edges and what was too short before it.
    """

    calls: int
    reading: Reading
    took_s: float = 0.0

    @property
    def energy_j(self) -> float | None:
        """Joules of one call; None where the window was not resolved."""
        joules = self.reading.total_j
        return None if joules is None else joules / self.calls


def take_windows(
    units: Mapping[str, Unit],
    latencies_s: Mapping[str, float],
    plan: Plan,
    meter: Meter,
    *,
    seed: int = 0,
    allowed_s: float | None = None,
    kept: Mapping[str, Sequence[Taken]] | None = None,
    keep: Callable[[str, Taken], None] = lambda name, taken: None,
    synchronise: Callable[[], None] = lambda: None,
    clock: Clock = time.perf_counter,
) -> dict[str, list[Taken]]:
    """The windows of every unit, as many as the plan asks for.

    A meter that leaves ten windows in a row unresolved is given up: it has died, and hours of
    further windows would not be read either.

    Args:
        latencies_s: of every unit, seconds of a call.
        seed: seed of the order of the units.
        allowed_s: time for everything; the first round is taken however long it lasts.
        kept: windows of units that are there already, taken in the same way. They count, and so
            does the time that they took.
        keep: takes every window as soon as it is taken, with the name of its unit.
        synchronise: waits for the device; called before both edges of a window.
        clock: a monotonic clock in seconds.
    """
    taken = {name: list((kept or {}).get(name, ())) for name in units}
    there = [window for windows in taken.values() for window in windows]
    calls, most = _calls(taken, latencies_s, plan)
    # What was shuffled before a kill is not shuffled in the same way again.
    order = np.random.default_rng([seed, len(there)] if there else seed)
    narrowest_s = minimum_window_s(meter)
    begin_s, silent = clock() - sum(window.took_s for window in there), 0
    while going := _next_round(taken, plan):
        if allowed_s is not None and all(taken[name] for name in going):
            round_s = sum(taken[name][-1].took_s for name in going)
            if clock() - begin_s + round_s > _LATE * allowed_s:
                break
        for position in order.permutation(len(going)):
            name, opened_s = going[position], clock()
            window = _resolved(
                units[name], calls[name], most[name], meter, narrowest_s, synchronise
            )
            window = replace(window, took_s=clock() - opened_s)
            taken[name].append(window)
            keep(name, window)
            calls[name] = _calls_next(window, plan.window_s, most[name])
            silent = 0 if window.energy_j is not None else silent + 1
            if silent == _SILENT:
                return taken
    return taken


def _calls(
    taken: Mapping[str, Sequence[Taken]], latencies_s: Mapping[str, float], plan: Plan
) -> tuple[dict[str, int], dict[str, int]]:
    """Calls in the next window of every unit, and the most that there may be.

    Those that a window before has shown to fill one, else those that the latency asks for.
    """
    calls = {name: calls_for(latencies_s[name], plan.window_s) for name in taken}
    most = {name: _WIDEST * count for name, count in calls.items()}
    for name, windows in taken.items():
        if windows:
            calls[name] = min(most[name], _calls_next(windows[-1], plan.window_s, most[name]))
    return calls, most


def _next_round(taken: Mapping[str, Sequence[Taken]], plan: Plan) -> list[str]:
    """The units that need more windows, of these the ones that have the fewest.

    All of them, but where a kill has cut a round short.
    """
    going = [name for name, windows in taken.items() if not enough(windows, plan)]
    fewest = min((len(taken[name]) for name in going), default=0)
    return [name for name in going if len(taken[name]) == fewest]


def least(taken: Sequence[Taken], plan: Plan) -> bool:
    """Whether a unit has as many windows that were read, and as long, as the plan asks for."""
    known = resolved(taken)
    return len(known) >= plan.windows and measured_s(known) >= plan.seconds


def resolved(taken: Sequence[Taken]) -> list[Taken]:
    """The windows whose energy is known."""
    return [window for window in taken if window.energy_j is not None]


def measured_s(taken: Sequence[Taken]) -> float:
    """Seconds in these windows together."""
    return sum(window.reading.seconds for window in taken)


def enough(taken: Sequence[Taken], plan: Plan) -> bool:
    """Whether a unit has all the windows that the plan asks for, its interval included."""
    if len(taken) >= plan.most:
        return True
    known = [window.energy_j for window in taken if window.energy_j is not None]
    if not known:  # its meter does not answer; more windows would not either
        return len(taken) >= plan.windows and measured_s(taken) >= plan.seconds
    if not least(taken, plan):
        return False
    if plan.interval is None:
        return True
    return measured_s(taken) >= plan.tier.cap_s or within(known, plan.interval)


def within(values: list[float], share: float) -> bool:
    """Whether the 95% interval of the median lies within a share of it; False below 6 values."""
    interval = median_interval(values)
    if interval is None:
        return False
    median = float(np.median(values))
    return max(interval[1] - median, median - interval[0]) <= share * abs(median)


def _calls_next(window: Taken, wanted_s: float, most: int) -> int:
    """More calls after a window that turned out shorter than the plan asks for."""
    seconds = window.reading.seconds
    if seconds >= wanted_s or seconds <= 0:
        return window.calls
    return min(most, math.ceil(MARGIN * wanted_s / seconds * window.calls))


def _resolved(
    unit: Unit,
    calls: int,
    most: int,
    meter: Meter,
    narrowest_s: float,
    synchronise: Callable[[], None],
) -> Taken:
    """A window of at least ``narrowest_s`` with ``calls`` calls in it, or more, up to ``most``."""
    while True:
        synchronise()
        window = meter.open()
        for _ in range(calls):
            unit()
        synchronise()
        reading = window.close()
        if reading.seconds >= narrowest_s:
            return Taken(calls, reading)
        if calls >= most:
            break
        missing = narrowest_s / max(reading.seconds, narrowest_s / _WIDEST)
        calls = min(most, math.ceil(MARGIN * missing * calls))
    unknown: dict[str, float | None] = dict.fromkeys(reading.joules)
    note = f"its window of {reading.seconds:.3g} s stayed below {narrowest_s:.3g} s"
    return Taken(calls, replace(reading, joules=unknown, note=reading.note or note))

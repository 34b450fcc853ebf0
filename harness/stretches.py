"""Energy of stretches of work: one window each, wide enough for the meter's counter.

A stretch that is too short is run again and again within one window; what it cost is then divided
by how often it ran.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from .meters.base import Meter, Reading

_T = TypeVar("_T")
Clock = Callable[[], float]


@dataclass(frozen=True)
class Stretch(Generic[_T]):
    """A stretch that has been run.

    Attributes:
        found: what its last time gave.
        reading: time and energy of one time.
        times: how often it ran within the window.
        window_s: how long the window was.
    """

    found: _T
    reading: Reading
    times: int
    window_s: float


def run_stretch(
    work: Callable[[int], _T],
    meter: Meter,
    narrowest_s: float,
    synchronise: Callable[[], None],
    clock: Clock = time.perf_counter,
) -> Stretch[_T]:
    """Run ``work`` in one window of at least ``narrowest_s``, at least once.

    Args:
        work: told how often it has run in this window.
        synchronise: waits for the device; called before both edges of the window.
        clock: a monotonic clock in seconds.
    """
    synchronise()
    window = meter.open()
    opened_s, seconds, times = clock(), 0.0, 0
    while times == 0 or seconds < narrowest_s:
        found = work(times)
        synchronise()
        seconds = clock() - opened_s
        times += 1
    return Stretch(found, once(window.close().lasting(seconds), times), times, seconds)


def once(reading: Reading, times: int) -> Reading:
    """A reading of a stretch that ran several times, as if it had run once."""

    def share(values: Mapping[str, float]) -> dict[str, float]:
        return {name: value / times for name, value in values.items()}

    return replace(
        reading,
        seconds=reading.seconds / times,
        joules={name: None if j is None else j / times for name, j in reading.joules.items()},
        uncertainty_j=share(reading.uncertainty_j),
        checks=share(reading.checks),
        overhead_s=reading.overhead_s / times,
    )


def together(readings: Sequence[Reading]) -> Reading:
    """The reading of stretches that make up one pass; what one of them lacks, the pass lacks."""
    first = readings[0]
    joules: dict[str, float | None] = {}
    for domain in first.joules:
        values = [reading.joules[domain] for reading in readings]
        known = [value for value in values if value is not None]
        joules[domain] = sum(known) if len(known) == len(values) else None
    return replace(
        first,
        seconds=sum(reading.seconds for reading in readings),
        joules=joules,
        note="; ".join(dict.fromkeys(r.note for r in readings if r.note)),
        uncertainty_j=_sums([reading.uncertainty_j for reading in readings]),
        flags=tuple(dict.fromkeys(flag for reading in readings for flag in reading.flags)),
        conditions=typical([reading.conditions for reading in readings]),
        checks=_sums([reading.checks for reading in readings]),
        overhead_s=sum(reading.overhead_s for reading in readings),
    )


def typical(logged: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What several windows logged, as one: the middle of numbers, all that is in lists.

    Of anything else the first.
    """
    names = dict.fromkeys(name for each in logged for name in each)
    return {name: _middle([each[name] for each in logged if name in each]) for name in names}


def _middle(values: list[Any]) -> Any:
    if all(isinstance(value, list) for value in values):
        return list(dict.fromkeys(item for value in values for item in value))
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) < len(values):
        return values[0]
    return sorted(numbers)[len(numbers) // 2]


def _sums(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Sums of what every part has."""
    names = [name for name in parts[0] if all(name in part for part in parts)]
    return {name: sum(part[name] for part in parts) for name in names}

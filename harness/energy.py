"""Energy of small units: windows wide enough for the counter that reads them.

A counter that updates every T seconds needs a window of many updates, so a unit is repeated until
its window is that wide. Windows of all units are interleaved in shuffled rounds, as in
``timing.py``. A meter without a counter (power x time) resolves any window; its energy is its
power times the measured latency.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from .meters.base import Meter, Reading, Source, minimum_window_s, weakest
from .timing import Limits, Timing, median_interval

_WINDOWS = 8  # per unit, where time allows; 6 are the least that give an interval
_MARGIN = 1.1  # the latency that the number of calls is taken from may be a little high
CAP_S = 1800.0  # a counter may take this long at most, unless it is told otherwise
_ENOUGH = 3  # windows per unit that the time is made to suffice for
_WIDEST = 10  # times the calls that the measured latency asks for; more would never end


@dataclass(frozen=True)
class UnitEnergy:
    """Energy of one call of a unit; None is unknown and its source then ``unavailable``.

    Attributes:
        total_j: joules of all domains.
        interval_j: 95% interval of the median total; None with fewer than 6 windows.
        source: weakest source of the domains.
        gpu_j, gpu_source, cpu_j, cpu_source: the same of one domain.
        power_w: mean power of all domains while the unit ran.
    """

    total_j: float | None = None
    interval_j: tuple[float, float] | None = None
    source: Source = "unavailable"
    gpu_j: float | None = None
    gpu_source: Source = "unavailable"
    cpu_j: float | None = None
    cpu_source: Source = "unavailable"
    power_w: float | None = None


def measure_energy(
    units: Mapping[str, Callable[[], object]],
    timings: Mapping[str, Timing],
    meter: Meter,
    limits: Limits,
    *,
    synchronise: Callable[[], None] = lambda: None,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[dict[str, UnitEnergy], list[str]]:
    """The energy of one call of every unit, and notes on what could not be resolved.

    Args:
        units: what to measure.
        timings: their latencies, from ``timing.measure``.
        meter: where energy comes from.
        limits: ``energy_seconds`` bounds the windows of a counter; ``seed`` orders them.
        synchronise: waits for the device; called before both edges of a window.
        say: takes one line on how long a counter will take, before it does.
    """
    narrowest_s = minimum_window_s(meter)
    calls = {
        name: max(1, math.ceil(_MARGIN * narrowest_s / max(timings[name].median_s, 1e-9)))
        for name in units
    }
    round_s = sum(calls[name] * timings[name].median_s for name in units)
    allowed_s = _allowed_s(limits, round_s)
    rounds = min(_WINDOWS, int(allowed_s / round_s + 1e-9)) if narrowest_s else 1
    if rounds < 1:
        note = (
            f"energy unavailable: {meter.name} updates every {meter.update_period_s:.3g} s, so "
            f"windows of {narrowest_s:.3g} s for {len(units)} units need {round_s:.3g} s, but "
            f"{allowed_s:.3g} s are allowed; give more with --energy-seconds"
        )
        return {name: UnitEnergy() for name in units}, [note]
    if narrowest_s:
        say(
            f"energy: {rounds} windows of {narrowest_s:.3g} s for each of {len(units)} units, "
            f"about {rounds * round_s:.0f} s"
        )
    readings = _windows(
        units, calls, rounds, meter, replace(limits, energy_seconds=allowed_s), synchronise
    )
    energies = {
        name: _read(taken) if narrowest_s else _modelled(taken[0][1], timings[name])
        for name, taken in readings.items()
    }
    return energies, _notes(readings)


def _allowed_s(limits: Limits, round_s: float) -> float:
    if limits.energy_seconds is not None:
        return limits.energy_seconds
    return min(CAP_S, _ENOUGH * round_s)


def _windows(
    units: Mapping[str, Callable[[], object]],
    calls: dict[str, int],
    rounds: int,
    meter: Meter,
    limits: Limits,
    synchronise: Callable[[], None],
) -> dict[str, list[tuple[int, Reading]]]:
    """Readings of every unit with the calls in each; all units once per round."""
    narrowest_s = minimum_window_s(meter)
    most = {name: _WIDEST * calls[name] for name in units}
    readings: dict[str, list[tuple[int, Reading]]] = {name: [] for name in units}
    order = np.random.default_rng(limits.seed)
    names = list(units)
    begin_s = time.perf_counter()
    for number in range(rounds):
        # A unit that ran faster than expected widens its windows, and so may use up the time.
        if number and time.perf_counter() - begin_s > (limits.energy_seconds or CAP_S):
            break
        for position in order.permutation(len(names)):
            name = names[position]
            taken = _resolved(units[name], calls[name], most[name], meter, narrowest_s, synchronise)
            calls[name] = taken[0]
            readings[name].append(taken)
    return readings


def _resolved(
    unit: Callable[[], object],
    calls: int,
    most: int,
    meter: Meter,
    narrowest_s: float,
    synchronise: Callable[[], None],
) -> tuple[int, Reading]:
    """A window of at least ``narrowest_s`` and the calls in it, from ``calls`` up to ``most``."""
    while True:
        synchronise()
        window = meter.open()
        for _ in range(calls):
            unit()
        synchronise()
        reading = window.close()
        if reading.seconds >= narrowest_s:
            return calls, reading
        if calls >= most:
            break
        missing = narrowest_s / max(reading.seconds, narrowest_s / _WIDEST)
        calls = min(most, math.ceil(_MARGIN * missing * calls))
    unknown: dict[str, float | None] = dict.fromkeys(reading.joules)
    note = f"its window of {reading.seconds:.3g} s stayed below {narrowest_s:.3g} s"
    return calls, replace(reading, joules=unknown, note=reading.note or note)


def _modelled(reading: Reading, timing: Timing) -> UnitEnergy:
    """Power of the reading times the latency, which is known better than one short window."""

    def of_a_call(joules: float | None, latency_s: float) -> float | None:
        return None if joules is None else joules / reading.seconds * latency_s

    if reading.seconds <= 0:
        return UnitEnergy()
    total, interval = reading.total_j, None
    if total is not None and timing.interval_s is not None:
        low_s, high_s = timing.interval_s
        interval = (total / reading.seconds * low_s, total / reading.seconds * high_s)
    return UnitEnergy(
        total_j=of_a_call(total, timing.median_s),
        interval_j=interval,
        source=reading.total_source,
        gpu_j=of_a_call(reading.gpu_j, timing.median_s),
        gpu_source=reading.gpu_source,
        cpu_j=of_a_call(reading.cpu_j, timing.median_s),
        cpu_source=reading.cpu_source,
        power_w=of_a_call(total, 1.0),
    )


def _read(taken: list[tuple[int, Reading]]) -> UnitEnergy:
    """Medians over windows of a counter, each of (calls, reading)."""
    totals = [(calls, r.total_j, r.seconds) for calls, r in taken]
    per_call = [joules / calls for calls, joules, _ in totals if joules is not None]
    power = [joules / seconds for _, joules, seconds in totals if joules is not None]
    gpu = [r.gpu_j / calls for calls, r in taken if r.gpu_j is not None]
    cpu = [r.cpu_j / calls for calls, r in taken if r.cpu_j is not None]
    return UnitEnergy(
        total_j=_median(per_call),
        interval_j=median_interval(per_call),
        source=weakest(r.total_source for _, r in taken if r.total_j is not None),
        gpu_j=_median(gpu),
        gpu_source=weakest(r.gpu_source for _, r in taken if r.gpu_j is not None),
        cpu_j=_median(cpu),
        cpu_source=weakest(r.cpu_source for _, r in taken if r.cpu_j is not None),
        power_w=_median(power),
    )


def _notes(readings: Mapping[str, list[tuple[int, Reading]]]) -> list[str]:
    """Why readings are incomplete: each reason once, with the units it befell."""
    befell: dict[str, list[str]] = {}
    for name, taken in readings.items():
        for note in sorted({reading.note for _, reading in taken if reading.note}):
            befell.setdefault(note, []).append(name)
    return [
        f"energy unresolved for {'all units' if len(names) == len(readings) else ', '.join(names)}"
        f": {note}"
        for note, names in befell.items()
    ]


def _median(values: list[float]) -> float | None:
    return float(np.median(values)) if values else None

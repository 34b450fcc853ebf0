"""Energy of small units: gross, net of idle, with its uncertainty and where it comes from.

A counter that updates every T seconds needs windows of many updates: ``tiers.py`` plans them,
``windows.py`` takes them. A meter without a counter (power x time) resolves any window; its energy
is its power times the measured latency.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .energynotes import interval_notes, summary, tier_notes, window_notes
from .idle import UNKNOWN, Idle, between, idle_takes_s, measure_idle
from .meters.base import Clock, Meter, Reading, Source, minimum_window_s, weakest
from .tiers import TIERS, Plan, Tier, plan_windows
from .timing import Limits, Timing, median_interval
from .windowlog import WindowLog
from .windows import Taken, Unit, least, resolved, take_windows

_IDLE_SHARE = 0.1  # of a time that is bounded from outside, for idle power


@dataclass(frozen=True)
class UnitEnergy:
    """Energy of one call of a unit; None is unknown and its source then ``unavailable``.

    Attributes:
        total_j: joules of all domains, idle power included.
        interval_j: 95% interval of the median total; None with fewer than 6 windows.
        uncertainty_j: the energy of every window lies within this much of what was read, as far
            as edges, sampling and resolution of the meter go; None where the meter states none.
        net_j: joules above idle power x time; may be negative.
        source: weakest source of the domains.
        gpu_j, gpu_source, cpu_j, cpu_source: the same of one domain.
        power_w: mean power of all domains while the unit ran.
    """

    total_j: float | None = None
    interval_j: tuple[float, float] | None = None
    uncertainty_j: float | None = None
    net_j: float | None = None
    source: Source = "unavailable"
    gpu_j: float | None = None
    gpu_source: Source = "unavailable"
    cpu_j: float | None = None
    cpu_source: Source = "unavailable"
    power_w: float | None = None


@dataclass(frozen=True)
class Energies:
    """What a measurement of energies gave.

    Attributes:
        units: per unit.
        notes: what could not be resolved or makes a window a bad one, with the units it befell.
        idle: the idle power that net energies are told from.
        summary: tier, windows, flags, conditions and checks, for the manifest.
    """

    units: dict[str, UnitEnergy]
    notes: list[str] = field(default_factory=list)
    idle: Idle = UNKNOWN
    summary: dict[str, Any] = field(default_factory=dict)


def measure_energy(
    units: Mapping[str, Unit],
    timings: Mapping[str, Timing],
    meter: Meter,
    limits: Limits,
    *,
    tier: Tier = TIERS["quick"],
    idle: Idle | None = None,
    log: WindowLog | None = None,
    synchronise: Callable[[], None] = lambda: None,
    say: Callable[[str], None] = lambda line: None,
    sleep: Callable[[float], None] = time.sleep,
    clock: Clock = time.perf_counter,
) -> Energies:
    """The energy of one call of every unit.

    Args:
        units: what to measure.
        timings: their latencies, from ``timing.measure``.
        meter: where energy comes from.
        limits: ``energy_seconds`` bounds all of it; ``seed`` orders the windows.
        tier: how long every unit is measured.
        idle: idle power that is known already; measured first if None.
        log: windows and idle power are kept there, and what it holds is not measured again.
        synchronise: waits for the device; called before both edges of a window.
        say: takes one line on how long a counter will take, before it does.
        sleep, clock: wait, and a monotonic clock, in seconds.
    """
    if minimum_window_s(meter) <= 0 and meter.source != "measured":
        return _priced(units, timings, meter, synchronise)
    allowed_s = limits.energy_seconds
    idle_s = _idle_s(tier, allowed_s)
    idle, own = _known_idle(idle, log)
    waits_s = (int(own) + int(tier.idle_after)) * idle_takes_s(meter, idle_s)
    latencies = {name: timings[name].median_s for name in units}
    left_s = None if allowed_s is None else max(0.0, allowed_s - waits_s)
    plan = _planned(tier, meter, latencies, left_s)
    if plan.windows < 1:
        return _nothing_fits(units, meter, plan, waits_s, idle or UNKNOWN, allowed_s or 0.0)
    kept = log.windows(units) if log is not None else {}
    say(_time_words(plan, len(units), waits_s) + _kept_words(kept))
    if idle is None:
        idle = measure_idle(meter, idle_s, sleep=sleep)
    if log is not None and log.idle() is None:
        log.add_idle(idle, own)
    taken = take_windows(
        units, latencies, plan, meter, seed=limits.seed, allowed_s=left_s, kept=kept,
        keep=log.add if log is not None else lambda name, window: None,
        synchronise=synchronise, clock=clock,
    )  # fmt: skip
    if tier.idle_after:
        idle = between(idle, measure_idle(meter, idle_s, sleep=sleep))
    return _energies(taken, kept, plan, allowed_s, idle)


def _energies(
    taken: dict[str, list[Taken]],
    kept: dict[str, list[Taken]],
    plan: Plan,
    allowed_s: float | None,
    idle: Idle,
) -> Energies:
    """What the windows of a counter tell, with what there is to say of them."""
    if not all(least(windows, plan) for windows in taken.values() if resolved(windows)):
        plan = replace(plan, reached=False)
    count, of = (sum(map(len, each.values())) for each in (kept, taken))
    resumed = [f"energy: {count} of {of} windows were taken before an interruption"]
    notes = [*tier_notes(taken, plan, allowed_s), *([idle.note] if idle.note else [])]
    return Energies(
        {name: _read(windows, idle) for name, windows in taken.items()},
        [
            *notes, *interval_notes(taken, plan), *window_notes(taken),
            *(resumed if count else []),
        ],
        idle,
        {**summary(taken, plan.name, plan.window_s, idle), "kept_windows": count},
    )  # fmt: skip


def _known_idle(idle: Idle | None, log: WindowLog | None) -> tuple[Idle | None, bool]:
    """The idle power to tell net energies from, and whether its time is that of the measurement.

    One that was kept comes first: the windows beside it are of the same hour.
    """
    kept = log.idle() if log is not None else None
    return (idle, idle is None) if kept is None else (kept.power, kept.own)


def _kept_words(kept: Mapping[str, list[Taken]]) -> str:
    windows = [window for each in kept.values() for window in each]
    if not windows:
        return ""
    took_s = sum(window.took_s for window in windows)
    return f"; {len(windows)} windows ({_duration(took_s)}) are there already"


def _planned(
    tier: Tier, meter: Meter, latencies_s: Mapping[str, float], allowed_s: float | None
) -> Plan:
    return plan_windows(
        tier,
        list(latencies_s.values()),
        narrowest_s=minimum_window_s(meter),
        # Opening and closing each wait for the counter's next update.
        edge_s=2 * (meter.update_period_s or 0.0),
        allowed_s=allowed_s,
    )


def _idle_s(tier: Tier, allowed_s: float | None) -> float:
    return tier.idle_s if allowed_s is None else min(tier.idle_s, _IDLE_SHARE * allowed_s)


def _nothing_fits(
    units: Mapping[str, Unit],
    meter: Meter,
    plan: Plan,
    waits_s: float,
    idle: Idle,
    allowed_s: float,
) -> Energies:
    note = (
        f"energy unavailable: {meter.name} updates every {meter.update_period_s or 0:.3g} s, so "
        f"one window of {plan.window_s:.3g} s for each of {len(units)} units and idle power need "
        f"{plan.need_s + waits_s:.3g} s, but {allowed_s:.3g} s are allowed; give more with "
        "--energy-seconds, or leave it out"
    )
    return Energies({name: UnitEnergy() for name in units}, [note], idle, {"tier": None})


def _time_words(plan: Plan, units: int, waits_s: float) -> str:
    windows = f"{plan.windows} window{'s' * (plan.windows > 1)} of {plan.window_s:.3g} s"
    each = f"each of {units} units" if units > 1 else "one unit"
    words = f"energy ({plan.name}): {windows} for {each}"
    if waits_s > 0:
        words += f" and {_duration(waits_s)} of idle"
    words += f", about {_duration(plan.need_s + waits_s)}"
    if plan.interval is not None and plan.most_s > plan.need_s:
        words += (
            f"; up to {_duration(plan.most_s + waits_s)} where that takes until the 95% interval "
            f"is within {plan.interval:.0%}"
        )
    return words


def _duration(seconds: float) -> str:
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _priced(
    units: Mapping[str, Unit],
    timings: Mapping[str, Timing],
    meter: Meter,
    synchronise: Callable[[], None],
) -> Energies:
    """Energies of a meter without a counter: its power, from one window each, times the latency."""
    idle = measure_idle(meter, 0.0)
    taken: dict[str, list[Taken]] = {}
    for name, unit in units.items():
        synchronise()
        window = meter.open()
        unit()
        synchronise()
        taken[name] = [Taken(1, _at_work(window.close(), meter))]
    energies = {
        name: _modelled(windows[0].reading, timings[name], idle)
        for name, windows in taken.items()
    }
    return Energies(energies, window_notes(taken), idle, summary(taken, None, None, idle))


def _at_work(reading: Reading, meter: Meter) -> Reading:
    """A reading at the power that the meter states for work.

    Modelled power may follow utilisation, which a window as short as a unit does not tell.
    """
    power_w: float | None = getattr(meter, "power_w", None)
    total_j = reading.total_j
    if power_w is None or not total_j:
        return reading
    share = power_w * reading.seconds / total_j
    joules = {name: None if j is None else j * share for name, j in reading.joules.items()}
    return replace(reading, joules=joules)


def _modelled(reading: Reading, timing: Timing, idle: Idle) -> UnitEnergy:
    """Power of the reading times the latency, which is known better than one short window."""

    def of_a_call(joules: float | None, latency_s: float) -> float | None:
        return None if joules is None else joules / reading.seconds * latency_s

    if reading.seconds <= 0:
        return UnitEnergy()
    total, interval = reading.total_j, None
    if total is not None and timing.interval_s is not None:
        low_s, high_s = timing.interval_s
        interval = (total / reading.seconds * low_s, total / reading.seconds * high_s)
    gross_j = of_a_call(total, timing.median_s)
    return UnitEnergy(
        total_j=gross_j,
        interval_j=interval,
        net_j=_net(gross_j, idle, timing.median_s),
        source=reading.total_source,
        gpu_j=of_a_call(reading.gpu_j, timing.median_s),
        gpu_source=reading.gpu_source,
        cpu_j=of_a_call(reading.cpu_j, timing.median_s),
        cpu_source=reading.cpu_source,
        power_w=of_a_call(total, 1.0),
    )


def _net(gross_j: float | None, idle: Idle, seconds: float) -> float | None:
    if gross_j is None or idle.power_w is None:
        return None
    return gross_j - idle.power_w * seconds


def _read(taken: list[Taken], idle: Idle) -> UnitEnergy:
    """Medians over the windows of a counter, per call."""
    read = resolved(taken)
    per_call = [each.energy_j for each in read if each.energy_j is not None]
    net = [_net(each.energy_j, idle, each.reading.seconds / each.calls) for each in read]
    unsure = [
        each.reading.total_uncertainty_j / each.calls
        for each in read
        if each.reading.total_uncertainty_j is not None
    ]
    power = [each.energy_j * each.calls / each.reading.seconds for each in read
             if each.energy_j is not None]  # fmt: skip
    gpu = [each.reading.gpu_j / each.calls for each in taken if each.reading.gpu_j is not None]
    cpu = [each.reading.cpu_j / each.calls for each in taken if each.reading.cpu_j is not None]
    return UnitEnergy(
        total_j=_median(per_call),
        interval_j=median_interval(per_call),
        uncertainty_j=max(unsure) if read and len(unsure) == len(read) else None,
        net_j=_median([value for value in net if value is not None]),
        source=weakest(each.reading.total_source for each in read),
        gpu_j=_median(gpu),
        gpu_source=weakest(e.reading.gpu_source for e in taken if e.reading.gpu_j is not None),
        cpu_j=_median(cpu),
        cpu_source=weakest(e.reading.cpu_source for e in taken if e.reading.cpu_j is not None),
        power_w=_median(power),
    )


def _median(values: list[float]) -> float | None:
    return float(np.median(values)) if values else None

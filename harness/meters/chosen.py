"""Several meters as one: opened and closed together, their readings put into one.

The meter with the longest period is opened first and ends last, so that waiting for the ticks of
the others costs it the least. At the close every window ends before any waits. How much longer one
window was than the shortest goes into its uncertainty. Domains may lie inside each other; a total
adds the outermost ones only.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from .base import Clock, Meter, Reading, Source, Stoppable, Unavailable, Window, outermost, weakest
from .modelled import ModelledMeter


@dataclass(frozen=True)
class ChosenMeter:
    """All meters of a run as one; it is a meter itself.

    Attributes:
        meters: the meters; no domain is read by two of them.
        missing: what cannot be metered, and why.
        required: the domain without which a total would mean nothing: the run's own device, where
            it has no meter; its joules are None in every reading. Empty when it has one.
        words: what is measured, modelled or unavailable, and why, in sentences for the user.
        clock: a monotonic clock in seconds.
    """

    meters: tuple[Meter, ...]
    missing: tuple[Unavailable, ...]
    required: str
    words: str
    clock: Clock = time.perf_counter

    @property
    def name(self) -> str:
        """The names of its meters; ``no meter`` when there is none."""
        return " + ".join(meter.name for meter in self.meters) or "no meter"

    @property
    def domains(self) -> tuple[str, ...]:
        """All that its meters cover."""
        return tuple(domain for meter in self.meters for domain in meter.domains)

    @property
    def sources(self) -> dict[str, Source]:
        """The source of every domain, the missing device of the run included."""
        found: dict[str, Source] = {
            domain: meter.source for meter in self.meters for domain in meter.domains
        }
        return {**found, self.required: "unavailable"} if self.required else found

    @property
    def source(self) -> Source:
        """The source of the total: the weakest of the domains that it adds."""
        sources = self.sources
        return weakest(sources[domain] for domain in outermost(sources))

    @property
    def update_period_s(self) -> float | None:
        """The longest period of its counters; None where any window can be resolved."""
        periods = [meter.update_period_s for meter in self.meters]
        return max((period for period in periods if period is not None), default=None)

    @property
    def power_w(self) -> float | None:
        """Gross watts at work when every domain is modelled, so that time alone prices; else None.

        On a CPU they are those of the threads that the run works with.
        """
        modelled = self._modelled()
        return sum(meter.power_w for meter in modelled) if modelled else None

    @property
    def idle_w(self) -> float | None:
        """Idle watts when every domain is modelled and all of them are known; else None."""
        idle = [meter.idle_w for meter in self._modelled()]
        known = [watts for watts in idle if watts is not None]
        return sum(known) if known and len(known) == len(idle) else None

    def _modelled(self) -> list[ModelledMeter]:
        """Its meters if all of them model; else none."""
        modelled = [meter for meter in self.meters if isinstance(meter, ModelledMeter)]
        return [] if self.required or len(modelled) != len(self.meters) else modelled

    def open(self) -> ChosenWindow:
        """Start a window on every meter."""
        slowest_first = sorted(
            range(len(self.meters)), key=lambda number: -(self.meters[number].update_period_s or 0)
        )
        windows = {number: self.meters[number].open() for number in slowest_first}
        return ChosenWindow(self, windows, self.clock())


@dataclass(frozen=True)
class ChosenWindow:
    """One open window on each meter, by the meter's number, in the order they were opened."""

    meter: ChosenMeter
    windows: dict[int, Window]
    opened_s: float

    def close(self) -> Reading:
        """The readings of all meters as one; its seconds are those inside all the windows."""
        chosen = self.meter
        seconds = chosen.clock() - self.opened_s
        last_opened_first = list(self.windows.items())[::-1]
        for _, window in last_opened_first:
            if isinstance(window, Stoppable):
                window.stop()
        closed = {number: window.close() for number, window in last_opened_first}
        readings = [_within(closed[number], seconds) for number in sorted(closed)]
        notes = []
        if chosen.required:
            notes = [each.words for each in chosen.missing if chosen.required in each.domains]
        notes += [reading.note for reading in readings if reading.note]
        missing: dict[str, Any] = {chosen.required: None} if chosen.required else {}
        return Reading(
            seconds,
            missing | _merged(readings, "joules"),
            chosen.source,
            "; ".join(notes),
            chosen.sources,
            uncertainty_j=_merged(readings, "uncertainty_j"),
            flags=tuple(flag for reading in readings for flag in reading.flags),
            conditions=_merged(readings, "conditions"),
            checks=_merged(readings, "checks"),
            overhead_s=sum(reading.overhead_s for reading in readings),
        )


def _within(reading: Reading, seconds: float) -> Reading:
    """A reading for a stretch of ``seconds`` inside its window.

    What is modelled follows the time. What was measured in the moments before and after stays in
    its joules, and goes into their uncertainty: nobody knows whether the device idled by then.
    """
    fitted = reading.lasting(seconds)
    longer_s = max(reading.seconds - seconds, 0.0)
    if reading.seconds <= 0:
        return fitted
    wider = {
        domain: stated + abs(reading.joules[domain] or 0.0) * longer_s / reading.seconds
        for domain, stated in reading.uncertainty_j.items()
    }
    return replace(fitted, uncertainty_j=wider)


def _merged(readings: Sequence[Reading], name: str) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for reading in readings:
        merged |= getattr(reading, name)
    return merged

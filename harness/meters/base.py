"""What every meter answers: which energy a stretch of time took, and how sure that is.

A window is opened before the work and closed after it::

    window = meter.open()      # synchronise the device first
    ...work...
    reading = window.close()   # synchronise the device first

              open                close
    counter ---+--------------------+---->      joules = counter(close) - counter(open)

Windows of one meter may be nested or overlap, in one thread or several; none knows of another.
What a meter does at the edges is told in ``edges.py`` (counters) and ``sampled.py`` (sensors of
watts): opening waits for a tick of the counter, closing ends the window at once and then waits.
Synchronising the device before both edges is the caller's business: a meter sees only time.

Domains: ``gpu`` (the whole card), ``cpu`` (the CPU packages), ``dram`` (main memory, where it has
a counter of its own), ``module`` (CPU, GPU and memory on one rail), ``board`` (everything behind
one plug). Some lie inside others; a total adds the outermost ones of a reading, so that nothing is
counted twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, runtime_checkable

Source = Literal["measured", "modelled", "unavailable"]
Clock = Callable[[], float]

UPDATES_PER_WINDOW = 50
"""Counter updates that a window must span: what is not known of the last one is then at most 2%."""

CONTAINS: Mapping[str, frozenset[str]] = {
    "board": frozenset({"module", "gpu", "cpu", "dram"}),
    "module": frozenset({"gpu", "cpu", "dram"}),
    "gpu": frozenset(),
    "cpu": frozenset(),
    "dram": frozenset(),
}
"""Which domains lie inside which."""

_WEAKEST_FIRST: tuple[Source, ...] = ("unavailable", "modelled", "measured")


def outermost(domains: Iterable[str]) -> tuple[str, ...]:
    """The domains that lie inside no other of them: those that a total adds."""
    found = tuple(dict.fromkeys(domains))
    inner = frozenset().union(*(CONTAINS[domain] for domain in found))
    return tuple(domain for domain in found if domain not in inner)


@dataclass(frozen=True)
class Reading:
    """The energy of one closed window. All of it is plain values, so that it can be kept as JSON.

    Attributes:
        seconds: length of the window, on a monotonic clock.
        joules: per domain; None where this window could not be resolved. A domain that has no
            meter at all is not a key. Domains may lie inside each other.
        source: where the total comes from: the weakest source among the domains it adds.
        note: why a domain is None; empty when every domain is resolved.
        sources: per domain, where they differ; empty means ``source`` for all.
        uncertainty_j: per domain: the true energy lies within this much of ``joules``, as far as
            edges, sampling and resolution of the meter go; its calibration is not in it. A domain
            that is not a key has no stated uncertainty.
        flags: what makes the window a bad one though it could be read, one sentence each, such as
            a throttled or shared card, or two readings of one energy that lie apart.
        conditions: what was logged, by name: clocks in MHz, temperatures in degrees Celsius.
        checks: second opinions in joules by the name of their instrument; never in a total.
        overhead_s: time that reading the meter took inside the window.
    """

    seconds: float
    joules: Mapping[str, float | None]
    source: Source
    note: str = ""
    sources: Mapping[str, Source] = field(default_factory=dict)
    uncertainty_j: Mapping[str, float] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    conditions: Mapping[str, Any] = field(default_factory=dict)
    checks: Mapping[str, float] = field(default_factory=dict)
    overhead_s: float = 0.0

    @property
    def total_j(self) -> float | None:
        """Joules of the outermost domains together; None as soon as one of them is not resolved."""
        return self._of(*outermost(self.joules))

    @property
    def total_uncertainty_j(self) -> float | None:
        """Sum of the uncertainties behind ``total_j``; None where one is not stated."""
        added = outermost(self.joules)
        if self.total_j is None or any(domain not in self.uncertainty_j for domain in added):
            return None
        return sum(self.uncertainty_j[domain] for domain in added)

    @property
    def gpu_j(self) -> float | None:
        """Joules of the GPU; None where it is not resolved or has no meter of its own."""
        return self._of("gpu")

    @property
    def cpu_j(self) -> float | None:
        """Joules of the CPU and, where it has its own counter, of its memory; else None."""
        return self._of("cpu", "dram")

    @property
    def gpu_source(self) -> Source:
        """Where ``gpu_j`` comes from; ``unavailable`` where it is None."""
        return "unavailable" if self.gpu_j is None else self._source("gpu")

    @property
    def cpu_source(self) -> Source:
        """Where ``cpu_j`` comes from; ``unavailable`` where it is None."""
        return "unavailable" if self.cpu_j is None else self._source("cpu", "dram")

    @property
    def total_source(self) -> Source:
        """Where ``total_j`` comes from; ``unavailable`` where it is None."""
        return "unavailable" if self.total_j is None else self.source

    def lasting(self, seconds: float) -> Reading:
        """This reading of a stretch known to have lasted ``seconds``.

        What is modelled is power times time and follows the time; what was counted stays.
        """
        joules = {
            domain: value * seconds / self.seconds
            if value is not None and self._source(domain) == "modelled" and self.seconds > 0
            else value
            for domain, value in self.joules.items()
        }
        return replace(self, seconds=seconds, joules=joules)

    def _of(self, *domains: str) -> float | None:
        return _sum([self.joules[domain] for domain in domains if domain in self.joules])

    def _source(self, *domains: str) -> Source:
        return weakest(
            self.sources.get(name, self.source) for name in domains if name in self.joules
        )


class Window(Protocol):
    """An open window; ``close`` may be called once."""

    def close(self) -> Reading:
        """The energy since the window was opened. Never raises for a counter that fails."""
        ...


@runtime_checkable
class Stoppable(Protocol):
    """A window whose closing moment can be set before ``close``, which may wait for a tick."""

    def stop(self) -> None:
        """Set the closing moment; does not wait."""
        ...


class Meter(Protocol):
    """One source of energy readings."""

    @property
    def name(self) -> str:
        """The meter in the user's words, such as ``NVML energy counter of GPU 0``."""
        ...

    @property
    def domains(self) -> tuple[str, ...]:
        """What it covers; the keys of its readings' ``joules``."""
        ...

    @property
    def source(self) -> Source:
        """``measured`` (a counter or sensor) or ``modelled`` (power of a profile x time)."""
        ...

    @property
    def update_period_s(self) -> float | None:
        """Time between two updates of the counter; None where any window can be resolved."""
        ...

    def open(self) -> Window:
        """Start a window."""
        ...


@dataclass(frozen=True)
class Unavailable:
    """A meter that cannot be used here.

    Attributes:
        name: the meter in the user's words.
        domains: what it would have covered.
        reason: why it cannot be used.
        remedy: what would make it usable, an exact command where there is one; may be empty.
    """

    name: str
    domains: tuple[str, ...]
    reason: str
    remedy: str = ""

    @property
    def words(self) -> str:
        """Reason and remedy in one line."""
        return f"{self.reason}. To mend it: {self.remedy}" if self.remedy else self.reason


def minimum_window_s(meter: Meter) -> float:
    """The shortest window that this meter resolves, in seconds; 0 where any is."""
    return UPDATES_PER_WINDOW * (meter.update_period_s or 0.0)


def too_short(seconds: float, update_period_s: float) -> str:
    """Why a window of ``seconds`` cannot be resolved; empty when it can."""
    needed = UPDATES_PER_WINDOW * update_period_s
    if seconds >= needed:
        return ""
    return (
        f"the window of {seconds * 1e3:.3g} ms is too short for a counter that updates every "
        f"{update_period_s * 1e3:.3g} ms: {needed:.3g} s are needed"
    )


def weakest(sources: Iterable[Source]) -> Source:
    """The least trustworthy of some sources; ``unavailable`` of none."""
    present = set(sources)
    return next((source for source in _WEAKEST_FIRST if source in present), "unavailable")


def _sum(values: list[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) if present and len(present) == len(values) else None

"""Energy without a sensor: the power that a hardware profile states, times the time.

The power of a CPU follows how much of it this process keeps busy::

    power = idle_w + (active_w - idle_w) x utilisation

Utilisation is the CPU time of this process, all its threads together, over the time of all logical
CPUs. The system counts it in steps of 10 ms, so a window below half a second takes the share of
the CPUs that the run's threads would fill instead. On a GPU, whose utilisation nobody tells, and
where the profile states no idle power, it is ``active_w`` throughout.

The power is gross: idle power is included, as it is in what a counter measures. It knows nothing of
how hard a layer works the device: modelled energy is time in other units, and every value says
``modelled``. No uncertainty is stated: what is uncertain is the model, not an edge.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from ...profiles.schema import Profile
from ..environment import processors, working_share
from .base import Clock, Reading, Source, Unavailable

SHORTEST_WATCHED_S = 0.5
"""Fifty steps of the system's CPU clock."""


def process_cpu_s() -> float:
    """CPU time of this process so far, all its threads, in seconds."""
    times = psutil.Process().cpu_times()
    return float(times.user + times.system)


@dataclass(frozen=True)
class ModelledMeter:
    """Power of a profile's device class times the time.

    Attributes:
        domain: what the watts cover: ``cpu``, ``gpu`` or ``module``.
        active_w: gross power with the device class fully at work, in watts.
        assumption: the profile marks the watts as an assumption.
        idle_w: with nothing running, in watts; None where unknown.
        share: of the logical CPUs that the run's threads fill; None where utilisation does not
            count, as on a GPU.
        processors: logical CPUs.
        cpu_time: CPU seconds of this process so far.
    """

    name: str
    domain: str
    active_w: float
    assumption: bool
    clock: Clock = time.perf_counter
    idle_w: float | None = None
    share: float | None = None
    processors: int = 1
    cpu_time: Callable[[], float] = process_cpu_s

    @property
    def domains(self) -> tuple[str, ...]:
        """The one domain it covers."""
        return (self.domain,)

    @property
    def source(self) -> Source:
        """Always ``modelled``."""
        return "modelled"

    @property
    def update_period_s(self) -> None:
        """None: any window can be resolved."""
        return None

    @property
    def power_w(self) -> float:
        """Gross watts while the run's threads are at work."""
        return self.power_at(1.0 if self.share is None else self.share)

    @property
    def follows_use(self) -> bool:
        """Whether the power depends on utilisation."""
        return self.share is not None and self.idle_w is not None

    def power_at(self, utilisation: float) -> float:
        """Gross watts at a share of the device at work, 0..1."""
        if self.idle_w is None or self.share is None:
            return self.active_w
        return self.idle_w + (self.active_w - self.idle_w) * utilisation

    @property
    def model(self) -> str:
        """The model in words, for the sentence to the user."""
        if not self.follows_use:
            return f"{self.active_w:g} W"
        busy = round((self.share or 0.0) * self.processors)
        return (
            f"{self.power_w:.3g} W with {busy} of {self.processors} logical CPUs at work, "
            f"{self.idle_w:g} W idle"
        )

    def open(self) -> ModelledWindow:
        """Start a window."""
        used_s = self.cpu_time() if self.follows_use else 0.0
        return ModelledWindow(self, used_s, self.clock())


class ModelledWindow:
    """A window of a modelled meter."""

    def __init__(self, meter: ModelledMeter, used_s: float, opened_s: float) -> None:
        self.meter, self.used_s, self.opened_s = meter, used_s, opened_s
        self.closed_s: float | None = None
        self.power_w = meter.power_w

    def stop(self) -> None:
        """Set the closing moment and look how busy the process was. A second call is none."""
        if self.closed_s is not None:
            return
        meter = self.meter
        self.closed_s = meter.clock()
        seconds = self.closed_s - self.opened_s
        if meter.follows_use and seconds >= SHORTEST_WATCHED_S:
            busy = (meter.cpu_time() - self.used_s) / (seconds * meter.processors)
            self.power_w = meter.power_at(min(max(busy, 0.0), 1.0))

    def close(self) -> Reading:
        """Power times the time since the window was opened."""
        self.stop()
        assert self.closed_s is not None
        seconds = self.closed_s - self.opened_s
        return Reading(seconds, {self.meter.domain: self.power_w * seconds}, "modelled")


def find_modelled(
    profile: Profile | None,
    device_class: str,
    threads: int | None = None,
    *,
    clock: Clock = time.perf_counter,
) -> ModelledMeter | Unavailable:
    """The modelled meter of ``device_class`` (``cpu``, ``gpu``), if the profile says its power.

    Args:
        threads: CPU threads that the run works with; as many as there are logical CPUs if None.
    """
    if profile is None:
        return Unavailable("hardware profile", (device_class,), "no hardware profile fits")
    power = profile.power.get(device_class)
    if power is None:
        return Unavailable(
            "hardware profile",
            (device_class,),
            f"hardware profile {profile.name} states no power of a {device_class.upper()}",
        )
    cpus = processors()
    share = working_share(threads or cpus) if device_class == "cpu" else None
    return ModelledMeter(
        name=f"power of hardware profile {profile.name}",
        domain=power.covers,
        active_w=power.active_w.value,
        assumption=power.active_w.assumption,
        clock=clock,
        idle_w=None if power.idle_w is None else power.idle_w.value,
        share=share,
        processors=cpus,
    )

"""Energy without a sensor: the power that a hardware profile states, times the time.

The power is gross: idle power is included, as it is in what a counter measures. It is one number
per device class, so it knows nothing of how hard a layer works the device: modelled energy is
time in other units, and every value says ``modelled``.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from ...profiles.schema import Profile
from .base import Clock, Reading, Source, Unavailable


@dataclass(frozen=True)
class ModelledMeter:
    """Constant power of a profile's device class times the time.

    Attributes:
        domain: what the watts cover: ``cpu``, ``gpu`` or ``module``.
        power_w: gross power while the network runs, in watts.
        assumption: the profile marks the watts as an assumption.
    """

    name: str
    domain: str
    power_w: float
    assumption: bool
    clock: Clock = time.perf_counter

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

    def open(self) -> ModelledWindow:
        """Start a window."""
        return ModelledWindow(self, self.clock())


@dataclass(frozen=True)
class ModelledWindow:
    """A window of a modelled meter."""

    meter: ModelledMeter
    opened_s: float

    def close(self) -> Reading:
        """Power times the time since the window was opened."""
        seconds = self.meter.clock() - self.opened_s
        return Reading(seconds, {self.meter.domain: self.meter.power_w * seconds}, "modelled")


def find_modelled(
    profile: Profile | None, device_class: str, *, clock: Clock = time.perf_counter
) -> ModelledMeter | Unavailable:
    """The modelled meter of ``device_class`` (``cpu``, ``gpu``), if the profile says its power."""
    if profile is None:
        return Unavailable("hardware profile", (device_class,), "no hardware profile fits")
    power = profile.power.get(device_class)
    if power is None:
        return Unavailable(
            "hardware profile",
            (device_class,),
            f"hardware profile {profile.name} states no power of a {device_class.upper()}",
        )
    return ModelledMeter(
        name=f"power of hardware profile {profile.name}",
        domain=power.covers,
        power_w=power.active_w.value,
        assumption=power.active_w.assumption,
        clock=clock,
    )

"""Clocks that are not set: they remember what they are told, and the hardware profile prices it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...profiles.schema import Profile
from .base import ClockError, Domain
from .sysfs import exact

_DOMAINS: tuple[Domain, ...] = ("cpu", "gpu", "memory")


@dataclass
class SimulatedActuator:
    """A clock, or a number of cores, of a hardware profile.

    Attributes:
        values: its levels, rising.
        now: what it was told last; the top at the start.
    """

    profile: str
    sets: Domain
    values: tuple[float, ...]
    now: float

    @property
    def name(self) -> str:
        """Says that it is simulated, and by which profile."""
        return f"simulated {self.sets} of {self.profile}"

    @property
    def domain(self) -> Domain:
        """What it sets."""
        return self.sets

    @property
    def simulated(self) -> bool:
        """Always."""
        return True

    def levels(self) -> tuple[float, ...]:
        """The levels of the profile."""
        return self.values

    def current(self) -> float | None:
        """What it was told last."""
        return self.now

    def snapshot(self) -> Mapping[str, Any]:
        """What it was told last."""
        return {"kind": "simulated", "value": self.now}

    def set(self, value: float) -> None:
        """Remember a level.

        Raises:
            ClockError: the profile has no such level.
        """
        unit = "" if self.sets == "cores" else " MHz"
        self.now = exact(self.values, value, lambda: self.name, unit)

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Remember what the snapshot says."""
        self.now = snapshot["value"]


def simulated_actuators(profile: Profile) -> dict[Domain, SimulatedActuator]:
    """A simulated clock for every domain of which the profile knows levels.

    Raises:
        ClockError: the profile knows none.
    """
    found = {}
    for domain in _DOMAINS:
        clock = profile.clocks.get(domain)
        named = {
            point.clock_mhz[domain]
            for point in profile.operating_points
            if domain in point.clock_mhz
        }
        levels = tuple(sorted({*(() if clock is None else clock.levels), *named}))
        if levels:
            found[domain] = SimulatedActuator(profile.name, domain, levels, levels[-1])
    if profile.cores is not None:
        counts = profile.cores.counts.value
        found["cores"] = SimulatedActuator(profile.name, "cores", counts, counts[-1])
    if not found:
        raise ClockError(
            f"hardware profile {profile.name} ({profile.path}) knows no clock levels to simulate; "
            "add [clocks.cpu] or [clocks.gpu] with levels_mhz, or choose another --hardware"
        )
    return found

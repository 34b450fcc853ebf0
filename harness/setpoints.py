"""Operating points at which a network is really profiled: clocks set, one after another."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from ..profiles.schema import Profile
from .clocks.base import Actuator, ClockError
from .clocks.choose import find_actuators
from .clocks.session import ClockSession
from .dvfs import Point, dvfs_of, find_point, points_of, points_within
from .errors import ExitbenchError
from .profiler import Profile as Profiled

SETTLE_S = 0.5
"""After a change: discrete GPUs take up to some hundred milliseconds until a clock is in force."""

_LEVEL = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?MHz")
_ENERGIES = (
    "energy_mj", "energy_low_mj", "energy_high_mj", "gpu_energy_mj", "cpu_energy_mj", "power_w",
)  # fmt: skip
_OF_WHOLE = ("parts_energy_mj", "residue_energy_mj")
_SOURCES = ("energy_source", "gpu_energy_source", "cpu_energy_source")


@dataclass(frozen=True)
class SetPoint:
    """An operating point that can be set here.

    Attributes:
        name: as it stands in the cost table.
        clock_mhz: by domain, only those that are set.
        own_mhz: the clock of the device class itself.
        power_factor: modelled power there against that at the top clock; None where the hardware
            profile does not let it be told.
    """

    name: str
    clock_mhz: Mapping[str, float]
    own_mhz: float
    power_factor: float | None


@dataclass(frozen=True)
class SetPoints:
    """The points asked for, and what sets them."""

    points: tuple[SetPoint, ...]
    actuators: Mapping[Any, Actuator]
    journal: Path | None = None
    sleep: Callable[[float], None] = time.sleep

    @contextmanager
    def session(self) -> Iterator[Callable[[SetPoint], None]]:
        """Sets points, one after another; everything is put back at the end.

        Raises:
            ClockError: a clock cannot be set, or could not be put back.
        """
        with ClockSession(self.actuators, journal=self.journal) as clocks:

            def set_point(point: SetPoint) -> None:
                clocks.apply(point.clock_mhz)
                self.sleep(SETTLE_S)

            yield set_point

    def prove(self) -> None:
        """Set every point once and put everything back, before anything is written.

        Raises:
            ClockError: one of them cannot be set; nothing stays changed.
        """
        with ClockSession(self.actuators, journal=self.journal) as clocks:
            for point in self.points:
                clocks.apply(point.clock_mhz)


def find_set_points(
    names: Sequence[str],
    profile: Profile | None,
    device: str,
    *,
    busy: float = 1.0,
    root: Path = Path("/"),
    nvml: ModuleType | None = None,
    journal: Path | None = None,
) -> SetPoints:
    """The operating points of these names: of the profile, or levels such as ``854.25 MHz``.

    Args:
        names: what was asked for.
        profile: the hardware profile of the device; None if none fits.
        device: as torch writes it: ``cpu``, ``cuda`` or ``cuda:N``.
        busy: share of the device's logical CPUs that the network works on, for modelled power.
        root: where ``sys`` is found.
        nvml: what answers as ``pynvml``; the installed one if None.
        journal: where the clocks are kept that were found; the user's own place if None.

    Raises:
        ClockError: clocks cannot be set here; with the remedy.
        ExitbenchError: a name is given twice or is no operating point.
    """
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ExitbenchError(f"operating points are given twice: {', '.join(twice)}")
    device_class = "cpu" if device == "cpu" else "gpu"
    actuators = find_actuators(profile, device, simulated=False, root=root, nvml=nvml)
    if device_class not in actuators:
        able = ", ".join(actuators)
        raise ClockError(
            f"the {device_class.upper()} clock cannot be set here, only: {able}; 'exitbench "
            "doctor' says why, and what would mend it"
        )
    used = {name: each for name, each in actuators.items() if name in ("cpu", "gpu", "memory")}
    points = tuple(_set_point(name, profile, device_class, used, busy) for name in names)
    if len({point.name for point in points}) < len(points):
        raise ExitbenchError(
            f"two of the operating points {', '.join(names)} are the same; leave one out"
        )
    domains = {domain for point in points for domain in point.clock_mhz}
    return SetPoints(points, {name: used[name] for name in used if name in domains}, journal)


def _set_point(
    name: str,
    profile: Profile | None,
    device_class: str,
    actuators: Mapping[Any, Actuator],
    busy: float,
) -> SetPoint:
    levels = actuators[device_class].levels()
    level = _LEVEL.fullmatch(name)
    if level is not None:
        mhz = min(levels, key=lambda each: abs(each - float(level[1])))
        if abs(mhz - float(level[1])) > 1e-3:
            shown = ", ".join(f"{each:.10g}" for each in levels)
            raise ExitbenchError(
                f"{actuators[device_class].name} has no level {name!r}; its levels in MHz: {shown}"
            )
        point = Point(f"{mhz:.10g} MHz", {device_class: mhz}, mhz / levels[-1])
    elif profile is None:
        raise ExitbenchError(
            f"no hardware profile fits, so there is no operating point {name!r}; give a level "
            "such as '1200 MHz', or name a profile with --hardware"
        )
    else:
        asked = find_point(profile, device_class, name)
        # The top stands last, so that what is left out of a point is known to be at its top.
        kept = points_within([asked, points_of(profile, device_class)[-1]], actuators)
        if not kept or kept[0].name != asked.name:
            clocks = ", ".join(f"{key} {mhz:g} MHz" for key, mhz in asked.clock_mhz.items())
            raise ClockError(
                f"operating point {name!r} needs {clocks}; what can be set here: "
                f"{', '.join(actuators)}"
            )
        point = kept[0]
    return SetPoint(
        point.name, point.clock_mhz, point.clock_mhz[device_class],
        _power_factor(profile, device_class, point, busy),
    )  # fmt: skip


def _power_factor(
    profile: Profile | None, device_class: str, point: Point, busy: float
) -> float | None:
    power = None if profile is None else profile.power.get(device_class)
    if profile is None or power is None or power.idle_w is None:
        return None
    model = dvfs_of(profile, device_class, busy=busy)
    return model.power_w(point) / model.power_w(Point("top", {}, 1.0))


def repriced(found: Profiled, point: SetPoint) -> Profiled:
    """A profile whose modelled energies are those of the power at a set point.

    Its meter knows the watts at the top clock only. Where the power at the point is not known,
    the energies are not either.
    """
    factor = point.power_factor
    rows = [_at_power(row, factor) for row in found.rows]
    note = (
        f"energy unavailable at {point.name}: the hardware profile does not tell power over clocks"
        if factor is None
        else f"energy at {point.name} is modelled with {factor:.3g} of the power at the top clock"
    )
    whole = _at_power(found.whole, factor)
    return replace(found, rows=rows, whole=whole, notes=(*found.notes, note))


def _at_power(row: Mapping[str, Any], factor: float | None) -> dict[str, Any]:
    idle_mj = None
    if row["net_energy_mj"] is not None:
        idle_mj = row["energy_mj"] - row["net_energy_mj"]
    scaled = {
        name: None if factor is None or row.get(name) is None else row[name] * factor
        for name in (*_ENERGIES, *(n for n in _OF_WHOLE if n in row))
    }
    gross_mj = scaled["energy_mj"]
    net_mj = None if gross_mj is None or idle_mj is None else gross_mj - idle_mj
    sources = dict.fromkeys(_SOURCES, "unavailable") if factor is None else {}
    return {**row, **scaled, **sources, "net_energy_mj": net_mj}

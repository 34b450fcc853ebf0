"""The clock levels that a governor is priced at: the device's own, else those of its profile.

A profile's levels are what such devices had when somebody looked. Where the run is of this machine
and its driver shows a list, or a range, that is read instead; nothing is set, so nobody needs a
permission. All that follows is at shares of the device's own top clock.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np

from ..profiles.schema import ClockDomain, Levels, OperatingPoint, Profile
from .clocks.base import Actuator, ClockError
from .clocks.choose import see_clock
from .clocks.nvml import NvmlActuator
from .dvfs import Point, level_name, points_of
from .environment import other_machine
from .hardware import hardware_profile
from .meters.choose import torch_uuid

MOST = 32
"""Levels of a longer list that are replayed: enough for every published list of a Jetson (29 at
most). A card lists 110, and the governor ``fixed`` replays every setting at every level."""

_HALF_A_KHZ = 5e-4


@dataclass(frozen=True)
class LevelList:
    """A hardware profile with the levels that are in force, and where they come from.

    Attributes:
        words: where from, for people.
        notes: why, and what it changes, as sentences.
    """

    profile: Profile
    source: Literal["device", "profile"]
    words: str
    notes: tuple[str, ...] = ()

    def points(self, device_class: str) -> tuple[Point, ...] | None:
        """The device's own, slowest first; None where the profile's, or measured ones, serve."""
        return None if self.source == "profile" else points_of(self.profile, device_class)


def elsewhere(profile: Profile) -> LevelList:
    """The levels of the profile of another device than the run's."""
    return _of_profile(profile, "another device than the run's")


def run_profile(known: Mapping[str, Any], device: str) -> Profile | None:
    """The profile that a run was priced with; None where its costs were given, not taken here.

    Args:
        known: ``hardware`` of its manifest.
        device: as torch writes it.

    Raises:
        ExitbenchError: it is a file that is not there any more, or is wrong.
    """
    if not known:
        return None
    asked = known.get("asked", "auto")
    if asked == "auto" and known.get("profile"):
        asked = str(known["profile"])
    return hardware_profile(asked, device).profile


def is_of_costs(profile: Profile, manifest: Mapping[str, Any], device: str) -> bool:
    """Whether a profile is that of the device that a run's costs are of.

    ``run`` may have noted another one since, so the commands that made the costs are asked first.
    """
    known, commands = manifest.get("hardware", {}), manifest.get("commands", {})
    told = [commands[name].get("config", {}) for name in ("profile", "study") if name in commands]
    asked = [str(config.get("hardware", "auto")) for config in told]
    asked = asked or [str(known.get("asked", "auto"))]
    files = [Path(name).resolve() for name in asked if name != "auto"]
    if profile.name in asked or profile.path.resolve() in files:
        return True
    if "auto" not in asked:
        return False
    if known.get("asked", "auto") == "auto" and known.get("profile"):
        return bool(known["profile"] == profile.name)
    detected = hardware_profile("auto", device).profile
    return detected is not None and detected.name == profile.name


def levels_here(
    profile: Profile,
    environment: Mapping[str, Any],
    keep: Collection[str] = (),
    *,
    root: Path = Path("/"),
    nvml: ModuleType | None = None,
    environ: Mapping[str, str] | None = None,
    cuda_uuid: Callable[[int], str | None] = torch_uuid,
) -> LevelList:
    """The levels of a run's own device: read from it where the run is of this machine.

    Args:
        profile: of the run's device; its levels stay where the device shows none.
        environment: of the run.
        keep: names of levels that stay in a list that is thinned out.
        root: where ``proc`` and ``sys`` are found.
        nvml: what answers as ``pynvml``; the installed one if None.
        environ: the environment; that of this process if None.
        cuda_uuid: the UUID of ``cuda:N``; asks torch where it is loaded.

    Raises:
        ExitbenchError: the device is of no known kind.
    """
    device = str(environment.get("device") or "cpu")
    differences = other_machine(environment, root=root)
    if not differences:
        try:
            clock = see_clock(
                profile, device, root=root, nvml=nvml, environ=environ, cuda_uuid=cuda_uuid
            )
        except ClockError as error:
            return _of_profile(profile, "this machine shows none of its own", str(error))
        card = clock.gpu.name if isinstance(clock, NvmlActuator) else None
        differences = other_machine(environment, card, root)
    if differences:
        return _of_profile(profile, "the run is of another machine", ", ".join(differences))
    if len(clock.levels()) < 2:
        only = f"{clock.name} has one level only"
        return _of_profile(profile, "this machine shows none of its own", only)
    return _of_device(profile, "gpu" if device.startswith("cuda") else "cpu", clock, keep)


def _of_profile(profile: Profile, why: str, more: str = "") -> LevelList:
    words = f"levels of the profile: {why}"
    return LevelList(profile, "profile", words, (f"{words} ({more})" if more else words,))


def _of_device(
    profile: Profile, device_class: str, clock: Actuator, keep: Collection[str]
) -> LevelList:
    every = clock.levels()
    known = profile.clocks.get(device_class, ClockDomain())
    same_top = known.top_mhz is not None and abs(known.top_mhz - every[-1]) < _HALF_A_KHZ
    placed = {each.name: _placed(each, device_class, every) for each in profile.operating_points}
    named = [point for point in placed.values() if point is not None]
    wanted = {point.clock_mhz[device_class] for point in named if device_class in point.clock_mhz}
    levels = _thinned(every, wanted | {mhz for mhz in every if level_name(mhz) in keep})
    words = f"the device's own levels, {_count(levels, every)} of {clock.name}"
    own = replace(
        profile,
        clocks={**profile.clocks, device_class: _with(known, levels, clock.name)},
        operating_points=tuple(
            point if same_top else _unstated(point, device_class) for point in named
        ),
    )
    notes = _notes(profile, device_class, [name for name in placed if not placed[name]], same_top)
    return LevelList(own, "device", words, (words, *notes))


def _count(levels: Collection[float], every: Collection[float]) -> str:
    number = len(every)
    return f"all {number}" if len(levels) == number else f"{len(levels)} of the {number}"


def _thinned(levels: tuple[float, ...], keep: Collection[float]) -> tuple[float, ...]:
    """At most ``MOST`` levels, evenly spread, both ends among them; and those of ``keep``."""
    if len(levels) <= MOST:
        return levels
    step = (len(levels) - 1) / (MOST - 1)
    spread = {levels[round(step * number)] for number in range(MOST)}
    return tuple(mhz for mhz in levels if mhz in spread or mhz in keep)


def _placed(
    point: OperatingPoint, device_class: str, levels: tuple[float, ...]
) -> OperatingPoint | None:
    """A named point at the level that it means; None where the device has no such level."""
    if device_class not in point.clock_mhz:
        return point
    mhz = min(levels, key=lambda each: abs(each - point.clock_mhz[device_class]))
    if abs(mhz - point.clock_mhz[device_class]) >= _HALF_A_KHZ:
        return None
    return replace(point, clock_mhz={**point.clock_mhz, device_class: mhz})


def _unstated(point: OperatingPoint, device_class: str) -> OperatingPoint:
    """A point without the figures that it states against the profile's top clock."""
    if device_class not in point.clock_mhz:
        return point
    return replace(point, power_w=None, time_factor=None)


def _with(known: ClockDomain, levels: tuple[float, ...], name: str) -> ClockDomain:
    """A clock with other levels; its voltages at them are interpolated."""
    volts = None
    if known.voltage_mv is not None and known.levels_mhz is not None:
        at = np.interp(levels, known.levels_mhz.value, known.voltage_mv.value)
        volts = replace(known.voltage_mv, value=tuple(at.tolist()))
    read = Levels(levels, f"read from {name}")
    return replace(
        known, levels_mhz=read, voltage_mv=volts, min_mhz=None, max_mhz=None, step_mhz=None
    )


def _notes(
    profile: Profile, device_class: str, left_out: Collection[str], same_top: bool
) -> tuple[str, ...]:
    notes = []
    if left_out:
        notes.append(f"named points that are no level of the device: {', '.join(left_out)}")
    stated = any(
        (point.power_w or point.time_factor) and device_class in point.clock_mhz
        for point in profile.operating_points
    )
    if stated and not same_top:
        notes.append(
            "power and time that named points state against the profile's top clock are not used: "
            "the device's own is another"
        )
    return tuple(notes)

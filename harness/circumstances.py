"""What the paper's flags ask of an evaluation: cores, clocks, and when its images come.

On the device, cores are switched off and clocks set for as long as the evaluation is timed, then
all is put back. Simulated, nothing is changed: the evaluation runs as it would, its time is taken
for that at the top clock, and the power and time model of the hardware profile prices it at the
levels asked for.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ..profiles.schema import Profile
from .clocks.base import Actuator, ClockError, Domain, LeftChanged
from .clocks.choose import find_actuators, level
from .clocks.session import ClockSession
from .configs import Clocks
from .dvfs import Dvfs, Point, dvfs_of
from .environment import working_share
from .errors import ExitbenchError
from .scenes import CONTINUOUS, Scene

SETTLE_S = 0.5  # until clocks are in force: discrete GPUs take up to some hundred milliseconds
_FLAGS: Mapping[Domain, str] = {
    "cores": "--core_num",
    "cpu": "--cpu_freq_level",
    "gpu": "--gpu_freq_level",
}
_NAMES: Mapping[Domain, str] = {"cores": "cores", "cpu": "CPU clock", "gpu": "GPU clock"}
_UNITS: Mapping[Domain, str] = {"cores": " cores", "cpu": " MHz CPU", "gpu": " MHz GPU"}


@dataclass(frozen=True)
class ClockFiles:
    """Where clocks are set, and where what they were is kept; None is this user's place."""

    root: Path = Path("/")
    journal: Path | None = None


THIS_MACHINE = ClockFiles()


@dataclass(frozen=True)
class Circumstances:
    """Under what an evaluation runs.

    Attributes:
        scene: when images come.
        cores: CPU cores that stay online; None: as they are.
        cpu_level: number of the CPU clock in the device's list, from 1, the slowest; None likewise.
        gpu_level: of the GPU clock.
        top: all cores, and all clocks at their top.
        clocks: set on the device, or simulated by the hardware profile.
        hardware: hardware profile that prices energy and simulated clocks.
        files: where clocks are set.
    """

    scene: Scene = CONTINUOUS
    cores: int | None = None
    cpu_level: int | None = None
    gpu_level: int | None = None
    top: bool = False
    clocks: Clocks = "device"
    hardware: str = "auto"
    files: ClockFiles = THIS_MACHINE

    @property
    def wanted(self) -> dict[Domain, int]:
        """The number of cores, and the numbers of the levels, that are asked for one by one."""
        values: dict[Domain, int | None] = {
            "cores": self.cores, "cpu": self.cpu_level, "gpu": self.gpu_level,
        }  # fmt: skip
        return {domain: number for domain, number in values.items() if number is not None}

    @property
    def sets(self) -> bool:
        """Whether cores or clocks are asked for."""
        return self.top or bool(self.wanted)

    @property
    def domains(self) -> tuple[Domain, ...]:
        """What a flag of its own asks for."""
        asked: Mapping[Domain, int | None] = {
            "cores": self.cores, "cpu": self.cpu_level, "gpu": self.gpu_level,
        }  # fmt: skip
        return tuple(domain for domain, value in asked.items() if value is not None)

    @property
    def simulated(self) -> bool:
        """Whether time and energy are priced instead of measured."""
        return self.clocks == "simulated" and (self.sets or self.scene.period_s is not None)

    @property
    def acts(self) -> bool:
        """Whether anything is asked for that an evaluation does not do by itself."""
        return self.sets or self.scene.period_s is not None


NONE = Circumstances()


@dataclass(frozen=True)
class SetClocks:
    """The clocks of an evaluation, found and checked.

    Attributes:
        actuators: what sets them; none where nothing is set.
        values: what they are set to, by domain.
        point: the operating point that they are for the device the network runs on.
        model: prices it; None where the profile states no power.
        source: ``simulated``, ``device``, or ``none`` where they are left as they are.
        device_class: what the network runs on, ``cpu`` or ``gpu``.
        journal: where it is kept what the clocks were; None is this user's place.
        notes: what else there is to say, as sentences.
        cpus: logical CPUs that all the watts are of; None: those of this machine.
    """

    actuators: Mapping[Domain, Actuator]
    values: Mapping[Domain, float]
    point: Point
    model: Dvfs | None
    source: Literal["simulated", "device", "none"]
    device_class: Literal["cpu", "gpu"]
    journal: Path | None = None
    notes: tuple[str, ...] = ()
    cpus: int | None = None

    @property
    def words(self) -> str:
        """The clocks for people; empty where they are left as they are."""
        if self.source == "none":
            return ""
        set_to = ", ".join(f"{value:g}{_UNITS[name]}" for name, value in self.values.items())
        how = {
            "simulated": "simulated: no clock is changed, time and energy are modelled",
            "device": "set on the device, and put back afterwards",
        }
        return f"clocks {how[self.source]}{f' ({set_to})' if set_to else ''}"

    @property
    def waiting_w(self) -> float:
        """Modelled watts of waiting awake: one CPU at work; a GPU idles meanwhile."""
        assert self.model is not None
        if self.device_class == "gpu":
            return self.model.idle_w
        one = working_share(1, self.cpus)
        spinning = replace(self.model, dynamic_w=self.model.dynamic_w / self.model.busy * one)
        return replace(spinning, busy=one).power_w(self.point)

    @contextmanager
    def in_force(self, settle_s: float = SETTLE_S) -> Iterator[None]:
        """The clocks are set inside the block, and put back at its end.

        Args:
            settle_s: time after the change until the clocks are in force.

        Raises:
            ClockError: they cannot be set, or could not be put back.
        """
        if self.source != "device":
            yield
            return
        with ClockSession(self.actuators, journal=self.journal) as session:
            session.apply(self.values)
            time.sleep(settle_s)
            yield

    def prove(self) -> None:
        """Set the clocks and put them back, before any work is done in vain.

        Raises:
            ClockError: they cannot be set; nothing stays changed.
        """
        with with_remedy(), self.in_force(0.0):
            pass


@contextmanager
def with_remedy() -> Iterator[None]:
    """Whoever may not set clocks learns that they can be simulated."""
    try:
        yield
    except ClockError as error:
        text = str(error)
        if isinstance(error, LeftChanged) or "--clocks simulated" in text:
            raise
        raise ClockError(
            f"{text.rstrip('.')}. With --clocks simulated none is changed: the hardware profile "
            "prices them"
        ) from error


def find_clocks(
    asked: Circumstances, profile: Profile | None, device: str, threads: int
) -> SetClocks:
    """The cores and clocks that an evaluation on ``device`` asks for, checked.

    Args:
        profile: the hardware profile; None if none fits.
        device: as torch writes it.
        threads: CPU threads of the network.

    Raises:
        ExitbenchError: nothing sets or simulates them, there is no such level, or the profile that
            simulates them states no power.
    """
    device_class: Literal["cpu", "gpu"] = "cpu" if device == "cpu" else "gpu"
    if not asked.sets and not asked.simulated:
        return SetClocks({}, {}, Point("as set", {}, 1.0), None, "none", device_class)
    found = _actuators(asked, profile, device)
    values = _values(asked, found)
    point, model = _priced(profile, device_class, found, values, threads, asked.simulated)
    used = {domain: found[domain] for domain in values if domain in found}
    return SetClocks(
        used,
        values,
        point,
        model,
        "simulated" if asked.simulated else "device",
        device_class,
        asked.files.journal,
        _notes(asked, values, device_class),
        _cpus(profile, asked.simulated),
    )


def _actuators(
    asked: Circumstances, profile: Profile | None, device: str
) -> dict[Domain, Actuator]:
    """What sets or simulates the domains that are asked for; of the top clocks all that can be."""
    if not asked.sets:
        return {}
    needed: tuple[Domain, ...] = () if asked.top else tuple(asked.wanted)
    if asked.simulated:
        found = find_actuators(profile, device, simulated=True)
    else:
        with with_remedy():
            found = find_actuators(
                profile, device, simulated=False, needed=needed, root=asked.files.root
            )
    missing = [domain for domain in needed if domain not in found]
    if asked.simulated and "cores" in missing:
        missing.remove("cores")  # the threads are all that a simulation of cores changes
    if missing:
        flags = ", ".join(_FLAGS[domain] for domain in missing)
        raise ClockError(
            f"{flags}: the hardware profile has no such levels to simulate; it has those of: "
            f"{', '.join(found)}. Leave the flag out, or name another profile with --hardware"
        )
    return found


def _values(asked: Circumstances, found: Mapping[Domain, Actuator]) -> dict[Domain, float]:
    """What each domain is set to."""
    if asked.top:
        return {name: found[name].levels()[-1] for name in _FLAGS if name in found}
    values: dict[Domain, float] = {}
    for domain, number in asked.wanted.items():
        if domain != "cores":
            values[domain] = level(found[domain], number)
        else:
            values[domain] = _core_count(found[domain], number) if domain in found else number
    return values


def _core_count(actuator: Actuator, number: int) -> float:
    if number not in actuator.levels():
        counts = ", ".join(f"{count:g}" for count in actuator.levels())
        raise ClockError(f"--core_num is {number}; {actuator.name} has these numbers: {counts}")
    return number


def _notes(
    asked: Circumstances, values: Mapping[Domain, float], device_class: Domain
) -> tuple[str, ...]:
    """What is asked for, or meant, and does not happen."""
    if asked.simulated:
        return tuple(_unpriced(asked, device_class))
    left = [_NAMES[domain] for domain in _FLAGS if domain not in values] if asked.top else []
    if not left:
        return ()
    return (f"--baseline 1: left as they are, because nothing here sets them: {', '.join(left)}",)


def _unpriced(asked: Circumstances, device_class: Domain) -> Iterator[str]:
    """What a simulation leaves out."""
    priced: set[Domain] = {"cpu", "cores"} if device_class == "cpu" else {"gpu"}
    flags = [_FLAGS[domain] for domain in asked.wanted if domain not in priced]
    if flags:
        yield (
            f"{', '.join(flags)}: without effect on what is simulated; the network runs on the "
            f"{device_class.upper()}, and the model prices that alone"
        )
    if asked.cores is not None and asked.cores > usable_cpus():
        yield (
            f"--core_num {asked.cores}: this process may use {usable_cpus()} CPUs; simulated cores "
            "are threads, which share them"
        )


def _priced(
    profile: Profile | None,
    device_class: Domain,
    found: Mapping[Domain, Actuator],
    values: Mapping[Domain, float],
    threads: int,
    simulated: bool,
) -> tuple[Point, Dvfs | None]:
    """The operating point of the device that the network runs on, and what prices it."""
    mhz = values.get(device_class)
    point = Point("top clock", {}, 1.0)
    if mhz is not None:
        ratio = mhz / found[device_class].levels()[-1]
        point = Point(f"{mhz:.10g} MHz", {device_class: mhz}, ratio)
    cpus = _cpus(profile, simulated)
    busy = working_share(threads, cpus) if device_class == "cpu" else 1.0
    if profile is None:
        if simulated:
            raise ExitbenchError(
                "clocks are simulated by a hardware profile, and none fits this machine; name one "
                "with --hardware"
            )
        return point, None
    try:
        return point, dvfs_of(profile, device_class, busy=busy)
    except ExitbenchError:
        if simulated:
            raise
        return point, None


def _cpus(profile: Profile | None, simulated: bool) -> int | None:
    """The CPUs of a simulated device, where its profile tells them; None: those of this machine."""
    if not simulated or profile is None or profile.cores is None:
        return None
    return round(profile.cores.counts.value[-1])


def usable_cpus() -> int:
    """How many logical CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

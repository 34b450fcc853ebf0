"""What calibration measured, as a hardware profile; what it could not is taken over and marked.

From the shipped profile that fits the machine comes all that was not measured. None of it is of
this machine, so every figure of it becomes an assumption.
"""

from __future__ import annotations

import glob
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from ..profiles.detect import Machine
from ..profiles.schema import (
    ClockDomain,
    Figure,
    Levels,
    MatchRule,
    OperatingPoint,
    Power,
    Profile,
)
from .loads import Rate

COMMAND = "exitbench hardware calibrate"
PRIORITY = 200
_GIGA = 1e-9


@dataclass(frozen=True)
class LevelRun:
    """What was measured at one clock.

    Attributes:
        time_s: seconds of the convolution.
        power_w: watts under the matrix product; None where no meter measures them.
    """

    mhz: float
    time_s: float
    power_w: float | None


@dataclass(frozen=True)
class Measured:
    """What calibration found out about one device class.

    Attributes:
        covers: what the watts belong to: ``cpu``, ``gpu`` or ``module``.
        device: where it worked, such as ``4 CPU threads``.
        meter: name of what measured them; empty where nothing did.
        load: what the device worked at, in words.
        working: share of the logical CPUs that worked; 1 on a GPU.
        peaks: by the profile's names of them, in operations or bytes per second.
        convolution: speed of a convolution, operations per second.
        levels: clocks in MHz that can be set, by the actuator of this name.
        span_mhz: lowest and highest clock that the kernel tells, where none can be set.
        runs: what was measured at some of ``levels``.
        comments: for the head of the file.
    """

    device_class: str
    date: str
    covers: str
    device: str = ""
    meter: str = ""
    load: str = ""
    idle_w: float | None = None
    active_w: float | None = None
    working: float = 1.0
    peaks: Mapping[str, Rate] = field(default_factory=dict)
    convolution: Rate | None = None
    actuator: str = ""
    levels: tuple[float, ...] = ()
    span_mhz: tuple[float, float] | None = None
    runs: tuple[LevelRun, ...] = ()
    comments: tuple[str, ...] = ()

    @property
    def at_work(self) -> str:
        """What was measured by what, and under which load."""
        return f"{self.meter}, {self.load} on {self.device}"

    def source(self, how: str = "") -> str:
        """The source of a figure: command, date, and how it came about."""
        return f"measured by {COMMAND}, {self.date}" + (f", {how}" if how else "")


def calibrated_profile(name: str, base: Profile, machine: Machine, measured: Measured) -> Profile:
    """The profile of this machine.

    Args:
        name: its name.
        base: the shipped profile that fits; source of what was not measured.
        machine: whose name the rule of the profile asks for.
        measured: what was measured.
    """
    taken: Profile = replace(_assumed(base, base.name), path=Path(), name=name, priority=PRIORITY)
    own = measured.device_class
    what, rule = _what(machine, own), _rule(machine, own)
    levels = _clock(taken.clocks.get(own, ClockDomain()), measured)
    clocks = {**taken.clocks, own: levels} if levels.levels else taken.clocks
    points = tuple(point for point in taken.operating_points if _possible(point, clocks))
    return replace(
        taken,
        description=f"{what or name}, calibrated on {measured.date}",
        identity={**taken.identity, **({own: what} if what else {})},
        match=(rule,) if rule is not None else base.match,
        power={**taken.power, **_power(taken, measured)},
        clocks=clocks,
        operating_points=(*points, *_points(measured)),
        peaks={**taken.peaks, own: _peaks(taken, measured)},
        dvfs=_dvfs(taken, measured),
        model=_model(taken, measured),
    )


def without(profile: Profile, measured: Measured) -> list[str]:
    """What of the own device class was not measured, in words; all of it is an assumption."""
    own, found = measured.device_class, []
    power = profile.power.get(own)
    if power is not None and measured.active_w is None:
        idle = "" if power.idle_w is None else f"{power.idle_w.value:g} W idle and "
        found.append(f"power: {idle}{power.active_w.value:g} W at work")
    clock = profile.clocks.get(own)
    if clock is not None and not measured.levels and measured.span_mhz is None and clock.levels:
        found.append(f"clocks: {clock.levels[0]:g} to {clock.levels[-1]:g} MHz")
    if not measured.runs:
        found.append("power and time over the clocks")
    return found


def _power(taken: Profile, measured: Measured) -> dict[str, Power]:
    if measured.active_w is None:
        return {}
    own, meter = measured.device_class, measured.meter
    idle_w, source = measured.idle_w, measured.source(measured.at_work)
    before = taken.power.get(own)
    if idle_w is None:
        idle = None if before is None else before.idle_w
        if idle is not None and idle.value > measured.active_w:
            idle = None
    else:
        idle = Figure(_rounded(idle_w), measured.source(f"{meter}, nothing running"))
    active_w = _all_at_work(measured.active_w, measured)
    if measured.working < 1 and idle_w is not None:
        source += (
            f": {measured.active_w:.4g} W with {measured.working:.0%} of the logical CPUs at "
            "work, taken to all of them in proportion above idle"
        )
    return {own: Power(measured.covers, Figure(_rounded(active_w), source), idle)}


def _all_at_work(watts: float, measured: Measured) -> float:
    """Watts with every logical CPU at work, in proportion: as modelled power counts utilisation."""
    if measured.idle_w is None:
        return watts
    return measured.idle_w + max(0.0, watts - measured.idle_w) / measured.working


def _peaks(taken: Profile, measured: Measured) -> dict[str, Figure]:
    found = dict(taken.peaks.get(measured.device_class, {}))
    if "fp32_gflops" in measured.peaks:
        found.pop("fp32_flop_per_cycle_per_core", None)
    for key, rate in measured.peaks.items():
        words = f"{rate.words} on {measured.device}"
        how = f"{words}: best of {rate.calls}, the median was {rate.typical * _GIGA:.4g}"
        found[key] = Figure(_rounded(rate.best * _GIGA), measured.source(how))
    return found


def _clock(taken: ClockDomain, measured: Measured) -> ClockDomain:
    if measured.levels:
        read = f"read from {measured.actuator} by {COMMAND}, {measured.date}"
        levels = Levels(tuple(measured.levels), read)
        return replace(
            taken, levels_mhz=levels, voltage_mv=None, min_mhz=None, max_mhz=None, step_mhz=None
        )
    if measured.span_mhz is not None:
        source = f"cpuinfo_min_freq and cpuinfo_max_freq, read by {COMMAND}, {measured.date}"
        low, high = (Figure(mhz, source) for mhz in measured.span_mhz)
        return replace(taken, levels_mhz=None, voltage_mv=None, min_mhz=low, max_mhz=high)
    return taken


def _points(measured: Measured) -> tuple[OperatingPoint, ...]:
    if not measured.runs:
        return ()
    top = max(measured.runs, key=lambda run: run.mhz)
    return tuple(
        OperatingPoint(
            name=f"measured at {run.mhz:.10g} MHz",
            clock_mhz={measured.device_class: run.mhz},
            source=measured.source(measured.actuator),
            power_w=None
            if run.power_w is None
            else Figure(
                _rounded(_all_at_work(run.power_w, measured)),
                measured.source(measured.at_work),
            ),
            time_factor=Figure(
                _rounded(run.time_s / top.time_s),
                measured.source(measured.convolution.words if measured.convolution else ""),
            ),
        )
        for run in measured.runs
    )


def _possible(point: OperatingPoint, clocks: Mapping[str, ClockDomain]) -> bool:
    """Whether the clocks of a point that is taken over are levels of this machine."""
    for domain, mhz in point.clock_mhz.items():
        clock = clocks[domain]
        if clock.levels_mhz is not None:
            if mhz not in clock.levels:
                return False
        elif not (clock.levels and clock.levels[0] <= mhz <= clock.levels[-1]):
            return False
    return True


def _dvfs(taken: Profile, measured: Measured) -> dict[str, dict[str, Figure]]:
    """The shares that are taken over; watts of another machine go where this one's are known."""
    own = measured.device_class
    found = dict(taken.dvfs.get(own, {}))
    if measured.active_w is not None:
        found.pop("static_w", None)
        memory = found.get("memory_w")
        if memory is not None and memory.value > (measured.idle_w or 0.0):
            del found["memory_w"]
    rest = {name: figures for name, figures in taken.dvfs.items() if name != own}
    return {**rest, own: found} if found else rest


def _model(taken: Profile, measured: Measured) -> dict[str, dict[str, Figure]]:
    own = measured.device_class
    found = dict(taken.model.get(own, {}))
    if "bandwidth_gb_s" in measured.peaks:
        found["bandwidth_efficiency"] = Figure(
            1, f"the bandwidth is itself measured by {COMMAND}, {measured.date}"
        )
    peak = measured.peaks.get("fp32_gflops")
    # One image on a GPU is mostly launching, which has a figure of its own.
    if measured.convolution is not None and peak is not None and own == "cpu":
        share = measured.convolution.best / peak.best
        words = f"{measured.convolution.words} on {measured.device}: its best call to the fp32 peak"
        if share > 1:  # it takes fewer operations than are counted, or the product was disturbed
            words += f", {share:.3g} of it, taken as 1"
        found["efficiency"] = Figure(_rounded(min(1.0, share)), measured.source(words))
    rest = {name: figures for name, figures in taken.model.items() if name != own}
    return {**rest, own: found} if found else rest


def _what(machine: Machine, device_class: str) -> str:
    if device_class == "gpu":
        return next((gpu.name for gpu in machine.gpus), "")
    return machine.cpu_model or machine.device_tree_model or ""


def _rule(machine: Machine, device_class: str) -> MatchRule | None:
    candidates = {"cpu_model": machine.cpu_model, "device_tree_model": machine.device_tree_model}
    if device_class == "gpu":
        candidates = {"gpu_name": _what(machine, device_class)}
    for key, value in candidates.items():
        if value:
            return MatchRule({key: (glob.escape(value),)}, f"this machine, read by {COMMAND}")
    return None


def _assumed(part: Any, base: str) -> Any:
    """The same with every figure marked as an assumption that was taken over."""
    if isinstance(part, Figure | Levels):
        return replace(part, source=_from(base, part.source), assumption=True)
    if isinstance(part, tuple):
        return tuple(_assumed(item, base) for item in part)
    if isinstance(part, dict):
        return {key: _assumed(item, base) for key, item in part.items()}
    if not is_dataclass(part) or isinstance(part, type):
        return part
    changed: dict[str, Any] = {
        each.name: _assumed(getattr(part, each.name), base) for each in fields(part)
    }
    if isinstance(part, OperatingPoint):
        changed |= {"assumption": True, "source": _from(base, part.source)}
    return replace(part, **changed)


def _from(base: str, source: str) -> str:
    return f"hardware profile {base}: {source}"


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")

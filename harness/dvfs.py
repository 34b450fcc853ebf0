"""How power and time of a device follow its clocks: a model, for what nobody may set or measure.

Power at clock f and memory clock m, both as shares of the top clock::

    P = static + memory x m + dynamic x f x V(f)^2          V(f): 1 at the top clock

      V |            /          dynamic = active - static - memory,
        |           /           so that P is the active power at the top clock
        |__________/
        +---------+------ f     floor: lowest voltage; knee: clock up to which it is enough
               knee     1

    T = fixed + memory share / m + (1 - fixed - memory share) / f

CMOS: P = C V^2 f and what leaks (De Vogeleer et al., arXiv:1401.4655); voltage flat, then rising
(Guerreiro et al., HPCA 2018); time with a share that does not scale (Hsu and Kremer 2003), and one
of the memory clock (Wang and Chu, arXiv:1701.05308). What a profile does not say is a stated
assumption. ``dvfs_errors.py`` tells how far the model is from published measurements, to which it
was not fitted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

from ..profiles.schema import Figure, OperatingPoint, Power, Profile
from .errors import ExitbenchError

_ADA = "an RTX 4090's 0.880 V at 210 MHz, 0.985 V at 2610 and 1.06 V at 3105"
DEFAULTS: Mapping[str, Figure] = {
    "voltage_floor": Figure(0.83, f"{_ADA}: 0.880 / 1.06", assumption=True),
    "voltage_knee": Figure(0.62, f"{_ADA}: where their line meets 0.880", assumption=True),
    "memory_w": Figure(0.0, "no figure; counted as static", assumption=True),
    "fixed_time_share": Figure(0.1, "no figure; launching and waiting", assumption=True),
    "memory_time_share": Figure(0.0, "no figure", assumption=True),
    "switch_ms": Figure(10.0, "no figure of this device", assumption=True),
}
"""What stands in for a figure that the profile does not have."""


@dataclass(frozen=True)
class Point:
    """One setting of a device's clocks.

    Attributes:
        name: ``854.25 MHz`` for a level, the profile's own name for a named operating point.
        clock_mhz: per clock domain; all points of one device class name the same domains.
        f_ratio: clock of the device class to its top clock, in (0, 1].
        memory_ratio: memory clock to its top clock, in (0, 1].
        units: share of the device's compute units that are switched on, in (0, 1].
        stated_w: gross watts at work that the profile states for this point; None: modelled.
        stated_time: time against the top clock that the profile states; None: modelled.
        stated_idle_w: watts at rest that the profile states for this point; None: ``idle_w``.
    """

    name: str
    clock_mhz: Mapping[str, float]
    f_ratio: float
    memory_ratio: float = 1.0
    units: float = 1.0
    stated_w: float | None = None
    stated_time: float | None = None
    stated_idle_w: float | None = None

    @property
    def _setting(self) -> tuple[float, float, float]:
        return self.f_ratio * self.units, self.memory_ratio, self.f_ratio


@dataclass(frozen=True)
class Dvfs:
    """How power and time of one device class follow its clocks.

    All watts are of what the profile's power ``covers``.

    Attributes:
        idle_w: with nothing running; it follows no clock in this model.
        static_w: at work, whatever the clock.
        dynamic_w: what follows the clock and the square of the voltage, at the top clock.
        memory_w: what follows the memory clock, at its top.
        busy: share of the cores at work, in (0, 1]; ``dynamic_w`` has it in already.
        voltages: (clock, voltage), both relative to the top, where the profile has a table; it
            goes before floor and knee.
        assumptions: the figures above that are assumptions, in words.
    """

    idle_w: float
    static_w: float
    dynamic_w: float
    memory_w: float
    voltage_floor: float
    voltage_knee: float
    fixed_time_share: float
    memory_time_share: float
    switch_s: float
    assumptions: tuple[str, ...] = ()
    busy: float = 1.0
    voltages: tuple[tuple[float, float], ...] = ()

    def voltage(self, f_ratio: float) -> float:
        """The voltage at a clock, relative to that at the top clock."""
        if self.voltages:
            return _interpolated(self.voltages, f_ratio)
        if f_ratio >= 1 or self.voltage_knee >= 1:
            return 1.0 if f_ratio >= 1 else self.voltage_floor
        above = max(0.0, f_ratio - self.voltage_knee) / (1 - self.voltage_knee)
        return self.voltage_floor + (1 - self.voltage_floor) * above

    def idle_at_w(self, point: Point) -> float:
        """Watts at rest: what the profile states for this point, else the idle power."""
        return self.idle_w if point.stated_idle_w is None else point.stated_idle_w

    def power_w(self, point: Point) -> float:
        """Gross watts at work; the active power at the top clock."""
        always_w = self.static_w + self.memory_w * point.memory_ratio
        if point.stated_w is not None:
            return always_w + (point.stated_w - always_w) * self.busy
        follows = point.f_ratio * point.units * self.voltage(point.f_ratio) ** 2
        return always_w + self.dynamic_w * follows

    def time_factor(self, point: Point) -> float:
        """Time of the same work against the top clock: 1 there, more elsewhere."""
        if point.stated_time is not None:
            return point.stated_time
        rest = 1 - self.fixed_time_share - self.memory_time_share
        return (
            self.fixed_time_share
            + self.memory_time_share / point.memory_ratio
            + rest / (point.f_ratio * point.units)
        )


def dvfs_of(profile: Profile, device_class: str, *, busy: float = 1.0) -> Dvfs:
    """The model of one device class of a profile.

    Args:
        profile: where it says nothing, ``DEFAULTS`` stand in, and the static power is the idle
            power less that of the memory.
        device_class: ``cpu`` or ``gpu``.
        busy: share of the device's cores that the work keeps busy, in (0, 1]. The profile's active
            power is that of all cores, so the dynamic part shrinks with it; static and memory
            power stay.

    Raises:
        ExitbenchError: the profile does not say the idle and active power of this device class.
    """
    power = profile.power.get(device_class)
    if power is None or power.idle_w is None:
        what = f"power.{device_class}" if power is None else f"power.{device_class}.idle_w"
        raise ExitbenchError(
            f"hardware profile {profile.name} ({profile.path}) states no {what}, so nothing can be "
            "said about its power over clocks. Add the figure, or choose another --hardware."
        )
    figures = _figures(profile, device_class, power.idle_w)
    value = {key: figure.value for key, figure in figures.items()}
    voltages = _voltage_table(profile, device_class)
    return Dvfs(
        idle_w=power.idle_w.value,
        static_w=value["static_w"],
        dynamic_w=(power.active_w.value - value["static_w"] - value["memory_w"]) * busy,
        memory_w=value["memory_w"],
        voltage_floor=value["voltage_floor"],
        voltage_knee=value["voltage_knee"],
        fixed_time_share=value["fixed_time_share"],
        memory_time_share=value["memory_time_share"],
        switch_s=value["switch_ms"] * 1e-3,
        assumptions=_assumptions(power, figures, bool(voltages)),
        busy=busy,
        voltages=voltages,
    )


def points_of(profile: Profile, device_class: str) -> tuple[Point, ...]:
    """The settings of a device class, slowest first; the last is the top.

    Levels of its clock with all others at their top, and those named operating points that are
    none of them. Points whose speed and memory clock are alike for this device class (they differ
    in another clock) stand there once, as the first of them. On a CPU, a named point that
    switches cores off is left out: what it costs depends on the threads of the work.

    Returns:
        Points; none where the profile knows no levels of this clock.
    """
    top = profile.clocks[device_class].top_mhz if device_class in profile.clocks else None
    if top is None:
        return ()
    named = [point for point in profile.operating_points if _fits(profile, point, device_class)]
    domains = {device_class, *(domain for point in named for domain in point.clock_mhz)}
    highest = {
        domain: clock.top_mhz
        for domain, clock in profile.clocks.items()
        if domain in domains and clock.top_mhz is not None
    }
    found: dict[tuple[float, float, float], Point] = {}
    for mhz in profile.clocks[device_class].levels:
        point = Point(level_name(mhz), {**highest, device_class: mhz}, mhz / top)
        found[point._setting] = point
    for each in named:
        point = _named(each, highest, device_class)
        known = found.get(point._setting)
        if known is None:
            found[point._setting] = point
        else:
            found[point._setting] = _with_what_is_stated(known, point)
    return tuple(found[setting] for setting in sorted(found))


def level_name(mhz: float) -> str:
    """The name of a point that is a level of its clock."""
    return f"{mhz:.10g} MHz"


def find_point(profile: Profile, device_class: str, name: str) -> Point:
    """The point of that name; a named operating point that equals a level is that level.

    Raises:
        ExitbenchError: there is none.
    """
    points = points_of(profile, device_class)
    for point in points:
        if point.name == name:
            return point
    for each in profile.operating_points:
        if each.name == name and _fits(profile, each, device_class):
            asked = _named(each, points[-1].clock_mhz, device_class)
            return next(point for point in points if point._setting == asked._setting)
    names = ", ".join(point.name for point in points) or "none"
    raise ExitbenchError(
        f"hardware profile {profile.name} has no operating point {name!r} of the "
        f"{device_class.upper()}. Choose one of: {names}."
    )


def points_within(points: Iterable[Point], domains: Iterable[str]) -> tuple[Point, ...]:
    """The points that can be had when only the clocks of ``domains`` can be set.

    The others are where they are, taken to be the top: points that lower them are left out, and so
    are points that switch units off.
    """
    points, settable = tuple(points), frozenset(domains)
    kept = []
    for point in points:
        elsewhere = {
            domain: mhz for domain, mhz in point.clock_mhz.items() if domain not in settable
        }
        if point.units == 1 and elsewhere.items() <= points[-1].clock_mhz.items():
            clock_mhz = {key: mhz for key, mhz in point.clock_mhz.items() if key in settable}
            kept.append(replace(point, clock_mhz=clock_mhz))
    return tuple(kept)


def _fits(profile: Profile, point: OperatingPoint, device_class: str) -> bool:
    if device_class not in point.clock_mhz:
        return False
    if device_class != "cpu" or point.cores is None or profile.cores is None:
        return True
    return point.cores.value >= profile.cores.counts.value[-1]


def _named(point: OperatingPoint, highest: Mapping[str, float], device_class: str) -> Point:
    clock_mhz = {**highest, **point.clock_mhz}
    ratios = {domain: mhz / highest[domain] for domain, mhz in clock_mhz.items()}
    units = point.gpu_units if device_class == "gpu" else None
    stated = (point.power_w, point.time_factor, point.idle_w)
    return Point(
        point.name,
        clock_mhz,
        ratios[device_class],
        ratios.get("memory", 1.0),
        1.0 if units is None else units.value,
        *(None if each is None else each.value for each in stated),
    )


def _with_what_is_stated(level: Point, named: Point) -> Point:
    """The level, with the figures of a named point that is the same setting."""
    found = {
        key: getattr(named, key) if getattr(level, key) is None else getattr(level, key)
        for key in ("stated_w", "stated_time", "stated_idle_w")
    }
    return replace(level, **found)


def _figures(profile: Profile, device_class: str, idle_w: Figure) -> dict[str, Figure]:
    """What the profile says, and what stands in where it says nothing."""
    figures = {**DEFAULTS, **profile.dvfs.get(device_class, {})}
    most = 1 - figures["memory_time_share"].value
    if figures["fixed_time_share"].value > most:  # the default beside a share from the profile
        figures["fixed_time_share"] = replace(figures["fixed_time_share"], value=most)
    if "static_w" not in figures:
        figures["static_w"] = _static(idle_w, figures["memory_w"])
    clock = profile.clocks.get(device_class)
    if clock is not None and clock.switch_ms is not None:
        figures["switch_ms"] = clock.switch_ms
    return figures


def _assumptions(power: Power, figures: Mapping[str, Figure], table: bool) -> tuple[str, ...]:
    unused = {"voltage_floor", "voltage_knee"} if table else set()
    told = {"idle_w": power.idle_w, "active_w": power.active_w, **figures}
    return tuple(
        f"{key} = {figure.value:.4g} ({figure.source})"
        for key, figure in told.items()
        if figure is not None and figure.assumption and key not in unused
    )


def _static(idle: Figure, memory: Figure) -> Figure:
    # At rest the memory draws much of what it draws at work: 47.8 W of about 75 W on a Hopper card
    # (public node log). So it is not counted twice.
    source = "the idle power less that of the memory" if memory.value else "the idle power"
    return Figure(max(0.0, idle.value - memory.value), source, assumption=True)


def _voltage_table(profile: Profile, device_class: str) -> tuple[tuple[float, float], ...]:
    clock = profile.clocks.get(device_class)
    if clock is None or clock.voltage_mv is None or clock.levels_mhz is None:
        return ()
    levels, voltages = clock.levels_mhz.value, clock.voltage_mv.value
    return tuple(
        (mhz / levels[-1], mv / voltages[-1]) for mhz, mv in zip(levels, voltages, strict=True)
    )


def _interpolated(table: tuple[tuple[float, float], ...], at: float) -> float:
    if at <= table[0][0]:
        return table[0][1]
    for (low, first), (high, second) in pairwise(table):
        if at <= high:
            return first + (second - first) * (at - low) / (high - low)
    return table[-1][1]

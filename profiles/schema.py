"""What a hardware profile says: the types, and how they are made from a table read from TOML.

Schema version 1. The file format is told in ``docs/hardware.md``; ``shape.py`` checks a file
against it. Every figure has a source, and what nobody has published or measured is marked as an
assumption.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SCHEMA = 1
DEVICE_CLASSES = ("cpu", "gpu")
CLOCK_DOMAINS = ("cpu", "gpu", "memory")
COVERS = ("cpu", "gpu", "module")
METERS = ("nvml", "rapl", "ina3221", "external", "modelled")
ACTUATORS = ("nvml", "cpufreq", "devfreq", "none")
RAIL_PARTS = ("gpu", "cpu", "dram")
PEAKS = (
    "fp32_gflops",
    "tf32_gflops",
    "fp16_gflops",
    "bf16_gflops",
    "int8_gops",
    "fp32_flop_per_cycle_per_core",
    "bandwidth_gb_s",
)
MATCH_KEYS = ("machine", "cpu_model", "device_tree_model", "device_tree_file", "soc", "gpu_name")


@dataclass(frozen=True)
class Figure:
    """One number with where it comes from."""

    value: float
    source: str
    assumption: bool = False


@dataclass(frozen=True)
class Levels:
    """A list of numbers, such as rising clock levels in MHz, with where they come from."""

    value: tuple[float, ...]
    source: str
    assumption: bool = False


@dataclass(frozen=True)
class Power:
    """Watts while a network runs on one device class.

    Attributes:
        covers: what the watts belong to: ``cpu`` (packages), ``gpu`` (the whole card) or
            ``module`` (CPU, GPU and memory on one rail).
        idle_w: with nothing running, in watts; None where unknown.
        active_w: gross, idle included, while the network runs, in watts.
    """

    covers: str
    active_w: Figure
    idle_w: Figure | None = None


@dataclass(frozen=True)
class Rails:
    """Names of the rails that a board's power sensors (INA3221) report.

    Attributes:
        total: rails whose sum is the module.
        gpu, cpu, dram: rails that supply this part alone; empty where none does.
    """

    total: tuple[str, ...]
    source: str
    gpu: tuple[str, ...] = ()
    cpu: tuple[str, ...] = ()
    dram: tuple[str, ...] = ()


@dataclass(frozen=True)
class ClockDomain:
    """A clock that is set as one, in MHz.

    Attributes:
        levels_mhz: where the device has a list of its own; else what is known of its range.
        voltage_mv: voltage at each of ``levels_mhz``, where published.
        actuator: what sets it: one of ``ACTUATORS``; None where the file does not say.
        actuator_source: where that comes from.
        nodes: shell patterns of the devfreq names of this clock.
        switch_ms: time from setting a clock until it is in force.
    """

    levels_mhz: Levels | None = None
    voltage_mv: Levels | None = None
    min_mhz: Figure | None = None
    max_mhz: Figure | None = None
    step_mhz: Figure | None = None
    actuator: str | None = None
    actuator_source: str = ""
    nodes: tuple[str, ...] = ()
    switch_ms: Figure | None = None

    @property
    def top_mhz(self) -> float | None:
        """The highest clock in MHz; None where unknown."""
        if self.levels_mhz is not None:
            return self.levels_mhz.value[-1]
        return None if self.max_mhz is None else self.max_mhz.value

    @property
    def levels(self) -> tuple[float, ...]:
        """The levels in MHz, rising: the list, or the range in its steps; empty where unknown.

        A range without a step has its two ends; the highest clock belongs to every range, also
        where the steps from the lowest do not meet it.
        """
        if self.levels_mhz is not None:
            return self.levels_mhz.value
        if self.max_mhz is None:
            return ()
        high = self.max_mhz.value
        low = high if self.min_mhz is None else self.min_mhz.value
        step = high - low if self.step_mhz is None else self.step_mhz.value
        if low >= high:
            return (high,)
        # A millionth of a step forgives what decimal steps lose in binary.
        below = int((high - low) / step - 1e-6) + 1
        return (*(round(low + step * number, 6) for number in range(below)), high)


@dataclass(frozen=True)
class Cores:
    """The numbers of CPU cores that can be online."""

    actuator: str
    counts: Levels


@dataclass(frozen=True)
class OperatingPoint:
    """A named setting of the clocks, in MHz per clock domain.

    Attributes:
        cores: CPU cores that are online; None where the point leaves them alone.
        gpu_units: share of the GPU's compute units that are switched on; None means all.
        power_w: gross watts at work here, against ``active_w`` at the top clock.
        idle_w: watts at rest here.
        time_factor: time of the same work against the top clock.
    """

    name: str
    clock_mhz: dict[str, float]
    source: str
    assumption: bool = False
    cores: Figure | None = None
    gpu_units: Figure | None = None
    power_w: Figure | None = None
    idle_w: Figure | None = None
    time_factor: Figure | None = None


@dataclass(frozen=True)
class MatchRule:
    """Patterns (shell style, any of each list) that must all hold for the profile to fit."""

    patterns: dict[str, tuple[str, ...]]
    source: str


@dataclass(frozen=True)
class Profile:
    """One hardware configuration file, checked.

    Attributes:
        path: where it was read.
        priority: of several profiles that fit, the highest wins.
        power: per device class that can run a network.
        meters: names among ``METERS``, the preferred first; empty where the file does not say.
        rails: rails of the power sensors; None where the board has none.
        cores: CPU cores that can be switched off; None where they cannot.
        peaks: per device class; names are among ``PEAKS``.
        dvfs: per device class, how power and time follow the clocks (``harness/dvfs.py``).
        model: per device class, how much of the peaks a network reaches.
    """

    name: str
    description: str
    path: Path
    priority: int
    identity: dict[str, str]
    match: tuple[MatchRule, ...]
    power: dict[str, Power]
    meters: tuple[str, ...] = ()
    rails: Rails | None = None
    clocks: dict[str, ClockDomain] = field(default_factory=dict)
    cores: Cores | None = None
    operating_points: tuple[OperatingPoint, ...] = ()
    peaks: dict[str, dict[str, Figure]] = field(default_factory=dict)
    dvfs: dict[str, dict[str, Figure]] = field(default_factory=dict)
    model: dict[str, dict[str, Figure]] = field(default_factory=dict)


def build(raw: dict[str, Any], path: Path) -> Profile:
    """The profile in a table that ``shape.faults_of`` found nothing wrong with."""
    return Profile(
        name=raw["name"],
        description=raw["description"],
        path=path,
        priority=raw["priority"],
        identity=dict(raw.get("identity", {})),
        match=tuple(_rule(rule) for rule in raw["match"]),
        power={name: Power(**_values(power)) for name, power in raw["power"].items()},
        meters=tuple(raw.get("meters", [])),
        rails=Rails(**_values(raw["rails"])) if "rails" in raw else None,
        clocks={
            name: ClockDomain(**_values(clock)) for name, clock in raw.get("clocks", {}).items()
        },
        cores=Cores(**_values(raw["cores"])) if "cores" in raw else None,
        operating_points=tuple(_point(point) for point in raw.get("operating_points", [])),
        peaks={name: _values(table) for name, table in raw.get("peaks", {}).items()},
        dvfs={name: _values(table) for name, table in raw.get("dvfs", {}).items()},
        model={name: _values(table) for name, table in raw.get("model", {}).items()},
    )


def _rule(raw: dict[str, Any]) -> MatchRule:
    patterns = {key: tuple(value) for key, value in raw.items() if key != "source"}
    return MatchRule(patterns, raw["source"])


def _point(raw: dict[str, Any]) -> OperatingPoint:
    rest = {key: value for key, value in raw.items() if key != "clock_mhz"}
    clock_mhz = {domain: float(mhz) for domain, mhz in raw["clock_mhz"].items()}
    return OperatingPoint(clock_mhz=clock_mhz, **_values(rest))


def _values(raw: dict[str, Any]) -> dict[str, Any]:
    return {key: _value(value) for key, value in raw.items()}


def _value(raw: Any) -> Any:
    if isinstance(raw, list):
        return tuple(raw)
    if not isinstance(raw, dict):
        return raw
    if isinstance(raw["value"], list):
        return Levels(**{**raw, "value": tuple(map(float, raw["value"]))})
    return Figure(**{**raw, "value": float(raw["value"])})

"""What a hardware profile says: the types, and the check of a file against them.

Schema version 1. The file format is told in ``docs/hardware.md``. Every figure has a source, and
what nobody has published or measured is marked as an assumption.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import checks
from .checks import Faults

SCHEMA = 1
DEVICE_CLASSES = ("cpu", "gpu")
CLOCK_DOMAINS = ("cpu", "gpu", "memory")
COVERS = ("cpu", "gpu", "module")
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
    """Rising clock levels in MHz with where they come from."""

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
class ClockDomain:
    """A clock that is set as one, in MHz.

    ``levels_mhz`` where the device has a list of its own; else what is known of its range.
    """

    levels_mhz: Levels | None = None
    min_mhz: Figure | None = None
    max_mhz: Figure | None = None
    step_mhz: Figure | None = None

    @property
    def top_mhz(self) -> float | None:
        """The highest clock in MHz; None where unknown."""
        if self.levels_mhz is not None:
            return self.levels_mhz.value[-1]
        return None if self.max_mhz is None else self.max_mhz.value


@dataclass(frozen=True)
class OperatingPoint:
    """A named setting of the clocks, in MHz per clock domain."""

    name: str
    clock_mhz: dict[str, float]
    source: str
    assumption: bool = False


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
        peaks: per device class; names are among ``PEAKS``.
    """

    name: str
    description: str
    path: Path
    priority: int
    identity: dict[str, str]
    match: tuple[MatchRule, ...]
    power: dict[str, Power]
    clocks: dict[str, ClockDomain] = field(default_factory=dict)
    operating_points: tuple[OperatingPoint, ...] = ()
    peaks: dict[str, dict[str, Figure]] = field(default_factory=dict)


_NUMBER = checks.figure(checks.positive)
_POWER = checks.table({"covers": checks.one_of(*COVERS), "active_w": _NUMBER}, {"idle_w": _NUMBER})
_CLOCK = checks.table(
    {},
    {
        "levels_mhz": checks.figure(checks.rising),
        "min_mhz": _NUMBER,
        "max_mhz": _NUMBER,
        "step_mhz": _NUMBER,
    },
)
_POINT = checks.table(
    {
        "name": checks.text,
        "clock_mhz": checks.table_of(CLOCK_DOMAINS, checks.positive),
        "source": checks.text,
    },
    {"assumption": checks.flag},
)
_RULE = checks.table({"source": checks.text}, dict.fromkeys(MATCH_KEYS, checks.texts))
_FILE = checks.table(
    {
        "schema": checks.exactly(SCHEMA),
        "name": checks.text,
        "description": checks.text,
        "priority": checks.whole(0, 1000),
        "match": checks.array_of(_RULE),
        "power": checks.table_of(DEVICE_CLASSES, _POWER),
    },
    {
        "identity": checks.table_of(("vendor", "soc", "cpu", "gpu", "memory"), checks.text),
        "clocks": checks.table_of(CLOCK_DOMAINS, _CLOCK),
        "operating_points": checks.array_of(_POINT),
        "peaks": checks.table_of(DEVICE_CLASSES, checks.table_of(PEAKS, _NUMBER)),
    },
)


def faults_of(raw: dict[str, Any]) -> list[str]:
    """Everything that is wrong with a profile as read from TOML, one line each; empty if nothing.

    What holds between keys is looked at once each key is right by itself.
    """
    faults = Faults()
    _FILE(faults, "", raw)
    if not faults.lines:
        _between_keys(faults, raw)
    return faults.lines


def _between_keys(faults: Faults, raw: dict[str, Any]) -> None:
    for position, rule in enumerate(raw["match"]):
        if not set(rule) & set(MATCH_KEYS):
            faults.missing(f"match[{position}]", f"a rule needs one of {', '.join(MATCH_KEYS)}")
    for name, power in raw["power"].items():
        idle, active = power.get("idle_w"), power["active_w"]["value"]
        if idle is not None and idle["value"] > active:
            allowed = f"must be at most active_w, which is {active}"
            faults.add(f"power.{name}.idle_w.value", idle["value"], allowed)
    for name, clock in raw.get("clocks", {}).items():
        low, high = clock.get("min_mhz"), clock.get("max_mhz")
        if low and high and low["value"] > high["value"]:
            allowed = f"must be at most max_mhz, which is {high['value']}"
            faults.add(f"clocks.{name}.min_mhz.value", low["value"], allowed)
    for position, point in enumerate(raw.get("operating_points", [])):
        for domain, mhz in point["clock_mhz"].items():
            _on_a_level(faults, raw, f"operating_points[{position}].clock_mhz.{domain}", mhz)


def _on_a_level(faults: Faults, raw: dict[str, Any], key: str, mhz: float) -> None:
    domain = key.rpartition(".")[2]
    clock = raw.get("clocks", {}).get(domain)
    if clock is None:
        faults.add(key, mhz, f"there is no [clocks.{domain}] that has this clock")
    elif "levels_mhz" in clock and mhz not in clock["levels_mhz"]["value"]:
        levels = ", ".join(f"{level:g}" for level in clock["levels_mhz"]["value"])
        faults.add(key, mhz, f"must be one of the levels of clocks.{domain}: {levels}")


def build(raw: dict[str, Any], path: Path) -> Profile:
    """The profile in a table that ``faults_of`` found nothing wrong with."""
    return Profile(
        name=raw["name"],
        description=raw["description"],
        path=path,
        priority=raw["priority"],
        identity=dict(raw.get("identity", {})),
        match=tuple(_rule(rule) for rule in raw["match"]),
        power={
            name: Power(**{key: _figure(value) for key, value in power.items()})
            for name, power in raw["power"].items()
        },
        clocks={
            name: ClockDomain(**{key: _figure(value) for key, value in clock.items()})
            for name, clock in raw.get("clocks", {}).items()
        },
        operating_points=tuple(OperatingPoint(**each) for each in raw.get("operating_points", [])),
        peaks={
            name: {key: _figure(value) for key, value in peaks.items()}
            for name, peaks in raw.get("peaks", {}).items()
        },
    )


def _rule(raw: dict[str, Any]) -> MatchRule:
    patterns = {key: tuple(value) for key, value in raw.items() if key != "source"}
    return MatchRule(patterns, raw["source"])


def _figure(raw: Any) -> Any:
    if not isinstance(raw, dict):
        return raw
    if isinstance(raw["value"], list):
        return Levels(**{**raw, "value": tuple(map(float, raw["value"]))})
    return Figure(**{**raw, "value": float(raw["value"])})

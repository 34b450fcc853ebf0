"""The check of a profile's table against schema version 1: every fault at once, one line each."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any

from . import checks
from .checks import Faults
from .schema import (
    ACTUATORS,
    CLOCK_DOMAINS,
    COVERS,
    DEVICE_CLASSES,
    MATCH_KEYS,
    METERS,
    PEAKS,
    RAIL_PARTS,
    SCHEMA,
)

_NUMBER = checks.figure(checks.positive)
_SHARE = checks.figure(checks.share)
_PART = checks.figure(checks.share_or_none)
_WATTS = checks.figure(checks.not_negative)
_POWER = checks.table({"covers": checks.one_of(*COVERS), "active_w": _NUMBER}, {"idle_w": _NUMBER})
_RAILS = checks.table(
    {"total": checks.texts, "source": checks.text}, dict.fromkeys(RAIL_PARTS, checks.texts)
)
_CLOCK = checks.table(
    {},
    {
        "levels_mhz": checks.figure(checks.rising),
        "voltage_mv": checks.figure(checks.not_falling),
        "min_mhz": _NUMBER,
        "max_mhz": _NUMBER,
        "step_mhz": _NUMBER,
        "actuator": checks.one_of(*ACTUATORS),
        "actuator_source": checks.text,
        "nodes": checks.texts,
        "switch_ms": _NUMBER,
    },
)
_CORES = checks.table(
    {"actuator": checks.one_of("hotplug"), "counts": checks.figure(checks.counts)}
)
_POINT = checks.table(
    {
        "name": checks.text,
        "clock_mhz": checks.table_of(CLOCK_DOMAINS, checks.positive),
        "source": checks.text,
    },
    {
        "assumption": checks.flag,
        "cores": checks.figure(checks.whole(1, 4096)),
        "gpu_units": _SHARE,
        "power_w": _NUMBER,
        "idle_w": _NUMBER,
        "time_factor": _NUMBER,
    },
)
_DVFS = checks.table(
    {},
    {
        "static_w": _WATTS,
        "memory_w": _WATTS,
        "voltage_floor": _SHARE,
        "voltage_knee": _SHARE,
        "fixed_time_share": _PART,
        "memory_time_share": _PART,
    },
)
_MODEL = checks.table(
    {}, {"efficiency": _SHARE, "bandwidth_efficiency": _SHARE, "launch_ms": _NUMBER}
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
        "meters": checks.choices(*METERS),
        "rails": _RAILS,
        "clocks": checks.table_of(CLOCK_DOMAINS, _CLOCK),
        "cores": _CORES,
        "operating_points": checks.array_of(_POINT),
        "peaks": checks.table_of(DEVICE_CLASSES, checks.table_of(PEAKS, _NUMBER)),
        "dvfs": checks.table_of(DEVICE_CLASSES, _DVFS),
        "model": checks.table_of(DEVICE_CLASSES, _MODEL),
    },
)


def faults_of(raw: dict[str, Any]) -> list[str]:
    """Everything that is wrong with a profile as read from TOML, one line each; empty if nothing.

    What holds between keys is looked at once each key is right by itself.
    """
    faults = Faults()
    _FILE(faults, "", raw)
    if not faults.lines:
        for check in (_match, _power, _rails, _clocks, _points, _dvfs):
            check(faults, raw)
    return faults.lines


def _match(faults: Faults, raw: dict[str, Any]) -> None:
    for position, rule in enumerate(raw["match"]):
        if not set(rule) & set(MATCH_KEYS):
            faults.missing(f"match[{position}]", f"a rule needs one of {', '.join(MATCH_KEYS)}")


def _power(faults: Faults, raw: dict[str, Any]) -> None:
    if not raw["power"]:
        faults.missing("power", f"the file needs one of {', '.join(DEVICE_CLASSES)} there")
    for name, power in raw["power"].items():
        _at_most(faults, f"power.{name}", power, "idle_w", "active_w")


def _rails(faults: Faults, raw: dict[str, Any]) -> None:
    rails = raw.get("rails")
    if ("ina3221" in raw.get("meters", [])) != (rails is not None):
        if rails is None:
            faults.missing("rails", "the meter ina3221 adds the rails that [rails] names")
        else:
            faults.add("meters", raw.get("meters"), "must name ina3221, which reads [rails]")
    if rails is None:
        return
    for key in ("total", *RAIL_PARTS):
        names = rails.get(key, [])
        if len(set(names)) < len(names):
            faults.add(f"rails.{key}", names, "must name each rail once: it would be added twice")
    for one, other in combinations(RAIL_PARTS, 2):
        for name in sorted(set(rails.get(one, [])) & set(rails.get(other, []))):
            faults.add(f"rails.{other}", name, f"is in rails.{one} too; a rail supplies one part")


def _clocks(faults: Faults, raw: dict[str, Any]) -> None:
    for name, clock in raw.get("clocks", {}).items():
        key = f"clocks.{name}"
        _at_most(faults, key, clock, "min_mhz", "max_mhz")
        _voltages(faults, key, clock)
        if "actuator" in clock and "actuator_source" not in clock:
            faults.missing(f"{key}.actuator_source", "say where the actuator comes from")
        by_devfreq = clock.get("actuator") == "devfreq"
        if "nodes" in clock and not by_devfreq:
            faults.add(f"{key}.nodes", clock["nodes"], 'needs actuator = "devfreq"')
        # The memory of a Jetson is set by a file of the firmware that has no such name.
        if by_devfreq and "nodes" not in clock and name != "memory":
            faults.missing(f"{key}.nodes", "devfreq needs patterns of the clock's names")


def _voltages(faults: Faults, key: str, clock: dict[str, Any]) -> None:
    if "voltage_mv" not in clock:
        return
    voltages, levels = clock["voltage_mv"]["value"], clock.get("levels_mhz", {}).get("value", [])
    if len(voltages) != len(levels):
        allowed = f"must have one voltage for each of the {len(levels)} levels_mhz"
        faults.add(f"{key}.voltage_mv.value", voltages, allowed)


def _points(faults: Faults, raw: dict[str, Any]) -> None:
    seen: set[str] = set()
    for position, point in enumerate(raw.get("operating_points", [])):
        key = f"operating_points[{position}]"
        if point["name"] in seen:
            faults.add(f"{key}.name", point["name"], "another point has this name")
        seen.add(point["name"])
        _at_most(faults, key, point, "idle_w", "power_w")
        counts = raw.get("cores", {}).get("counts", {}).get("value")
        if counts and "cores" in point and point["cores"]["value"] not in counts:
            allowed = f"must be one of cores.counts: {', '.join(map(str, counts))}"
            faults.add(f"{key}.cores.value", point["cores"]["value"], allowed)
        for domain, mhz in point["clock_mhz"].items():
            _on_a_level(faults, raw, f"{key}.clock_mhz.{domain}", mhz)


def _on_a_level(faults: Faults, raw: dict[str, Any], key: str, mhz: float) -> None:
    domain = key.rpartition(".")[2]
    clock = raw.get("clocks", {}).get(domain)
    if clock is None:
        faults.add(key, mhz, f"there is no [clocks.{domain}] that has this clock")
    elif "levels_mhz" in clock:
        if mhz not in clock["levels_mhz"]["value"]:
            levels = ", ".join(f"{level:g}" for level in clock["levels_mhz"]["value"])
            faults.add(key, mhz, f"must be one of the levels of clocks.{domain}: {levels}")
    else:
        low = clock.get("min_mhz", {}).get("value", 0)
        high = clock.get("max_mhz", {}).get("value", float("inf"))
        if not low <= mhz <= high:
            faults.add(key, mhz, f"must lie in the range of clocks.{domain}: {low:g} to {high:g}")


def _dvfs(faults: Faults, raw: dict[str, Any]) -> None:
    for name, dvfs in raw.get("dvfs", {}).items():
        power = raw["power"].get(name)
        if power is None:
            faults.missing(f"power.{name}", f"[dvfs.{name}] shares out its active_w")
            continue
        together, active = sum(_given(dvfs, "static_w", "memory_w")), power["active_w"]["value"]
        if together > active:
            allowed = f"static_w and memory_w must be at most active_w together, which is {active}"
            faults.add(f"dvfs.{name}", together, allowed)
        shares = sum(_given(dvfs, "fixed_time_share", "memory_time_share"))
        if shares > 1:
            allowed = "fixed_time_share and memory_time_share must be at most 1 together"
            faults.add(f"dvfs.{name}", shares, allowed)


def _given(table: dict[str, Any], *keys: str) -> Iterator[float]:
    return (table[key]["value"] for key in keys if key in table)


def _at_most(faults: Faults, key: str, table: dict[str, Any], low: str, high: str) -> None:
    if low in table and high in table and table[low]["value"] > table[high]["value"]:
        allowed = f"must be at most {high}, which is {table[high]['value']}"
        faults.add(f"{key}.{low}.value", table[low]["value"], allowed)

"""How the energy of a run was measured, in plain sentences from its manifest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .measurements import flags_of
from .origin import profiled_here, why_no_energy
from .view import View, energy_source
from .words import NONE, change, figures, listing, percent

TIER_WORDS = {
    "quick": "quick: at least 5 s of every unit in 5 windows; good for a first look",
    "standard": "standard: at least 30 s of every unit, until the 95% interval of the median is "
    "within 2% or the time is up",
    "publish": "publish: at least 600 s, idle power watched before and after, settings recorded",
}
COVERED = {
    "gpu": "the GPU card with its memory",
    "cpu": "the CPU packages",
    "dram": "main memory",
    "module": "the module: CPU, GPU and memory on one rail",
    "board": "everything behind one plug",
}
OWN_COST = 0.01
"""Share of a window that reading the meter may take; more of it is said to be too much."""


def hardware(view: View) -> Mapping[str, Any]:
    """What the manifest says of hardware and meters; empty where it says nothing."""
    return mapping(view.run.manifest.get("hardware"))


def mapping(value: Any) -> Mapping[str, Any]:
    """``value`` if it is an object, else an empty one: a manifest may lack any part."""
    return value if isinstance(value, Mapping) else {}


def number(value: Any) -> float | None:
    """``value`` if it is a number, else None."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def profiles(view: View) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """Per profiled precision and batch size: its key, its entry, and how its energy was taken."""
    for key, value in mapping(view.run.manifest.get("profile")).items():
        entry = mapping(value)
        yield str(key), entry, mapping(entry.get("energy"))


def meters(view: View) -> list[Mapping[str, Any]]:
    """The meters of the run as the manifest lists them."""
    found = hardware(view).get("meters")
    return [mapping(one) for one in found] if isinstance(found, list) else []


def how_measured(view: View) -> list[str]:
    """The section's sentences, in the order in which one would ask."""
    if not profiled_here(view):
        return [
            "The energies come with a given cost table; exitbench has metered nothing for them."
            if energy_source(view.test) != "unavailable"
            else f"There is no energy: {why_no_energy(view)}."
        ]
    found = [*_meter(view), *_tier(view), *_idle(view), *_own_cost(view)]
    return [*found, *_second_opinions(view), *_residues(view), *_outside(view)]


def _meter(view: View) -> list[str]:
    source, words = energy_source(view.test), str(hardware(view).get("energy") or "")
    if source == "unavailable":
        return [f"There is no energy: {why_no_energy(view)}."]
    plain = f"Energy per sample is {source}."
    return [f"{plain} {words[:1].upper()}{words[1:]}" if words else plain]


def _tier(view: View) -> list[str]:
    source = energy_source(view.test)
    if source == "modelled":
        return ["Modelled energy needs no windows: it is power times time."]
    tier = hardware(view).get("tier")
    done = list(dict.fromkeys(str(e["tier"]) for _, _, e in profiles(view) if e.get("tier")))
    if not tier and not done:
        return []
    names = done or [str(tier)]
    text = f"Windows: {listing([TIER_WORDS.get(name, name) for name in names])}."
    if tier and done and done != [tier]:
        text += f" Asked for was {tier}."
    if "modelled" in source:
        text += " What is modelled needs no windows: it is power times time."
    return [text]


def _idle(view: View) -> list[str]:
    found = hardware(view)
    idle = number(found.get("idle_w"))
    if idle is None:
        return ["Idle power is not known, so there is no net energy and no energy on a schedule."]
    source = found.get("idle_source") or "source not stated"
    return [
        f"Idle power is {figures(idle)} W ({source}). Energies are gross; net energy is less idle "
        "power times the time, and where the two are close it may come out below zero: that is "
        "noise, and is not cut off."
    ]


def _own_cost(view: View) -> list[str]:
    told = mapping(hardware(view).get("overhead"))
    edge, share = number(told.get("open_close_s")), number(told.get("share"))
    runs = [r["meter_overhead"] for r in view.run.measurements if r.get("meter_overhead")]
    share = max([s for s in (share, *runs) if s is not None], default=None)
    if edge is None and share is None:
        return []
    parts = [f"opening and closing a window takes {figures(1e3 * edge)} ms"] if edge else []
    if share is not None:
        judged = "below" if share < OWN_COST else "ABOVE"
        size = "under 0.01%" if share < 1e-4 else percent(share, 2)
        parts.append(
            f"reading the meter took at most {size} of a window, {judged} the "
            f"{percent(OWN_COST, 0)} allowed"
        )
    if not parts:
        return []
    text = listing(parts)
    return [f"The harness's own cost: {text}."]


def _second_opinions(view: View) -> list[str]:
    """What another instrument read of the same windows, against the counter."""
    found: dict[str, list[float]] = {}
    for _, _, energy in profiles(view):
        counted = number(mapping(energy.get("joules")).get("gpu"))
        for name, value in mapping(energy.get("checks")).items():
            if counted and (other := number(value)) is not None:
                found.setdefault(str(name), []).append(other / counted)
    return [
        f"A second reading of the same windows, {name}, lies {spread(ratios)} off the counter; the "
        "counter counts."
        for name, ratios in found.items()
    ]


def spread(ratios: list[float]) -> str:
    """Ratios as a range of changes in percent: ``−1.0% to +2.5%``."""
    low, high = change(min(ratios), 1), change(max(ratios), 1)
    return low if low == high else f"{low} to {high}"


def _residues(view: View) -> list[str]:
    """The sum over the layers against the whole network, in latency and measured energy."""
    parts = []
    for key, entry, _ in profiles(view):
        whole = mapping(entry.get("whole"))
        said = [
            f"{percent(share)} in {noun}"
            for noun, quantity in (("latency", "latency_ms"), ("energy", "energy_mj"))
            if (share := residue(whole, quantity)) is not None
            # A modelled energy is power times time: its residue would say the same twice.
            and (noun == "latency" or whole.get("energy_source") == "measured")
        ]
        if said:
            parts.append(f"{key}: {listing(said)}")
    if not parts:
        return []
    return [
        "The whole network was measured on its own as well; what it takes beyond the sum of its "
        f"layers (negative: less) is {'; '.join(parts)} of the whole."
    ]


def residue(whole: Mapping[str, Any], quantity: str) -> float | None:
    """Whole less the sum of its parts, as a share of the whole; None where one is not known."""
    left, total = number(whole.get(f"residue_{quantity}")), number(whole.get(quantity))
    return None if left is None or not total else left / total


def _outside(view: View) -> list[str]:
    """What no number here covers."""
    source = energy_source(view.test)
    if source == "unavailable":
        return []
    told = [meter.get("domains") for meter in meters(view)]
    domains = {str(domain) for each in told if isinstance(each, list) for domain in each}
    if "board" in domains:
        return [
            "The meter covers everything behind one plug, so other loads on the machine are in the "
            "numbers too."
        ]
    text = "Not covered: the power supply's loss, fans, storage and network."
    if "module" not in domains and "dram" not in domains:
        text += " Main memory has no meter of its own and is in no number that does not name it."
    return [
        f"{text} Counters inside the device are not wall power, and every other process on what "
        "they cover is in them."
        if "measured" in source
        else f"{text} Modelled energy cannot show what a power meter would."
    ]


def flagged(view: View) -> list[str]:
    """What makes windows bad ones though they could be read, one sentence per flag and place."""
    found = [
        f"{key}: {flag.rstrip('.')}."
        for key, _, energy in profiles(view)
        for flag in flags_of(energy.get("flags"))
    ]
    seen: dict[str, list[str]] = {}
    for row in view.run.measurements:
        for flag in flags_of(row.get("energy_flags")):
            seen.setdefault(flag.rstrip("."), []).append(f"{row['policy']} in {row['precision']}")
    found += [
        f"Really run, {listing(list(dict.fromkeys(runs)))}: {flag}." for flag, runs in seen.items()
    ]
    return found


def covered(domains: Any) -> str:
    """Domains of a meter in words."""
    listed = [COVERED.get(str(d), str(d)) for d in domains] if isinstance(domains, list) else []
    return listing(listed) if listed else NONE


def modelled_clocks(view: View) -> list[str]:
    """Per governed hardware: which figures are modelled, and how wrong the model is."""
    found = []
    for governed in view.run.governed:
        facts = governed.facts
        parts = [
            str(facts[key]).rstrip(".")
            for key in ("model", "model_error", "claims")
            if facts.get(key)
        ]
        if parts:
            found.append(f"{governed.hardware}: {'. '.join(parts)}.")
    return found

"""What there is to say of energy windows: what was not resolved, and what makes one a bad one."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from .idle import Idle
from .meters.base import Reading
from .meters.card import CHECK, DIVERGENCE
from .overhead import of_reading
from .tiers import Plan
from .windows import Taken, measured_s, resolved, within

_SHOWN = 5  # units that a sentence names
_FIGURE = re.compile(r"[0-9]+(?:[.,][0-9]+)*(?:e[+-]?[0-9]+)?")

Windows = Mapping[str, Sequence[Taken]]


def window_notes(taken: Windows) -> list[str]:
    """Why readings are incomplete or doubtful: each reason once, with the units it befell."""
    unresolved = _befell(taken, lambda window: [window.reading.note])
    return [
        *(f"energy unresolved for {who}: {note}" for note, who in unresolved.items()),
        *(f"energy of {who}: {flag}" for flag, who in _flags(taken).items()),
        *(f"energy: {words}" for words in apart(_readings(taken))),
    ]


def tier_notes(taken: Windows, plan: Plan, allowed_s: float | None) -> list[str]:
    """That the tier was not reached, and what was measured instead."""
    if plan.reached:
        return []
    tier, fewest = plan.tier, _fewest(taken)
    why, remedy = "units ran shorter than they were timed", "profile again"
    if any(0 < len(resolved(windows)) < len(windows) for windows in taken.values()):
        why = "windows could not be resolved"
    elif allowed_s is not None:
        why, remedy = f"{allowed_s:.3g} s are allowed", "leave out --energy-seconds to reach it"
    return [
        f"energy: the tier {tier.name} was not reached, because {why}: {fewest} "
        f"window{'s' * (fewest > 1)} of about {plan.window_s:.3g} s per unit instead of "
        f"{tier.windows} of {max(tier.window_s, plan.window_s):.3g} s; {remedy}"
    ]


def interval_notes(taken: Windows, plan: Plan) -> list[str]:
    """Which units the tier's cap, or the time allowed, left with a wider interval than it asks."""
    if plan.interval is None:
        return []
    wide = []
    for name, windows in taken.items():
        known = [window.energy_j for window in windows if window.energy_j is not None]
        if known and not within(known, plan.interval):
            wide.append(name)
    if not wide:
        return []
    seconds = min(measured_s(taken[name]) for name in wide)
    return [
        f"after {seconds:.0f} s each, the 95% interval of the energy of {_names(wide)} was still "
        f"wider than {plan.interval:.0%} to a side"
    ]


def summary(
    taken: Windows, tier: str | None, window_s: float | None, idle: Idle
) -> dict[str, Any]:
    """How energies were measured, as plain values for the manifest.

    Args:
        tier: as it was reached; None where energies are modelled and need no windows.
        window_s: the length that windows were planned for.
    """
    windows = [window for each in taken.values() for window in each]
    share = [w.reading.overhead_s / w.reading.seconds for w in windows if w.reading.seconds > 0]
    joules = _sums([window.reading.joules for window in windows]) if tier else {}
    checks = _sums([window.reading.checks for window in windows])
    return {
        "tier": tier,
        "windows": _fewest(taken) if tier else None,
        "window_s": window_s if tier else None,
        "measured_s": sum(window.reading.seconds for window in windows) if tier else None,
        "idle_w": idle.power_w,
        "idle_source": idle.source,
        "idle_low_w": idle.interval_w[0] if idle.interval_w else None,
        "idle_high_w": idle.interval_w[1] if idle.interval_w else None,
        "overhead": max(share, default=None) if tier else None,
        "flags": [f"{who}: {flag}" for flag, who in _flags(taken).items()]
        + apart(_readings(taken)),
        "joules": joules,
        "checks": checks,
        "conditions": _conditions(windows),
    }


def apart(readings: Sequence[Reading]) -> list[str]:
    """That windows together are another energy to a card's counter than to its power, if so."""
    counted_j = _sums([reading.joules for reading in readings]).get("gpu")
    sampled_j = _sums([reading.checks for reading in readings]).get(CHECK)
    if not counted_j or sampled_j is None:
        return []
    share = abs(sampled_j - counted_j) / counted_j
    if share <= DIVERGENCE:
        return []
    return [
        f"all windows together: the energy counter says {counted_j:.4g} J, {CHECK} "
        f"{sampled_j:.4g} J: they differ by {share:.0%}"
    ]


def _readings(taken: Windows) -> list[Reading]:
    return [window.reading for windows in taken.values() for window in windows]


def _fewest(taken: Windows) -> int:
    """The least windows that were read of any unit; units of which none was do not count."""
    counts = [len(resolved(windows)) for windows in taken.values()]
    return min((count for count in counts if count), default=0)


def _flags(taken: Windows) -> dict[str, str]:
    def flags(window: Taken) -> list[str]:
        return [*window.reading.flags, of_reading(window.reading)]

    return _befell(taken, flags)


def _befell(taken: Windows, reasons: Callable[[Taken], Sequence[str]]) -> dict[str, str]:
    """The units that each reason befell, in words; no reason is an empty one."""
    found = {
        name: [reason for window in windows for reason in reasons(window) if reason]
        for name, windows in taken.items()
    }
    said = alike(reason for each in found.values() for reason in each)
    befell: dict[str, list[str]] = {}
    for name, each in found.items():
        for reason in sorted({said[reason] for reason in each}):
            befell.setdefault(reason, []).append(name)
    return {
        reason: "all units" if len(names) == len(taken) else _names(names)
        for reason, names in befell.items()
    }


def alike(sentences: Iterable[str]) -> dict[str, str]:
    """What stands for each of these sentences: the first of those that differ in figures only.

    With how many more there are; else every window of a throttled card would have its own.
    """
    groups: dict[str, list[str]] = {}
    for sentence in dict.fromkeys(sentences):
        groups.setdefault(_FIGURE.sub("0", sentence), []).append(sentence)
    said: dict[str, str] = {}
    for group in groups.values():
        more = len(group) - 1
        words = group[0] + (f"; {more} more with other figures" if more else "")
        said |= dict.fromkeys(group, words)
    return said


def _names(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _sums(readings: Sequence[Mapping[str, float | None]]) -> dict[str, float]:
    """Joules over all windows by domain or instrument, of those that every window resolved."""
    names = dict.fromkeys(name for reading in readings for name in reading)
    sums = {}
    for name in names:
        values = [reading.get(name) for reading in readings]
        known = [value for value in values if value is not None]
        if len(known) == len(values):
            sums[name] = math.fsum(known)
    return sums


def _conditions(windows: Sequence[Taken]) -> dict[str, Any]:
    """What was logged over all windows: lowest and highest of numbers, else every value seen."""
    found: dict[str, list[Any]] = {}
    for window in windows:
        for name, value in window.reading.conditions.items():
            if value not in found.setdefault(name, []):
                found[name].append(value)
    return {
        name: {"low": min(values), "high": max(values)}
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        else values
        for name, values in found.items()
    }

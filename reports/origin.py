"""Where the costs of a run come from, in words: this machine, or a table from elsewhere."""

from __future__ import annotations

import math

from .view import View, energy_source
from .words import listing


def profiled_here(view: View) -> bool:
    """Whether the costs were measured by this run, on its own machine.

    Else the cost table was given, by hand or from another machine, and the machine that the
    manifest describes has only done the arithmetic.
    """
    return bool(view.run.manifest.get("profile"))


def device_words(view: View) -> str:
    """The device that the costs are of; says so where the table names none."""
    device = view.place.get("device")
    return f"device {device}" if device else "a device that the cost table does not name"


def place_words(view: View) -> str:
    """Batch size, operating point and device that the shown costs are of."""
    size, point = view.place.get("batch_size"), view.place.get("operating_point")
    words = []
    if isinstance(size, int | float) and not math.isnan(size):
        words.append(f"batch size {size:g}")
    words += [f"operating point {point}"] if point else []
    return listing([*words, device_words(view)])


def why_no_energy(view: View) -> str:
    """Why a run has no energy, as the second half of a sentence."""
    if not profiled_here(view):
        return "the cost table holds none"
    if not energy_asked_for(view):
        return "it was not asked for when the network was profiled"
    return "no meter could be read on this machine and no power was modelled"


def energy_asked_for(view: View) -> bool:
    """Whether a meter was wanted for the profile; true where the manifest does not tell."""
    profiles = view.run.manifest.get("profile")
    told = [
        value["how"]["energy"]
        for value in (profiles.values() if isinstance(profiles, dict) else ())
        if isinstance(value, dict)
        and isinstance(value.get("how"), dict)
        and "energy" in value["how"]
    ]
    return not told or any(told)


def energy_limits(view: View) -> list[str]:
    """What the energies cannot tell."""
    source = energy_source(view.test)
    if source == "unavailable":
        return [
            f"Energy is unavailable: {why_no_energy(view)}. It is not estimated; "
            f"settings are ranked by {view.metric.noun}."
        ]
    if not profiled_here(view):
        return [f"Energy is {source}, as the cost table says; exitbench has not measured it."]
    if "modelled" in source:
        return [
            f"Energy is {source}. Modelled energy is power from the hardware profile times time: "
            "it follows latency and cannot show what a power meter would."
        ]
    return ["Energy is measured by the meters named below; it includes all they cover."]


def ranking_limits(view: View) -> list[str]:
    """A cost that is known in part and could therefore not rank the settings."""
    partly = []
    for metric in view.metrics:
        if metric is view.metric:
            break
        known = view.test[metric.column].notna()
        partly.append(
            f"Settings are ranked by {view.metric.noun} although {metric.noun} is known for "
            f"{int(known.sum()):,} of {len(known):,}: what the others cost the table does not say."
        )
    return partly

"""Tables on energy: governed clocks, scenes, the meters, and the windows they were read in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from .governed import (
    CLAIMS,
    TOP,
    deadline_words,
    governor_words,
    groups,
    settings,
)
from .measurements import flags_of
from .metering import covered, mapping, meters, number, profiles, residue
from .reading import Governed
from .scenarios import idle_share, policies, scene_words, scenes
from .table import Table, filled
from .view import ROLE_WORDS, View, latency_note, ordered_precisions
from .words import NONE, count, figures, listing, percent


def governed_tables(view: View) -> list[Table]:
    """Per hardware every policy and governor at equal latency."""
    return [_governed_table(governed) for governed in view.run.governed]


def _governed_table(governed: Governed) -> Table:
    cells = [
        [
            ROLE_WORDS.get(row["role"], row["role"]),
            governor_words(row),
            str(row["precision"]),
            percent(row["accuracy"]),
            figures(row["latency_ms"]),
            figures(row["latency_p99_ms"]),
            percent(row["missed"]),
            figures(row["switches"]),
            figures(row["busy_energy_mj"]),
            figures(row["energy_mj"]),
            str(row["energy_source"] or "unavailable"),
            percent(row["energy_vs_full"], 0),
            percent(row["energy_vs_every_exit"], 0),
        ]
        for row in _ordered(governed)
    ]
    words = [
        f"{precision} {deadline_words(governed, precision)}"
        for precision in ordered_precisions(governed.rows)
    ]
    head = ["policy", "clocks", "precision", "accuracy"]
    head += [f"latency (ms{latency_note(governed.rows)})", "99% below (ms)", "late"]
    head += ["switches", "at work (mJ)", "with idle (mJ)", "source", "of full", "of every-exit"]
    head, cells, _ = filled(head, cells, 3)
    return Table(
        f"governed-{governed.hardware}",
        f"Governed clocks on {governed.hardware}",
        head,
        cells,
        governed.rows,
        "Per request, test split; with idle: until the deadline, so that all take the same time. "
        f"Deadline: {', '.join(words)}. Shares are of the full network and of every-exit from exit "
        f"1 in the same precision at the {TOP}{_claim_words(governed)}.",
        texts=3,
    )


def _claim_words(governed: Governed) -> str:
    """What the paper claims for these shares."""
    parts = [
        f"{percent(found.iloc[0])} of {words}"
        for column, (_, words) in CLAIMS.items()
        if len(found := governed.rows[column].dropna())
    ]
    return f"; the paper claims {listing(parts)} for prediction with a governor" if parts else ""


def _ordered(governed: Governed) -> list[dict[str, Any]]:
    """The rows as the figure groups them, precision by precision; what it leaves out comes last."""
    found: list[dict[str, Any]] = []
    for precision in ordered_precisions(governed.rows):
        shown = [row for _, rows in groups(governed, precision) for row in rows]
        found += shown + [row for row in settings(governed, precision) if row not in shown]
    return found


def scenarios_table(view: View) -> Table | None:
    """Every policy in every scene: energy per request and per hour, and what of it is idle."""
    rows = view.run.scenarios
    if rows is None:
        return None
    cells: list[list[str]] = []
    for scene in scenes(rows):
        for row in policies(rows, scene):
            keeps = "yes" if row["keeps_up"] else "no"
            cells.append(
                [
                    ROLE_WORDS[row["role"]],
                    str(row["precision"]),
                    scene_words(scene),
                    percent(row["accuracy"]),
                    figures(row["latency_ms"]),
                    percent(row["busy_share"]) if row["keeps_up"] else NONE,
                    keeps,
                    count(row["requests_per_hour"]),
                    figures(row["energy_per_request_mj"]),
                    figures(row["energy_per_hour_j"]),
                    percent(idle_share(row)),
                    figures(row["power_w"]),
                    str(row["energy_source"] or "unavailable"),
                ]
            )
    head = ["policy", "precision", "scene", "accuracy", "latency (ms)", "busy", "keeps up"]
    head += ["requests per hour", "energy per request (mJ)", "per hour (J)", "of it idle"]
    head, cells, _ = filled([*head, "mean power (W)", "source"], cells, 3)
    return Table(
        "scenarios",
        "Energy on a schedule",
        head,
        cells,
        rows,
        "Energy per request holds the idle time until the next one. A setting that cannot keep up "
        "with the period is shown at its own rate. Bounds and the recommended setting, which plays "
        "another role as well, stand in the CSV file only.",
        texts=3,
    )


def meters_table(view: View) -> Table | None:
    """The meters of the run."""
    found = meters(view)
    if not found:
        return None
    cells = []
    for meter in found:
        period = number(meter.get("update_period_s"))
        cells.append(
            [
                str(meter.get("name") or NONE),
                covered(meter.get("domains")),
                str(meter.get("source") or "source not stated"),
                NONE if period is None else f"{figures(1e3 * period)} ms",
            ]
        )
    return Table(
        "meters",
        "Meters",
        ["meter", "covers", "source", "counter updates every"],
        cells,
        pd.DataFrame([_flat(meter) for meter in found]),
        "A window spans at least 50 updates of its counter.",
        texts=3,
    )


def windows_table(view: View) -> Table | None:
    """How the energy of each precision and batch size was taken, and how its layers add up."""
    found = list(profiles(view))
    if not any(
        energy or number(mapping(e.get("whole")).get("energy_mj")) for _, e, energy in found
    ):
        return None
    cells = [_window_cells(*one) for one in found]
    raw = [
        {
            "profile": key,
            **_flat(energy),
            **{f"whole_{k}": v for k, v in mapping(e.get("whole")).items()},
        }
        for key, e, energy in found
    ]
    head = ["profiled", "tier", "windows per unit", "of (s)", "idle (W)"]
    head += ["network (ms)", "its layers (ms)", "residue", "network (mJ)", "its layers (mJ)"]
    head += ["residue", "± mJ", "net (mJ)", "marked"]
    head, cells, words = filled(head, cells)
    return Table(
        "windows",
        "Windows, and the layers against the whole network",
        head,
        cells,
        pd.DataFrame(raw),
        "Per sample. Its layers: the sum of the segments and the classifier, each measured by "
        "itself; residue: what the whole network takes beyond them, as a share of it. "
        f"{words} Marked: number of flags, told above.".replace("  ", " "),
    )


def _window_cells(key: str, entry: Mapping[str, Any], energy: Mapping[str, Any]) -> list[str]:
    whole = mapping(entry.get("whole"))

    def cell(name: str) -> str:
        return figures(number(whole.get(name)))

    return [
        key,
        str(energy.get("tier") or NONE),
        count(number(energy.get("windows"))),
        figures(number(energy.get("window_s"))),
        figures(number(energy.get("idle_w"))),
        cell("latency_ms"),
        cell("parts_latency_ms"),
        percent(residue(whole, "latency_ms")),
        cell("energy_mj"),
        cell("parts_energy_mj"),
        percent(residue(whole, "energy_mj")),
        cell("energy_uncertainty_mj"),
        cell("net_energy_mj"),
        count(float(len(flags_of(energy.get("flags"))))),
    ]


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values as they are, lists joined, objects left out: for a CSV row."""
    return {
        str(key): "; ".join(map(str, value)) if isinstance(value, list) else value
        for key, value in values.items()
        if not isinstance(value, Mapping)
    }

"""What a governed run of one hardware sets side by side, and which differences count there."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from .columns import ENERGY_SOURCES
from .reading import Governed
from .view import PREDICTIVE, ROLE_WORDS, Setting, canonical_role, records
from .words import figures, listing

TOP = "top clock"
GOVERNOR_WORDS = {
    "": TOP,
    "fixed": "one lower clock",
    "race-to-idle": "race to idle",
    "proportional": "proportional",
    "deadline": "deadline",
    "deadline-safe": "deadline, safe",
}
FOLLOWING = ("proportional", "deadline", "deadline-safe")
"""Governors that set the clock anew after each forecast."""

POLICIES = ("full", "every-exit", "every-exit-best", "fixed")
RIVALS = ("full", "every-exit-best", "fixed")
"""Policies that are shown with governors too; every-exit from exit 1 never beats its best start."""

CLAIMS = {
    "claim_vs_full": ("full", "the full network"),
    "claim_vs_every_exit": ("every-exit", "early exit"),
}
"""Columns of the paper's claims: shares of the energy of which role, and its words."""

NOTICEABLE = 0.02
"""Energies closer than this share are not told apart, even if all are measured."""

LATE_TOLERANCE = 0.02
"""Share of requests (0..1) by which a governor may be late more often than the top clock is and
still counts as of equal latency: govern allows 0.01 on the calibration split, where it chooses, and
the test split has its own luck."""


def settings(governed: Governed, precision: str | None = None) -> list[Setting]:
    """Its rows as dicts with the role's canonical name; the governor of a top-clock row is ""."""
    rows = governed.rows
    if precision is not None:
        rows = rows[rows["precision"] == precision]
    return [
        {**row, "role": canonical_role(row["role"]), "governor": row["governor"] or ""}
        for row in records(rows)
    ]


def governors(governed: Governed) -> list[str]:
    """The governors of the file in our order, without the top clock."""
    found = {name for name in governed.rows["governor"] if name}
    known = [name for name in GOVERNOR_WORDS if name in found]
    return [*known, *sorted(found - set(known))]


def governor_words(row: Mapping[str, Any]) -> str:
    """A row's governor in words; with its operating point where it holds one."""
    name = str(row["governor"])
    words = GOVERNOR_WORDS.get(name, name)
    point = row.get("operating_point")
    return f"{words} ({point})" if name == "fixed" and point else words


def groups(governed: Governed, precision: str) -> list[tuple[str, list[Setting]]]:
    """Rows in groups with a heading: the policies at the top clock, prediction with each governor,
    and the rivals with the governors that could serve them too."""
    rows = settings(governed, precision)
    order = {role: place for place, role in enumerate((*POLICIES, *PREDICTIVE))}
    names = ["", *governors(governed)]

    def pick(roles: tuple[str, ...], chosen: Sequence[str]) -> list[Setting]:
        found = [r for r in rows if r["role"] in roles and r["governor"] in chosen]
        return sorted(found, key=lambda r: (order[r["role"]], names.index(r["governor"])))

    found = [("at the top clock", pick((*POLICIES, *PREDICTIVE), [""]))]
    for role in PREDICTIVE:
        found.append((f"{ROLE_WORDS[role]}, governed", pick((role,), names[1:])))
    rivals = [name for name in ("fixed", "deadline") if name in names]
    found.append(("rivals, governed", pick(RIVALS, rivals)))
    return [(heading, members) for heading, members in found if members]


def one(rows: list[Setting], role: str, governor: str) -> Setting | None:
    """The row of a role and governor; None if there is none."""
    return next((r for r in rows if r["role"] == role and r["governor"] == governor), None)


def keeps_latency(rows: list[Setting], row: Setting) -> bool:
    """Whether a row is late no more often than the same policy at the top clock."""
    top = one(rows, row["role"], "")
    late, allowed = row["missed"], top["missed"] if top is not None else 0.0
    return late is not None and late <= (allowed or 0.0) + LATE_TOLERANCE


def cheapest(rows: list[Setting], roles: tuple[str, ...], *, governed: bool) -> Setting | None:
    """The row of least energy among ``roles`` that keeps the latency; None if there is none.

    Args:
        governed: only rows with a governor; else the top clock too.
    """
    found = [
        row
        for row in rows
        if row["role"] in roles
        and row["energy_mj"] is not None
        and (row["governor"] or not governed)
        and keeps_latency(rows, row)
    ]
    return min(found, key=lambda row: row["energy_mj"], default=None)


def share(row: Setting | None, to: Setting | None) -> float | None:
    """Energy of ``row`` as a share of that of ``to``; None where one is not known."""
    if row is None or to is None or row["energy_mj"] is None or not to["energy_mj"]:
        return None
    return float(row["energy_mj"] / to["energy_mj"])


def model_error(governed: Governed) -> float | None:
    """The largest error (share) that the manifest states for the model; None if it states none.

    ``model_error_share`` where it is given as a number, else the largest percentage in the words
    of ``model_error``: rather too large than too small, as it decides what is called a difference.
    """
    number = governed.facts.get("model_error_share")
    if isinstance(number, int | float) and not isinstance(number, bool):
        return float(number)
    words = str(governed.facts.get("model_error") or "")
    found = [float(text) for text in re.findall(r"(\d+(?:\.\d+)?)\s*(?:%|percent)", words)]
    return max(found) / 100 if found else None


def least_difference(governed: Governed, *rows: Setting) -> float | None:
    """The share below which the energies of ``rows`` are not told apart; None: not known."""
    if all(row["energy_source"] == "measured" for row in rows):
        return NOTICEABLE
    error = model_error(governed)
    return None if error is None else max(NOTICEABLE, error)


def sources(rows: list[Setting] | pd.DataFrame, column: str = "energy_source") -> str:
    """Where the energies (or latencies) of rows come from, in words."""
    listed = records(rows) if isinstance(rows, pd.DataFrame) else rows
    value = "energy_mj" if column == "energy_source" else "latency_ms"
    found = {str(r.get(column) or "measured") for r in listed if r.get(value) is not None}
    return listing([s for s in ENERGY_SOURCES if s in found]) if found else "unavailable"


def deadline_words(governed: Governed, precision: str) -> str:
    """The time allowed per request; says so where the file does not hold it."""
    rows = governed.rows[governed.rows["precision"] == precision]
    found = sorted(set(rows["deadline_ms"].dropna()))
    return f"{listing([figures(value) for value in found])} ms" if found else "not stated"

"""The scenes of scenarios.csv: in which order, in which words, and what of them is idle."""

from __future__ import annotations

import math

import pandas as pd

from .view import ROLE_WORDS, Setting, canonical_role, records

Scene = float | None
"""A scene by its period in ms; None: continuous."""

BOUNDS = ("perfect-predictor", "oracle")


def scenes(rows: pd.DataFrame) -> list[Scene]:
    """The scenes of the table: continuous, then by rising period."""
    periodic = rows[rows["scene"] == "periodic"]["period_ms"].dropna()
    found: list[Scene] = [None] if (rows["scene"] == "continuous").any() else []
    return [*found, *sorted(set(periodic))]


def scene_words(scene: Scene) -> str:
    """A scene as a heading."""
    return "continuous" if scene is None else f"a request every {scene:,g} ms"


def policies(rows: pd.DataFrame, scene: Scene) -> list[Setting]:
    """The rows of a scene that a device can run, in the order of the roles.

    The recommended setting plays another role as well and is left out; so are the bounds.
    """
    kept = rows["scene"] == "continuous" if scene is None else rows["period_ms"] == scene
    order = [role for role in ROLE_WORDS if role not in (*BOUNDS, "recommended")]
    found = [{**row, "role": canonical_role(row["role"])} for row in records(rows[kept])]
    known = [row for row in found if row["role"] in order]
    return sorted(known, key=lambda row: order.index(row["role"]))


def idle_share(row: Setting) -> float | None:
    """The part of a row's energy (0..1) that is idle between requests; None where not known."""
    whole, idle = row["energy_per_request_mj"], row["idle_energy_per_request_mj"]
    if not whole or idle is None or math.isnan(idle):
        return None
    return float(idle / whole)

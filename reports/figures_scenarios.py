"""Energy per hour by policy: as fast as it can, and with a request per period and idle between."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from .picture import Absent, Picture
from .scenarios import idle_share, policies, scene_words, scenes
from .style import GREY, PRECISION_LOOKS, canvas, role_label
from .view import Setting, View, ordered_precisions
from .words import count, figures

TITLE = "Energy per hour on a schedule"
MOST_SCENES = 4


def scenarios(view: View) -> Picture | Absent:
    """Bars of energy per hour, one panel per scene, the idle part hatched."""
    rows = view.run.scenarios
    if rows is None:
        return Absent(TITLE, view.run.missing["scenarios.csv"])
    if rows["energy_per_hour_j"].isna().all():
        why = "scenarios.csv holds no energy: neither measured nor modelled power is known."
        return Absent(TITLE, why)
    shown = scenes(rows)[:MOST_SCENES]
    lists = {scene: policies(rows, scene) for scene in shown}
    roles = list(dict.fromkeys(row["role"] for found in lists.values() for row in found))
    names = ordered_precisions(rows)
    height = 1.9 + 0.24 * len(roles) * (len(names) + 0.5)
    figure, axes = canvas(11, height, 1, len(shown), sharey=True)
    for axis, scene in zip(axes, shown, strict=True):
        _panel(axis, lists[scene], roles, names)
        axis.set_title("continuous" if scene is None else f"every {scene:,g} ms")
        axis.set_xlabel(_axis_label(rows))
    middle = (len(names) - 1) / 2
    places = [i * (len(names) + 0.5) + middle for i in range(len(roles))]
    axes[0].set_yticks(places, [role_label(role) for role in roles])
    axes[0].set_ylim(len(roles) * (len(names) + 0.5) - 0.7, -0.8)
    figure.legend(handles=_legend(names), loc="outside lower left", ncols=5)
    alt = (
        f"Bar chart, {len(shown)} panel(s) ({', '.join(scene_words(s) for s in shown)}): energy "
        f"per hour of {len(roles)} policies in {', '.join(names)}, the idle part hatched; "
        f"{source_words(rows)}."
    )
    return Picture(figure, TITLE, alt, _caption(rows, len(scenes(rows)) - len(shown)))


def _axis_label(rows: pd.DataFrame) -> str:
    """What the axis shows, and where its values come from: on a second line where that is long."""
    words = source_words(rows).removeprefix("energy ")
    gap = " " if len(words) < 20 else "\n"
    return f"energy per hour (kJ,{gap}{words})"


def source_words(rows: pd.DataFrame) -> str:
    """Where energy and idle power of the scenes come from."""
    energy, idle = (
        " and ".join(dict.fromkeys(s for s in rows[column] if s)) or "unavailable"
        for column in ("energy_source", "idle_source")
    )
    return f"energy {energy}" + (f", idle power {idle}" if idle != energy else "")


def _panel(axis: Axes, rows: list[Setting], roles: list[str], names: list[str]) -> None:
    values = [1e-3 * r["energy_per_hour_j"] for r in rows if r["energy_per_hour_j"] is not None]
    for row in rows:
        place = roles.index(row["role"]) * (len(names) + 0.5) + names.index(row["precision"])
        _bar(axis, place, row)
    axis.set_xlim(0, 1.75 * max(values, default=1.0))
    axis.tick_params(axis="y", length=0)
    axis.grid(False, axis="y")
    axis.locator_params(axis="x", nbins=5)


def _bar(axis: Axes, place: float, row: Setting) -> None:
    hour_j = row["energy_per_hour_j"]
    colour, _ = PRECISION_LOOKS.get(row["precision"], (GREY, ""))
    words: dict[str, Any] = {"va": "center", "fontsize": 8}
    if hour_j is None:
        axis.text(0.01, place, "not available", transform=axis.get_yaxis_transform(), **words)
        return
    energy = 1e-3 * hour_j
    idle = energy * (idle_share(row) or 0.0)
    # Faint: it does not do the same work as the others.
    alpha = 1.0 if row["keeps_up"] else 0.3
    axis.barh(place, energy - idle, 0.84, color=colour, linewidth=0, alpha=alpha)
    if idle > 0:
        look: dict[str, Any] = {"facecolor": "white", "edgecolor": colour, "linewidth": 0.7}
        axis.barh(place, idle, 0.84, left=energy - idle, hatch="/////", **look)
    axis.annotate(
        _end_words(row), (energy, place), xytext=(4, 0), textcoords="offset points", **words
    )


def _end_words(row: Setting) -> str:
    if not row["keeps_up"]:
        return "cannot keep up"
    if row["scene"] == "continuous":
        return f"{_brief(row['requests_per_hour'])} requests"
    return figures(1e-3 * row["energy_per_hour_j"])


def _brief(value: float) -> str:
    """A count in few figures: ``1.94 M``."""
    return f"{figures(value / 1e6)} M" if value >= 1e6 else count(float(f"{value:.3g}"))


def _legend(names: list[str]) -> list[Any]:
    found: list[Any] = [
        Patch(facecolor=PRECISION_LOOKS.get(name, (GREY, ""))[0], label=f"{name}, at work")
        for name in names
    ]
    look: dict[str, Any] = {"facecolor": "white", "edgecolor": GREY, "hatch": "/////"}
    return [*found, Patch(label="idle between requests", **look)]


def _caption(rows: pd.DataFrame, hidden: int) -> str:
    text = (
        "Continuous: one request after another, so a faster policy does more of them in the hour; "
        "compare energy per request there. On a schedule all do the same work, and who is done "
        f"early is idle: what is hatched no policy can save. Source: {source_words(rows)}. Each "
        "panel has its own axis."
    )
    late = rows[rows["keeps_up"] == 0]
    if len(late):
        text += (
            " Cannot keep up: a request takes longer than the period; its faint bar is that of "
            "its own continuous rate."
        )
    return text + (f" {hidden} more scenes stand in the table." if hidden > 0 else "")

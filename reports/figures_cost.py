"""What every layer and every head costs, as bars per precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from .picture import Absent, Picture
from .style import PRECISION_LOOKS, canvas, legend_below
from .view import (
    ENERGY,
    LATENCY,
    MACS,
    Metric,
    View,
    cost_rows,
    energy_source,
    latency_note,
    ordered_precisions,
    records,
)
from .words import listing, percent

WORDS = {
    ENERGY.column: "energy (mJ per sample)",
    LATENCY.column: "latency (ms per sample)",
    MACS.column: "MACs (M per sample)",
}

MOST_NAMED = 8


def energy_cost(view: View) -> Picture | Absent:
    """Energy per layer and head."""
    return cost_per_unit(view, ENERGY)


def latency_cost(view: View) -> Picture | Absent:
    """Latency per layer and head."""
    return cost_per_unit(view, LATENCY)


def macs_cost(view: View) -> Picture | Absent:
    """MACs per layer and head."""
    return cost_per_unit(view, MACS)


def cost_per_unit(view: View, metric: Metric) -> Picture | Absent:
    """Bars of ``metric`` for the segments (above) and the heads with their forecasts (below)."""
    noun = metric.noun if metric is MACS else metric.noun.capitalize()
    title = f"{noun} per layer and head"
    rows = cost_rows(view)
    if rows is None:
        return Absent(title, view.run.missing["cost.csv"])
    if rows[metric.column].isna().all():
        source = "Energy is unavailable in this run" if metric is ENERGY else "There is no latency"
        return Absent(title, f"{source}: the cost table holds no {metric.noun} of any unit.")
    precisions = _precisions(rows, metric)
    figure, axes = canvas(11, 5.6, 2, 1, sharex=True, sharey=True)
    label = WORDS[metric.column]
    if metric is LATENCY:
        label = f"latency (ms per sample{latency_note(rows)})"
    if metric is ENERGY:
        label = f"energy (mJ per sample,\n{energy_source(rows)})"
    _bars(axes[0], view, rows, metric, precisions, ("segment", "classifier"))
    _bars(axes[1], view, rows, metric, precisions, ("head", "forecast"))
    axes[0].set_ylim(0, 1.08 * axes[0].get_ylim()[1])
    axes[0].set_title("Layers up to each exit (segments)")
    axes[1].set_title("Head at each exit, with its forecast on top")
    for axis in axes:
        axis.set_ylabel(label)
    legend_below(figure, axes, 6)
    alt = (
        f"Bar chart in two rows: {metric.noun} of every segment of the network, and of every head "
        f"with its forecast, for {', '.join(precisions)}; {label}.".replace("\n", " ")
    )
    return Picture(figure, title, alt, _caption(view, rows, metric, precisions))


def _precisions(rows: pd.DataFrame, metric: Metric) -> list[str]:
    """The precisions to draw; one for all where they do not differ, as MACs do not."""
    ordered = ordered_precisions(rows)
    if metric is MACS and (rows.groupby(["kind", "index"])["macs"].nunique() == 1).all():
        return ordered[:1]
    return ordered


def values(rows: pd.DataFrame, kind: str, metric: Metric, count: int) -> np.ndarray:
    """A unit's cost by index 1..count, (count,), NaN where there is no such unit or no cost."""
    picked = rows[rows["kind"] == kind].drop_duplicates("index").set_index("index")[metric.column]
    found = picked.reindex(np.arange(1, count + 1, dtype=float))
    return found.to_numpy(float) * metric.scale


def _bars(
    axis: Axes,
    view: View,
    rows: pd.DataFrame,
    metric: Metric,
    precisions: list[str],
    kinds: tuple[str, str],
) -> None:
    """Grouped bars of the first kind, with the second kind stacked on top."""
    count = max(len(view.names), int(rows["index"].max()))
    width = 0.84 / len(precisions)
    for place, precision in enumerate(precisions):
        own = rows[rows["precision"] == precision]
        at = np.arange(count) + (place - (len(precisions) - 1) / 2) * width
        base, upper = (values(own, kind, metric, count) for kind in kinds)
        colour, hatch = PRECISION_LOOKS.get(precision, ("#999999", ""))
        words = "all precisions" if len(precisions) == 1 and metric is MACS else precision
        known = np.isfinite(base)
        axis.bar(
            at[known],
            base[known],
            width,
            color=colour,
            hatch=hatch,
            edgecolor="white",
            lw=0,
            label=words or "network",
        )
        top: dict[str, Any] = {"color": "#222222", "linewidth": 0.0}
        if kinds[1] == "forecast":
            top = {"color": "white", "edgecolor": colour, "linewidth": 0.9}
        last = place == len(precisions) - 1
        on = np.isfinite(base) & np.isfinite(upper)
        label = kinds[1] if last and on.any() else None
        axis.bar(at[on], upper[on], width, bottom=base[on], label=label, **top)
    names = [*view.names, *(str(i) for i in range(len(view.names) + 1, count + 1))]
    axis.set_xticks(np.arange(count), [_tick(i, n) for i, n in enumerate(names)])
    axis.tick_params(axis="x", labelrotation=60 if count > 10 else 0)
    axis.grid(False, axis="x")
    axis.set_xlim(-0.7, count - 0.3)


def _tick(index: int, name: str) -> str:
    return name if name in ("classifier", f"exit {index + 1}") else f"{index + 1} {name}"


def _caption(view: View, rows: pd.DataFrame, metric: Metric, precisions: list[str]) -> str:
    parts = []
    for precision in precisions:
        own = rows[rows["precision"] == precision].groupby("kind")[metric.column]
        # A sum over units of which one is unknown would be no sum.
        total = own.sum().where(own.count() == own.size())
        backbone = float(total.get("segment", np.nan) + total.get("classifier", np.nan))
        heads = float(total.get("head", np.nan))
        if backbone > 0 and not np.isnan(heads):
            parts.append(
                f"{percent(heads / backbone, 0)} in {precision}"
                if len(precisions) > 1 or metric is not MACS
                else percent(heads / backbone, 0)
            )
    source = f" ({energy_source(rows)})" if metric is ENERGY else ""
    gaps = _gaps(view, rows, metric, precisions)
    if not parts:
        return f"The {metric.noun}{source} of each unit for one sample.{gaps}"
    return (
        f"Checking every head costs {listing(parts)} of what the whole backbone costs in "
        f"{metric.noun}{source}: this is the price that skipping checks can save.{gaps}"
    )


def _gaps(view: View, rows: pd.DataFrame, metric: Metric, precisions: list[str]) -> str:
    """Which bars are missing because the table has no such cost; empty if none is."""
    drawn = rows[rows["precision"].isin(precisions)]
    names = [
        f"{row['kind']} {row['index']:g}" + (f" in {row['precision']}" if row["precision"] else "")
        for row in records(drawn[drawn[metric.column].isna()])
    ]
    found = ""
    if names:
        more = len(names) - MOST_NAMED
        shown = names[:MOST_NAMED] + ([f"{more} more"] if more > 0 else [])
        found = f" Not known and left empty: {listing(shown)}."
    if "forecast" not in set(drawn["kind"]):
        found += " The cost table has no row of a forecast."
    return found

"""Accuracy against a cost: one panel per precision, one line per policy, over beta."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from .columns import SETTING
from .lines import Line, front, lines, measured, others, run_energy_source, run_latency_source
from .origin import why_no_energy
from .picture import Absent, Picture
from .style import BLACK, FAINT, GREY, LOOKS, canvas, legend_below, look_of, role_label
from .view import (
    ENERGY,
    LATENCY,
    MACS,
    Metric,
    Setting,
    View,
    energy_source,
    latency_note,
    records,
    source_note,
)
from .words import accuracy_change, beta_words, percent, point_words, points, saving

SHOWN_LOSS = 0.08
"""Accuracy below the reference (share) down to which the axis goes: who accepts more needs no
exits but a smaller network."""


def axis_label(view: View, metric: Metric) -> str:
    """The metric with its unit, and for energy where it comes from."""
    if metric is ENERGY:
        return f"Energy per sample (mJ, {energy_source(view.test)})"
    return {
        LATENCY.column: f"Latency per sample (ms, replayed{latency_note(view.test)})",
        MACS.column: "MACs per sample (M)",
    }[metric.column]


def energy_tradeoff(view: View) -> Picture | Absent:
    """Accuracy against energy; a sentence instead where energy is not known."""
    return tradeoff(view, ENERGY)


def latency_tradeoff(view: View) -> Picture | Absent:
    """Accuracy against latency."""
    return tradeoff(view, LATENCY)


def macs_tradeoff(view: View) -> Picture | Absent:
    """Accuracy against MACs."""
    return tradeoff(view, MACS)


def tradeoff(view: View, metric: Metric) -> Picture | Absent:
    """Accuracy against ``metric`` over beta, per policy and precision, on the test split."""
    title = f"Accuracy against {metric.noun}"
    if metric not in view.metrics:
        why = (
            f"Energy is unavailable in this run: {why_no_energy(view)}, so no energy is drawn or "
            "guessed. Compare latency and MACs instead."
            if metric is ENERGY
            else "The sweep has no latency: the cost table it was priced with holds none."
        )
        return Absent(title, why)
    precisions = view.precisions
    figure, axes = canvas(11, 5.4, 1, len(precisions), sharey=True, sharex=True)
    best = front(view, metric)
    drawn = {precision: lines(view, precision) for precision in precisions}
    for axis, precision in zip(axes, precisions, strict=True):
        _panel(axis, view, metric, precision, drawn[precision], best)
        axis.set_title(precision)
        axis.set_xlabel(axis_label(view, metric))
    axes[0].set_ylabel("Accuracy on the test split (%)")
    _limits(axes[0], view, metric, drawn, best)
    legend_below(figure, axes)
    alt = (
        f"Scatter and line chart, {len(precisions)} panel(s) ({', '.join(precisions)}): accuracy "
        f"in percent against {axis_label(view, metric)}; one line per policy over beta, the Pareto "
        f"front, the full network and the measured runs marked."
    )
    return Picture(figure, title, alt, _caption(view, metric))


def _panel(
    axis: Axes, view: View, metric: Metric, precision: str, drawn: list[Line], best: pd.DataFrame
) -> None:
    rest = others(view, precision, drawn)
    faint: dict[str, Any] = {"color": FAINT, "markersize": 3.2, "alpha": 0.6, "markeredgewidth": 0}
    axis.plot(*_points(rest, metric), ".", zorder=1, rasterized=True, **faint)
    # The points are too small to be recognised in a legend, so it shows a larger one.
    axis.plot([], [], ".", color=GREY, markersize=6, label="other settings of the sweep")
    band: dict[str, Any] = {
        "color": BLACK,
        "linewidth": 5,
        "alpha": 0.17,
        "solid_capstyle": "round",
    }
    axis.plot(*_points(best, metric), "-", zorder=2, label="Pareto front, all precisions", **band)
    for one in drawn:
        look = look_of(LOOKS, one.role)
        stroke = look.marker == "x"
        axis.plot(
            *_points(one.rows, metric),
            linestyle=look.line,
            marker=look.marker,
            color=look.colour,
            markersize=look.size,
            markeredgewidth=1.2 if stroke else 0.4,
            markeredgecolor=look.colour if stroke else "white",
            zorder=4,
            label=role_label(one.role),
        )
    _references(axis, view, metric, precision)
    _measured_points(axis, view, metric, precision)
    _recommended_point(axis, view, metric, precision)


def _points(rows: pd.DataFrame, metric: Metric) -> tuple[pd.Series, pd.Series]:
    """Cost in the shown unit and accuracy in percent."""
    return rows[metric.column] * metric.scale, 100 * rows["accuracy"]


def _references(axis: Axes, view: View, metric: Metric, precision: str) -> None:
    """The full network of this precision, and the accuracy limits of the decision."""
    full = view.test[(view.test["policy"] == "full") & (view.test["precision"] == precision)]
    for row in records(full.head(1)):
        if row[metric.column] is not None:
            axis.plot(
                row[metric.column] * metric.scale,
                100 * row["accuracy"],
                marker="P",
                color=BLACK,
                markersize=10,
                linestyle="none",
                markeredgecolor="white",
                zorder=6,
                label="full network",
            )
    if view.reference is None:
        return
    top = 100 * view.reference["accuracy"]
    axis.axhline(top, color=GREY, linewidth=0.9, zorder=2)
    axis.axhline(
        top - 100 * view.loss,
        color=GREY,
        linewidth=0.9,
        linestyle=(0, (2, 2)),
        zorder=2,
        label=f"limit: full {view.reference['precision']} less {point_words(view.loss)}",
    )


def _measured_points(axis: Axes, view: View, metric: Metric, precision: str) -> None:
    for row in measured(view, precision):
        if row.get(metric.column) is not None:
            axis.plot(
                row[metric.column] * metric.scale,
                100 * run_accuracy(view, row),
                marker="D",
                markerfacecolor="none",
                markeredgecolor=BLACK,
                markeredgewidth=1.4,
                markersize=9,
                linestyle="none",
                zorder=7,
                label=_run_words(view, metric),
            )


def run_accuracy(view: View, row: Setting) -> float:
    """The accuracy at which a run is drawn: its setting's on the whole test split.

    A run over a part of the samples has that part's own luck, and would lie off its line. The
    run's own accuracy where the sweep does not have its setting.
    """
    rows = view.test
    for column in SETTING:
        value, cells = row.get(column), rows[column]
        rows = rows[(cells.isna() | (cells == "")) if value is None else cells == value]
    return float(rows["accuracy"].iloc[0] if len(rows) else row["accuracy"])


def _run_words(view: View, metric: Metric) -> str:
    """What a run's mark tells: its energy may be modelled although it was really run."""
    if metric is ENERGY:
        return f"really run, energy {run_energy_source(measured(view))}"
    return (
        f"really run, {run_latency_source(measured(view))}" if metric is LATENCY else "really run"
    )


def _recommended_point(axis: Axes, view: View, metric: Metric, precision: str) -> None:
    row = view.recommended
    if row is None or row["precision"] != precision or row[metric.column] is None:
        return
    place = (row[metric.column] * metric.scale, 100 * row["accuracy"])
    axis.plot(
        *place,
        marker="o",
        markersize=17,
        markerfacecolor="none",
        markeredgecolor=BLACK,
        markeredgewidth=1.6,
        linestyle="none",
        zorder=8,
        label="recommended",
    )
    words = f"beta {beta_words(row['beta'])}" if row["beta"] is not None else str(row["policy"])
    axis.annotate(
        f"recommended:\n{words}",
        place,
        xytext=(10, -100),
        textcoords="offset points",
        fontsize=9,
        zorder=9,
        arrowprops={"arrowstyle": "-", "color": BLACK, "linewidth": 0.8, "shrinkB": 9},
        bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1},
    )


def _limits(
    axis: Axes, view: View, metric: Metric, drawn: dict[str, list[Line]], best: pd.DataFrame
) -> None:
    """Axis ranges (all panels share them): the accuracies that matter, the costs these have."""
    rows = pd.concat(
        [
            best,
            *(one.rows for found in drawn.values() for one in found),
            view.test[view.test["policy"] == "full"],
        ]
    )
    reference = view.reference["accuracy"] if view.reference else rows["accuracy"].max()
    low = max(0.0, reference - max(SHOWN_LOSS, 3 * view.loss))
    seen = rows[rows["accuracy"] >= low]
    high = max(seen["accuracy"].max(), reference) if len(seen) else reference
    axis.set_ylim(100 * low, min(101.0, 100 * high + 8 * (high - low) + 0.2))
    run = [row[metric.column] for row in measured(view) if row.get(metric.column) is not None]
    costs = pd.concat([seen[metric.column].dropna(), pd.Series(run, dtype=float)]) * metric.scale
    costs = costs[costs > 0]
    if costs.empty:
        return
    if costs.max() / costs.min() > 4:
        axis.set_xscale("log")
        axis.set_xlim(0.85 * costs.min(), 1.2 * costs.max())
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
    else:
        axis.set_xlim(0, 1.07 * costs.max())


def _caption(view: View, metric: Metric) -> str:
    row, full = view.recommended, view.reference
    text = "Further left is cheaper, further up is better; each line runs over beta. "
    if row is None or full is None or row[metric.column] is None or full[metric.column] is None:
        return text + "No setting is recommended, so none is ringed."
    return text + (
        f"The ringed setting needs {_value(row, metric)} per sample, "
        f"{saving(view.ratio(row, metric), metric.noun)} "
        f"than the full network in {full['precision']} ({_value(full, metric)}), "
        f"{accuracy_change(row['accuracy'] - full['accuracy'])} "
        f"({percent(row['accuracy'])}, {points(row['accuracy'] - full['accuracy'])} points)."
    )


def _value(row: Setting, metric: Metric) -> str:
    return f"{metric.text(row[metric.column])}{source_note(metric, row)}"

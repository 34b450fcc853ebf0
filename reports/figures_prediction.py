"""How good the forecasts are: accuracy by start layer, and forecast against true jump."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from .picture import Absent, Picture
from .style import BLACK, GREY, PREDICTOR_LOOKS, canvas, legend_below, look_of
from .view import PREDICTIVE, Setting, View
from .words import beta_words, exit_words, listing, percent

BY_START = "Prediction accuracy by start layer"
CONFUSION = "Forecast jump against true jump"


def prediction_accuracy(view: View) -> Picture | Absent:
    """The share of right forecasts per start layer and predictor, with the number of forecasts."""
    frame = view.run.prediction
    if frame is None:
        return Absent(BY_START, view.run.missing["prediction.csv"])
    rows, words = _like_chosen(view, frame[frame["predictor"] != "perfect"])
    rows = rows[rows["forecasts"] > 0]
    if rows.empty:
        return Absent(BY_START, "No forecast was made in the rows of prediction.csv.")
    figure, axes = canvas(11, 4.8, 2, 1, sharex=True, height_ratios=[3, 1])
    for predictor, own in rows.groupby("predictor", sort=True):
        total = own.groupby("start_layer")[["forecasts", "hits"]].sum()
        look = look_of(PREDICTOR_LOOKS, str(predictor))
        drawn: dict[str, Any] = {
            "color": look.colour,
            "linestyle": look.line,
            "marker": look.marker,
            "markersize": look.size,
            "label": str(predictor),
        }
        axes[0].plot(total.index, 100 * total["hits"] / total["forecasts"], **drawn)
        axes[1].plot(total.index, total["forecasts"], **drawn)
    _decorate(axes, view, rows)
    legend_below(figure, axes[:1])
    alt = (
        "Line chart: share of right forecasts in percent by start layer, one line per predictor; "
        f"below it the number of forecasts. {words}"
    )
    return Picture(figure, BY_START, alt, f"{_accuracy_caption(view, rows)} {words}")


def _decorate(axes: list[Axes], view: View, rows: pd.DataFrame) -> None:
    starts = sorted({int(s) for s in rows["start_layer"]})
    axes[0].set_ylabel("Right forecasts (%)")
    axes[0].set_ylim(0, 104)
    axes[1].set_ylabel("Forecasts")
    axes[1].set_ylim(bottom=0)
    axes[1].set_xlabel("Start layer: the first exit that is checked")
    axes[1].set_xticks(starts)
    chosen = view.best_predictive((view.recommended or {}).get("precision"))
    if chosen is not None and chosen["start_layer"] is not None:
        for axis in axes:
            axis.axvline(chosen["start_layer"], color=GREY, linewidth=1.1, linestyle=(0, (2, 2)))
        axes[0].annotate(
            f"chosen ({chosen['predictor']})",
            (chosen["start_layer"], 97),
            xytext=(4, 0),
            textcoords="offset points",
            fontsize=9,
            color=GREY,
            va="top",
        )


def _like_chosen(view: View, frame: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Per predictor the rows that fit its chosen setting (test split), and these in words."""
    rows = frame[frame["split"] == "test"] if (frame["split"] == "test").any() else frame
    best = view.recommended or view.best_predictive() or {}
    rows, precision = _same(rows, "precision", best.get("precision"))
    parts, words = [], []
    for predictor, own in rows.groupby("predictor", sort=True):
        chosen = _chosen(view, str(predictor), precision)
        own, criterion = _same(own, "criterion", chosen.get("criterion"))
        own, beta = _nearest_beta(own, chosen.get("beta"))
        parts.append(own)
        told = [str(criterion)] if criterion else []
        told += [f"beta {beta_words(beta)}"] if beta is not None else []
        words.append(f"{predictor}: {', '.join(told)}" if told else str(predictor))
    if not parts:
        return rows, ""
    place = f" in {precision}" if precision else ""
    return pd.concat(parts), f"Test split{place}; {'; '.join(words)}."


def _chosen(view: View, predictor: str, precision: str | None) -> Setting:
    """The setting chosen for a predictor in a precision; empty if there is none."""
    for role in PREDICTIVE:
        row = view.role(role, precision)
        if row is not None and row["predictor"] == predictor:
            return row
    return {}


def _same(rows: pd.DataFrame, column: str, wanted: Any) -> tuple[pd.DataFrame, Any]:
    """The rows with the wanted value, or with the first one that is there."""
    known = [value for value in rows[column].unique() if value != "" and value == value]
    if not known:
        return rows, None
    value = wanted if wanted in known else known[0]
    return rows[rows[column] == value], value


def _nearest_beta(rows: pd.DataFrame, wanted: float | None) -> tuple[pd.DataFrame, float | None]:
    betas = rows["beta"].dropna().unique()
    if not len(betas):
        return rows, None
    beta = float(min(betas, key=lambda b: abs(b - wanted)) if wanted is not None else betas[0])
    return rows[rows["beta"] == beta], beta


def _accuracy_caption(view: View, rows: pd.DataFrame) -> str:
    totals = rows.groupby("predictor")[["forecasts", "hits"]].sum()
    rates = (totals["hits"] / totals["forecasts"]).sort_values(ascending=False)
    parts = [f"{name} {percent(rate, 0)}" for name, rate in rates.items()]
    return f"Over all start layers the share of right forecasts is: {listing(parts)}."


def confusion(view: View) -> Picture | Absent:
    """Heat map of forecast jump (rows) against true jump (columns), rows summing to 100%."""
    frame = view.run.confusion
    if frame is None:
        return Absent(CONFUSION, view.run.missing["prediction_confusion.csv"])
    rows, more = _one_predictor(view, frame)
    rows, words = _like_chosen(view, rows)
    if rows.empty or rows["count"].sum() == 0:
        return Absent(CONFUSION, "prediction_confusion.csv counts no forecast.")
    table = rows.pivot_table(
        index="forecast_jump", columns="true_jump", values="count", aggfunc="sum", fill_value=0
    )
    size = int(rows["forecast_jump"].max())
    wide = max(int(rows["true_jump"].max()), size)
    grid = table.reindex(index=range(1, size + 1), columns=range(1, wide + 1), fill_value=0)
    counts = grid.to_numpy(float)
    figure = _heat_map(counts)
    alt = (
        "Heat map: for each forecast jump the share of samples by their true jump; the diagonal, "
        f"outlined, is where forecast and truth agree. {more} {words}"
    )
    return Picture(figure, CONFUSION, alt, f"{_confusion_caption(counts)} {more} {words}".strip())


def _one_predictor(view: View, rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The rows of the cheapest predictive setting's predictor and start layer."""
    rows = rows[rows["predictor"] != "perfect"]
    best = view.recommended or {}
    chosen = view.best_predictive(best.get("precision")) or {}
    rows, predictor = _same(rows, "predictor", chosen.get("predictor"))
    rows, start = _same(rows, "start_layer", chosen.get("start_layer"))
    words = [f"{predictor} predictor"] if predictor else []
    words += [f"start layer at {exit_words(int(start), view.names)}"] if start is not None else []
    return rows, f"Counted for the {', '.join(words)}." if words else ""


def _heat_map(counts: np.ndarray) -> Any:
    size, wide = counts.shape
    total = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)
    figure, axes = canvas(min(11, 2.6 + 0.72 * wide), 1.7 + 0.46 * size)
    axis = axes[0]
    image = axis.imshow(100 * share, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    axis.grid(False)
    for r in range(size):
        for c in range(wide):
            if counts[r, c] and wide <= 24:
                axis.text(
                    c,
                    r,
                    f"{counts[r, c]:,.0f}",
                    ha="center",
                    va="center",
                    fontsize=9 if wide <= 12 else 7,
                    color="white" if share[r, c] > 0.55 else BLACK,
                )
        axis.add_patch(Rectangle((r - 0.5, r - 0.5), 1, 1, fill=False, edgecolor=BLACK, lw=1.2))
    axis.set_xticks(range(wide), [str(c + 1) for c in range(wide)])
    axis.set_yticks(range(size), [str(r + 1) for r in range(size)])
    axis.set_xlabel("True jump (exits)")
    axis.set_ylabel("Forecast jump (exits)")
    bar = figure.colorbar(image, ax=axis, pad=0.02, fraction=0.05)
    bar.set_label("share of the row (%)")
    return figure


def _confusion_caption(counts: np.ndarray) -> str:
    total = counts.sum()
    rows, columns = np.indices(counts.shape)
    right = counts[rows == columns].sum() / total
    far = counts[rows > columns].sum() / total
    near = counts[rows < columns].sum() / total
    return (
        f"{percent(right, 0)} of the forecasts are right (diagonal), {percent(far, 0)} jump "
        f"too far (below it: layers run in vain) and {percent(near, 0)} too short (above it: one "
        "more check)."
    )

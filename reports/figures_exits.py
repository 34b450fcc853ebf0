"""Where samples leave, over beta: one stacked histogram per policy."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure

from .lines import Line, family_words, line
from .picture import Absent, Picture
from .style import BLACK, GREY, canvas, role_label
from .view import PREDICTIVE, View
from .words import percent

SHOWN = ("every-exit", "every-exit-best", *PREDICTIVE)
TITLE = "Where samples leave, over beta"


def exit_histograms(view: View) -> Picture | Absent:
    """The share of test samples that leave at each exit, for every beta of each policy's line."""
    precision = view.recommended["precision"] if view.recommended else view.precisions[0]
    found = [one for role in SHOWN if (one := line(view, role, precision)) is not None]
    drawn = [one for one in found if (one.rows["exit_histogram"] != "").any()]
    if not drawn:
        return Absent(TITLE, "The sweep holds no exit histograms of a policy with a beta.")
    columns = len(drawn) if len(drawn) <= 3 else 2
    panel_rows = -(-len(drawn) // columns)
    figure, axes = canvas(11, 1.0 + 3.4 * panel_rows, panel_rows, columns, sharey=True)
    for spare in axes[len(drawn) :]:
        spare.set_visible(False)
    exits = len(view.names)
    colours = ListedColormap([*colormaps["cividis"](np.linspace(0.08, 1, exits - 1)), (0.75,) * 3])
    for axis, one in zip(axes, drawn, strict=False):
        _stack(axis, view, one, colours)
    for axis in axes[::columns]:
        axis.set_ylabel("Samples that have left (%)")
    _depth_bar(figure, axes, view.names, colours)
    return Picture(figure, f"{TITLE} ({precision})", _alt(drawn, precision), _caption(view, drawn))


def shares(one: Line) -> tuple[np.ndarray, np.ndarray]:
    """Betas (B,) and the share of samples leaving at each exit (B, exits + 1)."""
    rows = one.rows[one.rows["exit_histogram"] != ""]
    counts = np.array([[float(n) for n in h.split()] for h in rows["exit_histogram"]])
    return rows["beta"].to_numpy(), counts / counts.sum(axis=1, keepdims=True)


def distinct(values: np.ndarray) -> list[str]:
    """The numbers with as few digits as tell each from the others; none is rounded to 1.

    Three digits at least, six at most: those with which beta is written.
    """
    labels = [f"{value:.3g}" for value in values]
    for digits in range(4, 7):
        wrong = [
            labels.count(label) > 1 or (label == "1" and value != 1)
            for value, label in zip(values, labels, strict=True)
        ]
        labels = [
            f"{value:.{digits}g}" if again else label
            for value, label, again in zip(values, labels, wrong, strict=True)
        ]
    return labels


def _stack(axis: Axes, view: View, one: Line, colours: ListedColormap) -> None:
    betas, share = shares(one)
    bottom = np.zeros(len(betas))
    places = np.arange(len(betas))
    last = share.shape[1] - 1
    for exit_index in range(last + 1):
        axis.bar(
            places,
            100 * share[:, exit_index],
            bottom=100 * bottom,
            width=0.92,
            color=colours(exit_index),
            linewidth=0.3,
            edgecolor="white",
            hatch="////" if exit_index == last else None,
        )
        bottom += share[:, exit_index]
    step = max(1, len(betas) // 7)
    axis.set_xticks(places[::step], distinct(betas[::step]), rotation=45)
    axis.set_xlabel("beta")
    axis.set_ylim(0, 108)
    axis.set_yticks(range(0, 101, 20))
    axis.grid(False)
    axis.set_title(role_label(one.role), pad=18)
    axis.text(
        0, 1.025, family_words(one, view.names), transform=axis.transAxes, fontsize=8.5, color=GREY
    )
    chosen = view.role(one.role, one.precision)
    if chosen is not None and chosen["beta"] is not None:
        place = int(np.argmin(np.abs(betas - chosen["beta"])))
        axis.plot(place, 104, marker="v", color=BLACK, markersize=8, clip_on=False)


def _depth_bar(figure: Figure, axes: list[Axes], names: list[str], colours: ListedColormap) -> None:
    count = len(names)
    norm = BoundaryNorm(np.arange(count + 1) - 0.5, count)
    bar = figure.colorbar(
        ScalarMappable(norm, colours), ax=axes, pad=0.015, fraction=0.035, aspect=28
    )
    step = max(1, count // 22)
    ticks = sorted({*range(0, count - 1, step), count - 1})
    bar.set_ticks(ticks, labels=[_tick(i, names) for i in ticks], fontsize=8)
    bar.ax.minorticks_off()
    bar.set_label("leaves at")


def _tick(index: int, names: list[str]) -> str:
    if index == len(names) - 1:
        return "classifier"
    plain = names[index] == f"exit {index + 1}"
    return str(index + 1) if plain else f"{index + 1} {names[index]}"


def _alt(drawn: list[Line], precision: str) -> str:
    names = ", ".join(role_label(one.role) for one in drawn)
    return (
        f"Stacked bars, one panel per policy ({names}), in {precision}: for each beta the share of "
        "test samples that leave at each exit, early exits dark at the bottom, the classifier grey "
        "and hatched on top."
    )


def _caption(view: View, drawn: list[Line]) -> str:
    parts = []
    for one in drawn:
        chosen = view.role(one.role, one.precision)
        betas, share = shares(one)
        if chosen is None or chosen["beta"] is None:
            continue
        row = share[int(np.argmin(np.abs(betas - chosen["beta"])))]
        half = row[: len(row) // 2].sum()
        parts.append(f"{role_label(one.role)} {percent(half, 0)} and {percent(row[-1], 0)}")
    start = "The higher beta, the later samples leave."
    if not parts:
        return start
    return (
        f"{start} Share that leaves in the first half of the exits, and share that reaches the "
        f"classifier, at the chosen beta (triangle): {'; '.join(parts)}."
    )

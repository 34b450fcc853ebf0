"""Figures of what goals.py measured: roofline, walks against their ideal, goals at a glance."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from exitbench.reports.style import (
    BLUE,
    FAINT,
    GREEN,
    GREY,
    LOOKS,
    ORANGE,
    VERMILLION,
    canvas,
    legend_below,
    save,
    styled,
)
from goal_rows import MET, Row, from_plain
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

COLOURS = {"fp32": BLUE, "bf16": ORANGE, "int8": GREEN}
MARKERS = {"vgg19": "o", "resnet34": "s"}
WALKED = {"predictive": LOOKS["predictive"], "every-exit": LOOKS["every-exit-best"]}
SHORT = {
    "better of torch.compile and OpenVINO": "best rival",
    ", times faster than fp32 eager fused": " / fp32 eager fused",
    "/ the same passes with all heads": "/ its passes",
    ", tier quick, latency only": "",
}
LIMITS = {("predictive", 1): 1.05, ("predictive", 64): 1.15, ("every-exit", 64): 1.25}


def draw(result: dict[str, Any], folder: Path) -> Iterator[str]:
    """Write what there are data for to ``folder``; a line for each figure."""
    rows = [from_plain(row) for row in result["rows"]]
    data = result["data"]
    with styled():
        for name, figure in (
            ("roofline", roofline(data["roofline"]) if "roofline" in data else None),
            ("walks", walks(data["walks"]) if "walks" in data else None),
            ("goals", overview([row for row in rows if row.measured is not None])),
        ):
            if figure is None:
                yield f"figure {name}: nothing was measured for it"
            else:
                save(figure, folder, name)
                yield f"figure {name}: {folder / name}.svg"


def roofline(data: dict[str, Any]) -> Figure:
    """Achieved FLOP/s of every segment over its arithmetic intensity, under the measured peaks."""
    figure, axes = canvas(9.0, 4.9, 1, 2, sharey=True)
    for axis, batch in zip(axes, (1, 64), strict=True):
        for precision, peak in data["gflops"].items():
            colour = COLOURS.get(precision, GREY)
            x = np.geomspace(0.5, 5000, 200)
            axis.plot(x, np.minimum(peak, x * data["gbytes_s"]), color=colour, linewidth=1.1)
            axis.text(0.55, peak, f"{precision} peak {peak:.0f}", color=colour, fontsize=8,
                      va="bottom")  # fmt: skip
            axis.plot([0.5, peak / data["gbytes_s"]], [peak, peak], color=colour, linewidth=0.7,
                      linestyle=(0, (1, 2)))  # fmt: skip
        for model, marker in MARKERS.items():
            for precision in data["gflops"]:
                _segments(axis, data["segments"], (model, precision, batch), marker)
        axis.set(xscale="log", yscale="log", xlim=(0.5, 5000), ylim=(5, 700),
                 title=f"batch {batch}", xlabel="arithmetic intensity, FLOP per byte")  # fmt: skip
        for which in (axis.xaxis, axis.yaxis):
            which.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            which.set_minor_formatter(NullFormatter())
    axes[0].set_ylabel("achieved GFLOP/s, without products with padding")
    for axis in axes:
        axis.text(1.0, 0.8 * data["gbytes_s"], f"copies: {data['gbytes_s']:.0f} GB/s", fontsize=8,
                  color=GREY)  # fmt: skip
    legend_below(figure, axes, 6)
    return figure


def _segments(
    axis: Axes, segments: list[dict[str, Any]], which: tuple[str, str, int], marker: str
) -> None:
    model, precision, batch = which
    rows = [
        row for row in segments
        if (row["model"], row["precision"], row["batch_size"]) == (model, precision, batch)
    ]  # fmt: skip
    axis.plot(
        [row["flops"] / row["bytes"] for row in rows],
        [row["flops"] / row["ms"] / 1e6 for row in rows],
        linestyle="none", marker=marker, markersize=4.5, color=COLOURS.get(precision, GREY),
        markerfacecolor="none" if model != "vgg19" else None, label=f"{model} {precision}",
    )  # fmt: skip


def walks(points: list[dict[str, Any]]) -> Figure:
    """Real and ideal time over the mean exit, and their ratio with its goal."""
    figure, axes = canvas(9.0, 6.6, 2, 2, sharex=True, height_ratios=[3, 2])
    for column, batch in enumerate((1, 64)):
        upper, lower = axes[column], axes[column + 2]
        for policy, look in WALKED.items():
            found = sorted(
                (p for p in points if (p["policy"], p["batch_size"]) == (policy, batch)),
                key=lambda p: p["mean_exit"],
            )
            x = [p["mean_exit"] for p in found]
            upper.plot(x, [p["real_ms"] for p in found], color=look.colour, marker=look.marker,
                       label=f"{policy}, real")  # fmt: skip
            upper.plot(x, [p["ideal_ms"] for p in found], color=look.colour, linestyle=(0, (2, 2)),
                       marker=look.marker, markerfacecolor="white",
                       label=f"{policy}, sum of its parts")  # fmt: skip
            lower.plot(x, [p["ratio"] for p in found], color=look.colour, marker=look.marker)
            if (policy, batch) in LIMITS:
                lower.axhline(LIMITS[policy, batch], color=look.colour, linewidth=1,
                              linestyle=(0, (6, 3)))  # fmt: skip
                lower.text(0.99, LIMITS[policy, batch] + 0.008, f"goal of {policy}", fontsize=8,
                           color=look.colour, ha="right",
                           transform=lower.get_yaxis_transform())  # fmt: skip
        upper.set(title=f"VGG-19, batch {batch}, fp32, one thread", ylim=(0, None))
        lower.axhline(1.0, color=FAINT, linewidth=1)
        lower.set(xlabel="mean exit (21 is the classifier)", xlim=(0, 21),
                  xticks=[1, 5, 10, 15, 20])  # fmt: skip
    low = min(0.7, *(p["ratio"] - 0.05 for p in points))
    for lower in axes[2:]:
        lower.set_ylim(low, max(1.35, *(p["ratio"] + 0.05 for p in points)))
    axes[0].set_ylabel("ms per image")
    axes[2].set_ylabel("real / sum of parts")
    legend_below(figure, axes[:2], 4)
    return figure


def _short(name: str) -> str:
    for long, short in SHORT.items():
        name = name.replace(long, short)
    return name


def overview(rows: list[Row]) -> Figure | None:
    """How far every measured number is from its goal, as a share of it."""
    rows = [row for row in rows if row.goal and row.measured is not None and row.measured > 0]
    if not rows:
        return None
    figure, (axis,) = canvas(9.0, 0.9 + 0.22 * len(rows))
    places = np.arange(len(rows))[::-1]
    for place, row in zip(places, rows, strict=True):
        assert row.goal is not None
        assert row.measured is not None
        share = row.goal / row.measured if row.least else row.measured / row.goal
        good = row.status == MET
        axis.plot([1, share], [place, place], color=FAINT, linewidth=1.2, zorder=1)
        axis.plot(share, place, marker="o" if good else "X", markersize=5.5 if good else 6.5,
                  color=BLUE if good else VERMILLION, linestyle="none",
                  label="met" if good else "missed")  # fmt: skip
    axis.axvline(1, color=GREY, linewidth=1.2)
    # The whole name is in the table; at full length it would not fit beside the axis.
    names = [_short(row.what) for row in rows]
    axis.set_yticks(places, names, fontsize=7.5)
    axis.set(ylim=(-0.7, len(rows) - 0.3), xlabel="of the goal's limit; left of 1 is better")
    axis.grid(axis="y", visible=False)
    legend_below(figure, [axis], 2)
    # Small type is wider in the files than the layout reckons.
    figure.set_layout_engine("constrained", rect=(0.05, 0, 0.95, 1))
    return figure

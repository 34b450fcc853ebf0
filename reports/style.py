"""How every figure looks: colours safe for the colour-blind, markers, line styles, files.

Colours are those of Okabe and Ito, "Color Universal Design" (2008); whatever a colour tells is told
by a marker, a line style or a hatch too, so that figures read in black and white.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..harness.files import replacing
from .view import ROLE_WORDS

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILLION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
GREY, FAINT, GRID = "#5a5a5a", "#b3b3b3", "#e4e4e4"


@dataclass(frozen=True)
class Look:
    """How one series is drawn."""

    colour: str
    line: Any
    marker: str
    size: float = 4.5


LOOKS = {
    "predictive": Look(VERMILLION, "-", "o"),
    "predictive-table": Look(GREEN, (0, (5, 1)), "D", 4.0),
    "predictive-constant": Look(GREY, (0, (2, 1)), "p", 4.5),
    "every-exit-best": Look(BLUE, (0, (6, 2)), "s", 4.0),
    "every-exit": Look(SKY, (0, (4, 1.5, 1, 1.5)), "^", 4.5),
    "fixed": Look(ORANGE, (0, (3, 1.5)), "v", 4.5),
    "perfect-predictor": Look(PURPLE, (0, (1, 1.4)), "x", 4.5),
}
PREDICTOR_LOOKS = {
    "convolution": Look(VERMILLION, "-", "o", 5),
    "table": Look(BLUE, (0, (6, 2)), "s", 4.5),
    "constant": Look(GREEN, (0, (1, 1.4)), "^", 5),
    "perfect": Look(PURPLE, (0, (4, 1.5, 1, 1.5)), "x", 5),
}
PRECISION_LOOKS = {
    "fp32": (BLUE, ""),
    "tf32": (SKY, "----"),
    "bf16": (ORANGE, "////"),
    "fp16": (PURPLE, "xxxx"),
    "int8": (GREEN, "...."),
}
"""Colour and hatch."""
OTHER = Look(BLACK, "-", "D")

RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.7,
    "hatch.linewidth": 0.7,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    # Glyphs as paths: the figure looks the same on a machine without our font.
    "svg.fonttype": "path",
    # A fixed salt gives the same element names, hence the same bytes, every time.
    "svg.hashsalt": "exitbench",
    "path.simplify": True,
}


@contextmanager
def styled() -> Iterator[None]:
    """Within the block, figures are made in the house's style, whatever the user's is."""
    with mpl.rc_context():
        mpl.rcdefaults()
        for name, value in RC.items():
            mpl.rcParams[name] = value  # type: ignore[index]
        yield


def canvas(
    width: float, height: float, rows: int = 1, columns: int = 1, **grid: Any
) -> tuple[Figure, list[Axes]]:
    """A figure in inches with its axes in reading order."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **grid)
    return figure, list(axes.ravel())


def look_of(looks: dict[str, Look], name: str) -> Look:
    """The look of a series, one for all names that are not known here."""
    return looks.get(name, OTHER)


def role_label(role: str) -> str:
    """A role's name as in the legend."""
    return ROLE_WORDS.get(role, role)


def legend_below(figure: Figure, axes: list[Axes], columns: int = 4) -> None:
    """One legend under all panels, each series once."""
    found: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if found:
        figure.legend(
            found.values(),
            found.keys(),
            loc="outside lower left",
            ncols=columns,
            handlelength=3.2,
            columnspacing=1.8,
        )


def save(figure: Figure, folder: Path, name: str) -> str:
    """Write ``name``.svg and ``name``.png to ``folder``; the SVG's text is returned.

    Raises:
        ExitbenchError: the folder cannot be written.
    """
    # Laid out once: both files then show the same, and nothing is computed twice.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    with replacing(folder / f"{name}.svg") as path:
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": "exitbench"})
        text = path.read_text(encoding="utf-8")
    with replacing(folder / f"{name}.png") as path:
        figure.savefig(path, format="png", dpi=160, metadata={"Software": "exitbench"})
    return text

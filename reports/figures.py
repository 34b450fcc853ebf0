"""All figures of a report, by name, in the order of the page."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from .columns import GOVERNED
from .figures_cost import energy_cost, latency_cost, macs_cost
from .figures_exits import exit_histograms
from .figures_governed import CLOCKS_TITLE, ENERGY_TITLE, accuracy_energy_clocks, governed_energy
from .figures_measured import replay_against_measured
from .figures_prediction import confusion, prediction_accuracy
from .figures_roofline import roofline
from .figures_scenarios import scenarios
from .figures_tradeoff import energy_tradeoff, latency_tradeoff, macs_tradeoff
from .picture import Absent, Picture
from .reading import Governed
from .style import save, styled
from .view import View

Draw = Callable[[View], Picture | Absent]
DrawOn = Callable[[View, Governed], Picture | Absent]

FIGURES: dict[str, Draw] = {
    "accuracy_energy": energy_tradeoff,
    "accuracy_latency": latency_tradeoff,
    "accuracy_macs": macs_tradeoff,
    "exit_histogram": exit_histograms,
    "cost_energy": energy_cost,
    "cost_latency": latency_cost,
    "cost_macs": macs_cost,
    "roofline": roofline,
    "scenarios": scenarios,
    "prediction_accuracy": prediction_accuracy,
    "prediction_confusion": confusion,
    "replay_measured": replay_against_measured,
}
"""Figures that a report has once."""

PER_HARDWARE: dict[str, tuple[str, DrawOn]] = {
    "governed_energy": (ENERGY_TITLE, governed_energy),
    "accuracy_energy_clocks": (CLOCKS_TITLE, accuracy_energy_clocks),
}
"""Figures that a report has once for every governed hardware, as ``NAME_HARDWARE``: the title where
there is none, and what draws one."""


def names_of(view: View, name: str) -> list[str]:
    """The names under which a figure is drawn: one per hardware, or its own."""
    if name in FIGURES or not view.run.governed:
        return [name]
    return [f"{name}_{governed.hardware}" for governed in view.run.governed]


def figures_of(view: View) -> dict[str, Draw]:
    """Every figure of this run, by the name of its files."""
    found = dict(FIGURES)
    for name, (title, draw) in PER_HARDWARE.items():
        if not view.run.governed:
            found[name] = partial(_absent, title)
        for governed in view.run.governed:
            found[f"{name}_{governed.hardware}"] = partial(_on, draw, governed)
    return found


def _on(draw: DrawOn, governed: Governed, view: View) -> Picture | Absent:
    return draw(view, governed)


def _absent(title: str, view: View) -> Absent:
    return Absent(title, view.run.missing[GOVERNED])


def draw_figures(
    view: View, folder: Path, say: Callable[[str], None]
) -> dict[str, tuple[Picture | Absent, str]]:
    """Draw every figure into ``folder`` (SVG and PNG); the pictures with their SVG text, by name.

    A figure that has no data is not drawn, and files of it from an earlier report are removed, so
    that the folder never shows what the page does not.

    Raises:
        ExitbenchError: the folder cannot be written.
    """
    drawn: dict[str, tuple[Picture | Absent, str]] = {}
    for name, draw in figures_of(view).items():
        with styled():
            picture = draw(view)
            if isinstance(picture, Picture):
                drawn[name] = (picture, save(picture.figure, folder, name))
                continue
        say(f"figure {name} left out: {picture.reason}")
        drawn[name] = (picture, "")
    shown = {name for name, (_, text) in drawn.items() if text}
    for name in (*FIGURES, *PER_HARDWARE):
        for suffix in ("svg", "png"):
            own = [folder / f"{name}.{suffix}"]
            own += folder.glob(f"{name}_*.{suffix}") if name in PER_HARDWARE else []
            for stale in own:
                if stale.stem not in shown:
                    stale.unlink(missing_ok=True)
    return drawn

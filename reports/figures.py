"""All figures of a report, by name, in the order of the page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .figures_cost import energy_cost, latency_cost, macs_cost
from .figures_exits import exit_histograms
from .figures_measured import replay_against_measured
from .figures_prediction import confusion, prediction_accuracy
from .figures_tradeoff import energy_tradeoff, latency_tradeoff, macs_tradeoff
from .picture import Absent, Picture
from .style import save, styled
from .view import View

FIGURES: dict[str, Callable[[View], Picture | Absent]] = {
    "accuracy_energy": energy_tradeoff,
    "accuracy_latency": latency_tradeoff,
    "accuracy_macs": macs_tradeoff,
    "exit_histogram": exit_histograms,
    "cost_energy": energy_cost,
    "cost_latency": latency_cost,
    "cost_macs": macs_cost,
    "prediction_accuracy": prediction_accuracy,
    "prediction_confusion": confusion,
    "replay_measured": replay_against_measured,
}


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
    for name, draw in FIGURES.items():
        with styled():
            picture = draw(view)
            if isinstance(picture, Picture):
                drawn[name] = (picture, save(picture.figure, folder, name))
                continue
        for suffix in ("svg", "png"):
            (folder / f"{name}.{suffix}").unlink(missing_ok=True)
        say(f"figure {name} left out: {picture.reason}")
        drawn[name] = (picture, "")
    return drawn

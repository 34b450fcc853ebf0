"""What a drawing function gives: a figure with its words, or the reason why there is none."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.figure import Figure


@dataclass(frozen=True)
class Picture:
    """A figure; `alt` describes it to who cannot see it, `caption` says what to see in it."""

    figure: Figure
    title: str
    alt: str
    caption: str


@dataclass(frozen=True)
class Absent:
    """A figure that the run has no data for, and why."""

    title: str
    reason: str

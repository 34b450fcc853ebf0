"""Rows of the table of goals: what was asked for, what was measured, and what is to be said."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

MET, MISSED, UNAVAILABLE, FAILED = "met", "missed", "unavailable", "failed"
SHOWN = "no goal"
_POINTS = ("%", "points")  # what is told apart by a difference, not by a ratio
_WIDTH = 150


@dataclass(frozen=True)
class Row:
    """One goal.

    Attributes:
        job: what measures it, a name for ``--only``.
        what: the work, and what it is compared with.
        goal: the limit, in ``unit``; None where there is none, or where a whole job failed.
        measured: in ``unit``; None if there is no number, and then ``note`` says why.
        unit: ``x`` (a ratio), ``%``, ``points`` (of accuracy), ``s`` or ``MiB``.
        least: the goal is a lower limit.
        note: why there is no number, or what was found; only what was measured.
        failed: it should have been measured, and something broke.
        detail: what the number was made of.
    """

    job: str
    what: str
    goal: float | None
    measured: float | None
    unit: str = "x"
    least: bool = False
    note: str = ""
    failed: bool = False
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def status(self) -> str:
        """``met``, ``missed``, ``unavailable``, ``failed`` or ``no goal``."""
        if self.measured is None:
            return FAILED if self.failed else UNAVAILABLE
        if self.goal is None:
            return SHOWN
        over = self.measured < self.goal if self.least else self.measured > self.goal
        return MISSED if over else MET

    @property
    def off(self) -> float | None:
        """How far beyond the goal: a share of it, or a difference in points; below 0 if met."""
        if self.measured is None or self.goal is None:
            return None
        worse = self.goal - self.measured if self.least else self.measured - self.goal
        return worse if self.unit in _POINTS else worse / self.goal

    def plain(self) -> dict[str, Any]:
        """The row for JSON."""
        return {**asdict(self), "status": self.status, "off": self.off}

    def goal_words(self) -> str:
        """The goal, such as ``at most 1.05 x``."""
        if self.goal is None:
            return "-"
        return f"{'at least' if self.least else 'at most'} {self.goal:g} {self.unit}"

    def measured_words(self) -> str:
        """The number, or a dash."""
        if self.measured is None:
            return "-"
        digits = {"x": 3, "%": 1, "points": 2, "s": 1, "MiB": 0}[self.unit]
        return f"{self.measured:.{digits}f} {self.unit}"

    def verdict(self) -> str:
        """Met, missed by how much, or that there is no number."""
        if self.status != MISSED or self.off is None:
            return self.status
        by = f"{self.off:.2f} {self.unit}" if self.unit in _POINTS else f"{self.off:.1%}"
        return f"missed by {by}"


def from_plain(row: dict[str, Any]) -> Row:
    """A row of the JSON file."""
    return Row(**{name: row[name] for name in Row.__dataclass_fields__})


def summary(rows: Iterable[Row]) -> str:
    """How many goals are met, missed, and so on."""
    states = [row.status for row in rows]
    names = (MET, MISSED, UNAVAILABLE, FAILED, SHOWN)
    return ", ".join(f"{states.count(name)} {name}" for name in names if name in states)


def table(rows: Sequence[Row]) -> list[str]:
    """Lines for the terminal."""
    cells = [_cells(row) for row in rows]
    head = ["what", "goal", "measured", ""]
    widths = [max(len(line[at]) for line in [head, *cells]) for at in range(4)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(head, widths, strict=True))]
    for row, line in zip(rows, cells, strict=True):
        joined = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        lines.append(joined.rstrip())
        if row.note:
            lines += textwrap.indent(textwrap.fill(row.note, _WIDTH), "    ").splitlines()
    return lines


def markdown(rows: Sequence[Row]) -> list[str]:
    """The same as a table of a page, with the notes in a list below it."""
    lines = ["| what | goal | measured | |", "|---|---|---|---|"]
    notes: dict[str, int] = {}
    for row in rows:
        cells = _cells(row)
        if row.note:
            cells[3] += f" ({notes.setdefault(row.note, len(notes) + 1)})"
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    if notes:
        lines += ["", *(f"{number}. {note}" for note, number in notes.items())]
    return lines


def _cells(row: Row) -> list[str]:
    return [row.what, row.goal_words(), row.measured_words(), row.verdict()]

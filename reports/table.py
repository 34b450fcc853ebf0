"""A table of a report: shown cells for the page, raw values for its CSV file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pandas as pd

from .columns import ENERGY_SOURCES
from .view import Setting
from .words import NONE, beta_words, exit_words, figures


@dataclass(frozen=True)
class Table:
    """One table: ``cells`` are the shown texts, ``raw`` its CSV file (None: no file)."""

    name: str
    title: str
    head: list[str]
    cells: list[list[str]]
    raw: pd.DataFrame | None
    note: str = ""
    texts: int = 1
    marked: list[int] = field(default_factory=list)


OPEN_NOTE = "± mJ: what the meter's edges and resolution leave open, without its calibration."
NET_NOTE = "Net: less idle power times the time; may be below zero."


def filled(
    head: list[str], cells: list[list[str]], texts: int = 1
) -> tuple[list[str], list[list[str]], str]:
    """Head and cells without the columns (after the first ``texts``) of which nothing is known,
    and the words on uncertainty and net energy where these columns are left."""
    keep = [
        place
        for place in range(len(head))
        if place < texts or any(row[place] != NONE for row in cells)
    ]
    left = [head[place] for place in keep]
    notes = [note for name, note in (("± mJ", OPEN_NOTE), ("net (mJ)", NET_NOTE)) if name in left]
    return left, [[row[place] for place in keep] for row in cells], " ".join(notes)


def energy_text(row: Setting, column: str = "energy_mj") -> str:
    """An energy with its unit's source beside it: ``5.20 (modelled)``, or ``unavailable``."""
    value, source = row.get(column), row.get("energy_source")
    if value is None:
        return "unavailable"
    return f"{figures(value)} ({source if source in ENERGY_SOURCES else 'source unknown'})"


def setting_cells(row: Setting, names: list[str]) -> list[str]:
    """Precision, criterion, beta, first check and predictor of a setting."""
    start = row.get("start_layer")
    return [
        str(row["precision"]),
        str(row.get("criterion") or NONE),
        beta_words(row.get("beta")),
        exit_words(int(start), names) if start is not None else NONE,
        str(row.get("predictor") or NONE),
    ]


SETTING_HEAD = ["precision", "criterion", "beta", "first check", "predictor"]


def energy_column(rows: list[Setting]) -> tuple[str, Callable[[Setting], str]]:
    """Head and cells of an energy column: a source that all rows share stands in the head."""
    sources = {str(row["energy_source"]) for row in rows if row.get("energy_mj") is not None}
    if len(sources) != 1:
        return "energy (mJ)", energy_text
    return (
        f"energy (mJ, {sources.pop()})",
        lambda row: (
            figures(row["energy_mj"]) if row.get("energy_mj") is not None else "unavailable"
        ),
    )


def interval(row: Setting, quantity: str, unit: str) -> str:
    """The range of a quantity, as ``1.2 to 1.4``."""
    low, high = row.get(f"{quantity}_low_{unit}"), row.get(f"{quantity}_high_{unit}")
    return NONE if low is None or high is None else f"{figures(low)} to {figures(high)}"

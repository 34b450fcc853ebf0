"""The tables of a report: shown cells for the page, raw values for the CSV files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from ..harness.files import replacing
from .figures_measured import gap, run_label
from .lines import front, measured
from .reading import ENERGY_SOURCES
from .view import ENERGY, LATENCY, MACS, ROLE_WORDS, Setting, View, cost_rows, realisable, records
from .words import (
    NONE,
    POLICY_WORDS,
    beta_words,
    change,
    exit_words,
    figures,
    percent,
    points,
)

FRONT_ROWS = 15


@dataclass(frozen=True)
class Table:
    """One table: ``cells`` are the shown texts, ``raw`` is what its CSV file holds."""

    name: str
    title: str
    head: list[str]
    cells: list[list[str]]
    raw: pd.DataFrame
    note: str = ""
    texts: int = 1
    marked: list[int] = field(default_factory=list)


def energy_text(row: Setting, column: str = "energy_mj") -> str:
    """An energy with its unit's source beside it: ``5.20 (modelled)``, or ``unavailable``."""
    value, source = row.get(column), row.get("energy_source")
    if value is None:
        return "unavailable"
    return f"{figures(value)} ({source if source in ENERGY_SOURCES else 'source unknown'})"


def _setting_cells(row: Setting, names: list[str]) -> list[str]:
    start = row.get("start_layer")
    return [
        str(row["precision"]),
        str(row.get("criterion") or NONE),
        beta_words(row.get("beta")),
        exit_words(int(start), names) if start is not None else NONE,
        str(row.get("predictor") or NONE),
    ]


SETTING_HEAD = ["precision", "criterion", "beta", "first check", "predictor"]


def comparison_table(view: View) -> Table | None:
    """The policies at equal accuracy, at their test values, against the full network."""
    rows = [row for role in ROLE_WORDS for row in view.roles.get(role, [])]
    rows += [row for role in view.roles if role not in ROLE_WORDS for row in view.roles[role]]
    if not rows:
        return None
    label = {id(row): role for role, found in view.roles.items() for row in found}
    full = view.reference["accuracy"] if view.reference else None
    cells = [
        [
            ROLE_WORDS.get(label[id(row)], label[id(row)]),
            *_setting_cells(row, view.names),
            percent(row["accuracy"]),
            points(row["accuracy"] - full if full is not None else None),
            figures(row["macs"] / 1e6),
            change(view.ratio(row, MACS)),
            figures(row["latency_ms"]),
            change(view.ratio(row, LATENCY)),
            energy_text(row),
            change(view.ratio(row, ENERGY)),
            figures(row["checks"]),
            figures(row["mean_exit"]),
        ]
        for row in rows
    ]
    head = ["policy", *SETTING_HEAD, "accuracy", "against full (points)", "MACs (M)", "against full"]
    head += ["latency (ms)", "against full", "energy (mJ)", "against full", "heads checked"]
    key = view.recommended["key"] if view.recommended else None
    return Table(
        "comparison",
        "The policies at equal accuracy",
        [*head, "mean exit"],
        cells,
        pd.DataFrame([{**row, "role": label[id(row)]} for row in rows]).drop(columns="key"),
        "Chosen on the calibration split as the cheapest within the allowed loss; values of the "
        "test split, per sample. A bound cannot be run: it knows the truth beforehand. "
        "The recommended setting is marked.",
        texts=6,
        marked=[i for i, row in enumerate(rows) if key is not None and row["key"] == key],
    )


def front_table(view: View) -> Table | None:
    """Settings of the Pareto front near the full network's accuracy, spread over its length."""
    rows = front(view, view.metric)
    if rows.empty or view.reference is None:
        return None
    near = rows[rows["accuracy"] >= view.reference["accuracy"] - max(0.03, 3 * view.loss)]
    shown = near if len(near) else rows
    if len(shown) > FRONT_ROWS:
        places = [round(i * (len(shown) - 1) / (FRONT_ROWS - 1)) for i in range(FRONT_ROWS)]
        shown = shown.iloc[places]
    full = view.reference["accuracy"]
    cells = [
        [
            POLICY_WORDS.get(str(row["policy"]), str(row["policy"])),
            *_setting_cells(row, view.names),
            percent(row["accuracy"]),
            points(row["accuracy"] - full),
            figures(row["macs"] / 1e6),
            figures(row["latency_ms"]),
            energy_text(row),
            change(view.ratio(row, view.metric)),
        ]
        for row in records(shown)
    ]
    head = ["policy", *SETTING_HEAD, "accuracy", "against full (points)", "MACs (M)"]
    head += ["latency (ms)", "energy (mJ)", f"{view.metric.noun} against full"]
    split = "calibration" if len(view.calibration) else "test"
    return Table(
        "pareto",
        f"The Pareto front of accuracy against {view.metric.noun}",
        head,
        cells,
        rows.drop(columns="key"),
        f"{len(rows)} of {len(realisable(view.test)):,} settings form the front (found on the "
        f"{split} split, values of the test split); {len(shown)} of them are shown, spread over "
        "the accuracies that matter. The CSV file has all.",
        texts=6,
    )


def cost_table(view: View) -> Table | None:
    """Cost of every unit, per precision."""
    rows = cost_rows(view)
    if rows is None:
        return None
    units = records(rows)
    cells = [
        [
            str(row["kind"]),
            _unit_place(row, view.names),
            str(row["precision"] or NONE),
            figures(row["macs"] / 1e6),
            figures(row["params"]),
            figures(row["latency_ms"]),
            _interval(row, "latency", "ms"),
            energy_text(row),
            _interval(row, "energy", "mj"),
        ]
        for row in units
    ]
    head = ["unit", "at", "precision", "MACs (M)", "parameters", "latency (ms)", "95% interval"]
    return Table(
        "cost",
        "Cost per layer, head and forecast",
        [*head, "energy (mJ)", "95% interval"],
        cells,
        rows,
        "Per sample; a segment is the layers between two exits, its latency the median.",
        texts=3,
    )


def _unit_place(row: Setting, names: list[str]) -> str:
    place = exit_words(int(row["index"]), names)
    return f"up to {place}" if row["kind"] == "segment" else place


def _interval(row: Setting, quantity: str, unit: str) -> str:
    low, high = row.get(f"{quantity}_low_{unit}"), row.get(f"{quantity}_high_{unit}")
    return NONE if low is None or high is None else f"{figures(low)} to {figures(high)}"


def measured_table(view: View) -> Table | None:
    """Really run settings beside their replay."""
    rows = measured(view)
    if not rows:
        return None
    cells = [
        [
            run_label(row),
            figures(row.get("samples"), 6),
            percent(row["accuracy"]),
            percent(row.get("replay_accuracy")),
            percent(row.get("same_decisions"), 2),
            figures(row.get("replay_latency_ms")),
            figures(row.get("latency_ms")),
            _interval(row, "latency", "ms"),
            change(gap(row, LATENCY), 1),
            figures(row.get("replay_energy_mj")),
            energy_text(row),
            change(gap(row, ENERGY), 1),
        ]
        for row in rows
    ]
    head = ["setting", "samples", "accuracy", "replayed", "same decisions"]
    head += ["latency replayed (ms)", "measured (ms)", "95% interval", "gap"]
    head += ["energy replayed (mJ)", "of the run (mJ)", "gap"]
    flat = [{k: v for k, v in r.items() if not isinstance(v, list | dict)} for r in rows]
    return Table(
        "measured",
        "Replayed against measured",
        head,
        cells,
        pd.DataFrame(flat),
        "The time of a run is always measured; its energy has the source in brackets.",
    )


LAYER_COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "checked": ("checked", lambda v: figures(v, 6)),
    "left": ("left", lambda v: figures(v, 6)),
    "correct": ("correct", lambda v: figures(v, 6)),
    "mean_confidence": ("mean confidence", figures),
    "mean_forecast": ("mean forecast", figures),
    "mean_true_jump": ("mean true jump", figures),
    "forecasts": ("forecasts", lambda v: figures(v, 6)),
    "prediction_hits": ("right forecasts", lambda v: figures(v, 6)),
}


def layer_tables(view: View) -> list[Table]:
    """The statistics of every exit, one table per measured run that collected them."""
    tables = []
    for row in measured(view):
        layers = row.get("stat_each_layer")
        if not isinstance(layers, list) or not layers:
            continue
        cells = [
            [exit_words(int(layer["exit"]), view.names)]
            + [show(layer.get(column)) for column, (_, show) in LAYER_COLUMNS.items()]
            for layer in layers
            if isinstance(layer, dict) and "exit" in layer
        ]
        tables.append(
            Table(
                f"stat_each_layer_{len(tables) + 1}",
                run_label(row),
                ["exit", *(words for words, _ in LAYER_COLUMNS.values())],
                cells,
                pd.DataFrame(layers),
            )
        )
    return tables


def all_tables(view: View) -> dict[str, Table]:
    """Every table that the run has data for, by name."""
    tables = [comparison_table(view), front_table(view), cost_table(view), measured_table(view)]
    return {t.name: t for t in (*tables, *layer_tables(view)) if t is not None}


def write_tables(tables: dict[str, Table], folder: Path) -> None:
    """Write each table as CSV with its raw values; tables of an earlier report are removed.

    Raises:
        ExitbenchError: the folder cannot be written.
    """
    own = [*folder.glob("stat_each_layer_*.csv")]
    own += [folder / f"{name}.csv" for name in ("comparison", "pareto", "cost", "measured")]
    for path in own:
        if path.stem not in tables:
            path.unlink(missing_ok=True)
    for table in tables.values():
        with replacing(folder / f"{table.name}.csv") as path:
            table.raw.to_csv(path, index=False, lineterminator="\n")

"""The tables of a report: shown cells for the page, raw values for the CSV files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from ..harness.files import replacing
from .columns import ENERGY_SOURCES, SETTING
from .figures_measured import gap, run_label
from .lines import front, measured
from .view import ENERGY, LATENCY, MACS, ROLE_WORDS, Setting, View, cost_rows, realisable, records
from .words import (
    NONE,
    POLICY_WORDS,
    beta_words,
    change,
    count,
    exit_words,
    figures,
    percent,
    points,
)

FRONT_ROWS = 15


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


def _energy_column(rows: list[Setting]) -> tuple[str, Callable[[Setting], str]]:
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


def comparison_tables(view: View) -> list[Table]:
    """The policies at equal accuracy, one table per precision, the recommended one first."""
    best = view.recommended or view.reference or {}
    order = sorted(view.precisions, key=lambda precision: precision != best.get("precision"))
    groups = [(p, rows) for p in order if (rows := _compared(view, p))]
    everything = [{**row, "role": role} for _, rows in groups for role, row in rows]
    tables = []
    for number, (precision, rows) in enumerate(groups):
        raw = pd.DataFrame(everything).drop(columns="key") if number == 0 else None
        tables.append(_comparison_table(view, precision, rows, raw))
    return tables


def _compared(view: View, precision: str) -> list[tuple[str, Setting]]:
    """Roles and their settings; the recommended one by itself only if it plays no other."""
    order = [*ROLE_WORDS, *(role for role in view.roles if role not in ROLE_WORDS)]
    return [
        (role, row)
        for role in order
        for row in view.roles.get(role, [])
        if row["precision"] == precision and (role != "recommended" or view.role_of(row) is None)
    ]


def _comparison_table(
    view: View, precision: str, rows: list[tuple[str, Setting]], raw: pd.DataFrame | None
) -> Table:
    key = view.recommended["key"] if view.recommended else None
    reference = view.reference
    base = (
        f"the full network in {reference['precision']}" if reference else "nothing: it is missing"
    )
    if reference is not None and raw is not None and reference["precision"] != precision:
        rows = [(f"full network, {reference['precision']}", reference), *rows]
    words, energy = _energy_column([row for _, row in rows])
    head = ["policy", "criterion", "beta", "first check", "accuracy", "± points", "MACs (M)"]
    head += ["± MACs", "latency (ms)", "± latency", words, "± energy", "heads checked"]
    cells = [_comparison_cells(view, role, row, energy) for role, row in rows]
    if all(row["energy_mj"] is None for _, row in rows):
        place = head.index("± energy")
        head = head[:place] + head[place + 1 :]
        cells = [found[:place] + found[place + 1 :] for found in cells]
    return Table(
        "comparison" if raw is not None else f"comparison-{precision}",
        f"The policies at equal accuracy, {precision}",
        [*head, "mean exit"],
        cells,
        raw,
        "Chosen on the calibration split as the cheapest within the allowed loss; values of the "
        f"test split, per sample. ± is against {base}. A bound cannot be run: it knows the truth "
        "beforehand. The recommended setting is marked.",
        texts=4,
        marked=[i for i, (_, row) in enumerate(rows) if key is not None and row["key"] == key],
    )


def _comparison_cells(
    view: View, role: str, row: Setting, energy: Callable[[Setting], str]
) -> list[str]:
    full = view.reference["accuracy"] if view.reference else None
    _, criterion, beta, first, _ = _setting_cells(row, view.names)
    return [
        *(ROLE_WORDS.get(role, role), criterion, beta, first),
        percent(row["accuracy"]),
        points(row["accuracy"] - full if full is not None else None),
        figures(row["macs"] / 1e6),
        change(view.ratio(row, MACS)),
        figures(row["latency_ms"]),
        change(view.ratio(row, LATENCY)),
        energy(row),
        change(view.ratio(row, ENERGY)),
        figures(row["checks"]),
        figures(row["mean_exit"]),
    ]


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
    energy_head, energy = _energy_column(records(shown))
    cells = [
        [
            POLICY_WORDS.get(str(row["policy"]), str(row["policy"])),
            *_setting_cells(row, view.names),
            percent(row["accuracy"]),
            points(row["accuracy"] - full),
            figures(row["macs"] / 1e6),
            figures(row["latency_ms"]),
            energy(row),
            change(view.ratio(row, view.metric)),
        ]
        for row in records(shown)
    ]
    head = ["policy", *SETTING_HEAD, "accuracy", "± points", "MACs (M)"]
    head += ["latency (ms)", energy_head, f"± {view.metric.noun}"]
    split = "calibration" if len(view.calibration) else "test"
    return Table(
        "pareto",
        f"The Pareto front of accuracy against {view.metric.noun}",
        head,
        cells,
        rows.drop(columns="key"),
        f"{len(rows)} of {len(realisable(view.test)):,} settings form the front (found on the "
        f"{split} split, values of the test split); {len(shown)} of them are shown, spread over "
        "the accuracies that matter. ± is against the full network in "
        f"{view.reference['precision']}. The CSV file has all.",
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
    words, energy = _energy_column(rows)
    cells = [
        [
            run_label(view, row),
            count(row.get("batch_size")),
            count(row.get("samples")),
            percent(row["accuracy"]),
            percent(row.get("replay_accuracy")),
            percent(row.get("same_decisions"), 2),
            figures(row.get("replay_latency_ms")),
            figures(row.get("latency_ms")),
            _interval(row, "latency", "ms"),
            change(gap(row, LATENCY), 1),
            figures(row.get("replay_energy_mj")),
            energy(row),
            change(gap(row, ENERGY), 1),
        ]
        for row in rows
    ]
    head = ["setting", "batch size", "samples", "accuracy", "replayed", "same decisions"]
    head += ["latency replayed (ms)", "measured (ms)", "range of passes", "gap"]
    head += ["energy replayed (mJ)", words.replace("energy", "of the run"), "gap"]
    flat = [{k: v for k, v in r.items() if not isinstance(v, list | dict)} for r in rows]
    return Table(
        "measured",
        "Replayed against measured",
        head,
        cells,
        pd.DataFrame(flat),
        "The time of a run is always measured; its energy has the source in brackets. "
        "Accuracy, replayed too, is that of the samples of the run.",
    )


LAYER_COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "checked": ("checked", count),
    "left": ("left", count),
    "correct": ("correct", count),
    "mean_confidence": ("mean confidence", figures),
    "mean_forecast": ("mean forecast", figures),
    "mean_true_jump": ("mean true jump", figures),
    "forecasts": ("forecasts", count),
    "prediction_hits": ("right forecasts", count),
}


def _is_recommended(view: View, row: Setting) -> bool:
    best = view.recommended
    return best is not None and all(best[column] == row.get(column) for column in SETTING)


def layer_tables(view: View) -> list[Table]:
    """The statistics of every exit, one table per run, the recommended first."""
    tables: list[Table] = []
    for row in sorted(measured(view), key=lambda row: not _is_recommended(view, row)):
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
                run_label(view, row),
                ["exit", *(words for words, _ in LAYER_COLUMNS.values())],
                cells,
                pd.DataFrame(layers),
            )
        )
    return tables


def all_tables(view: View) -> dict[str, Table]:
    """Every table that the run has data for, by name."""
    tables = [front_table(view), cost_table(view), measured_table(view)]
    found = (*comparison_tables(view), *tables, *layer_tables(view))
    return {t.name: t for t in found if t is not None}


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
        if table.raw is None:
            continue
        with replacing(folder / f"{table.name}.csv") as path:
            table.raw.to_csv(path, index=False, lineterminator="\n")

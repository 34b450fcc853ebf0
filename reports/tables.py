"""The tables of a report on settings and costs, and their CSV files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from ..harness.files import replacing
from .lines import front
from .table import SETTING_HEAD, Table, energy_column, energy_text, filled, interval, setting_cells
from .tables_energy import governed_tables, meters_table, scenarios_table, windows_table
from .tables_measured import layer_tables, measured_table, metered_table
from .view import (
    ENERGY,
    LATENCY,
    MACS,
    ROLE_WORDS,
    Setting,
    View,
    cost_rows,
    latency_note,
    realisable,
    records,
)
from .words import NONE, POLICY_WORDS, change, exit_words, figures, percent, points

FRONT_ROWS = 15
NAMES = (
    *("comparison", "pareto", "cost", "measured", "metered", "scenarios", "meters", "windows"),
)
"""Tables that a report has once at most: their files of an earlier report are removed."""


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
    words, energy = energy_column([row for _, row in rows])
    head = ["policy", "criterion", "beta", "first check", "accuracy", "± points", "MACs (M)"]
    latency = f"latency (ms{latency_note(pd.DataFrame([row for _, row in rows]))})"
    head += ["± MACs", latency, "± latency", words, "± energy", "heads checked"]
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
    _, criterion, beta, first, _ = setting_cells(row, view.names)
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
    energy_head, energy = energy_column(records(shown))
    cells = [
        [
            POLICY_WORDS.get(str(row["policy"]), str(row["policy"])),
            *setting_cells(row, view.names),
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
    head += [f"latency (ms{latency_note(rows)})", energy_head, f"± {view.metric.noun}"]
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
            interval(row, "latency", "ms"),
            energy_text(row),
            interval(row, "energy", "mj"),
            figures(row["energy_uncertainty_mj"]),
            figures(row["net_energy_mj"]),
        ]
        for row in units
    ]
    head = ["unit", "at", "precision", "MACs (M)", "parameters"]
    head += [f"latency (ms{latency_note(rows)})", "95% interval"]
    head += ["energy (mJ)", "95% interval", "± mJ", "net (mJ)"]
    head, cells, words = filled(head, cells, 3)
    return Table(
        "cost",
        "Cost per layer, head and forecast",
        head,
        cells,
        rows,
        "Per sample; a segment is the layers between two exits, its latency the median. "
        f"{words}".strip(),
        texts=3,
    )


def _unit_place(row: Setting, names: list[str]) -> str:
    place = exit_words(int(row["index"]), names)
    return f"up to {place}" if row["kind"] == "segment" else place


def all_tables(view: View) -> dict[str, Table]:
    """Every table that the run has data for, by name."""
    tables = [front_table(view), cost_table(view), measured_table(view), metered_table(view)]
    tables += [scenarios_table(view), meters_table(view), windows_table(view)]
    listed = (*governed_tables(view), *layer_tables(view))
    found = (*comparison_tables(view), *tables, *listed)
    return {t.name: t for t in found if t is not None}


def write_tables(tables: dict[str, Table], folder: Path) -> None:
    """Write each table as CSV with its raw values; tables of an earlier report are removed.

    Raises:
        ExitbenchError: the folder cannot be written.
    """
    own = [*folder.glob("stat_each_layer_*.csv"), *folder.glob("governed-*.csv")]
    own += [folder / f"{name}.csv" for name in NAMES]
    for path in own:
        if path.stem not in tables:
            path.unlink(missing_ok=True)
    for table in tables.values():
        if table.raw is None:
            continue
        with replacing(folder / f"{table.name}.csv") as path:
            table.raw.to_csv(path, index=False, lineterminator="\n")

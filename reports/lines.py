"""Which rows of a sweep form a line, and which form the Pareto front.

A sweep holds thousands of settings; a line is one policy in one precision over beta, everything
else held. The family held (criterion, start layer, predictor) is the one chosen for that policy on
the calibration split; where nothing was chosen, the family whose cheapest setting within the
allowed accuracy loss on the calibration split costs least.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from .view import FAMILY, PREDICTIVE, Metric, Setting, View, cost_rows, pool, realisable, records
from .words import exit_words, listing

LINES = ("every-exit", "every-exit-best", *PREDICTIVE, "perfect-predictor", "fixed")


@dataclass(frozen=True)
class Line:
    """One policy in one precision; `rows` are test rows, ordered by beta (or by exit)."""

    role: str
    precision: str
    family: dict[str, Any]
    rows: pd.DataFrame


def line(view: View, role: str, precision: str) -> Line | None:
    """The line of a role in a precision; None if the sweep has no such rows."""
    test = pool(view.test, role)
    test = test[test["precision"] == precision]
    if test.empty:
        return None
    if role == "fixed":
        return Line(role, precision, {}, test.sort_values("start_layer", kind="stable"))
    chosen = view.role(role, precision)
    family = {c: chosen[c] for c in FAMILY} if chosen is not None else None
    rows = _members(test, family) if family else test.head(0)
    if rows.empty or family is None:
        family = _best_family(view, role, precision, test)
        rows = _members(test, family)
    return Line(role, precision, family, rows.sort_values("beta", kind="stable"))


def lines(view: View, precision: str) -> list[Line]:
    """All lines of a precision; every-exit is one line where exit 1 is the best start layer."""
    found = [line(view, role, precision) for role in LINES]
    drawn = [one for one in found if one is not None]
    first = next((one for one in drawn if one.role == "every-exit"), None)
    same = [
        one
        for one in drawn
        if first is not None and one.role == "every-exit-best" and one.family == first.family
    ]
    return [one for one in drawn if one not in same]


def _members(frame: pd.DataFrame, family: dict[str, Any]) -> pd.DataFrame:
    keep = np.ones(len(frame), bool)
    for column, value in family.items():
        cells = frame[column]
        if value is None:
            keep &= (cells.isna() | (cells.astype(str) == "")).to_numpy()
        else:
            keep &= (cells == value).to_numpy()
    return frame[keep]


def _best_family(view: View, role: str, precision: str, test: pd.DataFrame) -> dict[str, Any]:
    """The family with the cheapest acceptable calibration row, else with the most accurate one."""
    rows = pool(view.calibration, role)
    rows = rows[rows["precision"] == precision]
    rows = rows if len(rows) else test
    full = rows["accuracy"].max()
    same = view.calibration if len(view.calibration) else view.test
    reference = same[(same["policy"] == "full") & (same["precision"] == precision)]
    full = reference["accuracy"].iloc[0] if len(reference) else full
    good = rows[rows["accuracy"] >= full - view.loss - 1e-9]
    cost = view.metric.column
    best = (
        good.sort_values([cost, "accuracy"], ascending=[True, False], kind="stable")
        if len(good)
        else rows.sort_values("accuracy", ascending=False, kind="stable")
    )
    return {c: records(best.head(1))[0][c] for c in FAMILY}


def family_words(one: Line, names: list[str]) -> str:
    """A line's family as a phrase for a legend or a caption."""
    parts = [str(one.family[c]) for c in ("predictor", "criterion") if one.family.get(c)]
    start = one.family.get("start_layer")
    if start is not None:
        parts.append(f"first check at {exit_words(int(start), names)}")
    return ", ".join(parts)


def front(view: View, metric: Metric) -> pd.DataFrame:
    """The Pareto front of accuracy against ``metric``: chosen on calibration rows, as test rows.

    Bounds (oracle, perfect predictor) are no settings that can be run and are left out. Without
    calibration rows the test rows choose themselves, which the page says.
    """
    base = realisable(view.calibration if len(view.calibration) else view.test)
    base = base[base[metric.column].notna()]
    ordered = base.sort_values([metric.column, "accuracy"], ascending=[True, False], kind="stable")
    best_before = ordered["accuracy"].cummax().shift(fill_value=-1.0)
    keys = ordered.loc[ordered["accuracy"] > best_before, "key"]
    rows = view.test[view.test["key"].isin(keys) & view.test[metric.column].notna()]
    return rows.sort_values([metric.column, "accuracy"], kind="stable")


def others(view: View, precision: str, drawn: list[Line]) -> pd.DataFrame:
    """The settings of a precision that can be run and are on no line."""
    rows = realisable(view.test)
    on_lines = [key for one in drawn for key in one.rows["key"]]
    return rows[(rows["precision"] == precision) & ~rows["key"].isin(on_lines)]


def measured(view: View, precision: str | None = None) -> list[Setting]:
    """The plain measured runs at the reported batch size, operating point and device, in order.

    And by the runtime that was priced. A run or a cost table that does not name one of these is
    taken to be of the other's. Plain: one
    batch after another, each by itself, and no governor, which is what the sweep prices.
    """
    return [
        row
        for row in _here(view)
        if precision in (None, row["precision"]) and plain(row)
    ]


def plain(row: Setting) -> bool:
    """Whether a run is of the continuous scene, each batch by itself, and without a governor."""
    together = row.get("rebatch_wait") is not None
    return row.get("scene") in (None, "continuous") and not row.get("governor") and not together


def rebatched(view: View) -> list[Setting]:
    """The measured runs in which what is left of several batches runs on together."""
    return [row for row in _here(view) if row.get("rebatch_wait") is not None]


def staged(view: View) -> list[Setting]:
    """The measured runs in another scene, rebatched or with a governor, at the reported batch size
    and device.

    Their clocks are their own, so they belong to no operating point of the page.
    """
    return [row for row in _here(view, skip=("operating_point",)) if not plain(row)]


def _here(view: View, skip: tuple[str, ...] = ()) -> list[Setting]:
    """The measured runs at the reported place, by the runtime that was priced there."""
    rows = [row for row in view.run.measurements if _at_place(view, row, skip)]
    costs = cost_rows(view)
    named = None if costs is None else costs[costs["runtime"].notna() & (costs["runtime"] != "")]
    if named is None or not len(named):
        return rows
    priced = named.groupby("precision")["runtime"].agg(set).to_dict()
    return [
        row
        for row in rows
        if row.get("runtime") is None
        or row["runtime"] in priced.get(row["precision"], (row["runtime"],))
    ]


def _at_place(view: View, row: Setting, skip: tuple[str, ...] = ()) -> bool:
    for column, value in view.place.items():
        own, unknown = row.get(column), value == "" or value != value
        if column not in skip and own is not None and not unknown and own != value:
            return False
    return True


def run_energy_source(rows: list[Setting]) -> str:
    """Where the energies of measured runs come from."""
    found = sorted({str(r["energy_source"]) for r in rows if r.get("energy_mj") is not None})
    return listing(found) if found else "unavailable"


def run_latency_source(rows: list[Setting]) -> str:
    """Where the latencies of runs come from: measured, unless a row says that it is modelled."""
    found = {r.get("latency_source") or "measured" for r in rows if r.get("latency_ms") is not None}
    return listing(sorted(found)) if found else "unavailable"

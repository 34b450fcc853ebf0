"""What a report says, decided once: the settings compared, the one recommended, the lines drawn.

Every choice here is made on rows of the calibration split; the values shown are those of the same
settings on the test split. Costs of different batch sizes, operating points or devices are never
mixed: one such place is reported, and the page names it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from .columns import ENERGY_SOURCES, PLACE, SETTING
from .reading import Run, as_text
from .words import figures, listing, millions

Setting = dict[str, Any]

PRECISIONS = ("fp32", "tf32", "bf16", "fp16", "int8")
PREDICTIVE = ("predictive", "predictive-table", "predictive-constant")
CHOSEN_ROLES = ("fixed", "every-exit", "every-exit-best", *PREDICTIVE, "perfect-predictor")
BOUNDS = ("perfect-predictor", "oracle")
FAMILY = ("criterion", "start_layer", "predictor")
ROLE_WORDS = {
    "full": "full network",
    "every-exit": "every-exit from exit 1",
    "every-exit-best": "every-exit, best start layer",
    "predictive": "predictive exit, convolution",
    "predictive-table": "predictive exit, table",
    "predictive-constant": "predictive exit, constant",
    "fixed": "one fixed exit",
    "perfect-predictor": "perfect predictor (a bound)",
    "oracle": "oracle (a bound)",
    "recommended": "cheapest within the loss",
}


@dataclass(frozen=True)
class Metric:
    """A cost that settings are compared by; `scale` turns the file's unit into the shown one."""

    column: str
    noun: str
    unit: str
    scale: float = 1.0

    def text(self, value: float | None) -> str:
        """A value of this metric with its unit."""
        if self.column == "macs":
            return millions(value)
        return f"{figures(value)} {self.unit}" if value is not None else figures(value)


ENERGY = Metric("energy_mj", "energy", "mJ")
LATENCY = Metric("latency_ms", "latency", "ms")
MACS = Metric("macs", "MACs", "M", 1e-6)
METRICS = (ENERGY, LATENCY, MACS)


@dataclass(frozen=True)
class View:
    """A run as the report sees it. Costs per sample; accuracy as a share (0..1).

    ``metrics`` are the costs that some setting has, ``metric`` is the one that settings were ranked
    by when they were chosen.
    """

    run: Run
    test: pd.DataFrame
    calibration: pd.DataFrame
    place: dict[str, Any]
    places: int
    metrics: tuple[Metric, ...]
    metric: Metric
    loss: float
    roles: dict[str, list[Setting]]
    reference: Setting | None
    recommended: Setting | None
    names: list[str]

    @property
    def precisions(self) -> tuple[str, ...]:
        """Precisions in the sweep, the most exact first."""
        return tuple(ordered_precisions(self.test))

    def role_of(self, row: Mapping[str, Any]) -> str | None:
        """The role that a setting plays, the recommendation aside; None if it plays none."""
        for name, rows in self.roles.items():
            for other in rows if name != "recommended" else []:
                if all(other[column] == row.get(column) for column in SETTING):
                    return name
        return None

    def role(self, name: str, precision: str | None = None) -> Setting | None:
        """The setting chosen for a role; in ``precision`` if one was chosen there."""
        rows = self.roles.get(name, [])
        return next((row for row in rows if row["precision"] == precision), next(iter(rows), None))

    def best_predictive(self, precision: str | None = None) -> Setting | None:
        """The predictive setting that was cheapest on the calibration split, of all predictors."""
        rows = [row for name in PREDICTIVE if (row := self.role(name, precision)) is not None]
        rows = [row for row in rows if precision in (None, row["precision"])] or rows
        known = self.calibration.set_index("key")[self.metric.column].to_dict()
        costs = [float(known.get(row["key"], np.inf)) for row in rows]
        costs = [np.inf if np.isnan(cost) else cost for cost in costs]
        return rows[costs.index(min(costs))] if rows else None

    def ratio(self, row: Setting | None, metric: Metric, to: Setting | None = None) -> float | None:
        """A setting's cost as a share of the reference's (or of ``to``'s); None if not known."""
        base = to if to is not None else self.reference
        if row is None or base is None:
            return None
        cost, whole = row[metric.column], base[metric.column]
        if cost is None or not whole or np.isnan(cost) or np.isnan(whole):
            return None
        return float(cost / whole)


def ordered_precisions(frame: pd.DataFrame) -> list[str]:
    """The precisions in a table, the most exact first."""
    found = set(frame["precision"])
    return [*(p for p in PRECISIONS if p in found), *sorted(found - set(PRECISIONS))]


def records(frame: pd.DataFrame) -> list[Setting]:
    """The rows of a table as dicts, None where a cell is empty."""
    return [
        {
            str(k): None if v == "" or (isinstance(v, float) and np.isnan(v)) else v
            for k, v in row.items()
        }
        for row in frame.to_dict("records")
    ]


def look(run: Run) -> View:
    """Decide what is compared and recommended in ``run``."""
    place, places = _place(run)
    sweep = _at(run.sweep, place)
    test, calibration = (sweep[sweep["split"] == s] for s in ("test", "calibration"))
    metrics = tuple(m for m in METRICS if test[m.column].notna().any())
    loss = _accuracy_loss(run.manifest)
    roles = _roles(run, test, calibration)
    names = _exit_names(run)
    metric = _ranked_by(run, sweep)
    draft = View(
        run, test, calibration, place, places, metrics, metric, loss, roles, None, None, names
    )
    reference = _reference(draft)
    draft = replace(draft, reference=reference)
    if not roles:
        draft = replace(draft, roles=_own_roles(draft))
    return replace(draft, recommended=_recommend(draft))


def _ranked_by(run: Run, sweep: pd.DataFrame) -> Metric:
    """The cost by which settings were chosen: as the sweep wrote it down.

    For a run that does not say, by the rule of the sweep: the first cost that all settings have.
    """
    named = run.manifest.get("ranked_by")
    if not named and run.comparison is not None:
        named = run.comparison["ranked_by"].iloc[0]
    found = [m for m in METRICS if m.column == named]
    found += [m for m in METRICS if sweep[m.column].notna().all()]
    return found[0] if found else MACS


def _place(run: Run) -> tuple[dict[str, Any], int]:
    """Batch size, operating point and device that are reported, and how many the sweep has."""
    base = run.comparison if run.comparison is not None else run.sweep
    columns = list(PLACE)
    found = run.sweep[columns].drop_duplicates()
    known = set(zip(*(as_text(found[column]) for column in columns), strict=True))
    for row in base[columns].head(1).itertuples(index=False, name=None):
        if tuple(str(value) for value in row) in known:
            return dict(zip(columns, row, strict=True)), len(found)
    return dict(zip(columns, found.iloc[0], strict=True)), len(found)


def _at(frame: pd.DataFrame, place: dict[str, Any]) -> pd.DataFrame:
    """The rows of ``frame`` at ``place``; an empty cell is equal to an empty cell."""
    keep = np.ones(len(frame), bool)
    for column, value in place.items():
        keep &= np.array(as_text(frame[column])) == str(value)
    return frame[keep]


def cost_rows(view: View) -> pd.DataFrame | None:
    """The rows of the cost table that belong to the reported place; all where none does."""
    cost = view.run.cost
    if cost is None:
        return None
    for column, value in view.place.items():
        same = _at(cost, {column: value})
        cost = same if len(same) else _at(cost, {column: cost[column].iloc[0]})
    return cost[cost["kind"] != "gather"]  # no part of what a sample pays


def _accuracy_loss(manifest: dict[str, Any]) -> float:
    """The accuracy that may be lost, as a share; one point where the manifest names none."""
    named = [manifest.get("accuracy_loss")]
    named += [
        value
        for key, value in flatten(manifest.get("config") or {})
        if key.split(".")[-1] == "accuracy_loss"
    ]
    return next((v / 100 for v in named if isinstance(v, int | float)), 0.01)


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested objects, with dotted names."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def _exit_names(run: Run) -> list[str]:
    """Names of the exits and the classifier, from the manifest or else by number."""
    named = run.manifest.get("exit_names")
    if isinstance(named, list) and named:
        return [str(name) for name in named]
    histograms = [h for h in run.sweep["exit_histogram"] if h]
    exits = len(histograms[0].split()) - 1 if histograms else 0
    if run.cost is not None:
        exits = max(
            exits,
            int(
                (run.cost["kind"] == "head").sum()
                and run.cost.loc[run.cost["kind"] == "head", "index"].max()
            ),
        )
    return [*(f"exit {i}" for i in range(1, exits + 1)), "classifier"]


def canonical_role(name: str) -> str:
    """The role's name as this package knows it; spellings of every-exit's two roles are one."""
    plain = name.strip().lower().replace("_", "-").replace(" ", "-")
    if plain.startswith("every-exit"):
        first = plain == "every-exit" or "exit-1" in plain or "first" in plain
        return "every-exit" if first else "every-exit-best"
    return plain


def _roles(run: Run, test: pd.DataFrame, calibration: pd.DataFrame) -> dict[str, list[Setting]]:
    """Per role the chosen settings at their test values: comparison.csv, else `chosen_as`."""
    roles: dict[str, list[Setting]] = {}
    if run.comparison is not None:
        known = {row["key"]: row for row in records(test[test["key"].isin(run.comparison["key"])])}
        for row in records(run.comparison):
            name = canonical_role(str(row["role"]))
            roles.setdefault(name, []).append({**known.get(row["key"], {}), **row})
        return roles
    marked = pd.concat([calibration, test])
    marked = marked[marked["chosen_as"] != ""]
    for mark in records(marked.drop_duplicates("key")):
        for row in records(test[test["key"] == mark["key"]]):
            for name in str(mark["chosen_as"]).split(";"):
                role = canonical_role(name)
                roles.setdefault(role, []).append({**row, "role": role})
    return roles


def _reference(view: View) -> Setting | None:
    """The full network that savings are told against, in the most exact precision."""
    full = view.test[view.test["policy"] == "full"]
    for precision in view.precisions:
        for row in records(full[full["precision"] == precision].head(1)):
            return row
    return view.role("full")


def pool(frame: pd.DataFrame, role: str) -> pd.DataFrame:
    """The rows of ``frame`` from which a role is chosen."""
    policy, predictor = frame["policy"], frame["predictor"]
    filters = {
        "every-exit": (policy == "every-exit") & ~(frame["start_layer"] > 1),
        "every-exit-best": policy == "every-exit",
        "predictive": (policy == "predictive") & (predictor == "convolution"),
        "predictive-table": (policy == "predictive") & (predictor == "table"),
        "predictive-constant": (policy == "predictive") & (predictor == "constant"),
        "perfect-predictor": (policy == "predictive") & (predictor == "perfect"),
    }
    return frame[filters.get(role, policy == role)]


def realisable(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows that a device can run: no oracle, no perfect predictor."""
    return frame[(frame["policy"] != "oracle") & (frame["predictor"] != "perfect")]


def _cheapest(view: View, frame: pd.DataFrame, full: Setting | None) -> Setting | None:
    """The cheapest calibration row of ``frame`` within the allowed loss of the network ``full``.

    On a tie the more accurate one; None if there is none, or nothing to compare with.
    """
    if full is None:
        return None
    accuracy = view.calibration.loc[view.calibration["key"] == full["key"], "accuracy"]
    if accuracy.empty:
        return None
    limit = float(accuracy.iloc[0]) - view.loss
    # Accuracies are shares of counted samples: 1e-9 forgives only rounding of the subtraction.
    good = frame[(frame["accuracy"] >= limit - 1e-9) & frame[view.metric.column].notna()]
    ordered = good.sort_values(
        [view.metric.column, "accuracy"], ascending=[True, False], kind="stable"
    )
    return next(iter(records(ordered.head(1))), None)


def _own_roles(view: View) -> dict[str, list[Setting]]:
    """Roles chosen by the report itself where neither comparison.csv nor `chosen_as` has any."""
    roles: dict[str, list[Setting]] = {}
    for precision in view.precisions:
        test, calibration = (
            frame[frame["precision"] == precision] for frame in (view.test, view.calibration)
        )
        full = next(iter(records(test[test["policy"] == "full"].head(1))), None)
        if full is not None:
            roles.setdefault("full", []).append({**full, "role": "full"})
        for role in CHOSEN_ROLES:
            best = _cheapest(view, pool(calibration, role), full)
            for row in records(test[test["key"] == best["key"]]) if best else []:
                roles.setdefault(role, []).append({**row, "role": role})
    return roles


def _recommend(view: View) -> Setting | None:
    """The setting to use: the cheapest within the loss on the calibration split, any policy."""
    named = view.role("recommended")
    if named is not None:
        return named
    best = _cheapest(view, realisable(view.calibration), view.reference)
    if best is None:
        return None
    return next(iter(records(view.test[view.test["key"] == best["key"]])), None)


def source_note(metric: Metric, row: Mapping[str, Any]) -> str:
    """Where a setting's cost comes from, in brackets after a blank.

    An energy always says it, a latency where it was not measured.
    """
    if metric is ENERGY:
        return f" ({row['energy_source']})"
    return " (modelled)" if metric is LATENCY and row.get("latency_source") == "modelled" else ""


def latency_note(frame: pd.DataFrame) -> str:
    """What goes behind "ms" where latencies in ``frame`` are not measured: ``, modelled``."""
    if "latency_source" not in frame.columns:
        return ""
    modelled = frame.loc[frame["latency_ms"].notna(), "latency_source"] == "modelled"
    if not modelled.any():
        return ""
    return ", modelled" if modelled.all() else ", partly modelled"


def energy_source(frame: pd.DataFrame) -> str:
    """Where the energies in ``frame`` come from, per precision if these differ."""
    by_precision = {
        str(name): [s for s in ENERGY_SOURCES if (rows["energy_source"] == s).any()]
        for name, rows in frame.groupby("precision", sort=False)
    }
    kinds = {" and ".join(found) for found in by_precision.values() if found}
    if not kinds:
        return "unavailable"
    if len(kinds) == 1:
        return kinds.pop()
    return listing([f"{name} {' and '.join(found)}" for name, found in by_precision.items()])

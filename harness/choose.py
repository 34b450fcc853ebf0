"""Choosing settings: the Pareto front, the recommendation and the paper's comparison.

Everything is chosen on the calibration split and reported on the test split.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from .sweep import SETTING_COLUMNS

BOUNDS = ("perfect-predictor", "oracle")
COST_WORDS = {"energy_mj": "energy", "latency_ms": "latency", "macs": "MACs"}


@dataclass(frozen=True)
class Role:
    """A part in the comparison: which rows may play it, and what it is called.

    Attributes:
        name: as it stands in tables.
        admits: rows of the sweep that may be chosen, as a boolean mask.
    """

    name: str
    admits: Callable[[pd.DataFrame], pd.Series]


ROLES = (
    Role("full", lambda rows: rows.policy == "full"),
    Role("fixed", lambda rows: rows.policy == "fixed"),
    Role(
        "every-exit",
        lambda rows: (rows.policy == "every-exit") & (rows.start_layer == 1),
    ),
    Role("every-exit-best", lambda rows: rows.policy == "every-exit"),
    Role(
        "predictive",
        lambda rows: (rows.policy == "predictive") & (rows.predictor == "convolution"),
    ),
    Role(
        "predictive-table",
        lambda rows: (rows.policy == "predictive") & (rows.predictor == "table"),
    ),
    Role(
        "perfect-predictor",
        lambda rows: (rows.policy == "predictive") & (rows.predictor == "perfect"),
    ),
    Role("oracle", lambda rows: rows.policy == "oracle"),
)


def is_bound(rows: pd.DataFrame) -> pd.Series:
    """Which rows know the truth and are bounds, not methods."""
    return (rows.policy == "oracle") | (rows.predictor == "perfect")


def cost_column(rows: pd.DataFrame) -> str:
    """What settings are ranked by: energy, latency or MACs, the first known for all of them.

    A cost that some settings lack would rank these last for no fault of theirs.
    """
    for column in ("energy_mj", "latency_ms"):
        if rows[column].notna().all():
            return column
    return "macs"


def ranking_words(rows: pd.DataFrame) -> str:
    """What settings are ranked by and why by no better cost, as a sentence for people."""
    chosen = cost_column(rows)
    words = f"settings are ranked by {COST_WORDS[chosen]}"
    for column in COST_WORDS:
        if column == chosen:
            break
        known = int(rows[column].notna().sum())
        lacking = "all of them" if known == 0 else f"{len(rows) - known} of {len(rows)} rows"
        words += f"; {COST_WORDS[column]} is unknown for {lacking}"
    return words


def on_front(accuracy: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """Which points no other point beats: none is at least as accurate and cheaper.

    Of points that are equal in both, the first is on the front.
    """
    order = np.lexsort((-accuracy, cost))
    front = np.zeros(len(order), dtype=bool)
    best = -np.inf
    for index in order:
        if accuracy[index] > best:
            front[index], best = True, accuracy[index]
    return front


def mark(rows: pd.DataFrame, accuracy_loss: float) -> pd.DataFrame:
    """The sweep with the columns ``pareto`` and ``chosen_as``.

    ``pareto``: on the front of accuracy against cost over all methods (no bounds) of the
    calibration split. ``chosen_as``: the roles that a setting plays in its precision, and
    ``recommended`` for the cheapest method of all precisions; joined by ``;``.

    Args:
        rows: the sweep, both splits.
        accuracy_loss: accuracy that may be lost against the full network, in points.
    """
    rows = rows.copy()
    keys = setting_keys(rows)
    cost = cost_column(rows)
    calibration = rows[rows.split == "calibration"]
    methods = calibration[~is_bound(calibration) & calibration[cost].notna()]
    front = methods[on_front(methods.accuracy.to_numpy(), methods[cost].to_numpy())]
    rows["pareto"] = keys.isin(keys[front.index]).astype(int)
    roles: dict[tuple[object, ...], list[str]] = {}
    for _, part in calibration.groupby("precision", sort=False):
        target = target_accuracy(part, accuracy_loss)
        for role in ROLES:
            if (index := cheapest(part[role.admits(part)], target, cost)) is not None:
                roles.setdefault(keys[index], []).append(role.name)
    target = target_accuracy(calibration, accuracy_loss)
    if (index := cheapest(methods, target, cost)) is not None:
        roles.setdefault(keys[index], []).append("recommended")
    rows["chosen_as"] = [";".join(roles.get(key, [])) for key in keys]
    return rows


def setting_keys(rows: pd.DataFrame) -> pd.Series:
    """What tells the setting of each row from others; equal for its rows of both splits."""
    cells = rows[list(SETTING_COLUMNS)].astype(object)
    columns = (cells[name].where(cells[name].notna(), None) for name in SETTING_COLUMNS)
    return pd.Series(list(zip(*columns, strict=True)), index=rows.index, dtype=object)


def target_accuracy(rows: pd.DataFrame, accuracy_loss: float) -> float:
    """The accuracy to keep: that of the full network (of the first precision) less the loss."""
    full = rows.loc[rows.policy == "full", "accuracy"]
    reference = full.iloc[0] if len(full) else rows.accuracy.max()
    return float(reference) - accuracy_loss / 100


def cheapest(rows: pd.DataFrame, target: float, cost: str) -> int | None:
    """Index of the cheapest row with at least the target accuracy; None if there is none.

    A row without that cost is never chosen. Of rows of equal cost the most accurate is taken. The
    tolerance only undoes the rounding of ``reference - loss``.
    """
    able = rows[(rows.accuracy >= target - 1e-12) & rows[cost].notna()]
    if able.empty:
        return None
    ranked = able.sort_values([cost, "accuracy"], ascending=[True, False], kind="stable")
    return int(ranked.index[0])


def comparison(rows: pd.DataFrame) -> pd.DataFrame:
    """The paper's comparison at equal accuracy: one row per role and precision, on the test split.

    ``calibration_accuracy`` is the accuracy by which the setting was chosen, ``ranked_by`` the
    column of the cost; ``X_vs_full`` its cost as a share of the full network of the same
    precision. A role for which no setting keeps
    the accuracy is missing.
    """
    names = [role.name for role in ROLES] + ["recommended"]
    ranked_by = cost_column(rows)
    test, calibration = (rows[rows.split == split] for split in ("test", "calibration"))
    chosen_by = dict(zip(setting_keys(calibration), calibration.accuracy, strict=True))
    found = []
    for precision in rows.precision.unique():
        part = test[test.precision == precision]
        full = part[part.policy == "full"]
        for name in names:
            players = part[_plays(part, name)]
            for key, (_, row) in zip(setting_keys(players), players.iterrows(), strict=True):
                entry = {"role": name, **row, "calibration_accuracy": chosen_by[key]}
                for quantity in ("macs", "latency", "energy"):
                    column = {"latency": "latency_ms", "energy": "energy_mj"}.get(quantity, "macs")
                    base = full[column].iloc[0] if len(full) else np.nan
                    entry[f"{quantity}_vs_full"] = row[column] / base
                found.append(entry | {"ranked_by": ranked_by})
    return pd.DataFrame(found)


def _plays(rows: pd.DataFrame, role: str) -> list[bool]:
    return [role in roles.split(";") for roles in rows.chosen_as]

"""Choosing: on the calibration split, among methods, at the accuracy that was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from exitbench.harness.choose import (
    cheapest,
    comparison,
    cost_column,
    is_bound,
    mark,
    on_front,
    setting_keys,
    target_accuracy,
)
from exitbench.harness.costs import CostTable
from exitbench.harness.sweep import Grid, Traces, sweep
from pipeline_fixtures import cost_rows, silent, sure, trace_of

FULL = {"policy": "full"}
CLASSIC = {"policy": "every-exit", "criterion": "softmax", "beta": 0.5, "start_layer": 1}
LATER = {**CLASSIC, "start_layer": 3}
CONVOLUTION = {**LATER, "policy": "predictive", "predictor": "convolution"}
TABLE = {**CONVOLUTION, "predictor": "table"}
PERFECT = {**CONVOLUTION, "predictor": "perfect"}
ORACLE = {"policy": "oracle"}
FIXED = {"policy": "fixed", "start_layer": 2}
Row = tuple[dict[str, Any], float, float]


def swept(calibration: list[Row], test: list[Row] | None = None) -> pd.DataFrame:
    """A sweep of settings with (accuracy, energy); the test split like calibration if not given."""
    rows = []
    for split, entries in (("calibration", calibration), ("test", test or calibration)):
        for setting, accuracy, energy in entries:
            row = dict.fromkeys(
                ("criterion", "beta", "start_layer", "predictor"), None
            ) | {"precision": "fp32", **setting}
            row |= {"split": split, "accuracy": accuracy, "energy_mj": energy}
            rows.append(row | {"macs": energy * 10, "latency_ms": energy / 2})
    return pd.DataFrame(rows)


def role_of(rows: pd.DataFrame, role: str) -> pd.Series:
    found = comparison(rows)
    found = found[found.role == role]
    assert len(found) == 1
    return found.iloc[0]


def test_the_front_by_hand() -> None:
    accuracy = np.array([0.90, 0.80, 0.85, 0.70, 0.90, 0.80])
    cost = np.array([10.0, 4.0, 6.0, 5.0, 12.0, 8.0])
    # 0.70 at 5 is beaten by 0.80 at 4, 0.90 at 12 by that at 10, 0.80 at 8 by that at 4.
    assert on_front(accuracy, cost).tolist() == [True, True, True, False, False, False]


def test_of_equal_points_the_first_is_on_the_front() -> None:
    accuracy, cost = np.array([0.8, 0.9, 0.9, 0.9]), np.array([1.0, 2.0, 2.0, 1.0])
    assert on_front(accuracy, cost).tolist() == [False, False, False, True]
    assert on_front(np.array([0.8, 0.8]), np.array([1.0, 1.0])).tolist() == [True, False]


def test_the_front_is_of_methods_and_of_the_calibration_split() -> None:
    rows = mark(
        swept(
            [(FULL, 0.9, 10), (LATER, 0.8, 5), (TABLE, 0.7, 6), (ORACLE, 0.99, 1)],
            [(FULL, 0.9, 10), (LATER, 0.2, 9), (TABLE, 0.95, 6), (ORACLE, 0.99, 1)],
        ),
        1.0,
    )
    for _, part in rows.groupby("split"):
        assert part.pareto.tolist() == [1, 1, 0, 0]


def test_settings_are_ranked_by_energy_else_latency_else_macs() -> None:
    rows = swept([(FULL, 0.9, 10), (LATER, 0.8, 5)])
    assert cost_column(rows) == "energy_mj"
    rows.loc[0, "energy_mj"] = np.nan
    assert cost_column(rows) == "latency_ms"
    rows.loc[1, "latency_ms"] = np.nan
    assert cost_column(rows) == "macs"


def test_the_cheapest_setting_within_the_accuracy_loss_is_recommended() -> None:
    rows = [(FULL, 0.9, 10), (CLASSIC, 0.895, 8), (LATER, 0.89, 5), (TABLE, 0.889, 1)]
    assert role_of(mark(swept(rows), 1.0), "recommended").start_layer == 3
    assert role_of(mark(swept(rows), 1.0), "recommended").policy == "every-exit"
    assert role_of(mark(swept(rows), 0.5), "recommended").start_layer == 1
    assert role_of(mark(swept(rows), 0.0), "recommended").policy == "full"
    assert role_of(mark(swept(rows), 2.0), "recommended").predictor == "table"


def test_the_target_is_the_full_network_less_points_not_percent() -> None:
    rows = swept([(FULL, 0.5, 10), (LATER, 0.6, 5)])
    assert target_accuracy(rows, 1.0) == pytest.approx(0.49)


def test_a_setting_exactly_at_the_target_is_good_enough() -> None:
    # 0.9 - 0.01 is 0.89 but for the last bit.
    rows = swept([(FULL, 0.9, 10), (LATER, 0.89, 5)])
    assert cheapest(rows[rows.split == "calibration"], target_accuracy(rows, 1.0), "macs") == 1


def test_of_equally_cheap_settings_the_most_accurate_is_chosen() -> None:
    rows = [(FULL, 0.9, 10), (CLASSIC, 0.9, 5), (LATER, 0.92, 5), (TABLE, 0.91, 5)]
    assert role_of(mark(swept(rows), 1.0), "recommended").accuracy == 0.92


def test_no_setting_is_cheapest_when_none_is_accurate_enough() -> None:
    rows = swept([(FULL, 0.9, 10)])
    assert cheapest(rows, 0.95, "macs") is None


def test_a_setting_of_unknown_cost_is_never_chosen() -> None:
    rows = swept([(FULL, 0.9, 10), (LATER, 0.9, np.nan)])
    assert cheapest(rows[rows.split == "calibration"], 0.8, "energy_mj") == 0
    assert cheapest(rows[rows.policy == "every-exit"], 0.8, "energy_mj") is None


def test_the_comparison_names_the_cost_that_ranked() -> None:
    rows = swept([(FULL, 0.9, 10), (LATER, 0.9, 5)])
    assert set(comparison(mark(rows, 1.0)).ranked_by) == {"energy_mj"}
    rows["energy_mj"] = np.nan
    assert set(comparison(mark(rows, 1.0)).ranked_by) == {"latency_ms"}


def test_bounds_are_never_recommended_however_cheap() -> None:
    rows = mark(swept([(FULL, 0.9, 10), (LATER, 0.9, 9), (PERFECT, 0.9, 2), (ORACLE, 1.0, 1)]), 1)
    assert role_of(rows, "recommended").policy == "every-exit"
    assert rows[is_bound(rows)].chosen_as.tolist() == ["perfect-predictor", "oracle"] * 2
    assert rows[is_bound(rows)].pareto.tolist() == [0] * 4


def test_the_comparison_has_a_role_per_method_and_bound() -> None:
    rows = [
        (FULL, 0.90, 10), (FIXED, 0.95, 9), (CLASSIC, 0.90, 8), (LATER, 0.90, 7),
        (CONVOLUTION, 0.90, 6), (TABLE, 0.90, 5), (PERFECT, 0.90, 4), (ORACLE, 1.0, 1),
    ]  # fmt: skip
    found = comparison(mark(swept(rows), 1.0)).set_index("role")
    assert found.energy_mj.to_dict() == {
        "full": 10, "fixed": 9, "every-exit": 8, "every-exit-best": 7, "predictive": 6,
        "predictive-table": 5, "perfect-predictor": 4, "oracle": 1, "recommended": 5,
    }  # fmt: skip
    assert found.energy_vs_full.to_dict()["predictive"] == 0.6
    assert (found.energy_vs_full == found.macs_vs_full).all()
    assert (found.energy_vs_full == found.latency_vs_full).all()
    assert (found.split == "test").all()


def test_a_role_that_cannot_keep_the_accuracy_is_missing() -> None:
    found = comparison(mark(swept([(FULL, 0.9, 10), (CLASSIC, 0.5, 1), (LATER, 0.9, 2)]), 1.0))
    assert found.role.tolist() == ["full", "every-exit-best", "recommended"]


def test_one_setting_may_play_several_roles() -> None:
    rows = mark(swept([(FULL, 0.9, 10), (CLASSIC, 0.9, 1)]), 1.0)
    assert rows.chosen_as.tolist() == ["full", "every-exit;every-exit-best;recommended"] * 2


def test_roles_are_per_precision_and_the_recommendation_is_one() -> None:
    low = {"precision": "int8"}
    rows = mark(
        swept(
            [
                (FULL, 0.90, 10), (LATER, 0.90, 8),
                (FULL | low, 0.80, 4), (LATER | low, 0.80, 1), (CLASSIC | low, 0.89, 3),
            ]
        ),
        1.0,
    )  # fmt: skip
    found = comparison(rows)
    best = found[found.role == "every-exit-best"].set_index("precision")
    # Each against the full network of its own precision ...
    assert best.energy_mj.to_dict() == {"fp32": 8, "int8": 1}
    assert best.energy_vs_full.to_dict() == {"fp32": 0.8, "int8": 0.25}
    # ... but recommended is what keeps the accuracy of the first.
    recommended = role_of(rows, "recommended")
    assert (recommended.precision, recommended.energy_mj) == ("int8", 3)


def test_both_rows_of_a_setting_have_one_key() -> None:
    rows = swept([(FULL, 0.9, 10), (CONVOLUTION, 0.9, 5), (ORACLE, 0.9, 1)])
    keys = setting_keys(rows)
    assert keys[:3].tolist() == keys[3:].tolist()
    assert keys.nunique() == 3


def test_chosen_on_calibration_reported_on_test() -> None:
    rows = mark(
        swept(
            [(FULL, 0.90, 10), (CLASSIC, 0.91, 4), (LATER, 0.85, 2)],
            [(FULL, 0.80, 10), (CLASSIC, 0.60, 5), (LATER, 0.99, 1)],
        ),
        1.0,
    )
    chosen = role_of(rows, "recommended")
    assert chosen.start_layer == 1
    assert (chosen.accuracy, chosen.calibration_accuracy) == (0.60, 0.91)
    assert (chosen.energy_mj, chosen.energy_vs_full) == (5, 0.5)


def test_two_traces_with_unlike_best_exits_and_calibration_decides(tmp_path: Path) -> None:
    """Exit 1 is always right on calibration and wrong on test; exit 2 the other way round."""
    right, wrong = sure(0.9, 0), sure(0.9, 1)
    traces = Traces(
        trace_of(tmp_path, "calibration", [[right, wrong, right]] * 4, [0] * 4),
        trace_of(tmp_path, "test", [[wrong, right, right]] * 4, [0] * 4),
    )
    prices = {"fp32": CostTable.from_rows(cost_rows([100, 200, 300], [10, 20])).select()}
    grid = Grid(("full", "fixed", "every-exit"), ("softmax",), (0.5,), 2, None, ())
    rows = mark(sweep(grid, {"fp32": traces}, prices, silent), 1.0)
    chosen = role_of(rows, "fixed")
    assert (chosen.start_layer, chosen.accuracy, chosen.calibration_accuracy) == (1, 0.0, 1.0)
    assert role_of(rows, "every-exit-best").start_layer == 1
    test = rows[rows.split == "test"]
    best_on_test = test[(test.policy == "fixed") & (test.start_layer == 2)].iloc[0]
    assert (best_on_test.accuracy, best_on_test.chosen_as) == (1.0, "")

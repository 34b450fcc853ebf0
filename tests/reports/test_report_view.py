"""What is compared, drawn and recommended is chosen on the calibration split alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from exitbench.reports.figures_exits import distinct
from exitbench.reports.findings import findings, headline, noticeable, verdict
from exitbench.reports.lines import front, line, lines, measured, others
from exitbench.reports.reading import read_run
from exitbench.reports.view import ENERGY, LATENCY, MACS, View, look


@pytest.fixture(scope="module")
def view(synthetic_run: Path) -> View:
    return look(read_run(synthetic_run))


def without_choices(run: Path) -> pd.DataFrame:
    """Remove every choice from the run directory, so that the report has to choose itself."""
    (run / "comparison.csv").unlink()
    sweep = pd.read_csv(run / "sweep.csv")
    sweep["chosen_as"] = ""
    sweep.to_csv(run / "sweep.csv", index=False)
    return sweep


def test_the_recommended_setting_is_the_one_of_the_comparison(view: View) -> None:
    rows = pd.read_csv(view.run.path / "comparison.csv")
    chosen = rows[rows.role == "recommended"].iloc[0]
    assert view.recommended is not None
    assert view.recommended["accuracy"] == chosen.accuracy
    assert view.recommended["energy_mj"] == chosen.energy_mj


def test_marks_in_the_sweep_stand_in_for_the_comparison(make_run: Callable[..., Path]) -> None:
    run = make_run()
    before = look(read_run(run)).recommended
    (run / "comparison.csv").unlink()
    after = look(read_run(run)).recommended
    assert before is not None
    assert after is not None
    assert after["key"] == before["key"]


def test_test_rows_have_no_say_in_the_choice(make_run: Callable[..., Path]) -> None:
    run = make_run()
    sweep = without_choices(run)
    before = look(read_run(run))
    test = sweep["split"] == "test"
    rng = np.random.default_rng(1)
    sweep.loc[test & (sweep["policy"] != "full"), "accuracy"] = rng.random(
        int((test & (sweep["policy"] != "full")).sum())
    )
    sweep.to_csv(run / "sweep.csv", index=False)
    after = look(read_run(run))
    assert before.recommended is not None
    assert after.recommended is not None
    assert after.recommended["key"] == before.recommended["key"]
    assert list(front(after, ENERGY)["key"]) == list(front(before, ENERGY)["key"])
    for precision in before.precisions:
        assert [o.family for o in lines(after, precision)] == [
            o.family for o in lines(before, precision)
        ]


def test_a_line_holds_everything_but_beta(view: View) -> None:
    for precision in view.precisions:
        for one in lines(view, precision):
            if one.role == "fixed":
                continue
            rows = one.rows
            assert (rows["split"] == "test").all()
            assert rows["beta"].is_monotonic_increasing
            assert rows["beta"].is_unique
            for column in ("criterion", "start_layer", "predictor", "precision"):
                assert rows[column].nunique(dropna=False) == 1


def test_a_line_is_of_the_family_that_was_chosen(view: View) -> None:
    chosen = view.role("predictive", "int8")
    drawn = line(view, "predictive", "int8")
    assert chosen is not None
    assert drawn is not None
    assert chosen["key"] in set(drawn.rows["key"])


def test_without_a_choice_a_family_comes_from_the_calibration_split(
    make_run: Callable[..., Path],
) -> None:
    run = make_run()
    sweep = without_choices(run)
    drawn = line(look(read_run(run)), "every-exit-best", "fp32")
    part = sweep[(sweep.split == "calibration") & (sweep.precision == "fp32")]
    full = part[part.policy == "full"].accuracy.iloc[0]
    able = part[(part.policy == "every-exit") & (part.accuracy >= full - 0.01 - 1e-9)]
    best = able.loc[able.energy_mj.idxmin()]
    assert drawn is not None
    assert drawn.family["start_layer"] == best.start_layer


def test_points_are_either_on_a_line_or_faint(view: View) -> None:
    drawn = lines(view, "int8")
    rest = others(view, "int8", drawn)
    on_lines = {key for one in drawn for key in one.rows["key"]}
    assert not on_lines & set(rest["key"])
    assert not rest["policy"].eq("oracle").any()


@pytest.mark.parametrize("metric", [ENERGY, LATENCY, MACS])
def test_nothing_on_the_calibration_split_beats_the_front(view: View, metric) -> None:
    rows = view.calibration
    rows = rows[(rows["policy"] != "oracle") & (rows["predictor"] != "perfect")]
    on = rows[rows["key"].isin(front(view, metric)["key"])]
    for point in on.itertuples():
        cost = getattr(point, metric.column)
        assert not ((rows[metric.column] < cost) & (rows["accuracy"] >= point.accuracy)).any()


def test_costs_of_another_batch_size_are_not_mixed_in(make_run: Callable[..., Path]) -> None:
    run = make_run()
    sweep = pd.read_csv(run / "sweep.csv")
    other = sweep.assign(batch_size=64, energy_mj=sweep.energy_mj / 10, chosen_as="")
    pd.concat([sweep, other]).to_csv(run / "sweep.csv", index=False)
    found = look(read_run(run))
    assert found.places == 2
    assert (found.test["batch_size"] == 1).all()


def test_a_loss_beyond_the_limit_on_test_is_told(make_run: Callable[..., Path]) -> None:
    run = make_run()
    rows = pd.read_csv(run / "comparison.csv")
    rows.loc[rows.role == "recommended", "accuracy"] -= 0.2
    rows.to_csv(run / "comparison.csv", index=False)
    found = look(read_run(run))
    assert "(more than the 1 point allowed)" in headline(found)
    assert "and not on the test split" in findings(found)[0]


@pytest.mark.parametrize(
    ("factor", "accuracy", "words"),
    [
        (0.8, 0.0, "Prediction pays here"),
        (0.8, -0.008, "Whether prediction pays is open here"),
        (1.0, 0.0, "Prediction makes next to no difference here"),
        (1.3, 0.0, "Prediction does not pay here"),
    ],
)
def test_the_verdict_follows_cost_and_accuracy(
    make_run: Callable[..., Path], factor: float, accuracy: float, words: str
) -> None:
    run = make_run()
    rows = pd.read_csv(run / "comparison.csv")
    for precision in rows.precision.unique():
        here = rows.precision == precision
        every = rows[here & (rows.role == "every-exit-best")].iloc[0]
        predictive = here & rows.role.isin(["predictive", "predictive-table"])
        rows.loc[predictive, "energy_mj"] = factor * every.energy_mj
        rows.loc[predictive, "accuracy"] = every.accuracy + accuracy
    rows.to_csv(run / "comparison.csv", index=False)
    assert verdict(look(read_run(run))).startswith(words)


def test_values_of_beta_near_one_stay_distinct_on_the_axis() -> None:
    assert distinct(np.array([0.5, 0.99912, 0.99987])) == ["0.5", "0.999", "0.9999"]
    assert distinct(np.array([0.5, 0.75])) == ["0.5", "0.75"]


def test_settings_are_not_told_apart_below_what_their_replays_are_off(
    make_run: Callable[..., Path],
) -> None:
    view = look(read_run(make_run()))
    runs = measured(view, "fp32")
    assert len(runs) > 2
    for number, run in enumerate(runs):
        run[f"replay_{view.metric.column}"] = 1.0
        run[view.metric.column] = 1.1 if number else 1.32
    # All are 10% off alike, one is 20% further off than the median run.
    assert noticeable(view, "fp32") == pytest.approx(0.2)

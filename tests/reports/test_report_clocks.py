"""Governed clocks and schedules are told as their files have them, and never better than known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from exitbench.harness.errors import ExitbenchError
from exitbench.reports.figures_governed import accuracy_energy_clocks, claims, governed_energy
from exitbench.reports.figures_scenarios import scenarios as draw_scenarios
from exitbench.reports.findings_energy import energy_findings, other_hardware
from exitbench.reports.governed import (
    POLICIES,
    cheapest,
    groups,
    least_difference,
    model_error,
    one,
    settings,
)
from exitbench.reports.picture import Absent, Picture
from exitbench.reports.reading import Governed, read_run
from exitbench.reports.style import styled
from exitbench.reports.tables_energy import governed_tables, scenarios_table
from exitbench.reports.view import PREDICTIVE, View, look

MakeRun = Callable[..., Path]


def view_of(run: Path) -> View:
    return look(read_run(run))


def edit_table(run: Path, name: str, change: Callable[[pd.DataFrame], None]) -> View:
    """The view of a run of which one table was changed in place."""
    frame = pd.read_csv(run / name)
    change(frame)
    frame.to_csv(run / name, index=False)
    return view_of(run)


def edit_govern(run: Path, hardware: str, **changes: Any) -> View:
    path = run / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["govern"][hardware].update(changes)
    path.write_text(json.dumps(manifest))
    return view_of(run)


def int8(governed: Governed) -> list[dict[str, Any]]:
    return settings(governed, "int8")


@pytest.fixture
def view(synthetic_run: Path) -> View:
    return view_of(synthetic_run)


def test_this_machine_comes_first_whatever_its_name(make_run: MakeRun) -> None:
    run = make_run()
    assert [g.hardware for g in view_of(run).run.governed] == ["generic-x86", "jetson-tx2"]
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["hardware"]["profile"] = "jetson-tx2"
    (run / "manifest.json").write_text(json.dumps(manifest))
    assert [g.hardware for g in view_of(run).run.governed] == ["jetson-tx2", "generic-x86"]


def test_bars_hold_every_policy_at_the_top_clock_and_prediction_with_each_governor(
    view: View,
) -> None:
    found = dict(groups(view.run.governed[0], "int8"))
    top = [row["role"] for row in found["at the top clock"]]
    assert top == ["full", "every-exit", "every-exit-best", "predictive", "predictive-table"]
    governed = [row["governor"] for row in found["predictive exit, convolution, governed"]]
    assert governed == ["fixed", "race-to-idle", "proportional", "deadline", "deadline-safe"]
    rivals = {(row["role"], row["governor"]) for row in found["rivals, governed"]}
    assert ("every-exit-best", "deadline") in rivals
    assert ("full", "fixed") in rivals


def test_bars_are_the_energies_of_the_file_busy_then_idle(view: View) -> None:
    governed = view.run.governed[0]
    with styled():
        picture = governed_energy(view, governed)
    assert isinstance(picture, Picture)
    axis = picture.figure.axes[0]
    drawn = [(bar.get_x(), bar.get_width()) for bar in axis.patches]
    rows = [row for _, found in groups(governed, "fp32") for row in found]
    solid = [width for x, width in drawn if x == 0]
    assert solid == pytest.approx([min(r["busy_energy_mj"], r["energy_mj"]) for r in rows])
    ends = {round(x + width, 9) for x, width in drawn}
    assert {round(row["energy_mj"], 9) for row in rows} <= ends
    assert "modelled" in picture.caption
    assert "off by 3% on average and 9% at worst" in picture.caption


def test_claims_are_shares_of_the_baselines_of_this_very_file(view: View) -> None:
    governed = view.run.governed[0]
    rows = int8(governed)
    full, every = one(rows, "full", ""), one(rows, "every-exit", "")
    assert full is not None
    assert every is not None
    assert {column: energy for column, _, energy in claims(governed, "int8")} == pytest.approx(
        {
            "claim_vs_full": 0.271 * full["energy_mj"],
            "claim_vs_every_exit": 0.624 * every["energy_mj"],
        }
    )


def test_energy_that_is_not_known_is_not_drawn(make_run: MakeRun) -> None:
    def forget(frame: pd.DataFrame) -> None:
        frame["energy_mj"] = None
        frame["busy_energy_mj"] = None
        frame["energy_source"] = "unavailable"

    view = edit_table(make_run(), "governed-generic-x86.csv", forget)
    for draw in (governed_energy, accuracy_energy_clocks):
        picture = draw(view, view.run.governed[0])
        assert isinstance(picture, Absent)
        assert "no energy" in picture.reason
    assert "cannot be said" in energy_findings(view)[0]


def test_a_governor_that_is_late_more_often_is_not_of_equal_latency(make_run: MakeRun) -> None:
    def late(frame: pd.DataFrame) -> None:
        frame.loc[frame.governor == "deadline-safe", "missed"] = 0.2
        frame.loc[frame.governor == "deadline-safe", "energy_mj"] = 0.01

    rows = int8(edit_table(make_run(), "governed-generic-x86.csv", late).run.governed[0])
    best = cheapest(rows, PREDICTIVE, governed=True)
    assert best is not None
    assert best["governor"] != "deadline-safe"


def governed_at(make_run: MakeRun, share: float, **facts: Any) -> View:
    """A run in which all of predictive exit with a governor needs ``share`` of its top clock and
    of the cheapest rival, at the same accuracy."""
    run = make_run()

    def scale(frame: pd.DataFrame) -> None:
        frame["accuracy"], frame["missed"] = 0.9, 0.0
        frame["energy_mj"] = frame["busy_energy_mj"] = 10.0
        governed = frame.governor.notna() & frame.role.str.startswith("predictive")
        frame.loc[governed, "energy_mj"] = 10.0 * share

    edit_table(run, "governed-generic-x86.csv", scale)
    return edit_govern(run, "generic-x86", **facts)


@pytest.mark.parametrize(
    ("share", "pays", "beats"),
    [
        (0.80, "Governing the clocks pays", "needs less energy than the cheapest rival"),
        (0.93, "makes no difference that is known", "not told apart from the cheapest rival"),
        (1.20, "does not pay", "The cheapest rival of equal latency needs less energy"),
    ],
)
def test_a_difference_within_the_models_error_is_no_difference(
    make_run: MakeRun, share: float, pays: str, beats: str
) -> None:
    found = energy_findings(governed_at(make_run, share))
    assert pays in found[0]
    assert beats in found[1]
    assert "energy (modelled) against predictive exit" in found[0]
    same_policy = found[0].partition("Clocks that follow")[0]
    assert ("the model's own error of ±9%" in same_policy) == (share == 0.93)


def test_a_fixed_lower_clock_is_not_credited_to_the_forecasts(make_run: MakeRun) -> None:
    run = make_run()

    def fix(frame: pd.DataFrame) -> None:
        own = frame.role.str.startswith("predictive") & frame.governor.notna()
        frame.loc[own, "energy_mj"] = 10.0
        frame.loc[own & (frame.governor == "fixed"), "energy_mj"] = 5.0

    found = energy_findings(edit_table(run, "governed-generic-x86.csv", fix))
    assert "the cheapest is predictive exit, convolution, one lower clock (800 MHz)" in found[0]
    assert "do worse than one lower clock throughout" in found[0]


def test_the_error_as_a_number_goes_before_its_words(make_run: MakeRun) -> None:
    found = energy_findings(governed_at(make_run, 0.93, model_error_share=0.04))
    assert "Governing the clocks pays" in found[0]


def test_without_a_stated_error_nothing_modelled_is_called_a_difference(make_run: MakeRun) -> None:
    view = governed_at(make_run, 0.5, model_error="")
    assert model_error(view.run.governed[0]) is None
    assert "cannot be said" in energy_findings(view)[0]
    assert "is open" in energy_findings(view)[1]


def test_measured_energies_are_told_apart_without_a_model(make_run: MakeRun) -> None:
    run = make_run()

    def measure(frame: pd.DataFrame) -> None:
        frame["energy_source"] = frame["latency_source"] = "measured"

    governed = edit_table(run, "governed-generic-x86.csv", measure).run.governed[0]
    assert least_difference(governed, *int8(governed)[:2]) == 0.02


def test_unequal_accuracy_leaves_the_rivalry_open(make_run: MakeRun) -> None:
    run = make_run()

    def spoil(frame: pd.DataFrame) -> None:
        frame["accuracy"] = 0.9
        frame.loc[frame.role.isin(POLICIES), "accuracy"] = 0.92

    found = energy_findings(edit_table(run, "governed-generic-x86.csv", spoil))
    assert found[1].startswith(
        "Whether that setting beats the cheapest rival of equal latency is open"
    )


def test_claims_stand_beside_what_came_out_here_with_its_source(view: View) -> None:
    claimed = [words for words in energy_findings(view) if "paper's claims" in words]
    assert len(claimed) == 1
    assert "generic-x86, modelled" in claimed[0]
    assert "claimed: 72.9% less" in claimed[0]
    assert "claimed: 37.6% less" in claimed[0]
    assert any("jetson-tx2, modelled" in words for words in other_hardware(view))


def test_governed_tables_hold_every_row_of_their_file(view: View) -> None:
    for table, governed in zip(governed_tables(view), view.run.governed, strict=True):
        assert table.name == f"governed-{governed.hardware}"
        assert len(table.cells) == len(governed.rows)
        assert table.raw is governed.rows
        assert "27.1% of the full network" in table.note


def test_a_governed_file_without_its_governors_is_refused(make_run: MakeRun) -> None:
    run = make_run()
    pd.read_csv(run / "governed-jetson-tx2.csv").drop(columns="governor").to_csv(
        run / "governed-jetson-tx2.csv", index=False
    )
    with pytest.raises(ExitbenchError, match=r"governed-jetson-tx2\.csv: missing column governor"):
        read_run(run)


@pytest.mark.parametrize(
    ("column", "value", "right"),
    [
        ("missed", 1.5, "a share between 0 and 1"),
        ("energy_mj", -1.0, "0 or more"),
        ("latency_source", "guessed", "one of measured, modelled, unavailable"),
        ("energy_source", "", "measured or modelled beside a value in energy_mj"),
    ],
)
def test_a_wrong_cell_of_a_governed_file_is_named(
    make_run: MakeRun, column: str, value: Any, right: str
) -> None:
    run = make_run()
    frame = pd.read_csv(run / "governed-generic-x86.csv").astype({column: object})
    frame.loc[2, column] = value
    frame.to_csv(run / "governed-generic-x86.csv", index=False)
    with pytest.raises(ExitbenchError, match=f"line 4, column {column}") as error:
        read_run(run)
    assert right in str(error.value)


def test_a_long_period_is_told_as_idle_and_little_saved(view: View) -> None:
    found = " ".join(energy_findings(view))
    # 5 W idle for 100 ms are 500 mJ, beside 0.2 ms of work at 15 W.
    assert "With a request every 100 ms (int8) idle dominates: 99%" in found
    assert "makes no difference that counts" in found


def test_who_cannot_keep_up_is_said_and_marked(make_run: MakeRun) -> None:
    view = view_of(make_run(periods_ms=(0.2,)))
    assert any(
        words.startswith("With a request every 0.2 ms (int8) the full network cannot keep up")
        for words in energy_findings(view)
    )
    with styled():
        picture = draw_scenarios(view)
    assert isinstance(picture, Picture)
    words = [text.get_text() for text in picture.figure.axes[1].texts]
    late = view.run.scenarios
    assert late is not None
    shown = late[(late.period_ms == 0.2) & ~late.role.isin(("oracle", "perfect-predictor"))]
    shown = shown[shown.role != "recommended"]
    assert words.count("cannot keep up") == int((shown.keeps_up == 0).sum()) > 0


def test_bars_of_a_schedule_end_at_the_energy_of_an_hour(view: View) -> None:
    with styled():
        picture = draw_scenarios(view)
    assert isinstance(picture, Picture)
    rows = view.run.scenarios
    assert rows is not None
    ends = {
        round(bar.get_x() + bar.get_width(), 6)
        for axis in picture.figure.axes
        for bar in axis.patches
    }
    shown = rows[~rows.role.isin(("oracle", "perfect-predictor"))]
    assert {round(1e-3 * energy, 6) for energy in shown.energy_per_hour_j} <= ends
    assert "energy modelled" in picture.caption
    assert {axis.get_xlabel() for axis in picture.figure.axes} == {"energy per hour (kJ, modelled)"}


def test_a_schedule_without_power_is_absent(make_run: MakeRun) -> None:
    def forget(frame: pd.DataFrame) -> None:
        for column in ("energy_per_request_mj", "energy_per_hour_j", "power_w"):
            frame[column] = None
        frame["energy_source"] = "unavailable"

    view = edit_table(make_run(), "scenarios.csv", forget)
    picture = draw_scenarios(view)
    assert isinstance(picture, Absent)
    assert "no energy" in picture.reason
    table = scenarios_table(view)
    assert table is not None
    assert "per hour (J)" not in table.head

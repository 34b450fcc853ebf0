"""What the page says about how sure its choice is, and about numbers that it does not have."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from exitbench.reports.choice import chosen_from
from exitbench.reports.figures_cost import latency_cost, values
from exitbench.reports.figures_tradeoff import run_accuracy
from exitbench.reports.findings import findings, limits
from exitbench.reports.lines import measured
from exitbench.reports.origin import energy_limits
from exitbench.reports.picture import Picture
from exitbench.reports.reading import read_run
from exitbench.reports.tables import measured_table
from exitbench.reports.view import LATENCY, View, look


@pytest.fixture
def run(synthetic_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(synthetic_run, tmp_path / "run"))


@pytest.fixture
def view(synthetic_run: Path) -> View:
    return look(read_run(synthetic_run))


def with_role(view: View, name: str, **changes: Any) -> View:
    """The view with other values in every setting of a role."""
    rows = [{**row, **changes} for row in view.roles[name]]
    return replace(view, roles={**view.roles, name: rows})


def sentence(view: View, start: str) -> str:
    found = [words for words in findings(view) if words.startswith(start)]
    assert len(found) == 1
    return found[0]


def test_the_choice_tells_its_images_its_error_and_its_candidates(view: View) -> None:
    assert view.recommended is not None
    own = view.calibration[view.calibration.key == view.recommended["key"]].iloc[0]
    half = 196 * np.sqrt(own.accuracy * (1 - own.accuracy) / 250)
    # 2 precisions x (full, 5 fixed, 2 criteria x 6 betas x 3 starts x 3 methods without bounds).
    words = chosen_from(view)
    assert words is not None
    assert "cheapest of 228 settings on 250 calibration images" in words
    assert f"known to ±{half:.1f} points (95%, binomial)" in words
    assert "the allowed 1 point is 2 images there" in words
    assert any(limit.startswith(words) for limit in limits(view))


def test_costs_never_stand_alone_where_accuracies_differ(view: View) -> None:
    every = view.role("every-exit-best", "int8")
    assert every is not None
    start = "Predictive exit against every-exit"
    for role in ("predictive", "predictive-table"):
        view = with_role(view, role, accuracy=every["accuracy"])
    assert "at the same accuracy; it checks" in sentence(view, start)
    for role in ("predictive", "predictive-table"):
        view = with_role(view, role, accuracy=every["accuracy"] - 0.006)
    assert "at 0.6 points less accuracy; these are not costs at equal" in sentence(view, start)


@pytest.mark.parametrize(
    ("factor", "accuracy", "words"),
    [
        (1.0, 0.0, "at the same accuracy: better forecasts have nothing to gain here"),
        (0.8, 0.0, "at the same accuracy: more than that no predictor can gain here"),
        (1.0, 0.006, "at 0.6 points more accuracy: what better forecasts could gain is open"),
        (None, 0.0, "What better forecasts could gain cannot be said"),
    ],
)
def test_the_bound_judges_only_at_equal_accuracy_and_known_cost(
    view: View, factor: float | None, accuracy: float, words: str
) -> None:
    best = view.best_predictive("int8")
    assert best is not None
    energy = None if factor is None else factor * best["energy_mj"]
    bound = {"energy_mj": energy, "accuracy": best["accuracy"] + accuracy}
    found = " ".join(findings(with_role(view, "perfect-predictor", **bound)))
    assert words in found
    assert "unknown change" not in found


def test_an_energy_that_was_not_asked_for_is_not_blamed_on_the_machine(
    make_run: Callable[..., Path],
) -> None:
    run = make_run(energy_source="unavailable")
    assert "no meter could be read on this machine" in energy_limits(look(read_run(run)))[0]
    manifest = json.loads((run / "manifest.json").read_text())
    for part in manifest["profile"].values():
        part["how"]["energy"] = None
    (run / "manifest.json").write_text(json.dumps(manifest))
    assert "it was not asked for" in energy_limits(look(read_run(run)))[0]
    del manifest["profile"]
    (run / "manifest.json").write_text(json.dumps(manifest))
    assert "the cost table holds none" in energy_limits(look(read_run(run)))[0]


def add_measurement(run: Path, **changes: Any) -> None:
    """The first measured run once more, with other values."""
    path = run / "measurements.jsonl"
    first = json.loads(path.read_text().splitlines()[0])
    with path.open("a") as handle:
        handle.write(json.dumps({**first, **changes}) + "\n")


@pytest.mark.parametrize(
    "other", [{"batch_size": 64}, {"device": "cuda:0"}, {"operating_point": "600 MHz"}]
)
def test_runs_of_another_place_are_left_out_and_counted(run: Path, other: dict[str, Any]) -> None:
    before = measured(look(read_run(run)))
    add_measurement(run, latency_ms=1e6, **other)
    view = look(read_run(run))
    assert measured(view) == before
    assert any(words.startswith("1 measured run at another batch size") for words in limits(view))


def test_the_last_run_of_a_setting_counts(run: Path) -> None:
    before = read_run(run).measurements
    add_measurement(run, samples=100, latency_ms=77.0)
    after = read_run(run).measurements
    assert len(after) == len(before)
    assert after[-1]["latency_ms"] == 77.0
    table = measured_table(look(read_run(run)))
    assert table is not None
    assert table.head[1:3] == ["batch size", "samples"]
    assert table.cells[-1][1:3] == ["1", "100"]


def test_a_run_over_a_part_is_drawn_at_the_accuracy_of_the_whole(run: Path) -> None:
    add_measurement(run, samples=100, accuracy=0.5)
    view = look(read_run(run))
    last = measured(view)[-1]
    full = view.test[(view.test.policy == "full") & (view.test.precision == last["precision"])]
    assert run_accuracy(view, last) == full.accuracy.iloc[0]
    assert any("over 100 of the 250 test samples" in words for words in limits(view))
    assert run_accuracy(view, {**last, "policy": "every-exit", "beta": 0.123}) == 0.5


def test_an_unknown_cost_is_a_gap_and_said(run: Path) -> None:
    cost = pd.read_csv(run / "cost.csv")
    gap = (cost.kind == "head") & (cost["index"] == 3) & (cost.precision == "fp32")
    cost.loc[gap, "latency_ms"] = np.nan
    cost.to_csv(run / "cost.csv", index=False)
    view = look(read_run(run))
    rows = view.run.cost
    assert rows is not None
    found = values(rows[rows.precision == "fp32"], "head", LATENCY, 6)
    assert np.isnan(found).tolist() == [False, False, True, False, False, True]
    picture = latency_cost(view)
    assert isinstance(picture, Picture)
    assert "Not known and left empty: head 3 in fp32." in picture.caption
    # The sum of the heads is known in int8 alone.
    assert "% in int8 of what" in picture.caption
    assert "% in fp32" not in picture.caption

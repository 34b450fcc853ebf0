"""What settings are ranked by is decided once, written down, and the same on the page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from exitbench.harness.configs import SweepConfig, TraceConfig
from exitbench.harness.sweeping import run_sweep
from exitbench.harness.tracing import run_trace
from exitbench.reports.findings import limits, verdict
from exitbench.reports.origin import place_words
from exitbench.reports.page import page
from exitbench.reports.reading import read_run
from exitbench.reports.view import View, look
from pipeline_fixtures import Said, cost_rows, silent, write_cost


def swept(folder: Path, rows: list[dict[str, Any]], said: Said) -> Path:
    """A run directory swept from logits of three exits and a cost table by hand."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 60)
    logits = generator.normal(size=(60, 4, 3)).astype(np.float32)
    logits[np.arange(60), :, labels] += np.linspace(1.5, 5, 4, dtype=np.float32)
    np.savez(folder / "logits.npz", logits=logits, labels=labels)
    cost = write_cost(folder / "cost.csv", rows)
    run_trace(TraceConfig(folder / "run", logits=folder / "logits.npz", cost=cost), silent)
    config = SweepConfig(folder / "run", criteria=("softmax",), beta_count=6, accuracy_loss=5.0)
    run_sweep(config, said)
    return folder / "run"


def by_hand(**more: Any) -> list[dict[str, Any]]:
    return cost_rows([100, 200, 300, 400], [10, 20, 30], **more)


@pytest.fixture
def without_forecasts(tmp_path: Path) -> tuple[Path, Said]:
    """Latency of every part but the forecasts, which have no rows."""
    said = Said()
    rows = by_hand(latency_ms=lambda kind, index: 1.0, device=lambda kind, index: "board-7")
    return swept(tmp_path, [row for row in rows if row["kind"] != "forecast"], said), said


def shown(run: Path) -> View:
    return look(read_run(run))


def test_a_cost_that_some_settings_lack_ranks_none_on_either_side(
    without_forecasts: tuple[Path, Said],
) -> None:
    run, said = without_forecasts
    assert json.loads((run / "manifest.json").read_text())["ranked_by"] == "macs"
    assert set(pd.read_csv(run / "comparison.csv").ranked_by) == {"macs"}
    assert "settings are ranked by MACs; energy is unknown for all of them" in "".join(said.lines)
    assert "latency is unknown for" in "".join(said.lines)
    view = shown(run)
    assert view.metric.column == "macs"
    words = " ".join(limits(view))
    assert "settings are ranked by MACs" in words
    assert "ranked by MACs although latency is known for" in words
    assert "unknown change" not in words + verdict(view)


def test_the_report_ranks_as_the_sweep_wrote_down(without_forecasts: tuple[Path, Said]) -> None:
    run, _ = without_forecasts
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps({**manifest, "ranked_by": "latency_ms"}))
    assert shown(run).metric.column == "latency_ms"


def test_latency_of_all_parts_ranks_by_latency(tmp_path: Path) -> None:
    said = Said()
    run = swept(tmp_path, by_hand(latency_ms=lambda kind, index: 1.0), said)
    assert set(pd.read_csv(run / "comparison.csv").ranked_by) == {"latency_ms"}
    assert shown(run).metric.column == "latency_ms"
    assert said.starting("sweep: ")[0].endswith(
        "settings are ranked by latency; energy is unknown for all of them"
    )


def test_of_two_predictors_the_one_with_a_known_cost_is_the_best(
    without_forecasts: tuple[Path, Said],
) -> None:
    run, _ = without_forecasts
    view = shown(run)
    view = replace(view, metric=view.metrics[0], calibration=view.calibration.copy())
    assert view.metric.column == "latency_ms"
    convolution = view.calibration["key"] == view.roles["predictive"][0]["key"]
    view.calibration.loc[convolution, "latency_ms"] = np.nan
    best = view.best_predictive("fp32")
    assert best is not None
    assert best["predictor"] == "table"


def test_the_device_is_that_of_the_cost_rows(without_forecasts: tuple[Path, Said]) -> None:
    run, _ = without_forecasts
    assert set(pd.read_csv(run / "sweep.csv").device) == {"board-7"}
    view = shown(run)
    assert "device board-7" in place_words(view)
    html = page_of(view)
    assert "costs from a given table, of device board-7" in html
    assert "no meter could be read" not in html
    assert "the cost table holds none" in html
    assert "Environment of exitbench, not of the costs" in html


def test_a_table_without_a_device_is_credited_to_none(tmp_path: Path) -> None:
    run = swept(tmp_path, by_hand(), Said())
    assert pd.read_csv(run / "sweep.csv").device.isna().all()
    assert "a device that the cost table does not name" in place_words(shown(run))
    assert "device cpu" not in page_of(shown(run))


def page_of(view: View) -> str:
    from exitbench.reports.figures import figures_of
    from exitbench.reports.picture import Absent
    from exitbench.reports.tables import all_tables

    none = {name: (Absent(name, "not drawn"), "") for name in figures_of(view)}
    return page(view, none, all_tables(view))

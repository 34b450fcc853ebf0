"""The sweep: betas that span the useful range, replays priced by hand, savings by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from exitbench.harness.costs import CostTable, Prices
from exitbench.harness.criteria import CRITERIA
from exitbench.harness.replay import Replayed
from exitbench.harness.settings import Setting
from exitbench.harness.sweep import (
    Grid,
    Traces,
    auto_betas,
    median_beta,
    parse_betas,
    saved_every_exit,
    sweep,
    table,
)
from pipeline_fixtures import cost_rows, refused, silent, sure, trace_of

EVERYTHING = Grid(
    ("full", "every-exit", "predictive", "fixed", "oracle"), ("softmax",), (0.8,), 25, None,
    ("convolution", "table", "constant", "perfect"),
)  # fmt: skip


def four_samples(folder: Path) -> Traces:
    """Three exits; under softmax and beta 0.8 sample i may leave from exit i + 1 on.

    The last sample may leave nowhere, and all exits but the classifier are wrong about it.
    """
    shares = [[0.9, 0.9, 0.9], [0.6, 0.9, 0.9], [0.6, 0.6, 0.9], [0.6, 0.6, 0.6]]
    logits = [
        [*(sure(share, int(number == 3)) for share in row), sure(0.7)]
        for number, row in enumerate(shares)
    ]
    traces = (trace_of(folder, split, logits, [0] * 4) for split in ("calibration", "test"))
    return Traces(*traces)


LATENCY = {"segment": [1.0, 2.0, 3.0, 4.0], "head": [0.5] * 3, "forecast": [0.1] * 3}


@pytest.fixture
def prices() -> Prices:
    rows = cost_rows(
        [100, 200, 300, 400],
        [10, 20, 30],
        latency_ms=lambda kind, index: LATENCY.get(kind, [0.25] * 4)[index - 1],
        energy_mj=lambda kind, index: 2.0,
        energy_source=lambda kind, index: "modelled",
    )
    return CostTable.from_rows(rows).select()


@pytest.fixture
def rows(tmp_path: Path, prices: Prices) -> pd.DataFrame:
    """The sweep of the four samples, on the test split."""
    found = sweep(EVERYTHING, {"fp32": four_samples(tmp_path)}, {"fp32": prices}, silent)
    return found[found.split == "test"]


def pick(rows: pd.DataFrame, **values: object) -> pd.Series:
    """The one row with these values."""
    for name, value in values.items():
        rows = rows[rows[name] == value]
    assert len(rows) == 1
    return rows.iloc[0]


def test_the_full_network_pays_every_segment_and_the_classifier(rows: pd.DataFrame) -> None:
    full = pick(rows, policy="full")
    assert full.macs == 100 + 200 + 300 + 400 + 5
    assert full.latency_ms == 1 + 2 + 3 + 4 + 0.25
    assert full.energy_mj == 5 * 2.0
    assert (full.accuracy, full.mean_exit, full.checks) == (1.0, 4.0, 0.0)
    assert full.exit_histogram == "0 0 0 4"
    assert full.macs_saved_full == 0


def test_every_exit_priced_by_hand(rows: pd.DataFrame) -> None:
    row = pick(rows, policy="every-exit", start_layer=1)
    assert row.exit_histogram == "1 1 1 1"
    # Four samples run segment 1, three segment 2, ...; 4, 3 and 2 are checked; one ends.
    macs = 4 * 100 + 3 * 200 + 2 * 300 + 1 * 400 + 4 * 10 + 3 * 20 + 2 * 30 + 5
    assert row.macs == macs / 4
    assert row.latency_ms == (4 * 1 + 3 * 2 + 2 * 3 + 1 * 4 + 9 * 0.5 + 0.25) / 4
    assert row.energy_mj == (10 + 9 + 1) * 2.0 / 4
    assert (row.mean_exit, row.checks, row.accuracy) == (2.5, 9 / 4, 1.0)
    assert row.macs_saved_full == 1 - macs / 4 / 1005
    assert row.energy_source == "modelled"


def test_a_later_start_layer_skips_the_heads_before_it(rows: pd.DataFrame) -> None:
    row = pick(rows, policy="every-exit", start_layer=2)
    assert row.exit_histogram == "0 2 1 1"
    macs = 4 * 100 + 4 * 200 + 2 * 300 + 1 * 400 + 4 * 20 + 2 * 30 + 5
    assert row.macs == macs / 4


def test_predictive_exit_priced_by_hand(rows: pd.DataFrame) -> None:
    row = pick(rows, policy="predictive", predictor="convolution", start_layer=1)
    # Two classes convolve to equal logits, which no round is sure of: the jump is R = 2.
    # Samples 1, 2, 3 jump from exit 1 to 3; there sample 3 asks again and goes to the end.
    assert row.exit_histogram == "1 0 2 1"
    heads, forecasts = 4 * 10 + 3 * 30, (3 + 1) * 7
    macs = 4 * 100 + 3 * 200 + 3 * 300 + 1 * 400 + heads + forecasts + 5
    assert row.macs == macs / 4
    assert row.latency_ms == pytest.approx(
        (4 * 1 + 3 * 2 + 3 * 3 + 1 * 4 + 7 * 0.5 + 4 * 0.1 + 0.25) / 4, rel=1e-12
    )
    # At exit 1 three forecasts of exit 3, right for sample 2 alone; at exit 3 the right one.
    assert row.prediction_accuracy == 2 / 4
    assert row.checks == 7 / 4


def test_only_the_convolution_predictor_pays_for_forecasts(rows: pd.DataFrame) -> None:
    constant = pick(rows, policy="predictive", predictor="constant", start_layer=1)
    classic = pick(rows, policy="every-exit", start_layer=1)
    assert constant.macs == classic.macs
    assert constant.exit_histogram == classic.exit_histogram
    perfect = pick(rows, policy="predictive", predictor="perfect", start_layer=1)
    assert perfect.exit_histogram == classic.exit_histogram
    # Exit 1 for all, then each at the exit where it leaves.
    heads = 4 * 10 + 20 + 30
    assert perfect.macs == (4 * 100 + 3 * 200 + 2 * 300 + 400 + heads + 5) / 4
    assert perfect.prediction_accuracy == 1.0


def test_the_oracle_leaves_at_the_earliest_right_exit(rows: pd.DataFrame) -> None:
    row = pick(rows, policy="oracle")
    assert row.exit_histogram == "3 0 0 1"
    assert row.macs == (3 * (100 + 10) + 1005) / 4
    assert row.accuracy == 1.0


def test_a_fixed_exit_is_a_shorter_network(rows: pd.DataFrame) -> None:
    row = pick(rows, policy="fixed", start_layer=2)
    assert row.macs == 100 + 200 + 20
    assert row.accuracy == 3 / 4
    assert row.exit_histogram == "0 4 0 0"


def test_what_has_no_price_leaves_the_cost_empty_where_it_is_paid(tmp_path: Path) -> None:
    known = cost_rows(
        [100, 200, 300, 400], [10, 20, 30],
        latency_ms=lambda kind, index: "" if kind == "forecast" else 1.0,
    )  # fmt: skip
    prices = CostTable.from_rows(known).select()
    found = sweep(EVERYTHING, {"fp32": four_samples(tmp_path)}, {"fp32": prices}, silent)
    asks = found[found.predictor == "convolution"]
    assert asks[asks.start_layer == 1].latency_ms.isna().all()
    assert found[found.policy == "every-exit"].latency_ms.notna().all()
    assert found.macs.notna().all()
    assert found.energy_mj.isna().all()
    assert (found.energy_source == "unavailable").all()


def test_every_setting_is_replayed_on_both_splits(tmp_path: Path, prices: Prices) -> None:
    grid = replace(EVERYTHING, criteria=("softmax", "margin"), betas=(0.5, 0.9))
    found = sweep(grid, {"fp32": four_samples(tmp_path)}, {"fp32": prices}, silent)
    # full, oracle, 3 fixed; 2 criteria x 2 betas x 3 starts x (every-exit and 4 predictors).
    assert found.groupby("split").size().to_dict() == dict.fromkeys(
        ("calibration", "test"), 5 + 2 * 2 * 3 * 5
    )
    unread = found[found.policy.isin(["full", "oracle", "fixed"])]
    assert unread[["criterion", "beta", "predictor"]].isna().all(axis=None)


CLASSIC, OTHER = Setting("every-exit", "softmax", 0.5, 1), Setting("predictive", "softmax", 0.5, 1)


def savings_case(split: str, cases: list[tuple[Setting, float, int]]) -> pd.DataFrame:
    """Settings of 10 samples over one exit, each with its accuracy and how many leave there."""
    rows = [
        Replayed(setting, accuracy, np.array([left, 10 - left]), np.array([0]), np.array([0]))
        for setting, accuracy, left in cases
    ]
    costs = cost_rows([100, 895], [0])  # the classifier's 5 make it 1,000
    return table(rows, CostTable.from_rows(costs).select(), split)


CALIBRATION_CASES = [
    (Setting("full"), 0.9, 0),
    *((CLASSIC, accuracy, left) for accuracy, left in [(0.8, 9), (0.9, 5), (0.85, 4)]),
    *((OTHER, accuracy, left) for accuracy, left in [(0.85, 8), (0.95, 1), (0.8, 9), (0.9, 5)]),
    (Setting("every-exit", "softmax", 0.5, 2), 0.9, 10),
]


def test_macs_saved_by_hand() -> None:
    found = savings_case("calibration", CALIBRATION_CASES)
    macs = [1000, 190, 550, 640, 280, 910, 190, 550, 100]
    assert found.macs.tolist() == macs
    assert found.macs_saved_full.tolist() == pytest.approx([1 - m / 1000 for m in macs])
    # The cheapest every-exit from exit 1 that is at least as accurate: 190 up to 0.8, 550 up to
    # 0.9 (640 for 0.85 is dearer), none beyond. One from a later start layer does not count.
    base = [550, 190, 550, 550, 550, np.nan, 190, 550, 550]
    expected = [1 - m / b for m, b in zip(macs, base, strict=True)]
    saved, _ = saved_every_exit(found, found)
    assert saved.tolist() == pytest.approx(expected, nan_ok=True)


def test_the_every_exit_partner_on_test_is_chosen_on_calibration() -> None:
    # On test the three every-exit settings trade places: the one that calibration took for 0.8
    # is now dear and good, and the dear one for 0.85 is the cheapest and best of all.
    accuracy = [0.7, 0.99, 0.5, 0.99, 0.6, 0.6, 0.6, 0.6, 0.6]
    left = [0, 2, 6, 9, 3, 8, 1, 4, 10]
    settings = [setting for setting, _, _ in CALIBRATION_CASES]
    test = savings_case("test", list(zip(settings, accuracy, left, strict=True)))
    macs = [1000, 820, 460, 190, 730, 280, 910, 640, 100]
    assert test.macs.tolist() == macs
    # The partners of the test above, at their test MACs: 190 has become 820, and 550 460.
    base = [460, 820, 460, 460, 460, np.nan, 820, 460, 460]
    _, saved = saved_every_exit(savings_case("calibration", CALIBRATION_CASES), test)
    expected = [1 - m / b for m, b in zip(macs, base, strict=True)]
    assert saved.tolist() == pytest.approx(expected, nan_ok=True)


def test_the_sweep_compares_with_the_partner_of_calibration(tmp_path: Path) -> None:
    """Exit 1 is always right on calibration and wrong on test."""
    right, wrong = sure(0.9, 0), sure(0.9, 1)
    traces = Traces(
        trace_of(tmp_path, "calibration", [[right, right]] * 4, [0] * 4),
        trace_of(tmp_path, "test", [[wrong, right]] * 4, [0] * 4),
    )
    prices = CostTable.from_rows(cost_rows([100, 895], [10])).select()
    grid = Grid(("full", "every-exit"), ("softmax",), (0.5, 0.95), 2, (1,), ())
    found = sweep(grid, {"fp32": traces}, {"fp32": prices}, silent)
    # The partner is beta 0.5 at 110 MACs, as accurate as the full network where it was chosen.
    expected = [1 - m / 110 for m in (1000, 110, 1010)]
    for split in ("calibration", "test"):
        saved = found[found.split == split].macs_saved_every_exit
        assert saved.tolist() == pytest.approx(expected)


def test_without_every_exit_nothing_is_compared_with_it() -> None:
    kept = [case for case in CALIBRATION_CASES if case[0].policy != "every-exit"]
    rows = savings_case("calibration", kept)
    for saved in saved_every_exit(rows, rows):
        assert np.isnan(saved).all()


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Traces:
    """300 samples of 6 exits that grow surer with depth, other ones on each split."""
    traces = []
    for seed, split in enumerate(("calibration", "test")):
        generator = np.random.default_rng(seed)
        truth = generator.integers(0, 5, 300)
        logits = generator.normal(size=(300, 7, 5))
        logits[np.arange(300), :, truth] += np.linspace(0.5, 5, 7)
        traces.append(trace_of(tmp_path_factory.mktemp(split), split, logits, truth))
    return Traces(*traces)


@pytest.mark.parametrize("criterion", sorted(CRITERIA))
def test_auto_betas_span_the_useful_range(many: Traces, criterion: str) -> None:
    betas = auto_betas(many.calibration, criterion, many.scales[criterion], 12)
    assert betas == sorted(set(betas))
    assert 10 <= len(betas) <= 12
    assert betas[0] > 0
    grid = Grid(("full", "every-exit"), (criterion,), tuple(betas), 0, (1,), ())
    prices = CostTable.from_rows(cost_rows([1] * 7, [1] * 6)).select()
    found = sweep(grid, {"fp32": many}, {"fp32": prices}, silent)
    found = found[(found.split == "calibration") & (found.policy == "every-exit")]
    left = [np.array(h.split(), int) for h in found.exit_histogram]
    assert left[0][:3].sum() > 0.95 * 300  # nearly all in the first half
    assert left[-1].tolist() == [0] * 6 + [300]  # nobody
    assert found.mean_exit.is_monotonic_increasing
    # From one of 12 values to the next less than half of the way: no gap in the useful range.
    assert found.mean_exit.diff().max() < (7 - 1) / 2


def test_betas_come_from_the_calibration_split_alone(many: Traces, tmp_path: Path) -> None:
    other = trace_of(tmp_path, "test", np.random.default_rng(9).normal(size=(50, 7, 5)), [0] * 50)
    prices = {"fp32": CostTable.from_rows(cost_rows([1] * 7, [1] * 6)).select()}
    grid = Grid(("full", "every-exit"), ("softmax", "activation"), None, 8, (1,), ())
    used = []
    for test in (many.test, other):
        found = sweep(grid, {"fp32": Traces(many.calibration, test)}, prices, silent)
        used.append({s: sorted(p.beta.dropna()) for s, p in found.groupby("split")})
    assert used[0] == used[1]
    assert used[0]["test"] == used[0]["calibration"]


def test_betas_are_written_with_the_digits_they_were_replayed_with(many: Traces) -> None:
    for beta in auto_betas(many.calibration, "activation", many.scales["activation"], 20):
        assert float(f"{beta:.6g}") == beta


def test_half_of_the_confidences_reach_the_median_beta(many: Traces) -> None:
    beta = median_beta(many.calibration, "softmax", many.scales["softmax"])
    reached = (many.calibration.confidence("softmax") >= beta).mean()
    assert reached == pytest.approx(0.5, abs=0.005)  # six digits may move a few of 1,800 cells


def test_exits_without_a_scale_are_left_out_of_the_range(tmp_path: Path) -> None:
    # The logits of exit 1 sum to zero: reference has no scale there, but one at exit 2.
    logits = [[[1.0, -1.0], [3.0, 1.0], [1.0, 0.0]]] * 4
    trace = trace_of(tmp_path, "calibration", logits, [0] * 4)
    scale = Traces(trace, trace_of(tmp_path, "test", logits, [0] * 4)).scales["reference"]
    assert scale.tolist() == [0.0, 2.0]
    assert auto_betas(trace, "reference", scale, 4) == [1.5, 1.50015]
    message = refused(auto_betas, trace, "reference", np.zeros(2), 4)
    assert "no exit has a positive threshold under the criterion 'reference'" in message
    assert "choose softmax, margin or entropy" in message


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"horizon": 3}, "horizon"),
        ({"network": "another"}, "network"),
        ({"kernel": (1.0,)}, "kernel"),
    ],
)
def test_traces_that_were_not_recorded_together_are_refused(
    tmp_path: Path, change: dict[str, object], name: str
) -> None:
    logits = [[sure(0.9), sure(0.9)]]
    first = trace_of(tmp_path, "calibration", logits, [0])
    second = trace_of(tmp_path, "test", logits, [0], **change)  # type: ignore[arg-type]
    message = refused(Traces, first, second)
    assert f"{first.path} and {second.path} differ in {name}" in message
    assert "record them again together" in message


def test_beta_is_auto_or_numbers() -> None:
    assert parse_betas(["auto"]) is None
    assert parse_betas(["0.5", "15"]) == (0.5, 15.0)


@pytest.mark.parametrize("values", [["auto", "1"], ["0"], ["-1"], ["nan"], ["inf"], ["much"], []])
def test_other_betas_are_refused(values: list[str]) -> None:
    message = refused(parse_betas, values)
    assert f"beta is {' '.join(values)}" in message
    assert "above 0" in message

"""Values become words without losing their sign, their unit or their absence."""

from __future__ import annotations

import math

import pytest
from exitbench.reports.words import (
    accuracy_change,
    beta_words,
    change,
    exit_words,
    figures,
    listing,
    percent,
    point_words,
    points,
    saving,
    setting_words,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (math.nan, "–"),
        (0.0, "0"),
        (0.000123456, "0.000123"),
        (5.204, "5.20"),
        (-1.5, "−1.50"),
        (1234567.0, "1,234,567"),
    ],
)
def test_figures_keep_three_digits_and_no_exponent(value: float | None, text: str) -> None:
    assert figures(value) == text


def test_changes_carry_their_sign() -> None:
    assert (change(0.38), change(1.126), change(1.001), change(None)) == (
        "−62%",
        "+13%",
        "±0%",
        "–",
    )
    assert change(0.9999, 1) == "±0.0%"
    assert (points(-0.0081), points(0.0004), points(None)) == ("−0.8", "±0.0", "–")
    assert percent(0.9533) == "95.3%"


def test_savings_are_told_in_words() -> None:
    assert saving(0.38, "energy") == "62% less energy"
    assert saving(1.12, "MACs") == "12% more MACs"
    assert saving(0.5, "MACs") == "50% fewer MACs"
    assert saving(1.001, "latency") == "under 0.5% more latency"
    assert accuracy_change(-0.008) == "at 0.8 points less accuracy"
    assert accuracy_change(0.01) == "at 1.0 point more accuracy"
    assert accuracy_change(0.0001) == "at the same accuracy"
    assert (point_words(0.01), point_words(0.005)) == ("1 point", "0.5 points")


def test_a_beta_that_is_copied_is_the_one_that_was_replayed() -> None:
    assert (beta_words(0.646689), beta_words(0.999987), beta_words(15.0)) == (
        "0.646689",
        "0.999987",
        "15",
    )


def test_a_setting_is_told_with_what_it_has() -> None:
    names = ["conv1", "conv2", "classifier"]
    row = {
        "policy": "predictive",
        "predictor": "table",
        "criterion": "softmax",
        "beta": 0.97,
        "start_layer": 2.0,
        "precision": "int8",
    }
    assert setting_words(row, names) == (
        "predictive exit (table predictor) in int8, softmax, beta 0.97, "
        "first check at exit 2 (conv2)"
    )
    fixed = {"policy": "fixed", "start_layer": 1.0, "precision": "fp32"}
    assert setting_words(fixed, names) == "a fixed exit in fp32, exit 1 (conv1)"
    assert exit_words(3, names) == "the classifier"
    assert exit_words(1, ["exit 1", "classifier"]) == "exit 1"
    assert listing(["a", "b", "c"]) == "a, b and c"

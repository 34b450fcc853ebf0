"""Criteria, predictors and policies against hand-worked examples."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from exitbench.harness.answers import LogitAnswers, Question
from exitbench.harness.criteria import CRITERIA, encode_rounds
from exitbench.harness.errors import ExitbenchError
from exitbench.harness.evidence import decode_rounds
from exitbench.harness.policies import EveryExit, Fixed, Full, Oracle, Predictive
from exitbench.harness.predictors import (
    ConstantPredictor,
    ConvolutionPredictor,
    PerfectPredictor,
    convolution_stack,
    convolve,
    first_later_leave,
    fit_table,
)
from exitbench.harness.sources import LiveEvidence

LOG2 = math.log(2)


class Given:
    """Evidence written down by hand."""

    def __init__(self, confidence, rounds=None, samples=None):
        self.confidence = np.array(confidence, dtype=np.float32)
        self.samples = np.arange(len(self.confidence)) if samples is None else np.array(samples)
        self.label = np.zeros(len(self.confidence), dtype=np.int64)
        self._rounds = None if rounds is None else np.array(rounds, dtype=np.float32)

    def rounds(self, rows):
        assert self._rounds is not None
        return self._rounds[rows]


@pytest.mark.parametrize(
    ("name", "logits", "by_hand"),
    [
        # softmax of (ln 4, ln 2, ln 2) is (1/2, 1/4, 1/4)
        ("softmax", [2 * LOG2, LOG2, LOG2], 0.5),
        ("margin", [2 * LOG2, LOG2, LOG2], 0.25),
        # H = 1/2 ln 2 + 2 (1/4 ln 4) = 1.5 ln 2
        ("entropy", [2 * LOG2, LOG2, LOG2], 1 - 1.5 * LOG2 / math.log(3)),
        ("activation", [-7.0, 2.0, 1.0], 2.0),
        ("reference", [-7.0, 2.0, 1.0], 7.0),
    ],
)
def test_each_criterion_equals_its_definition(name, logits, by_hand):
    value = CRITERIA[name].confidence(torch.tensor([logits]))
    # float32 keeps about seven digits
    assert value.item() == pytest.approx(by_hand, rel=1e-6)


@pytest.mark.parametrize("name", ["softmax", "margin", "entropy"])
def test_bounded_criteria_span_0_to_1_from_no_idea_to_certain(name):
    unsure = CRITERIA[name].confidence(torch.zeros(1, 4)).item()
    certain = CRITERIA[name].confidence(torch.tensor([[200.0, 0, 0, 0]])).item()
    # 1/classes for softmax, 0 for the others; rounding may leave 1e-7
    assert unsure == pytest.approx(0.25 if name == "softmax" else 0.0, abs=1e-6)
    assert certain == pytest.approx(1.0, abs=1e-6)


def test_an_extreme_logit_does_not_overflow():
    logits = torch.tensor([[1e4, -1e4, 0.0]])
    for criterion in CRITERIA.values():
        assert torch.isfinite(criterion.confidence(logits)).all()


def test_stored_rounds_keep_their_resolution_where_a_bounded_confidence_nears_one():
    near = torch.tensor([1 - 1e-5, 0.5, 0.0])
    stored = encode_rounds("softmax", near).numpy()
    # float16 keeps 11 bits of the distance from 1, which is 1e-5 here; of 0.5 it is exact
    assert np.abs(decode_rounds(True, stored) - near.numpy()).max() < 1e-8 + 6e-8


def test_the_convolution_stack_repeats_a_zero_padded_convolution():
    stack = convolution_stack(3, (1.0, 1.0, 1.0), 2)
    rounds = convolve(torch.tensor([[1.0, 2.0, 4.0]]), stack)[0]
    # (1+2, 1+2+4, 2+4), then (3+7, 3+7+6, 7+6)
    assert rounds.tolist() == [[3, 7, 6], [10, 16, 13]]


def test_an_asymmetric_kernel_is_applied_without_a_flip():
    stack = convolution_stack(3, (1.0, 0.0, 10.0), 1)
    # output j is 1 * z[j - 1] + 10 * z[j + 1], as in conv1d
    assert convolve(torch.tensor([[1.0, 2.0, 4.0]]), stack)[0, 0].tolist() == [20, 41, 2]


def test_the_stack_equals_torch_conv1d_applied_again_and_again():
    torch.manual_seed(0)
    logits, kernel = torch.randn(5, 10), (0.5, 1.0, -0.25, 0.75, 0.1)
    step = logits.double()
    rounds = convolve(logits, convolution_stack(10, kernel, 6))
    for number in range(6):
        step = torch.nn.functional.conv1d(
            step[:, None], torch.tensor(kernel, dtype=torch.float64)[None, None], padding=2
        )[:, 0]
        # the stack is rounded to float32
        torch.testing.assert_close(rounds[:, number], step, rtol=1e-4, atol=1e-5)


def test_a_kernel_of_even_length_and_a_horizon_of_0_are_refused():
    with pytest.raises(ExitbenchError, match=r"2 weights; the number must be odd"):
        convolution_stack(3, (1.0, 1.0))
    with pytest.raises(ExitbenchError, match=r"horizon is 0; it must be at least 1"):
        convolution_stack(3, horizon=0)


def test_the_jump_is_the_first_round_above_the_limit_of_its_own_target_exit():
    # E = 5, at exit 2: round r is held against exits 3, 4, 5, 5 (never past the last)
    limits = np.array([9, 9, 5, 3, 4], dtype=np.float32)
    rounds = [
        [6, 0, 0, 0],  # 6 > T_3 = 5: jump 1
        [5, 4, 0, 0],  # 5 is not above 5; 4 > T_4 = 3: jump 2
        [1, 3, 4.5, 0],  # 3 is not above 3; 4.5 > T_5 = 4: jump 3
        [1, 1, 4, 5],  # 4 is not above 4; 5 > T_5 again: jump 4
        [1, 1, 1, 1],  # none: the horizon, 4
    ]
    jump = ConvolutionPredictor(limits).jump(2, Given([0] * 5, rounds), np.arange(5))
    assert jump.tolist() == [1, 2, 3, 4, 4]


def test_the_first_later_leave_looks_past_the_own_exit():
    may_leave = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0]], dtype=bool)
    assert first_later_leave(may_leave).tolist() == [[3, 2, 4], [3, 3, 4], [4, 4, 4]]


def test_the_perfect_predictor_jumps_to_where_the_sample_leaves():
    leaves = np.array([[3, 2, 4], [3, 3, 4], [4, 4, 4]])
    jump = PerfectPredictor(leaves).jump(1, Given([0, 0], samples=[2, 0]), np.array([0, 1]))
    assert jump.tolist() == [3, 2]


def test_the_table_predictor_learns_the_median_jump_of_each_confidence_bin():
    # At exit 1 everyone stays; the four unsure samples leave at 3, the four surer ones at 2.
    confidence = np.array([[1, 2, 3, 4, 5, 6, 7, 8], [9] * 8], dtype=np.float32)
    leaves = np.array([[3, 3, 3, 3, 2, 2, 2, 2], [3] * 8])
    table = fit_table(confidence, leaves, np.array([10, 10], dtype=np.float32), bins=2)
    assert table.jump(1, Given([0, 4.4, 4.6, 99]), np.arange(4)).tolist() == [2, 2, 1, 1]


def test_full_goes_straight_to_the_classifier_and_fixed_leaves_at_its_exit():
    assert Full(7).first(np.arange(2)).tolist() == [8, 8]
    fixed = Fixed(3)
    assert fixed.first(np.arange(2)).tolist() == [3, 3]
    assert fixed.decide(3, Given([0.0, 1.0])).tolist() == [3, 3]


def test_every_exit_leaves_at_a_confidence_equal_to_beta_times_the_threshold():
    policy = EveryExit(np.array([0.5, 0.5], dtype=np.float32), start_layer=2)
    assert policy.first(np.arange(1)).tolist() == [2]
    assert policy.decide(2, Given([0.4999, 0.5, 0.6])).tolist() == [3, 2, 2]


def test_predictive_leaves_or_jumps_and_a_jump_past_the_last_exit_goes_to_the_classifier():
    policy = Predictive(np.full(3, 0.5, np.float32), 1, ConstantPredictor(2))
    assert policy.decide(1, Given([0.6, 0.1])).tolist() == [1, 3]
    assert policy.decide(2, Given([0.1])).tolist() == [4]
    assert policy.decide(3, Given([0.1])).tolist() == [4]


def test_the_oracle_leaves_where_it_is_told_without_checking_before():
    oracle = Oracle(np.array([4, 1, 2]))
    assert oracle.first(np.array([2, 0])).tolist() == [2, 4]


def test_live_evidence_forecasts_only_the_rows_that_ask():
    logits = torch.tensor([[1.0, 2.0, 4.0], [0.0, 8.0, 0.0]])
    question = Question("activation", convolution_stack(3, horizon=2))
    evidence = LiveEvidence(np.array([5, 9]), LogitAnswers(logits, question))
    assert evidence.label.tolist() == [2, 1]
    assert evidence.confidence.tolist() == [4, 8]
    assert evidence.rounds(np.array([0])).tolist() == [[7, 16]]

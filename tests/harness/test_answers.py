"""What heads say, at the least cost: the same as torch says, whatever the logits and the batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from exitbench.harness import answers
from exitbench.harness.answers import FEW, LogitAnswers, Question
from exitbench.harness.criteria import CRITERIA, encode_rounds
from exitbench.harness.evidence import decode_rounds
from exitbench.harness.policies import EveryExit, Predictive
from exitbench.harness.predictors import ConvolutionPredictor, convolution_stack, convolve
from hypothesis import example, given, settings
from hypothesis import strategies as st


def plain(name: str, logits: torch.Tensor) -> torch.Tensor:
    """The criteria in float32, as anyone would write them down."""
    p = torch.softmax(logits, -1)
    top = p.topk(2, -1).values
    entropy = -(p * torch.log_softmax(logits, -1)).sum(-1)
    forms = {
        "softmax": lambda: p.amax(-1),
        "margin": lambda: top[..., 0] - top[..., 1],
        "entropy": lambda: 1 - entropy / np.log(logits.shape[-1]),
        "activation": lambda: logits.amax(-1),
        "reference": lambda: logits.abs().amax(-1),
    }
    return forms[name]()


@st.composite
def batches(draw: st.DrawFn) -> torch.Tensor:
    """Logits with ties, of any size and sign: (1..70, 2..100)."""
    count, classes = draw(st.integers(1, 70)), draw(st.integers(2, 100))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1 << 30)))
    logits = torch.randn(count, classes, generator=generator)
    logits = logits * draw(st.sampled_from([0.0, 1e-3, 1.0, 10.0, 1e4])) + draw(
        st.sampled_from([0.0, -50.0, 1e3])
    )
    return logits.round() if draw(st.booleans()) else logits


@given(logits=batches(), name=st.sampled_from(sorted(CRITERIA)))
@example(logits=torch.zeros(1, 2), name="entropy")
@example(logits=torch.tensor([[3e38, -3e38, 3e38]]), name="margin")
@settings(max_examples=300, deadline=None)
def test_labels_and_confidences_are_those_of_torch(logits: torch.Tensor, name: str) -> None:
    answers = LogitAnswers(logits, Question(name))
    assert answers.label.dtype == np.int64
    assert answers.label.tolist() == logits.argmax(-1).tolist()
    assert answers.confidence.dtype == np.float32
    assert answers.confidence.shape == (len(logits),)
    # Of float32's own form: a few roundings. Of the form that traces are recorded with: at most
    # the last one, which falls to the other side once in 10^8, or often near 0.
    expected = plain(name, logits).numpy()
    np.testing.assert_allclose(answers.confidence, expected, rtol=2e-6, atol=2e-6)
    recorded = CRITERIA[name].confidence(logits)
    assert recorded.dtype == torch.float32
    np.testing.assert_allclose(answers.confidence, recorded.numpy(), rtol=1.2e-7, atol=1e-14)


@given(
    logits=batches(),
    name=st.sampled_from(sorted(CRITERIA)),
    horizon=st.integers(1, 9),
    kernel=st.sampled_from([(1.0, 1.0, 1.0), (0.25, 1.0, 0.5)]),
    data=st.data(),
)
@settings(max_examples=200, deadline=None)
def test_rounds_are_those_that_a_trace_records(
    logits: torch.Tensor,
    name: str,
    horizon: int,
    kernel: tuple[float, ...],
    data: st.DataObject,
) -> None:
    stack = convolution_stack(logits.shape[1], kernel, horizon)
    rows = np.array(data.draw(st.permutations(range(len(logits)))))[
        : data.draw(st.integers(1, len(logits)))
    ]
    found = LogitAnswers(logits, Question(name, stack)).rounds(rows)
    confidence = CRITERIA[name].confidence(convolve(logits, stack))
    expected = decode_rounds(CRITERIA[name].bounded, encode_rounds(name, confidence).numpy())[rows]
    assert found.dtype == np.float32
    assert found.shape == (len(rows), horizon)
    # A sum in another order may, once in a great while, fall to the other side of float16's middle.
    same = (found == expected) | (np.isnan(found) & np.isnan(expected))
    assert np.count_nonzero(~same) <= 1
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


@given(logits=batches(), name=st.sampled_from(sorted(CRITERIA)))
@settings(max_examples=60, deadline=None)
def test_a_sample_gets_the_same_answers_alone_and_in_a_batch(
    logits: torch.Tensor, name: str
) -> None:
    question = Question(name, convolution_stack(logits.shape[1]))
    together = LogitAnswers(logits, question)
    rows = np.arange(len(logits))
    alone = [LogitAnswers(logits[row : row + 1], question) for row in rows]
    first = np.array([0])
    assert [int(one.label[0]) for one in alone] == together.label.tolist()
    apart = np.concatenate([one.confidence for one in alone])
    np.testing.assert_allclose(apart, together.confidence, rtol=1.2e-7, atol=1e-14)
    rounds = np.concatenate([one.rounds(first) for one in alone])
    np.testing.assert_allclose(rounds, together.rounds(rows), rtol=1e-3, atol=1e-3)
    some = together.of(rows[::-1][:3])
    assert some.label.tolist() == together.label[::-1][:3].tolist()
    np.testing.assert_array_equal(some.rounds(first), together.rounds(rows[-1:]))


@pytest.mark.parametrize("name", sorted(CRITERIA))
@pytest.mark.parametrize("classes", [3, FEW, FEW + 1])
def test_a_confidence_that_rounds_to_1_does_so_in_every_form(name: str, classes: int) -> None:
    """Beta 1 asks for a confidence of 1 exactly: near it a last digit decides."""
    if not CRITERIA[name].bounded:
        return
    gaps = torch.linspace(14, 26, 3001)  # e^-17 is about half of float32's step below 1
    logits = torch.zeros(len(gaps), classes)
    logits[:, 1] = gaps
    recorded = CRITERIA[name].confidence(logits).numpy()
    question = Question(name)
    alone = [LogitAnswers(row[None], question).confidence[0] for row in logits]
    assert 0 < np.count_nonzero(recorded == 1) < len(gaps)
    np.testing.assert_array_equal(alone, recorded)
    np.testing.assert_array_equal(LogitAnswers(logits, question).confidence, recorded)


def test_logits_are_brought_to_the_host_once_and_only_when_something_is_asked() -> None:
    class Away:
        """Logits on a device: only their transfer is there to be used."""

        transfers = 0

        def cpu(self) -> torch.Tensor:
            self.transfers += 1
            return torch.tensor([[1.0, 2.0, 4.0], [0.0, 8.0, 0.0]])

    logits = Away()
    answers = LogitAnswers(logits, Question("activation", convolution_stack(3, horizon=2)))  # type: ignore[arg-type]
    assert logits.transfers == 0
    assert answers.label.tolist() == [2, 1]
    assert answers.confidence.tolist() == [4, 8]
    # (1+2, 1+2+4, 2+4), then (3+7, 3+7+6, 7+6)
    assert answers.rounds(np.array([0])).tolist() == [[7, 16]]
    assert answers.of(np.array([1])).rounds(np.array([0])).tolist() == [[8, 24]]
    assert logits.transfers == 1


def test_a_stack_is_brought_to_the_host_once_for_all_batches() -> None:
    """As the profiler times a forecast, of which a run in batches of one makes one per image."""
    stack = convolution_stack(3, horizon=2)
    first, second = Question("softmax", stack), Question("margin", stack)
    assert first.matrix is second.matrix
    other = convolution_stack(3, (1.0, 2.0, 1.0), horizon=2)
    assert not np.array_equal(Question("softmax", other).matrix, first.matrix)


@pytest.mark.parametrize(
    ("exit", "jump"),
    # Rounds 0.35, 0.55, 0.45 against the limits of the exits after, the last one's beyond the end.
    [(1, 2), (2, 3), (3, 2), (4, 1), (5, 1), (6, 1)],
)
def test_a_round_is_held_to_the_limit_of_the_exit_that_it_speaks_of(exit: int, jump: int) -> None:
    class Given:
        def rounds(self, rows: np.ndarray) -> np.ndarray:
            return np.array([[0.35, 0.55, 0.45]] * len(rows), np.float32)

    predictor = ConvolutionPredictor(np.array([0.0, 0.4, 0.5, 0.6, 0.3, 0.2], np.float32))
    evidence: Any = Given()
    for count in (1, 3):
        found = predictor.jump(exit, evidence, np.arange(count))
        assert found.tolist() == [jump] * count


def test_a_confidence_at_the_limit_leaves() -> None:
    class At:
        def __init__(self, count: int) -> None:
            self.samples, self.confidence = np.arange(count), np.full(count, 0.7, np.float32)

    limits = np.full(3, 0.7, np.float32)
    for policy in (EveryExit(limits), Predictive(limits, 1, ConvolutionPredictor(limits))):
        for count in (1, 3):
            evidence: Any = At(count)
            assert policy.decide(2, evidence).tolist() == [2] * count


@given(logits=batches(), exit=st.integers(1, 5), beta=st.floats(0.01, 1.0))
@settings(max_examples=100, deadline=None)
def test_policies_decide_alike_for_a_sample_alone_and_in_a_batch(
    logits: torch.Tensor, exit: int, beta: float
) -> None:
    limits = np.full(5, beta, np.float32)
    question = Question("softmax", convolution_stack(logits.shape[1], horizon=3))

    class Seen(LogitAnswers):
        @property
        def samples(self) -> np.ndarray:
            return np.arange(len(self.label))

    for policy in (
        EveryExit(limits), Predictive(limits, 1, ConvolutionPredictor(limits))
    ):  # fmt: skip
        together = policy.decide(exit, Seen(logits, question))
        alone = [policy.decide(exit, Seen(row[None], question)) for row in logits]
        assert all(one.shape == (1,) for one in alone)
        assert np.concatenate(alone).tolist() == together.tolist()
        assert ((together >= exit) & (together <= 6)).all()


@pytest.mark.parametrize("count", [1, 40, 400])
def test_a_large_product_is_torch_s_which_keeps_to_its_threads(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, right = np.random.default_rng(0).normal(size=(2, 100, 100))
    left = np.resize(left, (count, 100))
    asked: list[int] = []
    product = torch.Tensor.__matmul__
    monkeypatch.setattr(
        torch.Tensor, "__matmul__", lambda a, b: (asked.append(len(a)), product(a, b))[1]
    )
    found = answers._product(left, right)
    np.testing.assert_allclose(found, left @ right, rtol=1e-12, atol=1e-12)
    assert asked == ([count] if count * 10_000 > answers.SMALL else [])

"""What is left of several batches runs on together, with the decisions of the walk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from exitbench.harness import rebatching
from exitbench.harness.answers import Question
from exitbench.harness.compaction import ALWAYS, NEVER, Calls, by_cost
from exitbench.harness.evidence import Evidence, IntArray
from exitbench.harness.policies import EveryExit, Full, Predictive
from exitbench.harness.predictors import ConvolutionPredictor, convolution_stack
from exitbench.harness.rebatching import Group, Pools, Rebatching, Waiting
from exitbench.harness.runtime.registry import prepare
from exitbench.harness.scheduler import LayerStatistics, Outcome, merge, walk
from exitbench.harness.sources import LiveSource
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

EXITS = 5
QUESTION = Question()


@dataclass(frozen=True)
class Drops:
    """Rows of samples that left are dropped at once; heads run on all that are there.

    Attributes:
        without: exits where it does not pay to put samples together.
    """

    without: tuple[int, ...] = ()

    def drops(self, first: int, last: int, held: int, inside: int, due: int) -> bool:
        return True

    def separates(self, exit: int, held: int, due: int) -> bool:
        return False

    def joins(self, exit: int, rows: int, size: int) -> bool:
        return exit not in self.without


DROPS = Drops()


@dataclass(frozen=True)
class Said:
    """Answers by number of sample and exit, which a test can foresee."""

    numbers: IntArray
    exit: int

    @property
    def label(self) -> IntArray:
        return self.numbers * 10 + self.exit

    @property
    def confidence(self) -> np.ndarray:
        return np.zeros(len(self.numbers), np.float32)

    def rounds(self, rows: IntArray) -> np.ndarray:
        raise AssertionError("nobody asks for rounds")

    def of(self, rows: IntArray) -> Said:
        return Said(self.numbers[rows], self.exit)


@dataclass
class Noting:
    """A prepared network of nothing: a state is (number of the sample, segments it went through).

    It notes what is run, and finds fault with a state that was given away, or is used at another
    exit than its own.
    """

    num_exits: int = EXITS
    calls: list[tuple[int, int, list[int]]] = field(default_factory=list)
    spent: list[int] = field(default_factory=list)
    alive: list[Tensor] = field(default_factory=list)

    def run_stretch(self, first: int, last: int, state: Tensor, *, owned: bool = False) -> Tensor:
        self._sound(state)
        assert (state[:, 1] == first - 1).all(), f"a state of another exit before {first}"
        assert owned == (first > 1), "images are the caller's, later states nobody else's"
        self.calls.append((first, last, state[:, 0].tolist()))
        if owned:
            self.spent.append(id(state))
            self.alive.append(state)  # so that no other gets its id
        after = state.clone()
        after[:, 1] = last
        return after

    def run_check(
        self, first: int, last: int, state: Tensor, question: Question, *, owned: bool = False
    ) -> tuple[Tensor, Said]:
        after = self.run_stretch(first, last, state, owned=owned)
        return after, Said(after[:, 0].numpy(), last)

    def run_head(self, number: int, state: Tensor) -> Tensor:
        raise AssertionError("all answers are asked for with the state")

    def run_classifier(self, state: Tensor) -> Tensor:
        self._sound(state)
        assert (state[:, 1] == self.num_exits + 1).all()
        return torch.nn.functional.one_hot(state[:, 0], 1000).float()

    def select(self, state: Tensor, indices: Tensor, *, owned: bool = False) -> Tensor:
        self._sound(state)
        return state[indices]

    def join(self, states: Sequence[Tensor]) -> Tensor:
        for state in states:
            self._sound(state)
            assert (state[:, 1] == states[0][0, 1]).all(), "states of different exits"
        return torch.cat(list(states))

    def _sound(self, state: Tensor) -> None:
        assert id(state) not in self.spent, "this state was given away"


@dataclass(frozen=True)
class Scripted:
    """Sends sample s from exit e (0: images) to ``following[s, e]``; e itself means leave."""

    following: IntArray
    forecasts: bool = True

    def first(self, samples: IntArray) -> IntArray:
        return self.following[samples, 0]

    def decide(self, exit: int, evidence: Evidence) -> IntArray:
        return self.following[evidence.samples, exit]


def scripts(samples: int) -> st.SearchStrategy[Scripted]:
    """Any policy: at each exit on to any later one, or out."""

    def made(seed: int, leaves: float) -> Scripted:
        generator = np.random.default_rng(seed)
        exits = np.arange(EXITS + 1)
        jumps = generator.integers(1, EXITS + 1, (samples, EXITS + 1))
        out = generator.random((samples, EXITS + 1)) < leaves
        out[:, 0] = False
        return Scripted(np.where(out, exits, np.minimum(exits + jumps, EXITS + 1)))

    return st.builds(made, st.integers(0, 2**32 - 1), st.floats(0.0, 0.9))


def batches(samples: int, size: int) -> Iterator[tuple[Tensor, IntArray]]:
    for start in range(0, samples, size):
        numbers = np.arange(start, min(start + size, samples))
        yield torch.stack([torch.from_numpy(numbers), torch.zeros(len(numbers)).long()], 1), numbers


def walked(policy: Any, samples: int, size: int, observe: Any = None) -> Outcome:
    return merge(
        [
            walk(policy, LiveSource(Noting(), EXITS, images, numbers, compaction=DROPS), observe)
            for images, numbers in batches(samples, size)
        ]
    )


def rebatched(
    policy: Any, samples: int, size: int, wait: int, prepared: Any = None, **options: Any
) -> tuple[Outcome, Waiting]:
    driver = Rebatching(
        prepared or Noting(), policy, QUESTION, size, wait, compaction=DROPS, **options
    )
    return driver.run(batches(samples, size))


def same(one: Outcome, other: Outcome) -> None:
    for name in ("exit_at", "label", "checks", "forecasts"):
        assert getattr(one, name).tolist() == getattr(other, name).tolist(), name


SAMPLES = 60
waits = st.one_of(st.integers(0, 4), st.just(10**6))


@given(
    policy=scripts(SAMPLES),
    samples=st.integers(1, SAMPLES),
    size=st.integers(1, 12),
    wait=waits,
    held=st.one_of(st.none(), st.integers(0, 20)),
)
@settings(max_examples=150, deadline=None)
def test_decisions_are_those_of_the_walk_and_no_wait_is_too_long(
    policy, samples, size, wait, held
):
    prepared = Noting()
    outcome, waiting = rebatched(policy, samples, size, wait, prepared, held=held)
    same(outcome, walked(policy, samples, size))
    assert 0.0 <= waiting.mean <= waiting.longest <= wait
    assert waiting.held <= (16 * size if held is None else held)
    assert waiting.held <= wait * size
    fed: list[int] = []  # the samples of the batches so far
    ends = {number: int(exit) for number, exit in enumerate(outcome.exit_at)}
    for first, last, numbers in prepared.calls:
        assert len(numbers) <= size
        assert len(set(numbers)) == len(numbers)
        if first == 1:
            late = [number for number in fed if number // size < len(fed) // size - wait]
            assert not [number for number in late if ends[number] > 0], "kept waiting too long"
            fed += numbers
        for number in numbers:
            assert last <= ends[number], "a sample that had left ran on"
            if last == ends[number]:
                ends[number] = 0  # it leaves here, and only here
    assert not any(ends.values())


@given(policy=scripts(SAMPLES), size=st.integers(1, 12), wait=waits)
@settings(max_examples=40, deadline=None)
def test_every_check_is_told_once(policy, size, wait):
    truth = np.arange(SAMPLES) % 7
    plain, together = LayerStatistics(EXITS, truth), LayerStatistics(EXITS, truth)
    walked(policy, SAMPLES, size, plain)
    rebatched(policy, SAMPLES, size, wait, observe=together)
    assert together.rows() == plain.rows()
    assert (together.confusion == plain.confusion).all()


def leave_at(*exits: int) -> Scripted:
    """Every exit is checked; sample s leaves at ``exits[s]``."""
    at = np.arange(EXITS + 1)
    return Scripted(np.where(at >= np.array(exits)[:, None], at, at + 1), forecasts=False)


def test_halves_of_two_batches_run_on_as_one():
    # Of four samples each, two leave at exit 1 and two at exit 3.
    policy, prepared = leave_at(*[1, 3, 1, 3] * 3), Noting()
    _, waiting = rebatched(policy, 12, 4, 10, prepared)
    assert prepared.calls == [
        (1, 1, [0, 1, 2, 3]), (1, 1, [4, 5, 6, 7]), (2, 2, [1, 3, 5, 7]), (3, 3, [1, 3, 5, 7]),
        (1, 1, [8, 9, 10, 11]), (2, 2, [9, 11]), (3, 3, [9, 11]),
    ]  # fmt: skip
    assert waiting == Waiting(mean=2 / 12, longest=1, rows=24 / 7, held=2)


def test_more_than_half_of_a_batch_waits_for_nobody():
    policy, prepared = leave_at(*[1, 2, 2, 2] * 2), Noting()
    _, waiting = rebatched(policy, 8, 4, 10, prepared)
    assert [sorted(numbers) for _, _, numbers in prepared.calls] == [
        [0, 1, 2, 3], [1, 2, 3], [4, 5, 6, 7], [5, 6, 7],
    ]  # fmt: skip
    assert (waiting.longest, waiting.held) == (0, 0)


def test_who_may_wait_no_longer_runs_with_all_that_there_is_room_for():
    # One of four stays, and the first may wait for two batches: three run on in the end.
    policy, prepared = leave_at(*[1, 1, 1, 2] * 4), Noting()
    _, waiting = rebatched(policy, 16, 4, 2, prepared)
    second = [numbers for first, _, numbers in prepared.calls if first == 2]
    assert second == [[3, 7, 11], [15]]
    assert (waiting.longest, waiting.held) == (2, 2)


def test_nobody_waits_where_that_does_not_pay():
    # One of four stays until exit 4; at exits 1 and 2 it does not pay to wait.
    policy, prepared = leave_at(*[1, 1, 1, 4] * 4), Noting()
    driver = Rebatching(prepared, policy, QUESTION, 4, 10, compaction=Drops((1, 2)))
    driver.run(batches(16, 4))
    late = [numbers for first, _, numbers in prepared.calls if first in (3, 4)]
    assert late == [[3], [7], [11], [15], [3, 7, 11, 15]]


def test_a_wait_of_0_is_the_walk():
    policy, prepared, plain = leave_at(*[1, 3, 1, 5] * 3), Noting(), Noting()
    rebatched(policy, 12, 4, 0, prepared)
    for images, numbers in batches(12, 4):
        walk(policy, LiveSource(plain, EXITS, images, numbers, compaction=DROPS))
    rows = [(first, last, len(numbers)) for first, last, numbers in plain.calls]
    assert [(first, last, len(numbers)) for first, last, numbers in prepared.calls] == rows


def test_the_oldest_samples_of_a_pool_go_first_and_the_others_wait_on():
    # Three of six stay: with the second batch six wait, of whom three are of each.
    policy, prepared = leave_at(*[1, 2, 1, 2, 1, 2] * 3), Noting()
    driver = Rebatching(prepared, policy, QUESTION, 6, 10, compaction=DROPS)
    sizes = [torch.arange(start, stop) for start, stop in ((0, 4), (4, 10), (10, 16))]
    outcome, _ = driver.run(
        (torch.stack([numbers, torch.zeros_like(numbers)], 1), numbers.numpy()) for numbers in sizes
    )
    second = [numbers for first, _, numbers in prepared.calls if first == 2]
    # Samples 1, 3 of the first batch, 5, 7, 9 of the second, 11, 13, 15 of the third.
    assert second == [[1, 3, 5, 7, 9, 11], [13, 15]]
    assert outcome.exit_at.tolist() == [1, 2] * 8


def test_who_is_not_told_how_many_may_wait_lets_some_batches_wait(monkeypatch):
    for held, most in ((0, 0), (1, 3)):
        monkeypatch.setattr(rebatching, "HELD_BATCHES", held)
        _, waiting = rebatched(leave_at(*[1, 1, 1, 4] * 8), 32, 4, 10**6)
        assert waiting.held == most


def test_one_sample_that_may_wait_no_longer_takes_its_group_along():
    pools = Pools(Noting(), 4)
    for at, numbers in ((3, [6, 7]), (2, [1, 9])):
        pools.add(Group(at, np.full(2, at), np.array(numbers), torch.zeros(2, 2)))
    assert [pools.late(until) for until in (1, 2, 6, 7)] == [None, 2, 2, 2]
    assert (len(pools), pools.count(2), pools.count(5), pools.full()) == (4, 2, 0, None)


def test_no_batch_is_fed_while_too_many_wait():
    policy, prepared = leave_at(*[1, 1, 1, 4] * 8), Noting()
    _, waiting = rebatched(policy, 32, 4, 10**6, prepared, held=1)
    assert waiting.held == 1
    assert next(numbers for first, _, numbers in prepared.calls if first == 2) == [3, 7]


def test_by_cost_samples_are_put_together_where_that_pays_within_two_segments():
    segments = Calls(fixed=(0.1, 0.2, 0.3, 4.0, 5.0, 6.0), row=(1.0,) * 6)
    heads = Calls(fixed=(0.01, 0.02, 0.03, 0.04, 0.05), row=(0.1,) * 5)
    gathers = Calls(fixed=(0.0,) * 5, row=(0.04, 0.04, 0.04, 0.001, 0.04))
    compaction = by_cost(segments, heads, gathers)
    # At exit 1 a merged batch shares the calls of segments and heads 2 and 3: 0.55 ms.
    assert compaction.joins(1, 6, 64)  # two copies of 0.24 ms
    assert not compaction.joins(1, 7, 64)  # two copies of 0.28 ms
    # At exit 3 these are segments 4 and 5 with their heads, 9.09 ms, at exit 5 the last one.
    assert [compaction.joins(exit, 32, 64) for exit in (1, 2, 3, 4, 5)] == [
        False, False, True, True, True,
    ]  # fmt: skip
    assert not compaction.joins(3, 64, 64)
    # One batch size does not tell a call from its rows; then it is done as without costs.
    unknown = Calls((0.0,) * 6, (1.0,) * 6)
    assert by_cost(unknown, Calls((0.0,) * 5, (0.1,) * 5), gathers).joins(1, 32, 64)


def test_the_mean_of_rows_is_over_segments_however_long_a_stretch_is():
    # All of four come to the classifier in one go; then the fifth alone.
    _, waiting = rebatched(Full(EXITS), 5, 4, 2)
    assert waiting == Waiting(mean=0.0, longest=0, rows=2.5, held=0)
    _, waiting = rebatched(leave_at(1, 1, 3, 3), 4, 4, 0)
    assert waiting.rows == (4 + 2 + 2) / 3


def test_an_empty_stream_gives_nothing():
    outcome, waiting = Rebatching(Noting(), Full(EXITS), QUESTION, 4, 2).run([])
    assert len(outcome.exit_at) == 0
    assert waiting == Waiting(0.0, 0, 0.0, 0)


# --- the live network -------------------------------------------------------------------------

Live = tuple[Any, Tensor, Callable[[int], Any]]


@pytest.fixture(scope="module", params=["vgg19", "resnet34"])
def live(request: pytest.FixtureRequest, make_network: Any) -> Any:
    network = make_network(request.param, exits=None, classes=4)
    torch.manual_seed(1)
    images = torch.randn(40, 3, 32, 32)
    with torch.no_grad():
        for exit in range(1, network.num_exits + 1):
            network.head(exit).classify.weight.mul_(4)  # untrained heads are all equally unsure
    return prepare(network, "fp32", "cpu"), images


@pytest.mark.parametrize("compaction", [ALWAYS, NEVER])
@pytest.mark.parametrize("name", ["every-exit", "predictive"])
def test_a_real_network_decides_as_in_the_walk(live: Any, name: str, compaction: Any) -> None:
    prepared, images = live
    exits, question = prepared.num_exits, Question("softmax", convolution_stack(4))
    sources = [
        LiveSource(prepared, exits, images[start : start + 8], np.arange(start, start + 8),
                   "softmax", question.stack)
        for start in range(0, 40, 8)
    ]  # fmt: skip
    states, confidences = images, []
    for number in range(1, exits + 1):
        states = prepared.run_segment(number, states)
        confidences.append(prepared.run_head(number, states).softmax(-1).amax(-1))
    # A limit at which one sample in five leaves at each exit.
    limit = torch.stack(confidences).quantile(0.8, dim=1).numpy() + np.float32(1e-5)
    policy = EveryExit(limit, 2)
    if name == "predictive":
        policy = Predictive(limit, 2, ConvolutionPredictor(limit))
    wanted = merge([walk(policy, source) for source in sources])
    assert len(np.unique(wanted.exit_at)) > 3
    driver = Rebatching(prepared, policy, question, 8, 3, compaction=compaction)
    before = images.clone()
    found, waiting = driver.run(
        (images[start : start + 8], np.arange(start, start + 8)) for start in range(0, 40, 8)
    )
    same(found, wanted)
    assert waiting.longest > 0
    assert torch.equal(images, before)

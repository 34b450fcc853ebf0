"""Rows are gathered where that pays, and whatever is gathered, decisions are the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from exitbench.harness.answers import LogitAnswers
from exitbench.harness.compaction import (
    ALWAYS,
    NEVER,
    ByCost,
    Calls,
    Compaction,
    by_cost,
    fit,
)
from exitbench.harness.costs import CostTable
from exitbench.harness.evidence import Evidence, IntArray
from exitbench.harness.policies import EveryExit, Fixed
from exitbench.harness.runtime.eager import prepare_eager
from exitbench.harness.scheduler import Outcome, walk
from exitbench.harness.sources import LiveSource
from hypothesis import given, settings
from hypothesis import strategies as st

EXITS = 4


def calls(row: float, count: int, fixed: float = 0.0) -> Calls:
    return Calls((fixed,) * count, (row,) * count)


def costs(segment: float, head: float, gather: float, fixed: float = 0.0) -> ByCost:
    """The same cost at every exit, in ms per row, and per gather."""
    return ByCost(calls(segment, EXITS + 1), calls(head, EXITS), calls(gather, EXITS, fixed))


def test_a_batch_closes_up_when_what_comes_costs_more_than_moving_rows() -> None:
    # 2 of 10 left; 2 rows move, for 0.24 ms; a segment of theirs costs 2 x 0.05 ms.
    compaction = costs(segment=0.05, head=0.0, gather=0.12)
    assert not compaction.drops(2, 2, held=10, inside=8, due=0)
    assert not compaction.drops(2, 3, held=10, inside=8, due=0)
    assert compaction.drops(2, 4, held=10, inside=8, due=0)


def test_no_more_rows_move_than_stay() -> None:
    # 8 of 10 left: their segment costs 0.4 ms; the 2 that stay move for 0.2 ms, 8 would for 0.8.
    assert costs(segment=0.05, head=0.0, gather=0.1).drops(2, 2, held=10, inside=2, due=0)


def test_a_head_that_would_run_on_those_that_left_counts_too() -> None:
    compaction = costs(segment=0.05, head=0.1, gather=0.1)
    assert not compaction.drops(2, 2, held=10, inside=8, due=0)
    assert compaction.drops(2, 2, held=10, inside=8, due=8)


def test_a_gather_has_a_cost_of_its_own_however_few_rows_move() -> None:
    assert costs(0.05, 0.0, 0.01, fixed=0.0).drops(2, 2, held=2, inside=1, due=0)
    assert not costs(0.05, 0.0, 0.01, fixed=0.05).drops(2, 2, held=2, inside=1, due=0)


def test_those_due_go_to_the_head_alone_when_gathering_them_is_cheaper() -> None:
    compaction = costs(segment=1.0, head=0.1, gather=0.05)
    assert compaction.separates(2, held=10, due=3)  # 3 x 0.05 ms against 7 x 0.1 ms
    assert not compaction.separates(2, held=10, due=7)  # 7 x 0.05 ms against 3 x 0.1 ms


@pytest.mark.parametrize(("compaction", "gathers"), [(ALWAYS, True), (NEVER, False)])
def test_without_costs_it_is_always_or_never(compaction: Compaction, gathers: bool) -> None:
    assert compaction.drops(3, 3, 10, 9, 1) is gathers
    assert compaction.separates(3, 10, 1) is gathers


def test_two_batch_sizes_tell_a_call_from_its_rows() -> None:
    # 2 ms a call and 0.5 ms a row, per sample: 2.5 at batch 1, 0.7 at batch 10.
    found = fit([10, 1], [[0.7], [2.5]])
    assert found.row == pytest.approx((0.5,))
    assert found.fixed == pytest.approx((2.0,))
    assert fit([10], [[0.7]]) == Calls((0.0,), (0.7,))
    # More per sample in the larger batch: all of it is the rows'.
    assert fit([10, 1], [[3.0], [2.5]]).fixed == (0.0,)
    # Ten rows that took less time than one: a row is free, not a gain.
    assert fit([10, 1], [[0.1], [2.0]]) == Calls((1.0,), (0.0,))


def test_costs_that_are_not_known_decide_nothing() -> None:
    unknown = fit([10, 1], [[np.nan, 1.0], [1.0, 1.0]])
    assert not unknown.known
    known = calls(1.0, 2)
    assert by_cost(known, known, unknown) is ALWAYS
    assert isinstance(by_cost(known, known, known), ByCost)


# --- from a cost table ------------------------------------------------------------------------


def table_rows(batch: int, gathers: bool = True, **latency: float | None) -> list[dict[str, Any]]:
    kinds = [("segment", EXITS + 1), ("head", EXITS), *([("gather", EXITS)] * gathers)]
    rows = [
        {"kind": kind, "index": i, "macs": 0, "latency_ms": latency.get(kind), "batch_size": batch}
        for kind, count in kinds
        for i in range(1, count + 1)
    ]
    last = {"kind": "classifier", "index": EXITS + 1, "macs": 0, "batch_size": batch}
    return [*rows, last]


def test_a_table_without_gathers_or_times_always_gathers() -> None:
    without = CostTable.from_rows(table_rows(64, gathers=False, segment=1.0, head=1.0))
    assert without.select().compaction is ALWAYS
    untimed = CostTable.from_rows(table_rows(64, segment=1.0, head=None, gather=1.0))
    assert untimed.select().compaction is ALWAYS


def test_a_second_batch_size_tells_what_a_gather_costs_beside_its_rows() -> None:
    # Moving costs 0.1 ms a row; the call as much as 1 ms, which only two sizes can tell.
    many = table_rows(10, segment=0.5, head=0.0, gather=0.2)
    few = table_rows(1, segment=0.5, head=0.0, gather=1.1)
    alone = CostTable.from_rows(many).select("fp32", 10).compaction
    both = CostTable.from_rows([*many, *few]).select("fp32", 10).compaction
    assert alone.drops(2, 2, held=2, inside=1, due=0)
    assert not both.drops(2, 2, held=2, inside=1, due=0)
    assert both.drops(2, 2, held=10, inside=5, due=0)
    older = CostTable.from_rows([*many, *table_rows(1, False, segment=0.5, head=0.0)])
    assert older.select("fp32", 10).compaction.drops(2, 2, held=2, inside=1, due=0)


def test_gathers_are_no_part_of_a_price() -> None:
    with_gathers, without = (
        CostTable.from_rows(table_rows(64, gathers, segment=1.0, head=1.0, gather=7.0)).select()
        for gathers in (True, False)
    )
    assert with_gathers.full() == pytest.approx(without.full(), nan_ok=True)
    assert with_gathers.exits == without.exits == EXITS
    rows = table_rows(64, segment=1.0, head=1.0, gather=7.0)
    for row in rows:
        row["latency_source"] = "modelled" if row["kind"] == "gather" else None
    assert CostTable.from_rows(rows).select().latency_source == "measured"


# --- live -------------------------------------------------------------------------------------


class Chances:
    """Does at random, but always the same, what nobody would do for the sake of time."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed)

    def drops(self, first: int, last: int, held: int, inside: int, due: int) -> bool:
        assert 1 <= inside < held
        assert 0 <= due <= inside
        return bool(self._generator.integers(2))

    def separates(self, exit: int, held: int, due: int) -> bool:
        assert 1 <= due < held
        return bool(self._generator.integers(2))

    def joins(self, exit: int, rows: int, size: int) -> bool:
        return True


class Wandering:
    """Sends every sample on as a table of chances says, whatever is seen; reads all there is."""

    forecasts = True

    def __init__(self, seed: int, samples: int, exits: int) -> None:
        generator = np.random.default_rng(seed)
        self._start = generator.integers(1, exits + 2, samples)
        jump = generator.integers(0, 4, (exits, samples))  # 0: leaves
        self._following = np.minimum(np.arange(1, exits + 1)[:, None] + jump, exits + 1)
        self.seen: dict[tuple[int, int], tuple[int, float]] = {}

    def first(self, samples: IntArray) -> IntArray:
        return self._start[samples]

    def decide(self, exit: int, evidence: Evidence) -> IntArray:
        for row, sample in enumerate(evidence.samples.tolist()):
            found = int(evidence.label[row]), float(evidence.confidence[row])
            self.seen[exit, sample] = found
        return self._following[exit - 1, evidence.samples]


@pytest.fixture(scope="module", params=["vgg19", "resnet34"])
def network(request: pytest.FixtureRequest, make_network: Any) -> Any:
    torch.set_num_threads(1)
    made = make_network(request.param, width=0.125, exits=(1, 2, 5, 6, 8), classes=4)
    return prepare_eager(made.eval(), "fp32", torch.device("cpu"), None, "")


def run(network: Any, policy: Any, images: torch.Tensor, size: int, how: Any) -> list[Outcome]:
    found = []
    for start in range(0, len(images), size):
        batch = images[start : start + size]
        samples = np.arange(start, start + len(batch))
        source = LiveSource(network, network.num_exits, batch, samples, compaction=how)
        found.append(walk(policy, source))
    return found


@given(seed=st.integers(0, 10**6), size=st.integers(1, 12))
@settings(max_examples=25, deadline=None)
def test_whatever_is_gathered_every_sample_sees_the_same_and_goes_the_same_way(
    network: Any, seed: int, size: int
) -> None:
    count = 12
    images = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    before = images.clone()
    reference: list[Outcome] = []
    seen: dict[tuple[int, int], tuple[int, float]] = {}
    for how in (ALWAYS, NEVER, Chances(seed), costs5(0.5, 0.3, 0.4), costs5(0.1, 0.3, 0.4)):
        policy = Wandering(seed, count, network.num_exits)
        outcomes = run(network, policy, images, size, how)
        if not reference:
            reference, seen = outcomes, policy.seen
        for a, b in zip(reference, outcomes, strict=True):
            for name in ("exit_at", "label", "checks", "forecasts"):
                assert np.array_equal(getattr(a, name), getattr(b, name)), name
        assert policy.seen.keys() == seen.keys()
        for key, (label, confidence) in policy.seen.items():
            assert label == seen[key][0]
            assert confidence == pytest.approx(seen[key][1], rel=1e-5)
    assert torch.equal(images, before)


def costs5(segment: float, head: float, gather: float) -> ByCost:
    return ByCost(calls(segment, 6), calls(head, 5), calls(gather, 5, 0.2))


class Rows:
    """A prepared network that notes the rows of its calls."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.segments, self.heads, self.selected = inner, [], [], []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def run_stretch(self, first: int, last: int, state: Any, *, owned: bool = False) -> Any:
        self.segments.append((first, last, _count(state)))
        return self.inner.run_stretch(first, last, state, owned=owned)

    def run_check(
        self, first: int, last: int, state: Any, question: Any, *, owned: bool = False
    ) -> Any:
        state = self.run_stretch(first, last, state, owned=owned)
        return state, LogitAnswers(self.run_head(last, state), question)

    def run_head(self, number: int, state: Any) -> Any:
        self.heads.append((number, _count(state)))
        return self.inner.run_head(number, state)

    def select(self, state: Any, indices: Any, *, owned: bool = False) -> Any:
        self.selected.append((len(indices), owned))
        return self.inner.select(state, indices, owned=owned)


def _count(state: Any) -> int:
    return len(state[0] if isinstance(state, tuple) else state)


class Leaving:
    """Sample n leaves at its exit, checked at every one."""

    forecasts = False

    def __init__(self, leave_at: list[int]) -> None:
        self._leave_at = np.array(leave_at)

    def first(self, samples: IntArray) -> IntArray:
        return np.ones(len(samples), np.int64)

    def decide(self, exit: int, evidence: Evidence) -> IntArray:
        return np.where(self._leave_at[evidence.samples] == exit, exit, exit + 1)


def test_who_left_rides_along_under_never_and_is_gone_under_always(network: Any) -> None:
    images, leave_at = torch.randn(4, 3, 32, 32), [1, 3, 3, 5]
    inside = [4, 3, 3, 1, 1]
    for how, rows in ((ALWAYS, inside), (NEVER, [4] * 5)):
        watched = Rows(network)
        source = LiveSource(watched, 5, images, np.arange(4), compaction=how)
        assert walk(Leaving(leave_at), source).exit_at.tolist() == leave_at
        assert watched.segments == [(i, i, n) for i, n in enumerate(rows, start=1)]
        assert watched.heads == list(enumerate(rows, start=1))
    assert watched.selected == []


def test_nothing_is_gathered_when_all_leave_together(network: Any) -> None:
    watched = Rows(network)
    source = LiveSource(watched, 5, torch.randn(3, 3, 32, 32), np.arange(3))
    walk(Fixed(2), source)
    assert watched.selected == []


@pytest.mark.parametrize("stay", [[0, 1, 2, 4, 5], [0, 1, 2, 3, 5]])
def test_a_state_of_the_callers_is_left_as_it_was(network: Any, stay: list[int]) -> None:
    """The profiler puts states back again and again."""
    state = network.run_stretch(1, 2, torch.randn(6, 3, 32, 32))
    kept = [t.clone() for t in (state if isinstance(state, tuple) else (state,))]
    source = LiveSource(network, 5, state, np.arange(6))
    for _ in range(2):
        source.keep(np.array(stay))
        source.close_up()
        now = state if isinstance(state, tuple) else (state,)
        assert all(torch.equal(a, b) for a, b in zip(kept, now, strict=True))
        source.place(state, np.arange(6))


def test_a_state_that_is_taken_out_has_the_rows_in_the_order_of_the_samples(network: Any) -> None:
    """Also where all rows are asked for, but lie in another order since the batch closed up."""
    images = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    source = LiveSource(network, 5, images, np.arange(6))
    source.advance(1, 2)
    source.evidence(2, np.arange(6))
    source.keep(np.array([1, 2, 3, 4, 5]))  # row 5 goes to where row 0 was
    source.advance(3, 3)
    source.evidence(3, np.arange(5))
    for last in (3, 4):
        wanted = network.run_stretch(1, last, images[1:])
        found = source.state_of(np.arange(5))
        for a, b in zip(_tensors(found), _tensors(wanted), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        source.advance(4, 4)  # only noted until something is asked


class Asked:
    """Gathers nothing and notes what it was asked."""

    def __init__(self) -> None:
        self.drops_of: list[tuple[int, ...]] = []
        self.separates_of: list[tuple[int, ...]] = []

    def drops(self, *given: int) -> bool:
        self.drops_of.append(given)
        return False

    def separates(self, *given: int) -> bool:
        self.separates_of.append(given)
        return False


def test_what_is_asked_about_gathering_is_who_is_there_and_who_is_due(network: Any) -> None:
    asked: Any = Asked()
    source = LiveSource(network, 5, torch.randn(4, 3, 32, 32), np.arange(4), compaction=asked)
    source.advance(1, 1)
    source.evidence(1, np.arange(4))
    source.keep(np.array([1, 2, 3]))
    source.advance(2, 3)
    source.evidence(3, np.array([0, 2]))
    source.keep(np.array([0, 1]))
    source.advance(4, 6)
    assert len(source.classify()) == 2
    assert asked.drops_of == [(2, 3, 4, 3, 2), (4, 6, 4, 2, 0)]
    assert asked.separates_of == [(3, 4, 2)]


def _tensors(state: Any) -> tuple[torch.Tensor, ...]:
    return state if isinstance(state, tuple) else (state,)


def test_a_sample_alone_is_decided_as_in_company(network: Any) -> None:
    images = torch.randn(9, 3, 32, 32)
    policy = EveryExit(np.array([0.2, 0.27, 0.26, 0.3, 0.25], np.float32))
    together = run(network, policy, images, 9, ALWAYS)[0]
    alone = run(network, policy, images, 1, ALWAYS)
    assert together.exit_at.tolist() == [int(each.exit_at[0]) for each in alone]
    assert together.checks.tolist() == np.sum([each.checks for each in alone], axis=0).tolist()

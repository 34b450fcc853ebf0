"""Which CUDA graphs are kept, and what runs where there is none."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from exitbench.harness.answers import Question
from exitbench.harness.runtime import eager
from exitbench.harness.runtime.cudagraph import assemble
from exitbench.harness.runtime.cudagraph_answers import Ask
from exitbench.harness.runtime.cudagraph_capture import Graph
from exitbench.harness.runtime.cudagraph_memory import Layout, Memory
from exitbench.harness.runtime.cudagraph_store import Store, Task
from fake_capture import FakeCapture
from graph_lab import MODELS, POLICIES, MakeNetwork, Walker, network_of, pictures, same


class Nothing:
    def replay(self) -> None:
        return None


def put(store: Store, task: Task) -> Graph:
    assert store.admits(task)
    graph = store.capture(task, Nothing)
    assert graph is not None
    return graph


def stretch(first: int, last: int, ask: Ask | str | None = None) -> Task:
    return Task(first, last, 1, ask)


def test_the_longest_unused_graph_goes() -> None:
    store = Store(most=2)
    first, second = put(store, stretch(1, 1)), put(store, stretch(2, 2))
    assert store.find(stretch(1, 1)) is first
    third = put(store, stretch(3, 3))
    assert store.find(stretch(2, 2)) is None
    assert [store.find(stretch(1, 1)), store.find(stretch(3, 3))] == [first, third]
    assert second not in (first, third)
    assert len(store) == 2


def test_what_shorter_graphs_can_do_waits_until_it_is_asked_for_often() -> None:
    store = Store(most=1, patience=3)
    put(store, stretch(1, 4))
    long = stretch(1, 5)
    assert [store.admits(long) for _ in range(2)] == [False, False]
    assert store.admits(long)
    put(store, long)
    assert len(store) == 1
    assert not store.admits(stretch(1, 4)), "it begins to wait anew"


@pytest.mark.parametrize(
    ("task", "simple"),
    [
        (stretch(3, 3), True),
        (stretch(5, 5, "logits"), True),  # the last segment with the classifier
        (stretch(4, 3, "logits"), True),
        (stretch(4, 3, Ask("softmax", "", 0)), True),
        (stretch(3, 3, Ask("softmax", "", 0)), False),
        (stretch(2, 3), False),
    ],
)
def test_what_no_shorter_graphs_can_do_is_always_captured(task: Task, simple: bool) -> None:
    store = Store(most=1)
    put(store, stretch(1, 4))
    assert store.admits(task) == simple
    assert task.moves == (task.first <= task.last)


def test_a_failed_capture_is_not_tried_again_and_costs_no_other_graph() -> None:
    store = Store(most=1)
    kept = put(store, stretch(1, 1))

    def record() -> Graph:
        raise RuntimeError("operation not permitted\nand much more")

    assert store.capture(stretch(2, 2), record) is None
    assert store.failures == {stretch(2, 2): "operation not permitted"}
    assert not store.admits(stretch(2, 2))
    assert store.find(stretch(1, 1)) is kept


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("most", [1, 3])
def test_a_full_store_changes_no_answer(
    make_network: MakeNetwork, model: str, policy: str, most: int
) -> None:
    inner = eager.prepare_eager(
        network_of(make_network, model), "fp32", torch.device("cpu"), None, ""
    )
    store, capture = Store(most=most, patience=2), FakeCapture()
    graphs = assemble(inner, capture, pictures(3), store)
    mine, other = Walker.of(graphs, inner), Walker.of(inner, inner)
    for images in pictures(24).split(6):
        assert same(mine.walk(policy, images), other.walk(policy, images))
        assert len(store) <= most


def failing(make_network: MakeNetwork, refuse: Callable[[int], bool]) -> tuple[Walker, Walker]:
    inner = eager.prepare_eager(
        network_of(make_network, "resnet34"), "fp32", torch.device("cpu"), None, ""
    )
    graphs = assemble(inner, FakeCapture(refuse), pictures(3))
    return Walker.of(graphs, inner), Walker.of(inner, inner)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    "refuse",
    # The self-test takes four.
    [lambda number: number > 4, lambda number: number > 4 and number % 2 == 0],
    ids=["all", "every other"],
)
def test_what_cannot_be_captured_runs_eagerly_and_is_said_once(
    make_network: MakeNetwork,
    caplog: pytest.LogCaptureFixture,
    policy: str,
    refuse: Callable[[int], bool],
) -> None:
    mine, other = failing(make_network, refuse)
    graphs = mine.prepared
    assert "eagerly" not in graphs.words
    with caplog.at_level(logging.WARNING):
        for images in pictures(12).split(5):
            assert same(mine.walk(policy, images), other.walk(policy, images))
    assert len(caplog.records) == 1
    assert graphs.words.count("what could not be captured runs eagerly") == 1
    assert "due to a previous error during capture)" in graphs.words


def test_work_that_waits_for_the_device_cannot_be_captured(
    make_network: MakeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU; a head that asked for a number on its way would be noticed here."""
    mine, other = failing(make_network, lambda number: False)
    graphs = mine.prepared
    real = type(other.prepared).run_head

    def waits(self, number, state):  # type: ignore[no-untyped-def]
        logits = real(self, number, state)
        assert logits.sum().item() == logits.sum().item()
        return logits

    monkeypatch.setattr(type(other.prepared), "run_head", waits)
    _, answers = graphs.run_check(1, 1, pictures(2), Question())
    assert answers.label.shape == (2,)
    assert "operation not permitted" in graphs.words


def test_a_region_holds_every_state_one_at_a_time() -> None:
    image = Layout(((3, 8, 8),), (torch.float32,), False)
    pair = Layout(((4, 5, 5), (4, 5, 5)), (torch.bfloat16, torch.bfloat16), True)
    capture = FakeCapture()
    memory = Memory(capture, (image, pair), 4, 2)
    state = (torch.rand(3, 4, 5, 5).bfloat16(), torch.rand(3, 4, 5, 5).bfloat16())
    with capture.running(), torch.inference_mode():
        memory.load(1, state)
        assert memory.holds(1, state)
        assert not memory.holds(0, state)
        assert not memory.holds(1, tuple(part.clone() for part in state))
        copy = memory.read(1, 3)
        assert isinstance(copy, tuple)
        assert all(torch.equal(a, b) for a, b in zip(copy, state, strict=True))
        assert all(part.is_contiguous(memory_format=torch.channels_last) for part in copy)
        assert memory.holds(1, copy)
        assert not memory.holds(1, state), "the copy took its place"
        # A shortcut that is the very state that was read is covered by nothing before it is kept.
        main, _ = memory.state(1)
        memory.store(1, (torch.zeros_like(main), main))
        kept = memory.read(1, 3)
        assert torch.equal(kept[1], state[0])
        memory.load(0, torch.rand(2, 3, 8, 8))
        assert not memory.holds(0, memory.state(0)), "images are never taken for what they were"
        assert memory.at == 0


def test_the_last_rows_of_a_region_lie_inside_it() -> None:
    layout = Layout(((3, 7, 7), (5, 3, 3)), (torch.float16, torch.float32), True)
    sizes = layout.bytes_for(3)
    assert all(size % 256 == 0 for size in sizes)
    region = torch.zeros(sum(sizes), dtype=torch.uint8)
    first, second = layout.views(region, 3)
    assert (first.shape, second.shape) == ((3, 3, 7, 7), (3, 5, 3, 3))
    first.fill_(1)
    second.fill_(2)
    assert (first == 1).all()
    assert (second == 2).all()

"""The runtime ``cudagraph`` on an NVIDIA GPU: what the fake elsewhere takes for granted."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from exitbench.harness.answers import LogitAnswers, Question
from exitbench.harness.runtime import Prepared, availability, prepare
from exitbench.harness.runtime.cudagraph_capture import CudaCapture
from exitbench.harness.runtime.cudagraph_memory import tensors
from exitbench.harness.runtime.cudagraph_network import GraphNetwork
from exitbench.harness.runtime.cudagraph_store import Store
from exitbench.harness.scheduler import Going
from exitbench.models.blocks import State
from graph_lab import (
    MODELS,
    POLICIES,
    SIZES,
    MakeNetwork,
    Walker,
    agreement,
    close,
    network_of,
    pictures,
    stack,
)

pytestmark = pytest.mark.cuda

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
BOUNDS = {"fp32": 1e-3, "tf32": 2e-2, "bf16": 6e-2, "fp16": 2e-2}
"""Of states and logits against eager in the same precision: other algorithms, other roundings."""
CARD = "cuda:0"

Ready = Callable[..., Prepared]


@pytest.fixture
def ready(make_network: MakeNetwork) -> Ready:
    """``ready(model, precision, runtime)``: prepared on the card; skips what it cannot do."""

    def make(model: str, precision: str = "fp32", runtime: str = "cudagraph") -> Prepared:
        reason = availability(precision, CARD)
        if reason is not None:
            pytest.skip(reason)
        return prepare(network_of(make_network, model), precision, CARD, runtime=runtime)

    return make


def graphs_of(prepared: Prepared) -> GraphNetwork:
    assert isinstance(prepared, GraphNetwork), prepared.words
    return prepared


@pytest.mark.parametrize("precision", PRECISIONS)
def test_graphs_serve_by_themselves_and_say_so(make_network: MakeNetwork, precision: str) -> None:
    reason = availability(precision, CARD)
    if reason is not None:
        pytest.skip(reason)
    prepared = prepare(network_of(make_network, "vgg19"), precision, CARD)
    assert prepared.name == "cudagraph", prepared.words
    assert precision in prepared.words
    if precision in ("fp32", "tf32"):
        assert ("(TF32)" in prepared.words) == (precision == "tf32")


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("model", MODELS)
def test_every_sample_fares_as_with_eager(
    ready: Ready, model: str, size: int, policy: str
) -> None:
    other = ready(model, "fp32", "eager")
    graphs = graphs_of(ready(model))
    mine, twin = Walker.of(graphs, other), Walker.of(other, other)
    agreed = [
        agreement(mine.walk(policy, part), twin.walk(policy, part))
        for part in pictures(66).split(size)
    ]
    # Limits lie far from any confidence that they were fitted to, not from all of these.
    assert np.mean(agreed) > 0.96
    assert not graphs.store.failures


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("model", MODELS)
def test_states_and_logits_are_those_of_eager(ready: Ready, model: str, precision: str) -> None:
    graphs, other = ready(model, precision), ready(model, precision, "eager")
    state: State = pictures(5).to(CARD)
    for number in range(1, graphs.num_exits + 2):
        wanted = other.run_segment(number, state)
        state = graphs.run_segment(number, state)
        close(state, wanted, BOUNDS[precision])
        if number <= graphs.num_exits:
            logits = other.run_head(number, state)
            close(graphs.run_head(number, state), logits, 1e-3)
    close(graphs.run_classifier(state), other.run_classifier(state), 1e-3)


def test_states_and_answers_stay_as_they_were_given(ready: Ready) -> None:
    graphs, question, rows = ready("resnet34"), Question("softmax", stack().to(CARD)), np.arange(4)
    state, answers = graphs.run_check(1, 2, pictures(4, 1).to(CARD), question)
    before = [tensor.clone() for tensor in tensors(state)]
    said = answers.label.copy(), answers.confidence.copy(), answers.rounds(rows)
    for seed in range(2, 6):
        other, _ = graphs.run_check(1, 2, pictures(4, seed).to(CARD), question)
        graphs.run_stretch(3, graphs.num_exits + 1, other, owned=True)
    assert all(torch.equal(a, b) for a, b in zip(before, tensors(state), strict=True))
    again = answers.label, answers.confidence, answers.rounds(rows)
    assert all(np.array_equal(a, b) for a, b in zip(said, again, strict=True))
    wanted = LogitAnswers(ready("resnet34", "fp32", "eager").run_head(2, state), question)
    np.testing.assert_allclose(answers.confidence, wanted.confidence, atol=1e-4)


def test_two_batches_on_the_same_network_do_not_meet(ready: Ready) -> None:
    graphs = ready("resnet34")
    walker = Walker.of(graphs, graphs)
    parts = pictures(8, seed=11), pictures(8, seed=12)
    alone = [walker.walk("every-exit", part) for part in parts]
    goings = [Going(walker.policy("every-exit"), walker.source(part)) for part in parts]
    for exit in range(1, graphs.num_exits + 1):
        for going in goings:
            going.source.advance(exit, exit)
            if len(going.inside):
                going.check(exit)
    for going, wanted in zip(goings, alone, strict=True):
        going.source.advance(exit + 1, exit + 1)
        assert agreement(going.finish(), wanted) > 0.8


def test_another_stream_waits_for_what_was_queued_before(ready: Ready) -> None:
    graphs = ready("vgg19")
    images = pictures(64).to(CARD)
    wanted = graphs.run_stretch(1, graphs.num_exits + 1, images)
    side = torch.cuda.Stream(CARD)
    side.wait_stream(torch.cuda.current_stream(CARD))
    state = graphs.run_stretch(1, 3, images)
    with torch.cuda.stream(side):
        found = graphs.run_stretch(4, graphs.num_exits + 1, state)
    torch.cuda.current_stream(CARD).wait_stream(side)
    close(found, wanted, 1e-3)


def test_settings_of_the_process_are_as_before(ready: Ready) -> None:
    def settings() -> tuple[object, ...]:
        backends = torch.backends
        return (
            backends.cudnn.benchmark, backends.cudnn.conv.fp32_precision,
            backends.cuda.matmul.fp32_precision, torch.cuda.current_stream(CARD),
        )  # fmt: skip

    before = settings()
    for precision in ("tf32", "fp32"):
        for runtime in ("cudagraph", "eager"):
            prepared = ready("vgg19", precision, runtime)
            prepared.run_check(1, 3, pictures(2).to(CARD), Question())
            assert settings() == before


def test_fp32_is_more_exact_than_tf32(ready: Ready) -> None:
    exact = ready("vgg19", "fp32", "eager")
    images = pictures(8).to(CARD)
    wanted = exact.run_stretch(1, exact.num_exits + 1, images)
    assert isinstance(wanted, torch.Tensor)

    def error(prepared: Prepared) -> float:
        found = prepared.run_stretch(1, prepared.num_exits + 1, images)
        assert isinstance(found, torch.Tensor)
        return ((found - wanted).norm() / wanted.norm()).item()

    assert error(ready("vgg19")) < 1e-4 < error(ready("vgg19", "tf32")) < 2e-2


def test_what_waits_for_the_device_cannot_be_captured_and_the_next_thing_can() -> None:
    with torch.inference_mode():
        capture = CudaCapture(torch.device(CARD))
        with capture.running():
            values = capture.buffer((4,), torch.float32)
            stream = torch.cuda.current_stream()
            with pytest.raises(RuntimeError):
                capture.record(lambda: values.fill_(values.sum().item()))  # type: ignore[arg-type]
            assert torch.cuda.current_stream() == stream
            graph = capture.record(lambda: values.add_(1))  # type: ignore[arg-type]
            capture.place(values, torch.zeros(4))
            graph.replay()
            graph.replay()
            assert capture.send(values)().tolist() == [2.0] * 4


def test_a_full_store_changes_no_answer(ready: Ready) -> None:
    graphs = graphs_of(ready("vgg19"))
    walker = Walker.of(graphs, graphs)
    images = pictures(24)
    wanted = [walker.walk("predictive", part) for part in images.split(6)]
    graphs.store = Store(most=4, patience=2)
    for _ in range(3):
        for part, before in zip(images.split(6), wanted, strict=True):
            # Shorter graphs may round otherwise.
            assert agreement(walker.walk("predictive", part), before) > 0.8
            assert len(graphs.store) <= 4

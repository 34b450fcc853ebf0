"""The runtime ``cudagraph`` on the CPU, with a fake that behaves as CUDA graphs do."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from exitbench.harness.answers import LogitAnswers, Question
from exitbench.harness.criteria import CRITERIA
from exitbench.harness.errors import ExitbenchError
from exitbench.harness.evidence import IntArray
from exitbench.harness.runtime import (
    RUNTIMES,
    cudagraph,
    cudagraph_memory,
    eager,
    prepare,
    registry,
)
from exitbench.harness.runtime.base import PlannedNetwork
from exitbench.harness.runtime.cudagraph import assemble
from exitbench.harness.runtime.cudagraph_memory import Memory, bucket_of, tensors
from exitbench.harness.runtime.cudagraph_network import GraphNetwork
from exitbench.harness.scheduler import Going
from exitbench.models.blocks import State
from fake_capture import FakeCapture, FakeGraph, poison
from graph_lab import (
    CLASSES,
    MODELS,
    POLICIES,
    SIZES,
    MakeNetwork,
    Walker,
    close,
    network_of,
    pictures,
    same,
    stack,
)
from torch import Tensor

CPU = torch.device("cpu")


def inner_of(make_network: MakeNetwork, model: str, precision: str = "fp32") -> PlannedNetwork:
    return eager.prepare_eager(network_of(make_network, model), precision, CPU, None, "")


class Made:
    """A network as graphs, what captured them, and the same network eagerly."""

    def __init__(self, inner: PlannedNetwork, capture: FakeCapture) -> None:
        self.inner, self.capture = inner, capture
        self.graphs = assemble(inner, capture, pictures(3, seed=3))
        self.mine, self.other = Walker.of(self.graphs, inner), Walker.of(inner, inner)

    def counts(self, work: Callable[[], object]) -> dict[str, int]:
        """What ``work`` asks of the capture."""
        names = ("captures", "replays", "places", "sends", "waits")
        before = [getattr(self.capture, name) for name in names]
        work()
        return {n: getattr(self.capture, n) - b for n, b in zip(names, before, strict=True)}


@pytest.fixture(params=MODELS, scope="module")
def made(request: pytest.FixtureRequest, make_network: MakeNetwork) -> Made:
    return Made(inner_of(make_network, request.param), FakeCapture())


@pytest.fixture
def vgg(make_network: MakeNetwork) -> Made:
    return Made(inner_of(make_network, "vgg19"), FakeCapture())


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("size", SIZES)
def test_every_sample_fares_as_with_eager(made: Made, policy: str, size: int) -> None:
    images = pictures(66)
    left = []
    for part in images.split(size):  # 66 is no multiple of 8: the last batch is smaller
        found = made.mine.walk(policy, part)
        assert same(found, made.other.walk(policy, part))
        left.append(found.exit_at)
    if policy != "full":
        assert len(np.unique(np.concatenate(left))) > 2, "the limits let samples leave everywhere"


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("model", MODELS)
def test_states_of_two_bytes_are_kept_as_well(
    make_network: MakeNetwork, model: str, precision: str
) -> None:
    made = Made(inner_of(make_network, model, precision), FakeCapture())
    assert made.graphs.precision == precision
    state: State = pictures(3)
    wanted = state
    for number in range(1, made.inner.num_exits + 2):
        state = made.graphs.run_segment(number, state)
        wanted = made.inner.run_segment(number, wanted)
        close(state, wanted, 0.05)
    assert made.graphs.run_classifier(state).dtype == torch.float32


def test_two_batches_on_the_same_network_do_not_meet(made: Made) -> None:
    parts = pictures(8, seed=11), pictures(8, seed=12)
    wanted = [made.other.walk("every-exit", part) for part in parts]
    goings = [Going(made.mine.policy("every-exit"), made.mine.source(part)) for part in parts]
    for exit in range(1, made.graphs.num_exits + 1):
        for going in goings:
            going.source.advance(exit, exit)
            if len(going.inside):
                going.check(exit)
    for going, expected in zip(goings, wanted, strict=True):
        going.source.advance(exit + 1, exit + 1)
        assert same(going.finish(), expected)


def test_a_state_stays_as_it_was_given(made: Made) -> None:
    images, others = pictures(5, seed=21), pictures(5, seed=22)
    kept: list[State] = [images]
    for number in range(1, made.graphs.num_exits + 2):
        kept.append(made.graphs.run_segment(number, kept[-1]))
    copies = [[tensor.clone() for tensor in tensors(state)] for state in kept]
    state: State = others
    for number in range(1, made.graphs.num_exits + 2):
        if number <= made.graphs.num_exits:
            state, _ = made.graphs.run_check(number, number, state, Question())
        else:
            state = made.graphs.run_stretch(number, number, state, owned=True)
    for before, after in zip(copies, kept, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(before, tensors(after), strict=True))
    wanted: State = images
    for number in range(1, made.graphs.num_exits + 2):
        # Each kept state is good for going on from, in any order and more than once.
        again = made.graphs.run_segment(number, kept[number - 1])
        wanted = made.inner.run_segment(number, wanted)
        close(again, wanted)
    close(made.graphs.run_classifier(kept[-1]), made.inner.run_classifier(wanted))


def test_answers_stay_as_they_were_given(vgg: Made) -> None:
    rows, question = np.arange(4), Question("softmax", stack())
    _, first = vgg.graphs.run_check(1, 2, pictures(4, seed=31), question)
    before = first.label.copy(), first.confidence.copy(), first.rounds(rows)
    vgg.graphs.run_check(1, 2, pictures(4, seed=32), question)
    after = first.label, first.confidence, first.rounds(rows)
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    logits = vgg.graphs.run_head(2, vgg.graphs.run_stretch(1, 2, pictures(4, seed=33)))
    copy = logits.clone()
    vgg.graphs.run_head(2, vgg.graphs.run_stretch(1, 2, pictures(4, seed=34)))
    assert torch.equal(logits, copy)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_answers_are_those_of_the_head(vgg: Made, criterion: str) -> None:
    question = Question(criterion, stack())
    state, found = vgg.graphs.run_check(1, 3, pictures(6), question)
    wanted = LogitAnswers(vgg.inner.run_head(3, state), question)

    def compare(rows: IntArray) -> None:
        mine, other = found.of(rows), wanted.of(rows)
        inside = np.arange(len(rows))
        assert np.array_equal(mine.label, other.label)
        assert mine.label.dtype == np.int64
        assert mine.confidence.dtype == np.float32
        np.testing.assert_allclose(mine.confidence, other.confidence, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(mine.rounds(inside), other.rounds(inside), rtol=1e-3, atol=1e-3)

    compare(np.arange(6))
    compare(np.array([4, 1]))
    assert found.rounds(np.array([2])).shape == (1, 3)


def test_rows_are_taken_and_joined_between_graphs(made: Made) -> None:
    images = pictures(7)
    state, twin = made.graphs.run_stretch(1, 2, images), made.inner.run_stretch(1, 2, images)
    some, others = torch.tensor([5, 0, 3]), torch.tensor([1])
    found = [made.graphs.select(state, rows) for rows in (some, others)]
    wanted = [made.inner.select(twin, rows) for rows in (some, others)]
    found = [made.graphs.run_stretch(3, 3, state, owned=True) for state in found]
    wanted = [made.inner.run_stretch(3, 3, state) for state in wanted]
    joined, expected = made.graphs.join(found), made.inner.join(wanted)
    close(joined, expected)
    last = made.graphs.num_exits + 1
    logits = made.graphs.run_classifier(made.graphs.run_stretch(4, last, joined, owned=True))
    close(logits, made.inner.run_classifier(made.inner.run_stretch(4, last, expected)))


def test_a_state_given_away_is_not_taken_for_what_it_was(made: Made) -> None:
    """The rows of a state that is given away may be moved within its memory."""
    images = pictures(8)
    state = made.graphs.run_stretch(1, 2, images)
    fewer = made.graphs.select(state, torch.tensor([0, 7, 2, 3, 4]), owned=True)
    wanted = made.inner.run_stretch(1, 3, images[[0, 7, 2, 3, 4]])
    close(made.graphs.run_stretch(3, 3, fewer), wanted)


def test_images_may_be_overwritten_between_calls(vgg: Made) -> None:
    images = pictures(4, seed=41)
    vgg.graphs.run_stretch(1, 2, images)
    images.copy_(pictures(4, seed=42))
    close(vgg.graphs.run_stretch(1, 2, images), vgg.inner.run_stretch(1, 2, images))


def test_a_check_is_one_launch_one_transfer_and_one_wait(vgg: Made) -> None:
    question, image = Question("softmax", stack()), pictures(1)

    def checks() -> None:
        state, answers = vgg.graphs.run_check(1, 2, image, question)
        assert answers.rounds(np.array([0])).shape == (1, 3)
        state, answers = vgg.graphs.run_check(3, 4, state, question, owned=True)
        assert answers.label.shape == answers.confidence.shape == (1,)

    assert vgg.counts(checks)["captures"] == 2
    # A state that comes straight back is where the next graph reads it: only the image goes in.
    wanted = {"captures": 0, "replays": 2, "places": 1, "sends": 2, "waits": 2}
    assert vgg.counts(checks) == wanted


def test_the_whole_network_is_one_launch(vgg: Made) -> None:
    image = pictures(1)
    vgg.mine.walk("full", image)
    wanted = {"captures": 0, "replays": 1, "places": 1, "sends": 0, "waits": 0}
    assert vgg.counts(lambda: vgg.mine.walk("full", image)) == wanted


def test_heads_of_one_state_do_not_load_it_again(vgg: Made) -> None:
    state = vgg.graphs.run_stretch(1, 2, pictures(2))
    assert vgg.counts(lambda: vgg.graphs.run_head(2, state))["captures"] == 1

    def heads() -> None:
        vgg.graphs.run_head(2, state)
        vgg.graphs.run_head(2, state)

    assert vgg.counts(heads)["places"] == 0


def test_an_equal_question_finds_the_same_graph(vgg: Made) -> None:
    image = pictures(1)

    def check(criterion: str, matrices: Tensor | None) -> int:
        question = Question(criterion, matrices)
        return vgg.counts(lambda: vgg.graphs.run_check(1, 1, image, question))["captures"]

    assert [check("softmax", stack()), check("softmax", stack())] == [1, 0]
    assert [check("margin", stack()), check("softmax", None)] == [1, 1]
    assert [check("softmax", 2 * stack()), check("softmax", stack())] == [1, 0]


def test_a_stack_may_be_dropped_or_changed_by_its_owner(vgg: Made) -> None:
    matrices, image = stack(), pictures(1)
    question = Question("softmax", matrices)
    before = vgg.graphs.run_check(1, 1, image, question)[1].rounds(np.array([0]))
    matrices.fill_(float("nan"))
    again = vgg.graphs.run_check(1, 1, image, Question("softmax", stack()))[1]
    assert np.array_equal(again.rounds(np.array([0])), before)


def test_buckets_are_powers_of_two_up_to_a_largest() -> None:
    assert [bucket_of(n) for n in (1, 2, 3, 4, 5, 33, 64, 65, 256)] == [
        1, 2, 4, 4, 8, 64, 64, 128, 256,
    ]  # fmt: skip
    assert bucket_of(0) is None
    assert bucket_of(257) is None


@pytest.mark.parametrize("policy", POLICIES)
def test_a_batch_beyond_the_largest_bucket_runs_eagerly(
    made: Made, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cudagraph_memory, "LARGEST_BUCKET", 4)
    images = pictures(9)
    assert same(made.mine.walk(policy, images), made.other.walk(policy, images))
    nothing = made.graphs.select(made.graphs.run_stretch(1, 1, images), torch.empty(0).long())
    assert len(tensors(made.graphs.run_stretch(2, 2, nothing))[0]) == 0


def test_it_needs_a_gpu() -> None:
    reason = cudagraph.unavailable("fp32", CPU)
    assert reason == "CUDA graphs need an NVIDIA GPU, and cpu is none"
    for precision in ("tf32", "fp16"):
        assert cudagraph.unavailable(precision, CPU) == eager.unavailable(precision, CPU)
    assert "not int8" in (cudagraph.unavailable("int8", CPU) or "")


class Stale(FakeGraph):
    """Does its work once."""

    def replay(self) -> None:
        if self.replays == 0:
            super().replay()


class Idle(FakeGraph):
    def replay(self) -> None:
        return None


class Wrong(FakeGraph):
    def replay(self) -> None:
        super().replay()
        for buffer in self._owner.buffers:
            if buffer.dtype == torch.float32 and buffer.shape[1] > CLASSES - 1:
                with torch.inference_mode():
                    buffer.mul_(1.01)


class Bad(FakeCapture):
    """Captures graphs of another kind."""

    def __init__(self, kind: type[FakeGraph]) -> None:
        super().__init__()
        self._kind = kind

    def record(self, work: Callable[[], None]) -> FakeGraph:
        super().record(work)
        return self._kind(self, work)


@pytest.mark.parametrize(
    ("capture", "words"),
    [
        (lambda: Bad(Stale), "differ"),
        (lambda: Bad(Idle), "differs from eager"),
        (lambda: Bad(Wrong), "differ from eager's"),
        (lambda: FakeCapture(lambda number: True), "due to a previous error during capture"),
        (lambda: FakeCapture(lambda number: number == 2), "due to a previous error"),
    ],
    ids=["stale", "idle", "wrong", "refused", "refused once"],
)
def test_a_failed_self_test_leaves_the_network_to_eager(
    make_network: MakeNetwork,
    monkeypatch: pytest.MonkeyPatch,
    capture: Callable[[], FakeCapture],
    words: str,
) -> None:
    network = network_of(make_network, "vgg19")

    def prepare_broken(*arguments: object) -> GraphNetwork:
        return assemble(eager.prepare_eager(*arguments), capture(), pictures(3))  # type: ignore[arg-type]

    entry = RUNTIMES["cudagraph"]
    broken = type(entry)(entry.precisions, ("cpu",), lambda *_: None, prepare_broken)
    # A copy: an entry that was taken out and put back would come last from then on.
    monkeypatch.setattr(registry, "RUNTIMES", {"cudagraph": broken, "eager": RUNTIMES["eager"]})
    served = prepare(network, "fp32", "cpu")
    assert served.name == "eager"
    assert "(not cudagraph: " in served.words
    assert words in served.words
    with pytest.raises(ExitbenchError, match="cudagraph"):
        prepare(network, "fp32", "cpu", runtime="cudagraph")


def test_the_fake_finds_a_state_that_was_not_copied(
    vgg: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test of the test: what a GPU would silently overwrite is overwritten here, too."""
    monkeypatch.setattr(
        Memory, "read", lambda self, exit, count: self._as_state(exit, self._views[exit])
    )
    kept = vgg.graphs.run_stretch(1, 2, pictures(4))
    before = tensors(kept)[0].clone()
    vgg.graphs.run_stretch(1, 2, pictures(4, seed=2))
    assert not torch.equal(tensors(kept)[0], before)
    assert torch.isnan(poisoned(vgg.capture)).all()


def poisoned(capture: FakeCapture) -> Tensor:
    made = capture.buffer((2, 2), torch.bfloat16)
    poison(made)
    return made

"""OpenVINO: its graphs, sizes and models, beside the behaviour tests of all runtimes."""

from __future__ import annotations

import os

import pytest
import torch
from exitbench.harness.runtime import Prepared, availability, openvino_graph, prepare
from exitbench.harness.runtime.openvino_graph import OpenVinoNetwork
from exitbench.harness.runtime.openvino_models import PATIENCE, SIZES, Room, slices
from exitbench.models.blocks import State, main_path
from exitbench.models.network import ExitNetwork
from exitbench.models.registry import ModelArguments, build
from torch import Tensor

pytest.importorskip("openvino", reason="pip install 'exitbench[openvino]'")

pytestmark = pytest.mark.usefixtures("one_thread")
EXITS = {"vgg19": (1, 3, 5, 20), "resnet34": (1, 2, 7, 32)}
PRECISIONS = [
    pytest.param(name, marks=[] if reason is None else pytest.mark.skip(reason=reason))
    for name in openvino_graph.PRECISIONS
    for reason in (availability(name, "cpu", "openvino"),)
]
every_precision = pytest.mark.parametrize("precision", PRECISIONS)
both = pytest.mark.parametrize("model", EXITS)


def network(model: str, exits: tuple[int, ...] | None = None) -> ExitNetwork:
    """A small network whose activations are in a sound range."""
    torch.manual_seed(0)
    made = build(model, ModelArguments(width=0.125, exits=exits or EXITS[model]))
    for module in made.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        made.run_backbone(pictures(32))
    return made.eval()


def pictures(count: int) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def made(
    model: str, precision: str, exits: tuple[int, ...] | None = None
) -> OpenVinoNetwork:
    found = prepare(network(model, exits), precision, "cpu", pictures(32), runtime="openvino")
    assert isinstance(found, OpenVinoNetwork)
    return found


def chain(prepared: Prepared, state: State) -> State:
    for number in range(1, prepared.num_exits + 2):
        state = prepared.run_segment(number, state)
    return state


@both
@every_precision
def test_the_whole_network_as_one_model_is_the_chain_of_its_segments(
    model: str, precision: str
) -> None:
    prepared, images = made(model, precision), pictures(21)
    whole = prepared.run_stretch(1, prepared.num_exits + 1, images)
    parts = main_path(chain(prepared, images))
    assert isinstance(whole, Tensor)
    assert whole.dtype == parts.dtype
    if precision == "int8":
        assert torch.equal(whole, parts)
    else:
        torch.testing.assert_close(whole, parts, rtol=2e-2, atol=2e-2)


@both
@every_precision
def test_states_stay_as_they_are_whatever_runs_next(model: str, precision: str) -> None:
    prepared, images = made(model, precision), pictures(5)
    states: list[State] = []
    state: State = images
    for number in range(1, prepared.num_exits + 2):
        state = prepared.run_segment(number, state)
        states.append(state)
    before = [[each.clone() for each in tensors(state)] for state in states]
    for other in (pictures(5) * 3, pictures(7), images):
        chain(prepared, other)
        prepared.run_stretch(1, prepared.num_exits + 1, other)
    for state, copies in zip(states, before, strict=True):
        for now, then in zip(tensors(state), copies, strict=True):
            assert torch.equal(now, then)


def tensors(state: State) -> tuple[Tensor, ...]:
    return state if isinstance(state, tuple) else (state,)


@every_precision
def test_a_shortcut_is_handed_on_and_not_copied(precision: str) -> None:
    # Exit 2 is at the end of the first block, exit 3 in the middle of the second.
    prepared, images = made("resnet34", precision, (2, 3)), pictures(3)
    whole = prepared.run_segment(1, images)
    assert isinstance(whole, Tensor)
    half = prepared.run_stretch(2, 2, whole)
    assert isinstance(half, tuple)
    types = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.uint8}
    assert {each.dtype for each in half} == {types[precision]}
    assert half[1].data_ptr() == whole.data_ptr()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="this process may use one CPU")
def test_models_run_on_as_many_threads_as_torch_had_when_it_was_prepared() -> None:
    torch.set_num_threads(2)
    prepared = made("vgg19", "fp32")
    torch.set_num_threads(1)
    for size in (1, 4):  # one compiled before the change, one after
        compiled = prepared.stretches.segment(2, size).compiled
        assert compiled.get_property("INFERENCE_NUM_THREADS") == 2
    assert "2 threads" in prepared.words


def test_it_runs_only_where_it_is_asked_for() -> None:
    assert prepare(network("vgg19"), "fp32", "cpu").name != "openvino"


def test_int8_that_would_not_run_on_integers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := availability("int8", "cpu", "openvino"):
        pytest.skip(reason)
    monkeypatch.setattr(
        openvino_graph, "_text", lambda node, key: "Convolution" if key == "layerType" else "f32"
    )
    with pytest.raises(Exception, match=r"would run \d+ of \d+ int8 convolutions in f32"):
        made("vgg19", "int8")


@pytest.mark.parametrize("count", [0, 1, 3, 5, 64, 67, 129, 256])
def test_slices_add_up_and_are_few(count: int) -> None:
    found = slices(count)
    assert sum(found) == count
    assert set(found) <= set(SIZES)
    assert found == sorted(found, reverse=True)
    assert all(found.count(size) < 4 for size in SIZES[1:])


def test_an_empty_batch_gives_an_empty_state() -> None:
    prepared = made("vgg19", "fp32")
    assert main_path(prepared.run_stretch(1, 2, pictures(0))).shape[0] == 0


class Made:
    """Counts what is made."""

    def __init__(self) -> None:
        self.keys: list[tuple[int, int, int]] = []

    def ask(self, room: Room[str], first: int, size: float = 1.0) -> str | None:
        key = (first, first + 1, 1)

        def make() -> str:
            self.keys.append(key)
            return f"model {first}"

        return room.get(key, size, make)


def test_room_is_not_exceeded_and_what_takes_turns_is_not_made_again_and_again() -> None:
    room, made_ = Room[str](2.0), Made()
    for _ in range(5 * PATIENCE):
        found = [made_.ask(room, number) for number in (1, 2, 3)]
        assert found == ["model 1", "model 2", None]
    assert len(made_.keys) == 2


def test_what_lies_idle_gives_its_place_to_what_is_asked_for() -> None:
    room, made_ = Room[str](2.0), Made()
    for number in (1, 2, 1):
        assert made_.ask(room, number)
    asked = [made_.ask(room, 3) for _ in range(PATIENCE)]
    assert asked == [None] * (PATIENCE - 1) + ["model 3"]
    assert made_.ask(room, 1) == "model 1"
    assert made_.keys == [(1, 2, 1), (2, 3, 1), (3, 4, 1)], "2 lay idle for longest"
    assert made_.ask(room, 4, size=3.0) is None, "larger than the room"


def test_a_stretch_without_room_runs_segment_by_segment(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared, images = made("vgg19", "fp32"), pictures(4)
    wanted = prepared.run_stretch(2, 4, prepared.run_segment(1, images))
    monkeypatch.setattr(prepared.stretches, "_longer", Room(0.0))
    found = prepared.run_stretch(2, 4, prepared.run_segment(1, images))
    torch.testing.assert_close(main_path(found), main_path(wanted))

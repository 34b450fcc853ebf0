"""Convolutions by Winograd's way: exactness, sub-batches, where it is taken, faults."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import pytest
import torch
from exitbench.harness.errors import ExitbenchError
from exitbench.harness.runtime import onednn_float, prepare, winograd
from exitbench.harness.runtime.plan import Convolution
from exitbench.harness.runtime.winograd import (
    SEVERAL,
    Allowance,
    Winograd,
    check_winograd,
    pays,
    transform_weight,
)
from exitbench.models.network import ExitNetwork
from exitbench.models.registry import ModelArguments, build
from torch import Tensor
from torch.nn import functional

REASON = onednn_float.unavailable("fp32", torch.device("cpu"))
needs_onednn = pytest.mark.skipif(REASON is not None, reason=str(REASON))


def convolution(outputs: int, inputs: int, side: int, **changes: Any) -> Convolution:
    generator = torch.Generator().manual_seed(outputs + inputs)
    weight = torch.randn(outputs, inputs, 3, 3, generator=generator)
    bias = torch.randn(outputs, generator=generator)
    return dataclasses.replace(Convolution(weight, bias, (1, 1), (1, 1), side), **changes)


def maps(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator).contiguous(memory_format=torch.channels_last)


def operator(conv: Convolution, images: int | None = None) -> Winograd:
    operators = onednn_float.find_operators()
    return Winograd(conv, operators.prepack, operators.conv, images)


def exact(conv: Convolution, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
    y = functional.conv2d(x.double(), conv.weight.double(), conv.bias.double(), padding=1)
    return (y if shortcut is None else y + shortcut).relu()


def relative_error(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).norm() / wanted.norm()).item()


@needs_onednn
@pytest.mark.parametrize(("inputs", "outputs", "side"), [(64, 128, 16), (128, 128, 8), (16, 48, 2)])
@pytest.mark.parametrize("rows", [1, 2, 3, 7])
def test_it_is_the_convolution(inputs: int, outputs: int, side: int, rows: int) -> None:
    conv, x = convolution(outputs, inputs, side), maps(rows, inputs, side, side)
    shortcut = maps(rows, outputs, side, side)
    before = x.clone(), shortcut.clone()
    with torch.inference_mode():
        winograd_way = operator(conv, images=3)  # so that 7 rows are 3, 3 and 1
        plain, added = winograd_way(x), winograd_way(x, shortcut)
    # Sums of up to 1152 products in float32, in another order: 3e-7 at most was seen.
    assert relative_error(plain, exact(conv, x)) < 1e-6
    assert relative_error(added, exact(conv, x, shortcut)) < 1e-6
    assert plain.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(x, before[0])
    assert torch.equal(shortcut, before[1])


@needs_onednn
def test_no_images_give_no_maps() -> None:
    with torch.inference_mode():
        assert operator(convolution(16, 16, 8))(maps(0, 16, 8, 8)).shape == (0, 16, 8, 8)


@needs_onednn
def test_layers_that_share_scratch_memory_do_not_disturb_each_other() -> None:
    small, large = convolution(32, 32, 8), convolution(64, 32, 16)
    x, wide = maps(2, 32, 8, 8), maps(5, 32, 16, 16)
    with torch.inference_mode():
        one, other = operator(small), operator(large)
        first = one(x)
        kept = first.clone()
        assert relative_error(other(wide), exact(large, wide)) < 1e-6
        assert torch.equal(first, kept), "what was returned is no scratch memory"
        assert torch.equal(one(x), kept)


@needs_onednn
def test_threads_have_scratch_memory_of_their_own() -> None:
    conv = convolution(64, 64, 16)
    inputs = [maps(2, 64, 16, 16) * (1 + i) for i in range(4)]
    wanted = [exact(conv, x) for x in inputs]
    run = operator(conv)
    worst: list[float] = []

    def repeat(i: int) -> None:
        with torch.inference_mode():
            worst.append(max(relative_error(run(inputs[i]), wanted[i]) for _ in range(30)))

    threads = [threading.Thread(target=repeat, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(worst) == 4
    assert max(worst) < 1e-6


def test_transformed_weights_are_those_of_the_paper() -> None:
    delta = torch.zeros(1, 1, 3, 3)
    delta[0, 0, 1, 1] = 1.0  # the identity: G's middle column, once down and once across
    column = torch.tensor([0.0, 0.0, 0.5, -0.5])
    assert torch.equal(transform_weight(delta).view(4, 4), torch.outer(column, column))


@pytest.mark.parametrize(
    ("conv", "taken"),
    [
        (convolution(128, 128, 16), True),
        (convolution(256, 256, 8), True),
        (convolution(128, 64, 16), True),
        (convolution(128, 128, 7), False),
        (convolution(128, 128, 4), False),
        (convolution(64, 64, 32), False),
        (convolution(512, 256, 8), False),
        (convolution(128, 128, 16, stride=(2, 2)), False),
        (convolution(128, 128, 16, padding=(0, 0)), False),
        (convolution(128, 128, 16, weight=torch.zeros(128, 128, 1, 1)), False),
    ],
)
def test_the_rule_says_where_it_is_taken(conv: Convolution, taken: bool) -> None:
    assert pays(conv) is taken


def test_room_for_transformed_weights_is_bounded() -> None:
    conv = convolution(4, 4, 8)  # 256 values when transformed
    allowance = Allowance(1600)  # 35% of them: 560
    assert [allowance.take(conv) for _ in range(3)] == [True, True, False]


def half_width(model: str) -> ExitNetwork:
    """A network with layers that go this way from some batch size on, and others that never do."""
    torch.manual_seed(0)
    network = build(model, ModelArguments(width=0.5, exits=(15,), classes=4)).train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network.run_backbone(maps(8, 3, 32, 32))
    return network.eval()


@needs_onednn
@pytest.mark.parametrize("model", ["vgg19", "resnet34"])
def test_a_network_gives_the_same_at_batch_sizes_that_go_different_ways(
    monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    taken: list[int] = []
    run = Winograd.__call__

    def counted(self: Winograd, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        taken.append(len(x))
        return run(self, x, shortcut)

    monkeypatch.setattr(Winograd, "__call__", counted)
    network, images = half_width(model), maps(9, 3, 32, 32)
    prepared = prepare(network, runtime="onednn")
    assert "by Winograd's way" in prepared.words
    wanted = prepare(network, runtime="eager")
    expected = wanted.run_classifier(wanted.run_stretch(1, 2, images))
    for rows in (1, 2, SEVERAL, 9):
        taken.clear()
        parts = [
            prepared.run_classifier(prepared.run_stretch(1, 2, part)) for part in images.split(rows)
        ]
        assert (rows in taken) == (rows >= SEVERAL)
        # As between eager and oneDNN: float32 rounding through 35 layers.
        assert relative_error(torch.cat(parts), expected) < 1e-4


@needs_onednn
@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda y: y * 1.001, "it differs from torch's convolution"),
        (lambda y: (_ for _ in ()).throw(RuntimeError("no such primitive\nline 2")), "it fails"),
    ],
)
def test_where_it_is_wrong_the_plain_convolution_serves(
    monkeypatch: pytest.MonkeyPatch, answer: Any, words: str
) -> None:
    real = onednn_float.find_operators()

    def grouped_is_broken(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        y = real.conv(x, weight, *rest)
        return answer(y) if rest[4] == winograd.POSITIONS else y  # type: ignore[no-any-return]

    broken = dataclasses.replace(real, conv=grouped_is_broken)
    with pytest.raises(ExitbenchError, match=words):
        check_winograd(broken.prepack, broken.conv)
    monkeypatch.setattr(onednn_float, "find_operators", lambda: broken)
    prepared = prepare(half_width("resnet34"))
    assert prepared.name == "onednn"
    assert f"not by Winograd's way: {words}" in prepared.words
    prepared.run_stretch(1, 2, maps(SEVERAL, 3, 32, 32))


@needs_onednn
def test_a_convolution_that_is_wrong_for_one_image_makes_eager_serve(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The way of batches is right, and only they would be looked at."""
    real = onednn_float.find_operators()
    broken = dataclasses.replace(
        real, conv=lambda x, *rest: real.conv(x, *rest) * (1.01 if len(x) == 1 else 1.0)
    )
    monkeypatch.setattr(onednn_float, "find_operators", lambda: broken)
    prepared = prepare(half_width("vgg19"))
    assert prepared.name == "eager"
    assert "unit 'conv1_1' differs from eager" in prepared.words


@needs_onednn
def test_one_layer_that_is_wrong_makes_eager_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Winograd.__call__

    def wrong_in_one(self: Winograd, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        # The layer from 64 to 128 channels, which a single image does not go through.
        return run(self, x, shortcut) * (1.01 if x.shape[1:] == (64, 8, 8) else 1.0)

    monkeypatch.setattr(Winograd, "__call__", wrong_in_one)
    prepared = prepare(half_width("vgg19"))
    assert prepared.name == "eager"
    assert "unit 'conv3_1' differs from eager" in prepared.words


@needs_onednn
def test_memory_that_was_too_small_is_not_kept_beside_the_larger() -> None:
    """In a thread of its own, whose memory starts empty."""
    seen: list[tuple[set[int], set[int]]] = []

    def work() -> None:
        scratch = winograd._scratch
        # More outputs, a larger map, and then one and more images of the smaller one.
        for outputs, side, rows in ((32, 4, 1), (64, 4, 1), (32, 8, 2), (32, 4, 1), (32, 4, 2)):
            with torch.inference_mode():
                operator(convolution(outputs, 16, side), images=rows)(maps(rows, 16, side, side))
            found = scratch.views.values()
            seen.append(
                (
                    {_memory(views.tiles) for views in found} ^ {_memory(scratch.shared)},
                    {_memory(views.inside) for views in found}
                    - {_memory(padded) for padded in scratch.padded.values()},
                )
            )

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(set(), set())] * 5


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()

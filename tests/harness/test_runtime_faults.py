"""Runtimes whose operators are missing, fail or compute wrongly: found before they serve."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from exitbench.harness.errors import ExitbenchError
from exitbench.harness.runtime import availability, onednn_float, onednn_int8, prepare
from exitbench.models.network import ExitNetwork
from exitbench.models.registry import ModelArguments, build
from torch import Tensor


def noise(count: int) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def untrained(model: str) -> ExitNetwork:
    """A network whose batch norm has seen one batch, so that activations have a sound range."""
    torch.manual_seed(0)
    network = build(model, ModelArguments(width=0.125, exits=(1,))).train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network.run_backbone(noise(16))
    return network.eval()


def broken(monkeypatch: pytest.MonkeyPatch, **operators: Any) -> None:
    """Let torch answer with other operators than its own."""
    real = onednn_int8.find_operators()
    monkeypatch.setattr(
        onednn_int8, "find_operators", lambda: dataclasses.replace(real, **operators)
    )


@pytest.mark.parametrize(
    ("which", "words"),
    [("conv", "int8 convolution differs"), ("conv_sum", "int8 convolution with sum differs")],
)
def test_an_operator_that_computes_wrongly_is_found(
    monkeypatch: pytest.MonkeyPatch, which: str, words: str
) -> None:
    if availability("int8"):
        pytest.skip("no int8 here")
    real = getattr(onednn_int8.find_operators(), which)
    broken(monkeypatch, **{which: lambda *arguments: real(*arguments) // 2})
    reason = availability("int8")
    assert reason is not None
    assert words in reason
    assert "Use fp32 or bf16" in reason


def test_an_operator_that_fails_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    if availability("int8"):
        pytest.skip("no int8 here")

    def fails(*arguments: Any) -> Tensor:
        raise RuntimeError("could not create a primitive\nat some line")

    broken(monkeypatch, conv=fails)
    reason = availability("int8")
    assert reason is not None
    assert "fails on this machine (could not create a primitive)" in reason


def test_an_operator_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn_int8, "_PREPACK", "weight something_else")
    reason = onednn_int8.unavailable("int8", torch.device("cpu"))
    assert reason is not None
    assert "onednn::qconv_prepack" in reason
    assert "Use fp32 or bf16" in reason


def test_an_operator_that_is_wrong_in_one_layer_is_found_by_the_self_test(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if availability("int8"):
        pytest.skip("no int8 here")
    real = onednn_int8.find_operators().conv

    def wrong_on_small_maps(x: Tensor, *arguments: Any) -> Tensor:
        y = real(x, *arguments)
        return y.add_(3) if y.shape[-1] == 4 else y

    broken(monkeypatch, conv=wrong_on_small_maps)
    assert availability("int8") is None, "the small check does not see it"
    with pytest.raises(ExitbenchError, match=r"int8 unit 'conv4_1' differs .* steps"):
        prepare(untrained("vgg19"), "int8", "cpu", noise(4))


def test_a_network_that_does_not_survive_8_bits_is_refused() -> None:
    if availability("int8"):
        pytest.skip("no int8 here")
    # Three pixels are so bright that all others fall on one step, and most images become blank.
    images = noise(4)
    images[0, :, 0, 0] = 1e5
    with pytest.raises(ExitbenchError, match="does not survive 8 bits"):
        prepare(untrained("vgg19"), "int8", "cpu", images)


def test_a_prepacked_operator_that_is_wrong_makes_eager_serve(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if onednn_float.unavailable("fp32", torch.device("cpu")):
        pytest.skip("no oneDNN here")
    assert prepare(untrained("resnet34")).name == "onednn"
    real = onednn_float.find_operators()
    wrong = dataclasses.replace(real, conv_add=lambda *arguments: real.conv_add(*arguments) * 1.01)
    monkeypatch.setattr(onednn_float, "find_operators", lambda: wrong)
    prepared = prepare(untrained("resnet34"))
    assert prepared.name == "eager"
    assert "not onednn: unit 'stage1_block1_end' differs from eager" in prepared.words
    with pytest.raises(ExitbenchError, match="differs from eager"):
        prepare(untrained("resnet34"), runtime="onednn")


def test_a_prepacked_operator_that_is_missing_makes_eager_serve(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(onednn_float, "_CONV", "X something_else")
    prepared = prepare(untrained("vgg19"))
    assert prepared.name == "eager"
    assert "mkldnn::_convolution_pointwise.default" in prepared.words

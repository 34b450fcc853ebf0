"""Weights that nobody needs any more are given back; what was prepared of them runs on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from exitbench.harness import memory
from exitbench.harness.runtime.registry import availability, prepare
from exitbench.harness.subject import Subject
from exitbench.models.network import ExitNetwork


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("runtime", ["eager", "onednn"])
def test_shed_weights_are_gone_and_what_was_prepared_runs_on(
    tiny_vgg: ExitNetwork, precision: str, runtime: str
) -> None:
    if (reason := availability(precision, runtime=runtime)) is not None:
        pytest.skip(reason)
    images = torch.randn(5, *tiny_vgg.input_shape, generator=torch.Generator().manual_seed(0))
    prepared = prepare(tiny_vgg, precision, calibration_images=images, runtime=runtime)

    def answers() -> list[torch.Tensor]:
        state, found = images, []
        for number in range(1, prepared.num_exits + 1):
            state = prepared.run_segment(number, state)
            found.append(prepared.run_head(number, state))
        state = prepared.run_segment(prepared.num_exits + 1, state)
        return [*found, prepared.run_classifier(state)]

    before, shapes = answers(), [p.shape for p in tiny_vgg.parameters()]
    subject: Any = SimpleNamespace(network=tiny_vgg)
    Subject.shed_weights(subject)
    assert all(p.is_meta for p in (*tiny_vgg.parameters(), *tiny_vgg.buffers()))
    assert [p.shape for p in tiny_vgg.parameters()] == shapes
    assert all(torch.equal(a, b) for a, b in zip(before, answers(), strict=True))


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_giving_memory_back_asks_for_nothing_that_is_not_there(
    platform: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory.sys, "platform", platform)
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: SimpleNamespace())
    memory.release()

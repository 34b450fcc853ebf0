"""What the tests of ``cudagraph`` share, with a fake and on a GPU: walks and their twins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from exitbench.harness.answers import LogitAnswers, Question
from exitbench.harness.evidence import FloatArray
from exitbench.harness.policies import EveryExit, Full, Policy, Predictive
from exitbench.harness.predictors import ConvolutionPredictor, convolution_stack
from exitbench.harness.runtime import Prepared
from exitbench.harness.runtime.cudagraph_memory import tensors
from exitbench.harness.scheduler import Outcome, walk
from exitbench.harness.sources import LiveSource
from exitbench.models.blocks import State
from exitbench.models.network import ExitNetwork
from torch import Tensor

CLASSES = 5
EXITS = {"vgg19": (1, 3, 8, 12, 20), "resnet34": (1, 6, 7, 15, 31)}
MODELS = tuple(EXITS)
SIZES = (1, 3, 8, 33)
POLICIES = ("predictive", "every-exit", "full")

MakeNetwork = Callable[..., ExitNetwork]


def network_of(make_network: MakeNetwork, model: str, **arguments: object) -> ExitNetwork:
    """A small network with exits in the middle and at the end of blocks."""
    return make_network(model, **{"classes": CLASSES, "exits": EXITS[model], **arguments})


def pictures(count: int, seed: int = 1) -> Tensor:
    """Noise (count, 3, 32, 32), each image with a strength of its own."""
    generator = torch.Generator().manual_seed(seed)
    strength = torch.empty(count, 1, 1, 1).uniform_(0.2, 3.0, generator=generator)
    return strength * torch.randn(count, 3, 32, 32, generator=generator)


def stack() -> Tensor:
    """The matrices of the convolution predictor."""
    return convolution_stack(CLASSES, horizon=3)


@dataclass(frozen=True)
class Walker:
    """Walks batches through a prepared network under policies that fit its confidences."""

    prepared: Prepared
    limits: FloatArray
    stack: Tensor

    @classmethod
    def of(cls, prepared: Prepared, limits_by: Prepared) -> Walker:
        """Limits are fitted to what ``limits_by`` answers."""
        return cls(prepared, limits_of(limits_by), stack().to(prepared.device))

    def policy(self, name: str) -> Policy:
        if name == "full":
            return Full(self.prepared.num_exits)
        if name == "every-exit":
            return EveryExit(self.limits)
        return Predictive(self.limits, 1, ConvolutionPredictor(self.limits))

    def source(self, images: Tensor, first: int = 0) -> LiveSource:
        positions = np.arange(first, first + len(images))
        images = images.to(self.prepared.device)
        exits = self.prepared.num_exits
        return LiveSource(self.prepared, exits, images, positions, "softmax", self.stack)

    def walk(self, name: str, images: Tensor) -> Outcome:
        return walk(self.policy(name), self.source(images))


def limits_of(prepared: Prepared, images: int = 48) -> FloatArray:
    """For each exit a confidence that about half of some images exceed, far from any of them."""
    state: State = pictures(images, seed=7).to(prepared.device)
    limits = []
    for exit in range(1, prepared.num_exits + 1):
        state = prepared.run_segment(exit, state)
        answers = LogitAnswers(prepared.run_head(exit, state), Question())
        values = np.sort(answers.confidence)[images // 3 : 2 * images // 3]
        place = int(np.diff(values).argmax())
        limits.append((values[place] + values[place + 1]) / 2)
    return np.array(limits, dtype=np.float32)


def same(found: Outcome, wanted: Outcome) -> bool:
    """Whether every sample left at the same exit with the same answer, after the same checks."""
    return all(
        np.array_equal(getattr(found, name), getattr(wanted, name))
        for name in ("exit_at", "label", "checks", "forecasts")
    )


def agreement(found: Outcome, wanted: Outcome) -> float:
    """Share of samples with the same exit and answer."""
    return float(((found.exit_at == wanted.exit_at) & (found.label == wanted.label)).mean())


def close(found: State, wanted: State, bound: float = 1e-4) -> None:
    """Require the same shapes and types, and the relative error ``bound`` (L2 norm)."""
    for mine, other in zip(tensors(found), tensors(wanted), strict=True):
        assert (mine.shape, mine.dtype) == (other.shape, other.dtype)
        mine, other = mine.float(), other.float()
        assert (mine - other).norm().item() <= bound * other.norm().item() + 1e-6

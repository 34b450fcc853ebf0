"""What a training fits, with which optimiser, and how its learning rate goes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..models import ExitNetwork
from ..models.blocks import State

# Shares of the steps and of the peak learning rate; the values usual for one-cycle schedules.
WARM_UP_SHARE = 0.25
START_FACTOR = 1 / 25
END_FACTOR = 1e-4


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        mode: a key of ``MODES``.
        optimizer: a key of ``OPTIMIZERS``.
        epochs: passes over the training split.
        batch_size: images per step, at least 2.
        learning_rate: peak of the one-cycle schedule.
        weight_decay: of the convolution and linear weights; none on biases and batch norm.
        patience: epochs without a better validation accuracy before stopping; None never stops.
        seed: of the order of the images and the augmentation.
        mixed_precision: compute in bfloat16 under autocast.
    """

    mode: str
    optimizer: str
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.0
    patience: int | None = None
    seed: int = 0
    mixed_precision: bool = False


@dataclass(frozen=True)
class Mode:
    """What a training mode fits.

    Attributes:
        logits: the logits whose losses count, from a batch of images.
        parameters: the parameters that are fitted.
        prepare: puts the network into the right train or eval mode.
        mean: the loss is the mean over the logits; else their sum.
        heads: whether the heads are fitted, so that watching them says something.
    """

    logits: Callable[[ExitNetwork, Tensor], list[Tensor]]
    parameters: Callable[[ExitNetwork], Iterator[nn.Parameter]]
    prepare: Callable[[ExitNetwork], object]
    mean: bool
    heads: bool


def _backbone_logits(network: ExitNetwork, images: Tensor) -> list[Tensor]:
    return [network.run_backbone(images)]


def _head_logits(network: ExitNetwork, images: Tensor) -> list[Tensor]:
    logits: list[Tensor] = []
    state: State = images
    for number in range(1, network.num_exits + 1):
        with torch.no_grad():
            state = network.run_segment(number, state)
        logits.append(network.run_head(number, state))
    return logits


def _freeze_backbone(network: ExitNetwork) -> None:
    # Eval mode keeps the batch-norm running statistics of the backbone as they are.
    network.eval()
    network.heads.train()


_BACKBONE = Mode(
    logits=_backbone_logits,
    parameters=lambda network: network.backbone_parameters(),
    prepare=lambda network: network.train(),
    mean=True,
    heads=False,
)
MODES: dict[str, Mode] = {
    "normal": _BACKBONE,
    "original": _BACKBONE,
    # Heads share no weight unless asked to, so the sum gives each the gradient of its own loss.
    "exits": Mode(
        logits=_head_logits,
        parameters=lambda network: network.head_parameters(),
        prepare=_freeze_backbone,
        mean=False,
        heads=True,
    ),
    "joint": Mode(
        logits=lambda network, images: network(images),
        parameters=lambda network: network.parameters(),
        prepare=lambda network: network.train(),
        mean=True,
        heads=True,
    ),
}

_Groups = list[dict[str, Any]]
OPTIMIZERS: dict[str, Callable[[_Groups, float], torch.optim.Optimizer]] = {
    "adam": lambda groups, rate: torch.optim.AdamW(groups, lr=rate),
    "sgd": lambda groups, rate: torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True),
}
LEARNING_RATES = {"adam": 1e-3, "sgd": 0.1}
HEAD_LEARNING_RATES = {"adam": 2e-2, "sgd": 0.1}  # a few small layers on a fixed backbone


def default_learning_rate(mode: str, optimizer: str) -> float:
    """The peak learning rate where none is given."""
    return (HEAD_LEARNING_RATES if mode == "exits" else LEARNING_RATES)[optimizer]


def make_optimizer(recipe: Recipe, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The recipe's optimiser, decaying matrices and kernels but neither biases nor batch norm."""
    parameters = list(parameters)
    groups: _Groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return OPTIMIZERS[recipe.optimizer](groups, recipe.learning_rate)


def one_cycle(step: int, steps: int, peak: float) -> float:
    """The learning rate of ``step`` (0-based) of ``steps``: up to ``peak``, then down, by cosines.

    Source: Smith and Topin, "Super-Convergence: Very Fast Training of Neural Networks Using Large
    Learning Rates", 2018; cosine instead of linear.
    """
    warm_up = max(1, round(WARM_UP_SHARE * steps))
    if step < warm_up:
        low, share = START_FACTOR, 1 - step / warm_up
    else:
        low, share = END_FACTOR, (step - warm_up) / max(1, steps - 1 - warm_up)
    return peak * (low + (1 - low) * (1 + math.cos(math.pi * share)) / 2)


def steps_per_epoch(images: int, batch_size: int) -> int:
    """How many batches one epoch has; a last one of a single image is left out.

    Batch norm has no statistics over one value per channel.
    """
    whole, rest = divmod(images, batch_size)
    return whole + (rest > 1)

"""One training: epochs, validation, early stopping, and going on after a kill."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..models import ExitNetwork
from .data import Augmentation, Split, batches
from .errors import ExitbenchError
from .training_modes import MODES, Mode, Recipe, make_optimizer, one_cycle, steps_per_epoch
from .training_state import (
    TrainingState,
    copy_tensors,
    load_state,
    restore_tensors,
    save_state,
)

Say = Callable[[str], None]
PROGRESS_S = 10.0


@dataclass(frozen=True)
class Material:
    """The images a training sees: never the test split.

    Attributes:
        train: what the weights are fitted to.
        validation: what the training is watched on; None if nothing was held out.
        normalisation: per-channel ``mean`` and ``std``.
        augmentation: of the training images only; None for none.
    """

    train: Split
    validation: Split | None
    normalisation: dict[str, list[float]]
    augmentation: Augmentation | None = None


@dataclass(frozen=True)
class _Training:
    network: ExitNetwork
    material: Material
    recipe: Recipe
    optimizer: torch.optim.Optimizer
    device: torch.device
    say: Say

    @property
    def mode(self) -> Mode:
        return MODES[self.recipe.mode]


def train(
    network: ExitNetwork,
    material: Material,
    recipe: Recipe,
    *,
    device: torch.device | str = "cpu",
    say: Say,
    state_file: Path | None = None,
    settings: dict[str, Any] | None = None,
) -> TrainingState:
    """Train ``network`` in place and give its history, one record per epoch.

    A record holds epoch, loss, learning_rate, seconds and validation (accuracy 0..1 per exit, None
    for heads that the mode does not train; the whole is None without a validation split). With a
    patience the network ends with its best weights, else with its last. The same recipe on the
    same CPU with as many threads gives the same weights, interrupted or not.

    Args:
        network: moved to ``device``; left in eval mode.
        material: the images.
        recipe: how to train.
        device: where to train.
        say: takes one line of progress.
        state_file: where to keep the state after each epoch and to resume from if it is there.
        settings: what must be equal for a state to be gone on from.

    Raises:
        ExitbenchError: the training diverged, or the state file is of another training.
    """
    network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = make_optimizer(recipe, MODES[recipe.mode].parameters(network))
    training = _Training(network, material, recipe, optimizer, torch.device(device), say)
    state = TrainingState()
    if state_file is not None and state_file.is_file():
        state = load_state(state_file, settings or {}, network, optimizer)
        say(f"going on after epoch {len(state.history)} of {recipe.epochs}, from {state_file}")
    while len(state.history) < recipe.epochs and not _stalled(state, recipe):
        record = _run_epoch(training, len(state.history) + 1)
        state.history.append(record)
        _keep_best(state, network, recipe)
        if state_file is not None:
            save_state(state_file, settings or {}, state, network, optimizer)
        say(_epoch_line(record, recipe))
    if state.best_weights:
        restore_tensors(network, state.best_weights)
        say(f"kept the weights of epoch {state.best_epoch}, the best on the validation images")
    network.eval()
    return state


@torch.no_grad()
def evaluate(
    network: ExitNetwork,
    split: Split,
    normalisation: dict[str, list[float]],
    device: torch.device | str = "cpu",
    batch_size: int = 256,
    *,
    mixed_precision: bool = False,
    heads: bool = True,
) -> list[float]:
    """Accuracy (0..1) at every exit in depth order, then at the classifier.

    Args:
        network: on ``device`` already; put into eval mode.
        split: the images, taken as they are: no augmentation.
        normalisation: per-channel ``mean`` and ``std``.
        device: where the network is.
        batch_size: images per forward pass.
        mixed_precision: compute in bfloat16 under autocast.
        heads: run the heads; else the list holds the classifier's accuracy only.

    Raises:
        ExitbenchError: the split is empty, or a logit is not finite.
    """
    if len(split.labels) == 0:
        raise ExitbenchError(f"the split {split.name!r} has no images to evaluate on")
    network.eval()
    hits = torch.zeros(network.num_exits + 1 if heads else 1, dtype=torch.int64, device=device)
    for images, labels, _ in batches(split, batch_size, normalisation, device):
        with _autocast(torch.device(device), mixed_precision):
            outputs = network(images) if heads else [network.run_backbone(images)]
        logits = torch.stack([output.float() for output in outputs])
        if not bool(torch.isfinite(logits).all()):
            raise ExitbenchError(
                f"the network gives logits that are not finite on the split {split.name!r}, so its "
                "weights are of no use. Train again with a lower learning rate and --no-resume."
            )
        hits += (logits.argmax(2) == labels).sum(1)
    return [float(count) / len(split.labels) for count in hits.tolist()]


def epoch_seed(seed: int, epoch: int) -> int:
    """The seed of one epoch's order and augmentation, so that it can be repeated by itself."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])


def _run_epoch(training: _Training, epoch: int) -> dict[str, Any]:
    network, material = training.network, training.material
    started = time.monotonic()
    training.mode.prepare(network)
    loss = _fit_once(training, epoch)
    validation: list[float | None] | None = None
    if material.validation is not None:
        measured = evaluate(
            network,
            material.validation,
            material.normalisation,
            training.device,
            training.recipe.batch_size,
            mixed_precision=training.recipe.mixed_precision,
            heads=training.mode.heads,
        )
        validation = [*[None] * (network.num_exits + 1 - len(measured)), *measured]
    return {
        "epoch": epoch,
        "loss": loss,
        "learning_rate": training.optimizer.param_groups[0]["lr"],
        "seconds": round(time.monotonic() - started, 3),
        "validation": validation,
    }


def _fit_once(training: _Training, epoch: int) -> float:
    """The mean loss of one pass over the training images."""
    recipe, material = training.recipe, training.material
    steps = steps_per_epoch(len(material.train.labels), recipe.batch_size)
    total = torch.zeros((), device=training.device)
    started = said = time.monotonic()
    stream = batches(
        material.train,
        recipe.batch_size,
        material.normalisation,
        training.device,
        shuffle_seed=epoch_seed(recipe.seed, epoch),
        augmentation=material.augmentation,
    )
    for step, (images, labels, _) in zip(range(steps), stream, strict=False):
        position = (epoch - 1) * steps + step
        for group in training.optimizer.param_groups:
            group["lr"] = one_cycle(position, recipe.epochs * steps, recipe.learning_rate)
        total += _step(training, images, labels)
        now = time.monotonic()
        if now - said >= PROGRESS_S:
            said = now
            # Only here is the device waited for: each look at the loss is a synchronisation.
            loss = _finite(total.item() / (step + 1), recipe, epoch)
            left_s = (now - started) / (step + 1) * (steps - step - 1)
            training.say(
                f"epoch {epoch}/{recipe.epochs}: step {step + 1}/{steps}, loss {loss:.4f}, "
                f"{now - started:.0f} s, about {left_s:.0f} s left"
            )
    _check_weights(training, epoch)
    return _finite(total.item() / steps, recipe, epoch)


def _step(training: _Training, images: Tensor, labels: Tensor) -> Tensor:
    with _autocast(training.device, training.recipe.mixed_precision):
        logits = training.mode.logits(training.network, images)
    losses = torch.stack([functional.cross_entropy(z.float(), labels) for z in logits])
    loss = losses.mean() if training.mode.mean else losses.sum()
    training.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    training.optimizer.step()
    return loss.detach()


def _autocast(device: torch.device, enabled: bool) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def _finite(loss: float, recipe: Recipe, epoch: int) -> float:
    if not math.isfinite(loss):
        raise _diverged(f"the loss is {loss}", recipe, epoch)
    return loss


def _check_weights(training: _Training, epoch: int) -> None:
    """The last step of an epoch can ruin the weights without a loss that shows it."""
    for parameter in training.mode.parameters(training.network):
        if not bool(torch.isfinite(parameter).all()):
            raise _diverged("a weight is not finite", training.recipe, epoch)


def _diverged(what: str, recipe: Recipe, epoch: int) -> ExitbenchError:
    return ExitbenchError(
        f"{what} in epoch {epoch} of {recipe.epochs}: the training diverged at a peak learning "
        f"rate of {recipe.learning_rate:g}. Train again with a lower --learning-rate and "
        "--no-resume."
    )


def watched(validation: Sequence[float | None] | None) -> float | None:
    """The number that early stopping watches: the mean accuracy of what is evaluated."""
    present = [value for value in validation or [] if value is not None]
    return sum(present) / len(present) if present else None


def _keep_best(state: TrainingState, network: ExitNetwork, recipe: Recipe) -> None:
    accuracy = watched(state.history[-1]["validation"])
    if accuracy is None or (state.best_accuracy is not None and accuracy <= state.best_accuracy):
        return
    state.best_accuracy, state.best_epoch = accuracy, len(state.history)
    if recipe.patience is not None:
        state.best_weights = copy_tensors(network)


def _stalled(state: TrainingState, recipe: Recipe) -> bool:
    return recipe.patience is not None and len(state.history) - state.best_epoch >= recipe.patience


def _epoch_line(record: dict[str, Any], recipe: Recipe) -> str:
    line = (
        f"epoch {record['epoch']}/{recipe.epochs}: loss {record['loss']:.4f}, "
        f"learning rate {record['learning_rate']:.2g}, {record['seconds']:.1f} s"
    )
    if record["validation"] is None:
        return line
    return f"{line}, validation {shown(record['validation'])}"


def shown(values: Sequence[float | None]) -> str:
    """Accuracies in percent: the exits, a bar, the classifier; what was not evaluated left out."""
    percents = [None if value is None else f"{100 * value:.1f}" for value in values]
    exits = [percent for percent in percents[:-1] if percent is not None]
    return " ".join([*exits, *(["|"] if exits else []), f"{percents[-1]} %"])

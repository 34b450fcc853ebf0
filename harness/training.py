"""``exitbench train``: from a configuration to a checkpoint with its training record."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ..models import ExitNetwork, save_checkpoint
from ..models.checkpoint import read_header
from .calibration import measure_thresholds
from .configs import DataConfig, TrainConfig
from .data import Dataset, Split, batches, load_dataset, splits, subset
from .devices import apply_threads, has_fast_bf16, resolve_device
from .difficulty import read_samples
from .errors import ExitbenchError
from .files import check_writable
from .training_loop import Material, Say, evaluate, shown, train
from .training_modes import MODES, Recipe, steps_per_epoch
from .training_start import (
    Start,
    check,
    dataset_name,
    fingerprint,
    image_side,
    make_recipe,
    settled,
    start,
)
from .training_state import TrainingState, differing, state_path

__all__ = ["Material", "Recipe", "evaluate", "run_train", "train"]

EVALUATION_BATCH = 256


def run_train(config: TrainConfig, say: Say) -> None:
    """Train as ``config`` says and write the checkpoint ``config.out``.

    Does nothing if that checkpoint is there already with the same settings and ``config.resume``;
    goes on from the last complete epoch of an interrupted training of the same settings.

    Raises:
        ExitbenchError: a setting is out of range or does not fit the data or ``--init``, an
            interrupted training had other settings, or the training diverged.
    """
    check(config)
    device = resolve_device(config.device.device)
    threads = apply_threads(config.device.threads)
    dataset = load_dataset(
        dataset_name(config), config.data.data_root, image_side(config), config.data.download, say
    )
    config = settled(config, dataset, say)
    parts = _parts(config.data, dataset)
    begin = start(config, dataset)
    settings = fingerprint(config, begin, dataset, parts)
    if _is_done(config, settings, say):
        return
    check_writable(config.out)
    material = _material(config, begin, dataset, parts["train"])
    recipe = make_recipe(config, config.mixed_precision and has_fast_bf16(device))
    say(_opening(begin, dataset, material, recipe, device, threads))
    state_file = state_path(config.out)
    if not config.resume:
        state_file.unlink(missing_ok=True)
    state = train(
        begin.network,
        material,
        recipe,
        device=device,
        say=say,
        state_file=state_file,
        settings=settings,
    )
    record = _record(recipe, begin, material, state, device, threads)
    record |= _final_accuracies(begin.network, material, parts["test"], device, say)
    checkpoint = replace(
        begin.checkpoint,
        training={**record, "settings": settings},
        calibration=_calibration(begin.network, material, parts["calibration"], recipe, device),
    )
    save_checkpoint(config.out, begin.network.cpu(), checkpoint)
    state_file.unlink(missing_ok=True)
    say(f"wrote {config.out}")


def hold_out(split: Split, share: float, seed: int) -> tuple[Split, Split | None]:
    """``split`` without a validation part, and that part: ``share`` (0 to 0.5) of every class.

    A class with at least two images gives at least one. None if nothing is held out.
    """
    generator = np.random.default_rng(seed)
    held = np.zeros(len(split.labels), dtype=bool)
    for label in np.unique(split.labels) if share else []:
        members = np.flatnonzero(split.labels == label)
        count = min(len(members) - 1, max(1, round(share * len(members))))
        held[generator.permutation(members)[:count]] = True
    if not held.any():
        return split, None
    validation = replace(subset(split, np.flatnonzero(held)), name="validation")
    return subset(split, np.flatnonzero(~held)), validation


def _calibration(
    network: ExitNetwork, material: Material, part: Split, recipe: Recipe, device: torch.device
) -> dict[str, Any]:
    """The thresholds T_i in fp32 for the checkpoint's header; empty where no head was trained."""
    if not MODES[recipe.mode].heads:
        return {}
    network.eval()
    with torch.inference_mode():
        logits = (
            network(images)[:-1]
            for images, _, _ in batches(part, EVALUATION_BATCH, material.normalisation, device)
        )
        found = measure_thresholds(logits)
    return {"precision": "fp32", "samples": len(part.labels), "thresholds": found}


def _parts(data: DataConfig, dataset: Dataset) -> dict[str, Split]:
    parts = splits(dataset, data.split_seed or 0, data.calibration_samples)
    if data.subset is not None:
        test = parts["test"]
        samples = read_samples(data.subset, dataset.name, test.name, len(test.labels))
        parts["test"] = subset(test, samples.positions)
    return parts


def _is_done(config: TrainConfig, settings: dict[str, Any], say: Say) -> bool:
    """Whether ``config.out`` already holds what this training would make.

    Raises:
        ExitbenchError: the file is no checkpoint of exitbench, and so not ours to replace.
    """
    if not config.out.exists():
        return False
    training = read_header(config.out).training
    if not config.resume:
        return False
    differences = differing(training.get("settings", {}), settings)
    if differences:
        say(f"{config.out} has other settings and will be replaced: {'; '.join(differences)}")
        return False
    say(f"{config.out} is trained with these settings already; --no-resume trains it again")
    say(f"test accuracy {shown(training['test_accuracy'])}")
    return True


def _material(config: TrainConfig, begin: Start, dataset: Dataset, part: Split) -> Material:
    rest, held = hold_out(part, config.validation_share, config.data.split_seed or 0)
    if held is None and config.validation_share:
        raise ExitbenchError(
            f"the dataset {dataset.name!r} has one image per class left to train on, so none can "
            "be held out; set --validation-share 0 and no patience, or add images"
        )
    if steps_per_epoch(len(rest.labels), config.batch_size) == 0:
        raise ExitbenchError(
            f"the dataset {dataset.name!r} leaves {len(rest.labels)} images to train on after the "
            "calibration and validation parts; at least 2 are needed"
        )
    return Material(rest, held, begin.checkpoint.normalisation, dataset.augmentation)


def _opening(
    begin: Start,
    dataset: Dataset,
    material: Material,
    recipe: Recipe,
    device: torch.device,
    threads: int,
) -> str:
    held = 0 if material.validation is None else len(material.validation.labels)
    return (
        f"training {begin.checkpoint.model} x{begin.checkpoint.arguments.width:g} on "
        f"{dataset.name}, mode {recipe.mode}, {begin.network.num_exits} exits: "
        f"{len(material.train.labels)} images, {held} for validation, {recipe.epochs} epochs, "
        f"{recipe.optimizer} up to {recipe.learning_rate:g}, "
        f"{'bf16 autocast' if recipe.mixed_precision else 'fp32'} on {device}, {threads} threads"
    )


def _record(
    recipe: Recipe,
    begin: Start,
    material: Material,
    state: TrainingState,
    device: torch.device,
    threads: int,
) -> dict[str, Any]:
    """What the checkpoint keeps of the training, but for the accuracies at its end."""
    return {
        "mode": recipe.mode,
        "epochs": len(state.history),
        "kept_epoch": state.best_epoch if state.best_weights else len(state.history),
        "optimizer": recipe.optimizer,
        "learning_rate": recipe.learning_rate,
        "weight_decay": recipe.weight_decay,
        "batch_size": recipe.batch_size,
        "seed": recipe.seed,
        "mixed_precision": "bf16" if recipe.mixed_precision else None,
        "torch": torch.__version__,
        "device": str(device),
        "threads": threads,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "images": len(material.train.labels),
        "seconds": round(sum(epoch["seconds"] for epoch in state.history), 3),
        "history": state.history,
        "parent": begin.checkpoint.training or None,
    }


def _final_accuracies(
    network: ExitNetwork, material: Material, test: Split, device: torch.device, say: Say
) -> dict[str, list[float] | None]:
    """Accuracy (0..1) at every exit in float32 on the validation and the test images."""
    measured: dict[str, list[float] | None] = {}
    for name, split in (("validation", material.validation), ("test", test)):
        values = None
        if split is not None:
            values = evaluate(network, split, material.normalisation, device, EVALUATION_BATCH)
            say(f"{name} accuracy {shown(values)}")
        measured[f"{name}_accuracy"] = values
    return measured

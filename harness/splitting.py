"""Which images a network was trained on, so that its calibration split holds none of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..models import Checkpoint
from .configs import DataConfig
from .data import Dataset
from .errors import ExitbenchError

Say = Callable[[str], None]
_Choice = tuple[int, int]  # split seed, images of the calibration split


def settle(
    data: DataConfig, dataset: Dataset, checkpoint: Checkpoint | None, path: Path | None, say: Say
) -> DataConfig:
    """``data`` with the split that the network was trained with, where it was on this dataset.

    The record of the checkpoint counts, and those of the checkpoints it started from. Where it is
    missing, the defaults are taken and ``say`` is told that they cannot be verified.

    Args:
        checkpoint: header of the network that is calibrated, or trained on; None for a fresh one.
        path: its file, for messages.

    Raises:
        ExitbenchError: another split is asked for, or the network has seen several.
    """
    chosen: _Choice | None = None
    if checkpoint is not None:
        chosen = _recorded(checkpoint, dataset, str(path), say)
    if chosen is None:
        return replace(data, split_seed=data.split_seed or 0)
    asked = {"split_seed": data.split_seed, "calibration_samples": data.calibration_samples}
    for (name, value), known in zip(asked.items(), chosen, strict=True):
        if value not in (None, known):
            option = name.replace("_", "-")
            raise ExitbenchError(
                f"{option.replace('-', ' ')} is {value}, but {path} was trained on "
                f"{dataset.name} with {known}: the calibration split would hold images that it "
                f"was trained on. Leave out --{option}, or train it again with --{option} {value}"
            )
    return replace(data, split_seed=chosen[0], calibration_samples=chosen[1])


def _recorded(
    checkpoint: Checkpoint, dataset: Dataset, path: str, say: Say
) -> _Choice | None:
    """The one split of this dataset that the network was trained with; None if none is known."""
    found: list[_Choice] = []
    doubts = []
    digest = dataset_digest(dataset)
    for training in _trainings(checkpoint.training):
        settings = training.get("settings")
        if not isinstance(settings, dict) or "split_seed" not in settings:
            if checkpoint.dataset == dataset.name:
                doubts.append("does not record the split of every training it has seen")
        elif settings.get("data") == digest or settings.get("dataset") == dataset.name:
            found.append(_choice(settings, path))
            if settings.get("data") != digest:
                doubts.append(f"was trained when {dataset.name} held other images")
    for doubt in dict.fromkeys(doubts):
        say(
            f"{path} {doubt}: that its calibration split holds no image it was trained on cannot "
            "be verified"
        )
    if len(set(found)) > 1:
        words = "; ".join(
            f"split seed {seed}, {count} calibration images" for seed, count in dict.fromkeys(found)
        )
        raise ExitbenchError(
            f"{path} was trained on several splits of {dataset.name} ({words}), so that no "
            "calibration split is free of images it was trained on; train backbone and heads again "
            "with the same --split-seed and --calibration-samples"
        )
    return found[0] if found else None


def _trainings(training: Any) -> Iterator[dict[str, Any]]:
    """The training record of a network and of those it started from, the latest first."""
    first = True
    while isinstance(training, dict) and (training or first):
        yield training
        training, first = training.get("parent"), False


def _choice(settings: dict[str, Any], path: str) -> _Choice:
    values: tuple[Any, Any] = settings["split_seed"], settings.get("calibration_samples")
    if any(type(value) is not int for value in values):
        raise ExitbenchError(
            f"{path}: its training record has split seed {values[0]!r} and calibration samples "
            f"{values[1]!r}, which must be whole numbers; the file is damaged or was changed by "
            "hand"
        )
    return values


def dataset_digest(dataset: Dataset) -> str:
    """SHA-256 of all images and labels of a dataset, as 64 hex digits."""
    return digest_of(dataset.x_train, dataset.y_train, dataset.x_test, dataset.y_test)


def digest_of(*arrays: np.ndarray) -> str:
    """SHA-256 of arrays with their shapes and types, as 64 hex digits."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(json.dumps([array.shape, str(array.dtype)]).encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()

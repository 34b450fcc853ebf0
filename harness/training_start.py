"""What a training starts from: its settings, checked, and the network they ask for."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from ..models import Checkpoint, ExitNetwork, ModelArguments, build
from ..models.checkpoint import load_checkpoint, read_header
from .configs import TrainConfig
from .data import Dataset, Split
from .errors import ExitbenchError
from .files import sha256
from .limits import faults
from .splitting import Say, dataset_digest, settle
from .training_modes import Recipe, default_learning_rate

# Optimisers refuse, with an error of their own, what a float32 cannot hold.
LARGEST = 1e30


@dataclass(frozen=True)
class Start:
    """The network a training starts from, with what its checkpoint will say of it.

    Attributes:
        network: freshly initialised, or filled from ``--init``.
        checkpoint: its header, still with the training record of ``--init``.
        digest: SHA-256 of the file of ``--init``; None without one.
    """

    network: ExitNetwork
    checkpoint: Checkpoint
    digest: str | None


def check(config: TrainConfig) -> None:
    """Refuse a configuration that no training can follow.

    Raises:
        ExitbenchError: every setting at fault, its value and what is allowed.
    """
    found = faults(config)
    if config.batch_size == 1:
        found.append("batch_size is 1; batch norm needs at least 2 images per step")
    for name in ("learning_rate", "weight_decay"):
        value = getattr(config, name)
        if value is not None and value > LARGEST:
            found.append(f"{name} is {value:g}; at most {LARGEST:g}")
    if config.patience is not None and config.validation_share == 0:
        found.append("patience needs validation images; set a validation share above 0")
    if config.mode == "normal" and config.exits:
        found.append("exits are chosen, but mode 'normal' has none; use mode 'original'")
    if config.mode in ("exits", "joint") and config.exits == ():
        found.append(f"mode {config.mode!r} trains heads and needs at least one exit")
    if config.out.is_dir():
        found.append(f"out is the folder {config.out}; name a .safetensors file in it")
    if config.init is not None and config.init.resolve() == config.out.resolve():
        found.append(f"init and out are the same file {config.out}; write to another one")
    if found:
        raise ExitbenchError("cannot train:\n" + "\n".join(f"  {fault}" for fault in found))


def dataset_name(config: TrainConfig) -> str:
    """The dataset to train on: the one named, else that of ``--init``, else the digits."""
    if config.data.dataset is not None:
        return config.data.dataset
    return "digits" if config.init is None else read_header(config.init).dataset


def image_side(config: TrainConfig) -> int | None:
    """The side of the images in pixels: that of ``--init`` where there is one.

    Raises:
        ExitbenchError: another side is asked for than the network of ``--init`` takes.
    """
    if config.init is None:
        return config.side
    side = read_header(config.init).arguments.input_side
    if config.side not in (None, side):
        raise ExitbenchError(
            f"side is {config.side}, but the network in {config.init} takes images of {side} "
            "pixels; leave out --side"
        )
    return side


def settled(config: TrainConfig, dataset: Dataset, say: Say) -> TrainConfig:
    """``config`` with the split of ``--init``, so that no network ever sees calibration images.

    Raises:
        ExitbenchError: another split is asked for than ``--init`` was trained with.
    """
    header = None if config.init is None else read_header(config.init)
    return replace(config, data=settle(config.data, dataset, header, config.init, say))


def start(config: TrainConfig, dataset: Dataset) -> Start:
    """The network to train, the same for the same seed.

    Raises:
        ExitbenchError: the network cannot be built, or ``--init`` does not fit the data.
    """
    # Forked, so that building a network leaves the caller's random numbers as they were.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if config.init is None:
            return _fresh(config, dataset)
        return _from_checkpoint(config, config.init, dataset)


def _fresh(config: TrainConfig, dataset: Dataset) -> Start:
    arguments = ModelArguments(
        classes=dataset.classes,
        input_side=dataset.side,
        width=config.width,
        exits=() if config.mode == "normal" else config.exits,
        share_heads=config.share_heads,
    )
    checkpoint = Checkpoint(
        config.model, arguments, dataset.name, dataset.class_names, dataset.normalisation
    )
    return Start(build(config.model, arguments), checkpoint, None)


def _refuse_another_backbone(config: TrainConfig, path: Path, header: Checkpoint) -> None:
    """Refuse an architecture or width that was asked for and is not that of ``--init``."""
    held = {"model": header.model, "width": header.arguments.width}
    usual = {item.name: item.default for item in fields(TrainConfig)}
    for name, value in held.items():
        asked = getattr(config, name)
        if asked not in (value, usual[name]):
            raise ExitbenchError(
                f"{name} is {asked}, but the network in {path} has {name} {value}; leave out "
                f"--{name}, or train without --init"
            )


def _from_checkpoint(config: TrainConfig, path: Path, dataset: Dataset) -> Start:
    """The network of ``path`` with the asked exits; heads it lacks are freshly initialised."""
    stored, header = load_checkpoint(path)
    old = header.arguments
    if old.classes != dataset.classes:
        raise ExitbenchError(
            f"{path} is a network for {old.classes} classes, but the dataset {dataset.name!r} has "
            f"{dataset.classes}; use the data it was trained on, or train without --init"
        )
    _refuse_another_backbone(config, path, header)
    share = old.share_heads or config.share_heads
    arguments = replace(old, exits=_exits(config, old), share_heads=share)
    network = build(header.model, arguments)
    wanted = network.state_dict()
    # Separate heads cannot be made into shared ones: then only the backbone is taken over.
    known = {
        name: value
        for name, value in stored.state_dict().items()
        if name in wanted and (share == old.share_heads or not name.startswith("heads."))
    }
    network.load_state_dict(known, strict=False)
    # The backbone was fitted to images of its own normalisation, so that is kept.
    checkpoint = replace(
        header,
        arguments=arguments,
        dataset=dataset.name,
        class_names=dataset.class_names,
        calibration={},
    )
    return Start(network, checkpoint, sha256(path))


def _exits(config: TrainConfig, old: ModelArguments) -> tuple[int, ...] | None:
    if config.mode == "normal":
        return ()
    if config.exits is not None:
        return config.exits
    return None if old.exits == () else old.exits


def make_recipe(config: TrainConfig, mixed_precision: bool) -> Recipe:
    """How to train, with the defaults that depend on other settings filled in."""
    rate = config.learning_rate
    if rate is None:
        rate = default_learning_rate(config.mode, config.optimizer)
    return Recipe(
        mode=config.mode,
        optimizer=config.optimizer,
        epochs=config.epochs,
        batch_size=config.batch_size,
        learning_rate=rate,
        weight_decay=config.weight_decay,
        patience=config.patience,
        seed=config.seed,
        mixed_precision=mixed_precision,
    )


def fingerprint(
    config: TrainConfig, begin: Start, dataset: Dataset, parts: dict[str, Split]
) -> dict[str, Any]:
    """All that shapes the result: two trainings with equal fingerprints are the same training.

    Device and threads are left out, so that a training can go on elsewhere; contents of files
    stand in it as digests, so that changed files are noticed. The split seed is that of
    ``settled``.
    """
    recipe = make_recipe(config, config.mixed_precision)
    arguments = begin.checkpoint.arguments
    return {
        "mode": recipe.mode,
        "init": begin.digest,
        "model": begin.checkpoint.model,
        "classes": arguments.classes,
        "side": arguments.input_side,
        "width": arguments.width,
        "exits": None if arguments.exits is None else list(arguments.exits),
        "share_heads": arguments.share_heads,
        "optimizer": recipe.optimizer,
        "epochs": recipe.epochs,
        "batch_size": recipe.batch_size,
        "learning_rate": recipe.learning_rate,
        "weight_decay": recipe.weight_decay,
        "patience": recipe.patience,
        "validation_share": config.validation_share,
        "seed": recipe.seed,
        "mixed_precision": recipe.mixed_precision,
        "dataset": dataset.name,
        "data": dataset_digest(dataset),
        "calibration_samples": len(parts["calibration"].labels),
        "split_seed": config.data.split_seed,
        "subset": None if config.data.subset is None else sha256(config.data.subset),
    }

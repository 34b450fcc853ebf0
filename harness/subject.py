"""The subject of a study: a network, its data and where it runs, loaded and checked together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..models import Checkpoint, ExitNetwork, load_checkpoint
from .configs import DataConfig, DeviceConfig
from .data import Split, load_dataset, normalise, splits, subset
from .devices import apply_threads, resolve_device
from .difficulty import read_samples
from .errors import ExitbenchError
from .files import sha256
from .memory import release
from .quantization import CALIBRATION_IMAGES, DEFAULT_RANGES
from .runtime.base import Prepared
from .runtime.registry import availability, prepare
from .splitting import settle

Say = Callable[[str], None]


@dataclass(frozen=True)
class Subject:
    """A network with exits, ready to be run on its splits.

    Attributes:
        network: on the CPU, in eval mode.
        checkpoint: its header.
        path: the checkpoint's file.
        digest: the file's SHA-256.
        dataset: specification of the data.
        parts: the splits ``calibration`` and ``test``.
        device: where it runs.
        threads: CPU threads.
        data: as it was configured, with the split that the network was trained with filled in.
        limit: at most this many images of each split.
        sizes: samples of each split before it was cut down.
        runtime: what was asked to run it, a name in ``registry.RUNTIMES`` or ``auto``.
        ranges: how int8 finds ranges, a name in ``quantization.RANGES``; None: the usual way.
        traced: per precision, the runtime of the traces that it is run beside; ``auto`` is it.
    """

    network: ExitNetwork
    checkpoint: Checkpoint
    path: Path
    digest: str
    dataset: str
    parts: dict[str, Split]
    device: torch.device
    threads: int
    data: DataConfig
    limit: int | None
    sizes: dict[str, int]
    runtime: str = "auto"
    ranges: str | None = None
    traced: Mapping[str, str] = field(default_factory=dict)

    @property
    def exit_names(self) -> tuple[str, ...]:
        """Names of the exit points in depth order, then ``classifier``."""
        return (*(point.name for point in self.network.exit_points), "classifier")

    def at(self, split: str, positions: np.ndarray) -> Tensor:
        """Normalised images at these positions of a split, (n, 3, side, side), on the device."""
        images = self.parts[split].images[positions]
        return normalise(images, self.checkpoint.normalisation, self.device)

    def images(self, split: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Normalised images start..stop of a split, (n, 3, side, side), on the device."""
        images = self.parts[split].images[start:stop]
        return normalise(images, self.checkpoint.normalisation, self.device)

    def batches(self, split: str, batch_size: int) -> Iterator[Tensor]:
        """The normalised images of a split, batch by batch, in order."""
        for start in range(0, len(self.parts[split]), batch_size):
            yield self.images(split, start, start + batch_size)

    def range_positions(self) -> np.ndarray:
        """Positions in the calibration split of the images that int8 ranges are taken from.

        Evenly spaced, because a split may be ordered by class.
        """
        return thinned(len(self.parts["calibration"]), CALIBRATION_IMAGES)

    def prepare(self, precision: str) -> Prepared:
        """The network made ready to run in a precision.

        Raises:
            ExitbenchError: the device cannot run that precision; says why.
        """
        calibration = None
        if precision == "int8":
            calibration = self.at("calibration", self.range_positions())
        return prepare(
            self.network, precision, self.device, calibration,
            runtime=self.runtime_of(precision), ranges=self.ranges or DEFAULT_RANGES,
        )  # fmt: skip

    def runtime_of(self, precision: str) -> str | None:
        """The runtime that is to run a precision; None leaves the choice to ``prepare``."""
        return self.traced.get(precision) if self.runtime == "auto" else self.runtime

    def shed_weights(self) -> None:
        """Free the weights of the network, when no more is to be prepared; its shapes stay.

        What ``prepare`` gave has its own.
        """
        self.network.to("meta")
        release()


def load_subject(
    path: Path,
    data: DataConfig,
    device: DeviceConfig,
    say: Say,
    limit: int | None = None,
    needs_exits: bool = True,
) -> Subject:
    """The network of a checkpoint with the data to run it on.

    Args:
        limit: use at most this many images of each split.
        needs_exits: refuse a plain network.

    Raises:
        ExitbenchError: the checkpoint, the data or the device cannot be used, or they do not fit
            each other.
    """
    if limit is not None and limit < 1:
        raise ExitbenchError(f"limit is {limit}; it must be at least 1")
    where = resolve_device(device.device)
    threads = apply_threads(device.threads)
    network, checkpoint = load_checkpoint(path)
    if needs_exits and network.num_exits == 0:
        raise ExitbenchError(
            f"{path} holds a plain network without exits (trained in mode "
            f"{checkpoint.training.get('mode')!r}); give it heads with "
            f"'exitbench train --mode exits --init {path} --out FILE'"
        )
    spec = data.dataset or checkpoint.dataset
    side = checkpoint.arguments.input_side
    dataset = load_dataset(spec, data.data_root, side, data.download, say)
    if dataset.classes != network.classes:
        raise ExitbenchError(
            f"{path} tells {network.classes} classes apart, but the dataset {spec} has "
            f"{dataset.classes}; choose the dataset it was trained on ({checkpoint.dataset})"
        )
    data = settle(data, dataset, checkpoint, path, say)
    parts = splits(dataset, data.split_seed or 0, data.calibration_samples)
    del parts["train"]
    sizes = {name: len(part) for name, part in parts.items()}
    parts = _cut_down(parts, dataset.name, data.subset, limit)
    return Subject(
        network, checkpoint, Path(path), sha256(path), dataset.name, parts, where, threads,
        data, limit, sizes, device.runtime, device.ranges,
    )  # fmt: skip


def _cut_down(
    parts: dict[str, Split], dataset: str, listed: Path | None, limit: int | None
) -> dict[str, Split]:
    """The splits with the listed test samples only, and with at most ``limit`` of each."""
    if listed is not None:
        chosen = read_samples(listed, dataset, "test", len(parts["test"]))
        parts = {**parts, "test": subset(parts["test"], chosen.positions)}
    if limit is None:
        return parts
    return {name: subset(part, thinned(len(part), limit)) for name, part in parts.items()}


def thinned(samples: int, limit: int | None) -> np.ndarray:
    """At most ``limit`` positions of ``samples``, evenly spaced: splits may be ordered by class."""
    count = samples if limit is None else min(limit, samples)
    return np.linspace(0, samples - 1, count).round().astype(np.int64)


def usable_precisions(
    names: tuple[str, ...],
    device: torch.device,
    strict: bool,
    say: Say,
    runtime_of: Callable[[str], str | None] = lambda precision: None,
) -> tuple[list[str], dict[str, str]]:
    """The precisions that the device can run, and why it cannot run the others.

    Args:
        strict: refuse what cannot run, rather than leave it out.
        runtime_of: the runtime that is to run a precision, as ``Subject.runtime_of``.

    Raises:
        ExitbenchError: with ``strict``, a precision cannot be run; or none can.
    """
    reasons = {name: availability(name, device, runtime_of(name)) for name in names}
    missing = {name: reason for name, reason in reasons.items() if reason is not None}
    if missing and (strict or len(missing) == len(names)):
        raise ExitbenchError(
            "; ".join(f"precision {name} cannot be run: {why}" for name, why in missing.items())
        )
    for name, why in missing.items():
        say(f"leaving out {name}: {why}")
    return [name for name in names if name not in missing], missing


"""Datasets, their splits, and batches of them.

Images stay uint8 (N, side, side, 3) from disk to batch; only the images of one batch are ever
floats. Whatever is random comes from a seed.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from .datasets import VISION, Say, load_digits, load_vision
from .errors import ExitbenchError
from .images import Arrays, check_side, fitting_side, resize, rgb, statistics
from .own_data import load_folder, load_npz

MAX_CALIBRATION = 5000
CALIBRATION_SHARE = 0.1
_PADDING_AT_32 = 4


@dataclass(frozen=True)
class Augmentation:
    """How training images are varied.

    Attributes:
        crop_padding: pixels of black border out of which a crop of the old size is taken.
        mirror: whether half of the images are mirrored left to right.
    """

    crop_padding: int
    mirror: bool


@dataclass(frozen=True)
class Dataset:
    """Train and test images as RGB bytes.

    Attributes:
        name: the specification: ``digits``, ``cifar10``, ``folder:DIR``, ``npz:FILE``, ...
        x_train, x_test: uint8 (N, side, side, 3).
        y_train, y_test: int64 (N,), 0 to classes - 1.
        class_names: in the order of the labels.
        side: height and width in pixels, a multiple of 32.
        augmentation: how training images are varied.
        normalisation: ``mean`` and ``std`` per channel of x_train scaled to 0..1.
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    class_names: tuple[str, ...]
    side: int
    augmentation: Augmentation
    normalisation: dict[str, list[float]]

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)


@dataclass(frozen=True)
class Split:
    """A part of a dataset.

    Attributes:
        name: ``train``, ``calibration`` or ``test``.
        images: uint8 (N, side, side, 3).
        labels: int64 (N,).
        indices: int64 (N,), where each image stands in the dataset's train or test array.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class _Request:
    name: str
    argument: str
    root: Path
    side: int | None
    download: bool
    say: Say


def _silent(line: str) -> None:
    """Take a line of progress and show it to nobody."""


_LOADERS: dict[str, Callable[[_Request], Arrays]] = {
    "digits": lambda request: load_digits(),
    "folder": lambda request: load_folder(Path(request.argument).expanduser(), request.side),
    "npz": lambda request: load_npz(Path(request.argument).expanduser()),
} | dict.fromkeys(
    VISION, lambda request: load_vision(request.name, request.root, request.download, request.say)
)
_WITH_PLACE = {"folder": "folder:DIR", "npz": "npz:FILE"}


def load_dataset(
    spec: str,
    root: Path = Path("data"),
    side: int | None = None,
    download: bool = True,
    say: Say = _silent,
) -> Dataset:
    """The dataset that ``spec`` names, checked, as RGB images of one side.

    Args:
        spec: cifar10, cifar100, svhn, stl10, mnist, fashion-mnist, digits, folder:DIR (train/ and
            test/ with a folder per class) or npz:FILE (x_train, y_train, x_test, y_test).
        root: folder of torchvision's datasets.
        side: height and width in pixels to resize to, a multiple of 32; default the images' own,
            rounded up to one. For folder:DIR the default is the images' own if all are 32, 64 or
            96 wide, else 32.
        download: fetch a torchvision dataset that is not in ``root``.
        say: takes one line of progress.

    Raises:
        ExitbenchError: unknown name, wrong side, absent or damaged data; every fault that was
            found, and what to do.
    """
    request = _request(spec, root, side, download, say)
    check_side(side)
    arrays = _LOADERS[request.name](request)
    side = side or fitting_side(arrays.x_train.shape[1])
    x_train, x_test = (rgb(resize(x, side)) for x in (arrays.x_train, arrays.x_test))
    return Dataset(
        name=f"{request.name}:{request.argument}" if request.argument else request.name,
        x_train=x_train,
        y_train=arrays.y_train,
        x_test=x_test,
        y_test=arrays.y_test,
        class_names=arrays.class_names,
        side=side,
        augmentation=Augmentation(_PADDING_AT_32 * side // 32, arrays.mirror),
        normalisation=statistics(x_train),
    )


def _request(spec: str, root: Path, side: int | None, download: bool, say: Say) -> _Request:
    kind, colon, argument = spec.partition(":")
    name = kind.lower().replace("_", "-")
    if name not in _LOADERS:
        close = difflib.get_close_matches(name, _LOADERS, n=1)
        hint = f" Did you mean {_WITH_PLACE.get(close[0], close[0])}?" if close else ""
        known = ", ".join(_WITH_PLACE.get(key, key) for key in sorted(_LOADERS))
        raise ExitbenchError(f"there is no dataset {spec!r}.{hint} Known: {known}.")
    if name in _WITH_PLACE and not argument:
        raise ExitbenchError(f"dataset {spec!r} says no place; write {_WITH_PLACE[name]}")
    if name not in _WITH_PLACE and colon:
        raise ExitbenchError(f"dataset {spec!r} takes no place; write {name}")
    return _Request(name, argument, Path(root).expanduser(), side, download, say)


def splits(dataset: Dataset, seed: int = 0, calibration: int | None = None) -> dict[str, Split]:
    """The splits ``train``, ``calibration`` and ``test``.

    Calibration is taken out of train, with the classes in train's proportions; the rest of train
    keeps at least one image of each class. Test is the dataset's own, whole and in its order.

    Args:
        dataset: where the images come from.
        seed: seed of the choice.
        calibration: images of the calibration split; default a tenth of train, at most 5000.

    Raises:
        ExitbenchError: the calibration size does not fit.
    """
    total = len(dataset.y_train)
    counts = np.bincount(dataset.y_train, minlength=dataset.classes)
    most = min(MAX_CALIBRATION, int((counts - 1).sum()))
    if calibration is None:
        calibration = min(most, max(1, round(total * CALIBRATION_SHARE)))
    if not 1 <= calibration <= most:
        raise ExitbenchError(
            f"calibration samples is {calibration}, but must be 1 to {most}: {dataset.name} has "
            f"{total} training images in {dataset.classes} classes, of which train keeps at least "
            f"one each, and calibration takes at most {MAX_CALIBRATION}"
            if most
            else f"{dataset.name} has one training image per class: none can be spared for the "
            "calibration split. Add images to train."
        )
    generator = np.random.default_rng(seed)
    chosen = np.zeros(total, bool)
    for label, share in enumerate(_shares(counts, calibration)):
        members = np.flatnonzero(dataset.y_train == label)
        chosen[generator.permutation(members)[:share]] = True
    return {
        "train": _part("train", dataset.x_train, dataset.y_train, np.flatnonzero(~chosen)),
        "calibration": _part("calibration", dataset.x_train, dataset.y_train, chosen.nonzero()[0]),
        "test": Split("test", dataset.x_test, dataset.y_test, np.arange(len(dataset.y_test))),
    }


def _part(name: str, images: np.ndarray, labels: np.ndarray, indices: np.ndarray) -> Split:
    return Split(name, images[indices], labels[indices], indices)


def _shares(counts: np.ndarray, size: int) -> np.ndarray:
    """``size`` divided in proportion to ``counts``, by largest remainders, one of each left."""
    wanted = counts * (size / counts.sum())
    taken = np.minimum(np.floor(wanted).astype(np.int64), counts - 1)
    while taken.sum() < size:
        lacking = np.where(taken < counts - 1, wanted - taken, -np.inf)
        taken[np.argmax(lacking)] += 1
    return taken


def subset(split: Split, indices: Sequence[int] | np.ndarray) -> Split:
    """The samples of ``split`` at these positions (0 to N - 1), in the order given.

    Raises:
        ExitbenchError: no position, one that is no integer or out of range, or one twice.
    """
    positions = np.asarray(indices)
    if positions.ndim != 1 or not len(positions) or positions.dtype.kind not in "iu":
        raise ExitbenchError(
            f"a subset of {split.name} needs a list of at least one position, each an integer"
        )
    outside = positions[(positions < 0) | (positions >= len(split))]
    if len(outside):
        raise ExitbenchError(
            f"position {outside[0]} is not in split {split.name}, which has {len(split)} samples "
            f"(0 to {len(split) - 1})"
        )
    if len(np.unique(positions)) < len(positions):
        raise ExitbenchError(f"a subset of {split.name} names a sample twice; each may stand once")
    return replace(
        split,
        images=split.images[positions],
        labels=split.labels[positions],
        indices=split.indices[positions],
    )


def normalise(
    images: np.ndarray, normalisation: dict[str, list[float]], device: str | torch.device = "cpu"
) -> Tensor:
    """Images (N, H, W, C) as float32 (N, C, H, W) in channels-last memory, (x / 255 - mean) / std.

    Bytes travel to the device; they become floats there.
    """
    mean = torch.tensor(normalisation["mean"], dtype=torch.float64)
    std = torch.tensor(normalisation["std"], dtype=torch.float64)
    scale = (1 / (255 * std)).to(device, torch.float32)
    shift = (-mean / std).to(device, torch.float32)
    whole = np.require(images, requirements=["C", "W"])
    pixels = torch.from_numpy(whole).to(device).to(torch.float32)
    return pixels.mul_(scale).add_(shift).permute(0, 3, 1, 2)


def augment(
    images: np.ndarray, offsets: np.ndarray, mirrored: np.ndarray, padding: int
) -> np.ndarray:
    """Each image moved inside a black border and, where asked, mirrored.

    Args:
        images: uint8 (N, H, W, C).
        offsets: integers (N, 2), 0 to 2 * padding: top and left of the crop in the bordered
            image; ``padding`` is the middle.
        mirrored: bool (N,), left and right exchanged.
        padding: width of the border in pixels.
    """
    count, height, width, channels = images.shape
    border = (padding, padding)
    # Rows as bytes: a crop is a block of whole rows of bytes, copied without an index per pixel.
    rows = np.pad(images, ((0, 0), border, border, (0, 0))).reshape(count, height + 2 * padding, -1)
    windows = sliding_window_view(rows, (height, width * channels), axis=(1, 2))
    crops = windows[np.arange(count), offsets[:, 0], offsets[:, 1] * channels]
    moved = crops.reshape(images.shape)
    moved[mirrored] = moved[mirrored, :, ::-1]
    return moved


def batches(
    split: Split,
    batch_size: int,
    normalisation: dict[str, list[float]],
    device: str | torch.device = "cpu",
    *,
    shuffle_seed: int | Sequence[int] | None = None,
    augmentation: Augmentation | None = None,
) -> Iterator[tuple[Tensor, Tensor, np.ndarray]]:
    """Images float32 (n, 3, side, side), labels int64 (n,), positions int64 (n,) in the split.

    Every sample comes once; the last batch may be smaller. How a sample is varied depends on the
    seed and its position, not on the batch size.

    Args:
        split: where the samples come from.
        batch_size: n.
        normalisation: ``mean`` and ``std`` per channel.
        device: where the tensors live.
        shuffle_seed: seed of order and variation, such as (seed, epoch); None keeps the order.
        augmentation: how images are varied, for training only; needs a ``shuffle_seed``.

    Raises:
        ExitbenchError: ``batch_size`` is below 1.
        ValueError: ``augmentation`` without a ``shuffle_seed``.
    """
    if batch_size < 1:
        raise ExitbenchError(f"batch size is {batch_size}; it must be at least 1")
    if augmentation is not None and shuffle_seed is None:
        raise ValueError("augmentation is random: give a shuffle_seed")
    return _batches(split, batch_size, normalisation, device, shuffle_seed, augmentation)


def _batches(
    split: Split,
    batch_size: int,
    normalisation: dict[str, list[float]],
    device: str | torch.device,
    shuffle_seed: int | Sequence[int] | None,
    augmentation: Augmentation | None,
) -> Iterator[tuple[Tensor, Tensor, np.ndarray]]:
    count = len(split)
    generator = np.random.default_rng(0 if shuffle_seed is None else shuffle_seed)
    order = np.arange(count) if shuffle_seed is None else generator.permutation(count)
    padding = augmentation.crop_padding if augmentation else 0
    offsets = generator.integers(0, 2 * padding, (count, 2), endpoint=True)
    mirrored = generator.random(count) < (0.5 if augmentation and augmentation.mirror else 0.0)
    for start in range(0, count, batch_size):
        positions = order[start : start + batch_size]
        images = split.images[positions]
        if augmentation is not None:
            images = augment(images, offsets[positions], mirrored[positions], padding)
        labels = torch.from_numpy(split.labels[positions]).to(device)
        yield normalise(images, normalisation, device), labels, positions

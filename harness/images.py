"""Arrays of uint8 images: what they must look like, and how they become RGB of one size.

Everything here works on whole arrays of shape (N, side, side, channels) and never turns one into
floats as a whole: a dataset stays as small as its bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .errors import ExitbenchError

# Networks halve the map five times, so that sides come in steps of 2**5.
SIDE_STEP = 32
_CHUNK = 1024


@dataclass(frozen=True)
class Arrays:
    """A dataset as it was read, before it is brought to RGB and to the network's side.

    Attributes:
        x_train, x_test: uint8 (N, side, side, 1 or 3).
        y_train, y_test: int64 (N,), 0..classes-1; every class is in ``y_train``.
        class_names: names in the order of the labels.
        mirror: whether a mirrored image still is one of its class.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    class_names: tuple[str, ...]
    mirror: bool


def check_side(side: int | None) -> None:
    """Refuse a side that no network here takes.

    Raises:
        ExitbenchError: ``side`` is no positive multiple of 32.
    """
    if side is not None and (side < SIDE_STEP or side % SIDE_STEP):
        raise ExitbenchError(
            f"side is {side} pixels; it must be a multiple of {SIDE_STEP} (32, 64, 96, ...)"
        )


def fitting_side(side: int) -> int:
    """The next multiple of 32 that is not smaller than ``side``: 28 gives 32, 96 gives 96."""
    return -(-side // SIDE_STEP) * SIDE_STEP


def image_faults(label: str, images: np.ndarray) -> list[str]:
    """What keeps ``images`` from being uint8 (N, side, side, 1 or 3), as one message per fault."""
    if images.dtype != np.uint8:
        hint = " (multiply by 255 and round)" if images.dtype.kind == "f" else ""
        return [f"{label} is {images.dtype}, but must be uint8 with values 0 to 255{hint}"]
    if images.ndim != 4:
        return [f"{label} has shape {images.shape}, but must be (N, height, width, channels)"]
    count, height, width, channels = images.shape
    if count == 0:
        return [f"{label} holds no images"]
    if channels not in (1, 3):
        first = height in (1, 3)
        hint = "; channels come last: transpose (0, 2, 3, 1)" if first else ""
        return [f"{label} has {channels} channels (shape {images.shape}), not 1 or 3{hint}"]
    if height != width:
        return [f"{label} has images of {height}x{width} pixels; crop or pad them to squares"]
    if height < 2:
        return [f"{label} has images of {height}x{width} pixels, which is too small"]
    return []


def label_faults(split: str, labels: np.ndarray, count: int) -> list[str]:
    """What keeps ``labels`` from being ``count`` integers of at least 0, one message per fault."""
    if labels.dtype.kind not in "iu":
        return [f"y_{split} is {labels.dtype}, but must be integers"]
    if labels.shape != (count,):
        return [f"y_{split} has shape {labels.shape}, but x_{split} needs ({count},)"]
    if count and int(labels.min()) < 0:
        return [f"y_{split} holds the label {int(labels.min())}; labels go from 0 to classes - 1"]
    return []


def class_faults(y_train: np.ndarray, y_test: np.ndarray, classes: int) -> list[str]:
    """Classes without images and labels without a class, one message per fault.

    A class may be absent from test, where it costs nothing, but not from train.
    """
    faults = []
    if classes < 2:
        faults.append("y_train holds a single class; a classifier needs at least two")
    for split, labels in (("train", y_train), ("test", y_test)):
        beyond = np.unique(labels[labels >= classes])
        if len(beyond):
            faults.append(
                f"y_{split} holds the label {shown(beyond)}, but the classes are 0 to {classes - 1}"
            )
    present = np.unique(y_train)
    # The first holes lie below this bound, however large a stray label is.
    empty = np.setdiff1d(np.arange(min(classes, len(present) + 6)), present)
    if len(empty):
        faults.append(
            f"train has no image of class {shown(empty, classes - len(present))}; labels must be "
            "0 to classes - 1 without holes"
        )
    return faults


def array_faults(arrays: Mapping[str, np.ndarray], classes: int | None = None) -> list[str]:
    """All that is wrong with x_train, y_train, x_test and y_test, one message per fault.

    Args:
        arrays: the four arrays by name, of any kind.
        classes: how many there are; default one more than the largest training label.
    """
    faults = []
    for split in ("train", "test"):
        images, labels = arrays[f"x_{split}"], arrays[f"y_{split}"]
        faults += image_faults(f"x_{split}", images)
        faults += label_faults(split, labels, len(images) if images.ndim else 0)
    if faults:
        return faults
    train, test = (arrays[name].shape[1:] for name in ("x_train", "x_test"))
    if train != test:
        faults.append(f"images are {_size(train)} in x_train, but {_size(test)} in x_test")
    if classes is None:
        classes = int(arrays["y_train"].max()) + 1
    return faults + class_faults(arrays["y_train"], arrays["y_test"], classes)


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(str(length) for length in shape)


def refuse(place: str, faults: list[str], limit: int = 10) -> None:
    """Raise one error that lists the faults of ``place``, at most ``limit`` of them.

    Raises:
        ExitbenchError: there are faults.
    """
    if faults:
        more = [f"and {len(faults) - limit} more"] if len(faults) > limit else []
        lines = "".join(f"\n  {line}" for line in faults[:limit] + more)
        raise ExitbenchError(f"{place} cannot be used:{lines}")


def shown(values: np.ndarray | list[str], total: int | None = None, limit: int = 5) -> str:
    """The first ``limit`` values joined by commas, and how many more of ``total`` there are."""
    some = values[:limit]
    more = (len(values) if total is None else total) - len(some)
    return ", ".join(str(value) for value in some) + (f" and {more} more" if more > 0 else "")


def resize(images: np.ndarray, side: int) -> np.ndarray:
    """Images of shape (N, side, side, channels), bilinear, antialiased when they shrink.

    Pillow computes in fixed point, so that the pixels are the same on every machine.
    """
    count, height, _, channels = images.shape
    if height == side:
        return images
    resized = np.empty((count, side, side, channels), np.uint8)
    for position, image in enumerate(images):
        picture = Image.fromarray(image[..., 0] if channels == 1 else np.ascontiguousarray(image))
        smooth = picture.resize((side, side), Image.Resampling.BILINEAR)
        resized[position] = np.asarray(smooth).reshape(side, side, channels)
    return resized


def pad(images: np.ndarray, side: int) -> np.ndarray:
    """Images of shape (N, side, side, channels) with black borders as even as can be."""
    missing = side - images.shape[1]
    before, after = missing // 2, missing - missing // 2
    return np.pad(images, ((0, 0), (before, after), (before, after), (0, 0)))


def rgb(images: np.ndarray) -> np.ndarray:
    """The images with three channels: grey ones are repeated, coloured ones stay."""
    return images if images.shape[3] == 3 else np.repeat(images, 3, axis=3)


def statistics(images: np.ndarray) -> dict[str, list[float]]:
    """Mean and standard deviation per channel of images scaled to 0..1, exact up to rounding.

    The deviation is at least one grey level, so that a channel that never changes divides by no
    zero.
    """
    channels = images.shape[3]
    counts = np.zeros((channels, 256), np.int64)
    for start in range(0, len(images), _CHUNK):
        chunk = images[start : start + _CHUNK]
        for channel in range(channels):
            counts[channel] += np.bincount(chunk[..., channel].ravel(), minlength=256)
    levels = np.arange(256) / 255
    shares = counts / counts.sum(axis=1, keepdims=True)
    mean = shares @ levels
    variance = (shares * (levels - mean[:, None]) ** 2).sum(axis=1)
    std = np.maximum(np.sqrt(variance), 1 / 255)
    return {"mean": mean.tolist(), "std": std.tolist()}

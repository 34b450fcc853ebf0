"""The datasets that are known by name: torchvision's, and scikit-learn's digits.

A download goes into a hidden folder beside its target and is moved there only when it has been
read whole; an interrupted one leaves nothing that could be taken for a dataset.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import ExitbenchError
from .images import Arrays, array_faults, pad, refuse

Say = Callable[[str], None]

_TIMEOUT_S = 30.0
_SWITCHED_OFF = "downloading is switched off."
# What torchvision lets through when the network, the archive or a file in it is bad.
_VENDOR_ERRORS = (
    OSError,
    RuntimeError,
    ValueError,
    TypeError,
    AssertionError,
    EOFError,
    http.client.HTTPException,
    tarfile.TarError,
    zlib.error,
)


@dataclass(frozen=True)
class Archive:
    """A file that torchvision unpacks or reads: where it belongs below the root, and its origin."""

    place: str
    url: str
    md5: str


@dataclass(frozen=True)
class Vision:
    """How one torchvision dataset is asked for and read.

    Attributes:
        vendor: name of the class in ``torchvision.datasets``.
        split_argument: its argument that chooses between train and test.
        archives: the files that the class needs.
        folder: where it keeps what it reads, below the root.
        megabytes: size of the download, in 10**6 bytes.
        mirror: whether a mirrored image still is one of its class.
    """

    vendor: str
    split_argument: str
    archives: Callable[[Any], list[Archive]]
    folder: str
    megabytes: int
    mirror: bool


def _tarball(vendor: Any) -> list[Archive]:
    return [Archive(vendor.filename, vendor.url, vendor.tgz_md5)]


def _matrices(vendor: Any) -> list[Archive]:
    parts = (vendor.split_list[split] for split in ("train", "test"))
    return [Archive(name, url, md5) for url, name, md5 in parts]


def _idx_files(vendor: Any) -> list[Archive]:
    return [
        Archive(f"{vendor.__name__}/raw/{name}", vendor.mirrors[0] + name, md5)
        for name, md5 in vendor.resources
    ]


# Classes and arguments: torchvision documentation, torchvision.datasets. Sizes: the archives.
VISION: dict[str, Vision] = {
    "cifar10": Vision("CIFAR10", "train", _tarball, "cifar-10-batches-py", 170, True),
    "cifar100": Vision("CIFAR100", "train", _tarball, "cifar-100-python", 169, True),
    "svhn": Vision("SVHN", "split", _matrices, ".", 246, False),
    "stl10": Vision("STL10", "split", _tarball, "stl10_binary", 2640, True),
    "mnist": Vision("MNIST", "train", _idx_files, "MNIST/raw", 12, False),
    "fashion-mnist": Vision("FashionMNIST", "train", _idx_files, "FashionMNIST/raw", 31, True),
}


def load_digits() -> Arrays:
    """scikit-learn's 1,797 handwritten digits as grey images of 8x8 pixels.

    A fifth of each class is test; the choice is fixed. Source: UCI Machine Learning Repository,
    Optical Recognition of Handwritten Digits (test part), values 0 to 16.
    """
    from sklearn.datasets import load_digits as embedded

    grey, labels = embedded(return_X_y=True)
    images = np.rint(grey.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    labels = labels.astype(np.int64)
    generator = np.random.default_rng(0)
    is_test = np.zeros(len(labels), bool)
    for label in range(10):
        members = generator.permutation(np.flatnonzero(labels == label))
        is_test[members[: len(members) // 5]] = True
    names = tuple(str(digit) for digit in range(10))
    return Arrays(
        images[~is_test], labels[~is_test], images[is_test], labels[is_test], names, mirror=False
    )


def load_vision(name: str, root: Path, download: bool, say: Say) -> Arrays:
    """The torchvision dataset ``name``, fetched into ``root`` if it is not there yet.

    Archives that lie in place already are unpacked without a network.

    Args:
        name: a key of ``VISION``.
        root: folder for datasets.
        download: fetch what is missing.
        say: takes one line of progress.

    Raises:
        ExitbenchError: the dataset is absent and cannot or must not be fetched (the message names
            the folder and the files to put there), or what lies there is damaged.
    """
    import torchvision.datasets

    vision = VISION[name]
    vendor = getattr(torchvision.datasets, vision.vendor)
    parts = _open(name, vision, vendor, root)
    if parts is None:
        parts = _fetch(name, vision, vendor, root, download, say)
    arrays = _arrays(vision, *parts)
    # MNIST's files carry no checksum, and any file may be put there by hand.
    refuse(
        f"{name} in {(root / vision.folder).resolve()}",
        array_faults(vars(arrays), len(arrays.class_names)),
    )
    return arrays


def _splits(vision: Vision, vendor: Any, root: Path, **arguments: Any) -> tuple[Any, Any]:
    choices = (True, False) if vision.split_argument == "train" else ("train", "test")
    train, test = (
        vendor(root, **{vision.split_argument: choice}, **arguments) for choice in choices
    )
    return train, test


def _open(name: str, vision: Vision, vendor: Any, root: Path) -> tuple[Any, Any] | None:
    """Train and test as they lie in ``root``; None if they do not."""
    try:
        return _splits(vision, vendor, root, download=False)
    except _VENDOR_ERRORS as error:
        if "not found" in str(error):
            return None
        raise ExitbenchError(
            f"{name}: the files in {(root / vision.folder).resolve()} are damaged ({error}). "
            "Delete them and run the command again."
        ) from error


def _fetch(
    name: str, vision: Vision, vendor: Any, root: Path, download: bool, say: Say
) -> tuple[Any, Any]:
    archives = vision.archives(vendor)
    present = [archive for archive in archives if _whole(root, archive)]
    if len(present) < len(archives) and not download:
        raise ExitbenchError(_missing(name, root, archives, _SWITCHED_OFF, "Allow it"))
    if len(present) < len(archives):
        say(f"downloading {name} ({vision.megabytes} MB) to {root.resolve()}")
    else:
        say(f"unpacking {name} in {root.resolve()}")
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=f".{name}-") as folder, _timeout():
            stage = Path(folder)
            for archive in present:
                (stage / archive.place).parent.mkdir(parents=True, exist_ok=True)
                (stage / archive.place).symlink_to((root / archive.place).resolve())
            parts = _splits(vision, vendor, stage, download=True)
            _move(stage, root)
    except _VENDOR_ERRORS as error:
        reason = f"fetching it failed: {str(error).strip() or type(error).__name__}"
        raise ExitbenchError(_missing(name, root, archives, reason, "Go online")) from error
    return parts


def _whole(root: Path, archive: Archive) -> bool:
    from torchvision.datasets.utils import check_integrity

    return bool(check_integrity(root / archive.place, archive.md5))


def _missing(name: str, root: Path, archives: list[Archive], reason: str, remedy: str) -> str:
    lines = []
    for archive in archives:
        place = (root / archive.place).resolve()
        if not _whole(root, archive):
            lines.append(f"  {place}\n    from {archive.url}")
            if place.exists():
                lines.append(f"    (the file there now is not whole: its MD5 is not {archive.md5})")
    if lines:
        lines.insert(0, f"{remedy}, or put these files there and run the command again:")
    else:
        lines.append("Its archives are there and whole: give the folder room and write access.")
    return f"{name} is not in {root.resolve()}, and {reason}\n" + "\n".join(lines)


@contextlib.contextmanager
def _timeout() -> Iterator[None]:
    # torchvision opens its connections without a timeout; a network that swallows packets would
    # hang the command for ever.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _move(stage: Path, root: Path) -> None:
    """Move every file of ``stage`` to the same place below ``root``."""
    for file in sorted(stage.rglob("*")):
        if file.is_symlink() or file.is_dir():
            continue
        target = root / file.relative_to(stage)
        target.parent.mkdir(parents=True, exist_ok=True)
        file.replace(target)


def _arrays(vision: Vision, train: Any, test: Any) -> Arrays:
    images, labels = [], []
    for part in (train, test):
        pixels = np.asarray(part.data)
        if pixels.ndim == 3:
            pixels = pixels[..., None]
        elif pixels.shape[1] == 3:
            pixels = pixels.transpose(0, 2, 3, 1)
        if pixels.shape[1:3] == (28, 28):
            pixels = pad(pixels, 32)
        images.append(np.ascontiguousarray(pixels))
        found = part.targets if hasattr(part, "targets") else part.labels
        labels.append(np.asarray(found).astype(np.int64))
    names = getattr(train, "classes", None) or [str(digit) for digit in range(10)]
    # MNIST's are "7 - seven"; the digit alone is the name.
    short = tuple(str(name).partition(" - ")[0] for name in names)
    return Arrays(images[0], labels[0], images[1], labels[1], short, vision.mirror)

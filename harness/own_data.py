"""A user's own images: a folder with a folder per class, or an npz file of arrays."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from .errors import ExitbenchError
from .images import Arrays, array_faults, refuse, shown

NPZ_NAMES = ("x_train", "y_train", "x_test", "y_test")
SPLITS = ("train", "test")
_NATIVE_SIDES = (32, 64, 96)
_LITTER = ("Thumbs.db", "desktop.ini")
# Eight bits per channel or fewer; others (16-bit, floating point) would be clipped to white.
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
# All that Pillow raises for a file that is no image, or a damaged one.
_UNREADABLE = (OSError, SyntaxError, ValueError, IndexError, EOFError, Image.DecompressionBombError)


def load_npz(path: Path) -> Arrays:
    """The arrays x_train, y_train, x_test, y_test of an npz file, checked.

    Images are uint8 (N, side, side, 1 or 3), labels integers (N,) from 0 to classes - 1 without
    holes. Nothing is unpickled.

    Raises:
        ExitbenchError: no such file, no npz, arrays missing, or arrays that do not fit; all faults
            of the arrays at once.
    """
    arrays = _npz_arrays(path)
    missing = [name for name in NPZ_NAMES if name not in arrays]
    if missing:
        raise ExitbenchError(
            f"{path} lacks {', '.join(missing)}; it holds {', '.join(sorted(arrays)) or 'nothing'}."
            f" Store {', '.join(NPZ_NAMES)}."
        )
    refuse(str(path), array_faults(arrays))
    y_train, y_test = (arrays[name].astype(np.int64) for name in ("y_train", "y_test"))
    names = tuple(str(label) for label in range(int(y_train.max()) + 1))
    return Arrays(arrays["x_train"], y_train, arrays["x_test"], y_test, names, mirror=True)


# numpy parses an array's header as Python, which a damaged one need not be.
_DAMAGED = (
    OSError, ValueError, EOFError, SyntaxError, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def _npz_arrays(path: Path) -> dict[str, np.ndarray]:
    remedy = "Write it with numpy.savez(file, x_train=..., y_train=..., x_test=..., y_test=...)."
    try:
        with path.open("rb") as handle:
            if handle.read(2) != b"PK":
                raise ExitbenchError(f"{path} is not an npz file. {remedy}")
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in NPZ_NAMES if name in stored} | {
                name: np.empty(0) for name in stored.files if name not in NPZ_NAMES
            }
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ExitbenchError(f"there is no file {path}. {remedy}") from error
    except _DAMAGED as error:
        raise ExitbenchError(f"{path} is not a whole npz file ({error}). {remedy}") from error


def load_folder(path: Path, side: int | None = None) -> Arrays:
    """The images under ``path``/train/CLASS and ``path``/test/CLASS as RGB of one size, checked.

    Every file that is not hidden must be a square image that Pillow reads, of eight bits per
    channel; orientation tags are obeyed. Classes are numbered by name.

    Args:
        path: a folder with the folders train and test, which hold the same class folders.
        side: height and width in pixels to resize to, bilinear; default the images' own if all of
            them are 32, 64 or 96 pixels wide, else 32.

    Raises:
        ExitbenchError: folders are missing, empty or differ between train and test, or files are
            no square images; all such files at once.
    """
    names = _class_names(path)
    files, labels = {}, {}
    for split in SPLITS:
        classes = [_image_files(path / split / name) for name in names]
        files[split] = [file for inside in classes for file in inside]
        labels[split] = np.repeat(np.arange(len(names)), [len(inside) for inside in classes])
    native = _common_side(path, files["train"] + files["test"])
    if side is None:
        side = native if native in _NATIVE_SIDES else _NATIVE_SIDES[0]
    images = {split: _decode(path, files[split], side) for split in SPLITS}
    return Arrays(
        images["train"], labels["train"], images["test"], labels["test"], names, mirror=True
    )


def _class_names(path: Path) -> tuple[str, ...]:
    found: dict[str, list[str]] = {}
    for split in SPLITS:
        if not (path / split).is_dir():
            raise ExitbenchError(
                f"there is no folder {path / split}. {path} needs the folders train and test, "
                "each with a folder of images per class."
            )
        inside = [entry for entry in (path / split).iterdir() if _visible(entry)]
        found[split] = sorted(entry.name for entry in inside if entry.is_dir())
        loose = sorted(entry.name for entry in inside if not entry.is_dir())
        if loose:
            raise ExitbenchError(
                f"{path / split} holds files beside the class folders: {shown(loose)}. Move them "
                "into the folder of their class."
            )
    only = {
        split: [name for name in found[split] if name not in found[other]]
        for split, other in (SPLITS, SPLITS[::-1])
    }
    if only["train"] or only["test"]:
        raise ExitbenchError(
            f"the class folders of {path}/train and {path}/test differ: "
            + "; ".join(f"only in {split}: {shown(only[split])}" for split in SPLITS if only[split])
        )
    if len(found["train"]) < 2:
        raise ExitbenchError(
            f"{path / 'train'} holds {len(found['train'])} class folders; a classifier needs at "
            "least two"
        )
    return tuple(found["train"])


def _visible(entry: Path) -> bool:
    return not entry.name.startswith(".") and entry.name not in _LITTER


def _image_files(folder: Path) -> list[Path]:
    files = sorted(entry for entry in folder.iterdir() if _visible(entry))
    if not files:
        raise ExitbenchError(
            f"the class folder {folder} is empty. Put images into it, or remove the class from "
            "train and test."
        )
    return files


def _common_side(path: Path, files: list[Path]) -> int | None:
    """The side that all images share, from their headers alone; None if they differ."""
    sides: set[int] = set()
    faults = []
    for file in files:
        try:
            with Image.open(file) as image:
                (width, height), mode = image.size, image.mode
        except _UNREADABLE as error:
            faults.append(_unreadable(file, error))
            continue
        if mode not in _MODES:
            faults.append(f"{file}: pixels of mode {mode}; convert it to 8 bits per channel")
        elif width != height:
            faults.append(f"{file}: {width}x{height} pixels; crop or pad it to a square")
        sides.add(width)
    refuse(str(path), faults)
    return sides.pop() if len(sides) == 1 else None


def _decode(path: Path, files: list[Path], side: int) -> np.ndarray:
    images = np.empty((len(files), side, side, 3), np.uint8)
    faults = []
    for position, file in enumerate(files):
        try:
            with Image.open(file) as image:
                picture = ImageOps.exif_transpose(image).convert("RGB")
        except _UNREADABLE as error:
            faults.append(_unreadable(file, error))
            continue
        images[position] = np.asarray(picture.resize((side, side), Image.Resampling.BILINEAR))
    refuse(str(path), faults)
    return images


def _unreadable(file: Path, error: BaseException) -> str:
    if file.is_dir():
        return f"{file}: a folder inside a class folder; move its images up"
    return f"{file}: cannot be read as an image ({error})"

"""Traces: the evidence of a whole split at every exit, recorded once.

A trace is an npz file (uncompressed, so that single arrays are read as they are needed):

    meta                JSON text: schema, split, precision, exits, classes, kernel, horizon, ...
    truth               (N,) labels of the split
    indices             (N,) positions of the samples in the dataset's train or test array
    label               (E + 1, N) answers of the heads, then of the classifier
    confidence_NAME     (E, N) float32, one array per criterion
    rounds_NAME         (E, N, R) float16, confidence of each round of the convolution predictor
    logit_mean          (E,) mean over samples and classes of the logits
    logits              (N, E + 1, classes) float32, only on request

History of the schema: 1 is the first.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch import Tensor

from .criteria import CRITERIA, encode_rounds
from .errors import ExitbenchError
from .evidence import FloatArray, IntArray
from .files import replacing
from .predictors import convolution_stack, convolve

SCHEMA = 1
ROUND_CHUNK = 4_000_000  # numbers of a round's logits held at once: 16 MB
# All that numpy raises for a file that is no npz, or a damaged one; a single array (.npy) is
# loaded without complaint and fails as soon as it is used as a file of arrays.
_UNREADABLE = (
    OSError, ValueError, KeyError, IndexError, EOFError, TypeError, AttributeError,
    NotImplementedError, SyntaxError, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


@dataclass(frozen=True)
class TraceMeta:
    """What a trace says of itself."""

    split: str
    precision: str
    samples: int
    exits: int
    classes: int
    kernel: tuple[float, ...]
    horizon: int
    dataset: str
    network: str
    exit_names: tuple[str, ...]
    schema: int = SCHEMA


class TraceWriter:
    """Collects evidence batch by batch on disk; memory holds one batch.

    Args:
        meta: what is recorded.
        truth: labels, (N,).
        indices: positions in the dataset, (N,).
        folder: an empty folder for the arrays while they grow.
        keep_logits: store the raw logits too.
    """

    def __init__(
        self,
        meta: TraceMeta,
        truth: IntArray,
        indices: IntArray,
        folder: Path,
        keep_logits: bool = False,
    ) -> None:
        self.meta = meta
        self._folder = folder
        self._stack = convolution_stack(meta.classes, meta.kernel, meta.horizon)
        count, exits = meta.samples, meta.exits
        np.save(folder / "truth.npy", truth.astype(np.int64))
        np.save(folder / "indices.npy", indices.astype(np.int64))
        small = np.uint8 if meta.classes <= 256 else np.uint16
        self._label = self._grow("label", small, (exits + 1, count))
        self._confidence = {
            name: self._grow(f"confidence_{name}", np.float32, (exits, count)) for name in CRITERIA
        }
        self._rounds = {
            name: self._grow(f"rounds_{name}", np.float16, (exits, count, meta.horizon))
            for name in CRITERIA
        }
        self._logits = None
        if keep_logits:
            self._logits = self._grow("logits", np.float32, (count, exits + 1, meta.classes))
        self._sums = np.zeros(exits)

    def _grow(self, name: str, dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
        return open_memmap(self._folder / f"{name}.npy", mode="w+", dtype=dtype, shape=shape)

    def add(self, exit: int, start: int, logits: Tensor) -> None:
        """Record the logits (n, classes) of head ``exit`` for samples start..start + n.

        ``exit`` E + 1 is the classifier, of which only the answer is kept.
        """
        logits = logits.detach().to("cpu", torch.float32)
        if not torch.isfinite(logits).all():
            raise ExitbenchError(
                f"exit {exit} gives logits that are not finite for samples {start} to "
                f"{start + len(logits) - 1}; the network is broken in precision "
                f"{self.meta.precision}: train it again or choose another precision"
            )
        rows = slice(start, start + len(logits))
        self._label[exit - 1, rows] = logits.argmax(-1).numpy()
        if self._logits is not None:
            self._logits[rows, exit - 1] = logits.numpy()
        if exit > self.meta.exits:
            return
        self._sums[exit - 1] += float(logits.sum(dtype=torch.float64))
        for name, criterion in CRITERIA.items():
            self._confidence[name][exit - 1, rows] = criterion.confidence(logits).numpy()
        self._add_rounds(exit, start, logits)

    def _add_rounds(self, exit: int, start: int, logits: Tensor) -> None:
        step = max(1, ROUND_CHUNK // (self.meta.horizon * self.meta.classes))
        for low in range(0, len(logits), step):
            rounds = convolve(logits[low : low + step], self._stack)
            rows = slice(start + low, start + low + len(rounds))
            for name, criterion in CRITERIA.items():
                encoded = encode_rounds(name, criterion.confidence(rounds))
                self._rounds[name][exit - 1, rows] = encoded.numpy()

    def finish(self, path: Path) -> None:
        """Put everything into one file at ``path``, whole or not at all."""
        cells = max(1, self.meta.samples * self.meta.classes)
        np.save(self._folder / "logit_mean.npy", self._sums / cells)
        meta = np.array(json.dumps(asdict(self.meta)))
        np.save(self._folder / "meta.npy", meta)
        for array in (self._label, *self._confidence.values(), *self._rounds.values()):
            array.flush()  # type: ignore[attr-defined]
        with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            for part in sorted(self._folder.glob("*.npy")):
                # Without the time of writing: the same evidence gives the same bytes.
                entry = zipfile.ZipInfo(part.name)
                entry.file_size = part.stat().st_size
                with part.open("rb") as source, archive.open(entry, "w") as target:
                    shutil.copyfileobj(source, target)


@contextmanager
def writing(
    path: Path, meta: TraceMeta, truth: IntArray, indices: IntArray, keep_logits: bool = False
) -> Iterator[TraceWriter]:
    """A writer whose trace appears at ``path`` when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep_up(path.parent)
    prefix = f".trace-{os.getpid()}-"
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=prefix) as folder:
        writer = TraceWriter(meta, truth, indices, Path(folder), keep_logits)
        yield writer
        writer.finish(path)


def _sweep_up(folder: Path) -> None:
    """Remove what processes that were killed while they recorded have left behind."""
    for left in folder.glob(".trace-*-*"):
        process = left.name.split("-")[1]
        if process.isdecimal() and left.is_dir() and not psutil.pid_exists(int(process)):
            shutil.rmtree(left, ignore_errors=True)


def record(writer: TraceWriter, batches: Iterable[Tensor], prepared: Any) -> None:
    """Run a prepared network once over ``batches`` with all heads, and record the evidence.

    Args:
        batches: normalised images (n, 3, side, side), in the order of the split.
        prepared: the network, as ``runtime.prepare`` gives it.
    """
    start = 0
    for images in batches:
        state: Any = images
        for exit in range(1, writer.meta.exits + 1):
            state = prepared.run_segment(exit, state)
            writer.add(exit, start, prepared.run_head(exit, state))
        state = prepared.run_segment(writer.meta.exits + 1, state)
        writer.add(writer.meta.exits + 1, start, prepared.run_classifier(state))
        start += len(images)


class Trace:
    """A recorded trace; arrays are read when they are first asked for.

    Attributes:
        meta: what was recorded.
        truth: labels, (N,).
        label: answers, (E + 1, N).
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._kept: dict[str, NDArray[Any]] = {}
        try:
            self._file = np.load(self.path, allow_pickle=False)
            stored = json.loads(str(self._file["meta"]))
            schema = stored.get("schema")
        except FileNotFoundError as error:
            raise ExitbenchError(
                f"no trace at {path}; record one with 'exitbench trace' or 'exitbench study'"
            ) from error
        except _UNREADABLE as error:
            raise ExitbenchError(
                f"{path} is not a complete trace ({_why(error)}); delete it and record it again"
            ) from error
        if schema != SCHEMA:
            raise ExitbenchError(
                f"{path}: trace schema {schema!r}, this version of exitbench reads "
                f"{SCHEMA}; record it again"
            )
        try:
            tuples = {name: tuple(stored[name]) for name in ("kernel", "exit_names")}
            self.meta = TraceMeta(**{**stored, **tuples})
            _check_meta(self.meta)
        except (KeyError, TypeError) as error:
            raise ExitbenchError(
                f"{path}: what the trace says of itself is incomplete ({error}); delete it and "
                "record it again"
            ) from error

    def array(self, name: str) -> NDArray[Any]:
        """One stored array by its name in the file.

        Raises:
            ExitbenchError: it is not there, damaged, or not of the shape and kind that it must be.
        """
        if name not in self._kept:
            try:
                found = self._file[name]
            except _UNREADABLE as error:
                raise ExitbenchError(
                    f"{self.path} lacks the array {name!r} or it is damaged; record it again"
                ) from error
            shape, kinds = _expected(name, self.meta)
            if found.shape != shape or found.dtype.kind not in kinds:
                raise ExitbenchError(
                    f"{self.path}: the array {name!r} is {found.dtype} of shape {found.shape}, "
                    f"which must be {shape}; delete the file and record it again"
                )
            self._kept[name] = found
        return self._kept[name]

    def holds(self, name: str) -> bool:
        """Whether an array of that name was recorded."""
        return name in self._file.files

    def forget(self, criterion: str) -> None:
        """Free the arrays of one criterion."""
        for name in (f"confidence_{criterion}", f"rounds_{criterion}"):
            self._kept.pop(name, None)

    @property
    def truth(self) -> IntArray:
        return self.array("truth")

    @property
    def indices(self) -> IntArray:
        return self.array("indices")

    @property
    def label(self) -> IntArray:
        return self.array("label")

    def confidence(self, criterion: str) -> FloatArray:
        """Confidence at every exit: (E, N) float32."""
        return self.array(f"confidence_{criterion}")

    def rounds(self, criterion: str) -> NDArray[np.float16]:
        """Stored rounds of the convolution predictor: (E, N, R); see ``decode_rounds``."""
        return self.array(f"rounds_{criterion}")

    def correct(self) -> NDArray[np.bool_]:
        """Whether each exit, the classifier last, is right: (E + 1, N)."""
        return self.label == self.truth


def _expected(name: str, meta: TraceMeta) -> tuple[tuple[int, ...], str]:
    """Shape of a stored array, and numpy's kinds of numbers that it may hold."""
    samples, exits = meta.samples, meta.exits
    if name.startswith("confidence_"):
        return (exits, samples), "f"
    if name.startswith("rounds_"):
        return (exits, samples, meta.horizon), "f"
    return {
        "truth": ((samples,), "iu"),
        "indices": ((samples,), "iu"),
        "label": ((exits + 1, samples), "iu"),
        "logit_mean": ((exits,), "f"),
        "logits": ((samples, exits + 1, meta.classes), "f"),
    }[name]


def _check_meta(meta: TraceMeta) -> None:
    for name in ("samples", "exits", "classes", "horizon"):
        value = getattr(meta, name)
        if type(value) is not int or value < 1:
            raise TypeError(f"{name} is {value!r}, expected a whole number from 1")
    for name in ("split", "precision", "dataset", "network"):
        if not isinstance(getattr(meta, name), str):
            raise TypeError(f"{name} is {getattr(meta, name)!r}, expected text")
    if not all(isinstance(value, int | float) for value in meta.kernel):
        raise TypeError(f"kernel is {list(meta.kernel)!r}, expected numbers")


def _why(error: Exception) -> str:
    """What numpy says of a file, but for its advice to unpickle it."""
    if "pickle" in str(error):
        return "it is no npz file, or one of Python objects, which are never loaded"
    return str(error)


def trace_logits(
    path: Path,
    logits: NDArray[Any],
    truth: IntArray,
    indices: IntArray,
    meta: TraceMeta,
    keep_logits: bool = False,
) -> None:
    """A trace made from logits (N, E + 1, classes) of any framework."""
    with writing(path, meta, truth, indices, keep_logits) as writer:
        for start in range(0, len(logits), 1024):
            batch = torch.from_numpy(np.ascontiguousarray(logits[start : start + 1024]))
            for exit in range(1, meta.exits + 2):
                writer.add(exit, start, batch[:, exit - 1])


def read_logits(path: Path) -> tuple[NDArray[np.float32], IntArray]:
    """Logits (N, E + 1, classes) and labels (N,) from an npz file.

    Raises:
        ExitbenchError: the file is missing or no npz, an array is missing, misshapen, not
            finite, or a label is out of range.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            if missing := {"logits", "labels"} - set(file.files):
                raise ExitbenchError(
                    f"{path} lacks the array(s) {', '.join(sorted(missing))}; it needs logits "
                    "(N, exits + 1, classes) and labels (N,)"
                )
            logits, labels = file["logits"], file["labels"]
    except _UNREADABLE as error:
        raise ExitbenchError(
            f"cannot read {path} as an npz file of arrays: {_why(error)}. Write it with "
            "numpy.savez(file, logits=..., labels=...)."
        ) from error
    faults = []
    if logits.ndim != 3 or logits.shape[0] < 1 or logits.shape[1] < 2 or logits.shape[2] < 2:
        faults.append(f"logits have shape {logits.shape}, expected (N, exits + 1, classes)")
    elif labels.shape != logits.shape[:1]:
        faults.append(f"labels have shape {labels.shape}, expected ({len(logits)},)")
    if not np.issubdtype(logits.dtype, np.floating):
        faults.append(f"logits are {logits.dtype}, expected floating point")
    if not np.issubdtype(labels.dtype, np.integer):
        faults.append(f"labels are {labels.dtype}, expected integers")
    if not faults and not np.isfinite(logits).all():
        faults.append("logits hold values that are not finite")
    if not faults and not 0 <= labels.min() <= labels.max() < logits.shape[2]:
        faults.append(f"labels run from {labels.min()} to {labels.max()}, expected 0 to "
                      f"{logits.shape[2] - 1}")
    if faults:
        raise ExitbenchError(f"{path}: " + "; ".join(faults))
    return logits.astype(np.float32), labels.astype(np.int64)

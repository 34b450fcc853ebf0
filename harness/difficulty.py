"""Easy and hard samples: who leaves at the first exits and who reaches the end.

The list of samples is a small JSON file. History of its schema:

1   dataset, split, size, chosen, positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .errors import ExitbenchError
from .files import read_json, write_json

SCHEMA = 1
_REMEDY = "Write it again with 'exitbench subset'."


@dataclass(frozen=True)
class SampleList:
    """Samples of one data split.

    Attributes:
        dataset: specification of the data, such as ``cifar10``.
        split: name of the split, such as ``test``.
        size: how many samples that split had.
        positions: places in the split, rising, each once, from 0 to ``size`` - 1.
        chosen: how they were chosen, in words and settings that JSON can hold.
    """

    dataset: str
    split: str
    size: int
    positions: tuple[int, ...]
    chosen: dict[str, Any] = field(default_factory=dict)


def first_exits(exits: int) -> int:
    """The last exit that counts as one of the first: a quarter of ``exits``, at least 1."""
    return max(1, exits // 4)


def easy_positions(exit_at: np.ndarray, exits: int, last_exit: int | None = None) -> np.ndarray:
    """Positions of the samples that leave at or before ``last_exit``, int64, rising.

    Args:
        exit_at: where each sample leaves, integers (N,): 1 to ``exits``, or ``exits`` + 1 for the
            classifier.
        exits: number of exits besides the classifier.
        last_exit: default a quarter of the exits.

    Raises:
        ExitbenchError: ``exit_at`` or ``last_exit`` is out of range, or no sample is that easy.
    """
    _check(exit_at, exits)
    last_exit = first_exits(exits) if last_exit is None else last_exit
    if not 1 <= last_exit <= exits:
        raise ExitbenchError(f"exit is {last_exit}, but the exits go from 1 to {exits}")
    positions = np.flatnonzero(exit_at <= last_exit)
    if not len(positions):
        raise ExitbenchError(
            f"none of the {len(exit_at)} samples leaves at or before exit {last_exit}; the first "
            f"leaves at {int(exit_at.min())}. Choose a later exit or a smaller beta."
        )
    return positions


def hard_positions(exit_at: np.ndarray, exits: int) -> np.ndarray:
    """Positions of the samples that reach the classifier, int64, rising.

    Args:
        exit_at: where each sample leaves, integers (N,), as for ``easy_positions``.
        exits: number of exits besides the classifier.

    Raises:
        ExitbenchError: ``exit_at`` is out of range, or no sample reaches the end.
    """
    _check(exit_at, exits)
    positions = np.flatnonzero(exit_at > exits)
    if not len(positions):
        raise ExitbenchError(
            f"none of the {len(exit_at)} samples reaches the classifier; the last leaves at exit "
            f"{int(exit_at.max())}. Choose a larger beta."
        )
    return positions


def _check(exit_at: np.ndarray, exits: int) -> None:
    if exit_at.ndim != 1 or exit_at.dtype.kind not in "iu" or not len(exit_at):
        raise ExitbenchError(
            f"the exits taken have shape {exit_at.shape} and type {exit_at.dtype}; needed is one "
            "integer per sample and at least one sample"
        )
    low, high = int(exit_at.min()), int(exit_at.max())
    if low < 1 or high > exits + 1:
        raise ExitbenchError(
            f"the exits taken go from {low} to {high}, but there are exits 1 to {exits} and the "
            f"classifier as {exits + 1}"
        )


def sample_list(
    dataset: str, split: str, size: int, positions: Sequence[int] | np.ndarray, **chosen: Any
) -> SampleList:
    """A checked list of samples; ``chosen`` records how they were chosen.

    Raises:
        ExitbenchError: no position, one twice, or one outside 0..size-1.
    """
    numbers = [int(position) for position in positions]
    faults = _position_faults(numbers, size)
    if faults:
        raise ExitbenchError(f"samples of {dataset}, split {split}: {'; '.join(faults)}")
    return SampleList(dataset, split, size, tuple(sorted(numbers)), dict(chosen))


def write_samples(path: Path, samples: SampleList) -> None:
    """Write the list to the JSON file ``path``, whole or not at all."""
    write_json(path, {"schema": SCHEMA, **asdict(samples)})


def read_samples(path: Path, dataset: str, split: str, size: int) -> SampleList:
    """The list in ``path``, after checking that it is one of this split of this dataset.

    Args:
        path: a file of ``write_samples``.
        dataset, split, size: the specification of the data, the name of the split and the number
            of samples in it that the list is to be used with.

    Raises:
        ExitbenchError: the file is missing, no list of samples, of another schema, or of another
            dataset, split or size; all differences at once.
    """
    stored = read_json(path)
    if not isinstance(stored, dict) or "schema" not in stored:
        raise ExitbenchError(f"{path} is not a list of samples (no 'schema'). {_REMEDY}")
    if stored["schema"] != SCHEMA:
        raise ExitbenchError(
            f"{path} has schema {stored['schema']!r}, but this version reads schema {SCHEMA}. "
            f"{_REMEDY}"
        )
    _refuse(path, _type_faults(stored))
    wanted = {"dataset": dataset, "split": split, "size": size}
    _refuse(
        path,
        [
            f"{key} is {stored[key]!r}, but it is to be used with {value!r}"
            for key, value in wanted.items()
            if stored[key] != value
        ],
    )
    _refuse(path, _position_faults(stored["positions"], size))
    return SampleList(dataset, split, size, tuple(sorted(stored["positions"])), stored["chosen"])


def _refuse(path: Path, faults: list[str]) -> None:
    if faults:
        raise ExitbenchError(
            f"{path} does not fit:\n" + "\n".join(f"  {line}" for line in faults) + f"\n{_REMEDY}"
        )


def _type_faults(stored: Mapping[str, Any]) -> list[str]:
    kinds: dict[str, tuple[type, str]] = {
        "dataset": (str, "a text"),
        "split": (str, "a text"),
        "size": (int, "a whole number"),
        "chosen": (dict, "a table"),
        "positions": (list, "a list of whole numbers"),
    }
    faults = []
    for key, (kind, words) in kinds.items():
        if key not in stored:
            faults.append(f"{key} is missing; it must be {words}")
        elif not isinstance(stored[key], kind) or isinstance(stored[key], bool):
            faults.append(f"{key} is {stored[key]!r}; it must be {words}")
    positions = stored.get("positions")
    if isinstance(positions, list):
        odd = [value for value in positions if type(value) is not int]
        faults += [f"positions holds {value!r}; each must be a whole number" for value in odd[:1]]
    return faults


def _position_faults(positions: Sequence[int], size: int) -> list[str]:
    if not positions:
        return ["positions is empty; it must hold at least one sample"]
    faults = []
    outside = [position for position in positions if not 0 <= position < size]
    if outside:
        faults.append(f"positions holds {outside[0]}, but they go from 0 to {size - 1}")
    if len(set(positions)) != len(positions):
        faults.append("positions holds a sample twice; each may stand there once")
    return faults

"""Reading sweep.csv back: the settings in it, checked once, here."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd

from .configs import Criterion, Policy, Precision, Predictor
from .errors import ExitbenchError
from .rundir import RunDirectory
from .settings import Setting
from .sweep import SETTING_COLUMNS

_AGAIN = "Write it again with 'exitbench sweep'."
_NUMBERS = ("beta", "start_layer", "accuracy", "pareto")
_NAMES = {
    "split": ("calibration", "test"),
    "policy": get_args(Policy),
    "criterion": get_args(Criterion),
    "predictor": get_args(Predictor),
    "precision": get_args(Precision),
}
_ALWAYS = ("split", "policy", "precision", "accuracy")
_COLUMNS = ("split", *SETTING_COLUMNS, "accuracy", "pareto", "chosen_as")


def read_sweep(directory: RunDirectory) -> pd.DataFrame:
    """The rows of sweep.csv: numbers as float64 (NaN where empty), texts with None where empty.

    Raises:
        ExitbenchError: there is none, or a column is missing or holds what it cannot.
    """
    path = directory.sweep
    if not path.is_file():
        raise ExitbenchError(
            f"{directory.path} holds no sweep to choose settings from; run 'exitbench sweep'"
        )
    try:
        cells = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ExitbenchError(f"{path} is no CSV table: {error}. {_AGAIN}") from error
    if absent := [name for name in _COLUMNS if name not in cells.columns]:
        raise ExitbenchError(f"{path} lacks the column(s) {', '.join(absent)}. {_AGAIN}")
    if cells.empty:
        raise ExitbenchError(f"{path} has a header but no rows. {_AGAIN}")
    for name in _ALWAYS:
        _refuse(path, cells[name], cells[name] == "", "a value in every row")
    for name, known in _NAMES.items():
        right = cells[name].isin((*known, ""))
        _refuse(path, cells[name], ~right, f"one of {', '.join(known)}")
    found = cells.where(cells != "", None)
    for name in _NUMBERS:
        values = pd.to_numeric(cells[name], errors="coerce").astype(float)
        wrong = (cells[name] != "") & ~np.isfinite(values)
        _refuse(path, cells[name], wrong, "a finite number, or an empty cell where there is none")
        found[name] = values
    for name in set(cells.columns) - {*_COLUMNS}:
        filled = cells[name] != ""
        values = pd.to_numeric(cells[name], errors="coerce").astype(float)
        if values[filled].notna().all():
            found[name] = values
    starts = found.start_layer
    _refuse(path, cells.start_layer, (starts < 1) | (starts % 1 > 0), "a whole number from 1")
    return found


def _refuse(path: Path, cells: pd.Series, wrong: pd.Series, right: str) -> None:
    if wrong.any():
        row = int(np.flatnonzero(wrong.to_numpy())[0])
        raise ExitbenchError(
            f"{path}, line {row + 2}, column {cells.name}: {cells.iloc[row]!r} is wrong; right is "
            f"{right}. {_AGAIN}"
        )


def setting_of(row: pd.Series) -> Setting:
    """The setting in a row of sweep.csv or comparison.csv."""
    cells = {name: row[name] for name in SETTING_COLUMNS}
    values: dict[str, Any] = {n: None if pd.isna(cell) else cell for n, cell in cells.items()}
    start = values["start_layer"]
    values["start_layer"] = None if start is None else int(start)
    return Setting(**values)

"""Loading a run directory: every file a report may use, checked once, here and nowhere else.

Text columns hold "" and number columns NaN where the file has an empty cell. Only `manifest.json`
and `sweep.csv` must be there; what else is missing is put into words for the page.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..harness.errors import ExitbenchError
from ..harness.files import read_json, sha256
from .columns import (
    ENERGY_SOURCES,
    GOVERNED,
    GOVERNORS,
    MISSING,
    NOT_NEGATIVE,
    OPTIONAL,
    PLACE,
    PRESENT,
    REQUIRED,
    SCENES,
    SETTING,
    SHARES,
    SOURCES,
    TEXT,
    WRITERS,
)
from .measurements import read_measurements

SCHEMA = 1


@dataclass(frozen=True)
class Governed:
    """One governed-HARDWARE.csv: policies with and without governors on one hardware.

    ``facts`` is what the manifest says of it (empty where it says nothing).
    """

    hardware: str
    rows: pd.DataFrame
    facts: dict[str, Any]


@dataclass(frozen=True)
class Run:
    """What a run directory holds; a part that is not there is None (or empty) and in `missing`."""

    path: Path
    manifest: dict[str, Any]
    sweep: pd.DataFrame
    comparison: pd.DataFrame | None
    cost: pd.DataFrame | None
    prediction: pd.DataFrame | None
    confusion: pd.DataFrame | None
    scenarios: pd.DataFrame | None
    governed: tuple[Governed, ...]
    measurements: tuple[dict[str, Any], ...]
    missing: dict[str, str]
    notes: tuple[str, ...]


def read_run(path: Path) -> Run:
    """The checked contents of the run directory ``path``.

    Raises:
        ExitbenchError: no directory, no manifest or sweep, or a file whose contents are wrong.
    """
    path = Path(path)
    if not path.is_dir():
        raise ExitbenchError(
            f"{path} is no run directory: there is no such folder. Give the folder that "
            "'exitbench study', 'sweep' or 'demo' wrote."
        )
    manifest = _read_manifest(path / "manifest.json")
    missing = {name: words for name, words in MISSING.items() if not any(path.glob(name))}
    tables = {
        name: _read_table(path / name, name)
        for name in REQUIRED
        if name not in missing and name != GOVERNED
    }
    sweep = tables["sweep.csv"]
    if not (sweep["split"] == "test").any():
        raise ExitbenchError(
            f"{path / 'sweep.csv'}: no row of the split 'test'; results are reported on it. Run "
            "'exitbench trace' for the test split and 'exitbench sweep' again."
        )
    measurements, notes = read_measurements(path / "measurements.jsonl")
    return Run(
        path=path,
        manifest=manifest,
        sweep=sweep,
        comparison=tables.get("comparison.csv"),
        cost=tables.get("cost.csv"),
        prediction=tables.get("prediction.csv"),
        confusion=tables.get("prediction_confusion.csv"),
        scenarios=tables.get("scenarios.csv"),
        governed=_read_governed(path, manifest),
        measurements=measurements,
        missing=missing,
        notes=(*_changed_files(path, manifest), *notes),
    )


def _read_manifest(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ExitbenchError(
            f"{path} is missing, so {path.parent} is no run directory. Give the folder that "
            "'exitbench study', 'sweep' or 'demo' wrote."
        )
    manifest = read_json(path)
    if not isinstance(manifest, dict):
        raise ExitbenchError(f"{path}: a JSON object is needed, not {type(manifest).__name__}.")
    if manifest.get("schema") != SCHEMA:
        raise ExitbenchError(
            f"{path}: schema is {manifest.get('schema')!r}, this exitbench reads {SCHEMA}. Write "
            "the run again, or report it with the version that wrote it "
            f"({manifest.get('exitbench', 'not recorded')})."
        )
    return manifest


def _read_governed(path: Path, manifest: dict[str, Any]) -> tuple[Governed, ...]:
    """The governed-HARDWARE.csv of a run, this machine's first, then by name."""
    hardware, facts = manifest.get("hardware"), manifest.get("govern")
    own = hardware.get("profile") if isinstance(hardware, dict) else None
    found = []
    for file in path.glob(GOVERNED):
        name = file.stem.removeprefix("governed-")
        told = facts.get(name) if isinstance(facts, dict) else None
        found.append(
            Governed(name, _read_table(file, GOVERNED), told if isinstance(told, dict) else {})
        )
    return tuple(sorted(found, key=lambda one: (one.hardware != own, one.hardware)))


def _read_table(path: Path, kind: str) -> pd.DataFrame:
    """The CSV at ``path`` with typed columns; columns that may be missing are added empty.

    ``kind`` is the key of its columns in `columns`.
    """
    if not path.is_file():
        raise ExitbenchError(
            f"{path} is missing; a report needs it. Run 'exitbench sweep --run {path.parent}'."
        )
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ExitbenchError(
            f"{path} cannot be read as a CSV table: {error}. {_again(path)}"
        ) from error
    needed = (*REQUIRED[kind], *PRESENT.get(kind, ()))
    absent = [column for column in needed if column not in frame.columns]
    if absent:
        raise ExitbenchError(
            f"{path}: missing column{'s' if len(absent) > 1 else ''} {', '.join(absent)}; "
            f"needed are {', '.join(needed)}. {_again(path)}"
        )
    if frame.empty:
        raise ExitbenchError(f"{path} has a header but no rows. {_again(path)}")
    for column in OPTIONAL[kind]:
        if column not in frame.columns:
            frame[column] = ""
    for column in set(frame.columns) - TEXT:
        frame[column] = _numbers(path, frame[column])
    _check(path, kind, frame)
    return _with_key(frame) if kind in ("sweep.csv", "comparison.csv") else frame


def _again(path: Path) -> str:
    """How the table at ``path`` is written anew."""
    writer = WRITERS.get(path.name)
    if writer is None:
        return f"Write it again: 'exitbench govern --run {path.parent}', with its --hardware."
    return f"Write it again: 'exitbench {writer} --run {path.parent}'."


def _numbers(path: Path, cells: pd.Series) -> pd.Series:
    """A text column as float64, NaN where a cell is empty."""
    stripped = cells.str.strip()
    values = pd.to_numeric(stripped, errors="coerce").astype(float)
    wrong = (values.isna() & ~stripped.str.lower().isin(("", "nan", "none"))) | np.isinf(values)
    if wrong.any():
        _complain(path, cells, wrong, "a finite number, or an empty cell where there is none")
    return values


def _complain(path: Path, cells: pd.Series, wrong: pd.Series, right: str) -> None:
    row = int(np.flatnonzero(wrong.to_numpy())[0])
    more = int(wrong.sum()) - 1
    value = cells.tolist()[row]
    shown = "an empty cell" if value == "" or pd.isna(value) else repr(value)
    raise ExitbenchError(
        f"{path}, line {row + 2}, column {cells.name}: {shown} is wrong"
        f"{f' (and {more} more)' if more else ''}; right is {right}. {_again(path)}"
    )


def _check(path: Path, kind: str, frame: pd.DataFrame) -> None:
    """Ranges that every table must keep, whatever it holds."""
    for column in REQUIRED[kind]:
        empty = frame[column].eq("") if column in TEXT else frame[column].isna()
        if empty.any():
            _complain(path, frame[column], empty, "a value in every row")
    for column in SHARES:
        if column in frame.columns:
            outside = (frame[column] < 0) | (frame[column] > 1)
            if outside.any():
                _complain(path, frame[column], outside, "a share between 0 and 1")
    for column in NOT_NEGATIVE:
        if column in frame.columns and (frame[column] < 0).any():
            _complain(path, frame[column], frame[column] < 0, "0 or more")
    _check_sources(path, frame)
    if kind == "scenarios.csv":
        _check_scenes(path, frame)
    if kind == GOVERNED:
        unknown = ~frame["governor"].isin((*GOVERNORS, ""))
        if unknown.any():
            words = f"one of {', '.join(GOVERNORS)}, or an empty cell for the top clock"
            _complain(path, frame["governor"], unknown, words)


def _check_scenes(path: Path, frame: pd.DataFrame) -> None:
    """Every scene is a known one, and has a period where it is periodic."""
    unknown = ~frame["scene"].isin(SCENES)
    if unknown.any():
        _complain(path, frame["scene"], unknown, f"one of {', '.join(SCENES)}")
    bare = frame["scene"].eq("periodic") & ~(frame["period_ms"] > 0)
    if bare.any():
        _complain(path, frame["period_ms"], bare, "the ms between two requests, above 0")


def _check_sources(path: Path, frame: pd.DataFrame) -> None:
    """Energy without a source cannot be trusted, so it is not reported."""
    for column in SOURCES:
        if column in frame.columns:
            unknown = ~frame[column].isin((*ENERGY_SOURCES, ""))
            if unknown.any():
                _complain(path, frame[column], unknown, f"one of {', '.join(ENERGY_SOURCES)}")
    for column in ("energy_mj", "energy_per_request_mj"):
        if column in frame.columns:
            source = frame["energy_source"]
            bare = frame[column].notna() & source.isin(("", "unavailable"))
            if bare.any():
                _complain(path, source, bare, f"measured or modelled beside a value in {column}")


def _with_key(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with a column `key` that is equal for the same setting on either split."""
    parts = [as_text(frame[column]) for column in (*SETTING, *PLACE)]
    return frame.assign(key=["|".join(cells) for cells in zip(*parts, strict=True)])


def as_text(cells: pd.Series) -> list[str]:
    """The cells as strings, a missing one too, so that missing equals missing."""
    return [str(cell) for cell in cells.tolist()]


def _changed_files(path: Path, manifest: dict[str, Any]) -> tuple[str, ...]:
    """A note per file that is not what the manifest's checksum says."""
    checksums = manifest.get("checksums")
    if not isinstance(checksums, dict):
        return ()
    changed = [
        name
        for name, digest in sorted(checksums.items())
        if (name in (*REQUIRED, "measurements.jsonl") or fnmatch(name, GOVERNED))
        and (path / name).is_file()
        and sha256(path / name) != digest
    ]
    if not changed:
        return ()
    return (
        f"{', '.join(changed)} changed after the manifest was written (checksums differ); the "
        "numbers below are those of the files as they are now.",
    )

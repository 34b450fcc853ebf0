"""Loading a run directory: every file a report may use, checked once, here and nowhere else.

Text columns hold "" and number columns NaN where the file has an empty cell. Only `manifest.json`
and `sweep.csv` must be there; what else is missing is put into words for the page.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..harness.errors import ExitbenchError
from ..harness.files import read_json, sha256

SCHEMA = 1
ENERGY_SOURCES = ("measured", "modelled", "unavailable")

SETTING = ("policy", "criterion", "beta", "start_layer", "predictor", "precision")
PLACE = ("batch_size", "operating_point", "device")

TEXT = frozenset(
    {
        *("split", "role", "chosen_as", "policy", "criterion", "predictor", "precision"),
        *("operating_point", "device", "runtime", "kind", "name", "uncounted", "exit_histogram"),
        *("energy_source", "gpu_energy_source", "cpu_energy_source", "energy_note", "ranked_by"),
    }
)
REQUIRED = {
    "sweep.csv": ("split", "policy", "precision", "samples", "accuracy", "macs"),
    "comparison.csv": ("role", "policy", "precision", "accuracy", "macs"),
    "cost.csv": ("kind", "index", "macs"),
    "prediction.csv": ("predictor", "start_layer", "forecasts", "hits"),
    "prediction_confusion.csv": ("forecast_jump", "true_jump", "count"),
}
OPTIONAL = {
    "sweep.csv": (
        *("criterion", "beta", "start_layer", "predictor", "batch_size", "operating_point"),
        *("device", "flops", "latency_ms", "energy_mj", "energy_source", "mean_exit", "checks"),
        *("prediction_accuracy", "exit_histogram", "pareto", "chosen_as"),
        *("macs_saved_full", "macs_saved_every_exit"),
    ),
    "comparison.csv": (
        *("split", "criterion", "beta", "start_layer", "predictor", "batch_size"),
        *("operating_point", "device", "samples", "flops", "latency_ms", "energy_mj"),
        *("energy_source", "mean_exit", "checks", "prediction_accuracy", "exit_histogram"),
        *("calibration_accuracy", "ranked_by"),
    ),
    "cost.csv": (
        *("name", "precision", "runtime", "device", "threads", "batch_size", "operating_point"),
        *("flops", "params", "bytes", "latency_ms", "latency_low_ms", "latency_high_ms"),
        *("energy_mj", "energy_low_mj", "energy_high_mj", "energy_source", "uncounted"),
    ),
    "prediction.csv": ("criterion", "beta", "precision", "split", "prediction_accuracy"),
    "prediction_confusion.csv": (
        *("criterion", "beta", "predictor", "precision", "start_layer", "split"),
    ),
}
MISSING = {
    "cost.csv": "There is no cost table (cost.csv), so the cost per layer is not shown; "
    "'exitbench profile' writes one.",
    "comparison.csv": "There is no comparison at equal accuracy (comparison.csv); 'exitbench "
    "sweep' writes it.",
    "prediction.csv": "How often the forecasts are right is not shown: there is no prediction.csv"
    "; 'exitbench sweep' writes it.",
    "prediction_confusion.csv": "The confusion of forecast and true jumps is not shown: there is "
    "no prediction_confusion.csv; 'exitbench sweep' writes it.",
    "measurements.jsonl": "Nothing was really run (no measurements.jsonl): every cost below is "
    "replayed from the cost table and not yet confirmed; 'exitbench run' does that.",
}

MEASURED_NUMBERS = (
    *("accuracy", "macs", "samples", "repeats", "batch_size", "beta", "start_layer"),
    *("latency_ms", "latency_low_ms", "latency_high_ms", "energy_mj", "same_decisions"),
    *("replay_accuracy", "replay_latency_ms", "replay_energy_mj"),
)


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
    missing = {name: words for name, words in MISSING.items() if not (path / name).is_file()}
    tables = {name: _read_table(path / name) for name in REQUIRED if name not in missing}
    sweep = tables["sweep.csv"]
    if not (sweep["split"] == "test").any():
        raise ExitbenchError(
            f"{path / 'sweep.csv'}: no row of the split 'test'; results are reported on it. Run "
            "'exitbench trace' for the test split and 'exitbench sweep' again."
        )
    measurements, notes = _read_measurements(path / "measurements.jsonl")
    return Run(
        path=path,
        manifest=manifest,
        sweep=sweep,
        comparison=tables.get("comparison.csv"),
        cost=tables.get("cost.csv"),
        prediction=tables.get("prediction.csv"),
        confusion=tables.get("prediction_confusion.csv"),
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


def _read_table(path: Path) -> pd.DataFrame:
    """The CSV at ``path`` with typed columns; columns that may be missing are added empty."""
    if not path.is_file():
        raise ExitbenchError(
            f"{path} is missing; a report needs it. Run 'exitbench sweep --run {path.parent}'."
        )
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ExitbenchError(
            f"{path} cannot be read as a CSV table: {error}. Write it again with exitbench."
        ) from error
    absent = [column for column in REQUIRED[path.name] if column not in frame.columns]
    if absent:
        raise ExitbenchError(
            f"{path}: missing column{'s' if len(absent) > 1 else ''} {', '.join(absent)}; "
            f"needed are {', '.join(REQUIRED[path.name])}. Write the file again with exitbench."
        )
    if frame.empty:
        raise ExitbenchError(f"{path} has a header but no rows. Write it again with exitbench.")
    for column in OPTIONAL[path.name]:
        if column not in frame.columns:
            frame[column] = ""
    for column in set(frame.columns) - TEXT:
        frame[column] = _numbers(path, frame[column])
    _check(path, frame)
    return _with_key(frame) if "policy" in frame.columns else frame


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
    raise ExitbenchError(
        f"{path}, line {row + 2}, column {cells.name}: {cells.iloc[row]!r} is wrong"
        f"{f' (and {more} more)' if more else ''}; right is {right}. Write the file again."
    )


def _check(path: Path, frame: pd.DataFrame) -> None:
    """Ranges that every table must keep, whatever it holds."""
    for column in REQUIRED[path.name]:
        empty = frame[column].eq("") if column in TEXT else frame[column].isna()
        if empty.any():
            _complain(path, frame[column], empty, "a value in every row")
    for column in ("accuracy", "prediction_accuracy", "calibration_accuracy"):
        if column in frame.columns:
            outside = (frame[column] < 0) | (frame[column] > 1)
            if outside.any():
                _complain(path, frame[column], outside, "a share between 0 and 1")
    for column in ("macs", "latency_ms", "energy_mj", "count", "forecasts", "hits"):
        if column in frame.columns and (frame[column] < 0).any():
            _complain(path, frame[column], frame[column] < 0, "0 or more")
    if "energy_source" in frame.columns:
        _check_energy(path, frame)


def _check_energy(path: Path, frame: pd.DataFrame) -> None:
    """Energy without a source cannot be trusted, so it is not reported."""
    source, words = frame["energy_source"], ", ".join(ENERGY_SOURCES)
    unknown = ~source.isin((*ENERGY_SOURCES, ""))
    if unknown.any():
        _complain(path, source, unknown, f"one of {words}")
    bare = frame["energy_mj"].notna() & source.isin(("", "unavailable"))
    if bare.any():
        _complain(path, source, bare, "measured or modelled beside a value in energy_mj")


def _with_key(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with a column `key` that is equal for the same setting on either split."""
    parts = [as_text(frame[column]) for column in (*SETTING, *PLACE)]
    return frame.assign(key=["|".join(cells) for cells in zip(*parts, strict=True)])


def as_text(cells: pd.Series) -> list[str]:
    """The cells as strings, a missing one too, so that missing equals missing."""
    return [str(cell) for cell in cells.tolist()]


def _read_measurements(path: Path) -> tuple[tuple[dict[str, Any], ...], tuple[str, ...]]:
    """The measured runs in order, and a note where an interrupted run left half a line."""
    if not path.is_file():
        return (), ()
    try:
        lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ExitbenchError(f"{path} cannot be read: {error}. Measure again.") from error
    found: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                return _latest(found), (
                    "The last line of measurements.jsonl is broken off, as when a run is "
                    "interrupted; it is left out.",
                )
            raise ExitbenchError(
                f"{path}, line {number}: no valid JSON ({error}). Remove that line, or the file, "
                "and measure again with 'exitbench run'."
            ) from error
        found.append(_checked_measurement(path, number, value))
    return _latest(found), ()


def _latest(rows: list[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    """The last run of every setting and place, in the order of the file."""
    latest: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in rows:
        key = tuple(str(row.get(column)) for column in (*SETTING, *PLACE))
        latest.pop(key, None)
        latest[key] = row
    return tuple(latest.values())


def _checked_measurement(path: Path, number: int, value: Any) -> dict[str, Any]:
    where = f"{path}, line {number}"
    if not isinstance(value, dict):
        raise ExitbenchError(f"{where}: a JSON object is needed, not {type(value).__name__}.")
    for field in ("policy", "precision", "accuracy"):
        if value.get(field) is None:
            raise ExitbenchError(
                f"{where}: the field {field!r} is missing. Remove the line and measure again with "
                "'exitbench run'."
            )
    for field in MEASURED_NUMBERS:
        number_or_none = value.get(field)
        if number_or_none is not None and type(number_or_none) not in (int, float):
            raise ExitbenchError(
                f"{where}: {field} is {number_or_none!r}; right is a number or null."
            )
    layers = value.get("stat_each_layer")
    if layers is not None and not _are_layers(layers):
        raise ExitbenchError(
            f"{where}: stat_each_layer must be a list with an object of numbers per exit. Remove "
            "the line and measure again with 'exitbench run'."
        )
    if value.get("energy_mj") is not None and value.get("energy_source") not in ENERGY_SOURCES[:2]:
        raise ExitbenchError(
            f"{where}: energy_mj is given but energy_source is {value.get('energy_source')!r}; "
            "right is measured or modelled."
        )
    return value


def _are_layers(layers: Any) -> bool:
    """Whether these are statistics per exit: objects of numbers, each with its exit."""
    if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
        return False
    values = [v for layer in layers for v in (layer.get("exit", 0), *layer.values())]
    exits = all(type(layer.get("exit", 1)) is int for layer in layers)
    return exits and all(v is None or type(v) in (int, float) for v in values)


def _changed_files(path: Path, manifest: dict[str, Any]) -> tuple[str, ...]:
    """A note per file that is not what the manifest's checksum says."""
    checksums = manifest.get("checksums")
    if not isinstance(checksums, dict):
        return ()
    changed = [
        name
        for name, digest in sorted(checksums.items())
        if name in (*REQUIRED, "measurements.jsonl")
        and (path / name).is_file()
        and sha256(path / name) != digest
    ]
    if not changed:
        return ()
    return (
        f"{', '.join(changed)} changed after the manifest was written (checksums differ); the "
        "numbers below are those of the files as they are now.",
    )

"""Reading measurements.jsonl: what was really run, line by line, the last run of each counts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ..harness.errors import ExitbenchError
from .columns import ENERGY_SOURCES, MEASURED_NUMBERS, RUN_KEY, SHARES


def read_measurements(path: Path) -> tuple[tuple[dict[str, Any], ...], tuple[str, ...]]:
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
    """The last run of every setting, place, scene and governor, in the order of the file."""
    latest: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in rows:
        # A run of before there were scenes is a continuous one.
        scene = {"scene": row.get("scene") or "continuous"}
        key = tuple(str({**row, **scene}.get(column)) for column in RUN_KEY)
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
        if number_or_none is not None and not _in_range(field, number_or_none):
            right = "from 0 to 1" if field in SHARES else "that is finite and not below 0"
            raise ExitbenchError(
                f"{where}: {field} is {number_or_none!r}; right is a number {right}. Remove the "
                "line and measure again with 'exitbench run'."
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
    _check_metering(where, value)
    return value


def _in_range(field: str, value: float) -> bool:
    """Whether a number can be: net energies alone may lie below 0."""
    least = -sys.float_info.max if field == "net_energy_mj" else 0.0
    return least <= value <= (1.0 if field in SHARES else sys.float_info.max)


def _check_metering(where: str, value: dict[str, Any]) -> None:
    """The fields that say how a run was metered and in which scene."""
    if value.get("scene") not in (None, "continuous", "periodic"):
        raise ExitbenchError(
            f"{where}: scene is {value.get('scene')!r}; right is continuous or periodic. Remove "
            "the line and measure again with 'exitbench run'."
        )
    flags = value.get("energy_flags")
    if flags is not None and not (
        isinstance(flags, list) and all(isinstance(flag, str) for flag in flags)
    ):
        raise ExitbenchError(
            f"{where}: energy_flags must be a list of sentences. Remove the line and measure "
            "again with 'exitbench run'."
        )
    for field in ("energy_source", "latency_source", "idle_source"):
        if value.get(field) not in (None, "", *ENERGY_SOURCES):
            raise ExitbenchError(
                f"{where}: {field} is {value[field]!r}; right is one of "
                f"{', '.join(ENERGY_SOURCES)}, or null."
            )


def _are_layers(layers: Any) -> bool:
    """Whether these are statistics per exit: objects of numbers, each with its exit."""
    if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
        return False
    values = [v for layer in layers for v in (layer.get("exit", 0), *layer.values())]
    exits = all(type(layer.get("exit", 1)) is int for layer in layers)
    return exits and all(v is None or type(v) in (int, float) for v in values)


def flags_of(value: Any) -> list[str]:
    """The sentences of a list of flags; none where there is no such list."""
    return [str(flag) for flag in value if flag] if isinstance(value, list) else []

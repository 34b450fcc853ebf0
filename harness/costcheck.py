"""Checking a cost table: its columns, their values, and that no unit is missing or twice there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from .configs import Precision
from .errors import ExitbenchError
from .meters.base import Source

COLUMNS: dict[str, str] = {
    "kind": "text",
    "index": "whole",
    "name": "text",
    "precision": "text",
    "runtime": "text",
    "device": "text",
    "threads": "whole",
    "batch_size": "whole",
    "operating_point": "text",
    "clock_mhz": "number",
    "macs": "whole",
    "flops": "whole",
    "params": "whole",
    "bytes": "whole",
    "latency_ms": "number",
    "latency_low_ms": "number",
    "latency_high_ms": "number",
    "latency_source": "text",
    "repeats": "whole",
    "energy_mj": "number",
    "energy_low_mj": "number",
    "energy_high_mj": "number",
    "energy_uncertainty_mj": "number",
    "energy_source": "text",
    "net_energy_mj": "number",
    "gpu_energy_mj": "number",
    "gpu_energy_source": "text",
    "cpu_energy_mj": "number",
    "cpu_energy_source": "text",
    "power_w": "number",
    "uncounted": "text",
}
"""Every column in the order of the file, and what its cells hold."""

MANDATORY = ("kind", "index", "macs")
KEY = ("precision", "batch_size", "operating_point")
KINDS = ("segment", "head", "forecast", "classifier", "gather")
OPTIONAL = ("forecast", "gather")  # kinds that a table may leave out

_ALLOWED: dict[str, tuple[str, ...]] = {
    "kind": KINDS,
    "precision": get_args(Precision),
    "latency_source": get_args(Source),
    "energy_source": get_args(Source),
    "gpu_energy_source": get_args(Source),
    "cpu_energy_source": get_args(Source),
}
_DEFAULTS: dict[str, Any] = {"precision": "fp32", "batch_size": 1, "operating_point": "default"}
_POSITIVE = ("index", "batch_size", "threads")
_ANY_SIGN = ("net_energy_mj",)  # what is left above idle can lie below 0, by noise or by drift
_MOST_FAULTS = 50

Row = dict[str, Any]
Line = tuple[int, Sequence[str]]


@dataclass
class _Faults:
    """The faults found so far, in the order of the file."""

    found: list[tuple[int, str]] = field(default_factory=list)

    def add(self, line: int, message: str) -> None:
        self.found.append((line, message))

    def check(self, where: str) -> None:
        if not self.found:
            return
        self.found.sort(key=lambda fault: fault[0])
        shown = [f"  row {line}: {message}" for line, message in self.found[:_MOST_FAULTS]]
        more = len(self.found) - len(shown)
        if more:
            shown.append(f"  and {more} more")
        count = len(self.found)
        raise ExitbenchError(
            f"{where} is no valid cost table; {count} fault{'s' * (count > 1)}, header = row 1:\n"
            + "\n".join(shown)
        )


def parse(header: Sequence[str], lines: Sequence[Line], where: str) -> list[Row]:
    """The rows as typed values with every column; None is unknown.

    Args:
        header: names of the columns.
        lines: each row's number in the file and its cells.
        where: what messages call the table.

    Raises:
        ExitbenchError: all faults at once, each with its row.
    """
    _check_header(header, where)
    faults = _Faults()
    rows: list[tuple[int, Row]] = []
    for line, cells in lines:
        if len(cells) != len(header):
            faults.add(line, f"{len(cells)} cells, the header has {len(header)}")
            continue
        before = len(faults.found)
        row = _parse_row(line, dict(zip(header, cells, strict=True)), faults)
        _check_row(line, row, faults)
        if len(faults.found) == before:
            rows.append((line, row))
    # Which units are missing can be said only when every row could be read.
    if not faults.found:
        if not rows:
            faults.add(1, "there are no rows below the header")
        groups: dict[tuple[Any, ...], list[tuple[int, Row]]] = {}
        for line, row in rows:
            groups.setdefault(tuple(row[name] for name in KEY), []).append((line, row))
        for key, group in groups.items():
            _check_units(key, group, faults)
    faults.check(where)
    return [row for _, row in rows]


def _check_header(header: Sequence[str], where: str) -> None:
    problems = []
    missing = [name for name in MANDATORY if name not in header]
    unknown = [name for name in header if name not in COLUMNS]
    twice = sorted({name for name in header if header.count(name) > 1})
    if missing:
        problems.append(f"missing columns: {', '.join(missing)}")
    if unknown:
        problems.append(f"unknown columns: {', '.join(map(repr, unknown))}")
    if twice:
        problems.append(f"columns that are there twice: {', '.join(twice)}")
    if problems:
        hint = ""
        if len(header) == 1 and ";" in header[0]:
            hint = " Cells must be separated by commas, not semicolons."
        raise ExitbenchError(
            f"{where}, row 1: {'; '.join(problems)}. Known columns are {', '.join(COLUMNS)}.{hint}"
        )


def _parse_row(line: int, cells: dict[str, str], faults: _Faults) -> Row:
    row: Row = {}
    for name, kind in COLUMNS.items():
        text = cells.get(name, "")
        if not text:
            row[name] = _DEFAULTS.get(name)
            if name in MANDATORY:
                faults.add(line, f"{name} is empty")
        elif kind == "text":
            row[name] = text
            if name in _ALLOWED and text not in _ALLOWED[name]:
                faults.add(line, f"{name} is {text!r}; allowed are {', '.join(_ALLOWED[name])}")
        else:
            row[name] = _number(line, name, text, kind == "whole", faults)
    return row


def _number(line: int, name: str, text: str, whole: bool, faults: _Faults) -> int | float | None:
    try:
        value = int(text) if whole and text.isdecimal() else float(text)
    except ValueError:
        faults.add(line, f"{name} is {text!r}, not a number (leave it empty if unknown)")
        return None
    if not math.isfinite(value):
        faults.add(line, f"{name} is {text!r}; leave it empty if unknown")
        return None
    if name not in _ANY_SIGN and (value < 0 or (name in _POSITIVE and value == 0)):
        least = "at least 1" if name in _POSITIVE else "0 or more"
        faults.add(line, f"{name} is {text}; it must be {least}")
        return None
    if not whole:
        return float(value)
    if value != int(value):
        faults.add(line, f"{name} is {text}; it must be a whole number")
        return None
    return int(value)


def _check_row(line: int, row: Row, faults: _Faults) -> None:
    for domain in ("", "gpu_", "cpu_"):
        energy, source = row[f"{domain}energy_mj"], row[f"{domain}energy_source"]
        if energy is not None and source in (None, "unavailable"):
            faults.add(
                line,
                f"{domain}energy_mj is {energy:g} but {domain}energy_source is "
                f"{source or 'empty'}; say measured or modelled",
            )
        if energy is None and source not in (None, "unavailable"):
            faults.add(
                line,
                f"{domain}energy_source is {source!r} but {domain}energy_mj is empty; "
                "leave both empty, or say unavailable",
            )
    _check_what_belongs_to_a_value(line, row, faults)
    for name, unit in (("latency", "ms"), ("energy", "mj")):
        ends = [row[f"{name}{part}_{unit}"] for part in ("_low", "", "_high")]
        known = [value for value in ends if value is not None]
        if known != sorted(known):
            faults.add(line, f"{name}_{unit} lies outside its interval, low to high")


def _check_what_belongs_to_a_value(line: int, row: Row, faults: _Faults) -> None:
    if row["latency_ms"] is None and row["latency_source"] not in (None, "unavailable"):
        faults.add(
            line,
            f"latency_source is {row['latency_source']!r} but latency_ms is empty; leave both "
            "empty, or say unavailable",
        )
    if row["latency_ms"] is not None and row["latency_source"] == "unavailable":
        faults.add(
            line,
            f"latency_ms is {row['latency_ms']:g} but latency_source is unavailable; say measured "
            "or modelled, or leave the source empty for measured",
        )
    for name in ("net_energy_mj", "energy_uncertainty_mj"):
        if row[name] is not None and row["energy_mj"] is None:
            faults.add(
                line, f"{name} is {row[name]:g} but energy_mj is empty; give both or neither"
            )


def _check_units(key: tuple[Any, ...], group: list[tuple[int, Row]], faults: _Faults) -> None:
    """Segments 1..E+1, heads 1..E, classifier E+1; forecasts, gathers 1..E or none; each once."""
    setting = f"{key[0]}, batch {key[1]}, operating point {key[2]!r}"
    first = group[0][0]
    seen: dict[tuple[str, int], int] = {}
    for line, row in group:
        unit = (row["kind"], row["index"])
        if unit in seen:
            faults.add(line, f"{unit[0]} {unit[1]} is already in row {seen[unit]} ({setting})")
        seen.setdefault(unit, line)
    found = {kind: [index for k, index in seen if k == kind] for kind in KINDS}
    exits = max(found["segment"], default=0) - 1
    if exits < 0:
        faults.add(first, f"no segments ({setting}); E exits need segments 1 to E + 1")
        return
    wanted = {
        "segment": range(1, exits + 2),
        "head": range(1, exits + 1),
        "classifier": range(exits + 1, exits + 2),
        **{kind: range(1, exits + 1) if found[kind] else range(0) for kind in OPTIONAL},
    }
    for kind, indices in wanted.items():
        missing = [index for index in indices if index not in found[kind]]
        if missing:
            numbers = ", ".join(map(str, missing[:10])) + (" ..." if len(missing) > 10 else "")
            faults.add(first, f"{kind} {numbers} missing ({setting}: {exits} exits)")
        for index in sorted(set(found[kind]) - set(indices)):
            faults.add(
                seen[kind, index],
                f"{kind} {index}, but {exits + 1} segments make {exits} exits ({setting})",
            )

"""A small typed checker for tables read from TOML: every fault is found before any is told."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Check = Callable[["Faults", str, Any], None]
"""Looks at the value under a dotted key and adds what is wrong with it."""


@dataclass
class Faults:
    """The faults found so far, one line each: key, value, what is allowed."""

    lines: list[str] = field(default_factory=list)

    def add(self, key: str, value: Any, allowed: str) -> None:
        """Note that ``value`` under ``key`` is not what is allowed."""
        self.lines.append(f"{key} = {_shown(value)}: {allowed}")

    def missing(self, key: str, allowed: str) -> None:
        """Note that ``key`` is not there."""
        self.lines.append(f"{key} is missing: {allowed}")


def text(faults: Faults, key: str, value: Any) -> None:
    """A text that is not empty."""
    if not isinstance(value, str) or not value.strip():
        faults.add(key, value, "must be a text that is not empty")


def flag(faults: Faults, key: str, value: Any) -> None:
    """true or false."""
    if not isinstance(value, bool):
        faults.add(key, value, "must be true or false")


def texts(faults: Faults, key: str, value: Any) -> None:
    """A list of one or more texts."""
    if not isinstance(value, list) or not value:
        faults.add(key, value, "must be a list of one or more texts")
        return
    for position, item in enumerate(value):
        text(faults, f"{key}[{position}]", item)


def whole(low: int, high: int) -> Check:
    """A whole number from ``low`` to ``high``."""

    def check(faults: Faults, key: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            faults.add(key, value, f"must be a whole number from {low} to {high}")

    return check


def exactly(number: int) -> Check:
    """This whole number and no other."""

    def check(faults: Faults, key: str, value: Any) -> None:
        if isinstance(value, bool) or value != number:
            faults.add(key, value, f"must be {number}")

    return check


def one_of(*allowed: str) -> Check:
    """One of some words."""

    def check(faults: Faults, key: str, value: Any) -> None:
        if value not in allowed:
            faults.add(key, value, f"must be one of {', '.join(allowed)}")

    return check


def positive(faults: Faults, key: str, value: Any) -> None:
    """A finite number above 0."""
    if not is_positive(value):
        faults.add(key, value, "must be a number above 0")


def not_negative(faults: Faults, key: str, value: Any) -> None:
    """A finite number from 0."""
    if not is_positive(value) and (isinstance(value, bool) or value != 0):
        faults.add(key, value, "must be a number from 0")


def share(faults: Faults, key: str, value: Any) -> None:
    """A part of a whole that is not nothing: above 0, at most 1."""
    if not is_positive(value) or value > 1:
        faults.add(key, value, "must be a number above 0 and at most 1")


def share_or_none(faults: Faults, key: str, value: Any) -> None:
    """A part of a whole, or nothing of it: from 0 to 1."""
    if isinstance(value, bool) or (value != 0 and not (is_positive(value) and value <= 1)):
        faults.add(key, value, "must be a number from 0 to 1")


def rising(faults: Faults, key: str, value: Any) -> None:
    """A list of rising numbers above 0."""
    if not isinstance(value, list) or not value or not all(map(is_positive, value)):
        faults.add(key, value, "must be a list of one or more numbers above 0")
    elif sorted(set(value)) != value:
        faults.add(key, value, "must rise, each number once")


def not_falling(faults: Faults, key: str, value: Any) -> None:
    """A list of numbers above 0, none lower than the one before."""
    if not isinstance(value, list) or not value or not all(map(is_positive, value)):
        faults.add(key, value, "must be a list of one or more numbers above 0")
    elif sorted(value) != value:
        faults.add(key, value, "must not fall")


def counts(faults: Faults, key: str, value: Any) -> None:
    """A list of rising whole numbers from 1."""
    before = len(faults.lines)
    rising(faults, key, value)
    if len(faults.lines) == before and not all(isinstance(item, int) for item in value):
        faults.add(key, value, "must be a list of whole numbers")


def choices(*allowed: str) -> Check:
    """A list of one or more of some words, each once."""

    def check(faults: Faults, key: str, value: Any) -> None:
        if not isinstance(value, list) or not value:
            faults.add(key, value, f"must be a list of one or more of {', '.join(allowed)}")
            return
        for position, item in enumerate(value):
            if item not in allowed:
                faults.add(f"{key}[{position}]", item, f"must be one of {', '.join(allowed)}")
            elif item in value[:position]:
                faults.add(f"{key}[{position}]", item, "must stand there once")

    return check


def table(required: Mapping[str, Check], optional: Mapping[str, Check] | None = None) -> Check:
    """A table with these keys and no others."""
    known = {**required, **(optional or {})}

    def check(faults: Faults, key: str, value: Any) -> None:
        if not isinstance(value, dict):
            faults.add(key, value, f"must be a table with {', '.join(known)}")
            return
        for name in required:
            if name not in value:
                faults.missing(_join(key, name), f"{key or 'the file'} needs {', '.join(required)}")
        for name, item in value.items():
            if name in known:
                known[name](faults, _join(key, name), item)
            else:
                faults.add(_join(key, name), item, f"unknown key; allowed: {', '.join(known)}")

    return check


def table_of(names: tuple[str, ...], each: Check) -> Check:
    """A table whose keys are among ``names`` and whose values all pass ``each``."""
    return table({}, dict.fromkeys(names, each))


def array_of(each: Check) -> Check:
    """An array of one or more tables that all pass ``each``."""

    def check(faults: Faults, key: str, value: Any) -> None:
        if not isinstance(value, list) or not value:
            faults.add(key, value, f"must be one or more tables, each under [[{key}]]")
            return
        for position, item in enumerate(value):
            each(faults, f"{key}[{position}]", item)

    return check


def figure(value: Check) -> Check:
    """``{ value = ..., source = "..." }``, with ``assumption = true`` where it is none proven."""
    shape = table({"value": value, "source": text}, {"assumption": flag})

    def check(faults: Faults, key: str, given: Any) -> None:
        if isinstance(given, dict):
            shape(faults, key, given)
        else:
            faults.add(key, given, 'must be { value = ..., source = "..." }: a figure has a source')

    return check


def is_positive(value: Any) -> bool:
    """Whether ``value`` is a finite number above 0."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and 0 < value <= sys.float_info.max  # a whole number may be beyond any float


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."

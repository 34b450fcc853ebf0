"""Configurations as plain values: to and from TOML files, JSON and the manifest of a run."""

from __future__ import annotations

import difflib
import sys
import tomllib
import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import ExitbenchError
from .files import read_json

MANIFEST_SCHEMA = 1

_C = TypeVar("_C")
_NEEDED = object()


def to_plain(config: Any) -> dict[str, Any]:
    """The configuration as JSON and TOML know it: paths as text, tuples as lists, nested tables."""
    return {item.name: _plain(getattr(config, item.name)) for item in fields(config)}


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return to_plain(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def from_plain(
    cls: type[_C], values: Mapping[str, Any], where: str = "options", absent: Any = _NEEDED
) -> _C:
    """The configuration that ``values`` describe; the inverse of ``to_plain``.

    Keys may be written with dashes. What is not named keeps its default. One value stands for a
    list of one, and numbers are taken as text where a list of texts is asked for (beta).

    Args:
        cls: a configuration dataclass.
        values: plain values by field name; nested configurations are tables.
        where: the file they come from, for messages.
        absent: stands for needed values that are not named; without it they are a fault.

    Raises:
        ExitbenchError: unknown keys, wrong types or missing values; all of them at once.
    """
    reading = _Reading(absent)
    config = reading.table(cls, values, "")
    if reading.faults:
        raise ExitbenchError(listed(where, reading.faults))
    return config


def listed(where: str, faults: list[str]) -> str:
    """One message for all faults of ``where``."""
    if len(faults) == 1:
        return f"{where}: {faults[0]}"
    return "\n".join([f"{where}: {len(faults)} faults", *(f"  - {fault}" for fault in faults)])


def read_options(path: Path, cls: type[_C], command: str, absent: Any = _NEEDED) -> _C:
    """The options of ``command`` in a TOML file, or in the manifest (JSON) of an earlier run.

    Raises:
        ExitbenchError: the file cannot be read, belongs to another command, or is faulty.
    """
    values = _manifest(path, command) if path.suffix == ".json" else _toml(path)
    return from_plain(cls, values, str(path), absent)


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ExitbenchError(
            f"--config: cannot read {path}: {error.strerror}. Give a TOML file of options, or the "
            "manifest.json of a run."
        ) from error
    except ValueError as error:
        raise ExitbenchError(f"--config: {path} is not valid TOML: {error}") from error
    except RecursionError as error:
        raise ExitbenchError(f"--config: {path} is nested too deep to read") from error


def _manifest(path: Path, command: str) -> dict[str, Any]:
    manifest = read_json(path)
    recorded = _recorded(manifest) if isinstance(manifest, dict) else {}
    if not recorded:
        raise ExitbenchError(
            f"--config: {path} is no manifest of a run (it records no command with its config); "
            "give RUN/manifest.json, or options in a file that ends in .toml"
        )
    if manifest.get("schema") != MANIFEST_SCHEMA:
        raise ExitbenchError(
            f"--config: {path} has schema {manifest.get('schema')!r}, this version of exitbench "
            f"reads {MANIFEST_SCHEMA}; use the version that wrote it"
        )
    if command not in recorded:
        known = ", ".join(f"'exitbench {name}'" for name in recorded)
        raise ExitbenchError(
            f"--config: {path} records no 'exitbench {command}', but {known}; repeat one of "
            f"these, such as 'exitbench {next(iter(recorded))} --config {path}'"
        )
    return recorded[command]


def _recorded(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The configuration of every command that worked on the run directory, by its name."""
    entries = manifest.get("commands", {})
    pairs = [(manifest.get("command"), manifest)]
    pairs += list(entries.items()) if isinstance(entries, dict) else []
    return {
        name: entry["config"]
        for name, entry in pairs
        if isinstance(name, str) and isinstance(entry, dict)
        if isinstance(entry.get("config"), dict)
    }


@dataclass
class _Reading:
    """Turns plain values into configurations and gathers what is wrong with them."""

    absent: Any
    faults: list[str] = field(default_factory=list)

    def table(self, cls: type[Any], values: Mapping[str, Any], prefix: str) -> Any:
        hints = get_type_hints(cls)
        named = {key.replace("-", "_"): value for key, value in values.items()}
        for key in named:
            if key not in hints:
                self.faults.append(f"unknown key {prefix + key!r}{_advice(key, cls, prefix)}")
        arguments: dict[str, Any] = {}
        for item in fields(cls):
            if item.name in named:
                arguments[item.name] = self.value(
                    named[item.name], hints[item.name], prefix + item.name
                )
            elif item.default is MISSING and item.default_factory is MISSING:
                if self.absent is _NEEDED:
                    self.faults.append(f"the key {prefix + item.name!r} is missing")
                arguments[item.name] = self.absent
        return cls(**arguments)

    def value(self, value: Any, hint: Any, key: str) -> Any:
        origin, arguments = get_origin(hint), get_args(hint)
        if origin in (Union, types.UnionType):
            if value is None:
                return None
            return self.value(value, next(a for a in arguments if a is not type(None)), key)
        if origin is Literal:
            return self.choice(value, arguments, key)
        if origin is tuple:
            return self.items(value, arguments[0], key)
        if isinstance(hint, type) and is_dataclass(hint):
            if not isinstance(value, Mapping):
                self.wrong(key, value, f"a table, such as [{key}] with {_names(hint)}")
                return None
            return self.table(hint, value, f"{key}.")
        return self.scalar(value, hint, key)

    def choice(self, value: Any, allowed: tuple[Any, ...], key: str) -> Any:
        if not any(value == a and type(value) is type(a) for a in allowed):
            self.wrong(key, value, ", ".join(str(a) for a in allowed))
        return value

    def items(self, value: Any, hint: Any, key: str) -> tuple[Any, ...]:
        values = value if isinstance(value, list | tuple) else [value]
        if hint is str:
            values = [str(v) if _number(v) else v for v in values]
        return tuple(self.value(v, hint, key) for v in values)

    def scalar(self, value: Any, hint: Any, key: str) -> Any:
        accepts, words = _SCALARS[hint]
        if not accepts(value):
            self.wrong(key, value, words)
            return value
        return hint(value)

    def wrong(self, key: str, value: Any, allowed: str) -> None:
        self.faults.append(f"{key} is {value!r}; allowed: {allowed}")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_SCALARS: dict[Any, tuple[Any, str]] = {
    bool: (lambda v: isinstance(v, bool), "true or false"),
    int: (lambda v: isinstance(v, int) and not isinstance(v, bool), "a whole number"),
    float: (lambda v: _number(v) and abs(v) <= sys.float_info.max, "a finite number"),
    str: (lambda v: isinstance(v, str), "text in quotes"),
    Path: (lambda v: isinstance(v, str | Path) and str(v) != "", "a path in quotes"),
}


def _names(cls: Any) -> str:
    return ", ".join(item.name for item in fields(cls))


def _advice(key: str, cls: type[Any], prefix: str) -> str:
    """Where an unknown key belongs, what it may have meant, or what there is."""
    hints = get_type_hints(cls)
    for table, hint in hints.items():
        if is_dataclass(hint) and key in {item.name for item in fields(hint)}:
            return f"; it belongs in the table [{table}]"
    close = difflib.get_close_matches(key, hints, n=1)
    if close:
        return f"; did you mean {prefix + close[0]!r}?"
    return f"; allowed: {_names(cls)}"

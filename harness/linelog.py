"""Files that grow line by line under keys, so that a kill loses what was being measured, no more.

Every line is a JSON object with a ``key``; it is on the disk before the next thing is measured. A
line that a kill has cut short is left out, and ended before the next one is written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .files import write_text
from .meters.base import Reading


@dataclass(frozen=True)
class LineLog:
    """One such file. Keys are whatever JSON can hold."""

    path: Path

    def add(self, key: Any, values: Mapping[str, Any]) -> None:
        """Append one line and flush it to the disk."""
        line = json.dumps({"key": key, **values})
        with self.path.open("ab+") as handle:
            start = "\n" if _cut_short(handle) else ""
            handle.write(f"{start}{line}\n".encode())
            handle.flush()
            os.fsync(handle.fileno())

    def lines(self, key: Any) -> list[dict[str, Any]]:
        """The lines under a key, in the order they were written."""
        wanted = json.loads(json.dumps(key))  # JSON knows no tuples
        return self.lines_where(lambda each: each == wanted)

    def lines_where(self, wanted: Callable[[Any], bool]) -> list[dict[str, Any]]:
        """The lines under all keys that are wanted."""
        if not self.path.is_file():
            return []
        text = self.path.read_text(encoding="utf-8", errors="replace")
        lines = map(_line, text.splitlines())
        return [line for line in lines if "key" in line and wanted(line["key"])]

    def drop(self, unwanted: Callable[[Any], bool]) -> None:
        """Take out the lines under such keys, and what is no line; with the last goes the file."""
        if not self.path.is_file():
            return
        kept = self.lines_where(lambda key: not unwanted(key))
        if kept:
            write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        else:
            self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.path.unlink(missing_ok=True)


def reading_of(values: Any) -> Reading | None:
    """A reading from its plain values; None where they are not those of one.

    Values of another version that it does not know are left out.
    """
    known = known_values(Reading, values)
    if not {"seconds", "joules", "source"} <= set(known):
        return None
    # JSON knows no tuples, and older lines have no flags.
    return Reading(**{**known, "flags": tuple(known.get("flags", ()))})


def known_values(kind: type[Any], values: Any) -> dict[str, Any]:
    """Those of some plain values that are fields of a dataclass; none if they are no table."""
    names = {item.name for item in fields(kind)}
    return {k: v for k, v in values.items() if k in names} if isinstance(values, dict) else {}


def _cut_short(handle: Any) -> bool:
    """Whether an open file ends within a line."""
    if not handle.seek(0, os.SEEK_END):
        return False
    handle.seek(-1, os.SEEK_END)
    return bool(handle.read(1) != b"\n")


def _line(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}

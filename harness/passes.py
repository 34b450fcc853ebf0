"""Timed passes kept as they end, so that a killed run loses one pass, not a whole precision.

They stand in ``passes.jsonl`` only while a precision is being measured; the measurements that are
made of them take their place.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .meters.base import Reading


@dataclass(frozen=True)
class PassLog:
    """The file of passes; every line is one reading under the key of its measurement."""

    path: Path

    def add(self, key: tuple[Any, ...], reading: Reading) -> None:
        """Append one pass and flush it to the disk."""
        line = json.dumps({"key": list(key), "reading": asdict(reading)})
        broken = self.path.is_file() and not self.path.read_bytes().endswith(b"\n")
        with self.path.open("a", encoding="utf-8") as handle:
            handle.write(("\n" if broken else "") + line + "\n")
            handle.flush()
            os.fsync(handle.fileno())

    def readings(self, key: tuple[Any, ...]) -> list[Reading]:
        """The passes of a measurement so far; a line that a kill has cut short is none."""
        if not self.path.is_file():
            return []
        lines = map(_pass, self.path.read_text(encoding="utf-8", errors="replace").splitlines())
        return [Reading(**found["reading"]) for found in lines if found.get("key") == list(key)]

    def clear(self) -> None:
        """Forget all passes."""
        self.path.unlink(missing_ok=True)


def _pass(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}

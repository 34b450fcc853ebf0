"""Timed passes kept as they end, so that a killed run loses one pass, not a whole precision.

They stand in ``passes.jsonl`` only while a precision is being measured; the measurements that are
made of them take their place.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from .meters.base import Reading


@dataclass(frozen=True)
class Requests:
    """What befell the requests of one pass; None or empty is what the pass does not tell.

    Attributes:
        response_s: mean time from a request's slot to its answer, in a periodic scene.
        busy_share: share of the time in which a request was served, in a periodic scene.
        late: share of the requests that could not start at their slot, likewise.
        keeps_up: whether requests are served as fast as they come, likewise.
        missed: share of the requests over the deadline, under a governor.
        switches: clock switches per request, under a governor.
        points: share of the busy time by operating point, under a governor.
    """

    response_s: float | None = None
    busy_share: float | None = None
    late: float | None = None
    keeps_up: bool | None = None
    missed: float | None = None
    switches: float | None = None
    points: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Pass:
    """One timed pass over the samples.

    Attributes:
        reading: time and energy of the samples run once, however often its window ran them.
        window_s: how long the window really was.
        requests: what befell them where they came one by one.
    """

    reading: Reading
    window_s: float
    requests: Requests = field(default_factory=Requests)


@dataclass(frozen=True)
class PassLog:
    """The file of passes; every line is one pass under the key of its measurement."""

    path: Path

    def add(self, key: tuple[Any, ...], made: Pass) -> None:
        """Append one pass and flush it to the disk."""
        line = json.dumps({"key": list(key), **asdict(made)})
        broken = self.path.is_file() and not self.path.read_bytes().endswith(b"\n")
        with self.path.open("a", encoding="utf-8") as handle:
            handle.write(("\n" if broken else "") + line + "\n")
            handle.flush()
            os.fsync(handle.fileno())

    def passes(self, key: tuple[Any, ...]) -> list[Pass]:
        """The passes of a measurement so far; a line that is cut short or no pass is none."""
        if not self.path.is_file():
            return []
        lines = map(_line, self.path.read_text(encoding="utf-8", errors="replace").splitlines())
        found = [_pass(line) for line in lines if line.get("key") == list(key)]
        return [each for each in found if each is not None]

    def clear(self) -> None:
        """Forget all passes."""
        self.path.unlink(missing_ok=True)


def _line(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _pass(line: dict[str, Any]) -> Pass | None:
    reading = _known(Reading, line.get("reading"))
    if not {"seconds", "joules", "source"} <= set(reading):
        return None
    # JSON knows no tuples. Older lines have neither flags nor what follows the reading.
    read = Reading(**{**reading, "flags": tuple(reading.get("flags", ()))})
    requests = Requests(**_known(Requests, line.get("requests")))
    return Pass(read, line.get("window_s", read.seconds), requests)


def _known(kind: type[Any], values: Any) -> dict[str, Any]:
    names = {item.name for item in fields(kind)}
    return {k: v for k, v in values.items() if k in names} if isinstance(values, dict) else {}

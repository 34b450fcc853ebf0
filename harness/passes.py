"""Timed passes kept as they end, so that a killed run loses one pass, not a whole precision.

They stand in ``passes.jsonl`` only while a precision is being measured; the measurements that are
made of them take their place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .linelog import LineLog, known_values, reading_of
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
        waited_batches: batches fed between a sample's own and its answer, where batches are put
            together; mean over the samples.
        longest_wait_batches: the same of the sample that waited longest.
        rows_per_segment: samples in a call of a segment, likewise.
    """

    response_s: float | None = None
    busy_share: float | None = None
    late: float | None = None
    keeps_up: bool | None = None
    missed: float | None = None
    switches: float | None = None
    points: Mapping[str, float] = field(default_factory=dict)
    waited_batches: float | None = None
    longest_wait_batches: int | None = None
    rows_per_segment: float | None = None


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
        LineLog(self.path).add(key, asdict(made))

    def passes(self, key: tuple[Any, ...]) -> list[Pass]:
        """The passes of a measurement so far; a line that is cut short or no pass is none."""
        found = [_pass(line) for line in LineLog(self.path).lines(key)]
        return [each for each in found if each is not None]

    def clear(self) -> None:
        """Forget all passes."""
        LineLog(self.path).clear()


def _pass(line: dict[str, Any]) -> Pass | None:
    read = reading_of(line.get("reading"))
    if read is None:
        return None
    # Older lines have none of what follows the reading.
    requests = Requests(**known_values(Requests, line.get("requests")))
    return Pass(read, line.get("window_s", read.seconds), requests)

"""Energy windows kept as they are taken, so that a kill loses one window and not hours of them.

They stand in ``windows.jsonl`` under everything that makes them comparable, and only until the
measurement that is made of them is written. History of the lines' schema: 1 is the first.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .idle import Idle
from .linelog import LineLog, known_values, reading_of
from .windows import Taken

SCHEMA = 1
_CHANGING = ("load_1min", "now_mhz")


@dataclass(frozen=True)
class KeptIdle:
    """Idle power that net energies are told from.

    Attributes:
        power: the idle power.
        own: it was measured for this measurement, in its time, and not known before.
    """

    power: Idle
    own: bool


@dataclass(frozen=True)
class WindowLog:
    """The windows of one measurement, and its idle power.

    Attributes:
        file: where they stand.
        key: what is measured and everything that makes its windows comparable.
    """

    file: LineLog
    key: Mapping[str, Any]

    def add(self, unit: str, taken: Taken) -> None:
        """Append one window of a unit and flush it to the disk."""
        self._add({"unit": unit, **asdict(taken)})

    def windows(self, units: Iterable[str]) -> dict[str, list[Taken]]:
        """The windows of these units so far, in the order they were taken."""
        found: dict[str, list[Taken]] = {unit: [] for unit in units}
        for line in self._lines():
            taken = _taken(line)
            if taken is not None and line.get("unit") in found:
                found[line["unit"]].append(taken)
        return found

    def add_idle(self, idle: Idle, own: bool) -> None:
        """Keep the idle power, unless it is unknown: then it is measured again."""
        if idle.power_w is not None:
            self._add({"idle": asdict(idle), "own": own})

    def idle(self) -> KeptIdle | None:
        """The idle power that was kept; None if none was."""
        found = None
        for line in self._lines():
            known = known_values(Idle, line.get("idle"))
            if isinstance(known.get("power_w"), int | float):
                interval = known.get("interval_w")
                idle = Idle(**{**known, "interval_w": interval and tuple(interval)})
                found = KeptIdle(idle, line.get("own") is True)
        return found

    def others(self) -> int:
        """How many windows of the same place there are that were taken in another manner."""
        lines = self.file.lines_where(lambda key: _place(key) == self.key["place"])
        return sum("unit" in line and line["key"] != self.key for line in lines)

    def forget(self, others: bool = False) -> None:
        """Take the windows out, and those of the same place in other manners if so asked."""

        place = self.key["place"]
        self.file.drop(lambda key: key == self.key or (others and _place(key) == place))

    def _add(self, values: Mapping[str, Any]) -> None:
        self.file.add(self.key, {"schema": SCHEMA, **values})

    def _lines(self) -> list[dict[str, Any]]:
        return [line for line in self.file.lines(self.key) if line.get("schema") == SCHEMA]


@dataclass(frozen=True)
class WindowFile:
    """The file of windows of a run directory, and since when a command has been filling it."""

    path: Path

    def of(self, place: Sequence[str | int], manner: Mapping[str, Any]) -> WindowLog:
        """The windows of what will stand in one place, measured in one manner.

        Args:
            place: what the windows become: precision, batch size and operating point.
            manner: everything else that makes them comparable.
        """
        key = json.loads(json.dumps({"place": place, "manner": manner}))
        return WindowLog(LineLog(self.path), key)

    def begin(self, command: Mapping[str, Any], now: str) -> str:
        """When this very command began: ``now``, or before it was killed.

        Only the last one can be gone on with.
        """
        log, key = LineLog(self.path), {"command": command}
        for line in log.lines(key):
            if isinstance(line.get("since"), str) and line.get("schema") == SCHEMA:
                return str(line["since"])
        self.end()
        log.add(key, {"schema": SCHEMA, "since": now})
        return now

    def end(self) -> None:
        """The command has ended well; windows of others stay."""
        LineLog(self.path).drop(lambda key: isinstance(key, dict) and "command" in key)


def settled(settings: Mapping[str, Any]) -> str:
    """A digest of what a machine is set to, without what nobody has set: load, the clock of now."""

    def stripped(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: stripped(v) for k, v in value.items() if k not in _CHANGING}
        return [stripped(each) for each in value] if isinstance(value, list | tuple) else value

    text = json.dumps(stripped(settings), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _place(key: Any) -> Any:
    return key.get("place") if isinstance(key, dict) else None


def _taken(line: Mapping[str, Any]) -> Taken | None:
    reading = reading_of(line.get("reading"))
    calls, took_s = line.get("calls"), line.get("took_s")
    if reading is None or type(calls) is not int or calls < 1:
        return None
    if not isinstance(took_s, int | float):
        return None
    return Taken(calls, reading, took_s)

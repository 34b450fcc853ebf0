"""A run directory: one study's files, its manifest, and who may add to it.

    manifest.json               schema, commands with their resolved configuration, environment, ...
    cost.csv                    the cost table
    trace-SPLIT-PRECISION.npz   evidence at every exit
    sweep.csv, comparison.csv, prediction.csv, prediction_confusion.csv
    measurements.jsonl          one line per really measured run
    report/                     figures, tables and the page

History of the manifest's schema: 1 is the first.
"""

from __future__ import annotations

import datetime
import json
import os
from pathlib import Path
from typing import Any

from .environment import unlike
from .errors import ExitbenchError
from .files import read_json, sha256, write_json, write_text

SCHEMA = 1


class RunDirectory:
    """The files of one run.

    Args:
        path: the folder; made if it does not exist.
        create: make it; else it must exist with a manifest.

    Raises:
        ExitbenchError: the folder cannot be made, is missing or is of another schema.
    """

    def __init__(self, path: Path, create: bool = True) -> None:
        self.path = Path(path)
        self.manifest_path = self.path / "manifest.json"
        if create:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ExitbenchError(f"cannot make {path}: {error.strerror}") from error
        elif not self.manifest_path.is_file():
            raise ExitbenchError(
                f"{path} is no run directory (it has no manifest.json); make one with "
                "'exitbench study' or 'exitbench trace'"
            )
        self.manifest: dict[str, Any] = {"schema": SCHEMA}
        if self.manifest_path.is_file():
            self.manifest = read_json(self.manifest_path)
            schema = self.manifest.get("schema") if isinstance(self.manifest, dict) else None
            if schema != SCHEMA:
                raise ExitbenchError(
                    f"{self.manifest_path}: schema {schema!r}, this version of exitbench reads "
                    f"{SCHEMA}; use another run directory"
                )

    @property
    def cost(self) -> Path:
        return self.path / "cost.csv"

    @property
    def sweep(self) -> Path:
        return self.path / "sweep.csv"

    @property
    def comparison(self) -> Path:
        return self.path / "comparison.csv"

    @property
    def measurements(self) -> Path:
        return self.path / "measurements.jsonl"

    def trace(self, split: str, precision: str) -> Path:
        """Where the trace of a split and precision lies."""
        return self.path / f"trace-{split}-{precision}.npz"

    def update(self, **values: Any) -> None:
        """Put values into the manifest and write it; dictionaries are merged, not replaced."""
        for key, value in values.items():
            old = self.manifest.get(key)
            if isinstance(old, dict) and isinstance(value, dict):
                value = {**old, **value}
            self.manifest[key] = value
        write_json(self.manifest_path, self.manifest)

    def begin(self, command: str, config: dict[str, Any], environment: dict[str, Any]) -> None:
        """Note that a command starts on this directory.

        Raises:
            ExitbenchError: the directory holds numbers of an unlike environment.
        """
        known = self.manifest.get("environment")
        if known and (differences := unlike(known, environment)):
            raise ExitbenchError(
                f"{self.path} holds numbers of another environment; differing: "
                f"{', '.join(differences)}. Numbers of unlike machines are not mixed: choose "
                "another run directory, or delete this one."
            )
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        commands = dict(self.manifest.get("commands", {}))
        commands[command] = {"config": config, "started": now, "finished": None}
        first = {} if "command" in self.manifest else {"command": command, "config": config}
        created = self.manifest.get("created", now)
        self.update(
            **first,
            created=created,
            exitbench=environment.get("exitbench"),
            environment=known or environment,
            commands=commands,
        )

    def finish(self, command: str) -> None:
        """Note that a command has ended well, with the checksums of all files it may have made."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        commands = self.manifest["commands"]
        commands[command]["finished"] = now
        files = sorted(
            path
            for path in self.path.iterdir()
            if path.suffix in (".csv", ".npz", ".jsonl") and not path.name.startswith(".")
        )
        self.manifest["checksums"] = {path.name: sha256(path) for path in files}
        self.update(commands=commands)

    def append_measurement(self, row: dict[str, Any]) -> None:
        """Add one line to measurements.jsonl and flush it to the disk.

        A last line that a kill has cut short is dropped, so that the new one stands alone.
        """
        line = json.dumps(row, allow_nan=False)
        self._end_last_line()
        with self.measurements.open("a", encoding="utf-8") as handle:
            handle.write(line + "\n")
            handle.flush()
            os.fsync(handle.fileno())

    def _end_last_line(self) -> None:
        if not self.measurements.is_file():
            return
        whole, _, last = self.measurements.read_text(encoding="utf-8").rpartition("\n")
        if not last:
            return
        lines = [*whole.splitlines(), last] if _is_row(last) else whole.splitlines()
        write_text(self.measurements, "".join(f"{line}\n" for line in lines))

    def read_measurements(self) -> list[dict[str, Any]]:
        """The measured runs; a last line that a kill has cut short is left out.

        Raises:
            ExitbenchError: another line is no measurement.
        """
        if not self.measurements.is_file():
            return []
        text = self.measurements.read_text(encoding="utf-8")
        lines = text.splitlines()
        if lines and not text.endswith("\n") and not _is_row(lines[-1]):
            del lines[-1]
        for number, line in enumerate(lines, start=1):
            if not _is_row(line):
                raise ExitbenchError(
                    f"{self.measurements}, line {number} is no JSON of a measured run: "
                    f"{line[:40]!r}; delete the line to measure that run again"
                )
        return [json.loads(line) for line in lines]


def _is_row(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False

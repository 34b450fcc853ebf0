"""A run directory: one study's files, its manifest, and who may add to it.

    manifest.json               schema, commands with their resolved configuration, environment, ...
    cost.csv                    the cost table
    trace-SPLIT-PRECISION.npz   evidence at every exit
    sweep.csv, comparison.csv, scenarios.csv, prediction.csv, prediction_confusion.csv
    governed-HARDWARE.csv       settings under governors, on the clocks of a hardware profile
    measurements.jsonl          one line per really measured run
    passes.jsonl, windows.jsonl what is being measured, until it is
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
_TABLES = (
    "commands", "environment", "checkpoint", "config", "precisions", "profile", "hardware",
    "checksums", "govern",
)  # fmt: skip
_OF_TABLES = ("commands", "precisions", "profile", "govern")
_SOURCES = ("measured", "modelled", "unavailable", None)
_CHECKPOINT: dict[str, type] = {
    "path": str, "sha256": str, "model": str, "dataset": str, "samples": dict, "sizes": dict,
    "positions": dict, "limit": int, "data": dict, "training": dict,
}  # fmt: skip
# What makes two measured runs the same: texts and numbers.
_MEASURED = (
    "policy", "criterion", "beta", "start_layer", "predictor", "precision", "batch_size",
    "samples", "repeats", "threads", "scene", "period_ms", "governor", "operating_point",
    "deadline_ms", "clocks", "rebatch_wait",
)  # fmt: skip
_SAME = (
    "policy", "criterion", "beta", "start_layer", "predictor", "precision", "batch_size",
    "samples", "runtime", "scene", "period_ms", "governor", "operating_point", "deadline_ms",
    "clocks", "rebatch_wait",
)  # fmt: skip


class RunDirectory:
    """The files of one run.

    Args:
        path: the folder; made if it does not exist.
        create: make it; else it must exist with a manifest.

    Raises:
        ExitbenchError: the folder cannot be made, is missing, or its manifest is of another
            schema or damaged.
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
            if faults := _manifest_faults(self.manifest):
                raise ExitbenchError(
                    f"{self.manifest_path} is damaged: {'; '.join(faults)}. Make the run again in "
                    "another directory."
                )

    @property
    def environment(self) -> dict[str, Any]:
        """The environment that the directory's numbers come from.

        Raises:
            ExitbenchError: the manifest does not tell.
        """
        known: dict[str, Any] | None = self.manifest.get("environment")
        if not known:
            raise ExitbenchError(
                f"{self.manifest_path} lacks 'environment', so where the numbers come from is not "
                "known; make the run again in another directory"
            )
        return known

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
    def scenarios(self) -> Path:
        return self.path / "scenarios.csv"

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

    def begin(
        self,
        command: str,
        config: dict[str, Any],
        environment: dict[str, Any],
        started: str | None = None,
    ) -> None:
        """Note that a command starts on this directory, or has at ``started``.

        Raises:
            ExitbenchError: the directory holds numbers of an unlike environment.
        """
        known = self.manifest.get("environment")
        if known and (differences := unlike(known, environment)):
            raise ExitbenchError(
                f"{self.path} holds numbers of another environment; differing: "
                f"{', '.join(differences)}. Unlike numbers are not mixed: give the same device "
                f"and threads (--device {known.get('device')} --threads {known.get('threads')}), "
                "or choose another run directory."
            )
        now = started or time_now()
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
        commands = self.manifest["commands"]
        commands[command]["finished"] = time_now()
        files = sorted(
            path
            for path in self.path.iterdir()
            if path.suffix in (".csv", ".npz", ".jsonl") and not path.name.startswith(".")
        )
        self.manifest["checksums"] = {path.name: sha256(path) for path in files}
        self.update(commands=commands)

    def append_measurement(self, row: dict[str, Any]) -> None:
        """Add one line to measurements.jsonl and flush it to the disk.

        A last line that a kill has cut short is dropped, so that the new one stands alone; so are
        older lines of the same setting, batch size, runtime, scene, governor and samples, which
        stand beside an older replay.
        """
        line = json.dumps(row, allow_nan=False)
        self._end_last_line()
        self._drop_superseded(row)
        with self.measurements.open("a", encoding="utf-8") as handle:
            handle.write(line + "\n")
            handle.flush()
            os.fsync(handle.fileno())

    def _drop_superseded(self, row: dict[str, Any]) -> None:
        if not self.measurements.is_file():
            return
        lines = self._measured_text().splitlines()
        kept = [line for line in lines if not _is_row(line) or not _same(json.loads(line), row)]
        if len(kept) < len(lines):
            write_text(self.measurements, "".join(f"{line}\n" for line in kept))

    def _end_last_line(self) -> None:
        if not self.measurements.is_file():
            return
        whole, _, last = self._measured_text().rpartition("\n")
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
        text = self._measured_text()
        lines = text.splitlines()
        if lines and not text.endswith("\n") and not _is_row(lines[-1]):
            del lines[-1]
        for number, line in enumerate(lines, start=1):
            if not _is_row(line):
                raise ExitbenchError(
                    f"{self.measurements}, line {number} is no JSON of a measured run: "
                    f"{line[:40]!r}; delete the line to measure that run again"
                )
        rows = [json.loads(line) for line in lines]
        for number, row in enumerate(rows, start=1):
            if odd := [n for n in _MEASURED if isinstance(row.get(n), dict | list)]:
                raise ExitbenchError(
                    f"{self.measurements}, line {number}: {odd[0]} is {row[odd[0]]!r}; right is a "
                    "number, a text or null. Delete the line to measure that run again."
                )
        return rows

    def _measured_text(self) -> str:
        try:
            return self.measurements.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ExitbenchError(
                f"{self.measurements} is no UTF-8 text ({error}); delete it to measure again"
            ) from error


def time_now() -> str:
    """The time in UTC to the second, in ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _manifest_faults(manifest: dict[str, Any]) -> list[str]:
    """What in a manifest is of another type than every reader of it takes for granted."""
    faults = [
        f"{key} is {manifest[key]!r}, expected a table"
        for key in _TABLES
        if not isinstance(manifest.get(key, {}), dict)
    ]
    for key in _OF_TABLES:
        entries = manifest.get(key)
        if isinstance(entries, dict):
            faults += [
                f"{key}.{name} is {value!r}, expected a table"
                for name, value in entries.items()
                if not isinstance(value, dict)
            ]
    names = manifest.get("exit_names", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        faults.append(f"exit_names is {names!r}, expected a list of texts")
    if type(manifest.get("priced_batch_size")) not in (int, type(None)):
        faults.append(f"priced_batch_size is {manifest['priced_batch_size']!r}, expected a number")
    hardware = manifest.get("hardware")
    faults += _idle_faults(hardware) if isinstance(hardware, dict) else []
    checkpoint = manifest.get("checkpoint")
    return faults + (_checkpoint_faults(checkpoint) if isinstance(checkpoint, dict) else [])


def _idle_faults(hardware: dict[str, Any]) -> list[str]:
    """What is wrong with the idle power, by which scenes and governors are priced."""
    faults, idle_w, source = [], hardware.get("idle_w"), hardware.get("idle_source")
    number = isinstance(idle_w, int | float) and not isinstance(idle_w, bool)
    if idle_w is not None and not (number and 0 <= idle_w < float("inf")):
        faults.append(f"hardware.idle_w is {idle_w!r}, expected watts from 0, or null")
    if source not in _SOURCES:
        known = ", ".join(each for each in _SOURCES if each)
        faults.append(f"hardware.idle_source is {source!r}, expected one of {known}")
    return faults


def _checkpoint_faults(checkpoint: dict[str, Any]) -> list[str]:
    words = {str: "text", dict: "a table", int: "a whole number"}
    faults = [
        f"checkpoint.{key} is {checkpoint[key]!r}, expected {words[kind]}"
        for key, kind in _CHECKPOINT.items()
        if checkpoint.get(key) is not None and not isinstance(checkpoint[key], kind)
    ]
    counts = [checkpoint.get(key) for key in ("samples", "sizes")]
    for values in (each for each in counts if isinstance(each, dict)):
        faults += [
            f"checkpoint counts {value!r} samples of {split}, expected a whole number"
            for split, value in values.items()
            if type(value) is not int
        ]
    return faults


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two measured runs are of one setting, batch size, runtime, scene and samples."""
    found = [name for name in _SAME if name in one or name in other]

    def of(row: dict[str, Any], name: str) -> Any:
        # A run of before there were scenes is a continuous one.
        return row.get(name, "continuous" if name == "scene" else None)

    return bool(found) and all(of(one, name) == of(other, name) for name in found)


def _is_row(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False

"""The journal of clocks: what they were before exitbench changed them, kept on disk.

It is written whole and synced, with its folder, before the first change, and removed once
everything is back. So after a kill or a loss of power it is there, and ``exitbench hardware
restore`` works from it. A lock file beside it lets one process govern at a time; the kernel takes
the lock from a process that ends, however it ends.

    clocks.json    {"schema": 1, "pid", "boot_id", "time", "actuators": [{"name", "snapshot"}]}
    clocks.lock    process id of who holds the lock
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..errors import ExitbenchError
from ..files import read_json, write_json
from .base import ClockError
from .sysfs import RESTORE, look

SCHEMA = 1
ROOTS_FOLDER = Path("/var/lib/exitbench")
FILE = "clocks.json"


def journal_path(environ: Mapping[str, str] | None = None, *, root: bool | None = None) -> Path:
    """Where this user's journal is.

    Args:
        environ: where ``XDG_STATE_HOME`` and ``HOME`` are looked up; this process's if None.
        root: whether the user is root; as this process is if None.
    """
    environ = os.environ if environ is None else environ
    if os.geteuid() == 0 if root is None else root:
        return ROOTS_FOLDER / FILE
    state = environ.get("XDG_STATE_HOME")
    # The XDG specification has relative paths ignored.
    if state and Path(state).is_absolute():
        return Path(state) / "exitbench" / FILE
    return Path(environ.get("HOME") or Path.home()) / ".local/state/exitbench" / FILE


def restore_command(journal: Path) -> str:
    """The command that puts back what a journal says."""
    return RESTORE if journal == journal_path() else f"{RESTORE} --journal {journal}"


def boot_id(root: Path = Path("/")) -> str | None:
    """What names this start of the machine; None where Linux does not tell."""
    return look(root / "proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Entry:
    """One actuator that is about to be changed, and what it was."""

    name: str
    snapshot: Mapping[str, Any]


@dataclass(frozen=True)
class Record:
    """The content of a journal."""

    pid: int
    boot_id: str | None
    time: str
    entries: tuple[Entry, ...]

    def of_this_boot(self, root: Path = Path("/")) -> bool:
        """Whether the machine still runs that it was written on; True where that is not known."""
        now = boot_id(root)
        return None in (now, self.boot_id) or now == self.boot_id


def write_journal(path: Path, entries: Sequence[Entry]) -> None:
    """Write a journal of this process, whole, and wait until the disk has it.

    Raises:
        ClockError: it cannot be written; what was there is left as it was.
    """
    content = {
        "schema": SCHEMA,
        "pid": os.getpid(),
        "boot_id": boot_id(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "actuators": [{"name": each.name, "snapshot": dict(each.snapshot)} for each in entries],
    }
    try:
        write_json(path, content)
        _sync_folder(path.parent)
    except OSError as error:
        raise _unwritten(path, error.strerror or str(error)) from error
    except ExitbenchError as error:
        raise _unwritten(path, str(error)) from error


def _unwritten(path: Path, why: str) -> ClockError:
    return ClockError(
        f"the journal {path} cannot be written ({why}), and without it clocks could not be put "
        "back after a crash. No clock was changed for this. Make room or mend the folder"
    )


def remove_journal(path: Path) -> None:
    """Remove a journal whose clocks are back; none is fine, too.

    Raises:
        ClockError: it cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
        if path.parent.is_dir():
            _sync_folder(path.parent)
    except OSError as error:
        raise ClockError(
            f"the clocks are back, but their journal {path} cannot be removed: {error.strerror}. "
            f"Remove it: rm {path}"
        ) from error


def is_there(path: Path) -> bool:
    """Whether there is a journal; one in a folder that this user may not look into is none."""
    try:
        return path.exists()
    except OSError:
        return False


def read_journal(path: Path) -> Record | None:
    """The content of a journal; None where there is none.

    Raises:
        ClockError: it cannot be read, or is damaged.
    """
    if not is_there(path):
        return None
    try:
        raw = read_json(path)
        if raw["schema"] != SCHEMA:
            raise ClockError(
                f"the journal {path} has schema {raw['schema']!r}, and this exitbench reads "
                f"{SCHEMA}: run '{RESTORE}' of the version that wrote it"
            )
        entries = tuple(Entry(each["name"], each["snapshot"]) for each in raw["actuators"])
        record = Record(raw["pid"], raw["boot_id"], raw["time"], entries)
    except ClockError:
        raise
    except (ExitbenchError, KeyError, TypeError) as error:
        raise damaged(path, str(error)) from error
    if not isinstance(record.pid, int) or not all(isinstance(e.snapshot, dict) for e in entries):
        raise damaged(path, "a value is of the wrong kind")
    return record


def damaged(path: Path, why: str) -> ClockError:
    """The error of a journal that says nothing usable."""
    return ClockError(
        f"the journal {path} is damaged ({why}), so what the clocks were is not known. A reboot "
        f"puts all of them back; then remove it: rm {path}"
    )


class Lock:
    """Held by the one process that may change clocks under a journal."""

    def __init__(self, journal: Path) -> None:
        self.path = journal.with_suffix(".lock")
        self._handle: int | None = None

    def take(self) -> None:
        """Take the lock, without waiting.

        Raises:
            ClockError: another process has it, or the file cannot be made.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise ClockError(
                f"{self.path} cannot be made ({error.strerror}), so no clock is changed: two "
                "processes could do it at once. Mend the folder or its permissions"
            ) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            pid = os.read(handle, 32).decode(errors="replace").strip()
            os.close(handle)
            raise ClockError(
                f"another exitbench (process {pid or 'unknown'}) governs the clocks of this "
                "machine. Wait until it ends, or end it; it puts them back itself"
            ) from error
        self._handle = handle
        try:
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            self.give_back()
            raise ClockError(
                f"{self.path} cannot be written ({error.strerror}), so no clock is changed. Make "
                "room or mend the folder"
            ) from error

    def give_back(self) -> None:
        """Let others have it. The file stays: removing it would let two hold a lock each."""
        if self._handle is not None:
            # Closing alone leaves the lock to a process that was forked off meanwhile.
            fcntl.flock(self._handle, fcntl.LOCK_UN)
            os.close(self._handle)
            self._handle = None


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""Reading and writing clock files of Linux, with every refusal in the user's words.

All that exitbench ever changes under ``/sys`` goes through ``put_text``.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .base import Actuator, ClockError, LeftChanged

AS_ROOT = 'run the command as root: sudo -E env "PATH=$PATH" exitbench ...'
RESTORE = "exitbench hardware restore"

_HALF_A_KHZ = 5e-4


def put_text(path: Path, text: str) -> None:
    """Write to a file that is there; sysfs takes a value in one write.

    Raises:
        OSError: as the kernel or the driver says it.
    """
    handle = os.open(path, os.O_WRONLY | os.O_TRUNC)
    try:
        os.write(handle, text.encode())
    finally:
        os.close(handle)


def look(path: Path) -> str | None:
    """The stripped content of a file; None where it is missing or may not be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip(" \n\t\0")
    except OSError:
        return None


def look_int(path: Path) -> int | None:
    """The whole number in a file; None where there is none to be read."""
    text = look(path)
    return int(text) if text is not None and text.removeprefix("-").isdigit() else None


def read_int(path: Path) -> int:
    """The whole number in a file.

    Raises:
        ClockError: it cannot be read, or holds no number.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace").strip(" \n\t\0")
    except PermissionError as error:
        raise ClockError(f"no permission to read {path}: {AS_ROOT}") from error
    except OSError as error:
        raise ClockError(f"cannot read {path}: {error.strerror}") from error
    if not text.isdigit():
        raise ClockError(f"{path} holds {text!r}, which is no whole number")
    return int(text)


def write(path: Path, value: int | str) -> None:
    """Write a value to a clock file.

    Raises:
        ClockError: no permission, or the driver refused it.
    """
    try:
        put_text(path, f"{value}\n")
    except PermissionError as error:
        raise ClockError(f"no permission to write {path}: {AS_ROOT}") from error
    except OSError as error:
        if error.errno == errno.EROFS:
            raise ClockError(
                f"{path} is on a read-only file system: in a container, start it with "
                "--privileged, or run the command on the host"
            ) from error
        raise ClockError(f"the driver refused {value} for {path}: {error.strerror}") from error


def writable(path: Path) -> bool:
    """Whether this process may write a file, as far as can be told without writing it."""
    return os.access(path, os.W_OK)


def exact(levels: tuple[float, ...], value: float, what: str, unit: str = " MHz") -> float:
    """The one of ``levels`` that is ``value``; a float may be off by less than half a kHz.

    Raises:
        ClockError: there is no such level.
    """
    for level in levels:
        if abs(level - value) < _HALF_A_KHZ:
            return level
    raise ClockError(f"{what} has no level {value:g}{unit}; it has {listed(levels)}{unit}")


def listed(levels: tuple[float, ...]) -> str:
    """Levels in words, the middle of a long list left out."""
    texts = [f"{level:g}" for level in levels]
    if len(texts) > 16:
        texts = [*texts[:6], "...", *texts[-6:]]
    return ", ".join(texts) or "none"


@contextmanager
def undoing(actuator: Actuator) -> Iterator[None]:
    """Puts an actuator back to where it was before the block, if a clock error ends the block."""
    before = actuator.snapshot()
    try:
        yield
    except ClockError as error:
        try:
            actuator.restore(before)
        except ClockError as another:
            raise LeftChanged(
                f"{error}. What was changed before could not be put back: {another}. Run: {RESTORE}"
            ) from error
        raise


@dataclass(frozen=True)
class Limits:
    """The lower and upper limit of one clock: two files of a folder, in the kernel's unit.

    The kernel refuses a lower limit above the upper one, so the order of writing follows the
    direction, and the two never cross.
    """

    folder: Path
    low: str
    high: str

    def read(self) -> tuple[int, int]:
        """Both limits.

        Raises:
            ClockError: they cannot be read.
        """
        return read_int(self.folder / self.low), read_int(self.folder / self.high)

    def write(self, low: int, high: int) -> None:
        """Set both limits and read them back.

        Raises:
            ClockError: no permission, refused, rounded to something else, or ignored.
        """
        present = self.read()
        if present == (low, high):
            return
        order = [(self.low, low), (self.high, high)]
        for name, value in order if low <= present[1] else reversed(order):
            write(self.folder / name, value)
        found = self.read()
        if found != (low, high):
            ignored = "ignored it" if found == present else "did not take it as it is"
            raise ClockError(
                f"{self.folder}: asked for {self.low} {low} and {self.high} {high}, the driver "
                f"{ignored}: they read {found[0]} and {found[1]}"
            )

"""Reading and writing clock files of Linux, with every refusal in the user's words.

All that exitbench ever changes under ``/sys`` goes through ``put_text``.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .base import Actuator, ClockError, LeftChanged

AS_ROOT = 'run the command as root: sudo -E env "PATH=$PATH" exitbench ...'
RESTORE = "exitbench hardware restore"

_HALF_A_KHZ = 5e-4
_LONGEST = 65536


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


def get_text(path: Path) -> str:
    """The stripped content of a file; the files of a kernel fit in one read.

    Raises:
        OSError: as the kernel or the driver says it.
    """
    # A governor does this between two layers of a network: Path.read_text takes several times
    # as long.
    handle = os.open(path, os.O_RDONLY)
    try:
        return os.read(handle, _LONGEST).decode(errors="replace").strip(" \n\t\0")
    finally:
        os.close(handle)


def look(path: Path) -> str | None:
    """The stripped content of a file; None where it is missing or may not be read."""
    try:
        return get_text(path)
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
        text = get_text(path)
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


def exact(
    levels: tuple[float, ...], value: float, what: Callable[[], str], unit: str = " MHz"
) -> float:
    """The one of ``levels`` that is ``value``; a float may be off by less than half a kHz.

    Args:
        what: gives the name of what has the levels; called for the message alone.
        unit: of the levels, with a blank before it.

    Raises:
        ClockError: there is no such level.
    """
    for level in levels:
        if abs(level - value) < _HALF_A_KHZ:
            return level
    raise ClockError(f"{what()} has no level {value:g}{unit}; it has {listed(levels)}{unit}")


def listed(levels: tuple[float, ...]) -> str:
    """Levels in words, the middle of a long list left out."""
    texts = [f"{level:g}" for level in levels]
    if len(texts) > 16:
        texts = [*texts[:6], "...", *texts[-6:]]
    return ", ".join(texts) or "none"


def left_changed(error: ClockError, why: str) -> LeftChanged:
    """The error of a change that has failed and could not be undone either."""
    return LeftChanged(
        f"{error}. What was changed before could not be put back: {why}. Run: {RESTORE}"
    )


@contextmanager
def undoing(actuator: Actuator) -> Iterator[None]:
    """Puts an actuator back to where it was before the block, if a clock error ends the block."""
    before = actuator.snapshot()
    try:
        yield
    except LeftChanged:
        raise
    except ClockError as error:
        try:
            actuator.restore(before)
        except ClockError as another:
            raise left_changed(error, str(another)) from error
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

    def write(self, low: int, high: int) -> tuple[int, int]:
        """Set both limits, read them back, and return what they were.

        Raises:
            ClockError: no permission, refused, rounded to something else, or ignored; they are as
                they were before, or it is LeftChanged.
        """
        present = self.read()
        if present == (low, high):
            return present
        try:
            for name, value in self._in_order(present, (low, high)):
                write(self.folder / name, value)
            self._check(present, (low, high))
        except ClockError as error:
            try:
                self.put_back(*present)
            except ClockError as another:
                raise left_changed(error, str(another)) from error
            raise
        return present

    def put_back(self, low: int, high: int) -> None:
        """Set both limits to what they were, each if the other one fails, too.

        Raises:
            ClockError: one or both could not be put back.
        """
        present = self.read()
        if present == (low, high):
            return
        failures = []
        as_it_was = dict(zip((self.low, self.high), present, strict=True))
        for name, value in self._in_order(present, (low, high)):
            if as_it_was[name] == value:
                continue  # refused or not, it is back
            try:
                write(self.folder / name, value)
            except ClockError as error:
                failures.append(str(error))
        if failures:
            raise ClockError("; ".join(failures))
        self._check(present, (low, high))

    def _in_order(self, present: tuple[int, int], wanted: tuple[int, int]) -> list[tuple[str, int]]:
        order = list(zip((self.low, self.high), wanted, strict=True))
        return order if wanted[0] <= present[1] else order[::-1]

    def _check(self, before: tuple[int, int], wanted: tuple[int, int]) -> None:
        found = self.read()
        if found != wanted:
            ignored = "ignored it" if found == before else "did not take it as it is"
            raise ClockError(
                f"{self.folder}: asked for {self.low} {wanted[0]} and {self.high} {wanted[1]}, "
                f"the driver {ignored}: they read {found[0]} and {found[1]}"
            )

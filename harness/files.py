"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import ExitbenchError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends well.

    On an exception the temporary file is removed and ``path`` is left as it was.

    Raises:
        ExitbenchError: the folder cannot be written.
    """
    path = Path(path)
    temporary = _beside(path)
    try:
        yield temporary
        # mkstemp, and some writers, make files that only their owner may read.
        temporary.chmod(0o666 & ~_umask())
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Refuse a place that cannot be written, before the work whose result would go there.

    Raises:
        ExitbenchError: the folder cannot be written.
    """
    _beside(Path(path)).unlink()


def _beside(path: Path) -> Path:
    """A new empty file in the folder of ``path``, which is made where it is missing."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise ExitbenchError(
            f"cannot write {path}: {error.strerror}. Choose a folder that can be written."
        ) from error
    os.close(handle)
    return Path(name)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def write_text(path: Path, text: str) -> None:
    """Write ``text`` (UTF-8) to ``path``, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON to ``path``, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, sort_keys=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The value in the JSON file ``path``.

    Raises:
        ExitbenchError: the file is missing, unreadable or no JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ExitbenchError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ExitbenchError(f"{path} is not valid JSON: {error}") from error
    except RecursionError as error:
        raise ExitbenchError(f"{path} is nested too deep to read") from error


def sha256(path: Path) -> str:
    """The SHA-256 digest of a file, as 64 hex digits."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()

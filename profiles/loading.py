"""Finding and reading hardware profiles: those that come with exitbench, or a file."""

from __future__ import annotations

import tomllib
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from ..harness.errors import ExitbenchError
from .schema import Profile, build
from .shape import faults_of


def list_profiles() -> tuple[str, ...]:
    """The names of the profiles that come with exitbench, in alphabetical order."""
    return tuple(sorted(_shipped()))


def load_profile(name_or_path: str | Path) -> Profile:
    """The profile of that name, or the one in that file.

    Args:
        name_or_path: a name of ``list_profiles()``, or a path; what ends in ``.toml`` or has a
            slash is a path.

    Raises:
        ExitbenchError: there is no such profile or file, the file cannot be read or is not TOML,
            or it does not keep the schema; then every fault is named.
    """
    asked = str(name_or_path)
    if isinstance(name_or_path, Path) or asked.endswith(".toml") or "/" in asked:
        return _read(Path(asked))
    shipped = _shipped()
    if asked not in shipped:
        raise ExitbenchError(
            f"there is no hardware profile {asked!r}. Choose one of {', '.join(sorted(shipped))}, "
            "or give the path of a file that ends in .toml."
        )
    with resources.as_file(shipped[asked]) as path:
        return _read(path)


def _shipped() -> dict[str, Traversable]:
    files = resources.files(__package__).iterdir()
    return {each.name.removesuffix(".toml"): each for each in files if each.name.endswith(".toml")}


def _read(path: Path) -> Profile:
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ExitbenchError(f"cannot read hardware profile {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ExitbenchError(f"hardware profile {path} is not UTF-8 text: {error}") from error
    except ValueError as error:  # bad TOML, or a number with too many digits to read
        raise ExitbenchError(f"hardware profile {path} is not valid TOML: {error}") from error
    except RecursionError as error:
        raise ExitbenchError(f"hardware profile {path} is nested too deep to read") from error
    faults = faults_of(raw)
    if faults:
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise ExitbenchError(
            f"hardware profile {path} has {count}:\n"
            + "\n".join(f"  {fault}" for fault in faults)
            + "\nCorrect them; docs/hardware.md tells the format."
        )
    return build(raw, path)

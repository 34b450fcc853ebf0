"""Synthetic run directories for the tests of the reports."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from synthetic_run import write_run
from synthetic_sweep import Plan


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a synthetic run directory; its keywords are the fields of Plan."""

    def make(name: str = "run", **changes: Any) -> Path:
        return write_run(tmp_path / name, Plan(**changes))

    return make


@pytest.fixture(scope="session")
def synthetic_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One synthetic run directory, shared; tests only read it."""
    return write_run(tmp_path_factory.mktemp("reports") / "run")

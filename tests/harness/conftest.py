"""What the tests of the pipeline share; made once per session, and by nobody changed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from exitbench.harness.clocks import sysfs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fake_clocks import Kernel
    from pipeline_fixtures import Inputs
    from runtime_lab import Lab


@pytest.fixture(autouse=True)
def no_clock_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sets a clock, or switches a core, of the machine that it runs on."""
    real = sysfs.put_text

    def put_text(path: Path, text: str) -> None:
        assert Path("/sys") not in path.resolve().parents, f"a test writes {path}"
        real(path, text)

    monkeypatch.setattr(sysfs, "put_text", put_text)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Networks run on one thread; afterwards on as many as before."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """What answers to writes below a folder like /sys, as a kernel does."""
    from fake_clocks import Kernel

    found = Kernel()
    monkeypatch.setattr(sysfs, "put_text", found.put_text)
    return found


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """Where a test's clock sessions keep what clocks were."""
    return tmp_path / "state" / "clocks.json"


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """A small dataset, and small networks with and without exits."""
    from pipeline_fixtures import make_inputs

    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="session")
def finished(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a finished study of the VGG-19; tests copy what they change."""
    from exitbench.harness.pipeline import study
    from pipeline_fixtures import silent, study_config

    run = tmp_path_factory.mktemp("study") / "run"
    study(study_config(inputs.vgg, run), silent)
    return run


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """Trained networks, prepared by every runtime, and what each says of the same samples."""
    import torch
    from runtime_lab import Lab

    torch.set_num_threads(1)
    return Lab(tmp_path_factory.mktemp("lab"))

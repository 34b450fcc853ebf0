"""What all tests share: one torch thread, small seeded networks, the checkout, GPU skipping."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from exitbench.models import ExitNetwork

# Read by torch when it is first imported, and handed on to the commands that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"

# A shared machine stalls now and then; a slow example is no failure.
settings.register_profile("exitbench", deadline=None)
settings.load_profile("exitbench")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked ``cuda`` where torch finds no GPU; torch is asked only if there are any."""
    marked = [item for item in items if item.get_closest_marker("cuda")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    """Undo, after a test that changed it, the number of torch threads; imports no torch itself."""
    yield
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "set_num_threads"):
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The folder of the checkout; skips where the tests run away from it."""
    folder = Path(os.environ.get("EXITBENCH_CHECKOUT", Path(__file__).parents[1]))
    if not (folder / "harness").is_dir():
        pytest.skip("needs the checkout; EXITBENCH_CHECKOUT may name it")
    return folder


NetworkFactory = Callable[..., "ExitNetwork"]


@pytest.fixture(scope="session")
def make_network() -> NetworkFactory:
    """``make_network(model, seed=0, **arguments)``: a small seeded network in eval mode.

    The width is 0.125 unless given. Batch-norm statistics are drawn too, so that a block that
    skipped its batch norm would be noticed.
    """

    def make(model: str = "vgg19", *, seed: int = 0, **arguments: object) -> ExitNetwork:
        import torch
        from exitbench.models import ModelArguments, build

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = build(model, ModelArguments(**{"width": 0.125, **arguments}))  # type: ignore[arg-type]
            for module in network.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    torch.nn.init.normal_(module.running_mean, std=0.1)
                    torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
        return network.eval()

    return make


@pytest.fixture
def tiny_vgg(make_network: NetworkFactory) -> ExitNetwork:
    """VGG-19 at an eighth of its width with all 20 exits."""
    return make_network("vgg19")


@pytest.fixture
def tiny_resnet(make_network: NetworkFactory) -> ExitNetwork:
    """ResNet-34 at an eighth of its width with 4 exits: two inside a block, two at an end."""
    return make_network("resnet34", exits=(1, 8, 15, 26))

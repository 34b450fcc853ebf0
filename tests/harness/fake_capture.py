"""A ``Capture`` on the CPU that punishes what a GPU would silently get wrong.

Captured work is kept as a function and run again at every replay, on the same static buffers, so
that outputs are overwritten as those of a graph are. What a GPU leaves undefined is poison here
(NaN): buffers when made and after a capture, padding rows, scratch of an earlier replay that was
kept, pinned memory when the next transfer begins. Work that waits for the device or makes static
buffers while it is captured is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITS = {"cpu", "numpy", "item", "tolist", "__bool__", "__int__", "__float__", "__index__"}


class Refused(RuntimeError):
    """What CUDA raises for work that cannot be captured."""


class _NoWaiting(TorchFunctionMode):
    """Refuses what would wait for the device."""

    def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if getattr(function, "__name__", "") in WAITS:
            raise Refused(f"operation not permitted when stream is capturing: {function.__name__}")
        return function(*args, **(kwargs or {}))


class _Scratch(TorchDispatchMode):
    """Collects what work makes on the way: a graph has it in the pool that all graphs share."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, Tensor] = {}
        self.touched: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        given = {_address(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        self.touched |= given
        result = function(*args, **(kwargs or {}))
        for made in tree_leaves(result):
            if isinstance(made, Tensor) and _address(made) not in given:
                self.made[_address(made)] = made
        return result

    def spoil(self) -> None:
        """The next graph uses the pool."""
        for made in self.made.values():
            poison(made)
        self.made.clear()


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class FakeGraph:
    """Captured work."""

    def __init__(self, owner: FakeCapture, work: Callable[[], None]) -> None:
        self._owner = owner
        self._work = work
        self.replays = 0

    def replay(self) -> None:
        assert self._owner.inside, "a replay outside of running()"
        self.replays += 1
        self._owner.replays += 1
        self._owner.scratch.spoil()
        with self._owner.scratch:
            self._work()


class FakeCapture:
    """``Capture`` on the CPU; counts what it is asked for.

    Args:
        refuse: which capture, counted from 1, is refused.
    """

    def __init__(self, refuse: Callable[[int], bool] = lambda number: False) -> None:
        self.device = torch.device("cpu")
        self.captures = self.replays = self.places = self.sends = self.waits = 0
        self.inside = False
        self.buffers: list[Tensor] = []
        self.scratch = _Scratch()
        self._refuse = refuse
        self._capturing = False
        self._host: NDArray[np.float32] | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        self.inside = True
        try:
            yield
        finally:
            self.inside = False

    def buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        assert not self._capturing, "a static buffer made while capturing lies in the pool"
        made = torch.empty(shape, dtype=dtype)
        poison(made)
        self.buffers.append(made)
        return made

    def place(self, target: Tensor, source: Tensor) -> None:
        assert self.inside
        assert len(source) <= len(target)
        self.places += 1
        target[: len(source)].copy_(source)
        poison(target[len(source) :])

    def record(self, work: Callable[[], None]) -> FakeGraph:
        assert self.inside
        self.captures += 1
        self._capturing = True
        try:
            with _NoWaiting(), (scratch := _Scratch()):
                work()
            if self._refuse(self.captures):
                raise Refused("operation failed due to a previous error during capture\nmore")
        finally:
            self._capturing = False
            for buffer in self.buffers:
                if _address(buffer) in scratch.touched:
                    poison(buffer)
        return FakeGraph(self, work)

    def send(self, values: Tensor) -> Callable[[], NDArray[np.float32]]:
        assert values.dtype == torch.float32
        assert values.is_contiguous()
        self.sends += 1
        if self._host is not None:
            self._host.fill(np.nan)
        self._host = values.numpy().copy()
        host = self._host

        def wait() -> NDArray[np.float32]:
            self.waits += 1
            return host

        return wait


def poison(tensor: Tensor) -> None:
    """Fill with what is NaN in every float type; bytes by bytes where it is raw memory."""
    with torch.inference_mode():
        tensor.fill_(float("nan") if tensor.is_floating_point() else 255)

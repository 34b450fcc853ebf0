"""The boundary to torch.cuda of the runtime ``cudagraph``: all that needs a GPU is in this file.

A CUDA graph is work on fixed memory: it reads and writes the same addresses at every replay, and
what it needs in between comes from a pool that all graphs of a network share. So nothing that is
read after a replay may lie in the pool; results go into static buffers, made here and kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..devices import fp32_on_cuda

WARM_UPS = 3
"""Runs before a capture: the first makes handles, workspaces and the choice of algorithms; torch's
own guide warms up a few times."""

Work = Callable[[], None]
Arrival = Callable[[], NDArray[np.float32]]


class Graph(Protocol):
    """Captured work."""

    def replay(self) -> None:
        """Queue the work on the current stream, on what the static buffers hold by then."""


class Capture(Protocol):
    """Captures work on one device, and brings results to the host. For one thread at a time."""

    def running(self) -> AbstractContextManager[None]:
        """Everything else here happens in this context: the right device, in the right order."""

    def buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Static memory, contiguous, of no particular content."""

    def place(self, target: Tensor, source: Tensor) -> None:
        """Copy ``source`` (n, ...) into the first n rows of the static ``target``.

        The other rows are padding: of no particular content.
        """

    def record(self, work: Work) -> Graph:
        """Run ``work`` to warm up, then capture it; what it writes holds anything afterwards.

        Args:
            work: reads and writes static buffers only, and never waits for the device.

        Raises:
            RuntimeError: it cannot be captured; CUDA's or torch's own words.
        """

    def send(self, values: Tensor) -> Arrival:
        """Queue one copy of float32 ``values`` to the host; what is returned waits for it.

        What it gives then is overwritten by the next ``send``.
        """


class CudaCapture:
    """``Capture`` on an NVIDIA GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        with torch.cuda.device(device):
            self._side = torch.cuda.Stream()
            self._arrived = torch.cuda.Event()
            self._pool: Any = torch.cuda.graph_pool_handle()
        self._last: torch.cuda.Stream | None = None
        self._host: Tensor | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """This device; and a stream after what was queued here on another stream before."""
        with torch.cuda.device(self.device):
            current = torch.cuda.current_stream()
            if self._last is not None and current != self._last:
                current.wait_stream(self._last)
            self._last = current
            yield

    def buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Static memory; see ``Capture``."""
        return torch.zeros(shape, dtype=dtype, device=self.device)

    def place(self, target: Tensor, source: Tensor) -> None:
        """Copy rows; see ``Capture``."""
        target[: len(source)].copy_(source)

    def record(self, work: Work) -> Graph:
        """Warm up and capture on a side stream; see ``Capture``."""
        current = torch.cuda.current_stream()
        graph = torch.cuda.CUDAGraph()
        # torch.cuda.graph does not put the stream back when a capture fails; the outer one does.
        try:
            with fp32_on_cuda(), _searching(), torch.cuda.stream(self._side):
                self._side.wait_stream(current)
                for _ in range(WARM_UPS):
                    work()
                # Other threads, a meter's for one, may go on using CUDA meanwhile.
                with torch.cuda.graph(
                    graph, self._pool, self._side, capture_error_mode="thread_local"
                ):
                    work()
        except RuntimeError:
            # A pool that a broken capture has touched is not to be trusted with the next one.
            self._pool = torch.cuda.graph_pool_handle()
            raise
        finally:
            current.wait_stream(self._side)
        return graph

    def send(self, values: Tensor) -> Arrival:
        """One asynchronous copy through pinned memory; see ``Capture``."""
        count = values.numel()
        if self._host is None or self._host.numel() < count:
            self._host = torch.empty(count, dtype=torch.float32, pin_memory=True)
        target = self._host[:count].view(values.shape)
        target.copy_(values, non_blocking=True)
        self._arrived.record()

        def wait() -> NDArray[np.float32]:
            # Work queued after the copy, such as the state's, is not waited for.
            self._arrived.synchronize()
            found: NDArray[np.float32] = target.numpy()
            return found

        return wait


@contextmanager
def _searching() -> Iterator[None]:
    """cuDNN tries its algorithms in the warm-up; the capture then takes the best one, for good."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before

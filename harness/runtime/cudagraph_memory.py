"""Static memory of CUDA graphs: states and results at fixed addresses, one set per bucket.

One region of memory holds whatever state the graphs of a bucket are at: a graph reads the state at
its first exit there and leaves the one at its last exit there, so that any graph can follow any
other without a copy. A caller gets a copy of the state, and the region remembers whose content it
still holds: if that state comes back, it is not copied in again.
"""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass

import torch
from torch import Tensor

from ...models.blocks import State
from .cudagraph_capture import Capture

LARGEST_BUCKET = 256
"""Beyond, a batch runs eagerly: launches are a small share there, and padding a large one."""

_ALIGNMENT = 256  # bytes, as CUDA's own allocations


def bucket_of(count: int) -> int | None:
    """The rows that graphs for ``count`` samples have, a power of two; None: none have."""
    bucket = 1 << max(0, count - 1).bit_length()
    return bucket if count > 0 and bucket <= LARGEST_BUCKET else None


@dataclass(frozen=True)
class Layout:
    """A state's tensors without their rows: (channels, height, width) and type of each.

    Attributes:
        pair: the state is a tuple of tensors.
    """

    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]
    pair: bool

    @classmethod
    def of(cls, state: State) -> Layout:
        """The layout of a state."""
        parts = tensors(state)
        return cls(
            tuple(tuple(part.shape[1:]) for part in parts),
            tuple(part.dtype for part in parts),
            isinstance(state, tuple),
        )

    def bytes_for(self, rows: int) -> tuple[int, ...]:
        """Size of each tensor with ``rows`` rows, rounded up so that the next one is aligned."""
        sizes = (
            rows * math.prod(shape) * dtype.itemsize
            for shape, dtype in zip(self.shapes, self.dtypes, strict=True)
        )
        return tuple(-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes)

    def views(self, region: Tensor, rows: int) -> tuple[Tensor, ...]:
        """The tensors, channels_last, one after the other in a ``region`` of bytes."""
        found, start = [], 0
        for shape, dtype, size in zip(
            self.shapes, self.dtypes, self.bytes_for(rows), strict=True
        ):  # fmt: skip
            channels, height, width = shape
            flat = region[start : start + rows * math.prod(shape) * dtype.itemsize].view(dtype)
            found.append(flat.view(rows, height, width, channels).permute(0, 3, 1, 2))
            start += size
        return tuple(found)


class Memory:
    """What the graphs of one bucket read and write.

    Args:
        layouts: of the images, then of the state after each segment 1..E + 1.
        bucket: rows.
        classes: columns of logits.

    Attributes:
        logits: static (bucket, classes) float32, of the head or classifier that was asked last.
        at: the exit whose state the region holds, 0 for images; None: nothing of use.
        classified: ``logits`` are the classifier's, of the state that the region holds.
    """

    def __init__(
        self, capture: Capture, layouts: tuple[Layout, ...], bucket: int, classes: int
    ) -> None:
        size = max(sum(layout.bytes_for(bucket)) for layout in layouts)
        self._region = capture.buffer((size,), torch.uint8)
        self._capture = capture
        self._layouts = layouts
        self._views = [layout.views(self._region, bucket) for layout in layouts]
        self._bucket = bucket
        self._answers: dict[int, Tensor] = {}
        self._copies: tuple[weakref.ref[Tensor], ...] = ()
        self.logits = capture.buffer((bucket, classes), torch.float32)
        self.at: int | None = None
        self.classified = False

    def state(self, exit: int) -> State:
        """The region, seen as the state at ``exit``; for captured work alone."""
        return self._as_state(exit, self._views[exit])

    def answers(self, columns: int) -> Tensor:
        """Static (bucket, columns) float32."""
        if columns not in self._answers:
            self._answers[columns] = self._capture.buffer((self._bucket, columns), torch.float32)
        return self._answers[columns]

    def forget(self) -> None:
        """What the region holds is of no use any more."""
        self.at, self._copies, self.classified = None, (), False

    def moved(self, exit: int) -> None:
        """A replay has left the state at ``exit`` in the region."""
        self.at, self._copies, self.classified = exit, (), False

    def holds(self, exit: int, state: State) -> bool:
        """Whether the region holds the content of ``state``, which came from here or went in last.

        Told by identity: states belong to the runtime, and nobody else changes them.
        """
        parts = tensors(state)
        return (
            self.at == exit
            and len(parts) == len(self._copies)
            and all(copy() is part for copy, part in zip(self._copies, parts, strict=True))
        )

    def load(self, exit: int, state: State) -> None:
        """Copy a state (n, ...) into the region's first n rows."""
        self.forget()
        for target, source in zip(self._views[exit], tensors(state), strict=True):
            self._capture.place(target, source)
        self.at = exit
        if exit > 0:  # images are the caller's, who may put others into the same tensor
            self._remember(tensors(state))

    def store(self, exit: int, state: State) -> None:
        """Leave a state (bucket, ...) in the region; part of captured work."""
        # A shortcut may be the very state that was read here: out of the way, before it is covered.
        parts = [part.clone() if self._inside(part) else part for part in tensors(state)]
        for target, part in zip(self._views[exit], parts, strict=True):
            target.copy_(part)

    def read(self, exit: int, count: int) -> State:
        """A copy of the region's first ``count`` rows, the caller's to keep."""
        parts = tuple(view[:count].clone() for view in self._views[exit])
        self._remember(parts)
        return self._as_state(exit, parts)

    def _remember(self, parts: tuple[Tensor, ...]) -> None:
        self._copies = tuple(weakref.ref(part) for part in parts)

    def _as_state(self, exit: int, parts: tuple[Tensor, ...]) -> State:
        return parts if self._layouts[exit].pair else parts[0]

    def _inside(self, part: Tensor) -> bool:
        return part.untyped_storage().data_ptr() == self._region.untyped_storage().data_ptr()


def tensors(state: State) -> tuple[Tensor, ...]:
    """A state's tensors."""
    return tuple(state) if isinstance(state, tuple) else (state,)

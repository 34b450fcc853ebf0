"""What a policy may see of the samples that are due at an exit."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.integer[Any]]
FloatArray = NDArray[np.floating[Any]]


class Evidence(Protocol):
    """Evidence of n samples at one exit, under one criterion."""

    @property
    def samples(self) -> IntArray:
        """Positions of the samples in their split, shape (n,)."""

    @property
    def label(self) -> IntArray:
        """The head's answer, shape (n,)."""

    @property
    def confidence(self) -> FloatArray:
        """The head's confidence, float32, shape (n,)."""

    def rounds(self, rows: IntArray) -> FloatArray:
        """Confidence of each round of the convolution predictor for ``rows``: (len(rows), R)."""


def decode_rounds(bounded: bool, stored: NDArray[np.float16]) -> NDArray[np.float32]:
    """Confidences from their stored form; see ``criteria.encode_rounds``."""
    values = stored.astype(np.float32)
    return np.float32(1) - values if bounded else values

"""What a head says of a batch: labels, confidences, and the rounds of the predictor, as numpy."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .criteria import CRITERIA, as_stored
from .evidence import FloatArray, IntArray

FEW = 32
"""Logits of one sample up to which plain Python takes less time than the calls of numpy."""


SMALL = 100_000
"""Multiplications of a matrix product up to which numpy's library keeps to one thread. Beyond it
would take all CPUs, whatever --threads says; torch's keeps to that."""


@dataclass(frozen=True)
class Question:
    """What is asked of every head in a run.

    Attributes:
        criterion: key of ``CRITERIA``; what the confidence means.
        stack: the convolution predictor's matrices (R, classes, classes) on any device, if the
            policy forecasts with them.
    """

    criterion: str = "softmax"
    stack: Tensor | None = None

    @cached_property
    def matrix(self) -> NDArray[np.float64]:
        """The stack as one matrix (classes, R * classes) on the host: logits @ matrix."""
        assert self.stack is not None, "the policy asks for rounds, but no kernel was given"
        return _matrix_of(self.stack)


@lru_cache(maxsize=4)
def _matrix_of(stack: Tensor) -> NDArray[np.float64]:
    """Kept from batch to batch: every batch asks a question of its own, at batch 1 every image."""
    columns = stack.cpu().numpy().reshape(-1, stack.shape[2])
    return columns.astype(np.float64).T


class Answers(Protocol):
    """What one head says of n samples. Nothing is computed before it is asked for, or all is."""

    @property
    def label(self) -> IntArray:
        """The head's answer, int64, shape (n,)."""

    @property
    def confidence(self) -> FloatArray:
        """The head's confidence, float32, shape (n,)."""

    def rounds(self, rows: IntArray) -> FloatArray:
        """Confidence of each round of the convolution predictor for ``rows``: (len(rows), R)."""

    def of(self, rows: IntArray) -> Answers:
        """The answers for ``rows`` alone, in that order."""


class LogitAnswers:
    """Answers computed on the host from logits (n, classes), which are brought there once."""

    def __init__(self, logits: Tensor, question: Question) -> None:
        self._given = logits
        self._question = question

    @cached_property
    def _logits(self) -> NDArray[np.float32]:
        array: NDArray[np.float32] = self._given.cpu().numpy()
        return array

    @cached_property
    def label(self) -> IntArray:
        return self._logits.argmax(1)

    @cached_property
    def confidence(self) -> FloatArray:
        criterion, logits = CRITERIA[self._question.criterion], self._logits
        if logits.size <= FEW and len(logits) == 1:
            return np.array([criterion.of_list(logits[0].tolist())], dtype=np.float32)
        return criterion.of_array(logits)

    def rounds(self, rows: IntArray) -> FloatArray:
        matrix, name = self._question.matrix, self._question.criterion
        logits = self._logits if len(self._logits) == 1 == len(rows) else self._logits[rows]
        rounds = _product(logits.astype(np.float64), matrix)
        rounds = rounds.reshape(len(rows), -1, logits.shape[1])
        return as_stored(name, CRITERIA[name].of_array(rounds))

    def of(self, rows: IntArray) -> LogitAnswers:
        return LogitAnswers(torch.from_numpy(self._logits[rows]), self._question)


def _product(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """left @ right, on no more threads than torch has been given."""
    if left.size * right.shape[1] <= SMALL:
        return left @ right
    product: NDArray[np.float64] = (torch.from_numpy(left) @ torch.from_numpy(right)).numpy()
    return product

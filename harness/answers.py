"""What a head says of a batch: labels, confidences, and the rounds of the predictor, as numpy."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from .criteria import CRITERIA, encode_rounds
from .evidence import FloatArray, IntArray, decode_rounds
from .predictors import convolve


@dataclass(frozen=True)
class Question:
    """What is asked of every head in a run.

    Attributes:
        criterion: key of ``CRITERIA``; what the confidence means.
        stack: the convolution predictor's matrices (R, classes, classes) on the network's device,
            if the policy forecasts with them.
    """

    criterion: str = "softmax"
    stack: Tensor | None = None


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
    """Answers computed from logits (n, classes) where they are."""

    def __init__(self, logits: Tensor, question: Question) -> None:
        self._logits = logits
        self._question = question

    @cached_property
    def label(self) -> IntArray:
        labels: IntArray = self._logits.argmax(-1).cpu().numpy()
        return labels

    @cached_property
    def confidence(self) -> FloatArray:
        values = CRITERIA[self._question.criterion].confidence(self._logits).cpu().numpy()
        return np.asarray(values)

    def rounds(self, rows: IntArray) -> FloatArray:
        stack, name = self._question.stack, self._question.criterion
        assert stack is not None, "the policy asks for rounds, but no kernel was given"
        logits = self._rows(rows)
        confidence = CRITERIA[name].confidence(convolve(logits, stack))
        stored = encode_rounds(name, confidence).cpu().numpy()
        return decode_rounds(CRITERIA[name].bounded, stored)

    def of(self, rows: IntArray) -> LogitAnswers:
        return LogitAnswers(self._rows(rows), self._question)

    def _rows(self, rows: IntArray) -> Tensor:
        count = len(self._logits)
        # All of them, but perhaps in another order: rows move when a batch closes up.
        if len(rows) == count and (count == 1 or (rows == np.arange(count)).all()):
            return self._logits
        return self._logits[torch.from_numpy(rows).to(self._logits.device)]

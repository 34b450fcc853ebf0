"""A head's answers as one small float32 table: made on the device, read on the host.

Columns: label, confidence, then the rounds as they are stored (``criteria.encode_rounds``). float32
holds all of them exactly: labels up to 2^24, rounds because they are float16.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..answers import Question
from ..criteria import CRITERIA, encode_rounds
from ..evidence import FloatArray, IntArray, decode_rounds
from ..predictors import convolve


@dataclass(frozen=True)
class Ask:
    """A question by its content, so that an equal one finds the same graph.

    Attributes:
        criterion: key of ``CRITERIA``.
        stack: digest of the predictor's matrices, empty without.
        rounds: R, 0 without.
    """

    criterion: str
    stack: str
    rounds: int

    @property
    def columns(self) -> int:
        """Columns of the answers."""
        return 2 + self.rounds


class Questions:
    """Questions asked so far, and copies of their stacks, which graphs read while they live."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stacks: dict[str, Tensor] = {}
        self._last: tuple[Tensor | None, str] = (None, "")

    def ask(self, question: Question) -> Ask:
        """The question by its content. A stack is looked at once, as long as it is the same one."""
        stack = question.stack
        if stack is None:
            return Ask(question.criterion, "", 0)
        known, digest = self._last
        if stack is not known:
            host = stack.detach().cpu().double().contiguous()  # as rounds are computed
            shape = str(tuple(host.shape)).encode()
            digest = hashlib.sha256(shape + host.numpy().tobytes()).hexdigest()
            if digest not in self._stacks:
                self._stacks[digest] = host.to(self._device, copy=True)
            self._last = (stack, digest)
        return Ask(question.criterion, digest, len(stack))

    def columns(self, logits: Tensor, ask: Ask) -> Tensor:
        """The answers (n, 2 + R) that logits (n, classes) give; never waits for the device."""
        confidence = CRITERIA[ask.criterion].confidence
        found = [logits.argmax(-1)[:, None].float(), confidence(logits)[:, None]]
        if ask.stack:
            rounds = confidence(convolve(logits, self._stacks[ask.stack]))
            found.append(encode_rounds(ask.criterion, rounds).float())
        return torch.cat(found, 1)


class HostAnswers:
    """Answers read from their table.

    Args:
        values: (n, 2 + R) on the host; copied, because pinned memory is used again.
    """

    def __init__(self, values: NDArray[np.float32], ask: Ask) -> None:
        self._values = values.copy()
        self._ask = ask

    @property
    def label(self) -> IntArray:
        labels: IntArray = self._values[:, 0].astype(np.int64)
        return labels

    @property
    def confidence(self) -> FloatArray:
        return self._values[:, 1]

    def rounds(self, rows: IntArray) -> FloatArray:
        assert self._ask.rounds, "the policy asks for rounds, but no kernel was given"
        stored = self._values[rows, 2:].astype(np.float16)
        return decode_rounds(CRITERIA[self._ask.criterion].bounded, stored)

    def of(self, rows: IntArray) -> HostAnswers:
        return HostAnswers(self._values[rows], self._ask)

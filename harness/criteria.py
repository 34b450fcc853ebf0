"""Confidence criteria: how sure a head is, and the scale that beta is read on.

A sample may leave at exit i when ``confidence_i(x) >= beta * T_i``.

Every criterion is here in three forms: for torch, with which traces are recorded; for numpy; and
for the logits of one sample in plain Python, which at batch 1 costs a tenth of torch's calls. A
live run and its replay must decide alike, also where a confidence is about 1 and the limit is 1. So
all three compute in float64 and round once, to float32: the order of a sum changes far less than
that. Logits are finite.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .evidence import FloatArray, decode_rounds


@dataclass(frozen=True)
class Criterion:
    """One way to read a confidence from logits.

    Attributes:
        name: the key in ``CRITERIA``.
        confidence: logits (..., classes) to confidence (...), float32.
        bounded: the confidence lies in 0..1 and the threshold is 1.
        help: what it is and when to prefer it.
        of_array: the same for numpy arrays.
        of_list: the same for the logits of one sample, not yet rounded to float32.
    """

    name: str
    confidence: Callable[[Tensor], Tensor]
    bounded: bool
    help: str
    of_array: Callable[[FloatArray], NDArray[np.float32]]
    of_list: Callable[[list[float]], float]


def softmax_confidence(logits: Tensor) -> Tensor:
    """Largest softmax probability, in 1/classes..1."""
    return torch.softmax(logits.double(), -1).amax(-1).float()


def _softmax_of_array(logits: FloatArray) -> NDArray[np.float32]:
    _, _, total = _exponentials(logits)
    return (1 / total).astype(np.float32)


def _softmax_of_list(logits: list[float]) -> float:
    largest = max(logits)
    return 1 / sum([math.exp(value - largest) for value in logits])


def activation_confidence(logits: Tensor) -> Tensor:
    """Largest logit; Li et al., "Predictive Exit", AAAI 2023."""
    return logits.amax(-1).float()


def _activation_of_array(logits: FloatArray) -> NDArray[np.float32]:
    return logits.max(-1).astype(np.float32)


def margin_confidence(logits: Tensor) -> Tensor:
    """Difference of the two largest softmax probabilities, in 0..1."""
    top = torch.softmax(logits.double(), -1).topk(2, -1).values
    return (top[..., 0] - top[..., 1]).float()


def _margin_of_array(logits: FloatArray) -> NDArray[np.float32]:
    _, powers, total = _exponentials(logits)
    second = np.partition(powers, -2, -1)[..., -2]
    return ((1 - second) / total).astype(np.float32)


def _margin_of_list(logits: list[float]) -> float:
    *others, second, largest = sorted(logits)
    power = math.exp(second - largest)
    return (1 - power) / (1 + power + sum([math.exp(value - largest) for value in others]))


def entropy_confidence(logits: Tensor) -> Tensor:
    """One minus the softmax entropy as a share of its maximum ln(classes), in 0..1."""
    log_p = torch.log_softmax(logits.double(), -1)
    return (1 + (log_p.exp() * log_p).sum(-1) / math.log(logits.shape[-1])).float()


def _entropy_of_array(logits: FloatArray) -> NDArray[np.float32]:
    below, powers, total = _exponentials(logits)
    log_p = (powers * below).sum(-1) / total - np.log(total)  # mean over the classes
    return (1 + log_p / math.log(logits.shape[-1])).astype(np.float32)


def _entropy_of_list(logits: list[float]) -> float:
    largest = max(logits)
    below = [value - largest for value in logits]
    powers = [math.exp(value) for value in below]
    total = sum(powers)
    weighted = sum([power * value for power, value in zip(powers, below, strict=True)])
    return 1 + (weighted / total - math.log(total)) / math.log(len(logits))


def reference_confidence(logits: Tensor) -> Tensor:
    """Largest absolute logit, as the paper's program computes it."""
    return logits.abs().amax(-1).float()


def _reference_of_array(logits: FloatArray) -> NDArray[np.float32]:
    return np.abs(logits).max(-1).astype(np.float32)


def _reference_of_list(logits: list[float]) -> float:
    return max(max(logits), -min(logits))


def _exponentials(logits: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """In float64: how far each logit is above the largest (0 or less), e to that, their sums."""
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    powers = np.exp(wide)
    return wide, powers, powers.sum(-1)


CRITERIA: dict[str, Criterion] = {
    criterion.name: criterion
    for criterion in (
        Criterion(
            "softmax",
            softmax_confidence,
            True,
            "largest softmax probability (default)",
            _softmax_of_array,
            _softmax_of_list,
        ),
        Criterion(
            "activation",
            activation_confidence,
            False,
            "largest logit against its mean over the calibration split, as in the paper",
            _activation_of_array,
            max,
        ),
        Criterion(
            "margin",
            margin_confidence,
            True,
            "softmax top-1 minus top-2",
            _margin_of_array,
            _margin_of_list,
        ),
        Criterion(
            "entropy",
            entropy_confidence,
            True,
            "1 minus the normalised entropy of the softmax",
            _entropy_of_array,
            _entropy_of_list,
        ),
        Criterion(
            "reference",
            reference_confidence,
            False,
            "largest absolute logit against the absolute mean of all logits, as the paper's "
            "program does it; for comparison with published settings only: it takes a strongly "
            "negative logit for confidence, and a mean near zero makes an unstable scale",
            _reference_of_array,
            _reference_of_list,
        ),
    )
}


def encode_rounds(name: str, confidence: Tensor) -> Tensor:
    """Confidences as float16, which is how rounds are stored and decided on.

    A bounded confidence is stored as its distance from 1, where the resolution is needed. Live
    runs pass through the same rounding, so that they decide exactly as replay does.
    """
    return (1 - confidence if CRITERIA[name].bounded else confidence).to(torch.float16)


def as_stored(name: str, confidence: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rounds as they are after ``encode_rounds`` and ``decode_rounds``."""
    bounded = CRITERIA[name].bounded
    if bounded:
        return decode_rounds(bounded, (np.float32(1) - confidence).astype(np.float16))
    with np.errstate(over="ignore"):  # beyond float16 lies infinity, above every limit
        return decode_rounds(bounded, confidence.astype(np.float16))

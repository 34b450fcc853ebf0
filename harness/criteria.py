"""Confidence criteria: how sure a head is, and the scale that beta is read on.

A sample may leave at exit i when ``confidence_i(x) >= beta * T_i``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Criterion:
    """One way to read a confidence from logits.

    Attributes:
        name: the key in ``CRITERIA``.
        confidence: logits (..., classes) to confidence (...).
        bounded: the confidence lies in 0..1 and the threshold is 1.
        help: what it is and when to prefer it.
    """

    name: str
    confidence: Callable[[Tensor], Tensor]
    bounded: bool
    help: str


def softmax_confidence(logits: Tensor) -> Tensor:
    """Largest softmax probability, in 1/classes..1."""
    return torch.softmax(logits, -1).amax(-1)


def activation_confidence(logits: Tensor) -> Tensor:
    """Largest logit; Li et al., "Predictive Exit", AAAI 2023."""
    return logits.amax(-1)


def margin_confidence(logits: Tensor) -> Tensor:
    """Difference of the two largest softmax probabilities, in 0..1."""
    top = torch.softmax(logits, -1).topk(2, -1).values
    return top[..., 0] - top[..., 1]


def entropy_confidence(logits: Tensor) -> Tensor:
    """One minus the softmax entropy as a share of its maximum ln(classes), in 0..1."""
    log_p = torch.log_softmax(logits, -1)
    return 1 + (log_p.exp() * log_p).sum(-1) / math.log(logits.shape[-1])


def reference_confidence(logits: Tensor) -> Tensor:
    """Largest absolute logit, as the paper's program computes it."""
    return logits.abs().amax(-1)


CRITERIA: dict[str, Criterion] = {
    criterion.name: criterion
    for criterion in (
        Criterion("softmax", softmax_confidence, True, "largest softmax probability (default)"),
        Criterion(
            "activation",
            activation_confidence,
            False,
            "largest logit against its mean over the calibration split, as in the paper",
        ),
        Criterion("margin", margin_confidence, True, "softmax top-1 minus top-2"),
        Criterion(
            "entropy", entropy_confidence, True, "1 minus the normalised entropy of the softmax"
        ),
        Criterion(
            "reference",
            reference_confidence,
            False,
            "largest absolute logit against the absolute mean of all logits, as the paper's "
            "program does it; for comparison with published settings only: it takes a strongly "
            "negative logit for confidence, and a mean near zero makes an unstable scale",
        ),
    )
}


def encode_rounds(name: str, confidence: Tensor) -> Tensor:
    """Confidences as float16, which is how rounds are stored and decided on.

    A bounded confidence is stored as its distance from 1, where the resolution is needed. Live
    runs pass through the same rounding, so that they decide exactly as replay does.
    """
    return (1 - confidence if CRITERIA[name].bounded else confidence).to(torch.float16)

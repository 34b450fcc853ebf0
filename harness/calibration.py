"""Thresholds T_i, fixed on the calibration split.

Model in eval mode, no augmentation, no gradients, a split disjoint from test.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .criteria import CRITERIA
from .errors import ExitbenchError
from .trace import Trace

CALIBRATION = "calibration"


def thresholds(trace: Trace) -> dict[str, NDArray[np.float64]]:
    """T_i of every criterion from a trace of the calibration split: name to (E,).

    ``activation``: mean over the split of the largest logit; ``reference``: absolute value of the
    mean over the split and the classes of the logits; the bounded criteria: 1.

    Raises:
        ExitbenchError: the trace is of another split.
    """
    if trace.meta.split != CALIBRATION:
        raise ExitbenchError(
            f"{trace.path} is a trace of the {trace.meta.split} split; thresholds are taken from "
            "the calibration split only"
        )
    scales = {name: np.ones(trace.meta.exits) for name in CRITERIA}
    scales["activation"] = trace.confidence("activation").mean(1, dtype=np.float64)
    scales["reference"] = np.abs(trace.array("logit_mean"))
    return scales


def measure_thresholds(batches: Iterable[Sequence[Tensor]]) -> dict[str, list[float]]:
    """T_i of every criterion from the logits of the calibration split, streamed.

    Args:
        batches: for every batch the logits (n, classes) of head 1..E.

    Returns:
        Criterion to E numbers; the same as ``thresholds`` gives for a trace of the same logits.
    """
    largest: NDArray[np.float64] | None = None
    total: NDArray[np.float64] = np.zeros(0)
    samples = cells = 0
    for heads in batches:
        logits = torch.stack([head.detach().double().cpu() for head in heads])
        highest = logits.amax(2).sum(1).numpy()
        every = logits.sum((1, 2)).numpy()
        largest, total = (highest, every) if largest is None else (largest + highest, total + every)
        samples += logits.shape[1]
        cells += logits.shape[1] * logits.shape[2]
    if largest is None:
        raise ExitbenchError("the calibration split has no images to take thresholds from")
    scales = {name: [1.0] * len(largest) for name in CRITERIA}
    scales["activation"] = (largest / samples).tolist()
    scales["reference"] = np.abs(total / cells).tolist()
    return scales


def limits(scale: NDArray[np.float64], beta: float) -> NDArray[np.float32]:
    """beta * T_i as float32, the precision in which decisions are taken."""
    return (beta * scale).astype(np.float32)

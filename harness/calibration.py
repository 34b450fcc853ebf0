"""Thresholds T_i, fixed on the calibration split.

Model in eval mode, no augmentation, no gradients, a split disjoint from test.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

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


def limits(scale: NDArray[np.float64], beta: float) -> NDArray[np.float32]:
    """beta * T_i as float32, the precision in which decisions are taken."""
    return (beta * scale).astype(np.float32)

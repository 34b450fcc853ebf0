"""Settings: what a policy is made from, and how to make it for a trace or a live run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .calibration import limits
from .errors import ExitbenchError
from .evidence import IntArray
from .policies import POLICIES, EveryExit, Fixed, Full, Oracle, Policy, Predictive
from .predictors import (
    ConstantPredictor,
    ConvolutionPredictor,
    PerfectPredictor,
    Predictor,
    first_later_leave,
    fit_table,
)
from .trace import Trace


@dataclass(frozen=True)
class Setting:
    """One point of the sweep: everything that decides where a sample leaves.

    Attributes:
        policy: key of ``POLICIES``.
        criterion: key of ``CRITERIA``; None for policies that read no confidence.
        beta: the knob; None likewise.
        start_layer: the first exit checked; for ``fixed`` the exit; None for full and oracle.
        predictor: key of ``PREDICTORS``; None unless predictive.
        precision: precision of the network.
    """

    policy: str
    criterion: str | None = None
    beta: float | None = None
    start_layer: int | None = None
    predictor: str | None = None
    precision: str = "fp32"

    def words(self) -> str:
        """The setting in a few words, for people."""
        parts = [self.policy]
        if self.policy == "fixed":
            parts.append(f"exit {self.start_layer}")
        elif self.start_layer is not None:
            parts += [f"{self.criterion}", f"beta {self.beta:g}", f"start {self.start_layer}"]
        if self.predictor is not None:
            parts.append(f"{self.predictor} predictor")
        return ", ".join([*parts, self.precision])


def may_leave(trace: Trace, criterion: str, limit: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Whether each sample may leave at each exit: (E, N)."""
    return trace.confidence(criterion) >= limit[:, None]


def true_leaves(
    setting: Setting, trace: Trace, scales: Mapping[str, NDArray[Any]]
) -> IntArray | None:
    """For every exit and sample the first later exit at which it would leave, (E, N).

    None for a setting that reads no confidence.
    """
    if setting.criterion is None or setting.beta is None:
        return None
    limit = limits(scales[setting.criterion], setting.beta)
    return first_later_leave(may_leave(trace, setting.criterion, limit))


@dataclass(frozen=True)
class Knowledge:
    """What a predictor may be made from.

    Attributes:
        criterion: key of ``CRITERIA``.
        limit: beta * T_i, (E,).
        calibration: trace of the calibration split.
        leaves: true later exits of the samples that will be walked, (E, N); None in a live run.
    """

    criterion: str
    limit: NDArray[np.float32]
    calibration: Trace
    leaves: IntArray | None


def _fitted_table(known: Knowledge) -> Predictor:
    later = first_later_leave(may_leave(known.calibration, known.criterion, known.limit))
    return fit_table(known.calibration.confidence(known.criterion), later, known.limit)


def _perfect(known: Knowledge) -> Predictor:
    if known.leaves is None:
        raise ExitbenchError(
            "the predictor 'perfect' knows where samples will leave and can only be replayed; "
            "choose convolution or table for a run"
        )
    return PerfectPredictor(known.leaves)


PREDICTORS: dict[str, Callable[[Knowledge], Predictor]] = {
    "convolution": lambda known: ConvolutionPredictor(known.limit),
    "table": _fitted_table,
    "constant": lambda known: ConstantPredictor(1),
    "perfect": _perfect,
}


def make_policy(
    setting: Setting,
    exits: int,
    scales: Mapping[str, NDArray[Any]],
    calibration: Trace,
    truth_of: Trace | None = None,
) -> Policy:
    """The policy of a setting.

    Args:
        exits: E.
        scales: T_i per criterion, from ``calibration.thresholds``.
        calibration: trace of the calibration split.
        truth_of: trace of the samples that will be walked, for policies that know the truth.

    Raises:
        ExitbenchError: a value is missing or out of range, or the truth is needed and not given.
    """
    if setting.policy == "full":
        return Full(exits)
    if setting.policy == "oracle":
        if truth_of is None:
            raise ExitbenchError("the policy 'oracle' knows the labels and can only be replayed")
        right = truth_of.correct()
        return Oracle(np.where(right.any(0), right.argmax(0) + 1, exits + 1))
    start = setting.start_layer
    if start is None or not 1 <= start <= exits:
        raise ExitbenchError(
            f"start layer is {start}; this network has exits 1 to {exits}"
        )
    if setting.policy == "fixed":
        return Fixed(start)
    if setting.criterion is None or setting.beta is None:
        raise ExitbenchError(f"policy {setting.policy} needs a criterion and a beta")
    limit = limits(scales[setting.criterion], setting.beta)
    if setting.policy == "every-exit":
        return EveryExit(limit, start)
    if setting.policy == "predictive":
        name = setting.predictor or "convolution"
        if name not in PREDICTORS:
            raise ExitbenchError(f"predictor is {name!r}; known are {', '.join(PREDICTORS)}")
        leaves = None if truth_of is None else true_leaves(setting, truth_of, scales)
        known = Knowledge(setting.criterion, limit, calibration, leaves)
        predictor = PREDICTORS[name](known)
        paid = isinstance(predictor, ConvolutionPredictor)
        return Predictive(limit, start, predictor, forecasts=paid)
    raise ExitbenchError(
        f"policy is {setting.policy!r}; known are {', '.join(POLICIES)}"
    )

"""Predictors: at an exit where a sample stays, how many exits further it is checked next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from .errors import ExitbenchError
from .evidence import Evidence, FloatArray, IntArray

DEFAULT_KERNEL = (1.0, 1.0, 1.0)
DEFAULT_HORIZON = 8


class Predictor(Protocol):
    """Something that forecasts jumps."""

    def jump(self, exit: int, evidence: Evidence, rows: IntArray) -> IntArray:
        """Jumps, 1 or more, of the samples in ``rows`` that stay at ``exit``: (len(rows),)."""


@dataclass(frozen=True)
class ConvolutionPredictor:
    """The predictor of Predictive Exit (Li et al., AAAI 2023).

    With v_0 the logits and v_r = conv1d(v_{r-1}, w), the jump is the smallest r in 1..R with
    conf(v_r) > beta * T_{min(i + r, E)}, and R if there is none.

    Attributes:
        limits: beta * T_i for every exit, float32, shape (E,).
    """

    limits: FloatArray

    def jump(self, exit: int, evidence: Evidence, rows: IntArray) -> IntArray:
        rounds = evidence.rounds(rows)
        horizon, exits = rounds.shape[1], len(self.limits)
        if exit + horizon <= exits:
            limits = self.limits[exit : exit + horizon]
        else:
            limits = self.limits[np.minimum(exit + np.arange(horizon), exits - 1)]
        reached = rounds > limits
        if len(rounds) == 1:
            first = int(reached.argmax())
            return np.array([first + 1 if reached[0, first] else horizon])
        return np.where(reached.any(1), reached.argmax(1) + 1, horizon)


@dataclass(frozen=True)
class ConstantPredictor:
    """Always the same jump."""

    jump_by: int = 1

    def jump(self, exit: int, evidence: Evidence, rows: IntArray) -> IntArray:
        return np.full(len(rows), self.jump_by)


@dataclass(frozen=True)
class PerfectPredictor:
    """Knows the first later exit at which each sample would leave; a bound.

    Attributes:
        leaves: for every exit (row) and sample of the split (column) the first later exit at
            which the sample may leave, E + 1 if none; shape (E, N).
    """

    leaves: IntArray

    def jump(self, exit: int, evidence: Evidence, rows: IntArray) -> IntArray:
        return self.leaves[exit - 1, evidence.samples[rows]].astype(np.int64) - exit


@dataclass(frozen=True)
class TablePredictor:
    """The jump seen on the calibration split for this exit and confidence.

    Attributes:
        edges: upper edges of the confidence bins of every exit, shape (E, bins - 1).
        jumps: jump of every bin, shape (E, bins).
    """

    edges: FloatArray
    jumps: IntArray

    def jump(self, exit: int, evidence: Evidence, rows: IntArray) -> IntArray:
        bins = np.searchsorted(self.edges[exit - 1], evidence.confidence[rows], side="right")
        return self.jumps[exit - 1, bins]


def fit_table(
    confidence: FloatArray, leaves: IntArray, limits: FloatArray, bins: int = 8
) -> TablePredictor:
    """A table predictor fitted to the calibration split.

    At every exit the samples that stay are put into ``bins`` of equal count by their confidence;
    each bin's jump is the median of the true jumps in it.

    Args:
        confidence: (E, N) confidences of the calibration split.
        leaves: (E, N) first later exit at which each sample would leave.
        limits: (E,) beta * T_i.
        bins: number of bins.
    """
    exits = len(limits)
    edges = np.full((exits, bins - 1), np.inf, dtype=np.float32)
    jumps = np.ones((exits, bins), dtype=np.int64)
    for row in range(exits):
        stay = confidence[row] < limits[row]
        if not stay.any():
            continue
        values, true_jump = confidence[row, stay], leaves[row, stay].astype(np.int64) - (row + 1)
        edges[row] = np.quantile(values, np.arange(1, bins) / bins)
        bin_of = np.searchsorted(edges[row], values, side="right")
        overall = int(np.median(true_jump))
        for number in range(bins):
            here = true_jump[bin_of == number]
            jumps[row, number] = max(1, int(np.median(here)) if len(here) else overall)
    return TablePredictor(edges, jumps)


def first_later_leave(may_leave: np.ndarray) -> IntArray:
    """For every exit and sample the first later exit at which it may leave, E + 1 if none.

    Args:
        may_leave: (E, N) booleans.

    Returns:
        (E, N) exit numbers; row i - 1 holds those after exit i.
    """
    exits, samples = may_leave.shape
    later = np.empty((exits, samples), dtype=np.int16)
    following = np.full(samples, exits + 1, dtype=np.int16)
    for row in range(exits - 1, -1, -1):
        later[row] = following
        following = np.where(may_leave[row], np.int16(row + 1), following)
    return later


def convolution_stack(
    classes: int, kernel: tuple[float, ...] = DEFAULT_KERNEL, horizon: int = DEFAULT_HORIZON
) -> Tensor:
    """The repeated convolution as matrices, shape (R, classes, classes): v_r = stack[r - 1] @ z.

    conv1d in the sense of neural networks (no flip), zero padding, same length.

    Raises:
        ExitbenchError: an even kernel, or a horizon below 1.
    """
    if len(kernel) % 2 == 0:
        raise ExitbenchError(
            f"kernel {list(kernel)} has {len(kernel)} weights; the number must be odd, so that "
            "the convolution keeps the length"
        )
    if horizon < 1:
        raise ExitbenchError(f"horizon is {horizon}; it must be at least 1")
    reach = len(kernel) // 2
    step = torch.zeros(classes, classes, dtype=torch.float64)
    for offset, weight in zip(range(-reach, reach + 1), kernel, strict=True):
        if abs(offset) < classes:
            step += weight * torch.diag(
                torch.ones(classes - abs(offset), dtype=torch.float64), offset
            )
    powers = [step]
    while len(powers) < horizon:
        powers.append(step @ powers[-1])
    return torch.stack(powers).to(torch.float32)


def convolve(logits: Tensor, stack: Tensor) -> Tensor:
    """v_1..v_R of a batch in one operation: logits (n, classes) to (n, R, classes), float64.

    The numbers grow from round to round, their differences decide: in float32 the order of the sums
    would show.
    """
    return torch.einsum("rjk,nk->nrj", stack.double(), logits.double())

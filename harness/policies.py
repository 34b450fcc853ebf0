"""Policies: at each checked exit, leave, or which exit to check next. Pure; they run nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .evidence import Evidence, FloatArray, IntArray
from .predictors import Predictor

_FIRST = np.zeros(1, dtype=np.int64)

POLICIES = ("full", "every-exit", "predictive", "fixed", "oracle")


class Policy(Protocol):
    """Decides, for samples that are due at an exit, where each goes."""

    @property
    def forecasts(self) -> bool:
        """Whether a sample that stays pays for a forecast."""

    def first(self, samples: IntArray) -> IntArray:
        """The exit to check first, per sample: (n,); E + 1 is the classifier."""

    def decide(self, exit: int, evidence: Evidence) -> IntArray:
        """The next exit to check, per sample: (n,); the same exit means "leave here"."""


@dataclass(frozen=True)
class Full:
    """The whole network, no exit checked."""

    exits: int
    forecasts: bool = False

    def first(self, samples: IntArray) -> IntArray:
        return np.full(len(samples), self.exits + 1)

    def decide(self, exit: int, evidence: Evidence) -> IntArray:
        return np.full(len(evidence.samples), self.exits + 1)


@dataclass(frozen=True)
class Fixed:
    """Every sample leaves at one exit."""

    exit: int
    forecasts: bool = False

    def first(self, samples: IntArray) -> IntArray:
        return np.full(len(samples), self.exit)

    def decide(self, exit: int, evidence: Evidence) -> IntArray:
        return np.full(len(evidence.samples), exit)


@dataclass(frozen=True)
class EveryExit:
    """Every exit from ``start_layer`` on is checked; limits (E,) are beta * T_i."""

    limits: FloatArray
    start_layer: int = 1
    forecasts: bool = False

    def first(self, samples: IntArray) -> IntArray:
        return np.full(len(samples), self.start_layer)

    def decide(self, exit: int, evidence: Evidence) -> IntArray:
        confidence, limit = evidence.confidence, self.limits[exit - 1]
        if len(confidence) == 1:
            return np.array([exit if confidence[0] >= limit else exit + 1])
        return np.where(confidence >= limit, exit, exit + 1)


@dataclass(frozen=True)
class Predictive:
    """Predictive Exit: a sample that stays is checked next where the predictor says.

    A jump past the last exit goes to the classifier. limits (E,) are beta * T_i.
    """

    limits: FloatArray
    start_layer: int
    predictor: Predictor
    forecasts: bool = True

    def first(self, samples: IntArray) -> IntArray:
        return np.full(len(samples), self.start_layer)

    def decide(self, exit: int, evidence: Evidence) -> IntArray:
        confidence, limit = evidence.confidence, self.limits[exit - 1]
        if len(confidence) == 1:
            return np.array([self._decide_one(exit, evidence) if confidence[0] < limit else exit])
        following = np.full(len(confidence), exit)
        stay = np.flatnonzero(confidence < limit)
        if len(stay):
            jump = self.predictor.jump(exit, evidence, stay)
            following[stay] = np.minimum(exit + jump, len(self.limits) + 1)
        return following

    def _decide_one(self, exit: int, evidence: Evidence) -> int:
        jump = self.predictor.jump(exit, evidence, _FIRST)
        return min(exit + int(jump[0]), len(self.limits) + 1)


@dataclass(frozen=True)
class Oracle:
    """Leaves at the earliest exit whose answer is right; leave_at (N,) by position in the split."""

    leave_at: IntArray
    forecasts: bool = False

    def first(self, samples: IntArray) -> IntArray:
        return self.leave_at[samples].astype(np.int64)

    def decide(self, exit: int, evidence: Evidence) -> IntArray:
        return np.full(len(evidence.samples), exit)

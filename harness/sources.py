"""The two sources of evidence behind the scheduler's loop: the live network and a trace."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..models.blocks import State
from .criteria import CRITERIA, encode_rounds
from .evidence import Evidence, FloatArray, IntArray, decode_rounds
from .predictors import convolve
from .trace import Trace


class LiveEvidence:
    """Evidence computed from logits; the forecast only for those that ask for it."""

    def __init__(
        self, samples: IntArray, logits: Tensor, criterion: str, stack: Tensor | None
    ) -> None:
        self.samples = samples
        self._logits = logits
        self._criterion = criterion
        self._stack = stack

    @cached_property
    def label(self) -> IntArray:
        labels: IntArray = self._logits.argmax(-1).cpu().numpy()
        return labels

    @cached_property
    def confidence(self) -> FloatArray:
        values = CRITERIA[self._criterion].confidence(self._logits).cpu().numpy()
        return np.asarray(values)

    def rounds(self, rows: IntArray) -> FloatArray:
        assert self._stack is not None, "the policy asks for rounds, but no kernel was given"
        logits = self._logits
        if len(rows) < len(logits):
            logits = logits[torch.from_numpy(rows).to(logits.device)]
        confidence = CRITERIA[self._criterion].confidence(convolve(logits, self._stack))
        stored = encode_rounds(self._criterion, confidence).cpu().numpy()
        return decode_rounds(CRITERIA[self._criterion].bounded, stored)


class LiveSource:
    """A batch of images on its way through a prepared network.

    Args:
        prepared: the network, as ``runtime.prepare`` gives it.
        exits: E.
        images: normalised images (n, 3, side, side) on the network's device; or a later state.
        samples: their positions in the split, (n,).
        criterion: key of ``CRITERIA``; what the evidence's confidence means.
        stack: the convolution predictor's matrices, if the policy forecasts with them.
    """

    def __init__(
        self,
        prepared: Any,
        exits: int,
        images: State,
        samples: IntArray,
        criterion: str = "softmax",
        stack: Tensor | None = None,
    ) -> None:
        self.exits = exits
        self.samples = samples
        self._prepared = prepared
        self._state: Any = images
        self._criterion = criterion
        self._stack = stack

    def place(self, state: Any, samples: IntArray) -> None:
        """Put other samples where these are; how the profiler repeats one step of a walk."""
        self._state, self.samples = state, samples

    def advance(self, segment: int) -> None:
        self._state = self._prepared.run_segment(segment, self._state)

    def evidence(self, exit: int, rows: IntArray) -> Evidence:
        state, samples = self._state, self.samples
        if len(rows) < len(samples):
            state, samples = self._select(rows), samples[rows]
        logits = self._prepared.run_head(exit, state)
        return LiveEvidence(samples, logits, self._criterion, self._stack)

    def keep(self, rows: IntArray) -> None:
        self._state = self._select(rows)
        self.samples = self.samples[rows]

    def classify(self) -> IntArray:
        answers: IntArray = self._prepared.run_classifier(self._state).argmax(-1).cpu().numpy()
        return answers

    def _select(self, rows: IntArray) -> Any:
        return self._prepared.select(self._state, torch.from_numpy(rows))


class TraceEvidence:
    """Evidence looked up; every array only when it is asked for."""

    def __init__(self, trace: Trace, criterion: str, exit: int, samples: IntArray) -> None:
        self.samples = samples
        self._trace = trace
        self._criterion = criterion
        self._exit = exit

    @property
    def label(self) -> IntArray:
        labels: IntArray = self._trace.label[self._exit - 1][self.samples]
        return labels

    @property
    def confidence(self) -> FloatArray:
        values: FloatArray = self._trace.confidence(self._criterion)[self._exit - 1][self.samples]
        return values

    def rounds(self, rows: IntArray) -> FloatArray:
        stored = self._trace.rounds(self._criterion)[self._exit - 1][self.samples[rows]]
        return decode_rounds(CRITERIA[self._criterion].bounded, stored)


class TraceSource:
    """Samples of a trace; moving on costs nothing.

    Args:
        samples: positions in the split to walk; all if None.
    """

    def __init__(
        self, trace: Trace, criterion: str = "softmax", samples: IntArray | None = None
    ) -> None:
        self.exits = trace.meta.exits
        self.samples: IntArray = np.arange(trace.meta.samples) if samples is None else samples
        self._trace = trace
        self._criterion = criterion

    def advance(self, segment: int) -> None:
        return None

    def evidence(self, exit: int, rows: IntArray) -> Evidence:
        return TraceEvidence(self._trace, self._criterion, exit, self.samples[rows])

    def keep(self, rows: IntArray) -> None:
        self.samples = self.samples[rows]

    def classify(self) -> IntArray:
        labels: IntArray = self._trace.label[-1][self.samples].astype(np.int64)
        return labels

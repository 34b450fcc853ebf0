"""The two sources of evidence behind the scheduler's loop: the live network and a trace."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..models.blocks import State
from .answers import Answers, LogitAnswers, Question
from .criteria import CRITERIA
from .evidence import Evidence, FloatArray, IntArray, decode_rounds
from .runtime.base import Prepared
from .trace import Trace


class LiveEvidence:
    """A head's answers for samples of a split."""

    def __init__(self, samples: IntArray, answers: Answers) -> None:
        self.samples = samples
        self._answers = answers

    @property
    def label(self) -> IntArray:
        return self._answers.label

    @property
    def confidence(self) -> FloatArray:
        return self._answers.confidence

    def rounds(self, rows: IntArray) -> FloatArray:
        return self._answers.rounds(rows)


class LiveSource:
    """A batch of images on its way through a prepared network.

    ``advance`` only notes how far the samples are to be brought. They are brought there when
    something is asked of them, so that a runtime may run the segments and the head in one go.

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
        prepared: Prepared,
        exits: int,
        images: State,
        samples: IntArray,
        criterion: str = "softmax",
        stack: Tensor | None = None,
    ) -> None:
        self.exits = exits
        self.samples = samples
        self._prepared = prepared
        self._state: State = images
        self._question = Question(criterion, stack)
        self._owned = False  # the images are the caller's, later states are this source's own
        self._ahead: tuple[int, int] | None = None

    def place(self, state: State, samples: IntArray) -> None:
        """Put other samples where these are; how the profiler repeats one step of a walk."""
        self._state, self.samples, self._owned, self._ahead = state, samples, False, None

    def advance(self, first: int, last: int) -> None:
        self._catch_up()
        self._ahead = (first, last)

    def evidence(self, exit: int, rows: IntArray) -> Evidence:
        if len(rows) == len(self.samples):
            if self._ahead is None:
                logits = self._prepared.run_head(exit, self._state)
                return LiveEvidence(self.samples, LogitAnswers(logits, self._question))
            (first, last), self._ahead = self._ahead, None
            self._state, answers = self._prepared.run_check(
                first, last, self._state, self._question, owned=self._owned
            )
            self._owned = True
            return LiveEvidence(self.samples, answers)
        self._catch_up()
        logits = self._prepared.run_head(exit, self._select(rows))
        return LiveEvidence(self.samples[rows], LogitAnswers(logits, self._question))

    def keep(self, rows: IntArray) -> None:
        self._catch_up()
        self._state = self._select(rows)
        self._owned = True
        self.samples = self.samples[rows]

    def classify(self) -> IntArray:
        self._catch_up()
        answers: IntArray = self._prepared.run_classifier(self._state).argmax(-1).cpu().numpy()
        return answers

    def _catch_up(self) -> None:
        """Bring the samples to where ``advance`` wants them."""
        if self._ahead is not None:
            (first, last), self._ahead = self._ahead, None
            self._state = self._prepared.run_stretch(first, last, self._state, owned=self._owned)
            self._owned = True

    def _select(self, rows: IntArray) -> State:
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

    def advance(self, first: int, last: int) -> None:
        return None

    def evidence(self, exit: int, rows: IntArray) -> Evidence:
        return TraceEvidence(self._trace, self._criterion, exit, self.samples[rows])

    def keep(self, rows: IntArray) -> None:
        self.samples = self.samples[rows]

    def classify(self) -> IntArray:
        labels: IntArray = self._trace.label[-1][self.samples].astype(np.int64)
        return labels

"""The two sources of evidence behind the scheduler's loop: the live network and a trace."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..models.blocks import State
from .answers import Answers, LogitAnswers, Question
from .compaction import ALWAYS, Compaction
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
    something is asked of them, so that a runtime may run the segments and the head in one go. So
    does ``keep``: samples that left stay in the batch until its compaction says that dropping them
    pays. The order of the rows in the batch is then another than that of the samples.

    Args:
        prepared: the network, as ``runtime.prepare`` gives it.
        exits: E.
        images: normalised images (n, 3, side, side) on the network's device; or a later state.
        samples: their positions in the split, (n,).
        criterion: key of ``CRITERIA``; what the evidence's confidence means.
        stack: the convolution predictor's matrices, if the policy forecasts with them.
        compaction: when rows are gathered; what is found does not depend on it.
        owned: whether the state is nobody else's, as in ``Prepared.run_stretch``; never of images.
    """

    def __init__(
        self,
        prepared: Prepared,
        exits: int,
        images: State,
        samples: IntArray,
        criterion: str = "softmax",
        stack: Tensor | None = None,
        compaction: Compaction = ALWAYS,
        *,
        owned: bool = False,
    ) -> None:
        self.exits = exits
        self._prepared = prepared
        self._question = Question(criterion, stack)
        self._compaction = compaction
        self.place(images, samples)
        self._owned = owned

    def place(self, state: State, samples: IntArray) -> None:
        """Put other samples where these are; how the profiler repeats one step of a walk."""
        self._state: State = state
        self.samples = samples
        self._held = len(samples)  # rows of the state, those of samples that left among them
        self._rows: IntArray | None = None  # the row of each sample; None: the same as its number
        self._owned = False  # the images are the caller's, later states are this source's own
        self._ahead: tuple[int, int] | None = None

    def advance(self, first: int, last: int) -> None:
        self._catch_up()
        self._ahead = (first, last)

    def evidence(self, exit: int, rows: IntArray) -> Evidence:
        due = len(rows)
        everyone = due == len(self.samples)
        self._make_room(due)
        samples = self.samples if everyone else self.samples[rows]
        if due < self._held and self._compaction.separates(exit, self._held, due):
            self._run()
            state = self._prepared.select(self._state, torch.from_numpy(self._places(rows)))
            logits = self._prepared.run_head(exit, state)
            return LiveEvidence(samples, LogitAnswers(logits, self._question))
        answers = self._ask(exit)
        if self._rows is not None or not everyone:
            answers = answers.of(self._places(rows))
        return LiveEvidence(samples, answers)

    def keep(self, rows: IntArray) -> None:
        self._rows = self._places(rows)
        self.samples = self.samples[rows]

    def classify(self) -> IntArray:
        self._catch_up()
        answers: IntArray = self._prepared.run_classifier(self._state).argmax(-1).cpu().numpy()
        return answers if self._rows is None else answers[self._rows]

    def state_of(self, rows: IntArray) -> State:
        """The state of the samples in ``rows`` where they are now; a copy unless they are all.

        What is no copy belongs to the caller, and this source goes no further.
        """
        self._run()
        places = self._places(rows)
        if len(places) == self._held and (np.diff(places) == 1).all():
            return self._state
        return self._prepared.select(self._state, torch.from_numpy(places))

    def _places(self, rows: IntArray) -> IntArray:
        """The rows of the state that samples in ``rows`` have."""
        return rows if self._rows is None else self._rows[rows]

    def _ask(self, exit: int) -> Answers:
        """Bring all rows to ``exit`` if they are not there, and ask its head about them."""
        if self._ahead is None:
            return LogitAnswers(self._prepared.run_head(exit, self._state), self._question)
        (first, last), self._ahead = self._ahead, None
        self._state, answers = self._prepared.run_check(
            first, last, self._state, self._question, owned=self._owned
        )
        self._owned = True
        return answers

    def _catch_up(self) -> None:
        """Bring the samples to where ``advance`` wants them, where no head asks for it."""
        self._make_room(0)
        self._run()

    def _run(self) -> None:
        if self._ahead is not None:
            (first, last), self._ahead = self._ahead, None
            self._state = self._prepared.run_stretch(first, last, self._state, owned=self._owned)
            self._owned = True

    def _make_room(self, due: int) -> None:
        """Drop the rows of samples that left, if that pays before the stretch that is ahead."""
        inside, held = len(self.samples), self._held
        if inside == held or self._ahead is None:
            return
        if self._compaction.drops(*self._ahead, held, inside, due):
            self.close_up()

    def close_up(self) -> None:
        """Drop the rows of samples that left; ``_make_room`` says when, the profiler at once."""
        inside, held = len(self.samples), self._held
        assert self._rows is not None
        rows, self._rows = self._rows, None
        if self._owned and inside > 1:
            # The last ones go to where others left, so that few rows have to be moved.
            late = np.flatnonzero(rows >= inside)
            order = np.arange(inside)
            taken = np.zeros(held, dtype=bool)
            taken[rows] = True
            free = np.flatnonzero(~taken[:inside])
            order[free] = rows[late]
            self._rows = rows.copy()
            self._rows[late] = free
            rows = order
        self._state = self._prepared.select(self._state, torch.from_numpy(rows), owned=self._owned)
        self._owned, self._held = True, inside


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

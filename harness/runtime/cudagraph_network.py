"""A prepared network whose stretches, checks and heads are CUDA graphs, captured at first use."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...models.blocks import State, main_path
from ..answers import Answers, Question
from .base import PlannedNetwork, inferring
from .cudagraph_answers import Ask, HostAnswers, Questions
from .cudagraph_capture import Arrival, Capture, Graph
from .cudagraph_memory import Layout, Memory, bucket_of
from .cudagraph_store import Store, Task

NAME = "cudagraph"
LOGITS = "logits"


@dataclass
class Cargo:
    """A batch on its way.

    Attributes:
        at: the exit it is at, 0 for images.
        count: samples.
        bucket: rows of the graphs that fit it.
        state: None: the memory of the bucket holds it.
    """

    at: int
    count: int
    bucket: int
    state: State | None


@dataclass
class GraphNetwork:
    """The ``Prepared`` of ``cudagraph``; for one thread at a time, as CUDA graphs are.

    Attributes:
        inner: the same network run eagerly: what is captured, and what serves where a capture
            fails or a batch is larger than any bucket.
        layouts: of the images, then of the state after each segment.
        classes: columns of logits.
    """

    words: str
    inner: PlannedNetwork
    capture: Capture
    layouts: tuple[Layout, ...]
    classes: int
    store: Store = field(default_factory=Store)
    name: str = NAME

    def __post_init__(self) -> None:
        self._memories: dict[int, Memory] = {}
        self._questions = Questions(self.inner.device)

    @property
    def precision(self) -> str:
        """Of the backbone; heads are fp32."""
        return self.inner.precision

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.inner.device

    @property
    def num_exits(self) -> int:
        """E: how many exits there are besides the classifier."""
        return self.inner.num_exits

    def run_segment(self, number: int, state: State) -> State:
        """The state after segment ``number``; see ``Prepared``."""
        return self.run_stretch(number, number, state)

    @inferring
    def run_stretch(self, first: int, last: int, state: State, *, owned: bool = False) -> State:
        """The state after segments ``first`` to ``last``; see ``Prepared``."""
        with self.capture.running():
            cargo = self._cargo(first - 1, state)
            if cargo is None:
                return self.inner.run_stretch(first, last, state, owned=owned)
            self._move(cargo, last)
            return self._state(cargo)

    @inferring
    def run_check(
        self, first: int, last: int, state: State, question: Question, *, owned: bool = False
    ) -> tuple[State, Answers]:
        """The state and the answers of head ``last`` on it, in one graph; see ``Prepared``."""
        with self.capture.running():
            ask = self._questions.ask(question)
            cargo = self._cargo(first - 1, state)
            if cargo is None:
                after = self.inner.run_stretch(first, last, state, owned=owned)
                return after, HostAnswers(self._ask_eagerly(last, after, ask)(), ask)
            arrival = self._check(cargo, last, ask)
            # The copy of the state is queued while the device is still busy with the check.
            after = self._state(cargo)
            return after, HostAnswers(arrival(), ask)

    @inferring
    def run_head(self, number: int, state: State) -> Tensor:
        """Float32 logits of head ``number``; see ``Prepared``."""
        with self.capture.running():
            cargo = self._cargo(number, state)
            if cargo is None or not self._replay(self._question(cargo, LOGITS), cargo):
                return self.inner.run_head(number, state)
            return self._logits(cargo)

    @inferring
    def run_classifier(self, state: State) -> Tensor:
        """Float32 logits of the classifier; see ``Prepared``."""
        last = self.num_exits + 1
        with self.capture.running():
            cargo = self._cargo(last, state)
            if cargo is not None and self._is_classified(cargo, state):
                return self._logits(cargo)
            if cargo is None or not self._replay(self._question(cargo, LOGITS), cargo):
                return self.inner.run_classifier(state)
            return self._logits(cargo)

    def select(self, state: State, indices: Tensor, *, owned: bool = False) -> State:
        """The state of the batch rows ``indices``; see ``Prepared``."""
        with self.capture.running():
            return self.inner.select(state, indices, owned=owned)

    def join(self, states: Sequence[State]) -> State:
        """States as one batch; see ``Prepared``."""
        with self.capture.running():
            return self.inner.join(states)

    def synchronise(self) -> None:
        """Wait until the device has finished; see ``Prepared``."""
        self.inner.synchronise()

    def _cargo(self, at: int, state: State) -> Cargo | None:
        """A batch whose state is the caller's; None if no graph has room for it."""
        count = len(main_path(state))
        bucket = bucket_of(count)
        return None if bucket is None else Cargo(at, count, bucket, state)

    def _move(self, cargo: Cargo, last: int) -> None:
        """Bring a batch to ``last``: by one graph, by one for each segment, or eagerly."""
        if cargo.at >= last:
            return
        ask = LOGITS if last == self.num_exits + 1 else None
        task = Task(cargo.at + 1, last, cargo.bucket, ask)
        if self._replay(task, cargo):
            return
        if task.first < last and task not in self.store.failures:
            for number in range(task.first, last + 1):
                self._move(cargo, number)
            return
        cargo.state = self.inner.run_stretch(task.first, last, self._state(cargo))
        cargo.at = last

    def _check(self, cargo: Cargo, last: int, ask: Ask) -> Arrival:
        """Bring a batch to ``last`` and ask its head; the answers are on their way to the host."""
        if not self._replay(Task(cargo.at + 1, last, cargo.bucket, ask), cargo):
            self._move(cargo, last)
            if not self._replay(self._question(cargo, ask), cargo):
                return self._ask_eagerly(last, self._state(cargo), ask)
        answers = self._memories[cargo.bucket].answers(ask.columns)
        return self.capture.send(answers[: cargo.count])

    def _ask_eagerly(self, number: int, state: State, ask: Ask) -> Arrival:
        values = self._questions.columns(self.inner.run_head(number, state), ask)
        return self.capture.send(values)

    def _replay(self, task: Task, cargo: Cargo) -> bool:
        """Run the graph of ``task`` on a batch; False if there is none, and the batch is as it was.

        Afterwards the memory holds the state, if any segment ran, and what was asked for.
        """
        graph = self.store.find(task)
        if graph is None:
            if not self.store.admits(task):
                return False
            self._state(cargo)  # a capture leaves anything in the memory
            graph = self._capture(task)
            if graph is None:
                return False
        memory = self._memories[task.bucket]
        if cargo.state is not None and not memory.holds(cargo.at, cargo.state):
            memory.load(cargo.at, cargo.state)
        graph.replay()
        if task.moves:
            memory.moved(task.last)
            cargo.at, cargo.state = task.last, None
        if task.ask == LOGITS:
            memory.classified = task.last == self.num_exits + 1
        return True

    def _capture(self, task: Task) -> Graph | None:
        def record() -> Graph:
            memory = self._memory(task.bucket)
            memory.forget()
            if isinstance(task.ask, Ask):
                memory.answers(task.ask.columns)  # made here, so that it is none of the graph's
            return self.capture.record(lambda: self._work(task, memory))

        graph = self.store.capture(task, record)
        if graph is None and len(self.store.failures) == 1:
            words = f"what could not be captured runs eagerly ({self.store.failures[task]})"
            self.words += f"; {words}"
            logging.getLogger(__name__).warning("%s: %s", NAME, words)
        return graph

    def _work(self, task: Task, memory: Memory) -> None:
        """What a graph does, on static memory alone."""
        state = memory.state(task.first - 1)
        if task.moves:
            state = self.inner.run_stretch(task.first, task.last, state)
        logits = None
        if task.ask is not None and task.last > self.num_exits:
            logits = self.inner.run_classifier(state)
        elif task.ask is not None:
            logits = self.inner.run_head(task.last, state)
        if task.moves:
            memory.store(task.last, state)
        if isinstance(task.ask, Ask) and logits is not None:
            values = self._questions.columns(logits, task.ask)
            memory.answers(task.ask.columns).copy_(values)
        elif logits is not None:
            memory.logits.copy_(logits)

    def _question(self, cargo: Cargo, ask: Ask | str) -> Task:
        return Task(cargo.at + 1, cargo.at, cargo.bucket, ask)

    def _state(self, cargo: Cargo) -> State:
        """The batch's state, which the caller may keep."""
        if cargo.state is None:
            cargo.state = self._memories[cargo.bucket].read(cargo.at, cargo.count)
        return cargo.state

    def _logits(self, cargo: Cargo) -> Tensor:
        return self._memories[cargo.bucket].logits[: cargo.count].clone()

    def _is_classified(self, cargo: Cargo, state: State) -> bool:
        memory = self._memories.get(cargo.bucket)
        return memory is not None and memory.classified and memory.holds(cargo.at, state)

    def _memory(self, bucket: int) -> Memory:
        if bucket not in self._memories:
            self._memories[bucket] = Memory(self.capture, self.layouts, bucket, self.classes)
        return self._memories[bucket]

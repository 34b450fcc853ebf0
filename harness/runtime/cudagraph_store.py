"""Which graphs are kept: keys, and a bounded store that lets the longest unused one go."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from .cudagraph_answers import Ask
from .cudagraph_capture import Graph

MOST_GRAPHS = 512
"""(E + 1)(E + 2) / 2 stretches and half of E(E + 1) checks for each question, by 9 buckets, are
thousands, of which a run uses dozens. A graph of some dozens of kernels takes little memory of its
own: what it computes with lies in the pool, of which all graphs together need as much as the
largest."""

PATIENCE = 32
"""How often a graph that can be replaced by shorter ones is missed before it takes the place of
another: a capture costs about as much as so many replays of the shorter ones."""


@dataclass(frozen=True)
class Task:
    """What one graph does: segments ``first`` to ``last``, then what is asked of the state there.

    Attributes:
        first: ``last`` + 1 if no segment runs.
        bucket: rows.
        ask: ``logits`` of the head, or at E + 1 of the classifier; or answers; None: nothing.
    """

    first: int
    last: int
    bucket: int
    ask: Ask | str | None = None

    @property
    def moves(self) -> bool:
        """Whether any segment runs."""
        return self.first <= self.last

    @property
    def simple(self) -> bool:
        """Whether shorter graphs cannot do the same: one segment, or one question."""
        return self.first > self.last or (self.first == self.last and not isinstance(self.ask, Ask))


class Store:
    """At most ``most`` graphs by what they do."""

    def __init__(self, most: int = MOST_GRAPHS, patience: int = PATIENCE) -> None:
        self.most = most
        self.patience = patience
        self.failures: dict[Task, str] = {}
        self._graphs: OrderedDict[Task, Graph] = OrderedDict()
        self._missed: dict[Task, int] = {}

    def __len__(self) -> int:
        return len(self._graphs)

    def find(self, task: Task) -> Graph | None:
        """The graph of ``task``, if there is one; from now on the last to go."""
        graph = self._graphs.get(task)
        if graph is not None:
            self._graphs.move_to_end(task)
        return graph

    def admits(self, task: Task) -> bool:
        """Whether a graph that is missing is to be captured now."""
        if task in self.failures:
            return False
        if len(self._graphs) < self.most or task.simple:
            return True
        self._missed[task] = self._missed.get(task, 0) + 1
        return self._missed[task] >= self.patience

    def capture(self, task: Task, record: Callable[[], Graph]) -> Graph | None:
        """A new graph, for which the longest unused one goes if need be; None if it fails."""
        self._missed.pop(task, None)
        try:
            graph = record()
        except RuntimeError as error:
            self.failures[task] = str(error).splitlines()[0] if str(error) else repr(error)
            return None
        # After the capture, which waits for the device: no graph goes while it runs.
        while len(self._graphs) >= self.most:
            self._graphs.popitem(last=False)
        self._graphs[task] = graph
        return graph

"""What every runtime gives: a network prepared for one precision on one device."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ParamSpec, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from ...models.blocks import State, main_path
from ...models.network import ExitNetwork
from ..answers import Answers, LogitAnswers, Question
from ..quantization import Dequantised
from .heads import FoldedClassifier, FoldedHead
from .plan import Plan

P = ParamSpec("P")
R = TypeVar("R")


class Prepared(Protocol):
    """A network that runs piece by piece under ``torch.inference_mode``.

    Attributes:
        name: the runtime, as in ``registry.RUNTIMES``.
        words: one sentence on what runs, and why if something faster does not.
        precision: ``fp32``, ``tf32``, ``bf16``, ``fp16`` or ``int8``; of the backbone, heads are
            always fp32.
        device: where it runs.
        num_exits: E.
    """

    @property
    def name(self) -> str: ...
    @property
    def words(self) -> str: ...
    @property
    def precision(self) -> str: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def num_exits(self) -> int: ...

    def run_segment(self, number: int, state: State) -> State:
        """The state after segment ``number`` (1..E + 1), from the state before it.

        The state before segment 1 is float32 images (N, 3, side, side), normalised. Other states
        are opaque: their type and scale belong to the runtime. The given state is left unchanged.
        """

    def run_stretch(self, first: int, last: int, state: State, *, owned: bool = False) -> State:
        """The state after segments ``first`` to ``last``, from the state before ``first``.

        Args:
            owned: the caller needs ``state`` no more, so that its memory may be used again. Never
                for images.
        """

    def run_head(self, number: int, state: State) -> Tensor:
        """Float32 logits (N, classes) of head ``number`` (1..E) on the state at its exit."""

    def run_check(
        self, first: int, last: int, state: State, question: Question, *, owned: bool = False
    ) -> tuple[State, Answers]:
        """The state after segments ``first`` to ``last`` and the answers of head ``last`` on it.

        Args:
            question: what is asked of the head.
            owned: as in ``run_stretch``.
        """

    def run_classifier(self, state: State) -> Tensor:
        """Float32 logits (N, classes) of the classifier on the state after segment E + 1."""

    def select(self, state: State, indices: Tensor, *, owned: bool = False) -> State:
        """The state of the batch rows ``indices`` (int64), in that order; a copy unless owned.

        Args:
            owned: as in ``run_stretch``: rows that stay where they are need not be copied.
        """

    def join(self, states: Sequence[State]) -> State:
        """States at the same exit as one batch, rows in the order given; a copy."""

    def synchronise(self) -> None:
        """Wait until the device has finished all that was asked of it."""


class Lent(tuple[Tensor, ...]):
    """(main path, shortcut) whose shortcut is a state that somebody else still needs.

    A stretch that ends inside a block hands the state from before the block on as the shortcut.
    Where that was the caller's, giving the pair away does not give it away too.
    """


def inferring(method: Callable[P, R]) -> Callable[P, R]:
    """``torch.inference_mode``, entered only where the caller has not done so."""
    entered = torch.inference_mode()(method)

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.is_inference_mode_enabled():
            return method(*args, **kwargs)
        return entered(*args, **kwargs)

    return call


@dataclass(frozen=True)
class PlannedNetwork:
    """The ``Prepared`` that runs the operators of a plan one by one, and the heads in fp32."""

    name: str
    words: str
    precision: str
    device: torch.device
    plan: Plan
    heads: tuple[FoldedHead, ...]
    classifier: FoldedClassifier

    @property
    def num_exits(self) -> int:
        """E: how many exits there are besides the classifier."""
        return len(self.heads)

    def run_segment(self, number: int, state: State) -> State:
        """The state after segment ``number``; see ``Prepared``."""
        return self.run_stretch(number, number, state)

    @inferring
    def run_stretch(self, first: int, last: int, state: State, *, owned: bool = False) -> State:
        """The state after segments ``first`` to ``last``; see ``Prepared``."""
        if first == 1:
            state, owned = self.plan.enter(main_path(state).to(self.device)), False
        spent = owned and not isinstance(state, Lent)
        for steps in self.plan.segments[first - 1 : last]:
            for step in steps:
                state = step(state, spent)
                # A step makes a new tensor; of a pair, the shortcut is the tensor that was before.
                spent = spent or not isinstance(state, tuple)
        return Lent(state) if isinstance(state, tuple) and not spent else state

    @inferring
    def run_check(
        self, first: int, last: int, state: State, question: Question, *, owned: bool = False
    ) -> tuple[State, Answers]:
        """The state and the answers of head ``last`` on it; see ``Prepared``."""
        state = self.run_stretch(first, last, state, owned=owned)
        return state, LogitAnswers(self.run_head(last, state), question)

    @inferring
    def run_head(self, number: int, state: State) -> Tensor:
        """Float32 logits of head ``number``; see ``Prepared``."""
        return self.heads[number - 1](main_path(state))

    @inferring
    def run_classifier(self, state: State) -> Tensor:
        """Float32 logits of the classifier; see ``Prepared``."""
        logits: Tensor = self.classifier(self.plan.features[-1](main_path(state)))
        return logits

    @inferring
    def select(self, state: State, indices: Tensor, *, owned: bool = False) -> State:
        """The state of the batch rows ``indices``; see ``Prepared``."""
        tensors = state if isinstance(state, tuple) else (state,)
        spent = owned and self.device.type == "cpu" and not isinstance(state, Lent)
        moves = _moves(indices, tensors) if spent else None
        if moves is None:
            indices = indices.to(self.device)
            found = tuple(_rows(tensor, indices) for tensor in tensors)
        else:
            found = tuple(_moved(tensor, moves, len(indices)) for tensor in tensors)
        return found if isinstance(state, tuple) else found[0]

    @inferring
    def join(self, states: Sequence[State]) -> State:
        """States as one batch; see ``Prepared``."""
        if isinstance(states[0], tuple):
            return tuple(_joined(tensors) for tensors in zip(*states, strict=True))
        return _joined([main_path(state) for state in states])

    def synchronise(self) -> None:
        """Wait until the device has finished; see ``Prepared``."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def exit_modules(
    network: ExitNetwork, device: torch.device, plan: Plan | None = None
) -> tuple[tuple[FoldedHead, ...], FoldedClassifier]:
    """Folded copies of the heads and the classifier: fp32, on ``device``.

    Args:
        plan: whose states the heads are to read as they are; without one they read real numbers.
    """
    heads = []
    for number, point in enumerate(network.exit_points, start=1):
        features = None if plan is None else plan.features[number - 1]
        grid = features.grid if isinstance(features, Dequantised) else None
        heads.append(FoldedHead(network.head(number), point.side, device, grid))
    return tuple(heads), FoldedClassifier(network.classifier, device)


MOVE_BYTES = 2**16
"""A row that is moved alone costs as much as so many bytes more in a copy of all rows: 2 us."""


def _moves(indices: Tensor, tensors: Sequence[Tensor]) -> list[tuple[int, int]] | None:
    """(from, to) of the rows that a selection moves; None where they had better all be copied.

    Rows can move one by one if each comes from beyond the selection. Few large ones are then faster
    to move than all to copy: the others stay where they are.
    """
    wanted = indices.numpy()
    places = np.flatnonzero(wanted != np.arange(len(wanted)))
    sources = wanted[places]
    row = sum(tensor[:1].nbytes for tensor in tensors) / len(tensors)
    dear = len(places) * (row + MOVE_BYTES) >= len(wanted) * row
    if len(places) and (dear or (sources < len(wanted)).any()):
        return None
    return list(zip(sources.tolist(), places.tolist(), strict=True))


def _moved(tensor: Tensor, moves: list[tuple[int, int]], count: int) -> Tensor:
    for source, place in moves:
        tensor[place].copy_(tensor[source])
    return tensor[:count]


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    # An empty one among them makes torch.cat give up channels_last, which int8's sum insists on.
    whole = torch.cat(list(tensors))
    return whole.contiguous(memory_format=torch.channels_last) if whole.dim() == 4 else whole


def _rows(tensor: Tensor, indices: Tensor) -> Tensor:
    if tensor.dim() != 4:
        return tensor.index_select(0, indices)
    # index_select copies whole rows, keeping channels_last, only where memory order is index order.
    rows = tensor.permute(0, 2, 3, 1).index_select(0, indices.to(tensor.device))
    return rows.permute(0, 3, 1, 2)

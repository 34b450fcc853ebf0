"""The parts of a live walk as calls that can be timed alone, each on its own kept input.

A part is what the scheduler's loop does, by the loop's own code: a segment is one ``advance``, a
head one ``Going.check``, the classifier the loop's end. A gather is no part of a walk that could be
priced, since it depends on who shares a batch. ``docs/counting.md`` says what each covers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from ..models.blocks import State
from .answers import LogitAnswers, Question
from .policies import EveryExit, Full
from .runtime.base import Prepared
from .scheduler import Going, walk
from .sources import LiveSource

Forecast = Callable[[Tensor], object]
Part = tuple[str, int]
Call = Callable[[], object]
WHOLE: Part = ("whole", 0)


def walk_parts(prepared: Prepared, inputs: Tensor, forecast: Forecast | None) -> dict[Part, Call]:
    """Every part as a call on its own input, taken from one run of the network.

    Args:
        prepared: the network, ready for one precision on one device.
        inputs: float32 images (N, 3, side, side), normalised.
        forecast: what a policy computes from the logits (N, classes) of a head that stayed.
    """
    exits, everyone = prepared.num_exits, np.arange(len(inputs))
    units: dict[Part, Call] = {}
    state: State = inputs
    units["segment", 1] = lambda: _entered(prepared, inputs, everyone)
    for number in range(1, exits + 1):
        state = prepared.run_segment(number, state)
        logits = prepared.run_head(number, state)
        units["head", number] = _check(prepared, number, state, logits)
        if forecast is not None:
            units["forecast", number] = _call(forecast, logits)
        units["gather", number] = _gather(prepared, state, everyone)
        units["segment", number + 1] = _call(prepared.run_segment, number + 1, state)
    state = prepared.run_segment(exits + 1, state)
    units["classifier", exits + 1] = _end(prepared, state, everyone)
    units[WHOLE] = lambda: walk(Full(exits), LiveSource(prepared, exits, inputs, everyone))
    return units


def leads(part: Part) -> list[Part]:
    """The parts that run before this one in a walk, so far as they matter to what is in caches."""
    kind, number = part
    if part == WHOLE:
        return [WHOLE]
    last = number - 1 if kind == "segment" else number
    before = [("segment", max(1, at)) for at in (last - 1, last)]
    if kind == "gather":
        return before[1:]
    return [*before, ("head", number)] if kind == "forecast" else before


def _entered(prepared: Prepared, inputs: Tensor, everyone: np.ndarray) -> None:
    exits = prepared.num_exits
    Going(Full(exits), LiveSource(prepared, exits, inputs[: len(everyone)], everyone))
    prepared.run_segment(1, inputs[: len(everyone)])


def _check(prepared: Prepared, number: int, state: State, logits: Tensor) -> Call:
    """A check after which a single sample stays, or one sample of a larger batch leaves.

    A sample alone leaves at one check at most. Of a batch, some leave at nearly every check, so
    that labels are read; whether the others are then gathered is another matter.
    """
    exits, count = prepared.num_exits, len(logits)
    everyone = np.arange(count)
    confidence = LogitAnswers(logits, Question()).confidence
    limits = np.full(exits, np.inf if count == 1 else confidence.max(), np.float32)
    policy = EveryExit(limits, number)
    source = LiveSource(prepared, exits, state, everyone)
    going = Going(policy, source)
    due = going.due.copy()

    def call() -> None:
        source.place(state, everyone)
        going.again(everyone, due.copy())
        going.check(number)

    return call


def _gather(prepared: Prepared, state: State, everyone: np.ndarray) -> Call:
    """A batch that is copied row by row, as the loop closes it up when samples have left."""
    source = LiveSource(prepared, prepared.num_exits, state, everyone)

    def call() -> None:
        source.place(state, everyone)
        source.keep(everyone)
        source.close_up()

    return call


def _end(prepared: Prepared, state: State, everyone: np.ndarray) -> Call:
    exits = prepared.num_exits
    source = LiveSource(prepared, exits, state, everyone)
    going = Going(Full(exits), source)
    return going.finish


def _call(function: Callable[..., object], *arguments: Any) -> Call:
    """A call on kept arguments; binds them now, not when the loop has gone on."""
    return lambda: function(*arguments)

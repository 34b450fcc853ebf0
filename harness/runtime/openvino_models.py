"""Stretches of a network as compiled OpenVINO models.

A compiled model is of one stretch and one batch size. Fixed sizes are much faster than a dynamic
one, with which the plugin (OpenVINO 2026.4) reorders every state at both ends of a model, and
prepares anew for every size that it has not met (0.1 to 0.6 s). So there are SIZES, and a batch is
cut into slices of them; a slice is no copy.

Every compiled model holds its weights in the plugin's layout. Single segments have a model for each
of the SIZES that is asked for. Longer stretches have models of their own while these hold no more
than STRETCH_WEIGHTS; the others run segment by segment.
"""

from __future__ import annotations

import functools
import itertools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from ...models.blocks import State
from ...models.network import ExitNetwork
from .openvino_kit import FloatKit, Node, find
from .plan import INPUT, make_plan

SIZES = (64, 16, 4, 1)
"""Batch sizes that models are compiled for, the largest first."""

STRETCH_WEIGHTS = 2.0
"""Weights of all models of longer stretches together, in those of the network."""

PATIENCE = 32
"""How often a stretch is asked for while a model lies idle, until it takes that one's place. So
nothing is compiled again and again where more stretches take turns than there is room for."""

DEVICE = "CPU"
_TO_CHANNELS_FIRST, _TO_CHANNELS_LAST = (0, 3, 1, 2), (0, 2, 3, 1)

Key = tuple[int, int, int]
"""Units before and at the end of a stretch, counted from the images; batch size."""

_M = TypeVar("_M")


@functools.cache
def core() -> Any:
    """OpenVINO's one entrance.

    Raises:
        ExitbenchError: it is not installed, or cannot be loaded here.
    """
    return find("openvino").Core()


class Graphs:
    """OpenVINO graphs of the stretches of a network.

    A stretch is named by the units before it and those at its end: unit 3 alone is (2, 3).

    Attributes:
        kit: its operators.
        plan: of the network, in nodes.
        ends: how many units there are before segment 1, after it, ...
        shapes: (C, H, W) of the tensors of the states before unit 1, after it, ...
        weights: per unit, how many parameters it has.
    """

    def __init__(self, network: ExitNetwork, kit: FloatKit) -> None:
        self.kit = kit
        self.plan = make_plan(network, kit)
        self._steps = [step for steps in self.plan.segments for step in steps]
        self.ends = [0, *itertools.accumulate(len(steps) for steps in self.plan.segments)]
        self.weights = [
            sum(each.numel() for each in unit.parameters())
            for number in range(1, network.num_exits + 2)
            for _, unit in network.segment_units(number)
        ]
        images = Node(kit.parameter([1, *network.input_shape], "f32").output(0), INPUT)
        states: list[list[Node]] = [[images]]
        for unit in range(len(self._steps)):
            states.append(self._extend(unit, unit + 1, states[-1]))
        self.shapes = [
            [tuple(int(side) for side in node.output.get_shape()[1:]) for node in state]
            for state in states
        ]
        self._sites = [[node.site for node in state] for state in states]

    def build(self, begin: int, end: int, size: int) -> tuple[Any, tuple[int | None, ...]]:
        """The graph of units ``begin`` + 1 to ``end`` for batches of ``size``.

        Inputs and outputs have their channels last, but for images. A tensor that only passes
        through is no output.

        Returns:
            The graph, None if it had no output; and per tensor of the state after it, which tensor
            of the state before that is, or None where it is an output.
        """
        ops, kit = self.kit.ops, self.kit
        parameters, before = [], []
        for site, (channels, *sides) in zip(self._sites[begin], self.shapes[begin], strict=True):
            if begin == 0:
                parameters.append(kit.parameter([size, channels, *sides], "f32"))
                before.append(Node(parameters[-1].output(0), site))
            else:
                parameters.append(kit.parameter([size, *sides, channels], kit.state[0]))
                # In this order: of a state that is turned first, int8 runs in float32.
                real = kit.read(parameters[-1].output(0), site).output
                turned = ops.transpose(real, ops.constant(list(_TO_CHANNELS_FIRST)))
                before.append(Node(turned.output(0), site))
        after = self._extend(begin, end, before)
        origins = tuple(
            next((i for i, old in enumerate(before) if old is node), None) for node in after
        )
        results = [
            ops.result(ops.transpose(kit.leave(node), ops.constant(list(_TO_CHANNELS_LAST))))
            for node, origin in zip(after, origins, strict=True)
            if origin is None
        ]
        return find("openvino").Model(results, parameters) if results else None, origins

    def _extend(self, begin: int, end: int, before: list[Node]) -> list[Node]:
        """The state after units ``begin`` + 1 to ``end``."""
        state: Any = before[0] if len(before) == 1 else tuple(before)
        if begin == 0:
            state = self.plan.enter(state)
        for step in self._steps[begin:end]:
            state = step(state)
        return list(state) if isinstance(state, tuple) else [state]


class Model:
    """A compiled stretch for one batch size.

    Attributes:
        compiled: OpenVINO's compiled model; None where nothing is computed.
        origins: as ``Graphs.build`` gives them.
    """

    def __init__(self, graphs: Graphs, key: Key, settings: dict[str, Any]) -> None:
        graph, self.origins = graphs.build(*key)
        self.compiled: Any = None
        if graph is not None:
            self._openvino = find("openvino")
            self.compiled = core().compile_model(graph, DEVICE, settings)
            self._request = self.compiled.create_infer_request()

    def __call__(self, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        """Write ``outputs``; all tensors are contiguous, with channels last but for images."""
        if self.compiled is None:
            return
        for number, tensor in enumerate(inputs):
            self._request.set_input_tensor(number, self._shared(tensor))
        for number, tensor in enumerate(outputs):
            self._request.set_output_tensor(number, self._shared(tensor))
        # In this thread: start_async would hand it to another and back, which takes 30 us.
        self._request.infer(share_inputs=True, share_outputs=True)

    def _shared(self, tensor: Tensor) -> Any:
        """OpenVINO's view of the tensor's memory, which lives as long as the tensor."""
        if tensor.dtype == torch.bfloat16:  # which numpy does not know
            array = tensor.view(torch.int16).numpy()
            return self._openvino.Tensor(array, list(tensor.shape), self._openvino.Type.bf16)
        return self._openvino.Tensor(tensor.numpy(), shared_memory=True)


@dataclass
class _Held(Generic[_M]):
    item: _M
    size: float
    used: int


class Room(Generic[_M]):
    """Holds items up to a size, made when first asked for.

    Once it is full, a new item takes the place of those unused for longest, if it has been asked
    for PATIENCE times since they were used.
    """

    def __init__(self, size: float) -> None:
        self._free = size
        self._size = size
        self._held: OrderedDict[Key, _Held[_M]] = OrderedDict()
        self._asked: dict[Key, list[int]] = {}
        self._now = 0

    def get(self, key: Key, size: float, make: Callable[[], _M]) -> _M | None:
        """The item of ``key``; None if there is no room for it."""
        self._now += 1
        held = self._held.get(key)
        if held is None:
            if not self._make_room(key, size):
                return None
            self._free -= size
            held = self._held[key] = _Held(make(), size, 0)
        held.used = self._now
        self._held.move_to_end(key)
        return held.item

    def _make_room(self, key: Key, size: float) -> bool:
        if size > self._size:
            return False
        idle, free = [], self._free
        for other, held in self._held.items():
            if free >= size:
                break
            idle.append(other)
            free += held.size
        if idle:
            since = self._held[idle[-1]].used
            asked = [*(when for when in self._asked.get(key, ()) if when > since), self._now]
            self._asked[key] = asked
            if len(asked) < PATIENCE:
                return False
        for other in idle:
            self._free += self._held.pop(other).size
        self._asked.pop(key, None)
        return True


class Stretches:
    """Runs any stretch of a network, in batches of any size; compiles what it needs.

    Args:
        graphs: of the network.
        settings: how models are compiled, now and later.
    """

    def __init__(self, graphs: Graphs, settings: dict[str, Any]) -> None:
        self._graphs = graphs
        self._settings = settings
        self._segments: dict[Key, Model] = {}
        self._longer = Room[Model](STRETCH_WEIGHTS * sum(graphs.weights))

    def run(self, first: int, last: int, state: State) -> State:
        """The state after segments ``first`` to ``last``: tensors (N, C, H, W), channels_last.

        Its tensors are new, but for one that only passes through.
        """
        begin, end = self._graphs.ends[first - 1], self._graphs.ends[last]
        if begin == end:
            return state
        tensors = list(state) if isinstance(state, tuple) else [state]
        sizes = slices(len(tensors[0]))
        models = self._models(first, last, sizes)
        if models is None:
            for number in range(first, last + 1):
                state = self.run(number, number, state)
            return state
        return self._run(begin, end, tensors, sizes, models)

    def run_unit(self, number: int, state: State) -> State:
        """The state of one image after unit ``number``, by a model that is not kept."""
        tensors = list(state) if isinstance(state, tuple) else [state]
        model = self._compile((number - 1, number, 1))
        return self._run(number - 1, number, tensors, [1], [model])

    def segment(self, number: int, size: int) -> Model:
        """The model of segment ``number`` for batches of ``size``."""
        key = (self._graphs.ends[number - 1], self._graphs.ends[number], size)
        found = self._segments.get(key)
        if found is None:
            found = self._segments[key] = self._compile(key)
        return found

    def _models(self, first: int, last: int, sizes: list[int]) -> list[Model] | None:
        """The models of a stretch for each size; None if one of them has no room."""
        if first == last:
            return [self.segment(first, size) for size in sizes]
        begin, end = self._graphs.ends[first - 1], self._graphs.ends[last]
        weights, found = sum(self._graphs.weights[begin:end]), []
        for size in sizes:
            key = (begin, end, size)
            model = self._longer.get(key, weights, functools.partial(self._compile, key))
            if model is None:
                return None
            found.append(model)
        return found

    def _compile(self, key: Key) -> Model:
        return Model(self._graphs, key, self._settings)

    def _run(
        self, begin: int, end: int, before: list[Tensor], sizes: list[int], models: list[Model]
    ) -> State:
        if begin == 0:
            inputs = [x.float().contiguous() for x in before]
        else:
            inputs = [x.permute(_TO_CHANNELS_LAST).contiguous() for x in before]
        shapes, count = self._graphs.shapes[end], len(inputs[0])
        origins = models[0].origins if models else (None,) * len(shapes)
        outputs = [
            torch.empty((count, *sides, channels), dtype=self._graphs.kit.state[1])
            for (channels, *sides), origin in zip(shapes, origins, strict=True)
            if origin is None
        ]
        if len(sizes) == 1:
            models[0](inputs, outputs)
        else:
            _run_slices(sizes, models, inputs, outputs)
        made = (y.permute(_TO_CHANNELS_FIRST) for y in outputs)
        after = [next(made) if origin is None else before[origin] for origin in origins]
        return after[0] if len(after) == 1 else tuple(after)


def _run_slices(
    sizes: list[int], models: list[Model], inputs: list[Tensor], outputs: list[Tensor]
) -> None:
    start = 0
    for size, model in zip(sizes, models, strict=True):
        rows = slice(start, start + size)
        model([x[rows] for x in inputs], [y[rows] for y in outputs])
        start += size


def slices(count: int) -> list[int]:
    """Sizes out of SIZES that add up to ``count``."""
    found = []
    for size in SIZES:
        found += [size] * (count // size)
        count %= size
    return found

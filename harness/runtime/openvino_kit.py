"""The operators of runtime `openvino`: nodes of an OpenVINO graph, by the plan of all runtimes.

In int8 a tensor on its grid is a FakeQuantize node, and weights are int8 constants with their
scales; OpenVINO's CPU plugin turns both into convolutions of integers. Between two graphs a state
is the grid's uint8 itself, as in `onednn-int8`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..errors import ExitbenchError
from ..quantization import LEVELS, Affine, Dequantised, quantise_weight
from .plan import INPUT, Convolution

OPSET = "openvino.opset13"


@dataclass(frozen=True)
class Node:
    """What a kit's operators take and give in place of a tensor.

    Attributes:
        output: OpenVINO's output of a node.
        site: the site of its value, as calibration knows it.
    """

    output: Any
    site: str


STATES = {
    "fp32": ("f32", torch.float32),
    "bf16": ("bf16", torch.bfloat16),
    "int8": ("u8", torch.uint8),
}

Operator = Callable[..., Any]


def find(module: str) -> Any:
    """OpenVINO, or a module of it.

    Raises:
        ExitbenchError: it is not installed, or cannot be loaded here; says what to do.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ExitbenchError(
            f"OpenVINO cannot be loaded ({error}); install it with "
            "\"pip install 'exitbench[openvino]'\""
        ) from error


class FloatKit:
    """Nodes in floating point; the type of a state is that of the precision.

    Attributes:
        ops: OpenVINO's operators.
        state: the type of a state between two graphs, in OpenVINO's words and torch's.
    """

    def __init__(self, precision: str) -> None:
        self.ops = find(OPSET)
        self.state = STATES[precision]

    def parameter(self, shape: Sequence[int], kind: str) -> Any:
        """A graph's input of this shape and type."""
        return self.ops.parameter(list(shape), getattr(find("openvino").Type, kind))

    def enter(self) -> Operator:
        """Images as they are."""
        return lambda x: x

    def conv(self, conv: Convolution, site: str, source: str, relu: bool) -> Operator:
        """conv(x), or relu(conv(x))."""
        run = self._convolution(conv)
        return lambda x: self._made(self.ops.relu(run(x)) if relu else run(x), site)

    def conv_add(self, conv: Convolution, site: str, source: str, shortcut: str) -> Operator:
        """relu(conv(x) + y)."""
        run = self._convolution(conv)
        return lambda x, y, spent=False: self._made(
            self.ops.relu(self.ops.add(run(x), y.output)), site
        )

    def max_pool(self, side: int) -> Operator:
        """Largest value of each window."""
        window, nothing = [side, side], [0, 0]

        def run(x: Node) -> Node:
            pooled = self.ops.max_pool(x.output, window, [1, 1], nothing, nothing, window)
            return Node(pooled.output(0), x.site)

        return run

    def features(self, site: str) -> Any:
        """Of a torch tensor, which is what a head gets: its values in float32."""
        return torch.Tensor.float

    def read(self, output: Any, site: str) -> Node:
        """The real values of a state that comes into a graph."""
        return Node(self._real(output), site)

    def leave(self, node: Node) -> Any:
        """The output that holds a value as a state."""
        name = self.state[0]
        return node.output if name == "f32" else self.ops.convert(node.output, name).output(0)

    def _made(self, node: Any, site: str) -> Node:
        return Node(node.output(0), site)

    def _real(self, output: Any) -> Any:
        return output if self.state[0] == "f32" else self.ops.convert(output, "f32").output(0)

    def _convolution(self, conv: Convolution) -> Callable[[Node], Any]:
        weight = self._weight(conv)
        bias = self.ops.constant(conv.bias.cpu().numpy().reshape(1, -1, 1, 1))
        stride, padding = list(conv.stride), list(conv.padding)

        def run(x: Node) -> Any:
            y = self.ops.convolution(x.output, weight, stride, padding, padding, [1, 1])
            return self.ops.add(y, bias)

        return run

    def _weight(self, conv: Convolution) -> Any:
        return self.ops.constant(conv.weight.cpu().numpy())


class Int8Kit(FloatKit):
    """Nodes whose values lie on known grids, for 8-bit arithmetic."""

    def __init__(self, grids: dict[str, Affine]) -> None:
        super().__init__("int8")
        self.grids = grids

    def enter(self) -> Operator:
        """Images on their grid."""
        return lambda x: Node(self._on_grid(x.output, INPUT), INPUT)

    def features(self, site: str) -> Any:
        """Of a torch tensor of uint8: its values in float32."""
        return Dequantised(self.grids[site])

    def read(self, output: Any, site: str) -> Node:
        """scale * (q - zero_point)."""
        grid, value = self.grids[site], self._real(output)
        if grid.zero_point:
            value = self.ops.subtract(value, self._scalar(grid.zero_point))
        return Node(self.ops.multiply(value, self._scalar(grid.scale)).output(0), site)

    def leave(self, node: Node) -> Any:
        """The value's uint8 on its grid."""
        made = node.output.get_node()
        value = node.output
        if made.get_type_name() == "FakeQuantize":
            value = made.input_value(0)  # rounded once, straight to integers
        return self.ops.convert(self._rounded(value, node.site, 0.0, LEVELS), "u8").output(0)

    def _made(self, node: Any, site: str) -> Node:
        return Node(self._on_grid(node.output(0), site), site)

    def _on_grid(self, value: Any, site: str) -> Any:
        return self._rounded(value, site, *self._ends(site))

    def _ends(self, site: str) -> tuple[float, float]:
        grid = self.grids[site]
        return -grid.scale * grid.zero_point, grid.scale * (LEVELS - grid.zero_point)

    def _rounded(self, value: Any, site: str, low: float, high: float) -> Any:
        ends = [self._scalar(end) for end in (*self._ends(site), low, high)]
        return self.ops.fake_quantize(value, *ends, LEVELS + 1).output(0)

    def _scalar(self, value: float) -> Any:
        return self.ops.constant(np.float32(value))

    def _weight(self, conv: Convolution) -> Any:
        weight, scales = quantise_weight(conv.weight.cpu())
        integers = self.ops.convert(self.ops.constant(weight.numpy()), "f32")
        return self.ops.multiply(
            integers, self.ops.constant(scales.numpy().reshape(-1, 1, 1, 1))
        )

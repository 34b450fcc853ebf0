"""The portable runtime: torch's public operators on folded weights, channels_last."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ...models.network import ExitNetwork
from ..devices import has_fast_bf16
from .base import PlannedNetwork, exit_modules
from .plan import Binary, Convolution, Unary, make_plan

NAME = "eager"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class EagerKit:
    """Operators that run on any device torch has, in one floating-point type."""

    dtype: torch.dtype
    device: torch.device

    def enter(self) -> Unary:
        """Images in this type and channels_last."""
        return lambda x: x.to(self.dtype, memory_format=torch.channels_last)

    def conv(self, conv: Convolution, site: str, source: str, relu: bool) -> Unary:
        """conv(x), or relu(conv(x))."""
        weight, bias = self._place(conv)

        def run(x: Tensor) -> Tensor:
            y = functional.conv2d(x, weight, bias, conv.stride, conv.padding)
            return y.relu_() if relu else y

        return run

    def conv_add(self, conv: Convolution, site: str, source: str, shortcut: str) -> Binary:
        """relu(conv(x) + y)."""
        weight, bias = self._place(conv)

        def run(x: Tensor, y: Tensor) -> Tensor:
            return functional.conv2d(x, weight, bias, conv.stride, conv.padding).add_(y).relu_()

        return run

    def max_pool(self, side: int) -> Unary:
        """Largest value of each window."""
        return lambda x: functional.max_pool2d(x, side)

    def features(self, site: str) -> Unary:
        """The tensor in float32."""
        return Tensor.float

    def _place(self, conv: Convolution) -> tuple[Tensor, Tensor]:
        weight = conv.weight.to(
            self.device, self.dtype, memory_format=torch.channels_last, copy=True
        )
        return weight, conv.bias.to(self.device, self.dtype, copy=True)


def unavailable(precision: str, device: torch.device) -> str | None:
    """Why eager cannot run ``precision`` on ``device``, None if it can."""
    if precision not in DTYPES:
        return f"eager runs {' and '.join(DTYPES)}, not {precision}"
    if precision == "bf16" and not has_fast_bf16(device):
        return (
            f"{device} has no bf16 arithmetic of its own; it would be emulated, slower than fp32. "
            "Use fp32, or int8 on the CPU."
        )
    return None


def prepare_eager(
    network: ExitNetwork, precision: str, device: torch.device, images: Tensor | None, ranges: str
) -> PlannedNetwork:
    """The network in torch's own operators, batch norm folded; images and ranges are not used."""
    plan = make_plan(network, EagerKit(DTYPES[precision], device))
    heads, classifier = exit_modules(network, device)
    words = f"{precision} by torch's own convolutions, batch norm folded, channels_last"
    if precision == "fp32" and device.type == "cuda":
        words += f", TF32 {'on' if torch.backends.cudnn.allow_tf32 else 'off'}"
    return PlannedNetwork(NAME, words, precision, device, plan, heads, classifier)

"""The portable runtime: torch's public operators on folded weights, channels_last."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ...models.blocks import State
from ...models.network import ExitNetwork
from ..devices import fp32_on_cuda, has_fast_bf16, has_fast_fp16, has_tf32
from ..errors import ExitbenchError
from .base import PlannedNetwork, exit_modules
from .plan import Binary, Convolution, Plan, Unary, make_plan, run_plan

NAME = "eager"
DTYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


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
        stride, padding = conv.stride, conv.padding  # the weights of ``conv`` need not stay

        def run(x: Tensor) -> Tensor:
            y = functional.conv2d(x, weight, bias, stride, padding)
            return y.relu_() if relu else y

        return run

    def conv_add(self, conv: Convolution, site: str, source: str, shortcut: str) -> Binary:
        """relu(conv(x) + y)."""
        weight, bias = self._place(conv)
        stride, padding = conv.stride, conv.padding

        def run(x: Tensor, y: Tensor, spent: bool = False) -> Tensor:
            return functional.conv2d(x, weight, bias, stride, padding).add_(y).relu_()

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


@dataclass(frozen=True)
class EagerOnCuda(PlannedNetwork):
    """Eager on a GPU, where what fp32 means is a setting of the whole process: set and put back."""

    def run_stretch(self, first: int, last: int, state: State, *, owned: bool = False) -> State:
        """The state after segments ``first`` to ``last``; see ``Prepared``."""
        with fp32_on_cuda(convolution_format(self.precision), None):
            return super().run_stretch(first, last, state, owned=owned)

    def run_head(self, number: int, state: State) -> Tensor:
        """Float32 logits of head ``number``; see ``Prepared``."""
        with fp32_on_cuda(None):
            return super().run_head(number, state)

    def run_classifier(self, state: State) -> Tensor:
        """Float32 logits of the classifier; see ``Prepared``."""
        with fp32_on_cuda(None):
            return super().run_classifier(state)


def convolution_format(precision: str) -> str:
    """What ``fp32_on_cuda`` is to set for the backbone's convolutions."""
    return "tf32" if precision == "tf32" else "ieee"


def unavailable(precision: str, device: torch.device) -> str | None:
    """Why eager cannot run ``precision`` on ``device``, None if it can."""
    if precision not in DTYPES:
        return f"eager runs {', '.join(DTYPES)}, not {precision}"
    instead = "Use fp32 there." if device.type == "cuda" else "Use fp32, bf16 or int8 on the CPU."
    if precision == "tf32" and not has_tf32(device):
        return f"{device} has no TF32, which NVIDIA GPUs have from Ampere on. {instead}"
    if precision == "fp16" and not has_fast_fp16(device):
        return (
            f"{device} has no fast fp16 arithmetic; it would be emulated, slower than fp32. "
            f"{instead}"
        )
    if precision == "bf16" and not has_fast_bf16(device):
        return (
            f"{device} has no bf16 arithmetic of its own; it would be emulated, slower than fp32. "
            "Use fp32, or int8 on the CPU."
        )
    return None


def prepare_eager(
    network: ExitNetwork, precision: str, device: torch.device, images: Tensor | None, ranges: str
) -> PlannedNetwork:
    """The network in torch's own operators, batch norm folded; ranges are not used.

    Raises:
        ExitbenchError: the network's values do not fit into fp16.
    """
    plan = make_plan(network, EagerKit(DTYPES[precision], device))
    if precision == "fp16":
        require_finite(plan, sample_images(network, images).to(device))
    heads, classifier = exit_modules(network, device)
    words = f"{precision} by torch's own convolutions, batch norm folded, channels_last"
    kind = PlannedNetwork
    if device.type == "cuda":
        kind = EagerOnCuda
        words += {"fp32": ", TF32 off", "tf32": " (TF32)"}.get(precision, "")
    return kind(NAME, words, precision, device, plan, heads, classifier)


def sample_images(network: ExitNetwork, images: Tensor | None, count: int = 2) -> Tensor:
    """``count`` float32 images to try a network with: the given ones, or noise."""
    if images is not None and len(images) >= count:
        return images[:count].float()
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, *network.input_shape, generator=generator)


def require_finite(plan: Plan, images: Tensor) -> None:
    """Require that no value overflows on the way through the backbone: fp16 ends at 65504.

    Raises:
        ExitbenchError: the last features of an image are not finite.
    """
    if not torch.isfinite(run_plan(plan, images)).all():
        raise ExitbenchError(
            "values of this network exceed what fp16 can hold (65504). Use bf16, which has the "
            "range of fp32, or tf32"
        )

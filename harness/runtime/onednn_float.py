"""fp32 and bf16 on the CPU by oneDNN's prepacked convolutions with fused ReLU and residual add.

The arithmetic is that of `eager`; weights are laid out once for the CPU's instructions rather than
at every call, which counts most in small batches. The operators are private to torch (its compiler
emits them), so they are looked up, and the prepared network is compared with `eager`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...models.blocks import State, main_path
from ...models.network import ExitNetwork
from ..errors import ExitbenchError
from ..memory import release
from . import eager
from .base import PlannedNetwork, exit_modules
from .eager import DTYPES, EagerKit
from .plan import Binary, Convolution, Part, Plan, Step, Unary, make_plan, plan_parts
from .winograd import SEVERAL, Allowance, Winograd, check_winograd, pays

NAME = "onednn"

TOLERANCES = {"fp32": 1e-4, "bf16": 3e-2}
"""Of one unit's output, relative to eager's from the same input (L2 norm). Sums of up to 4608
products in another order, rounded to 24 or 8 bits, stay far below; a wrong operator is near 1."""

_CONV = "X W B padding stride dilation groups attr scalars algorithm"
_CONV_ADD = (
    "X other W B padding stride dilation groups binary_attr alpha unary_attr unary_scalars "
    "unary_algorithm"
)
_PREPACK = "self padding stride dilation groups input_size"


@dataclass(frozen=True)
class Operators:
    """The three private operators that this runtime is built on."""

    prepack: Callable[..., Tensor]
    conv: Callable[..., Tensor]
    conv_add: Callable[..., Tensor]


def find_operators() -> Operators:
    """torch's prepacked convolutions.

    Raises:
        ExitbenchError: one is missing or takes other arguments.
    """
    return Operators(
        _find("_reorder_convolution_weight", "default", _PREPACK),
        _find("_convolution_pointwise", "default", _CONV),
        _find("_convolution_pointwise", "binary", _CONV_ADD),
    )


def _find(name: str, overload: str, arguments: str) -> Callable[..., Tensor]:
    found: Any = getattr(getattr(torch.ops.mkldnn, name, None), overload, None)
    if found is None or [a.name for a in found._schema.arguments] != arguments.split():
        raise ExitbenchError(
            f"torch {torch.__version__} does not have the operator mkldnn::{name}.{overload} in "
            "the known form"
        )
    operator: Callable[..., Tensor] = found
    return operator


@dataclass(frozen=True)
class PackedKit:
    """Operators on channels_last tensors of one floating-point type."""

    dtype: torch.dtype
    operators: Operators
    allowance: Allowance | None = None
    """Room for the weights of Winograd's way, which is taken where it pays; None: nowhere."""

    def enter(self) -> Unary:
        """Images in this type and channels_last."""
        return self._eager.enter()

    def conv(self, conv: Convolution, site: str, source: str, relu: bool) -> Unary:
        """conv(x), or relu(conv(x))."""
        call, winograd = self.operators.conv, self._winograd(conv) if relu else None
        rest = (*self._arguments(conv), "relu" if relu else "none", [], "")
        if winograd is None:
            return lambda x: call(x, *rest)
        several = winograd
        return lambda x: several(x) if len(x) >= SEVERAL else call(x, *rest)

    def conv_add(self, conv: Convolution, site: str, source: str, shortcut: str) -> Binary:
        """relu(conv(x) + y)."""
        call, winograd = self.operators.conv_add, self._winograd(conv)
        rest = (*self._arguments(conv), "add", None, "relu", [], "")
        if winograd is None:
            return lambda x, y, spent=False: call(x, y, *rest)
        several = winograd
        return lambda x, y, spent=False: several(x, y) if len(x) >= SEVERAL else call(x, y, *rest)

    def max_pool(self, side: int) -> Unary:
        """Largest value of each window."""
        return self._eager.max_pool(side)

    def features(self, site: str) -> Unary:
        """The tensor in float32."""
        return self._eager.features(site)

    def _winograd(self, conv: Convolution) -> Winograd | None:
        """The convolution in Winograd's way, if it pays for several images and there is room."""
        if self.allowance is None or not pays(conv) or not self.allowance.take(conv):
            return None
        return Winograd(conv, self.operators.prepack, self.operators.conv)

    @property
    def _eager(self) -> EagerKit:
        return EagerKit(self.dtype, torch.device("cpu"))

    def _arguments(self, conv: Convolution) -> tuple[Any, ...]:
        padding, stride = list(conv.padding), list(conv.stride)
        weight = conv.weight.to("cpu", self.dtype, memory_format=torch.channels_last)
        # An empty size leaves the layout to be good for every batch size and image side.
        packed = self.operators.prepack(weight, padding, stride, [1, 1], 1, [])
        bias = conv.bias.to("cpu", self.dtype, copy=True)
        return packed, bias, padding, stride, [1, 1], 1


def unavailable(precision: str, device: torch.device) -> str | None:
    """Why oneDNN cannot run ``precision`` on ``device``, None if it can."""
    if device.type != "cpu":
        return f"oneDNN runs on the CPU, not on {device}"
    if not torch.backends.mkldnn.is_available():
        return "this build of torch has no oneDNN"
    try:
        find_operators()
    except ExitbenchError as error:
        return str(error)
    return eager.unavailable(precision, device)


def prepare_packed(
    network: ExitNetwork, precision: str, device: torch.device, images: Tensor | None, ranges: str
) -> PlannedNetwork:
    """The network in prepacked convolutions, compared with eager on ``images`` or on noise.

    Raises:
        ExitbenchError: the self-test fails.
    """
    operators = find_operators()
    allowance, note = _allowance(network, precision, operators)
    with torch.inference_mode():
        plan = make_plan(network, PackedKit(DTYPES[precision], operators, allowance))
    if images is None:
        shape = (SEVERAL, *network.input_shape)
        images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    images = images[torch.arange(SEVERAL) % len(images)]
    reference = plan_parts(network, EagerKit(DTYPES[precision], device))
    compare_with_eager(plan, reference, images.cpu().float(), TOLERANCES[precision])
    heads, classifier = exit_modules(network, device)
    release()  # what the comparison leaves behind would stand in the memory of every run
    words = f"{precision} by oneDNN's prepacked convolutions, batch norm, ReLU and add fused{note}"
    return PlannedNetwork(NAME, words, precision, device, plan, heads, classifier)


def _allowance(
    network: ExitNetwork, precision: str, operators: Operators
) -> tuple[Allowance | None, str]:
    """Room for Winograd's way, and what is to be said of it."""
    if precision != "fp32":
        return None, ""
    try:
        check_winograd(operators.prepack, operators.conv)
    except ExitbenchError as error:
        return None, f"; 3x3 windows not by Winograd's way: {error}"
    weights = sum(weight.numel() for weight in network.backbone.parameters())
    return Allowance(weights), ", 3x3 windows of batches by Winograd's way where it pays"


@torch.inference_mode()
def compare_with_eager(
    plan: Plan, reference: Iterable[Part], images: Tensor, tolerance: float
) -> None:
    """Require of each unit, given the same input, what eager computes, to ``tolerance``.

    Of all images and of the first alone, since a unit may go different ways for them.

    Raises:
        ExitbenchError: naming the unit that fails or differs.
    """
    state: State = plan.enter(images)
    parts = iter(reference)
    for names, steps in zip(plan.names, plan.segments, strict=True):
        # In a call of its own, so that one segment of the reference goes before the next is made.
        state = _compare_part(names, steps, next(parts).steps, state, tolerance)


def _compare_part(
    names: tuple[str, ...],
    steps: tuple[Step, ...],
    expected: tuple[Step, ...],
    state: State,
    tolerance: float,
) -> State:
    for name, step, expected_step in zip(names, steps, expected, strict=True):
        wanted = main_path(expected_step(state)).float()
        try:
            alone, state = main_path(step(_first(state))), step(state)
        except RuntimeError as error:
            raise ExitbenchError(
                f"unit {name!r} fails in oneDNN ({str(error).splitlines()[0]})"
            ) from error
        for found, exact in ((main_path(state), wanted), (alone, wanted[:1])):
            error_bound = tolerance * exact.norm().item() + 1e-6
            if not (found.float() - exact).norm().item() <= error_bound:
                raise ExitbenchError(f"unit {name!r} differs from eager by more than {tolerance:g}")
    return state


def _first(state: State) -> State:
    return tuple(t[:1] for t in state) if isinstance(state, tuple) else state[:1]

"""int8 on the CPU by oneDNN's quantised convolutions, activations staying uint8 between segments.

The operators are private to torch (its compiler emits them), so they are looked up by name and
argument names, and tested against a plain reference before anything is built on them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ...models.network import ExitNetwork
from ..errors import ExitbenchError
from ..quantization import (
    CALIBRATION_IMAGES,
    PERCENTILE,
    Affine,
    Dequantised,
    quantise,
    quantise_weight,
    sample_images,
)
from .base import PlannedNetwork, exit_modules
from .calibrate import calibrate
from .plan import INPUT, Binary, Convolution, Unary, make_plan, plan_parts
from .reference import ReferenceKit, compare_with_fp32, compare_with_reference, require_equal

NAME = "onednn-int8"
_CONV = (
    "qx x_scale x_zero_point qw w_scale w_zero_point bias stride padding dilation groups "
    "output_scale output_zero_point output_dtype attr scalars algorithm"
)
_CONV_SUM = (
    "qx x_scale x_zero_point qw w_scale w_zero_point qaccum bias stride padding dilation groups "
    "output_scale output_zero_point output_dtype accum_scale accum_zero_point "
    "binary_attr alpha unary_attr unary_scalars unary_algorithm"
)
_PREPACK = "weight w_scales x_scale x_zp stride padding dilation groups x_shape"


@dataclass(frozen=True)
class Operators:
    """The three private operators that int8 is built on."""

    prepack: Callable[..., Tensor]
    conv: Callable[..., Tensor]
    conv_sum: Callable[..., Tensor]


def find_operators() -> Operators:
    """torch's quantised convolutions, under whichever name this version has them.

    Raises:
        ExitbenchError: one is missing or takes other arguments.
    """
    pointwise = ("qconv2d_pointwise", "qconv_pointwise")
    return Operators(
        _find(("qconv_prepack",), "default", _PREPACK),
        _find(pointwise, "default", _CONV),
        _find(pointwise, "binary", _CONV_SUM),
    )


def _find(names: tuple[str, ...], overload: str, arguments: str) -> Callable[..., Tensor]:
    for name in names:
        found: Any = getattr(getattr(torch.ops.onednn, name, None), overload, None)
        if found is not None and [a.name for a in found._schema.arguments] == arguments.split():
            operator: Callable[..., Tensor] = found
            return operator
    raise ExitbenchError(
        f"int8 needs torch's operator onednn::{names[0]}.{overload}, which torch "
        f"{torch.__version__} does not have in the known form. Use fp32 or bf16, or another "
        "version of torch (2.11 to 2.15 are known to have it)."
    )


@dataclass(frozen=True)
class Int8Kit:
    """Operators on uint8 tensors, whose grids are known by site."""

    grids: dict[str, Affine]
    operators: Operators

    def enter(self) -> Unary:
        """Images as uint8, channels_last."""
        grid = self.grids[INPUT]
        return lambda x: quantise(x, grid, torch.channels_last)

    def conv(self, conv: Convolution, site: str, source: str, relu: bool) -> Unary:
        """conv(x), or relu(conv(x))."""
        call = self.operators.conv
        given, geometry = self._arguments(conv, site, source)
        rest = (*given, *geometry, "relu" if relu else "none", [], "")
        return lambda x: call(x, *rest)

    def conv_add(self, conv: Convolution, site: str, source: str, shortcut: str) -> Binary:
        """relu(conv(x) + y)."""
        call, other = self.operators.conv_sum, self.grids[shortcut]
        (*given, bias), geometry = self._arguments(conv, site, source)
        rest = (bias, *geometry, other.scale, other.zero_point, "sum", 1.0, "relu", [], "")

        def run(x: Tensor, y: Tensor, spent: bool = False) -> Tensor:
            # The operator writes into its accumulator.
            return call(x, *given, y if spent else y.clone(), *rest)

        return run

    def max_pool(self, side: int) -> Unary:
        """Largest value of each window.

        torch's own pooling is one call, which counts at batch 1. It numbers places in 7 bits, so
        that it refuses uint8 maps above 11x11, and of a batch it is slower.
        """

        def run(x: Tensor) -> Tensor:
            n, c, h, w = x.shape
            if n == 1 and h * w < 128:
                return functional.max_pool2d(x, side)
            rows = x.permute(0, 2, 3, 1).reshape(n, h // side, side, w, c)
            tall = _largest([rows[:, :, i] for i in range(side)])
            columns = tall.reshape(n, h // side, w // side, side, c)
            return _largest([columns[:, :, :, i] for i in range(side)]).permute(0, 3, 1, 2)

        return run

    def features(self, site: str) -> Unary:
        """The tensor in float32."""
        return Dequantised(self.grids[site])

    def _arguments(
        self, conv: Convolution, site: str, source: str
    ) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """What comes before and after the accumulator in the operators' arguments."""
        given, out = self.grids[source], self.grids[site]
        weight, scales = quantise_weight(conv.weight.cpu())
        geometry = (list(conv.stride), list(conv.padding), [1, 1], 1)
        # Told the map's side, oneDNN packs for it, good for any batch size; not told, it would lay
        # out the weights of small maps anew at every call.
        shape = [1, weight.shape[1], conv.side, conv.side]
        packed = self.operators.prepack(
            weight, scales, given.scale, given.zero_point, *geometry, shape
        )
        zeros = torch.zeros(len(scales), dtype=torch.int64)
        before = (given.scale, given.zero_point, packed, scales, zeros, conv.bias.cpu().clone())
        return before, (*geometry, out.scale, out.zero_point, torch.uint8)


def unavailable(precision: str, device: torch.device) -> str | None:
    """Why oneDNN cannot run ``precision`` on ``device``, None if it can."""
    if precision != "int8":
        return f"oneDNN's quantised convolutions run int8, not {precision}"
    if device.type != "cpu":
        return f"int8 runs on the CPU only (oneDNN), not on {device}; use fp32 or bf16 there"
    if not torch.backends.mkldnn.is_available():
        return "this build of torch has no oneDNN; use fp32"
    try:
        check_operators(find_operators())
    except ExitbenchError as error:
        return str(error)
    return None


@functools.cache
@torch.inference_mode()
def check_operators(operators: Operators) -> None:
    """Compare each operator with the reference, on values that overflow 16-bit sums.

    Raises:
        ExitbenchError: an operator fails or differs.
    """
    generator = torch.Generator().manual_seed(0)
    weight = torch.empty(32, 64, 3, 3).uniform_(-1, 1, generator=generator)
    bias = torch.empty(32).uniform_(-1, 1, generator=generator)
    conv = Convolution(weight, bias, (1, 1), (1, 1), side=6)
    grids = {"x": Affine(0.02, 7), "y": Affine(0.1, 120), "plain": Affine(0.5, 128),
             "relu": Affine(0.3, 0)}  # fmt: skip
    x, y = (
        torch.randint(0, 256, (2, channels, 6, 6), generator=generator, dtype=torch.uint8)
        .contiguous(memory_format=torch.channels_last)
        for channels in (64, 32)
    )  # fmt: skip
    mine, reference = Int8Kit(grids, operators), ReferenceKit(grids)
    calls: dict[str, Callable[[Int8Kit | ReferenceKit], Tensor]] = {
        "convolution": lambda kit: kit.conv(conv, "plain", "x", relu=False)(x),
        "convolution with ReLU": lambda kit: kit.conv(conv, "relu", "x", relu=True)(x),
        "convolution with sum": lambda kit: kit.conv_add(conv, "relu", "x", "y")(x, y),
    }
    for what, call in calls.items():
        try:
            result = call(mine)
        except RuntimeError as error:
            raise ExitbenchError(
                f"oneDNN's int8 {what} fails on this machine ({str(error).splitlines()[0]}); "
                "use fp32 or bf16"
            ) from error
        require_equal(result, call(reference), f"oneDNN's int8 {what}")


def prepare_int8(
    network: ExitNetwork, precision: str, device: torch.device, images: Tensor | None, ranges: str
) -> PlannedNetwork:
    """The network in int8, calibrated and tested on ``images``.

    Raises:
        ExitbenchError: no calibration images, or the self-test fails.
    """
    if images is None:
        raise ExitbenchError(
            "int8 needs calibration images to find the range of every activation; give images of "
            "the calibration split"
        )
    grids = calibrate(network, images, ranges)
    plan = make_plan(network, Int8Kit(grids, find_operators()))
    reference = plan_parts(network, ReferenceKit(grids))
    compare_with_reference(plan, reference, sample_images(images, 2))
    error = compare_with_fp32(plan, network, sample_images(images, 32))
    heads, classifier = exit_modules(network, device, plan)
    taken = f"{PERCENTILE} percentiles" if ranges == "percentile" else "extremes"
    words = (
        "int8 by oneDNN's quantised convolutions: weights per channel, activations uint8, ranges "
        f"from the {taken} of {min(len(images), CALIBRATION_IMAGES)} calibration images, heads "
        f"and classifier in fp32; the last features are {error:.1%} off fp32 (median image)"
    )
    return PlannedNetwork(NAME, words, precision, device, plan, heads, classifier)


def _largest(tensors: list[Tensor]) -> Tensor:
    return functools.reduce(torch.maximum, tensors)

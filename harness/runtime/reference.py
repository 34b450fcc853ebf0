"""The self-test of int8: what its operators should compute, and how far it may be from fp32."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ...models.blocks import State, main_path
from ...models.network import ExitNetwork
from ..errors import ExitbenchError
from ..quantization import Affine, dequantise, quantise, quantise_weight
from .eager import EagerKit
from .plan import INPUT, Binary, Convolution, Part, Plan, Unary, plan_parts, run_plan

TOLERANCE_STEPS = 1
"""Integers are exact; only the rounding of a value in the middle between two steps may differ."""

LARGEST_ERROR = 0.5
"""Of the last features, relative to fp32 in the L2 norm. Two unrelated signals are about 1 apart;
int8 of trained networks was 0.01 to 0.03 off, 0.13 with ranges cut badly (docs/precision.md)."""


@dataclass(frozen=True)
class ReferenceKit:
    """What int8 operators should compute, in float32: the measure for a runtime's self-test.

    A product of integers stays below 2^28 in these networks, so float32 sums are wrong by less
    than 1e-5 of a step after rescaling; an output can differ only where it lies that close to the
    middle between two steps, and then by 1.
    """

    grids: dict[str, Affine]

    def enter(self) -> Unary:
        """Images as uint8, channels_last."""
        grid = self.grids[INPUT]
        return lambda x: quantise(x.contiguous(memory_format=torch.channels_last), grid)

    def conv(self, conv: Convolution, site: str, source: str, relu: bool) -> Unary:
        """conv(x), or relu(conv(x)), rounded to the grid of ``site``."""
        run, out = self._conv(conv, source), self.grids[site]
        return lambda x: quantise(run(x).relu() if relu else run(x), out)

    def conv_add(self, conv: Convolution, site: str, source: str, shortcut: str) -> Binary:
        """relu(conv(x) + y), rounded to the grid of ``site``."""
        run, other, out = self._conv(conv, source), self.grids[shortcut], self.grids[site]
        return lambda x, y, spent=False: quantise((run(x) + dequantise(y, other)).relu(), out)

    def max_pool(self, side: int) -> Unary:
        """Largest value of each window."""
        return lambda x: functional.max_pool2d(x.float(), side).to(torch.uint8)

    def features(self, site: str) -> Unary:
        """The tensor in float32."""
        grid = self.grids[site]
        return lambda x: dequantise(x, grid)

    def _conv(self, conv: Convolution, source: str) -> Unary:
        weight, scales = quantise_weight(conv.weight.cpu())
        bias, grid = conv.bias.cpu()[:, None, None], self.grids[source]
        rescale = (scales * grid.scale)[:, None, None]
        stride, padding = conv.stride, conv.padding

        def run(x: Tensor) -> Tensor:
            integers = x.float() - grid.zero_point
            sums = functional.conv2d(integers, weight.float(), None, stride, padding)
            return sums * rescale + bias

        return run


@torch.inference_mode()
def compare_with_reference(plan: Plan, reference: Iterable[Part], images: Tensor) -> None:
    """Require of each unit, given the same integers, the reference's integers.

    Raises:
        ExitbenchError: naming the unit that differs.
    """
    state: State = plan.enter(images)
    parts = iter(reference)
    for names, steps in zip(plan.names, plan.segments, strict=True):
        # Asked for one by one, so that one goes before the next is made.
        for name, step, expected_step in zip(names, steps, next(parts).steps, strict=True):
            wanted = expected_step(state)
            state = step(state)
            require_equal(main_path(state), main_path(wanted), f"int8 unit {name!r}")


@torch.inference_mode()
def compare_with_fp32(plan: Plan, network: ExitNetwork, images: Tensor) -> float:
    """Relative error (L2 norm) of the median image's last features against the network in fp32.

    Raises:
        ExitbenchError: it is above LARGEST_ERROR.
    """
    wanted, found = _exact(network, images), run_plan(plan, images)
    off, size = ((x.flatten(1)).norm(dim=1) for x in (found - wanted, wanted))
    # The median: one image without any feature would decide a mean, one with large ones a total.
    error = (off / size.clamp_min(1e-12)).median().item()
    if not error <= LARGEST_ERROR:
        raise ExitbenchError(
            f"int8 self-test: the last features differ from fp32 by {error:.0%} of their size "
            f"(allowed {LARGEST_ERROR:.0%}), so this network does not survive 8 bits as "
            "calibrated. Calibrate on images of its own dataset, normalised as in training, or "
            "use bf16 or fp32."
        )
    return error


def _exact(network: ExitNetwork, images: Tensor) -> Tensor:
    """The last features in fp32; weights are folded segment by segment and not kept."""
    kit = EagerKit(torch.float32, torch.device("cpu"))
    state: State = kit.enter()(images)
    for part in plan_parts(network, kit):
        for step in part.steps:
            state = step(state)
    return main_path(state)


def require_equal(found: Tensor, wanted: Tensor, what: str) -> None:
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        off: float = float("inf")
    else:
        off = (found.int() - wanted.int()).abs().max().item()
    if off > TOLERANCE_STEPS:
        raise ExitbenchError(
            f"{what} differs from the reference by {off} steps of 255 (allowed "
            f"{TOLERANCE_STEPS}): torch {torch.__version__} computes int8 wrongly on this CPU. "
            "Use fp32 or bf16, or another version of torch."
        )

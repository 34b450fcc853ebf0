"""Post-training static quantization to 8 bits: ranges, integers, and what they should compute.

A real value is ``scale * (q - zero_point)``. Activations are uint8 with one scale per tensor (zero
point 0 after a ReLU); weights are int8, symmetric, with one scale per output channel.

Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-
Arithmetic-Only Inference", CVPR 2018, sections 2.1 and 2.4; Nagel et al., "A White Paper on Neural
Network Quantization", 2021, section 3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .errors import ExitbenchError

CALIBRATION_IMAGES = 256
"""How many images ranges are taken from; more cost time and move the ranges by a few percent."""

BINS = 4096
PERCENTILE = 99.99
LEVELS = 255


@dataclass(frozen=True)
class Affine:
    """How uint8 values stand for real ones: real = scale * (q - zero_point)."""

    scale: float
    zero_point: int


def affine(low: float, high: float) -> Affine:
    """The uint8 grid that spans [low, high] and holds 0 exactly."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / LEVELS
    # A tensor that is always 0 (a dead layer) is exact under any scale.
    if scale < 1e-30:
        return Affine(1.0, 0)
    return Affine(scale, min(LEVELS, max(0, round(-low / scale))))


def quantise(
    x: Tensor, grid: Affine, memory_format: torch.memory_format = torch.preserve_format
) -> Tensor:
    """Real values as uint8, rounded to nearest (ties to even), values outside clamped."""
    scaled = x.float().mul(1.0 / grid.scale).round_().add_(grid.zero_point)
    return scaled.clamp_(0, LEVELS).to(torch.uint8, memory_format=memory_format)


def dequantise(q: Tensor, grid: Affine) -> Tensor:
    """The float32 values that uint8 values stand for, in the same memory format."""
    if grid.zero_point:
        return (q.float() - grid.zero_point) * grid.scale
    return q * grid.scale


@dataclass(frozen=True)
class Dequantised:
    """``dequantise`` on a known grid, which a head may fold into its weights instead."""

    grid: Affine

    def __call__(self, q: Tensor) -> Tensor:
        """The float32 values that ``q`` stands for."""
        return dequantise(q, self.grid)


def quantise_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Int8 weights in -127..127 and float32 scales (K,), one per output channel."""
    largest = weight.abs().amax((1, 2, 3))
    scales = torch.where(largest > 0, largest / 127, torch.ones_like(largest))
    return (weight / scales[:, None, None, None]).round().to(torch.int8), scales


@dataclass
class Observer:
    """What was seen at one site: the range, then the distribution within it."""

    low: float = float("inf")
    high: float = float("-inf")
    counts: Tensor = field(default_factory=lambda: torch.zeros(BINS, dtype=torch.float64))

    def widen(self, x: Tensor) -> None:
        """Take the range of ``x`` in."""
        low, high = torch.aminmax(x)
        self.low, self.high = min(self.low, low.item()), max(self.high, high.item())

    def count(self, x: Tensor) -> None:
        """Count the values of ``x`` in BINS equal bins over the range."""
        if self.high > self.low:
            self.counts += torch.histc(x, BINS, self.low, self.high)


def min_max(seen: Observer) -> Affine:
    """The grid over everything seen."""
    return affine(seen.low, seen.high)


def percentile(seen: Observer) -> Affine:
    """The grid that leaves out (100 - PERCENTILE) % of the values at each end.

    Zero is always on the grid, so that after a ReLU only the upper end is cut.
    """
    total = seen.counts.sum().item()
    if total == 0:
        return min_max(seen)
    width = (seen.high - seen.low) / BINS
    below = seen.counts.cumsum(0) / total
    share = PERCENTILE / 100
    upper = int((below < share).sum())
    lower = int((below <= 1 - share).sum())
    return affine(seen.low + lower * width, seen.low + (upper + 1) * width)


RANGES: dict[str, Callable[[Observer], Affine]] = {"min-max": min_max, "percentile": percentile}
DEFAULT_RANGES = "min-max"


def sample_images(images: Tensor, count: int = CALIBRATION_IMAGES) -> Tensor:
    """At most ``count`` of the images, evenly spaced, on the CPU.

    Raises:
        ExitbenchError: there are none, or a value is not finite.
    """
    if images.dim() != 4 or len(images) == 0:
        raise ExitbenchError(
            f"calibration images have shape {tuple(images.shape)}; int8 needs at least one image, "
            "as (N, 3, side, side). Give images of the calibration split."
        )
    picked = torch.linspace(0, len(images) - 1, min(count, len(images))).round().long()
    chosen = images.detach()[picked.to(images.device)].cpu().float()
    if not torch.isfinite(chosen).all():
        raise ExitbenchError("calibration images hold values that are not finite; check the data")
    return chosen

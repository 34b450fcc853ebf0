"""3x3 convolutions by Winograd's minimal filtering, F(2x2, 3x3), in oneDNN and torch operators.

A tile of 4x4 inputs gives 2x2 outputs from 16 products per pair of channels instead of 36:
y = A' ((G w G') * (B' d B)) A, with sums over the input channels in place of single products.
Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, section 4.

The 16 positions of a tile are 16 matrix products, tiles by channels. As the groups of one 1x1
convolution they are one call, on tiles laid out (tile, position, channel), and its bias can carry
the layer's. In each direction positions come in the order 0, 3, 1, 2, the last row of G with its
sign changed, so that both transforms need three passes over memory instead of four.

Where it is taken is a fixed rule, so that results do not depend on the machine's mood. Its measure
is coarse: ResNet-34 at batch 64, medians of three passes (2026-11-26, one thread of an AMD EPYC
Zen 4 whose other core was busy), time relative to the plain convolution. 128 channels on 16x16:
0.83 to 0.97, 7 of 7 faster. 256 on 8x8: 0.85 to 1.11, 8 of 11 faster. 64 on 32x32: 0.97 to 1.21, 1
of 6. But the layers with 512 channels, the same code on both sides, came out at 0.78 to 1.11:
single layers are not told apart, only the trend is. From 64 to 128 channels it was only timed
alone (0.75 to 1.0). For a single image 256 channels took 0.87 to 1.14, and whole networks differed
by less than the runs did, so it goes the plain way. With 512 channels the larger weights would
break the memory bound; those of the rest are at most 35% of the network's, on top of the packed
ones.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import ExitbenchError
from .plan import Convolution

POSITIONS = 16

CHUNK = 2**19
"""Values in the tiles of the images that are taken at a time (2 MiB of float32)."""

SEVERAL = 4
"""A batch of so many images repays reading weights that are 16/9 as large."""

SHARE = 0.35
"""Transformed weights that are kept besides packed ones, as a share of the network's weights."""

TOLERANCE = 1e-5
"""Relative, L2 norm. Against float64 it is 2e-7 to 4e-7 off with 64 to 256 channels, less than
oneDNN's own convolution (2e-7 to 5e-7); a wrong operator is near 1."""

G = ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5))
ONES = 2 * 4 + 2  # the position whose product is added to all four outputs


def pays(conv: Convolution) -> bool:
    """Whether a convolution goes this way for batches of SEVERAL images and more."""
    outputs, inputs, *window = conv.weight.shape
    fits = window == [3, 3] and conv.stride == (1, 1) and conv.padding == (1, 1)
    even = conv.side % 2 == 0 and conv.side >= 8
    return fits and even and 64 <= inputs <= 256 and 128 <= outputs <= 256


class Allowance:
    """How many transformed weights a network may still have, besides its packed ones."""

    def __init__(self, weights: int) -> None:
        self.left = int(SHARE * weights)

    def take(self, conv: Convolution) -> bool:
        """Whether there is room for the transformed weights of a convolution; takes it if so."""
        size = POSITIONS * conv.weight.shape[0] * conv.weight.shape[1]
        if size > self.left:
            return False
        self.left -= size
        return True


def transform_weight(weight: Tensor) -> Tensor:
    """Weights (K, C, 3, 3) as those of a 1x1 convolution of 16 groups: (16 K, C, 1, 1)."""
    g = torch.tensor(G, dtype=torch.float64)
    positions = torch.einsum("ij,kcjl,ml->imkc", g, weight.double(), g).float()
    return positions.reshape(POSITIONS * weight.shape[0], weight.shape[1], 1, 1)


class Winograd:
    """relu(conv(x)) or relu(conv(x) + y), on channels_last float32 maps of one even side.

    Args:
        conv: stride 1, padding 1, a 3x3 window.
        prepack: ``mkldnn::_reorder_convolution_weight``.
        multiply: ``mkldnn::_convolution_pointwise``.
        images: how many are taken at a time; None: as many as CHUNK allows.
    """

    def __init__(
        self,
        conv: Convolution,
        prepack: Callable[..., Tensor],
        multiply: Callable[..., Tensor],
        images: int | None = None,
    ) -> None:
        self._outputs, self._inputs = conv.weight.shape[:2]
        self._side = conv.side
        self._images = images or max(1, CHUNK // (4 * conv.side**2 * self._inputs))
        half = conv.side // 2
        weight = transform_weight(conv.weight.cpu()).to(memory_format=torch.channels_last)
        shape = [1, POSITIONS * self._inputs, half, half]
        packed = prepack(weight, *_GEOMETRY, POSITIONS, shape)
        bias = torch.zeros(POSITIONS, self._outputs)
        bias[ONES] = conv.bias
        self._multiply = multiply
        self._rest = (packed, bias.flatten(), *_GEOMETRY, POSITIONS, "none", [], "")

    def __call__(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """x (N, C, side, side) to (N, K, side, side); ``shortcut`` is added before the ReLU."""
        n, _, height, width = x.shape
        rows = x.permute(0, 2, 3, 1)
        out = rows.new_empty(n, height, width, self._outputs)
        other = None if shortcut is None else shortcut.permute(0, 2, 3, 1)
        for start in range(0, n, self._images):
            part = slice(start, start + self._images)
            y = out[part]
            self._run(rows[part], y)
            if other is not None:
                y.add_(other[part])
            y.relu_()
        return out.permute(0, 3, 1, 2)

    def _run(self, x: Tensor, y: Tensor) -> None:
        """conv(x) of maps (n, side, side, C), written to the maps ``y`` (n, side, side, K)."""
        views = _views(len(x), self._side, self._inputs, self._outputs)
        views.inside.copy_(x)
        for combine, a, b, out in views.passes:
            combine(a, b, out=out)
        products = self._multiply(views.tiles, *self._rest)
        views.gather(products, y)


@functools.cache
@torch.inference_mode()
def check_winograd(prepack: Callable[..., Tensor], multiply: Callable[..., Tensor]) -> None:
    """Compare the operator with torch's convolution in float64, on more images than it takes once.

    Raises:
        ExitbenchError: it fails or differs by more than TOLERANCE.
    """
    generator = torch.Generator().manual_seed(0)
    weight, bias, x, y = (
        torch.randn(*shape, generator=generator)
        for shape in ((64, 32, 3, 3), (64,), (3, 32, 8, 8), (3, 64, 8, 8))
    )
    x, y = (t.contiguous(memory_format=torch.channels_last) for t in (x, y))
    try:
        winograd = Winograd(Convolution(weight, bias, (1, 1), (1, 1), 8), prepack, multiply, 2)
        found = winograd(x), winograd(x, y)
    except RuntimeError as error:
        raise ExitbenchError(f"it fails ({str(error).splitlines()[0]})") from error
    exact = functional.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    for mine, wanted in zip(found, (exact.relu(), (exact + y).relu()), strict=True):
        if not (mine - wanted).norm().item() <= TOLERANCE * wanted.norm().item():
            raise ExitbenchError(f"it differs from torch's convolution by more than {TOLERANCE:g}")


_GEOMETRY: tuple[Any, ...] = ([0, 0], [1, 1], [1, 1])
_Pass = tuple[Callable[..., Tensor], Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class _Views:
    """Scratch memory for a number of images, seen in the shapes that the transforms need.

    Attributes:
        inside: maps within their border of zeros, (n, side, side, C).
        passes: what makes ``tiles`` of it.
        tiles: B' d B, (n, 16 C, side / 2, side / 2), channels_last.
        half: sums and differences over the rows of products, (n, side / 2, side / 2, 2, 4, K).
    """

    inside: Tensor
    passes: tuple[_Pass, ...]
    tiles: Tensor
    half: Tensor
    summed: tuple[Tensor, ...]

    def gather(self, products: Tensor, y: Tensor) -> None:
        """A' m A of products (n, 16 K, side / 2, side / 2), written to maps (n, side, side, K)."""
        n, down, across, _, _, channels = self.half.shape
        m = products.permute(0, 2, 3, 1).view(n, down, across, 4, 4, channels)
        upper, lower, both, third, fourth, first = self.summed
        torch.add(m[:, :, :, 2], m[:, :, :, 3], out=upper)
        torch.sub(m[:, :, :, 2], m[:, :, :, 3], out=lower)
        both.add_(m[:, :, :, :2])
        tiled = y.view(n, down, 2, across, 2, channels).permute(0, 1, 3, 2, 4, 5)
        torch.add(third, fourth, out=tiled[..., 0, :])
        torch.sub(third, fourth, out=tiled[..., 1, :])
        tiled.add_(first)


class _Scratch(threading.local):
    """Memory that a thread uses again for every layer: fresh memory costs more than the sums."""

    def __init__(self) -> None:
        self.shared = torch.empty(0)
        self.padded: dict[tuple[int, int], Tensor] = {}
        self.views: dict[tuple[int, int, int, int], _Views] = {}


_scratch = _Scratch()


def _views(n: int, side: int, inputs: int, outputs: int) -> _Views:
    key = (n, side, inputs, outputs)
    found = _scratch.views.get(key)
    if found is None:
        with torch.inference_mode(False):
            found = _scratch.views[key] = _make_views(n, side, inputs, outputs)
    return found


def _make_views(n: int, side: int, inputs: int, outputs: int) -> _Views:
    half = side // 2
    padded = _scratch.padded.get((side, inputs))
    if padded is None or len(padded) < n:
        padded = _scratch.padded[side, inputs] = torch.zeros(n, side + 2, side + 2, inputs)
        _scratch.views.clear()
    padded = padded[:n]
    sizes = [n * half * 4 * (side + 2) * inputs, n * half * half * 16 * inputs,
             n * half * half * 8 * outputs]  # fmt: skip
    if _scratch.shared.numel() < sum(sizes):
        _scratch.shared = torch.empty(sum(sizes))
        _scratch.views.clear()
    rows, tiles, summed = _scratch.shared[: sum(sizes)].split(sizes)
    rows = rows.view(n, half, 4, half + 1, 2, inputs)
    tiles = tiles.view(n, half, half, 4, 4, inputs)
    summed = summed.view(n, half, half, 2, 4, outputs)
    pairs = padded.view(n, half + 1, 2, half + 1, 2, inputs)
    passes = (
        *_passes(pairs[:, :-1], pairs[:, 1:], 2, rows),
        *_passes(rows[:, :, :, :-1], rows[:, :, :, 1:], 4, tiles.permute(0, 1, 3, 2, 4, 5)),
    )
    return _Views(
        padded[:, 1:-1, 1:-1], passes, tiles.view(n, half, half, -1).permute(0, 3, 1, 2), summed,
        (summed[:, :, :, 0], summed[:, :, :, 1], summed,
         summed[..., 2, :], summed[..., 3, :], summed[..., :2, :]),
    )  # fmt: skip


def _passes(before: Tensor, after: Tensor, dim: int, out: Tensor) -> tuple[_Pass, ...]:
    """B' d in one direction, d0 and d1 lying in ``before`` and d2 and d3 in ``after``."""
    d1, d2 = before.select(dim, 1), after.select(dim, 0)
    return (
        (torch.sub, before, after, out.narrow(dim, 0, 2)),
        (torch.add, d1, d2, out.select(dim, 2)),
        (torch.sub, d2, d1, out.select(dim, 3)),
    )

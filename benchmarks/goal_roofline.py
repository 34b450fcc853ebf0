"""What this machine can do at most, and what every segment of the network gets of it.

The peak of a precision is the fastest of some large products of matrices and, since the library
behind those is not the best on every CPU, of some large convolutions without padding; bandwidth is
the fastest copy of arrays far larger than the caches, reads and writes both counted. Bytes of the
segments are those of the cost table. FLOPs are those of the convolutions without the products with
padding, which kernels skip: on a map of 2x2, 56%.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from exitbench.harness.profiler import ELEMENT_BYTES
from exitbench.harness.runtime import Prepared, availability, prepare
from exitbench.models.counting import NetworkCounts
from exitbench.models.network import ExitNetwork
from goal_network import segment_times
from precision import make_network
from torch import Tensor, nn

MODELS = ("vgg19", "resnet34")
PRECISIONS = ("fp32", "bf16", "int8")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SIZES = (512, 1024, 2048)
CONVOLUTIONS = ((64, 34, 16), (128, 34, 8), (256, 18, 8), (512, 18, 4))
"""Channels, side and images of 3x3 convolutions."""


def measure_roofline(folder: Path, threads: int, quick: bool) -> dict[str, Any]:
    """Peaks, and time, FLOPs and bytes of every segment by network, precision and batch size."""
    peaks = {name: _peak(name, quick) for name in PRECISIONS if availability(name) is None}
    found: dict[str, Any] = {
        "gflops": {name: each for name, each in peaks.items() if each is not None},
        "gbytes_s": _bandwidth(quick),
        "segments": [],
    }
    for model in MODELS:
        network = make_network(model)
        counts, flops = network.counts(), useful_flops(network)
        images = torch.randn(64, *network.input_shape)
        for precision in peaks:
            prepared = prepare(network, precision, calibration_images=images[:16])
            for batch in (1, 64):
                rows = _segments(prepared, counts, flops, images[:batch], quick)
                found["segments"] += [{"model": model, **row} for row in rows]
    return found


def useful_flops(network: ExitNetwork) -> list[int]:
    """FLOPs of the convolutions of every segment for one image, products with padding left out."""
    found: list[int] = []

    def add(conv: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        assert isinstance(conv, nn.Conv2d)
        found[-1] += 2 * conv.in_channels * conv.out_channels * _taps(conv, given[0], 2) * _taps(
            conv, given[0], 3
        )

    convolutions = [each for each in network.modules() if isinstance(each, nn.Conv2d)]
    hooks = [each.register_forward_hook(add) for each in convolutions]
    state: Any = torch.zeros(1, *network.input_shape)
    with torch.inference_mode():
        for number in range(1, network.num_exits + 2):
            found.append(0)
            state = network.run_segment(number, state)
    for hook in hooks:
        hook.remove()
    return found


def _taps(conv: nn.Conv2d, given: Tensor, axis: int) -> int:
    """Pairs of an output place and a kernel's place along one axis that meet the map."""
    kernel, stride = conv.kernel_size[axis - 2], conv.stride[axis - 2]
    padding, side = int(conv.padding[axis - 2]), given.shape[axis]
    starts = range(-padding, side + padding - kernel + 1, stride)
    return sum(0 <= start + place < side for start in starts for place in range(kernel))


def _segments(
    prepared: Prepared, counts: NetworkCounts, flops: list[int], images: Tensor, quick: bool
) -> list[dict[str, Any]]:
    """Each segment in passes through the whole backbone, so that it meets the caches of a run."""
    batch = len(images)
    rounds = (10 if quick else 60) if batch == 1 else (2 if quick else 8)
    (times,) = segment_times([prepared], images, rounds)
    element = ELEMENT_BYTES[prepared.precision]
    return [
        {
            "precision": prepared.precision, "runtime": prepared.name, "batch_size": batch,
            "segment": number, "ms": each * 1e3,
            "flops": flops[number - 1] * batch,
            "bytes": counts.segments[number - 1].bytes_per_sample(batch, element) * batch,
        }
        for number, each in enumerate(times, start=1)
        if flops[number - 1]
    ]  # fmt: skip


def _peak(precision: str, quick: bool) -> float | None:
    """GFLOP/s of the fastest large product; None where torch has none in this type."""
    best, rounds = 0.0, 4 if quick else 12
    for size in SIZES:
        call = _product(precision, size)
        if call is None:
            return None
        best = max(best, 2 * size**3 / _fastest(call, rounds) / 1e9)
    if precision in DTYPES:
        for channels, side, images in CONVOLUTIONS:
            flops = 2 * 9 * channels**2 * (side - 2) ** 2 * images
            call = _convolution(DTYPES[precision], channels, side, images)
            best = max(best, flops / _fastest(call, rounds) / 1e9)
    return best


def _convolution(
    dtype: torch.dtype, channels: int, side: int, images: int
) -> Callable[[], object]:
    maps, weight = (
        torch.randn(shape).to(dtype, memory_format=torch.channels_last)
        for shape in ((images, channels, side, side), (channels, channels, 3, 3))
    )
    return lambda: torch.conv2d(maps, weight)


def _product(precision: str, size: int) -> Callable[[], object] | None:
    if precision in DTYPES:
        first, second = (torch.randn(size, size).to(DTYPES[precision]) for _ in range(2))
        out = torch.empty_like(first)
        return lambda: torch.mm(first, second, out=out)
    bytes_product = getattr(torch, "_int_mm", None)
    if bytes_product is None:
        return None
    left, right = (torch.randint(-127, 127, (size, size), dtype=torch.int8) for _ in range(2))
    return lambda: bytes_product(left, right)


def _bandwidth(quick: bool) -> float:
    """GB/s of copying 256 MiB, reads and writes counted."""
    source = torch.ones(64 * 2**20)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _fastest(lambda: target.copy_(source), 5 if quick else 20) / 1e9


def _fastest(call: Callable[[], object], rounds: int) -> float:
    """The least seconds of a call: a peak is what nothing disturbed."""
    found = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return min(found[1:])

"""Loads that take a device to its limits, and how fast they go: arithmetic, memory, a convolution.

A rate is the best of many calls, which is what the device can do; the median is kept beside it. A
matrix product of n x n is 2 n^3 operations. Bytes are those that a program reads and writes; a
cache that reads a line before it is written moves more, and is not counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from statistics import median

import psutil
import torch

from .devices import fp32_on_cuda, has_fast_bf16

Clock = Callable[[], float]

_SIDES = (512, 1024, 2048, 4096, 8192, 16384)
_BETTER = 1.02  # a larger product has to be this much faster to be worth its time
_MOST_BYTES = {"cpu": 256 * 2**20, "cuda": 2**30}
_CHANNELS, _SIDE, _KERNEL = 256, 16, 3


@dataclass(frozen=True)
class Load:
    """Work of a known amount.

    Attributes:
        words: what it is, for the source of a figure.
        run: does it once; on a GPU it may return before the work is done.
        amount: operations or bytes of one call.
    """

    words: str
    run: Callable[[], object]
    amount: float


@dataclass(frozen=True)
class Rate:
    """How fast a load went: amounts per second.

    Attributes:
        best: of the fastest call.
        typical: of the median call.
        calls: how many there were.
    """

    words: str
    best: float
    typical: float
    calls: int


def synchroniser(device: torch.device) -> Callable[[], None]:
    """What waits until the device has finished."""
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return lambda: None


def rate_of(
    load: Load, seconds: float, synchronise: Callable[[], None], clock: Clock = time.perf_counter
) -> Rate:
    """The rate of a load over ``seconds``, three calls at least, after one that warms up."""
    load.run()
    synchronise()
    taken: list[float] = []
    begin_s = clock()
    while len(taken) < 3 or clock() - begin_s < seconds:
        start_s = clock()
        load.run()
        synchronise()
        taken.append(max(clock() - start_s, 1e-9))
    return Rate(load.words, load.amount / min(taken), load.amount / median(taken), len(taken))


def fastest(
    loads: Iterator[Load],
    seconds: float,
    synchronise: Callable[[], None],
    clock: Clock = time.perf_counter,
) -> tuple[Load, Rate]:
    """The load of a rising series at which the device is saturated, and its rate.

    A larger one is tried while it is faster and three calls of it fit into ``seconds``.
    """
    best: tuple[Load, Rate] | None = None
    for load in loads:
        rate = rate_of(load, seconds, synchronise, clock)
        if best is not None and rate.best < _BETTER * best[1].best:
            return best if best[1].best >= rate.best else (load, rate)
        best = (load, rate)
        # The next is eight times the work.
        if 3 * 8 * load.amount / rate.typical > seconds:
            break
    assert best is not None
    return best


def product_formats(device: torch.device) -> dict[str, str]:
    """Formats whose products this device has fast instructions for: keys of peaks, in words."""
    found = {"fp32_gflops": "fp32"}
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        found |= {"fp16_gflops": "fp16"} if major >= 7 else {}
        found |= {"tf32_gflops": "tf32"} if major >= 8 else {}
    if has_fast_bf16(device):
        found["bf16_gflops"] = "bf16"
    if hasattr(torch, "_int_mm") and _int8_works(device):
        found["int8_gops"] = "int8"
    return found


def products(format_: str, device: torch.device) -> Iterator[Load]:
    """Matrix products in a format, the sides rising, while they fit into the memory."""
    for side in _SIDES:
        if 3 * 4 * side * side > _memory_bytes(device) / 4:
            return
        yield product(format_, side, device)


def product(format_: str, side: int, device: torch.device) -> Load:
    """One matrix product of ``side`` x ``side``, in the format that peaks are named by."""
    generator = torch.Generator().manual_seed(0)
    if format_ == "int8":
        left, right = (
            torch.randint(-127, 128, (side, side), generator=generator, dtype=torch.int8)
            for _ in range(2)
        )
        call = getattr(torch, "_int_mm")  # noqa: B009 - private, hence asked for by name
    else:
        types = {"bf16": torch.bfloat16, "fp16": torch.float16}
        kind = types.get(format_, torch.float32)
        left, right = (torch.randn(side, side, generator=generator).to(kind) for _ in range(2))
        call = torch.mm
    left, right = left.to(device), right.to(device)

    def run() -> object:
        with _fp32(device, "tf32" if format_ == "tf32" else "ieee"):
            return call(left, right)

    return Load(f"{format_} matrix product {side} x {side}", run, 2.0 * side**3)


def memory_loads(device: torch.device) -> tuple[Load, ...]:
    """A copy and a triad over buffers that no cache holds."""
    size = int(min(_MOST_BYTES[device.type], _memory_bytes(device) / 16))
    numbers = size // 4
    first, second, third = (torch.ones(numbers, device=device) for _ in range(3))
    words = f"of {size / 2**20:.0f} MiB, bytes read and written"
    return (
        Load(f"copy {words}", lambda: first.copy_(second), 2.0 * 4 * numbers),
        Load(
            f"triad {words}",
            lambda: torch.add(second, third, alpha=3.0, out=first),
            3.0 * 4 * numbers,
        ),
    )


def convolution(device: torch.device) -> Load:
    """A convolution as networks have them: one image, 256 channels of 16 x 16, 3 x 3, fp32."""
    generator = torch.Generator().manual_seed(0)
    order = torch.channels_last
    image = torch.randn(1, _CHANNELS, _SIDE, _SIDE, generator=generator)
    weight = torch.randn(_CHANNELS, _CHANNELS, _KERNEL, _KERNEL, generator=generator)
    image = image.to(device, memory_format=order)
    weight = weight.to(device, memory_format=order)


    def run() -> object:
        with _fp32(device):
            return torch.nn.functional.conv2d(image, weight, padding=1)

    macs = _CHANNELS * _CHANNELS * _KERNEL**2 * _SIDE**2
    return Load(
        f"fp32 convolution, {_CHANNELS} channels of {_SIDE} x {_SIDE}, {_KERNEL} x {_KERNEL}, "
        "one image",
        run,
        2.0 * macs,
    )


def _fp32(device: torch.device, products: str = "ieee") -> AbstractContextManager[None]:
    return fp32_on_cuda(products=products) if device.type == "cuda" else nullcontext()


def _int8_works(device: torch.device) -> bool:
    try:
        product("int8", 64, device).run()
    except RuntimeError:
        return False
    return True


def _memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)

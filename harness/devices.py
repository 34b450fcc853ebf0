"""Which device and how many threads a network runs on."""

from __future__ import annotations

import os
import re
from typing import Any

import psutil
import torch

from .errors import ExitbenchError

_FAST_FP16 = {(5, 3), (6, 0), (6, 2)}
"""Compute capabilities below 7.0 with fast fp16; the others have it at 1/64 of fp32's rate.
NVIDIA, "CUDA C++ Programming Guide", throughput of native arithmetic instructions."""


def resolve_device(name: str) -> torch.device:
    """The device that ``name`` stands for: auto, cpu, cuda or cuda:N.

    ``auto`` is the first CUDA device where there is one, else the CPU.

    Raises:
        ExitbenchError: another name, or a CUDA device that is not there.
    """
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    match = re.fullmatch(r"cuda(?::(\d+))?", name)
    if match is None:
        raise ExitbenchError(f"device is {name!r}; it must be auto, cpu, cuda or cuda:N")
    if not torch.cuda.is_available():
        raise ExitbenchError(
            f"device is {name!r}, but torch {torch.__version__} finds no CUDA device here. "
            "Use --device cpu, or install an NVIDIA driver and a torch built for CUDA."
        )
    index, count = int(match[1] or 0), torch.cuda.device_count()
    if index >= count:
        known = ", ".join(f"cuda:{i}" for i in range(count))
        raise ExitbenchError(f"device is {name!r}, but this machine has only {known}")
    return torch.device("cuda", index)


def resolve_threads(threads: int) -> int:
    """How many CPU threads to use; 0 stands for the physical cores that this process may use.

    Two hardware threads of one core share its arithmetic units, so more threads than physical
    cores do not make a network faster.

    Raises:
        ExitbenchError: a negative number.
    """
    if threads < 0:
        raise ExitbenchError(
            f"threads is {threads}; it must be 0 (all physical cores) or a positive number"
        )
    if threads:
        return threads
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    usable = usable or 1
    return max(1, min(usable, psutil.cpu_count(logical=False) or usable))


def apply_threads(threads: int) -> int:
    """Let torch compute with ``threads`` CPU threads (0: see ``resolve_threads``); the number set.

    Raises:
        ExitbenchError: a negative number.
    """
    count = resolve_threads(threads)
    torch.set_num_threads(count)
    return count


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 by its own instructions, not by emulation."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # torch has no public question for this that is as narrow: mkldnn's own answer is yes on every
    # AVX-512 CPU, where emulated bfloat16 is slower than float32.
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def has_fast_fp16(device: torch.device) -> bool:
    """Whether the device computes in float16 by its own instructions, at more than fp32's rate."""
    if device.type != "cuda":
        return False
    capability = torch.cuda.get_device_capability(device)
    return capability >= (7, 0) or capability in _FAST_FP16


def has_tf32(device: torch.device) -> bool:
    """Whether the device has TF32: NVIDIA GPUs from Ampere (compute capability 8.0) on."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


class fp32_on_cuda:
    """Within the block, how CUDA multiplies fp32 values; afterwards as it was before.

    torch lets convolutions use TF32 unless told otherwise, so fp32 is fp32 only in such a block.
    What was captured in one keeps its way of computing. A setting that is right already is left
    alone: setting one takes microseconds, as much as a launch.

    Args:
        convolutions: ``ieee``, all bits; or ``tf32``, factors rounded to 10 bits of fraction; None
            where there are none.
        products: the same of matrix products.
    """

    def __init__(self, convolutions: str | None = "ieee", products: str | None = "ieee") -> None:
        self._wanted = (convolutions, products)
        self._before: list[tuple[Any, str]] = []

    def __enter__(self) -> None:
        backends: Any = torch.backends  # some of them have no types
        for each, wanted in zip(
            (backends.cudnn.conv, backends.cuda.matmul), self._wanted, strict=True
        ):
            if wanted is None:
                continue
            # Read by this name: the older allow_tf32 raises once the two were set apart.
            found = each.fp32_precision
            if wanted != ("ieee" if found == "none" else found):
                self._before.append((each, found))
                each.fp32_precision = wanted

    def __exit__(self, *_: object) -> None:
        while self._before:
            each, found = self._before.pop()
            each.fp32_precision = found

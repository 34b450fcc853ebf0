"""Which device and how many threads a network runs on."""

from __future__ import annotations

import os
import re

import psutil
import torch

from .errors import ExitbenchError


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

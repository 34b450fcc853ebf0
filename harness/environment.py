"""The environment of a run: what a number depends on besides the settings."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

PACKAGES = ("torch", "torchvision", "numpy", "pandas", "matplotlib", "nvidia-ml-py")
# What must agree for two measurements to be put side by side.
IDENTITY = ("machine", "cpu", "cores", "gpu", "torch", "threads", "device")


def environment(device: str = "cpu", threads: int | None = None) -> dict[str, Any]:
    """Machine, software and threads, as plain values for the manifest.

    Args:
        device: where the network runs, ``cpu`` or ``cuda:N``.
        threads: CPU threads of the network; torch's setting if None.
    """
    import torch

    memory = psutil.virtual_memory().total
    gpu = None
    if device.startswith("cuda"):
        gpu = torch.cuda.get_device_name(torch.device(device))
    versions = {name: _version(name) for name in PACKAGES}
    return {
        "exitbench": _version("exitbench"),
        "machine": platform.machine(),
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "processors": processors(),
        "memory_gib": round(memory / 2**30, 1),
        "gpu": gpu,
        "device": device,
        "threads": threads or torch.get_num_threads(),
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": versions["torch"],
        "packages": versions,
        "governor": _governor(),
        "load_1min": round(os.getloadavg()[0], 2),
    }


def processors() -> int:
    """Logical CPUs of this machine; a process may be kept to fewer of them."""
    return os.cpu_count() or 1


def working_share(threads: int, of: int | None = None) -> float:
    """The share of a machine's logical CPUs that so many threads keep busy, in (0, 1].

    Watts of a hardware profile are those of all of them, so this is what modelled power at work
    is scaled by.

    Args:
        threads: CPU threads of the network.
        of: logical CPUs of the machine; those of this one if None.
    """
    return min(1.0, threads / (of or processors()))


def unlike(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """In what two environments differ so much that their numbers must not be mixed."""
    return [
        f"{key} ({first.get(key)} and {second.get(key)})"
        for key in IDENTITY
        if first.get(key) != second.get(key)
    ]


def other_machine(
    known: Mapping[str, Any], gpu: str | None = None, root: Path = Path("/")
) -> list[str]:
    """In what the machine of a run differs from this one, as far as is seen without torch.

    Args:
        known: environment of the run.
        gpu: name of the card that the run's would be here; None: it is not looked at.
        root: where ``proc`` is found.
    """
    here = {"machine": platform.machine(), "cpu": cpu_model(root)}
    there = {key: known.get(key) for key in here}
    if gpu is not None:
        # Older drivers leave the maker out of one of the two names.
        here["gpu"] = gpu.removeprefix("NVIDIA ")
        there["gpu"] = str(known.get("gpu")).removeprefix("NVIDIA ")
    return [
        f"{key} ({there[key]} and {value})" for key, value in here.items() if there[key] != value
    ]


def cpu_model(root: Path = Path("/")) -> str:
    """The CPU's name as the kernel gives it; the machine's architecture where it gives none."""
    try:
        text = (root / "proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model"):
            return value.strip()
    return platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _governor() -> str | None:
    path = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return None

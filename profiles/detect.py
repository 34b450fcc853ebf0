"""What this machine is: CPU, memory, GPUs, and which hardware profiles fit it and why."""

from __future__ import annotations

import fnmatch
import platform
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

from .loading import list_profiles, load_profile
from .nvml import Gpu, list_gpus, open_nvml
from .schema import Profile


@dataclass(frozen=True)
class Fit:
    """A profile that fits a machine, and why."""

    profile: Profile
    why: str


@dataclass(frozen=True)
class Machine:
    """What detection found; None is what the machine does not tell.

    Attributes:
        machine: instruction set, as ``uname -m`` prints it.
        cores: physical cores; ``processors`` counts hardware threads.
        virtual: a hypervisor runs this machine, as far as it says so.
        soc: the last item of the device tree's ``compatible``, without its vendor.
        gpu_reason: why there are no GPUs to see; empty where there are.
        fits: shipped profiles that fit, the best first.
    """

    machine: str
    cpu_model: str | None = None
    cpu_vendor: str | None = None
    cores: int | None = None
    processors: int | None = None
    virtual: bool = False
    memory_bytes: int | None = None
    device_tree_model: str | None = None
    device_tree_file: str | None = None
    soc: str | None = None
    gpus: tuple[Gpu, ...] = ()
    gpu_reason: str = ""
    fits: tuple[Fit, ...] = ()

    def fit_for(self, device_class: str) -> Fit | None:
        """The best profile that says the power of this device class (``cpu``, ``gpu``)."""
        return next((fit for fit in self.fits if device_class in fit.profile.power), None)


def detect(
    root: Path = Path("/"), *, nvml: ModuleType | None = None, machine: str | None = None
) -> Machine:
    """Look at the machine.

    Args:
        root: where ``proc`` is found.
        nvml: what answers as ``pynvml``; the installed one if None.
        machine: instruction set; that of this process if None.
    """
    blocks = _cpuinfo(root)
    first = blocks[0] if blocks else {}
    tree = root / "proc/device-tree"
    compatible = _device_tree(tree / "compatible")
    opened = open_nvml(nvml)
    gpus = list_gpus(opened)
    found = Machine(
        machine=machine or platform.machine(),
        cpu_model=first.get("model name"),
        cpu_vendor=first.get("vendor_id"),
        cores=_physical_cores(blocks),
        processors=len(blocks) or None,
        virtual="hypervisor" in first.get("flags", "").split(),
        memory_bytes=_memory_bytes(root),
        device_tree_model=next(iter(_device_tree(tree / "model")), None),
        device_tree_file=next(iter(_device_tree(tree / "nvidia,dtsfilename")), None),
        soc=compatible[-1].rpartition(",")[2] if compatible else None,
        gpus=gpus,
        gpu_reason=opened.reason or ("" if gpus else "NVML sees no GPU"),
    )
    return replace(found, fits=fits_of(found))


def why_it_fits(profile: Profile, machine: Machine) -> str | None:
    """Why this profile fits this machine, in words; None when it does not."""
    for rule in profile.match:
        held = [_held(key, patterns, machine) for key, patterns in rule.patterns.items()]
        if all(held):
            return ", ".join(str(each) for each in held)
    return None


def fits_of(machine: Machine) -> tuple[Fit, ...]:
    """The shipped profiles that fit this machine, the best first."""
    profiles = [load_profile(name) for name in list_profiles()]
    profiles.sort(key=lambda profile: (-profile.priority, profile.name))
    found = [(profile, why_it_fits(profile, machine)) for profile in profiles]
    return tuple(Fit(profile, why) for profile, why in found if why)


def _held(key: str, patterns: tuple[str, ...], machine: Machine) -> str | None:
    if key == "gpu_name":
        values = [gpu.name for gpu in machine.gpus]
    else:
        value = getattr(machine, key)
        values = [] if value is None else [value]
    for value in values:
        for pattern in patterns:
            if fnmatch.fnmatchcase(value, pattern):
                return f"{key} is {value!r}"
    return None


def _cpuinfo(root: Path) -> list[dict[str, str]]:
    blocks = []
    for block in (_read(root / "proc/cpuinfo") or "").split("\n\n"):
        pairs = (line.partition(":") for line in block.splitlines() if ":" in line)
        fields = {key.strip(): value.strip() for key, _, value in pairs}
        if "processor" in fields:
            blocks.append(fields)
    return blocks


def _physical_cores(blocks: list[dict[str, str]]) -> int | None:
    cores = {(each.get("physical id"), each["core id"]) for each in blocks if "core id" in each}
    return len(cores) or None


def _memory_bytes(root: Path) -> int | None:
    for line in (_read(root / "proc/meminfo") or "").splitlines():
        words = line.split()
        if words[:1] == ["MemTotal:"] and len(words) >= 2 and words[1].isdigit():
            return int(words[1]) * 1024
    return None


def _device_tree(path: Path) -> list[str]:
    # Strings of a device tree end in NUL; a list of them is separated by NUL.
    return [item.strip() for item in (_read(path) or "").split("\0") if item.strip()]


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None

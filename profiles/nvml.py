"""NVIDIA's management library, opened, or the reason why it cannot be."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType

_NEEDED = ("nvmlInit", "NVMLError", "nvmlDeviceGetCount", "nvmlDeviceGetTotalEnergyConsumption")


@dataclass(frozen=True)
class Nvml:
    """The opened library.

    Attributes:
        library: the module that answers as ``pynvml``; None when it cannot be used.
        reason: why it cannot be used; empty when it can.
        remedy: what to do about it; may be empty.
    """

    library: ModuleType | None
    reason: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class Gpu:
    """One card as NVML sees it; ``index`` counts in PCI order."""

    index: int
    name: str
    uuid: str
    memory_bytes: int | None
    mig: bool


def open_nvml(module: ModuleType | None = None) -> Nvml:
    """The library, initialised.

    Args:
        module: what answers as ``pynvml``; the installed one if None.
    """
    if module is None:
        try:
            module = importlib.import_module("pynvml")
        except ImportError:
            return Nvml(None, "the package nvidia-ml-py is missing", "pip install nvidia-ml-py")
    missing = [name for name in _NEEDED if not hasattr(module, name)]
    if missing:
        return Nvml(
            None,
            f"the installed pynvml is not NVIDIA's nvidia-ml-py: it has no {missing[0]}",
            "pip uninstall -y pynvml nvidia-ml-py && pip install nvidia-ml-py",
        )
    try:
        module.nvmlInit()
    except module.NVMLError as error:
        return Nvml(None, f"NVML does not start: {error}", "with an NVIDIA GPU, install its driver")
    return Nvml(module)


def list_gpus(nvml: Nvml) -> tuple[Gpu, ...]:
    """The cards of this machine in PCI order; none where NVML cannot be used.

    A card that does not answer is left out.
    """
    library = nvml.library
    if library is None:
        return ()
    found = []
    try:
        count = library.nvmlDeviceGetCount()
    except library.NVMLError:
        return ()
    for index in range(count):
        try:
            found.append(describe(library, library.nvmlDeviceGetHandleByIndex(index), index))
        except library.NVMLError:
            continue
    return tuple(found)


def describe(library: ModuleType, handle: object, index: int) -> Gpu:
    """Name, UUID, memory and MIG mode of one card.

    Raises:
        NVMLError: the card has no name or no UUID to tell.
    """
    try:
        memory_bytes = int(library.nvmlDeviceGetMemoryInfo(handle).total)
    except library.NVMLError:
        memory_bytes = None
    return Gpu(
        index=index,
        name=_text(library.nvmlDeviceGetName(handle)),
        uuid=_text(library.nvmlDeviceGetUUID(handle)),
        memory_bytes=memory_bytes,
        mig=_mig_mode(library, handle),
    )


def _mig_mode(library: ModuleType, handle: object) -> bool:
    try:
        current, _pending = library.nvmlDeviceGetMigMode(handle)
    except library.NVMLError:
        return False
    return bool(current)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value

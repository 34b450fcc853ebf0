"""NVIDIA's management library, opened, or the reason why it cannot be."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any

_NEEDED = (
    "nvmlInit",
    "NVMLError",
    "nvmlDeviceGetCount",
    "nvmlDeviceGetHandleByIndex",
    "nvmlDeviceGetName",
    "nvmlDeviceGetUUID",
)
_NEWER = "nvmlDeviceGetTotalEnergyConsumption"
"""What nvidia-ml-py has since 2018; a module with all the others is NVIDIA's, but older."""


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
    """One card as NVML sees it.

    Attributes:
        index: counts in PCI order.
        pci: place on the bus, ``0000:3b:00.0``; empty where NVML does not tell it.
    """

    index: int
    name: str
    uuid: str
    memory_bytes: int | None
    mig: bool
    pci: str = ""


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
    if not hasattr(module, _NEWER):
        return Nvml(
            None,
            f"the installed nvidia-ml-py is too old: it has no {_NEWER}",
            "pip install --upgrade nvidia-ml-py",
        )
    try:
        module.nvmlInit()
    except module.NVMLError as error:
        return Nvml(None, f"NVML does not start: {error}", "with an NVIDIA GPU, install its driver")
    return Nvml(module)


def ask(library: ModuleType, function: str, *arguments: object) -> Any:
    """What a function of the library answers; None where it, the driver or the card has none."""
    found = getattr(library, function, None)
    if found is None:
        return None
    # A driver older than the library lacks newer versions of some functions; since 2022 the
    # library answers that with an error that is none of its others.
    older = getattr(library, "NVMLLibraryMismatchError", library.NVMLError)
    try:
        return found(*arguments)
    except (library.NVMLError, older):
        return None


def list_gpus(nvml: Nvml) -> tuple[Gpu, ...]:
    """The cards of this machine in PCI order; none where NVML cannot be used.

    A card that does not answer is left out.
    """
    library = nvml.library
    if library is None:
        return ()
    found = []
    for index in range(ask(library, "nvmlDeviceGetCount") or 0):
        try:
            found.append(describe(library, library.nvmlDeviceGetHandleByIndex(index), index))
        except library.NVMLError:
            continue
    return tuple(found)


def describe(library: ModuleType, handle: object, index: int) -> Gpu:
    """Name, UUID, memory, MIG mode and PCI place of one card.

    Raises:
        NVMLError: the card has no name or no UUID to tell.
    """
    memory = ask(library, "nvmlDeviceGetMemoryInfo", handle)
    place = ask(library, "nvmlDeviceGetPciInfo", handle)
    mig = ask(library, "nvmlDeviceGetMigMode", handle)
    return Gpu(
        index=index,
        name=_text(library.nvmlDeviceGetName(handle)),
        uuid=_text(library.nvmlDeviceGetUUID(handle)),
        memory_bytes=None if memory is None else int(memory.total),
        mig=mig is not None and bool(mig[0]),
        pci="" if place is None else pci_place(_text(place.busId)),
    )


def pci_place(text: str) -> str:
    """A PCI place in its usual short form, ``0000:3b:00.0``; empty where it is none.

    NVML writes the domain with eight digits, CUDA with four, both in capitals or not.
    """
    domain, _, rest = text.partition(":")
    bus, _, slot = rest.partition(":")
    device, _, function = slot.partition(".")
    try:
        numbers = [int(each, 16) for each in (domain, bus, device, function)]
    except ValueError:
        return ""
    return "{:04x}:{:02x}:{:02x}.{:x}".format(*numbers)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value

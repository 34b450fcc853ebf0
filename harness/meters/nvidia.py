"""GPU energy from NVML's total-energy counter.

``nvmlDeviceGetTotalEnergyConsumption`` counts millijoules of the whole board since the driver was
loaded (Volta or newer). Whether a card has it is found by calling it, not by its architecture. It
counts everything on the card, other processes included, and it is all a card has: a MIG slice has
no counter of its own.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType

from ...profiles.nvml import Gpu, Nvml, list_gpus
from .base import Clock, Reading, Source, Unavailable, measured_period_s, too_short

NAME = "NVML energy counter"
PCI_ORDER = "PCI_BUS_ID"


@dataclass(frozen=True)
class NvidiaMeter:
    """The energy counter of one card."""

    gpu: Gpu
    library: ModuleType
    handle: object
    update_period_s: float
    clock: Clock

    @property
    def name(self) -> str:
        """The meter with the card it reads."""
        return f"{NAME} of GPU {self.gpu.index} ({self.gpu.name})"

    @property
    def domains(self) -> tuple[str, ...]:
        """The whole card."""
        return ("gpu",)

    @property
    def source(self) -> Source:
        """Always ``measured``."""
        return "measured"

    def read_mj(self) -> int:
        """The counter, in millijoules.

        Raises:
            NVMLError: the driver does not answer.
        """
        return int(self.library.nvmlDeviceGetTotalEnergyConsumption(self.handle))

    def open(self) -> NvidiaWindow:
        """Start a window; one that fails to start is closed unresolved."""
        try:
            start_mj, note = self.read_mj(), ""
        except self.library.NVMLError as error:
            start_mj, note = 0, f"{self.name} could not be read: {error}"
        return NvidiaWindow(self, start_mj, self.clock(), note)


@dataclass(frozen=True)
class NvidiaWindow:
    """An open window of a card's counter."""

    meter: NvidiaMeter
    start_mj: int
    opened_s: float
    note: str

    def close(self) -> Reading:
        """The energy since the window was opened."""
        meter = self.meter
        seconds = meter.clock() - self.opened_s
        moved_mj, note = 0, self.note
        if not note:
            try:
                moved_mj = meter.read_mj() - self.start_mj
            except meter.library.NVMLError as error:
                note = f"{meter.name} could not be read: {error}"
        note = note or too_short(seconds, meter.update_period_s) or _distrust(meter, moved_mj)
        return Reading(seconds, {"gpu": None if note else moved_mj * 1e-3}, "measured", note)


def _distrust(meter: NvidiaMeter, moved_mj: int) -> str:
    if moved_mj < 0:
        return f"{meter.name} went backwards: the driver was loaded anew"
    return f"{meter.name} did not move" if moved_mj == 0 else ""


def find_nvidia(
    opened: Nvml,
    index: int,
    environ: Mapping[str, str],
    *,
    uuid: str | None = None,
    clock: Clock = time.perf_counter,
) -> NvidiaMeter | Unavailable:
    """The meter of the card that CUDA calls ``cuda:index``, or why there is none.

    Args:
        opened: the library.
        index: CUDA's number of the card in this process.
        environ: where ``CUDA_VISIBLE_DEVICES`` and ``CUDA_DEVICE_ORDER`` are looked up.
        uuid: the card's UUID as CUDA tells it; it goes before the environment.
        clock: a monotonic clock in seconds.
    """
    if opened.library is None:
        return _unavailable(opened.reason, opened.remedy)
    gpu = locate(list_gpus(opened), index, environ, uuid)
    return gpu if isinstance(gpu, Unavailable) else card_meter(opened, gpu, clock=clock)


def card_meter(
    opened: Nvml, gpu: Gpu, *, clock: Clock = time.perf_counter
) -> NvidiaMeter | Unavailable:
    """The meter of one card, proven by calling its counter, or why there is none."""
    library = opened.library
    if library is None:
        return _unavailable(opened.reason, opened.remedy)
    if gpu.mig:
        return _mig(f"GPU {gpu.index} ({gpu.name})")
    try:
        handle = library.nvmlDeviceGetHandleByIndex(gpu.index)
        meter = NvidiaMeter(gpu, library, handle, 0.0, clock)
        period_s = measured_period_s(meter.read_mj, clock, updates=10)
    except library.NVMLError as error:
        return _unavailable(f"GPU {gpu.index} ({gpu.name}) has no energy counter: {error}")
    if period_s is None:
        return _unavailable(f"the energy counter of GPU {gpu.index} ({gpu.name}) does not move")
    return NvidiaMeter(gpu, library, handle, period_s, clock)


def locate(
    gpus: Sequence[Gpu], index: int, environ: Mapping[str, str], uuid: str | None = None
) -> Gpu | Unavailable:
    """The card behind ``cuda:index``: by its UUID, else by ``CUDA_VISIBLE_DEVICES``.

    A list of numbers is only understood where NVML and CUDA count alike: cards of one kind, or
    ``CUDA_DEVICE_ORDER=PCI_BUS_ID``.
    """
    if uuid is not None:
        return _by_uuid(gpus, uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}")
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    entries = [str(gpu.index) for gpu in gpus] if visible is None else _entries(visible)
    if index >= len(entries):
        listed = "" if visible is None else f" in CUDA_VISIBLE_DEVICES={visible}"
        return _unavailable(f"there is no cuda:{index}: {len(entries)} GPUs are visible{listed}")
    entry = entries[index]
    if not entry.isdigit():
        return _by_uuid(gpus, entry)
    kinds = {gpu.name for gpu in gpus}
    if len(kinds) > 1 and environ.get("CUDA_DEVICE_ORDER") != PCI_ORDER:
        return _unavailable(
            f"which card is cuda:{index} is not certain among {', '.join(sorted(kinds))}",
            f"export CUDA_DEVICE_ORDER={PCI_ORDER}",
        )
    found = [gpu for gpu in gpus if gpu.index == int(entry)]
    return found[0] if found else _unavailable(f"NVML knows no GPU {entry}")


def _entries(visible: str) -> list[str]:
    # CUDA ignores the first entry that it does not understand, and all after it.
    entries = []
    for entry in (each.strip() for each in visible.split(",")):
        if not (entry.isdigit() or entry.startswith(("GPU-", "MIG-"))):
            break
        entries.append(entry)
    return entries


def _by_uuid(gpus: Sequence[Gpu], uuid: str) -> Gpu | Unavailable:
    if uuid.startswith("MIG-"):
        return _mig(uuid)
    found = [gpu for gpu in gpus if gpu.uuid.startswith(uuid)]
    if len(found) == 1:
        return found[0]
    known = ", ".join(gpu.uuid for gpu in gpus) or "none"
    problem = "fits several GPUs" if found else "is no GPU that NVML knows"
    return _unavailable(f"{uuid} {problem}: {known}")


def _mig(what: str) -> Unavailable:
    return _unavailable(
        f"{what} is divided into MIG slices: the energy counter counts the whole card"
    )


def _unavailable(reason: str, remedy: str = "") -> Unavailable:
    return Unavailable(NAME, ("gpu",), reason, remedy)

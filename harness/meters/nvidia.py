"""GPU energy from NVML's total-energy counter.

``nvmlDeviceGetTotalEnergyConsumption`` counts millijoules of the whole board since the driver was
loaded (Volta or newer). Whether a card has it is found by calling it, not by its architecture. It
counts everything on the card, other processes included, and it is all a card has: a MIG slice has
no counter of its own. What a window notes beside its energy is told in ``card.py``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import ModuleType

from ...profiles.nvml import Gpu, Nvml, list_gpus, pci_place
from .base import Clock, Reading, Source, Unavailable
from .card import FEW_LOOKS, CardWatch, conditions, flags, second_opinion
from .counters import Counter, Sleep, Unreadable, find_period
from .edges import EdgeWindow
from .sampled import Watch

NAME = "NVML energy counter"
PCI_ORDER = "PCI_BUS_ID"


class NvidiaMeter:
    """The energy counter of one card."""

    def __init__(
        self, gpu: Gpu, counter: Counter, card: CardWatch, clock: Clock, sleep: Sleep = time.sleep
    ) -> None:
        self.gpu, self.counter, self.card = gpu, counter, card
        self.clock, self.sleep = clock, sleep

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

    @property
    def update_period_s(self) -> float:
        """Time between two updates of the counter, as found by polling."""
        return self.counter.period.seconds

    def open(self) -> NvidiaWindow:
        """Start a window, right after a tick of the counter."""
        return NvidiaWindow(self)


class NvidiaWindow:
    """An open window of a card's counter."""

    def __init__(self, meter: NvidiaMeter) -> None:
        self.meter = meter
        self.company = meter.card.company()
        self.watch: Watch = meter.card.sampler.watch()
        self.edges = EdgeWindow([meter.counter], meter.clock, meter.sleep)
        self.watch.begin()

    def stop(self) -> None:
        """Set the closing moment and read, without waiting for a tick."""
        self.edges.stop()
        self.watch.stop()

    def close(self) -> Reading:
        """The energy since the window was opened."""
        self.stop()
        gpu, (share,) = self.meter.gpu, self.edges.shares()
        watched = self.watch.close()
        last = self.meter.card.company()
        told = [each for each in (self.company, last) if each is not None]
        company = frozenset().union(*told) if told else None
        checks, apart = second_opinion(gpu, watched, share.joules)
        found = conditions(watched, company)
        unchecked = self.meter.card.unchecked or ("" if checks else FEW_LOOKS)
        if unchecked:
            found["gpu_power_check"] = unchecked
        return Reading(
            self.edges.seconds,
            {"gpu": share.joules},
            "measured",
            share.note,
            uncertainty_j={} if share.joules is None else {"gpu": share.uncertainty_j},
            flags=(*flags(gpu, watched, company), *apart),
            conditions=found,
            checks=checks,
            overhead_s=self.edges.overhead_s + self.watch.overhead_s,
        )


def find_nvidia(
    opened: Nvml,
    index: int,
    environ: Mapping[str, str],
    *,
    uuid: str | None = None,
    clock: Clock = time.perf_counter,
    sleep: Sleep = time.sleep,
) -> NvidiaMeter | Unavailable:
    """The meter of the card that CUDA calls ``cuda:index``, or why there is none.

    Args:
        opened: the library.
        index: CUDA's number of the card in this process.
        environ: where ``CUDA_VISIBLE_DEVICES`` and ``CUDA_DEVICE_ORDER`` are looked up.
        uuid: the card's UUID or PCI place as CUDA tells it; it goes before the environment.
        clock: a monotonic clock in seconds.
        sleep: waits so many seconds of that clock.
    """
    if opened.library is None:
        return _unavailable(opened.reason, opened.remedy)
    gpu = locate(list_gpus(opened), index, environ, uuid)
    if isinstance(gpu, Unavailable):
        return gpu
    return card_meter(opened, gpu, clock=clock, sleep=sleep)


def card_meter(
    opened: Nvml, gpu: Gpu, *, clock: Clock = time.perf_counter, sleep: Sleep = time.sleep
) -> NvidiaMeter | Unavailable:
    """The meter of one card, proven by calling its counter, or why there is none."""
    library = opened.library
    if library is None:
        return _unavailable(opened.reason, opened.remedy)
    if gpu.mig:
        return _mig(f"GPU {gpu.index} ({gpu.name})")
    try:
        handle = library.nvmlDeviceGetHandleByIndex(gpu.index)
        library.nvmlDeviceGetTotalEnergyConsumption(handle)
    except library.NVMLError as error:
        return _unavailable(f"GPU {gpu.index} ({gpu.name}) has no energy counter: {error}")
    counter = _counter(library, handle, gpu, clock)
    try:
        period = find_period(counter, clock, sleep)
    except Unreadable as error:
        return _unavailable(str(error))
    if period is None:
        return _unavailable(f"the energy counter of GPU {gpu.index} ({gpu.name}) does not move")
    counter.period = period
    return NvidiaMeter(gpu, counter, CardWatch(library, handle, gpu, clock), clock, sleep)


def _counter(library: ModuleType, handle: object, gpu: Gpu, clock: Clock) -> Counter:
    label = f"{NAME} of GPU {gpu.index} ({gpu.name})"

    def raw_mj() -> int:
        try:
            return int(library.nvmlDeviceGetTotalEnergyConsumption(handle))
        except library.NVMLError as error:
            raise Unreadable(f"{label} could not be read: {error}") from error

    return Counter(label, raw_mj, 1e-3, clock, reset="the driver was loaded anew")


def locate(
    gpus: Sequence[Gpu], index: int, environ: Mapping[str, str], uuid: str | None = None
) -> Gpu | Unavailable:
    """The card behind ``cuda:index``: by its UUID or PCI place, else ``CUDA_VISIBLE_DEVICES``.

    A list of numbers is only understood where NVML and CUDA count alike: cards of one kind, or
    ``CUDA_DEVICE_ORDER=PCI_BUS_ID``.
    """
    if uuid is not None and pci_place(uuid):
        return _by_pci(gpus, pci_place(uuid))
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


def _by_pci(gpus: Sequence[Gpu], place: str) -> Gpu | Unavailable:
    found = [gpu for gpu in gpus if gpu.pci == place]
    return found[0] if found else _unavailable(f"NVML knows no GPU at PCI place {place}")


def _mig(what: str) -> Unavailable:
    return _unavailable(
        f"{what} is divided into MIG slices: the energy counter counts the whole card"
    )


def _unavailable(reason: str, remedy: str = "") -> Unavailable:
    return Unavailable(NAME, ("gpu",), reason, remedy)

"""Clocks of an NVIDIA card, locked through NVML (Volta or newer, root only).

A lock is set with its lower and upper limit at one clock. Whether a lock was there before cannot be
read, so putting back means taking the lock off, which is the driver's default; a lock that someone
else had set before is then gone.

A lock may be answered with success and have no effect (memory of A100 and A800), so the clock is
read back. A card that is idle or throttled runs below its lock; that is no fault of the lock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from ...profiles.nvml import Gpu, list_gpus, open_nvml
from ..meters.base import Unavailable
from ..meters.nvidia import locate
from .base import ClockError, Domain
from .sysfs import AS_ROOT, exact, undoing

KIND = "nvml"
SETTLE_S = 0.5
DRIFT_MHZ = 15.0
"""One step of the cards' clocks: a card moves by as much with its temperature under a lock."""

_LOOK_EVERY_S = 0.01
_NO_PERMISSION = 4
_NOT_SUPPORTED = 3
_IDLE = 0x1
# Software power cap, hardware slowdown, software and hardware thermal slowdown, power brake.
_THROTTLED = 0x4 | 0x8 | 0x20 | 0x40 | 0x80


@dataclass(frozen=True)
class _Calls:
    lock: str
    reset: str
    clock: int


_CALLS: Mapping[Domain, _Calls] = {
    "gpu": _Calls("nvmlDeviceSetGpuLockedClocks", "nvmlDeviceResetGpuLockedClocks", 0),
    "memory": _Calls("nvmlDeviceSetMemoryLockedClocks", "nvmlDeviceResetMemoryLockedClocks", 2),
}
"""``clock`` is NVML_CLOCK_GRAPHICS and NVML_CLOCK_MEM of nvml.h."""


@dataclass(frozen=True)
class NvmlActuator:
    """The graphics or the memory clock of one card.

    ``listed`` are the clocks in MHz that it lists, rising; graphics clocks are those at the top
    memory clock.
    """

    library: ModuleType
    handle: object
    gpu: Gpu
    sets: Domain
    listed: tuple[float, ...]
    settle_s: float = SETTLE_S
    sleep: Callable[[float], None] = time.sleep

    @property
    def name(self) -> str:
        """The clock and the card."""
        clock = "graphics" if self.sets == "gpu" else "memory"
        return f"NVML {clock} clock of GPU {self.gpu.index} ({self.gpu.name})"

    @property
    def domain(self) -> Domain:
        """``gpu`` or ``memory``."""
        return self.sets

    @property
    def simulated(self) -> bool:
        """Never."""
        return False

    def levels(self) -> tuple[float, ...]:
        """Clocks in MHz that the card listed when it was found."""
        return self.listed

    def current(self) -> float | None:
        """MHz at which the card runs now."""
        try:
            return float(self.library.nvmlDeviceGetClockInfo(self.handle, _CALLS[self.sets].clock))
        except self.library.NVMLError:
            return None

    def snapshot(self) -> Mapping[str, Any]:
        """The card: whether it had a lock cannot be read."""
        return {"kind": KIND, "domain": self.sets, "uuid": self.gpu.uuid}

    def set(self, value: float) -> None:
        """Lock the clock at a level, and wait until it is in force.

        Raises:
            ClockError: as every actuator says.
        """
        mhz = round(exact(self.listed, value, lambda: self.name))
        if len(self.listed) == 1:
            return
        # A lock that is refused changes nothing, so there is nothing to undo either.
        self._call(_CALLS[self.sets].lock, mhz, mhz)
        with undoing(self):
            self._check(mhz)

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Take the lock off.

        Raises:
            ClockError: the driver refused.
        """
        if len(self.listed) > 1:
            self._call(_CALLS[self.sets].reset)

    def _call(self, name: str, *arguments: int) -> None:
        library = self.library
        function = getattr(library, name, None)
        if function is None:
            raise ClockError(
                f"{self.name}: this version of nvidia-ml-py has no {name}: "
                "pip install --upgrade nvidia-ml-py"
            )
        try:
            function(self.handle, *arguments)
        except library.NVMLError as error:
            raise ClockError(f"{self.name}: {_refusal(error)}") from error

    def _check(self, mhz: int) -> None:
        found = self.current()
        for _ in range(round(self.settle_s / _LOOK_EVERY_S)):
            if found is None or abs(found - mhz) <= DRIFT_MHZ:
                return
            # A card that idles shows no clock to wait for, and a request would wait with it.
            if found < mhz and self._reasons() & _IDLE:
                return
            self.sleep(_LOOK_EVERY_S)
            found = self.current()
        if found is None or abs(found - mhz) <= DRIFT_MHZ:
            return
        if found < mhz and self._reasons() & (_IDLE | _THROTTLED):
            return
        raise ClockError(
            f"{self.name}: the driver accepted a lock at {mhz} MHz, but the card runs at "
            f"{found:g} MHz: the lock has no effect on this card"
        )

    def _reasons(self) -> int:
        """Why the card does not run faster, as bits of nvml.h; 0 where it does not tell."""
        for name in (
            "nvmlDeviceGetCurrentClocksEventReasons",
            "nvmlDeviceGetCurrentClocksThrottleReasons",
        ):
            function = getattr(self.library, name, None)
            if function is not None:
                try:
                    return int(function(self.handle))
                except self.library.NVMLError:
                    continue
        return 0


def _refusal(error: Exception) -> str:
    code = getattr(error, "value", None)
    if code == _NO_PERMISSION:
        return (
            "no permission to lock clocks: it needs root, or CAP_SYS_ADMIN in a container "
            f"(docker run --cap-add SYS_ADMIN); {AS_ROOT}"
        )
    if code == _NOT_SUPPORTED:
        return "this card does not support locking this clock"
    return f"the driver refused: {error}"


def find_nvml(
    domain: Domain,
    index: int,
    environ: Mapping[str, str],
    *,
    uuid: str | None = None,
    nvml: ModuleType | None = None,
) -> NvmlActuator:
    """A clock of the card that CUDA calls ``cuda:index``.

    Whether this process may lock it is only found by locking.

    Args:
        domain: ``gpu`` or ``memory``.
        index: CUDA's number of the card in this process.
        environ: where ``CUDA_VISIBLE_DEVICES`` is looked up.
        uuid: the card's UUID as CUDA tells it; it goes before the environment.
        nvml: what answers as ``pynvml``; the installed one if None.

    Raises:
        ClockError: it cannot be set, and why.
    """
    opened = open_nvml(nvml)
    if opened.library is None:
        remedy = f": {opened.remedy}" if opened.remedy else ""
        raise ClockError(f"{opened.reason}{remedy}")
    found = locate(list_gpus(opened), index, environ, uuid)
    if isinstance(found, Unavailable):
        raise ClockError(f"{found.words}")
    return _actuator(opened.library, found, domain)


def card_by_uuid(domain: Domain, uuid: str, nvml: ModuleType | None = None) -> NvmlActuator:
    """A clock of the card with this UUID.

    Raises:
        ClockError: NVML does not see the card.
    """
    opened = open_nvml(nvml)
    found = [gpu for gpu in list_gpus(opened) if gpu.uuid == uuid]
    if opened.library is None or not found:
        why = opened.reason or "NVML sees no such card"
        raise ClockError(f"the clocks of the card {uuid} cannot be put back: {why}")
    return _actuator(opened.library, found[0], domain)


def _actuator(library: ModuleType, gpu: Gpu, domain: Domain) -> NvmlActuator:
    if gpu.mig:
        raise ClockError(
            f"the clocks of GPU {gpu.index} ({gpu.name}) cannot be set: it is divided into MIG "
            "slices, and they all share its clocks"
        )
    try:
        handle = library.nvmlDeviceGetHandleByIndex(gpu.index)
        clocks = list(library.nvmlDeviceGetSupportedMemoryClocks(handle))
        if domain == "gpu" and clocks:
            top = max(clocks)
            clocks = list(library.nvmlDeviceGetSupportedGraphicsClocks(handle, top))
    except library.NVMLError as error:
        raise ClockError(
            f"GPU {gpu.index} ({gpu.name}) does not list the clocks that can be set: {error}"
        ) from error
    if not clocks:
        raise ClockError(f"GPU {gpu.index} ({gpu.name}) lists no clocks that can be set")
    levels = tuple(sorted({float(clock) for clock in clocks}))
    return NvmlActuator(library, handle, gpu, domain, levels)

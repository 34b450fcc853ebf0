"""How an NVIDIA card fares while its energy is counted: power, clocks, temperature, company.

Looked at a few times a second in a thread, because a card that is throttled in the middle of a
window looks well at both ends. Whatever a card or driver does not tell is left out.

Power is a second opinion on the energy counter, and only instant power is one: the field of instant
power where the driver has it (about 2023 and newer); else ``nvmlDeviceGetPowerUsage`` on cards
where that is not an average over a second. NVML's manual: it is one from Ampere on, GA100 excepted.
"""

from __future__ import annotations

import os
import re
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ...profiles.nvml import Gpu, ask
from .base import Clock
from .sampled import Sample, Sampler, Watched

LOOKS_PER_S = 4.0
MOST_SHARE = 0.01
"""Of the time that looking may take: some cards need half a second for one answer."""
DIVERGENCE = 0.10
"""Beyond which the counter and the sampled power are said to lie apart."""
CHECK = "NVML instant power"
FEW_LOOKS = "its power is not checked: too few looks at it in a window so short"

_FIELD_POWER_INSTANT = 186  # NVML_FI_DEV_POWER_INSTANT, nvml.h
_LEAST_LOOKS = 4  # samples of power that make a second opinion, the two at the edges included
_SURE_LOOKS = 12  # that flag a window by itself; of fewer only all windows together tell
_CLOCK_SM, _CLOCK_MEMORY, _SENSOR_GPU = 1, 2, 0  # nvmlClockType_t, nvmlTemperatureSensors_t
_AMPERE, _VOLTA = 7, 5  # NVML_DEVICE_ARCH_*
_GA100 = re.compile(r"\b(A100X?|A800|A30X?|CMP 170HX)\b")  # an RTX A1000 is none
_SIGNED_INT = 5  # NVML_VALUE_TYPE_SIGNED_INT

# Bits of nvmlClocksEventReasons, nvml.h. Idle, set clocks and synchronised boost are no throttling.
_THROTTLING: Mapping[int, str] = {
    0x04: "software power cap",
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
    0x200: "board limit",
    0x400: "reliability voltage",
}


def power_reader(
    library: ModuleType, handle: object, gpu: Gpu
) -> tuple[Callable[[], float | None] | None, str]:
    """What reads the card's instant power in watts, proven by a call; or why nothing does."""

    def field() -> float | None:
        values = ask(library, "nvmlDeviceGetFieldValues", handle, [_FIELD_POWER_INSTANT])
        if not values or values[0].nvmlReturn != 0:
            return None
        value = values[0].value
        return (value.siVal if values[0].valueType == _SIGNED_INT else value.uiVal) * 1e-3

    def usage() -> float | None:
        milliwatts = ask(library, "nvmlDeviceGetPowerUsage", handle)
        return None if milliwatts is None else milliwatts * 1e-3

    if field() is not None:
        return field, ""
    architecture = ask(library, "nvmlDeviceGetArchitecture", handle)
    instant = architecture is not None and (
        _VOLTA <= architecture < _AMPERE
        or (architecture == _AMPERE and _GA100.search(gpu.name) is not None)
    )
    if not instant:
        return None, "its power is not checked: the driver has no instant power, only an average"
    if usage() is None:
        return None, "its power is not checked: the driver does not tell it"
    return usage, ""


class CardWatch:
    """Looks at one card while a window is open.

    Args:
        library, handle: the card, as ``pynvml`` knows it.
        gpu: what it is.
        clock: a monotonic clock in seconds.
        threaded: look in a thread; else only at the edges and when asked.
    """

    def __init__(
        self, library: ModuleType, handle: object, gpu: Gpu, clock: Clock, threaded: bool = True
    ) -> None:
        self._library, self._handle, self._gpu = library, handle, gpu
        self._power, self.unchecked = power_reader(library, handle, gpu)
        self.sampler = Sampler(
            self._look, 1 / LOOKS_PER_S, clock, most_share=MOST_SHARE, threaded=threaded
        )

    def _look(self) -> tuple[dict[str, float], dict[str, Any]]:
        library, handle = self._library, self._handle
        watts = self._power() if self._power is not None else None
        reasons = ask(library, "nvmlDeviceGetCurrentClocksEventReasons", handle)
        if reasons is None:
            reasons = ask(library, "nvmlDeviceGetCurrentClocksThrottleReasons", handle)
        state = {
            "sm_mhz": ask(library, "nvmlDeviceGetClockInfo", handle, _CLOCK_SM),
            "memory_mhz": ask(library, "nvmlDeviceGetClockInfo", handle, _CLOCK_MEMORY),
            "temperature_c": ask(library, "nvmlDeviceGetTemperature", handle, _SENSOR_GPU),
            "throttle": reasons,
            "power_limit_mw": ask(library, "nvmlDeviceGetEnforcedPowerLimit", handle),
        }
        return ({} if watts is None else {"gpu": watts}), state

    def company(self) -> frozenset[int] | None:
        """Process ids of the others on the card; None where NVML does not tell."""
        listed: set[int] = set()
        told = False
        for kind in ("Compute", "Graphics"):
            name = f"nvmlDeviceGet{kind}RunningProcesses"
            found = ask(self._library, name, self._handle)
            if found is None:  # drivers before 510
                found = ask(self._library, f"{name}_v2", self._handle)
            if found is not None:
                told = True
                listed |= {int(process.pid) for process in found}
        return frozenset(_others(listed)) if told else None


def _others(listed: set[int]) -> set[int]:
    """Without this process. In a container NVML may list it under a number of the host."""
    own = os.getpid()
    if own in listed:
        return listed - {own}
    torch = sys.modules.get("torch")
    unknown = sorted(pid for pid in listed if not Path(f"/proc/{pid}").exists())
    if unknown and torch is not None and torch.cuda.is_initialized():
        return listed - {unknown[0]}
    return listed


def conditions(watched: Watched, company: frozenset[int] | None) -> dict[str, Any]:
    """What the looks at a card have seen, by name; what it does not tell is not a key."""
    found: dict[str, Any] = {}
    inside = _inside(watched)
    for name in ("sm_mhz", "memory_mhz"):
        values = _values(inside, name)
        if values:
            found[f"gpu_{name}"] = statistics.median(values)
            found[f"gpu_{name}_lowest"] = min(values)
    limits = _values(inside, "power_limit_mw")
    if limits:
        found["gpu_power_limit_w"] = min(limits) * 1e-3
    temperatures = _values(watched.samples, "temperature_c")
    if temperatures:
        found["gpu_temperature_c"] = max(temperatures)
    if _values(watched.samples, "throttle"):
        found["gpu_throttle"] = sorted(_throttling(watched.samples))
    if company is not None:
        found["gpu_other_processes"] = sorted(company)
    return found


def flags(gpu: Gpu, watched: Watched, company: frozenset[int] | None) -> tuple[str, ...]:
    """What makes the window a bad one: the card was throttled, or others used it."""
    found = []
    seen = _throttling(watched.samples)
    if seen:
        looks = len(_values(watched.samples, "throttle"))
        often = sum(1 for each in watched.samples if _throttling([each]))
        reasons = ", ".join(sorted(seen))
        found.append(f"GPU {gpu.index} was throttled ({reasons}) at {often} of {looks} looks")
    if company:
        pids = ", ".join(map(str, sorted(company)))
        found.append(f"GPU {gpu.index} was shared: other processes were on it (pid {pids})")
    return tuple(found)


def second_opinion(
    gpu: Gpu, watched: Watched, joules: float | None
) -> tuple[dict[str, float], tuple[str, ...]]:
    """The energy by sampled power, and a flag where it lies far from that of the counter.

    Far is beyond a tenth, and further than what so few samples may be off by themselves.
    """
    powers = [each for each in watched.samples if "gpu" in each.watts]
    if len(powers) < _LEAST_LOOKS or watched.gap:
        return {}, ()
    sampled_j, uncertain_j = watched.joules("gpu")
    if joules is None or len(powers) < _SURE_LOOKS:
        return {CHECK: sampled_j}, ()
    if abs(sampled_j - joules) <= max(DIVERGENCE * joules, uncertain_j):
        return {CHECK: sampled_j}, ()
    return {CHECK: sampled_j}, (
        f"the energy counter of GPU {gpu.index} says {joules:.4g} J, its power sampled "
        f"{len(powers)} times {sampled_j:.4g} J: they differ by "
        f"{abs(sampled_j - joules) / joules:.0%}",
    )


def _inside(watched: Watched) -> Sequence[Sample]:
    # The looks at the edges see a card that has not begun or has ended; the others tell more.
    inside = [s for s in watched.samples if watched.opened_s <= s.middle_s <= watched.closed_s]
    return inside or watched.samples


def _values(samples: Sequence[Sample], name: str) -> list[Any]:
    return [each.state[name] for each in samples if each.state.get(name) is not None]


def _throttling(samples: Sequence[Sample]) -> set[str]:
    return {
        words
        for mask in _values(samples, "throttle")
        for bit, words in _THROTTLING.items()
        if mask & bit
    }

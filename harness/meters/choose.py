"""Which meters a run gets, chosen by themselves and said aloud.

===========  ==================================  ===========================================
run on       the device itself                   beside it
===========  ==================================  ===========================================
``cpu``      RAPL, else modelled                 nothing: an idle GPU is not the run's doing
``cuda:N``   NVML counter, else modelled         CPU by RAPL; modelled only beside a
                                                 modelled GPU, unavailable beside a measured
===========  ==================================  ===========================================

A measured GPU is never topped up with a modelled CPU: the total then covers the GPU only, and
says so.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from ...profiles.nvml import open_nvml
from ...profiles.schema import Profile
from ..errors import ExitbenchError
from .base import Clock, Meter, Reading, Source, Unavailable, Window, weakest
from .modelled import ModelledMeter, find_modelled
from .nvidia import find_nvidia
from .rapl import find_rapl

_COVERED = {
    "gpu": "GPU energy",
    "cpu": "CPU energy",
    "dram": "memory energy",
    "module": "module energy (CPU, GPU and memory)",
}


@dataclass(frozen=True)
class ChosenMeter:
    """All meters of a run as one; it is a meter itself.

    Attributes:
        meters: the meters, none of whose domains overlap.
        missing: what cannot be metered, and why.
        required: the domain without which a total would mean nothing: the run's own device, where
            it has no meter; its joules are None in every reading. Empty when it has one.
        words: what is measured, modelled or unavailable, and why, in sentences for the user.
        clock: a monotonic clock in seconds.
    """

    meters: tuple[Meter, ...]
    missing: tuple[Unavailable, ...]
    required: str
    words: str
    clock: Clock = time.perf_counter

    @property
    def name(self) -> str:
        """The names of its meters; ``no meter`` when there is none."""
        return " + ".join(meter.name for meter in self.meters) or "no meter"

    @property
    def domains(self) -> tuple[str, ...]:
        """All that its meters cover."""
        return tuple(domain for meter in self.meters for domain in meter.domains)

    @property
    def sources(self) -> dict[str, Source]:
        """The source of every domain, the missing device of the run included."""
        found: dict[str, Source] = {
            domain: meter.source for meter in self.meters for domain in meter.domains
        }
        return {**found, self.required: "unavailable"} if self.required else found

    @property
    def source(self) -> Source:
        """The source of the total: the weakest of its domains."""
        return weakest(self.sources.values())

    @property
    def update_period_s(self) -> float | None:
        """The longest period of its counters; None where any window can be resolved."""
        periods = [meter.update_period_s for meter in self.meters]
        return max((period for period in periods if period is not None), default=None)

    @property
    def power_w(self) -> float | None:
        """Gross watts when every domain is modelled, so that time alone prices; else None."""
        modelled = [meter for meter in self.meters if isinstance(meter, ModelledMeter)]
        if self.required or not modelled or len(modelled) != len(self.meters):
            return None
        return sum(meter.power_w for meter in modelled)

    def open(self) -> ChosenWindow:
        """Start a window on every meter."""
        windows = tuple(meter.open() for meter in self.meters)
        return ChosenWindow(self, windows, self.clock())


@dataclass(frozen=True)
class ChosenWindow:
    """One open window on each meter."""

    meter: ChosenMeter
    windows: tuple[Window, ...]
    opened_s: float

    def close(self) -> Reading:
        """The readings of all meters as one; its seconds are those inside all the windows."""
        chosen = self.meter
        seconds = chosen.clock() - self.opened_s
        # Last opened, first closed: the windows stay nested and their edges even out.
        closed = [window.close() for window in reversed(self.windows)][::-1]
        readings = [reading.lasting(seconds) for reading in closed]
        joules: dict[str, float | None] = {}
        notes = []
        if chosen.required:
            joules[chosen.required] = None
            notes = [each.words for each in chosen.missing if chosen.required in each.domains]
        for reading in readings:
            joules |= reading.joules
            notes += [reading.note] if reading.note else []
        return Reading(seconds, joules, chosen.source, "; ".join(notes), chosen.sources)


def cuda_index(device: str) -> int | None:
    """The number of a CUDA device; None for the CPU.

    Raises:
        ExitbenchError: the device is of no known kind.
    """
    kind, _, number = device.partition(":")
    if kind == "cpu":
        return None
    if kind == "cuda" and (number.isdigit() or device == "cuda"):
        return int(number or 0)
    raise ExitbenchError(f"there is no meter for device {device!r}: it must be cpu, cuda or cuda:N")


def torch_uuid(index: int) -> str | None:
    """The UUID of ``cuda:index`` as torch tells it; None where torch is not loaded or has no GPU.

    torch is not imported for this: who runs a network on a GPU has it loaded.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or index >= torch.cuda.device_count():
        return None
    uuid = getattr(torch.cuda.get_device_properties(index), "uuid", None)
    return None if uuid is None else str(uuid)


def choose_meter(
    device: str,
    profile: Profile | None,
    *,
    root: Path = Path("/"),
    nvml: ModuleType | None = None,
    environ: Mapping[str, str] | None = None,
    cuda_uuid: Callable[[int], str | None] = torch_uuid,
    clock: Clock = time.perf_counter,
) -> ChosenMeter:
    """The meters for a run on ``device``.

    Args:
        device: as torch writes it: ``cpu``, ``cuda`` or ``cuda:N``.
        profile: the hardware profile that prices what cannot be measured; None if none fits.
        root: where ``sys`` is found.
        nvml: what answers as ``pynvml``; the installed one if None.
        environ: the environment; that of this process if None.
        cuda_uuid: the UUID of ``cuda:N``; asks torch where it is loaded.
        clock: a monotonic clock in seconds.

    Raises:
        ExitbenchError: the device is of no known kind.
    """
    index = cuda_index(device)
    rapl = find_rapl(root, clock=clock)
    if index is None:
        return _assemble([_first(rapl, find_modelled(profile, "cpu", clock=clock))], [], clock)
    counter = find_nvidia(
        open_nvml(nvml),
        index,
        os.environ if environ is None else environ,
        uuid=cuda_uuid(index),
        clock=clock,
    )
    gpu = _first(counter, find_modelled(profile, "gpu", clock=clock))
    if isinstance(gpu[0], ModelledMeter) and gpu[0].domain == "module":
        return _assemble([gpu], [], clock)
    if not isinstance(rapl, Unavailable) or not isinstance(gpu[0], ModelledMeter):
        return _assemble([gpu], [rapl], clock)
    return _assemble([gpu, _first(rapl, find_modelled(profile, "cpu", clock=clock))], [], clock)


_Found = tuple[Meter | Unavailable, Unavailable | None]


def _first(measured: Meter | Unavailable, modelled: ModelledMeter | Unavailable) -> _Found:
    """The measured meter, else the modelled one with why, else both reasons."""
    if not isinstance(measured, Unavailable):
        return measured, None
    if not isinstance(modelled, Unavailable):
        return modelled, measured
    reason = f"{measured.reason}; {modelled.reason}"
    return Unavailable(measured.name, measured.domains, reason, measured.remedy), None


def _assemble(
    wanted: Sequence[_Found], beside: Sequence[Meter | Unavailable], clock: Clock
) -> ChosenMeter:
    found = [*wanted, *((each, None) for each in beside)]
    meters = tuple(meter for meter, _ in found if not isinstance(meter, Unavailable))
    missing = tuple(meter for meter, _ in found if isinstance(meter, Unavailable))
    own = wanted[0][0]
    required = own.domains[0] if isinstance(own, Unavailable) else ""
    sentences = [_sentence(meter, instead_of) for meter, instead_of in found]
    if missing and not required:
        covered = " and ".join(_COVERED[name] for meter in meters for name in meter.domains)
        sentences.append(f"The total covers {covered} only.")
    return ChosenMeter(meters, missing, required, " ".join(sentences), clock)


def _sentence(meter: Meter | Unavailable, instead_of: Unavailable | None) -> str:
    covered = " and ".join(_COVERED[domain] for domain in meter.domains)
    covered = covered[0].upper() + covered[1:]
    if isinstance(meter, Unavailable):
        return f"{covered} is unavailable: {meter.words}."
    if not isinstance(meter, ModelledMeter):
        return f"{covered} is measured by the {meter.name}."
    assumed = ", an assumption," if meter.assumption else ""
    said = (
        f"{covered} is modelled: {meter.power_w:g} W ({meter.name}{assumed} idle included) x time"
    )
    return f"{said}." if instead_of is None else f"{said}, because {instead_of.words}."

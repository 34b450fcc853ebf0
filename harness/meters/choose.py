"""Which meters a run gets, chosen by themselves and said aloud.

===========  ==========================================  =========================================
run on       the device itself                           beside it
===========  ==========================================  =========================================
``cpu``      RAPL, module sensors, else modelled         nothing: an idle GPU is not the run's
``cuda:N``   NVML counter, module sensors, else          CPU by RAPL; modelled only beside a
             modelled                                    modelled GPU, unavailable beside a
                                                         measured; nothing beside a module
===========  ==========================================  =========================================

The hardware profile may order them differently. An external meter comes on top: it takes the domain
that it covers, and what lies inside that is metered beside it but not added. A measured GPU is
never topped up with a modelled CPU: the total then covers the GPU only, and says so.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from types import ModuleType

from ...profiles.nvml import open_nvml
from ...profiles.schema import Profile
from ..errors import ExitbenchError
from .base import CONTAINS, Clock, Meter, Unavailable, outermost
from .chosen import ChosenMeter
from .counters import Sleep
from .external import ExternalMeter
from .ina3221 import ABSENT, find_ina3221
from .ina3221 import NAME as SENSORS
from .modelled import ModelledMeter, find_modelled
from .nvidia import find_nvidia
from .rapl import find_rapl

MEASURED_OF = {"cpu": ("rapl", "ina3221"), "gpu": ("nvml", "ina3221")}
"""Names of the meters that measure a device class, in the order in which they are tried."""
MODELLED = "modelled"

_COVERED = {
    "gpu": "GPU energy",
    "cpu": "CPU energy",
    "dram": "memory energy",
    "module": "module energy (CPU, GPU and memory)",
    "board": "board energy (everything behind one plug)",
}


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
    """The UUID of ``cuda:index`` as torch tells it, else its PCI place, such as ``0:3b:0.0``.

    None where torch is not loaded or has no GPU: torch is not imported for this; who runs a
    network on a GPU has it loaded.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or index >= torch.cuda.device_count():
        return None
    told = torch.cuda.get_device_properties(index)
    uuid = getattr(told, "uuid", None)
    if uuid is not None:
        return str(uuid)
    parts = [getattr(told, f"pci_{part}_id", None) for part in ("domain", "bus", "device")]
    known = [int(part) for part in parts if part is not None]
    return "{:x}:{:x}:{:x}.0".format(*known) if len(known) == len(parts) else None


def choose_meter(
    device: str,
    profile: Profile | None,
    *,
    threads: int | None = None,
    external: ExternalMeter | Unavailable | None = None,
    root: Path = Path("/"),
    nvml: ModuleType | None = None,
    environ: Mapping[str, str] | None = None,
    cuda_uuid: Callable[[int], str | None] = torch_uuid,
    clock: Clock = time.perf_counter,
    sleep: Sleep = time.sleep,
) -> ChosenMeter:
    """The meters for a run on ``device``.

    Args:
        device: as torch writes it: ``cpu``, ``cuda`` or ``cuda:N``.
        profile: the hardware profile that prices what cannot be measured; None if none fits.
        threads: CPU threads of the run, for modelled power; all CPUs if None.
        external: an instrument of the user's, as ``find_external`` gives it; None if none.
        root: where ``sys`` is found.
        nvml: what answers as ``pynvml``; the installed one if None.
        environ: the environment; that of this process if None.
        cuda_uuid: the UUID or PCI place of ``cuda:N``; asks torch where it is loaded.
        clock: a monotonic clock in seconds.
        sleep: waits so many seconds of that clock.

    Raises:
        ExitbenchError: the device is of no known kind.
    """
    index = cuda_index(device)
    own = "cpu" if index is None else "gpu"
    find = _finders(profile, root, nvml, environ, index, cuda_uuid, clock, sleep)
    modelled = partial(find_modelled, profile, clock=clock)
    usable = None if isinstance(external, Unavailable) else external
    taken = usable.domains[0] if usable is not None else ""
    covered = own in _inside(taken)
    found: list[_Found] = []
    if not covered:
        found.append(_own(own, profile, find, modelled(own, threads)))
    if external is not None:
        found.append((external, ""))
    if covered and taken != own:
        found += _inner(own, profile, find, taken)
    found += _beside(own, found, find["rapl"], modelled("cpu", threads))
    return _assemble(found, "" if covered else own, clock)


_Found = tuple[Meter | Unavailable, str]
"""A meter, or why there is none; and why it had to be modelled."""
_Find = Mapping[str, Callable[[], Meter | Unavailable]]


def _finders(
    profile: Profile | None,
    root: Path,
    nvml: ModuleType | None,
    environ: Mapping[str, str] | None,
    index: int | None,
    cuda_uuid: Callable[[int], str | None],
    clock: Clock,
    sleep: Sleep,
) -> _Find:
    def card() -> Meter | Unavailable:
        assert index is not None
        surroundings = os.environ if environ is None else environ
        return find_nvidia(
            open_nvml(nvml), index, surroundings, uuid=cuda_uuid(index), clock=clock, sleep=sleep
        )

    return {
        "nvml": card,
        "rapl": cache(lambda: find_rapl(root, clock=clock, sleep=sleep)),
        "ina3221": lambda: find_ina3221(profile, root, clock=clock),
    }


def order_of(profile: Profile | None, device_class: str) -> tuple[str, ...]:
    """Names of the meters of a device class in the order they are tried.

    Those that the profile names, then those that it does not name, and power by the profile as the
    last. What the profile names after that is not tried; where it names that first, nothing else.
    """
    named = profile.meters if profile is not None else ()
    if named[:1] == (MODELLED,):
        return (MODELLED,)
    fitting = MEASURED_OF[device_class]
    wanted = named[: named.index(MODELLED)] if MODELLED in named else named
    listed = [name for name in wanted if name in fitting]
    return (*listed, *(name for name in fitting if name not in named), MODELLED)


def _own(
    own: str, profile: Profile | None, find: _Find, modelled: ModelledMeter | Unavailable
) -> _Found:
    """The meter of the run's own device: the first that measures, else the modelled one."""
    order = order_of(profile, own)
    tried: list[Unavailable] = []
    for name in order[:-1]:
        meter = find[name]()
        if not isinstance(meter, Unavailable):
            return meter, ""
        tried.append(meter)
    told = [each for each in tried if _worth_telling(each, profile)]
    if not isinstance(modelled, Unavailable):
        if not told:
            return modelled, f"hardware profile {profile.name if profile else ''} puts it first"
        return modelled, "; ".join(each.words for each in told)
    reasons = [each.reason for each in told] + [modelled.reason]
    remedy = " ".join(each.remedy for each in told if each.remedy)
    first = told[0] if told else modelled
    return Unavailable(first.name, (own,), "; ".join(reasons), remedy), ""


def _worth_telling(missing: Unavailable, profile: Profile | None) -> bool:
    """Whether it says something about this machine that it has no such meter."""
    named = profile.meters if profile is not None else ()
    if missing.reason == ABSENT:
        return "ina3221" in named
    # A Jetson has neither NVML's energy counter nor RAPL; its own sensors are what matters.
    return "ina3221" not in named or missing.name == SENSORS


def _inner(own: str, profile: Profile | None, find: _Find, taken: str) -> list[_Found]:
    """A measured part inside what an external meter covers; none where nothing measures it."""
    for name in order_of(profile, own)[:-1]:
        meter = find[name]()
        if not isinstance(meter, Unavailable) and taken not in meter.domains:
            return [(meter, "")]
    return []


def _beside(
    own: str,
    found: Sequence[_Found],
    rapl: Callable[[], Meter | Unavailable],
    modelled: ModelledMeter | Unavailable,
) -> list[_Found]:
    """The CPU beside a GPU; nothing beside a CPU, nor where it is metered already."""
    domains = {d for each, _ in found if not isinstance(each, Unavailable) for d in each.domains}
    if own == "cpu" or domains & {"cpu", "module"}:
        return []
    cpu = rapl()
    if not isinstance(cpu, Unavailable):
        return [(cpu, "")]
    if "board" in domains:
        return []
    own_meter = found[0][0]
    if isinstance(own_meter, ModelledMeter) and not isinstance(modelled, Unavailable):
        return [(modelled, cpu.words)]
    if isinstance(own_meter, ModelledMeter) and isinstance(modelled, Unavailable):
        reason = f"{cpu.reason}; {modelled.reason}"
        return [(Unavailable(cpu.name, cpu.domains, reason, cpu.remedy), "")]
    return [(cpu, "")]


def _inside(domain: str) -> frozenset[str]:
    """What a domain covers, itself included; nothing for none."""
    return CONTAINS[domain] | {domain} if domain else frozenset()


def _assemble(found: Sequence[_Found], own: str, clock: Clock) -> ChosenMeter:
    meters = tuple(meter for meter, _ in found if not isinstance(meter, Unavailable))
    missing = tuple(meter for meter, _ in found if isinstance(meter, Unavailable))
    required = found[0][0].domains[0] if own and isinstance(found[0][0], Unavailable) else ""
    sentences = [_sentence(meter, why) for meter, why in found]
    domains = [domain for meter in meters for domain in meter.domains]
    added = outermost(domains)
    inner = [domain for domain in dict.fromkeys(domains) if domain not in added]
    if inner:
        verb = "lie" if len(inner) > 1 else "lies"
        held = _covered([d for d in added if CONTAINS[d]])
        sentences.append(f"{_upper(_covered(inner))} {verb} within {held} and is not added to it.")
    if missing and not required:
        sentences.append(f"The total covers {_covered(added)} only.")
    return ChosenMeter(meters, missing, required, " ".join(sentences), clock)


def _sentence(meter: Meter | Unavailable, why: str) -> str:
    covered = _upper(_covered(outermost(meter.domains)))
    if isinstance(meter, Unavailable):
        return f"{covered} is unavailable: {meter.words}."
    if not isinstance(meter, ModelledMeter):
        return f"{covered} is measured by the {meter.name}."
    assumed = ", an assumption," if meter.assumption else ""
    said = f"{covered} is modelled: {meter.model} ({meter.name}{assumed} idle included) x time"
    return f"{said}, because {why}." if why else f"{said}."


def _covered(domains: Sequence[str]) -> str:
    return " and ".join(_COVERED[domain] for domain in domains)


def _upper(text: str) -> str:
    return text[0].upper() + text[1:]

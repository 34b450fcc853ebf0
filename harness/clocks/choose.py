"""Which clocks can be set for a run, and why others cannot.

========  ==================================================================================
cpu       cpufreq, wherever the machine has it
cores     CPU hotplug, wherever the machine has it
gpu       NVML for a card; devfreq where the hardware profile says so (a system on a chip)
memory    NVML for the memory of a card; devfreq or the firmware's file on a Jetson
========  ==================================================================================

A profile that says ``actuator = "none"`` for a clock has it left alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from ...profiles.schema import ClockDomain, Profile
from ..meters.choose import cuda_index, torch_uuid
from .base import Actuator, ClockError, Domain
from .cores import find_cores
from .cpufreq import find_cpufreq
from .devfreq import EMC_NODE, find_devfreq, find_emc
from .nvml import find_nvml
from .simulated import simulated_actuators
from .sysfs import listed

_WORDS: Mapping[str, str] = {
    "cpu": "CPU clock",
    "gpu": "GPU clock",
    "memory": "memory clock",
    "cores": "number of CPU cores",
}


@dataclass(frozen=True)
class Survey:
    """What can be set for a run, and why the rest cannot, in words with the remedy."""

    actuators: dict[Domain, Actuator]
    missing: dict[Domain, str]


def find_actuators(
    profile: Profile | None,
    device: str,
    *,
    simulated: bool,
    needed: Collection[Domain] | None = None,
    root: Path = Path("/"),
    nvml: ModuleType | None = None,
    environ: Mapping[str, str] | None = None,
    cuda_uuid: Callable[[int], str | None] = torch_uuid,
) -> dict[Domain, Actuator]:
    """What can be set for a run on ``device``, by domain.

    Args:
        profile: the hardware profile; None if none fits.
        device: as torch writes it: ``cpu``, ``cuda`` or ``cuda:N``.
        simulated: change nothing; clocks are those of the profile.
        needed: domains without which the others are of no use, where clocks are really set; the
            device's own clock if None.
        root: where ``sys`` is found.
        nvml: what answers as ``pynvml``; the installed one if None.
        environ: the environment; that of this process if None.
        cuda_uuid: the UUID of ``cuda:N``; asks torch where it is loaded.

    Raises:
        ClockError: a needed domain cannot be set, or nothing can, and what would mend it.
        ExitbenchError: the device is of no known kind.
    """
    if simulated:
        if profile is None:
            raise ClockError(
                "clocks are simulated by a hardware profile, and none fits this machine; name one "
                "with --hardware ('exitbench hardware list' shows them)"
            )
        return dict(simulated_actuators(profile))
    survey = survey_actuators(
        profile, device, root=root, nvml=nvml, environ=environ, cuda_uuid=cuda_uuid
    )
    own: Domain = "cpu" if cuda_index(device) is None else "gpu"
    if needed is None and own in survey.missing:
        raise ClockError(f"the clock of {device} cannot be set: {survey.missing[own]}")
    lacking = [domain for domain in needed or () if domain in survey.missing]
    if not survey.actuators:
        lacking = list(survey.missing)
    if lacking:
        reasons = "; ".join(f"the {_WORDS[each]}: {survey.missing[each]}" for each in lacking)
        raise ClockError(f"for a run on {device} nothing here sets {reasons}")
    return survey.actuators


def survey_actuators(
    profile: Profile | None,
    device: str,
    *,
    root: Path = Path("/"),
    nvml: ModuleType | None = None,
    environ: Mapping[str, str] | None = None,
    cuda_uuid: Callable[[int], str | None] = torch_uuid,
) -> Survey:
    """What can really be set for a run on ``device``, and why the rest cannot; changes nothing.

    Args:
        as those of ``find_actuators``.

    Raises:
        ExitbenchError: the device is of no known kind.
    """
    cuda_index(device)  # refuses an unknown one
    place = _Place(profile, device, root, nvml, environ, cuda_uuid)
    finders: dict[Domain, Callable[[], Actuator]] = {
        "cpu": lambda: place.find("cpu"),
        "gpu": lambda: place.find("gpu"),
        "memory": lambda: place.find("memory"),
        "cores": lambda: find_cores(root),
    }
    survey = Survey({}, {})
    for domain, find in finders.items():
        try:
            survey.actuators[domain] = find()
        except ClockError as error:
            survey.missing[domain] = str(error)
    return survey


def see_clock(
    profile: Profile | None,
    device: str,
    *,
    root: Path = Path("/"),
    nvml: ModuleType | None = None,
    environ: Mapping[str, str] | None = None,
    cuda_uuid: Callable[[int], str | None] = torch_uuid,
) -> Actuator:
    """The own clock of ``device``, to read its levels: nobody needs a permission for that.

    Args:
        as those of ``find_actuators``.

    Raises:
        ClockError: this machine does not show it, and why.
        ExitbenchError: the device is of no known kind.
    """
    own: Domain = "cpu" if cuda_index(device) is None else "gpu"
    return _Place(profile, device, root, nvml, environ, cuda_uuid).find(own, to_set=False)


@dataclass(frozen=True)
class _Place:
    """Where the clocks of a run are looked for; as the arguments of ``find_actuators``."""

    profile: Profile | None
    device: str
    root: Path
    nvml: ModuleType | None
    environ: Mapping[str, str] | None
    cuda_uuid: Callable[[int], str | None]

    def find(self, domain: Domain, *, to_set: bool = True) -> Actuator:
        """One clock; ``to_set``: refuse what this process may not write."""
        clocks = {} if self.profile is None else self.profile.clocks
        known, root = clocks.get(domain, ClockDomain()), self.root
        if known.actuator == "none":
            raise ClockError(f"the hardware profile says that nothing sets it{_because(known)}")
        if domain == "cpu":
            step = None if known.step_mhz is None else known.step_mhz.value
            return find_cpufreq(root, grid_mhz=step, to_set=to_set)
        if known.actuator != "devfreq":
            return self._card(domain)
        switch_s = None if known.switch_ms is None else known.switch_ms.value * 1e-3
        if domain == "memory" and known.nodes in ((), (EMC_NODE,)):
            return find_emc(root, fallback=known.levels, switch_s=switch_s)
        return find_devfreq(root, domain, known.nodes, switch_s=switch_s, to_set=to_set)

    def _card(self, domain: Domain) -> Actuator:
        index = cuda_index(self.device)
        if index is None:
            raise ClockError("the run is on the CPU, which leaves the clocks of a card alone")
        variables = os.environ if self.environ is None else self.environ
        uuid = self.cuda_uuid(index)
        return find_nvml(domain, index, variables, uuid=uuid, nvml=self.nvml)


def level(actuator: Actuator, number: int) -> float:
    """The level with this number, counted from 1, the slowest.

    Raises:
        ClockError: there is no such level; the message lists those that there are.
    """
    levels = actuator.levels()
    if not 1 <= number <= len(levels):
        raise ClockError(
            f"{actuator.name} has no level {number}: its levels are 1 to {len(levels)}, in "
            f"{_unit(actuator.domain)}: {listed(levels)}"
        )
    return levels[number - 1]


def clocks_words(actuators: Mapping[Domain, Actuator]) -> str:
    """What can be set, by what and over which levels, in one sentence."""
    said = []
    for domain, actuator in actuators.items():
        levels = actuator.levels()
        span = f"{levels[0]:g} to {levels[-1]:g}" if len(levels) > 1 else f"{levels[0]:g}"
        said.append(
            f"{_WORDS[domain]} by {actuator.name} ({len(levels)} "
            f"level{'s' if len(levels) > 1 else ''}, {span} {_unit(domain)})"
        )
    return "; ".join(said) + "." if said else "no clock can be set."


def _unit(domain: Domain) -> str:
    return "cores" if domain == "cores" else "MHz"


def _because(clock: ClockDomain) -> str:
    return f" ({clock.actuator_source})" if clock.actuator_source else ""

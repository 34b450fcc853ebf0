"""The CPU clock by Linux cpufreq: lower and upper limit of every policy set to one clock.

Equal limits hold the clock under every driver and every governor, also where there is no list of
levels and no ``userspace`` governor (intel_pstate and amd-pstate in active mode). The governor is
never changed.

    /sys/devices/system/cpu/cpufreq/policyN/
        scaling_available_frequencies     kHz; not there under intel_pstate and amd-pstate
        cpuinfo_min_freq, cpuinfo_max_freq
        scaling_min_freq, scaling_max_freq
        scaling_governor, scaling_driver, scaling_cur_freq

What is read back are the limits. The clock itself is a measured average on x86 and a mere request
on other machines, so it proves nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .base import ClockError, Domain
from .sysfs import AS_ROOT, Limits, exact, left_changed, look, look_int, writable, write

KIND = "cpufreq"
FOLDER = "sys/devices/system/cpu/cpufreq"
GRID_MHZ = 100.0
"""Distance of the levels made where the driver lists none: the bus clock of Intel CPUs, in which
their clocks are multiples."""

_POLICY = re.compile(r"policy(\d+)")
_KHZ = 1000


@dataclass(frozen=True)
class Policy:
    """CPUs that share one clock.

    Attributes:
        folder: the kernel's.
        levels: clocks in MHz, rising.
        grid_mhz: their distance where the driver lists none; None where it does.
    """

    folder: Path
    levels: tuple[float, ...] = ()
    grid_mhz: float | None = None

    @property
    def limits(self) -> Limits:
        """Its lower and upper limit, in kHz."""
        return Limits(self.folder, "scaling_min_freq", "scaling_max_freq")

    @property
    def active(self) -> bool:
        """Whether one of its CPUs is online: the files of others cannot be read."""
        return look_int(self.folder / "scaling_min_freq") is not None


@dataclass(frozen=True)
class CpufreqActuator:
    """The clock of all CPUs.

    Where clusters have different levels, those of the fastest cluster are the levels, and the
    others follow at the same share of their own top clock.
    """

    policies: tuple[Policy, ...]

    @property
    def name(self) -> str:
        """``cpufreq`` with its policies, and whether the levels are the driver's."""
        names = _names([policy.folder.name for policy in self.policies])
        step = self._lead.grid_mhz
        if step is None:
            return f"cpufreq {names}"
        return f"cpufreq {names} (the driver lists no levels: steps of {step:g} MHz)"

    @property
    def domain(self) -> Domain:
        """Always ``cpu``."""
        return "cpu"

    @property
    def simulated(self) -> bool:
        """Never."""
        return False

    @property
    def _lead(self) -> Policy:
        return max(self.policies, key=lambda policy: policy.levels[-1:])

    def levels(self) -> tuple[float, ...]:
        """Clocks in MHz of the fastest cluster, rising, as they were found."""
        return self._lead.levels

    def current(self) -> float | None:
        """MHz held by equal limits, else the clock as the kernel tells it."""
        policy = self._lead
        low = look_int(policy.folder / policy.limits.low)
        high = look_int(policy.folder / policy.limits.high)
        khz = low if low == high else look_int(policy.folder / "scaling_cur_freq")
        return None if khz is None else khz / _KHZ

    def snapshot(self) -> Mapping[str, Any]:
        """Limits and governor of every policy with a CPU online, by its folder."""
        policies = {}
        for policy in self.policies:
            if policy.active:
                low, high = policy.limits.read()
                governor = look(policy.folder / "scaling_governor")
                policies[str(policy.folder)] = {"min": low, "max": high, "governor": governor}
        return {"kind": KIND, "policies": policies}

    def set(self, value: float) -> None:
        """Hold every CPU at a level, or the slower clusters at their share of it.

        Raises:
            ClockError: as every actuator says.
        """
        levels = self.levels()
        level = exact(levels, value, lambda: self.name)
        self._check_none_came()
        done: list[tuple[Policy, tuple[int, int]]] = []
        for policy in self.policies:
            if policy.active:
                khz = round(_following(policy.levels, level, levels[-1]) * _KHZ)
                try:
                    done.append((policy, policy.limits.write(khz, khz)))
                except ClockError as error:
                    _undo(done, error)
                    raise

    def _check_none_came(self) -> None:
        known = {policy.folder.name for policy in self.policies}
        for path in self.policies[0].folder.parent.iterdir():
            if path.name not in known and _POLICY.fullmatch(path.name) and Policy(path).active:
                raise ClockError(
                    f"{path} came after exitbench had looked: its cores were offline, "
                    "and what its clock was cannot be read then. Switch cores on beforehand"
                )

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Put limits and governor of every policy back.

        Raises:
            ClockError: some could not be put back; the others were.
        """
        failures = []
        for folder, was in snapshot["policies"].items():
            try:
                _restore(Policy(Path(folder)), was["min"], was["max"], was["governor"])
            except ClockError as error:
                failures.append(str(error))
        if failures:
            raise ClockError("; ".join(failures))


def _undo(done: list[tuple[Policy, tuple[int, int]]], error: ClockError) -> None:
    """Put the limits of policies back, the last first, after another has failed."""
    failures = []
    for policy, before in reversed(done):
        try:
            policy.limits.put_back(*before)
        except ClockError as failure:
            failures.append(str(failure))
    if failures:
        raise left_changed(error, "; ".join(failures)) from error


def _restore(policy: Policy, low: int, high: int, governor: str | None) -> None:
    # The governor first: some governors move the limits when they are chosen.
    if governor and look(policy.folder / "scaling_governor") != governor:
        write(policy.folder / "scaling_governor", governor)
    policy.limits.put_back(low, high)


def _following(own: tuple[float, ...], level: float, top: float) -> float:
    """The level of a policy while the fastest one, whose top clock is ``top``, is at ``level``."""
    wanted = level if own[-1] == top else level * own[-1] / top
    below = [each for each in own if each <= wanted + 1e-6]
    return below[-1] if below else own[0]


def grid(low_mhz: float, high_mhz: float, step_mhz: float) -> tuple[float, ...]:
    """Both ends of a range and the multiples of ``step_mhz`` between them, rising."""
    first = math.floor(low_mhz / step_mhz) + 1
    last = math.ceil(high_mhz / step_mhz) - 1
    between = (number * step_mhz for number in range(first, last + 1))
    return tuple(sorted({low_mhz, *between, high_mhz}))


def find_cpufreq(
    root: Path, *, grid_mhz: float | None = None, to_set: bool = True
) -> CpufreqActuator:
    """The CPU clock of this machine.

    Args:
        root: where ``sys`` is found.
        grid_mhz: distance of levels where the driver lists none.
        to_set: refuse what this process may not write; else its levels are all that is wanted.

    Raises:
        ClockError: it cannot be set here, or is not seen, and why.
    """
    folder = root / FOLDER
    found = sorted(
        (int(match[1]), path)
        for path in (folder.iterdir() if folder.is_dir() else ())
        if (match := _POLICY.fullmatch(path.name))
    )
    policies = tuple(_found(path, grid_mhz or GRID_MHZ) for _, path in found if Policy(path).active)
    if not policies:
        raise ClockError(
            f"{folder} has no policy. Virtual machines and some containers hide it; elsewhere "
            "load the cpufreq driver of the CPU"
        )
    for policy in policies:
        if not policy.levels:
            raise ClockError(f"{policy.folder} tells no levels")
        for name in (policy.limits.low, policy.limits.high) if to_set else ():
            if not writable(policy.folder / name):
                raise ClockError(f"no permission to write {policy.folder / name}: {AS_ROOT}")
    return CpufreqActuator(policies)


def _found(folder: Path, grid_mhz: float) -> Policy:
    """A policy with its levels: the driver's, or a grid over the range that it tells."""
    low = look_int(folder / "cpuinfo_min_freq")
    high = look_int(folder / "cpuinfo_max_freq")
    names = ("scaling_available_frequencies", "scaling_boost_frequencies")
    words = " ".join(look(folder / name) or "" for name in names).split()
    listed = {int(word) for word in words if word.isdigit()}
    if listed:
        # Boost levels are listed while boost is switched off, too.
        inside = {khz for khz in listed if (low or 0) <= khz <= (high or khz)}
        return Policy(folder, tuple(khz / _KHZ for khz in sorted(inside)))
    levels = grid(low / _KHZ, high / _KHZ, grid_mhz) if low and high else ()
    return Policy(folder, levels, grid_mhz)


def _names(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{names[0]} to {names[-1]} ({len(names)})"

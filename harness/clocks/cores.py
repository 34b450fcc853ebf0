"""The number of CPU cores that are online, by CPU hotplug.

    /sys/devices/system/cpu/cpuN/online     1 or 0; cpu0, and what cannot be switched off, has none

Of the cores that were online those with the lowest numbers stay, and others come only where more
are asked for: a Jetson TX2 in its default mode keeps its A57 cores, which are cpu0 and cpu3 to
cpu5, and its other kind stays off. What made itself a pool of threads before, such as torch, keeps
it: set the number of cores first, and of threads after it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .base import ClockError, Domain
from .sysfs import AS_ROOT, look_int, undoing, writable, write

KIND = "cores"
FOLDER = "sys/devices/system/cpu"

_CPU = re.compile(r"cpu(\d+)")


@dataclass(frozen=True)
class CoresActuator:
    """How many of the machine's hardware threads are online; Linux calls each a CPU.

    Attributes:
        folder: the kernel's.
        first: numbers of those that were online when they were found.
    """

    folder: Path
    first: frozenset[int] = frozenset()

    @property
    def name(self) -> str:
        """Always ``CPU hotplug``."""
        return "CPU hotplug"

    @property
    def domain(self) -> Domain:
        """Always ``cores``."""
        return "cores"

    @property
    def simulated(self) -> bool:
        """Never."""
        return False

    def levels(self) -> tuple[float, ...]:
        """From those that cannot be switched off to all that are present."""
        return tuple(map(float, range(self._fixed, len(self._cpus) + 1)))

    def current(self) -> float | None:
        """How many are online."""
        return float(self._fixed + sum(self._online().values()))

    def snapshot(self) -> Mapping[str, Any]:
        """Which are online, by number."""
        online = {str(cpu): on for cpu, on in self._online().items()}
        return {"kind": KIND, "folder": str(self.folder), "online": online}

    def set(self, value: float) -> None:
        """Have so many cores online.

        Raises:
            ClockError: as every actuator says.
        """
        levels = self.levels()
        if value not in levels:
            raise ClockError(
                f"the number of cores online cannot be {value:g}: it must be a whole number from "
                f"{levels[0]:g} to {levels[-1]:g}"
            )
        switchable = sorted(self._online(), key=lambda cpu: (cpu not in self.first, cpu))
        stay = switchable[: int(value) - self._fixed]
        with undoing(self):
            self._switch({cpu: cpu in stay for cpu in switchable})

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Have those online that were.

        Raises:
            ClockError: some could not be switched.
        """
        self._switch({int(cpu): on for cpu, on in snapshot["online"].items()})

    @property
    def _cpus(self) -> dict[int, Path]:
        found = ((_CPU.fullmatch(path.name), path) for path in self.folder.iterdir())
        return {int(match[1]): path for match, path in found if match}

    @property
    def _fixed(self) -> int:
        return len(self._cpus) - len(self._online())

    def _online(self) -> dict[int, bool]:
        """Those that can be switched, and whether they are online. Never cpu0, where it could."""
        states = {cpu: look_int(path / "online") for cpu, path in self._cpus.items() if cpu != 0}
        return {cpu: state == 1 for cpu, state in states.items() if state is not None}

    def _switch(self, wanted: Mapping[int, bool]) -> None:
        # On before off, so that there is never less than what is wanted in the end.
        failures = []
        for state in (True, False):
            present = self._online()
            for cpu in sorted(cpu for cpu, on in wanted.items() if on is state):
                if present.get(cpu) is state:
                    continue
                try:
                    write(self.folder / f"cpu{cpu}" / "online", int(state))
                except ClockError as error:
                    failures.append(str(error))
        found = self._online()
        wrong = [f"cpu{cpu}" for cpu, on in wanted.items() if found.get(cpu) is not on]
        if failures or wrong:
            what = "; ".join(failures) or "the kernel ignored it"
            raise ClockError(f"{', '.join(wrong) or 'cores'} could not be switched: {what}")


def find_cores(root: Path) -> CoresActuator:
    """CPU hotplug of this machine.

    Raises:
        ClockError: there is none, and why.
    """
    actuator = CoresActuator(root / FOLDER)
    switchable = actuator._online() if actuator.folder.is_dir() else {}
    if not switchable:
        raise ClockError(
            f"no CPU but cpu0 has a file online in "
            f"{actuator.folder}. The kernel or the virtual machine offers no CPU hotplug"
        )
    for cpu in switchable:
        path = actuator.folder / f"cpu{cpu}" / "online"
        if not writable(path):
            raise ClockError(f"no permission to write {path}: {AS_ROOT}")
    return CoresActuator(actuator.folder, frozenset(cpu for cpu, on in switchable.items() if on))

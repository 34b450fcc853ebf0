"""GPU and memory clocks of systems on a chip: Linux devfreq, and the memory clock of a Jetson.

/sys/class/devfreq/NODE/              NODE such as 17000000.gp10b; all files in Hz
    available_frequencies             depends on the firmware, so it is read when needed
    min_freq, max_freq                set to one clock, never crossing
    cur_freq                          follows once the clock is in force
    device/power/runtime_status       a GPU that is switched off has no clock to look at

/sys/kernel/debug/bpmp/debug/clk/emc/     memory of a Jetson: debugfs, root only, Hz
    mrq_rate_locked                   1 holds the rate, 0 gives it back to the kernel
    rate, min_rate, max_rate          a rate may be rounded: it is read back
/sys/kernel/debug/bpmp/debug/emc/possible_rates     kHz
"""

from __future__ import annotations

import fnmatch
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .base import ClockError, Domain
from .sysfs import AS_ROOT, Limits, exact, look, look_int, read_int, undoing, writable, write

KIND = "devfreq"
EMC_KIND = "emc"
FOLDER = "sys/class/devfreq"
EMC_FOLDER = "sys/kernel/debug/bpmp/debug/clk/emc"
EMC_NODE = "emc"
"""What stands among the ``nodes`` of a profile for the memory clock of a Jetson."""
SETTLE_S: Mapping[Domain, float] = {"gpu": 0.02, "memory": 0.03}
"""How long a clock may take to be in force: four times what an Orin Nano takes
(arXiv:2606.16106)."""

Sleep = Callable[[float], None]

_HZ = 1_000_000
_LOOK_EVERY_S = 1e-3
# No memory clock is 10 GHz written in kHz, and none is 10 kHz written in Hz.
_SURELY_HZ = 10_000_000


@dataclass(frozen=True)
class DevfreqActuator:
    """One devfreq node."""

    folder: Path
    sets: Domain
    settle_s: float
    sleep: Sleep = time.sleep

    @property
    def name(self) -> str:
        """``devfreq`` and the node."""
        return f"devfreq {self.folder.name}"

    @property
    def domain(self) -> Domain:
        """``gpu`` or ``memory``."""
        return self.sets

    @property
    def simulated(self) -> bool:
        """Never."""
        return False

    @property
    def limits(self) -> Limits:
        """Its lower and upper limit, in Hz."""
        return Limits(self.folder, "min_freq", "max_freq")

    def levels(self) -> tuple[float, ...]:
        """The driver's clocks in MHz, rising."""
        words = (look(self.folder / "available_frequencies") or "").split()
        return tuple(hz / _HZ for hz in sorted({int(word) for word in words if word.isdigit()}))

    def current(self) -> float | None:
        """MHz as the driver tells it."""
        hz = look_int(self.folder / "cur_freq")
        return None if hz is None else hz / _HZ

    def snapshot(self) -> Mapping[str, Any]:
        """Both limits."""
        low, high = self.limits.read()
        return {
            "kind": KIND,
            "domain": self.sets,
            "folder": str(self.folder),
            "min": low,
            "max": high,
        }

    def set(self, value: float) -> None:
        """Hold the clock at a level, and wait until it is in force.

        Raises:
            ClockError: as every actuator says.
        """
        hz = round(exact(self.levels(), value, lambda: self.name) * _HZ)
        with undoing(self):
            self.limits.write(hz, hz)
            self._wait_for(hz)

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Put both limits back.

        Raises:
            ClockError: they could not be.
        """
        self.limits.put_back(snapshot["min"], snapshot["max"])

    def _wait_for(self, hz: int) -> None:
        clock = self.folder / "cur_freq"
        asleep = look(self.folder / "device/power/runtime_status") == "suspended"
        if look_int(clock) is None or asleep:
            return
        found = settled(clock, hz, self.settle_s, self.sleep)
        if found != hz:
            raise ClockError(
                f"{self.folder}: the limits were taken, but {self.settle_s * 1e3:.3g} ms later the "
                f"clock is {found / _HZ:g} MHz instead of {hz / _HZ:g}; the device may be too hot, "
                "or its power mode (nvpmodel) may allow no more"
            )


@dataclass(frozen=True)
class EmcActuator:
    """The memory clock of a Jetson, held by its power management processor.

    Attributes:
        folder: of the clock in debugfs.
        fallback: levels in MHz of the hardware profile, for firmware that does not list them.
    """

    folder: Path
    fallback: tuple[float, ...] = ()
    settle_s: float = SETTLE_S["memory"]
    sleep: Sleep = time.sleep

    @property
    def name(self) -> str:
        """The clock in the user's words."""
        return "Jetson memory clock (bpmp emc)"

    @property
    def domain(self) -> Domain:
        """Always ``memory``."""
        return "memory"

    @property
    def simulated(self) -> bool:
        """Never."""
        return False

    def levels(self) -> tuple[float, ...]:
        """The firmware's clocks in MHz, else those of the profile in the range it tells."""
        words = re.findall(r"\d+", look(self.folder.parents[1] / "emc/possible_rates") or "")
        rates = [int(word) for word in words]
        if not rates:
            low = look_int(self.folder / "min_rate") or 0
            high = look_int(self.folder / "max_rate") or max(map(_hz, self.fallback), default=0)
            return tuple(mhz for mhz in self.fallback if low <= _hz(mhz) <= high)
        hz = {rate if rate >= _SURELY_HZ else rate * 1000 for rate in rates if rate}
        return tuple(each / _HZ for each in sorted(hz))

    def current(self) -> float | None:
        """MHz as the firmware tells it."""
        hz = look_int(self.folder / "rate")
        return None if hz is None else hz / _HZ

    def snapshot(self) -> Mapping[str, Any]:
        """Whether the rate was held, and the rate."""
        return {
            "kind": EMC_KIND,
            "folder": str(self.folder),
            "locked": read_int(self.folder / "mrq_rate_locked"),
            "rate": read_int(self.folder / "rate"),
        }

    def set(self, value: float) -> None:
        """Hold the memory clock at a level.

        Raises:
            ClockError: as every actuator says.
        """
        hz = _hz(exact(self.levels(), value, lambda: self.name))
        with undoing(self):
            write(self.folder / "mrq_rate_locked", 1)
            self._write_rate(hz)

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Give the memory clock back to the kernel, or to who held it before.

        Raises:
            ClockError: it could not be.
        """
        present = self.snapshot()
        free = present["locked"] == snapshot["locked"] == 0
        if free or present == snapshot:
            return
        try:
            self._write_rate(snapshot["rate"])
        except ClockError:
            # What was free is the kernel's again in any case: it sets the rate itself.
            if snapshot["locked"]:
                raise
        write(self.folder / "mrq_rate_locked", snapshot["locked"])
        found = read_int(self.folder / "mrq_rate_locked")
        if found != snapshot["locked"]:
            raise ClockError(f"{self.folder}/mrq_rate_locked stays {found}")

    def _write_rate(self, hz: int) -> None:
        write(self.folder / "rate", hz)
        found = settled(self.folder / "rate", hz, self.settle_s, self.sleep)
        if found != hz:
            raise ClockError(
                f"{self.folder}/rate: asked for {hz}, the firmware set {found}; a power mode "
                "(nvpmodel) may cap the memory clock"
            )


def settled(clock: Path, wanted: int, settle_s: float, sleep: Sleep) -> int:
    """What a clock file reads as soon as it reads ``wanted``, else at the end of ``settle_s``.

    Raises:
        ClockError: it cannot be read.
    """
    found = read_int(clock)
    for _ in range(round(settle_s / _LOOK_EVERY_S)):
        if found == wanted:
            break
        sleep(_LOOK_EVERY_S)
        found = read_int(clock)
    return found


def find_devfreq(
    root: Path,
    domain: Domain,
    nodes: Sequence[str],
    *,
    switch_s: float | None = None,
    to_set: bool = True,
) -> DevfreqActuator:
    """The devfreq node of a clock.

    Args:
        root: where ``sys`` is found.
        domain: ``gpu`` or ``memory``.
        nodes: shell patterns of node names; the first that fits any node counts.
        switch_s: time until a clock is in force, where known.
        to_set: refuse what this process may not write; else its levels are all that is wanted.

    Raises:
        ClockError: it cannot be set here, or is not seen, and why.
    """
    folder = root / FOLDER
    present = sorted(folder.iterdir()) if folder.is_dir() else []
    # One device can have several names that are links to one folder.
    distinct = list({path.resolve(): path for path in reversed(present)}.values())[::-1]
    for pattern in nodes:
        found = [path for path in distinct if fnmatch.fnmatchcase(path.name, pattern)]
        if found:
            break
    else:
        names = ", ".join(path.name for path in present) or "none"
        raise ClockError(
            f"no devfreq node in {folder} is called "
            f"{' or '.join(nodes) or '(the hardware profile names none)'}; there are: {names}"
        )
    if len(found) > 1:
        raise ClockError(
            f"{' and '.join(path.name for path in found)} in "
            f"{folder} all fit; name one in clocks.{domain}.nodes of a hardware profile"
        )
    settle_s = max(SETTLE_S[domain], 4 * (switch_s or 0.0))
    actuator = DevfreqActuator(found[0], domain, settle_s)
    if not actuator.levels():
        raise ClockError(f"{found[0]} lists no frequencies")
    if to_set:
        _check_writable(found[0], (actuator.limits.low, actuator.limits.high))
    return actuator


def find_emc(
    root: Path, *, fallback: tuple[float, ...] = (), switch_s: float | None = None
) -> EmcActuator:
    """The memory clock of a Jetson.

    Raises:
        ClockError: it cannot be set here, and why.
    """
    folder = root / EMC_FOLDER
    # Others than root do not even see what is in debugfs.
    if look_int(folder / "rate") is None:
        raise ClockError(
            f"{folder}/rate cannot be read. It is in debugfs, which only root sees: {AS_ROOT}"
        )
    actuator = EmcActuator(folder, fallback, max(SETTLE_S["memory"], 4 * (switch_s or 0.0)))
    if not actuator.levels():
        raise ClockError(f"{folder} lists no rates")
    _check_writable(folder, ("mrq_rate_locked", "rate"))
    return actuator


def _check_writable(folder: Path, names: Sequence[str]) -> None:
    for name in names:
        if not writable(folder / name):
            raise ClockError(f"no permission to write {folder / name}: {AS_ROOT}")


def _hz(mhz: float) -> int:
    return round(mhz * _HZ)

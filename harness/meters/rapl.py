"""CPU energy from the running average power limit counters (Linux powercap, Intel and AMD).

Layout of ``/sys/class/powercap`` (kernel, Documentation/power/powercap/powercap.rst)::

    intel-rapl:0            name package-0      counted as cpu
    intel-rapl:0:0          name core           inside the package: not counted again
    intel-rapl:0:1          name uncore         inside the package: not counted again
    intel-rapl:0:2          name dram           not inside the package: counted as dram
    intel-rapl:1            name psys           the platform, packages included: never counted
    intel-rapl-mmio:0       name package-0      the same counter by another way: never counted

``energy_uj`` counts microjoules and starts again at 0 beyond ``max_energy_range_uj``. A counter is
followed from read to read, so a wrap is one negative step. Windows longer than a counter takes to
wrap are covered by a thread that reads it now and then: one read in a minute or so, no more.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .base import Clock, Reading, Source, Unavailable, measured_period_s, too_short

NAME = "RAPL energy counters"
REMEDY = "sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj (holds until the next boot)"
PLAUSIBLE_W = 1000.0
"""More than any package draws: a counter that seems to run faster has been reset, and one that was
not read for longer than it takes to wrap at this power may have wrapped twice."""

# A counter read twice in quick succession may catch one whole update between the reads.
_SLACK_S = 1.0


@dataclass
class _Zone:
    """One counter, followed from read to read."""

    folder: Path
    label: str
    domain: str
    range_uj: int
    last_uj: int = 0
    last_s: float = 0.0
    total_uj: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def safe_gap_s(self) -> float:
        """How long it may go unread without the chance of two wraps."""
        return self.range_uj * 1e-6 / PLAUSIBLE_W

    def raw_uj(self) -> int:
        return int((self.folder / "energy_uj").read_text())

    def follow(self, now_s: float) -> None:
        """Read the counter and add what it has moved; what cannot be trusted becomes a fault."""
        try:
            raw_uj = self.raw_uj()
        except (OSError, ValueError) as error:
            self.faults.append(f"{self.label} could not be read: {_reason(error)}")
            return
        gap_s, step_uj = now_s - self.last_s, raw_uj - self.last_uj
        if step_uj < 0:
            step_uj += self.range_uj
        self.last_uj, self.last_s = raw_uj, now_s
        if gap_s > self.safe_gap_s:
            self.faults.append(f"{self.label} was not read for {gap_s:.0f} s and may have wrapped")
        elif not 0 <= step_uj * 1e-6 <= PLAUSIBLE_W * (gap_s + _SLACK_S):
            self.faults.append(f"{self.label} went backwards: it has been reset")
        else:
            self.total_uj += step_uj


class RaplMeter:
    """The CPU packages of this machine, and their memory where it has counters.

    They count everything that runs on the packages, not this process alone.
    """

    def __init__(self, zones: Sequence[_Zone], update_period_s: float, clock: Clock) -> None:
        self._zones = tuple(zones)
        self._period_s = update_period_s
        self._clock = clock
        self._lock = threading.Lock()
        self._open: weakref.WeakSet[RaplWindow] = weakref.WeakSet()
        self._keeper: threading.Thread | None = None

    @property
    def name(self) -> str:
        """The meter with the packages it adds up."""
        return f"{NAME} ({', '.join(zone.label for zone in self._zones)})"

    @property
    def domains(self) -> tuple[str, ...]:
        """``cpu``, and ``dram`` where memory has counters of its own."""
        return tuple(dict.fromkeys(zone.domain for zone in self._zones))

    @property
    def source(self) -> Source:
        """Always ``measured``."""
        return "measured"

    @property
    def update_period_s(self) -> float:
        """Time between two updates of the counters, as found by polling."""
        return self._period_s

    def open(self) -> RaplWindow:
        """Start a window."""
        opened_s, marks = self.refresh()
        window = RaplWindow(self, opened_s, marks)
        self._open.add(window)
        self._keep_reading()
        return window

    def refresh(self) -> tuple[float, list[tuple[int, int]]]:
        """Read every counter now, so that no wrap is missed.

        Returns:
            The time in seconds, and per counter the microjoules and faults so far.
        """
        with self._lock:
            now_s = self._clock()
            for zone in self._zones:
                zone.follow(now_s)
            return now_s, [(zone.total_uj, len(zone.faults)) for zone in self._zones]

    def close(self, window: RaplWindow) -> Reading:
        """What ``window`` took; called by the window."""
        closed_s, marks = self.refresh()
        seconds = closed_s - window.opened_s
        self._open.discard(window)
        short = too_short(seconds, self._period_s)
        if short:
            return Reading(seconds, dict.fromkeys(self.domains), "measured", short)
        joules: dict[str, float | None] = dict.fromkeys(self.domains, 0.0)
        notes: list[str] = []
        for zone, first, last in zip(self._zones, window.marks, marks, strict=True):
            moved_uj, new = last[0] - first[0], zone.faults[first[1] : last[1]]
            if not new and moved_uj == 0:
                new = [f"{zone.label} did not move"]
            sum_j = joules[zone.domain]
            joules[zone.domain] = None if new or sum_j is None else sum_j + moved_uj * 1e-6
            notes += new[:1]
        return Reading(seconds, joules, "measured", "; ".join(notes))

    def _keep_reading(self) -> None:
        if self._keeper is not None and self._keeper.is_alive():
            return
        every_s = min(zone.safe_gap_s for zone in self._zones) / 2
        self._keeper = threading.Thread(
            target=_keep_reading, args=(weakref.ref(self), every_s), daemon=True
        )
        self._keeper.start()

    @property
    def waiting(self) -> bool:
        """Whether a window is open."""
        return len(self._open) > 0


class RaplWindow:
    """An open window of the RAPL counters."""

    def __init__(self, meter: RaplMeter, opened_s: float, marks: list[tuple[int, int]]) -> None:
        self.meter = meter
        self.opened_s = opened_s
        self.marks = marks

    def close(self) -> Reading:
        """The energy since the window was opened."""
        return self.meter.close(self)


def _keep_reading(reference: weakref.ref[RaplMeter], every_s: float) -> None:
    # Holds no reference to the meter while it sleeps, so that a dropped meter ends the thread.
    while True:
        time.sleep(every_s)
        meter = reference()
        if meter is None or not meter.waiting:
            return
        meter.refresh()
        del meter


def find_rapl(
    root: Path = Path("/"), *, clock: Clock = time.perf_counter
) -> RaplMeter | Unavailable:
    """The RAPL meter of this machine, proven by reading every counter, or why there is none.

    Args:
        root: where ``sys/class/powercap`` is found.
        clock: a monotonic clock in seconds.
    """
    try:
        zones = _zones(root / "sys/class/powercap")
        if not zones:
            return _unavailable(
                "this machine shows no CPU energy counters (/sys/class/powercap/intel-rapl:*); "
                "virtual machines, containers and CPUs other than x86 have none"
            )
        for zone in zones:
            zone.last_uj, zone.last_s = zone.raw_uj(), clock()
        period_s = measured_period_s(zones[0].raw_uj, clock)
    except PermissionError as error:
        return _unavailable(f"only root may read {error.filename}", REMEDY)
    except (OSError, ValueError) as error:
        return _unavailable(f"the CPU energy counters cannot be read: {_reason(error)}")
    if period_s is None:
        return _unavailable(f"the CPU energy counter {zones[0].label} does not move")
    return RaplMeter(zones, period_s, clock)


def _zones(folder: Path) -> list[_Zone]:
    found = []
    for path in sorted(folder.glob("intel-rapl:*")):
        label = (path / "name").read_text().strip()
        domain = _domain(label, path.name.count(":"))
        if domain is not None:
            range_uj = int((path / "max_energy_range_uj").read_text())
            found.append(_Zone(path, label, domain, range_uj))
    found.sort(key=lambda zone: zone.domain != "cpu")
    return found


def _domain(label: str, depth: int) -> str | None:
    if depth == 1 and label.startswith("package"):
        return "cpu"
    return "dram" if label == "dram" else None


def _unavailable(reason: str, remedy: str = "") -> Unavailable:
    return Unavailable(NAME, ("cpu",), reason, remedy)


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}"
    return str(error)

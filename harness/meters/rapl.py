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

import contextlib
import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path

from .base import Clock, Reading, Source, Unavailable
from .counters import Counter, Sleep, Unreadable, find_period
from .edges import EdgeWindow

NAME = "RAPL energy counters"
REMEDY = "sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj (holds until the next boot)"


class Zone:
    """One counter of powercap: its label, what it belongs to, and the counter itself."""

    def __init__(self, folder: Path, label: str, domain: str, clock: Clock) -> None:
        self.folder, self.label, self.domain = folder, label, domain
        range_uj = int((folder / "max_energy_range_uj").read_text())
        self.counter = Counter(label, self._raw, 1e-6, clock, range_raw=range_uj)

    def read_uj(self) -> int:
        """What the file shows.

        Raises:
            OSError, ValueError: it cannot be read, or holds no number.
        """
        return int((self.folder / "energy_uj").read_text())

    def _raw(self) -> int:
        try:
            return self.read_uj()
        except (OSError, ValueError) as error:
            raise Unreadable(f"{self.label} could not be read: {_reason(error)}") from error


class RaplMeter:
    """The CPU packages of this machine, and their memory where it has counters.

    They count everything that runs on the packages, not this process alone.

    Args:
        zones: its counters, whose periods are known.
        stuck: labels of memory counters that are there but do not move.
    """

    def __init__(
        self, zones: Sequence[Zone], stuck: Sequence[str], clock: Clock, sleep: Sleep = time.sleep
    ) -> None:
        self._zones, self._stuck = tuple(zones), tuple(stuck)
        self._clock, self._sleep = clock, sleep
        self._keeping = threading.Lock()
        self._open: weakref.WeakSet[RaplWindow] = weakref.WeakSet()
        self._keeper: threading.Thread | None = None

    @property
    def name(self) -> str:
        """The meter with the packages it adds up."""
        without = "; without dram, which does not move" if self._stuck else ""
        return f"{NAME} ({', '.join(zone.label for zone in self._zones)}{without})"

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
        """Time between two updates of the slowest counter, as found by polling."""
        return max(zone.counter.period.seconds for zone in self._zones)

    def open(self) -> RaplWindow:
        """Start a window, right after a tick of the counters."""
        edges = EdgeWindow([zone.counter for zone in self._zones], self._clock, self._sleep)
        window = RaplWindow(self, edges)
        with self._keeping:
            self._open.add(window)
            self._keep_reading()
        return window

    def refresh(self) -> None:
        """Read every counter now, so that no wrap is missed."""
        for zone in self._zones:
            # A counter that does not answer now is missed by the window that needs it.
            with contextlib.suppress(Unreadable):
                zone.counter.read()

    def close(self, window: RaplWindow) -> Reading:
        """What ``window`` took; called by the window."""
        shares = window.edges.shares()
        with self._keeping:
            self._open.discard(window)
        joules: dict[str, float | None] = dict.fromkeys(self.domains, 0.0)
        uncertainty: dict[str, float] = dict.fromkeys(self.domains, 0.0)
        for zone, share in zip(self._zones, shares, strict=True):
            sum_j = joules[zone.domain]
            unknown = sum_j is None or share.joules is None
            joules[zone.domain] = None if unknown else (sum_j or 0.0) + (share.joules or 0.0)
            uncertainty[zone.domain] += share.uncertainty_j
        return Reading(
            window.edges.seconds,
            joules,
            "measured",
            "; ".join(dict.fromkeys(share.note for share in shares if share.note)),
            uncertainty_j={d: u for d, u in uncertainty.items() if joules[d] is not None},
            overhead_s=window.edges.overhead_s,
        )

    def _keep_reading(self) -> None:
        if self._keeper is not None:
            return
        every_s = min(zone.counter.safe_gap_s for zone in self._zones) / 2
        self._keeper = threading.Thread(
            target=_keep_reading, args=(weakref.ref(self), every_s), daemon=True
        )
        self._keeper.start()

    def idle(self) -> bool:
        """Whether no window is open; the thread that asks must then end."""
        with self._keeping:
            if len(self._open) == 0:
                self._keeper = None
            return self._keeper is None


class RaplWindow:
    """An open window of the RAPL counters."""

    def __init__(self, meter: RaplMeter, edges: EdgeWindow) -> None:
        self.meter = meter
        self.edges = edges

    def stop(self) -> None:
        """Set the closing moment and read, without waiting for a tick."""
        self.edges.stop()

    def close(self) -> Reading:
        """The energy since the window was opened."""
        return self.meter.close(self)


def _keep_reading(reference: weakref.ref[RaplMeter], every_s: float) -> None:
    # Holds no reference to the meter while it sleeps, so that a dropped meter ends the thread.
    while True:
        time.sleep(every_s)
        meter = reference()
        if meter is None or meter.idle():
            return
        meter.refresh()
        del meter


def find_rapl(
    root: Path = Path("/"), *, clock: Clock = time.perf_counter, sleep: Sleep = time.sleep
) -> RaplMeter | Unavailable:
    """The RAPL meter of this machine, proven by reading every counter, or why there is none.

    Args:
        root: where ``sys/class/powercap`` is found.
        clock: a monotonic clock in seconds.
        sleep: waits so many seconds of that clock.
    """
    try:
        zones = _zones(root / "sys/class/powercap", clock)
        if not zones:
            return _unavailable(
                "this machine shows no CPU energy counters (/sys/class/powercap/intel-rapl:*); "
                "virtual machines, containers and CPUs other than x86 have none"
            )
        for zone in zones:
            zone.read_uj()
        stuck = [zone for zone in zones if not _moves(zone, clock, sleep)]
    except PermissionError as error:
        return _unavailable(f"only root may read {error.filename}", REMEDY)
    except (OSError, ValueError, Unreadable) as error:
        return _unavailable(f"the CPU energy counters cannot be read: {_reason(error)}")
    dead = [zone.label for zone in stuck if zone.domain == "cpu"]
    if dead:
        return _unavailable(f"the CPU energy counter {dead[0]} does not move")
    moving = [zone for zone in zones if zone not in stuck]
    return RaplMeter(moving, [zone.label for zone in stuck], clock, sleep)


def _moves(zone: Zone, clock: Clock, sleep: Sleep) -> bool:
    """Whether a counter moves; its period is then known."""
    period = find_period(zone.counter, clock, sleep)
    if period is not None:
        zone.counter.period = period
    return period is not None


def _zones(folder: Path, clock: Clock) -> list[Zone]:
    found = []
    for path in sorted(folder.glob("intel-rapl:*")):
        label = (path / "name").read_text().strip()
        domain = _domain(label, path.name.count(":"))
        if domain is not None:
            found.append(Zone(path, label, domain, clock))
    found.sort(key=lambda zone: zone.domain != "cpu")
    return found


def _domain(label: str, depth: int) -> str | None:
    if depth == 1 and label.startswith("package"):
        return "cpu"
    return "dram" if label == "dram" else None


def _unavailable(reason: str, remedy: str = "") -> Unavailable:
    return Unavailable(NAME, ("cpu",), reason, remedy)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}"
    return str(error)

"""A machine at the vendors' boundaries: a folder like sysfs, a module that answers as pynvml.

Its time is a clock that goes on when it is looked at or slept on; its counters show the energy of
a load up to their latest tick, as real ones do.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

RANGE_UJ = 262_143_328_850


class Clock:
    """A monotonic clock that goes on by ``step_s`` with every look, and by sleeping."""

    def __init__(self, step_s: float = 0.0) -> None:
        self.now_s = 100.0
        self.step_s = step_s
        self.on_tick: Callable[[], None] = lambda: None
        self._due: list[tuple[float, int, float, Callable[[], None]]] = []

    def __call__(self) -> float:
        self.sleep(self.step_s)
        return self.now_s

    def sleep(self, seconds: float) -> None:
        """Go on; whatever is due in between is called at its time."""
        until_s = self.now_s + seconds
        while self._due and self._due[0][0] <= until_s:
            due_s, number, every_s, call = heapq.heappop(self._due)
            self.now_s = max(self.now_s, due_s)
            heapq.heappush(self._due, (due_s + every_s, number, every_s, call))
            self.on_tick()
            call()
        self.now_s = max(self.now_s, until_s)
        self.on_tick()

    def every(self, every_s: float, call: Callable[[], None]) -> None:
        """Call something again and again, as a thread would."""
        heapq.heappush(self._due, (self.now_s + every_s, len(self._due), every_s, call))


class Load:
    """Power over time: straight lines between points (seconds, watts), constant beyond them."""

    def __init__(self, *points: tuple[float, float]) -> None:
        self.points = sorted(points, key=lambda point: point[0])

    def watts(self, time_s: float) -> float:
        """Power at a moment."""
        before = [point for point in self.points if point[0] <= time_s]
        after = [point for point in self.points if point[0] > time_s]
        if not before or not after:
            return (before or after)[-1 if before else 0][1]
        (a_s, a_w), (b_s, b_w) = before[-1], after[0]
        return a_w + (b_w - a_w) * (time_s - a_s) / (b_s - a_s)

    def joules(self, time_s: float) -> float:
        """Energy since the clock's 0."""
        first_s, first_w = self.points[0]
        total = first_w * min(time_s, first_s)
        for (a_s, a_w), (b_s, b_w) in zip(self.points, self.points[1:], strict=False):
            end_s = min(max(time_s, a_s), b_s)
            if b_s > a_s:
                end_w = a_w + (b_w - a_w) * (end_s - a_s) / (b_s - a_s)
                total += (a_w + end_w) / 2 * (end_s - a_s)
        last_s, last_w = self.points[-1]
        return total + last_w * max(time_s - last_s, 0.0)


@dataclass
class Ticking:
    """A counter that shows a load's energy at its latest tick, in whole units.

    Attributes:
        read_s: how long a read takes; the value is that of the middle of it.
        stuck_s: from this moment on it does not move.
        reset_s: at this moment it starts at 0 again.
    """

    clock: Clock
    load: Load
    period_s: float
    unit_j: float
    range_units: int | None = None
    offset: int = 0
    phase_s: float = 0.0
    read_s: float = 0.0
    stuck_s: float = math.inf
    reset_s: float = math.inf

    def __call__(self) -> int:
        """What it shows now."""
        self.clock.sleep(self.read_s / 2)
        now_s = min(self.clock.now_s, self.stuck_s)
        tick_s = math.floor((now_s - self.phase_s) / self.period_s + 1e-9) * self.period_s
        joules = self.load.joules(tick_s + self.phase_s)
        shown = self.offset + math.floor(joules / self.unit_j + 1e-6)
        if now_s >= self.reset_s:
            shown -= self.offset + math.floor(self.load.joules(self.reset_s) / self.unit_j)
        self.clock.sleep(self.read_s / 2)
        return shown if self.range_units is None else shown % self.range_units


class Powercap:
    """``/sys/class/powercap`` with zones whose counters a test sets, or a load drives."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "sys/class/powercap"
        self.folder.mkdir(parents=True)

    def zone(self, name: str, label: str, energy_uj: int = 0, range_uj: int = RANGE_UJ) -> Path:
        """Add a zone."""
        folder = self.folder / name
        folder.mkdir()
        (folder / "name").write_text(f"{label}\n")
        (folder / "max_energy_range_uj").write_text(f"{range_uj}\n")
        (folder / "energy_uj").write_text(f"{energy_uj}\n")
        return folder

    def drive(self, clock: Clock, *zones: tuple[str, Ticking]) -> None:
        """From now on the zones show what their counters do."""
        shown: dict[str, int] = {}

        def update() -> None:
            for name, ticking in zones:
                value = ticking()
                # Replaced in place only where it is still there: a test may have removed it.
                if shown.get(name) != value and (self.folder / name / "energy_uj").exists():
                    self.set_uj(name, value)
                    shown[name] = value

        # A counter is looked at without spending time, or the clock would call it again.
        for _, ticking in zones:
            assert ticking.read_s == 0
            ticking.clock = SimpleClock(clock)  # type: ignore[assignment]
        clock.on_tick = update
        update()

    def set_uj(self, name: str, energy_uj: int) -> None:
        """Set a counter."""
        (self.folder / name / "energy_uj").write_text(f"{energy_uj}\n")


class SimpleClock:
    """The time of another clock, which it does not move."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    @property
    def now_s(self) -> float:
        """The time of the other clock."""
        return self._clock.now_s

    def sleep(self, seconds: float) -> None:
        """Does nothing."""
        assert seconds == 0


class NVMLError(Exception):
    """As pynvml raises it."""


@dataclass
class Card:
    """A card of the fake library; what is None it does not support.

    Attributes:
        energy_mj: goes on by ``step_mj`` with every read, unless ``counter`` shows the energy.
        instant_w: the field of instant power; ``usage_w`` the older power reading.
        others: process ids on the card.
    """

    name: str = "NVIDIA H200"
    uuid: str = "GPU-aaaa-1"
    energy_mj: int | None = 1000
    mig: bool = False
    step_mj: int = 1
    lost: bool = field(default=False)
    counter: Callable[[], int] | None = None
    instant_w: Callable[[], float] | None = None
    usage_w: Callable[[], float] | None = None
    architecture: int | None = None
    sm_mhz: int | None = None
    memory_mhz: int | None = None
    temperature_c: int | None = None
    reasons: int | None = None
    limit_w: float | None = None
    others: tuple[int, ...] | None = None
    pci: str | None = None


def _supported(value: Any) -> Any:
    if value is None:
        raise NVMLError("Not Supported")
    return value


def _energy(card: Card) -> int:
    if card.lost:
        raise NVMLError("GPU is lost")
    if card.counter is not None:
        return card.counter()
    if card.energy_mj is None:
        raise NVMLError("Not Supported")
    card.energy_mj += card.step_mj
    return card.energy_mj


def _fields(card: Card, fields: list[int]) -> list[Any]:
    assert fields == [186]
    if card.instant_w is None:
        return [SimpleNamespace(nvmlReturn=3, valueType=1, value=SimpleNamespace(uiVal=0))]
    milliwatts = round(card.instant_w() * 1e3)
    return [SimpleNamespace(nvmlReturn=0, valueType=1, value=SimpleNamespace(uiVal=milliwatts))]


def _processes(card: Card) -> list[Any]:
    return [SimpleNamespace(pid=pid) for pid in _supported(card.others)]


def fake_nvml(*cards: Card, driver: bool = True, without: tuple[str, ...] = ()) -> ModuleType:
    """A module that answers as pynvml with these cards.

    Args:
        driver: whether there is one.
        without: functions that this version has not.
    """

    def start() -> None:
        if not driver:
            raise NVMLError("Driver Not Loaded")

    functions: dict[str, Any] = {
        "nvmlInit": start,
        "nvmlDeviceGetCount": lambda: len(cards),
        "nvmlDeviceGetHandleByIndex": lambda index: cards[index],
        "nvmlDeviceGetName": lambda card: card.name,
        "nvmlDeviceGetUUID": lambda card: card.uuid,
        "nvmlDeviceGetMemoryInfo": lambda card: SimpleNamespace(total=143_771 * 2**20),
        "nvmlDeviceGetMigMode": lambda card: (int(card.mig), int(card.mig)),
        "nvmlDeviceGetPciInfo": lambda card: SimpleNamespace(busId=_supported(card.pci)),
        "nvmlDeviceGetTotalEnergyConsumption": _energy,
        "nvmlDeviceGetFieldValues": _fields,
        "nvmlDeviceGetPowerUsage": lambda card: round(_supported(card.usage_w)() * 1e3),
        "nvmlDeviceGetEnforcedPowerLimit": lambda card: round(_supported(card.limit_w) * 1e3),
        "nvmlDeviceGetArchitecture": lambda card: _supported(card.architecture),
        "nvmlDeviceGetClockInfo": lambda card, kind: _supported(
            {1: card.sm_mhz, 2: card.memory_mhz}[kind]
        ),
        "nvmlDeviceGetTemperature": lambda card, sensor: _supported(card.temperature_c),
        "nvmlDeviceGetCurrentClocksEventReasons": lambda card: _supported(card.reasons),
        "nvmlDeviceGetCurrentClocksThrottleReasons": lambda card: _supported(card.reasons),
        "nvmlDeviceGetComputeRunningProcesses": _processes,
        "nvmlDeviceGetGraphicsRunningProcesses": _processes,
    }
    library: Any = ModuleType("pynvml")
    library.NVMLError = NVMLError
    for name, function in functions.items():
        if name not in without:
            setattr(library, name, function)
    assert isinstance(library, ModuleType)
    return library


@dataclass
class Rails:
    """INA3221 sensors of a module in sysfs; ``old`` is the iio driver of JetPack 4.

    ``rails`` is a chip's labels in the order of its channels, one tuple per chip.
    """

    root: Path
    rails: tuple[tuple[str, ...], ...]
    old: bool = False
    volts: float = 5.0

    def __post_init__(self) -> None:
        for number, labels in enumerate(self.rails):
            folder = self._folder(number)
            folder.mkdir(parents=True)
            for channel, label in enumerate(labels):
                name = f"rail_name_{channel}" if self.old else f"in{channel + 1}_label"
                (folder / name).write_text(f"{label}\n")
            if not self.old:
                (folder / "in7_label").write_text("sum of shunt voltages\n")
        for label in (label for labels in self.rails for label in labels):
            self.set_w(label, 1.0)

    def _folder(self, number: int) -> Path:
        bus = self.root / "sys/bus/i2c/drivers"
        if self.old:
            return bus / f"ina3221x/1-004{number}/iio:device{number}"
        return bus / f"ina3221/1-004{number}/hwmon/hwmon{number + 2}"

    def files(self, label: str) -> list[Path]:
        """The files that a rail's power is read from."""
        for number, labels in enumerate(self.rails):
            if label in labels:
                folder, channel = self._folder(number), labels.index(label)
                if self.old:
                    return [folder / f"in_power{channel}_input"]
                return [folder / f"in{channel + 1}_input", folder / f"curr{channel + 1}_input"]
        raise KeyError(label)

    def set_w(self, label: str, watts: float) -> None:
        """Set the power of a rail."""
        files = self.files(label)
        if self.old:
            files[0].write_text(f"{round(watts * 1e3)}\n")
        else:
            files[0].write_text(f"{round(self.volts * 1e3)}\n")
            files[1].write_text(f"{round(watts / self.volts * 1e3)}\n")

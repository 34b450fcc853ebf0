"""A machine at the vendors' boundaries: a folder like sysfs, a module that answers as pynvml."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

RANGE_UJ = 262_143_328_850


class Clock:
    """A monotonic clock that goes on by ``step_s`` with every look."""

    def __init__(self, step_s: float = 0.0) -> None:
        self.now_s = 100.0
        self.step_s = step_s
        self.on_tick: Callable[[], None] = lambda: None

    def __call__(self) -> float:
        self.now_s += self.step_s
        self.on_tick()
        return self.now_s


class Powercap:
    """``/sys/class/powercap`` with zones whose counters a test sets."""

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

    def set_uj(self, name: str, energy_uj: int) -> None:
        """Set a counter."""
        (self.folder / name / "energy_uj").write_text(f"{energy_uj}\n")

    def add_uj(self, name: str, energy_uj: int, range_uj: int = RANGE_UJ) -> None:
        """Let a counter go on, beyond its range if need be."""
        now = int((self.folder / name / "energy_uj").read_text())
        self.set_uj(name, (now + energy_uj) % range_uj)


class NVMLError(Exception):
    """As pynvml raises it."""


@dataclass
class Card:
    """A card of the fake library; ``energy_mj`` None is a card without a counter."""

    name: str = "NVIDIA H200"
    uuid: str = "GPU-aaaa-1"
    energy_mj: int | None = 1000
    mig: bool = False
    step_mj: int = 1
    lost: bool = field(default=False)


def fake_nvml(*cards: Card, driver: bool = True) -> ModuleType:
    """A module that answers as pynvml with these cards."""
    library: Any = ModuleType("pynvml")
    library.NVMLError = NVMLError

    def start() -> None:
        if not driver:
            raise NVMLError("Driver Not Loaded")

    def energy(card: Card) -> int:
        if card.lost:
            raise NVMLError("GPU is lost")
        if card.energy_mj is None:
            raise NVMLError("Not Supported")
        card.energy_mj += card.step_mj
        return card.energy_mj

    library.nvmlInit = start
    library.nvmlDeviceGetCount = lambda: len(cards)
    library.nvmlDeviceGetHandleByIndex = lambda index: cards[index]
    library.nvmlDeviceGetName = lambda card: card.name
    library.nvmlDeviceGetUUID = lambda card: card.uuid
    library.nvmlDeviceGetMemoryInfo = lambda card: SimpleNamespace(total=143_771 * 2**20)
    library.nvmlDeviceGetMigMode = lambda card: (int(card.mig), int(card.mig))
    library.nvmlDeviceGetTotalEnergyConsumption = energy
    assert isinstance(library, ModuleType)
    return library

"""Clocks at the vendors' boundaries: folders like sysfs with the kernel behind, locks of NVML."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from exitbench.harness.clocks import sysfs
from exitbench.harness.clocks.base import Actuator
from exitbench.harness.clocks.cores import find_cores
from exitbench.harness.clocks.cpufreq import find_cpufreq
from exitbench.harness.clocks.devfreq import find_devfreq
from fake_machine import Card, NVMLError, fake_nvml

CPU = "sys/devices/system/cpu"
CPUFREQ = f"{CPU}/cpufreq"
DEVFREQ = "sys/class/devfreq"
EMC = "sys/kernel/debug/bpmp/debug/clk/emc"
TX2_CPU_KHZ = (345600, 499200, 652800, 806400, 960000, 1113600, 1267200, 2035200)
TX2_GPU_HZ = (114750000, 854250000, 1122000000, 1300500000)
EMC_FREE_HZ = 665600000
CPU_MODEL = "Fake CPU"

Rule = Callable[[Path, str], str | None]
"""What a driver makes of a value: another value, or None to keep what was there. May raise."""


def write_files(folder: Path, **values: object) -> Path:
    """A folder with one file per value."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        (folder / name).write_text(f"{value}\n")
    return folder


def add_cpuinfo(root: Path, model: str = CPU_MODEL) -> Path:
    """The name of the CPU, by which a run's machine is told from others."""
    return write_files(root / "proc", cpuinfo=f"processor\t: 0\nmodel name\t: {model}")


def add_policy(
    root: Path, number: int, khz: Iterable[int] = TX2_CPU_KHZ, *, governor: str = "schedutil"
) -> Path:
    """A cpufreq policy whose driver lists its levels, free to move between them."""
    levels = sorted(khz)
    folder = add_range_policy(root, number, levels[0], levels[-1], governor=governor)
    return write_files(folder, scaling_available_frequencies=" ".join(map(str, levels)))


def add_range_policy(
    root: Path, number: int, low_khz: int, high_khz: int, *, governor: str = "powersave"
) -> Path:
    """A cpufreq policy as under intel_pstate: a range and no list."""
    return write_files(
        root / CPUFREQ / f"policy{number}",
        cpuinfo_min_freq=low_khz,
        cpuinfo_max_freq=high_khz,
        scaling_min_freq=low_khz,
        scaling_max_freq=high_khz,
        scaling_cur_freq=low_khz,
        scaling_governor=governor,
    )


def add_devfreq(root: Path, node: str, hz: Iterable[int] = TX2_GPU_HZ) -> Path:
    """A devfreq node that is free to move, and idles."""
    levels = sorted(hz)
    return write_files(
        root / DEVFREQ / node,
        available_frequencies=" ".join(map(str, levels)),
        min_freq=levels[0],
        max_freq=levels[-1],
        cur_freq=levels[0],
    )


def add_emc(root: Path, khz: Iterable[int] = (204000, 665600, 2133000)) -> Path:
    """The memory clock of a Jetson, free to move."""
    rates = sorted(khz)
    if rates:
        listed = f"{' '.join(map(str, rates))} (kHz)"
        write_files(root / EMC.replace("/clk/emc", "/emc"), possible_rates=listed)
    return write_files(
        root / EMC,
        mrq_rate_locked=0,
        rate=EMC_FREE_HZ,
        min_rate=204000000,
        max_rate=2133000000,
    )


def add_cores(root: Path, present: int, *, offline: Iterable[int] = ()) -> Path:
    """CPUs, of which cpu0 cannot be switched off, as on x86."""
    off = set(offline)
    for cpu in range(present):
        folder = root / CPU / f"cpu{cpu}"
        folder.mkdir(parents=True, exist_ok=True)
        if cpu:
            write_files(folder, online=int(cpu not in off))
    return root / CPU


def content(root: Path) -> dict[str, str]:
    """All files of a tree, so that before and after can be compared."""
    return {
        str(path.relative_to(root)): path.read_text()
        for path in sorted((root / "sys").rglob("*"))
        if path.is_file()
    }


@dataclass
class Kernel:
    """Takes what is written to a tree as Linux does.

    Limits that cross are refused, clocks follow their limits, and the memory clock moves only
    while it is locked.

    Attributes:
        rules: by the end of a path: what the driver of that file makes of a value.
        before_write: called with the number of the write, from 0.
        writes: what was to be written, in order: path and value.
    """

    rules: dict[str, Rule] = field(default_factory=dict)
    before_write: Callable[[int], None] = lambda count: None
    writes: list[tuple[Path, str]] = field(default_factory=list)

    def put_text(self, path: Path, text: str) -> None:
        """Stands in for ``sysfs.put_text``."""
        self.writes.append((path, text.strip()))
        self.before_write(len(self.writes) - 1)
        value: str | None = text.strip()
        for end, rule in self.rules.items():
            if value is not None and str(path).endswith(end):
                value = rule(path, value)
        if value is None:
            return
        if not path.exists():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        _refuse_crossing(path, int(value) if value.isdigit() else None)
        path.write_text(f"{value}\n")
        _follow(path.parent, path.name)


def install(kernel: Kernel) -> Kernel:
    """Put the kernel behind the files; for a child process, which ends with it."""
    sysfs.put_text = kernel.put_text
    return kernel


def refuse(code: int) -> Rule:
    """A driver that answers a write with an error."""

    def rule(path: Path, value: str) -> str | None:
        raise OSError(code, os.strerror(code), str(path))

    return rule


def refuse_above(limit: int, code: int = errno.EINVAL) -> Rule:
    """A driver that takes no value above a limit."""

    def rule(path: Path, value: str) -> str | None:
        if int(value) > limit:
            raise OSError(code, os.strerror(code), str(path))
        return value

    return rule


def ignore(path: Path, value: str) -> str | None:
    """A driver that says yes and does nothing."""
    return None


def round_up(step: int) -> Rule:
    """A driver that takes the next multiple of a step."""
    return lambda path, value: str(-(-int(value) // step) * step)


def _number(path: Path) -> int:
    return int(path.read_text())


def _refuse_crossing(path: Path, value: int | None) -> None:
    name = path.name
    if "min_freq" in name or "max_freq" in name:
        other = path.with_name(name.replace("min", "MAX").replace("max", "min").lower())
        low, high = (value, _number(other)) if "min" in name else (_number(other), value)
        if low is None or high is None or low > high:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), str(path))


def _follow(folder: Path, name: str) -> None:
    for low, high, clock in (
        ("min_freq", "max_freq", "cur_freq"),
        ("scaling_min_freq", "scaling_max_freq", "scaling_cur_freq"),
    ):
        if name in (low, high):
            # Idle, it goes to the lowest clock that it may.
            (folder / clock).write_text(f"{_number(folder / low)}\n")
    if name in ("mrq_rate_locked", "rate") and _number(folder / "mrq_rate_locked") == 0:
        (folder / "rate").write_text(f"{EMC_FREE_HZ}\n")


class CodedNVMLError(NVMLError):
    """An error with the code of nvml.h, as pynvml raises it."""

    def __init__(self, value: int, words: str) -> None:
        super().__init__(words)
        self.value = value


@dataclass
class ClockCard(Card):
    """A card whose clocks can be locked.

    Attributes:
        graphics_clocks, memory_clocks: in MHz, as the card lists them.
        free_mhz: what the two clocks are without a lock.
        lock_error: what the driver answers to a lock, by the kind of clock.
        obeys: whether a lock has an effect.
        limits: why the card runs below its lock, as bits of nvml.h.
        runs_mhz: the graphics clock whatever the lock; None: the lock.
        locks: the locks that are set.
        calls: the calls that change something, in order.
    """

    graphics_clocks: tuple[int, ...] = tuple(range(210, 1411, 15))
    memory_clocks: tuple[int, ...] = (1593,)
    free_mhz: dict[str, int] = field(default_factory=lambda: {"gpu": 1410, "memory": 1593})
    lock_error: dict[str, CodedNVMLError] = field(default_factory=dict)
    obeys: bool = True
    limits: int = 0
    runs_mhz: int | None = None
    locks: dict[str, tuple[int, int]] = field(default_factory=dict)
    calls: list[tuple[Any, ...]] = field(default_factory=list)


def lockable_nvml(*cards: ClockCard) -> ModuleType:
    """A module that answers as pynvml with cards whose clocks can be locked."""
    library: Any = fake_nvml(*cards)

    def lock(kind: str) -> Callable[[ClockCard, int, int], None]:
        def locked(card: ClockCard, low: int, high: int) -> None:
            card.calls.append(("lock", kind, low, high))
            if kind in card.lock_error:
                raise card.lock_error[kind]
            card.locks[kind] = (low, high)

        return locked

    def reset(kind: str) -> Callable[[ClockCard], None]:
        def freed(card: ClockCard) -> None:
            card.calls.append(("reset", kind))
            if kind in card.lock_error:
                raise card.lock_error[kind]
            card.locks.pop(kind, None)

        return freed

    def clock(card: ClockCard, kind: int) -> int:
        name = "memory" if kind == 2 else "gpu"
        if name == "gpu" and card.runs_mhz is not None:
            return card.runs_mhz
        if name in card.locks and card.obeys:
            return card.locks[name][0]
        return card.free_mhz[name]

    library.nvmlDeviceSetGpuLockedClocks = lock("gpu")
    library.nvmlDeviceResetGpuLockedClocks = reset("gpu")
    library.nvmlDeviceSetMemoryLockedClocks = lock("memory")
    library.nvmlDeviceResetMemoryLockedClocks = reset("memory")
    library.nvmlDeviceGetClockInfo = clock
    library.nvmlDeviceGetSupportedMemoryClocks = lambda card: list(card.memory_clocks)
    library.nvmlDeviceGetSupportedGraphicsClocks = lambda card, memory: list(card.graphics_clocks)
    library.nvmlDeviceGetCurrentClocksEventReasons = lambda card: card.limits
    assert isinstance(library, ModuleType)
    return library


def small_board(root: Path) -> dict[str, Actuator]:
    """CPU and GPU clocks, and cores, of a small board."""
    add_policy(root, 0)
    add_cores(root, 4)
    add_devfreq(root, "17000000.gp10b")
    return {
        "gpu": find_devfreq(root, "gpu", ("*.gp10b",)),
        "cpu": find_cpufreq(root),
        "cores": find_cores(root),
    }

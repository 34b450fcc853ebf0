"""What a machine is set to while it is measured: clock governors, limits, load."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ..profiles.nvml import Gpu, ask, list_gpus, open_nvml


@dataclass(frozen=True)
class ClockPolicy:
    """CPU cores whose clock is set as one, as Linux's cpufreq shows them; None is unknown.

    Attributes:
        name: such as ``policy0``.
        cpus: numbers of the cores, as the kernel writes them.
        driver, governor: who sets the clock, and by which rule.
        min_mhz, max_mhz: the limits that are set.
        now_mhz: the clock at the moment, or the one asked for.
    """

    name: str
    cpus: str | None
    driver: str | None
    governor: str | None
    min_mhz: float | None
    max_mhz: float | None
    now_mhz: float | None


def clock_policies(root: Path = Path("/")) -> list[ClockPolicy]:
    """Every cpufreq policy of the machine; none where it shows none, as in most guests.

    Args:
        root: where ``sys`` is found.
    """
    folder = root / "sys/devices/system/cpu/cpufreq"
    paths = sorted(folder.glob("policy*"), key=lambda path: (len(path.name), path.name))
    return [
        ClockPolicy(
            name=path.name,
            cpus=_text(path / "affected_cpus"),
            driver=_text(path / "scaling_driver"),
            governor=_text(path / "scaling_governor"),
            min_mhz=_mhz(path / "scaling_min_freq"),
            max_mhz=_mhz(path / "scaling_max_freq"),
            now_mhz=_mhz(path / "scaling_cur_freq"),
        )
        for path in paths
    ]


def policy_words(policies: list[ClockPolicy]) -> Iterator[str]:
    """One line for each kind of policy: governor, driver and limits, with who has them."""
    alike: dict[tuple[Any, ...], list[str]] = {}
    for each in policies:
        key = (each.governor, each.driver, each.min_mhz, each.max_mhz)
        alike.setdefault(key, []).append(each.name)
    for (governor, driver, low, high), names in alike.items():
        span = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
        limits = "unknown limits" if None in (low, high) else f"{low:g} to {high:g} MHz"
        yield f"{span}: governor {governor or 'unknown'}, driver {driver or 'unknown'}, {limits}"


def settings(root: Path = Path("/"), nvml: ModuleType | None = None) -> dict[str, Any]:
    """What to record beside a measurement that is to be published, as plain values.

    Args:
        root: where ``sys`` is found.
        nvml: what answers as ``pynvml``; the installed one if None.
    """
    opened = open_nvml(nvml)
    return {
        "gpu_driver": opened.library and ask(opened.library, "nvmlSystemGetDriverVersion"),
        "gpus": [_card(opened.library, gpu) for gpu in list_gpus(opened)],
        "clock_policies": [asdict(policy) for policy in clock_policies(root)],
        "boost": _text(root / "sys/devices/system/cpu/cpufreq/boost"),
        "no_turbo": _text(root / "sys/devices/system/cpu/intel_pstate/no_turbo"),
        "smt_active": _text(root / "sys/devices/system/cpu/smt/active"),
        "load_1min": round(os.getloadavg()[0], 2),
    }


def _card(library: Any, gpu: Gpu) -> dict[str, Any]:
    """How a card is set; None is what it does not tell."""
    handle = library.nvmlDeviceGetHandleByIndex(gpu.index)
    ecc = ask(library, "nvmlDeviceGetEccMode", handle)
    limit_mw = ask(library, "nvmlDeviceGetEnforcedPowerLimit", handle)
    return {
        "index": gpu.index,
        "name": gpu.name,
        "persistence_mode": ask(library, "nvmlDeviceGetPersistenceMode", handle),
        "ecc": None if ecc is None else ecc[0],
        "power_limit_w": None if limit_mw is None else limit_mw * 1e-3,
    }


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def _mhz(path: Path) -> float | None:
    text = _text(path)
    return int(text) / 1e3 if text is not None and text.isdecimal() else None

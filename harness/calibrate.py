"""``hardware calibrate``: this machine measured and written as a hardware profile.

idle -> matrix products per format -> memory -> a convolution -> power at work -> clock by clock

Watts come from the meters that a run would get; where they would be modelled, nothing is learned
from a model, and the figures of the fitting profile stay, marked as assumptions. Clocks are set
only where that is allowed, and are put back.
"""

from __future__ import annotations

import time
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from types import ModuleType

import torch

from ..profiles.detect import detect
from ..profiles.schema import Profile
from ..profiles.shape import faults_of
from ..profiles.writing import profile_text
from .calibrated import COMMAND, LevelRun, Measured, calibrated_profile, without
from .clocks.base import Actuator, ClockError, LeftChanged
from .clocks.choose import find_actuators
from .clocks.session import ClockSession
from .conditions import clock_policies, policy_words
from .configs_device import HardwareCalibrateConfig
from .devices import apply_threads, resolve_device
from .environment import working_share
from .errors import ExitbenchError
from .files import check_writable, write_text
from .hardware import hardware_profile
from .loads import (
    Load,
    Rate,
    convolution,
    fastest,
    memory_loads,
    product_formats,
    products,
    rate_of,
    synchroniser,
)
from .metering import open_meter
from .meters.base import Meter, Reading, minimum_window_s

Say = Callable[[str], None]

_WINDOWS = 6  # of which the median is taken
_LEVELS = 8  # clocks that are measured, evenly spread, both ends among them
_SETTLE_S = 1.0
_STEADY = 0.7  # of the best call's speed; on a quiet machine the median call is well above it
_LEAST_RISE = 1.02  # power at work to idle power, below which nothing was learned


@dataclass(frozen=True)
class Bench:
    """What the measurements are made on.

    Attributes:
        threads: CPU threads of the loads.
        seconds: of each measurement.
        synchronise: waits until the device has finished.
    """

    device: torch.device
    threads: int
    meter: Meter
    seconds: float
    synchronise: Callable[[], None]
    say: Say

    @property
    def device_class(self) -> str:
        """``cpu`` or ``gpu``."""
        return "gpu" if self.device.type == "cuda" else "cpu"

    @property
    def working(self) -> float:
        """Share of the logical CPUs that work; 1 on a GPU."""
        if self.device_class == "gpu":
            return 1.0
        return working_share(self.threads)


def run_hardware_calibrate(
    config: HardwareCalibrateConfig,
    say: Say,
    *,
    root: Path = Path("/"),
    nvml: ModuleType | None = None,
    journal: Path | None = None,
) -> None:
    """Measure this machine and write its hardware profile.

    Args:
        config: what to write, and how long to measure.
        say: takes one line.
        root: where ``proc`` and ``sys`` are found.
        nvml: what answers as ``pynvml``; the installed one if None.
        journal: where the clocks are kept while they are changed; this user's place if None.

    Raises:
        ExitbenchError: the file is there already, or nothing is known of such a machine.
    """
    _check_target(config.write)
    device = resolve_device(config.device.device)
    threads = apply_threads(config.device.threads)
    machine = detect(root, nvml=nvml)
    base = hardware_profile("auto", str(device), machine).profile
    if base is None:
        raise ExitbenchError(
            "no shipped hardware profile fits this machine, so there is nothing to start from. "
            "Write one by hand as docs/hardware.md tells."
        )
    meter = open_meter(str(device), base, config.metering, threads=threads, root=root, nvml=nvml)
    say(f"on {_what(device, threads)}; what is not measured comes from {base.name}")
    say(meter.words)
    bench = Bench(device, threads, meter, config.seconds, synchroniser(device), say)
    measured = measure_machine(bench, base, root=root, nvml=nvml, journal=journal)
    profile = calibrated_profile(config.name or config.write.stem, base, machine, measured)
    _write(config.write, profile, measured, base.name)
    for words in without(profile, measured):
        say(f"not measured, taken over from {base.name} as an assumption: {words}")
    say(f"written: {config.write}; use it by --hardware {config.write}")


def measure_machine(
    bench: Bench,
    base: Profile,
    *,
    root: Path = Path("/"),
    nvml: ModuleType | None = None,
    journal: Path | None = None,
) -> Measured:
    """All that can be measured of one device class.

    Args:
        bench: device, meter and time.
        base: the fitting profile; says which clocks there may be.
        root, nvml, journal: as those of ``run_hardware_calibrate``.
    """
    own = bench.device_class
    idle_w = _power(bench, time.sleep)
    peaks, heavy = _peaks(bench)
    layer = convolution(bench.device)
    speed = rate_of(layer, bench.seconds / 2, bench.synchronise)
    bench.say(f"{speed.words}: {layer.amount / speed.best * 1e3:.4g} ms")
    _warn_if_busy(bench, {**peaks, "the convolution": speed})
    active_w = _power_under(bench, heavy)
    idle_w, active_w = _sound(bench, idle_w, active_w)
    actuator = _actuator(bench, base, root, nvml)
    runs: tuple[LevelRun, ...] = ()
    if actuator is not None:
        watched = heavy if active_w is not None else None
        runs = _levels(bench, actuator, watched, layer, journal)
    return Measured(
        device_class=own,
        date=datetime.now(UTC).date().isoformat(),
        covers=_covers(bench.meter, own),
        device=_what(bench.device, bench.threads),
        meter=bench.meter.name if active_w is not None else "",
        load=heavy.words,
        idle_w=idle_w,
        active_w=active_w,
        working=bench.working,
        peaks=peaks,
        convolution=speed,
        actuator="" if actuator is None else actuator.name,
        levels=() if actuator is None else actuator.levels(),
        span_mhz=_span_mhz(root) if own == "cpu" else None,
        runs=runs,
        comments=tuple(_comments(bench, root)),
    )


def _peaks(bench: Bench) -> tuple[dict[str, Rate], Load]:
    """The peaks by name, and the fp32 product that saturates the device."""
    peaks: dict[str, Rate] = {}
    loads: dict[str, Load] = {}
    for key, words in product_formats(bench.device).items():
        load, rate = fastest(products(words, bench.device), bench.seconds / 4, bench.synchronise)
        loads[key], peaks[key] = load, rate
        bench.say(f"{key} = {rate.best * 1e-9:.4g} ({rate.words}, best of {rate.calls})")
    # Without instructions of its own a format is slower than fp32, and then has no peak.
    fp32 = peaks["fp32_gflops"].best
    peaks = {key: rate for key, rate in peaks.items() if key == "fp32_gflops" or rate.best > fp32}
    copied = [
        rate_of(load, bench.seconds / 2, bench.synchronise) for load in memory_loads(bench.device)
    ]
    bench.say("; ".join(f"{rate.words}: {rate.best * 1e-9:.4g} GB/s" for rate in copied))
    peaks["bandwidth_gb_s"] = max(copied, key=lambda rate: rate.best)
    return peaks, loads["fp32_gflops"]


def _warn_if_busy(bench: Bench, rates: Mapping[str, Rate]) -> None:
    slow = [name for name, rate in rates.items() if rate.typical < _STEADY * rate.best]
    if slow:
        bench.say(
            f"the machine is not quiet: half of the calls ran below {_STEADY:.0%} of the best "
            f"({', '.join(slow)}). The best are taken; measure again when nothing else runs"
        )


def _check_target(path: Path) -> None:
    if path.suffix != ".toml":
        raise ExitbenchError(
            f"--write is {path}; a hardware profile is a file that ends in .toml, so that "
            f"--hardware knows it for one. Write {path.with_name(path.name + '.toml')}."
        )
    if path.exists():
        raise ExitbenchError(
            f"{path} is there already, and measurements in it would be lost. Choose another "
            "--write, or remove the file first."
        )
    check_writable(path)


def _write(path: Path, profile: Profile, measured: Measured, base: str) -> None:
    head = [
        f"{profile.description}.",
        f"Written by {COMMAND} from the shipped profile {base}.",
        "Figures that say so are measured; all others are taken over and are assumptions here.",
        *measured.comments,
    ]
    text = profile_text(profile, head)
    faults = faults_of(tomllib.loads(text))
    if faults:
        raise ExitbenchError(
            f"what was measured makes no valid hardware profile, so {path} is not written:\n"
            + "\n".join(f"  {fault}" for fault in faults)
            + "\nWas the machine busy with something else? Try again, with a larger --seconds."
        )
    write_text(path, text)


def _power(bench: Bench, during: Callable[[float], object]) -> float | None:
    """Median watts while ``during`` runs; None where nothing measures them."""
    meter = bench.meter
    if meter.source != "measured":
        return None
    window_s = max(minimum_window_s(meter), bench.seconds / _WINDOWS)
    during(0.2 * bench.seconds)  # clocks, fans and caches come to rest
    powers, notes = [], []
    for _ in range(max(1, round(bench.seconds / window_s))):
        window = meter.open()
        during(window_s)
        bench.synchronise()
        reading = window.close()
        joules = _joules(reading, bench.device_class)
        if joules is None or reading.seconds <= 0:
            notes.append(reading.note or "a window could not be resolved")
        else:
            powers.append(joules / reading.seconds)
            notes += reading.flags
    for note in dict.fromkeys(notes):
        bench.say(note)
    return median(powers) if powers else None


def _power_under(bench: Bench, load: Load) -> float | None:
    """Median watts under a load; None where nothing measures them."""
    return _power(bench, lambda seconds: _work(bench, load, seconds))


def _joules(reading: Reading, device_class: str) -> float | None:
    if {"module", "board"} & set(reading.joules):
        return reading.total_j
    return reading.gpu_j if device_class == "gpu" else reading.cpu_j


def _covers(meter: Meter, device_class: str) -> str:
    return "module" if {"module", "board"} & set(meter.domains) else device_class


def _sound(
    bench: Bench, idle_w: float | None, active_w: float | None
) -> tuple[float | None, float | None]:
    """Idle power and power at work, or neither where the work did not show."""
    if active_w is None:
        bench.say("power is not measured: no meter measures this device here")
        return None, None
    if idle_w is not None and active_w < _LEAST_RISE * idle_w:
        bench.say(
            f"power is not taken: {active_w:.4g} W at work against {idle_w:.4g} W idle tells "
            "nothing. Is something else at work, or does the meter cover another device?"
        )
        return None, None
    idle = "unknown" if idle_w is None else f"{idle_w:.4g} W"
    bench.say(f"power: {idle} idle, {active_w:.4g} W at work")
    return idle_w, active_w


def _work(bench: Bench, load: Load, seconds: float) -> None:
    """Run a load for so long."""
    end_s = time.perf_counter() + seconds
    while time.perf_counter() < end_s:
        load.run()
        bench.synchronise()


def _actuator(bench: Bench, base: Profile, root: Path, nvml: ModuleType | None) -> Actuator | None:
    try:
        found = find_actuators(base, str(bench.device), simulated=False, root=root, nvml=nvml)
    except ClockError as error:
        bench.say(f"clocks are not measured: {error}")
        return None
    return dict(found).get("gpu" if bench.device_class == "gpu" else "cpu")


def _levels(
    bench: Bench, actuator: Actuator, watched: Load | None, layer: Load, journal: Path | None
) -> tuple[LevelRun, ...]:
    """Time of ``layer`` and power under ``watched`` at some clocks, rising; all is put back."""
    runs = []
    try:
        with ClockSession({actuator.domain: actuator}, journal=journal) as session:
            for mhz in reversed(_spread(actuator.levels())):
                session.apply({actuator.domain: mhz})
                _work(bench, layer, min(_SETTLE_S, bench.seconds / 4))
                rate = rate_of(layer, bench.seconds / 2, bench.synchronise)
                power_w = None if watched is None else _power_under(bench, watched)
                runs.append(LevelRun(mhz, layer.amount / rate.best, power_w))
                watts = "" if power_w is None else f", {power_w:.4g} W"
                bench.say(f"at {mhz:g} MHz: {runs[-1].time_s * 1e3:.4g} ms a convolution{watts}")
    except LeftChanged:
        raise  # clocks that are not back are more than a measurement that is missing
    except ClockError as error:
        bench.say(f"clocks are not measured: {error}")
        return ()
    return tuple(reversed(runs))


def _spread(levels: tuple[float, ...]) -> tuple[float, ...]:
    """At most eight levels, evenly spread, both ends among them."""
    if len(levels) <= _LEVELS:
        return levels
    step = (len(levels) - 1) / (_LEVELS - 1)
    return tuple(levels[round(step * number)] for number in range(_LEVELS))


def _span_mhz(root: Path) -> tuple[float, float] | None:
    """Lowest and highest clock of the CPU that the kernel tells; readable by everyone."""
    found: dict[str, list[float]] = {"cpuinfo_min_freq": [], "cpuinfo_max_freq": []}
    for name, values in found.items():
        for path in (root / "sys/devices/system/cpu/cpufreq").glob(f"policy*/{name}"):
            text = path.read_text(encoding="utf-8").strip()
            values += [int(text) / 1e3] if text.isdecimal() else []
    low, high = found.values()
    return (min(low), max(high)) if low and high else None


def _comments(bench: Bench, root: Path) -> list[str]:
    lines = [f"Loads: {_what(bench.device, bench.threads)}, torch {torch.__version__}."]
    for each in getattr(bench.meter, "meters", (bench.meter,)):
        period_s = each.update_period_s
        if each.source == "measured" and period_s is not None:
            lines.append(
                f"{each.name}: updates every {period_s * 1e3:.4g} ms, so windows are of "
                f"{minimum_window_s(each):.3g} s and longer."
            )
    if bench.device_class == "cpu":
        lines += [f"Clocks: {words}." for words in policy_words(clock_policies(root))]
    return lines


def _what(device: torch.device, threads: int) -> str:
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{threads} CPU thread{'s' if threads > 1 else ''}"

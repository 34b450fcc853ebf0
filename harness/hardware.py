"""The ``hardware`` commands, and the hardware profile that a run is priced with."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

from ..profiles.detect import Machine, detect, fits_of
from ..profiles.loading import list_profiles, load_profile
from ..profiles.nvml import Gpu, open_nvml
from ..profiles.schema import RAIL_PARTS, ClockDomain, Figure, Levels, Profile
from .configs_device import HardwareDetectConfig, HardwareListConfig, HardwareShowConfig
from .meters.base import Meter, Unavailable, minimum_window_s
from .meters.choose import choose_meter, cuda_index, torch_uuid
from .meters.ina3221 import find_ina3221
from .meters.nvidia import card_meter, locate
from .meters.rapl import find_rapl

Say = Callable[[str], None]

_OF_A_POINT = ("cores", "gpu_units", "power_w", "idle_w", "time_factor")
_TABLES = {
    "Peaks": "peaks",
    "Power and time over the clocks": "dvfs",
    "What a network reaches of the peaks": "model",
}


@dataclass(frozen=True)
class ChosenProfile:
    """The hardware profile of a run, and why it is that one; None where none fits."""

    profile: Profile | None
    why: str


def hardware_profile(
    hardware: str,
    device: str,
    machine: Machine | None = None,
    *,
    cuda_uuid: Callable[[int], str | None] = torch_uuid,
) -> ChosenProfile:
    """The profile that prices a run on ``device``.

    Args:
        hardware: ``auto``, a shipped name, or the path of a TOML file.
        device: as torch writes it: ``cpu``, ``cuda`` or ``cuda:N``.
        machine: what detection found; this machine is looked at if None.
        cuda_uuid: the UUID of ``cuda:N``; asks torch where it is loaded.

    Raises:
        ExitbenchError: there is no such profile, its file is wrong, or the device is of no
            known kind.
    """
    index = cuda_index(device)
    if hardware != "auto":
        return ChosenProfile(load_profile(hardware), "asked for")
    machine = detect() if machine is None else machine
    if index is not None:
        card = locate(machine.gpus, index, os.environ, cuda_uuid(index))
        if isinstance(card, Gpu):
            machine = replace(machine, gpus=(card,))
            machine = replace(machine, fits=fits_of(machine))
    fit = machine.fit_for("cpu" if index is None else "gpu") or next(iter(machine.fits), None)
    if fit is None:
        return ChosenProfile(None, "no shipped hardware profile fits this machine")
    return ChosenProfile(fit.profile, fit.why)


def run_hardware_list(config: HardwareListConfig, say: Say) -> None:
    """Say the name and description of every profile that comes with exitbench."""
    del config
    profiles = [load_profile(name) for name in list_profiles()]
    width = max(len(profile.name) for profile in profiles)
    for profile in profiles:
        say(f"{profile.name:<{width}}  {profile.description}")


def run_hardware_show(config: HardwareShowConfig, say: Say) -> None:
    """Say everything in one profile, with the source of every figure.

    Raises:
        ExitbenchError: there is no such profile, or its file is wrong.
    """
    for line in profile_lines(load_profile(config.name)):
        say(line)


def run_hardware_detect(
    config: HardwareDetectConfig,
    say: Say,
    *,
    root: Path = Path("/"),
    nvml: ModuleType | None = None,
) -> None:
    """Say what this machine is, which meters are usable and why not, and which profile fits.

    Args:
        config: nothing to choose so far.
        say: takes one line.
        root: where ``proc`` and ``sys`` are found.
        nvml: what answers as ``pynvml``; the installed one if None.
    """
    del config
    machine = detect(root, nvml=nvml)
    for line in (*_machine_lines(machine), *_meter_lines(machine, root, nvml)):
        say(line)
    say("Profiles that fit, the best first")
    for fit in machine.fits:
        say(f"  {fit.profile.name}: {fit.profile.description} ({fit.why})")
    if not machine.fits:
        say("  none; write one as docs/hardware.md tells")
    say("Energy of a run")
    for device in ("cpu", *(f"cuda:{gpu.index}" for gpu in machine.gpus)):
        profile = hardware_profile("auto", device, machine, cuda_uuid=_untold).profile
        meter = choose_meter(device, profile, root=root, nvml=nvml, cuda_uuid=_untold)
        say(f"  on {device}: {meter.words}")


def _untold(index: int) -> None:
    """What detection knows of a card's CUDA number: it does not load torch to ask."""
    del index


def profile_lines(profile: Profile) -> Iterator[str]:
    """A profile in lines of text; what is no proven figure is marked ``assumption``."""
    yield f"{profile.name}: {profile.description}"
    yield f"  file: {profile.path}"
    for key, value in profile.identity.items():
        yield f"  {key}: {value}"
    yield f"Fits where (priority {profile.priority})"
    for rule in profile.match:
        wanted = " and ".join(
            f"{key} is {' or '.join(values)}" for key, values in rule.patterns.items()
        )
        yield f"  {wanted} [{rule.source}]"
    yield from _sensor_lines(profile)
    for device, power in profile.power.items():
        yield f"Power while the {device.upper()} runs a network (covers: {power.covers})"
        yield from _figures({"idle_w": power.idle_w, "active_w": power.active_w})
    for domain, clock in profile.clocks.items():
        yield f"Clock of the {domain}"
        yield from _clock_lines(clock)
    if profile.cores is not None:
        yield f"CPU cores that can be online (set by: {profile.cores.actuator})"
        yield from _figures({"counts": profile.cores.counts})
    if profile.operating_points:
        yield "Operating points"
    for point in profile.operating_points:
        clocks = ", ".join(f"{domain} {mhz:g} MHz" for domain, mhz in point.clock_mhz.items())
        yield f"  {point.name}: {clocks} {_source(point.source, point.assumption)}"
        yield from _figures({key: getattr(point, key) for key in _OF_A_POINT}, "    ")
    for title, tables in _TABLES.items():
        for device, figures in getattr(profile, tables).items():
            yield f"{title} of the {device.upper()}"
            yield from _figures(figures)


def _sensor_lines(profile: Profile) -> Iterator[str]:
    if profile.meters:
        yield "Meters, the preferred first"
        yield f"  {', '.join(profile.meters)}"
    if profile.rails is not None:
        yield f"Rails of the power sensors [{profile.rails.source}]"
        for part in ("total", *RAIL_PARTS):
            names = getattr(profile.rails, part)
            if names:
                yield f"  {part} = {' + '.join(names)}"


def _clock_lines(clock: ClockDomain) -> Iterator[str]:
    yield from _figures(
        {
            "levels_mhz": clock.levels_mhz,
            "voltage_mv": clock.voltage_mv,
            "min_mhz": clock.min_mhz,
            "max_mhz": clock.max_mhz,
            "step_mhz": clock.step_mhz,
            "switch_ms": clock.switch_ms,
        }
    )
    if clock.actuator is not None:
        yield f"  set by: {clock.actuator} [{clock.actuator_source}]"
    if clock.nodes:
        yield f"  nodes: {', '.join(clock.nodes)}"


def _figures(figures: Mapping[str, Figure | Levels | None], indent: str = "  ") -> Iterator[str]:
    for key, figure in figures.items():
        if figure is None:
            continue
        values = figure.value if isinstance(figure, Levels) else (figure.value,)
        shown = ", ".join(f"{value:.10g}" for value in values)
        yield f"{indent}{key} = {shown} {_source(figure.source, figure.assumption)}"


def _source(source: str, assumption: bool) -> str:
    return f"[assumption: {source}]" if assumption else f"[{source}]"


def _machine_lines(machine: Machine) -> Iterator[str]:
    model = machine.cpu_model or machine.device_tree_model or "unknown"
    facts = [machine.cpu_vendor, machine.machine]
    facts += [f"{machine.cores} cores"] if machine.cores else []
    facts += [f"{machine.processors} threads"] if machine.processors else []
    facts += ["virtual machine"] if machine.virtual else []
    yield f"CPU     {model} ({', '.join(fact for fact in facts if fact)})"
    yield f"Memory  {_gib(machine.memory_bytes)}"
    for gpu in machine.gpus:
        sliced = ", divided into MIG slices" if gpu.mig else ""
        yield f"GPU {gpu.index}   {gpu.name} ({_gib(gpu.memory_bytes)}, {gpu.uuid}{sliced})"
    if not machine.gpus:
        yield f"GPU     none: {machine.gpu_reason}"


def _meter_lines(machine: Machine, root: Path, nvml: ModuleType | None) -> Iterator[str]:
    opened = open_nvml(nvml)
    best = next(iter(machine.fits), None)
    sensors = find_ina3221(None if best is None else best.profile, root)
    found: list[Meter | Unavailable] = [find_rapl(root), sensors]
    found += [card_meter(opened, gpu) for gpu in machine.gpus]
    yield "Meters"
    for meter in found:
        if isinstance(meter, Unavailable):
            yield f"  {meter.name}: not usable: {meter.reason}"
            if meter.remedy:
                yield f"    remedy: {meter.remedy}"
        else:
            period_ms, window_s = (meter.update_period_s or 0) * 1e3, minimum_window_s(meter)
            yield (
                f"  {meter.name}: usable, updates every {period_ms:.3g} ms, "
                f"resolves windows of {window_s:.2g} s and longer"
            )
    if not machine.gpus:
        yield f"  NVML energy counter: not usable: {machine.gpu_reason}"


def _gib(size: int | None) -> str:
    return "unknown memory" if size is None else f"{size / 2**30:.1f} GiB"

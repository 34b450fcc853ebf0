"""``exitbench doctor``: which meters and clocks work here, and what would mend the others.

It changes nothing and imports no torch.
"""

from __future__ import annotations

import importlib.metadata
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import psutil

from ..profiles.detect import Machine, detect
from ..profiles.nvml import open_nvml
from ..profiles.schema import Profile
from .clocks.choose import clocks_words, survey_actuators
from .clocks.journal import journal_path, read_journal
from .clocks.sysfs import RESTORE
from .conditions import clock_policies, policy_words
from .configs_device import DoctorConfig
from .errors import CheckFailed, ExitbenchError
from .hardware import hardware_profile
from .metering import external_meter, open_meter
from .meters.base import Clock, Meter, Unavailable, minimum_window_s
from .meters.ina3221 import find_ina3221
from .meters.modelled import ModelledMeter, find_modelled
from .meters.nvidia import NAME as NVML_NAME
from .meters.nvidia import card_meter
from .meters.rapl import find_rapl

Say = Callable[[str], None]
BUSY = 10.0
"""Per cent of the processors at work from which on a machine is not quiet."""


@dataclass(frozen=True)
class _Patient:
    """What is looked at: the machine, and where its files and its library are."""

    config: DoctorConfig
    machine: Machine
    device: str
    profile: Profile | None
    root: Path
    nvml: ModuleType | None
    sleep: Callable[[float], None]
    clock: Clock
    journal: Path | None


def run_doctor(
    config: DoctorConfig,
    say: Say,
    *,
    root: Path = Path("/"),
    nvml: ModuleType | None = None,
    sleep: Callable[[float], None] = time.sleep,
    clock: Clock = time.perf_counter,
    journal: Path | None = None,
) -> None:
    """Say which meters and clocks work here, and the command that would mend the others.

    Args:
        config: which device, and how long noise is watched.
        say: takes one line.
        root: where ``proc`` and ``sys`` are found.
        nvml: what answers as ``pynvml``; the installed one if None.
        sleep, clock: wait, and a monotonic clock, in seconds.
        journal: the journal of clocks; the user's own if None.

    Raises:
        CheckFailed: the run's device has no meter that measures.
        ExitbenchError: no such hardware profile or device.
    """
    psutil.cpu_percent()  # the first answer says nothing: it starts the watch
    machine = detect(root, nvml=nvml)
    device = _device(config, machine)
    profile = hardware_profile(config.hardware, device, machine, cuda_uuid=_untold).profile
    patient = _Patient(config, machine, device, profile, root, nvml, sleep, clock, journal)
    for part in (_meters, _load, _governors, _clocks):
        for line in part(patient):
            say(line)
    _verdict(patient, say)


def _device(config: DoctorConfig, machine: Machine) -> str:
    """The device of a run; ``auto`` is guessed as torch would answer, without loading it."""
    asked = config.device.device
    if asked != "auto":
        return asked
    return "cuda:0" if machine.gpus and not _torch_without_cuda() else "cpu"


def _torch_without_cuda() -> bool:
    try:
        return importlib.metadata.version("torch").endswith("+cpu")
    except importlib.metadata.PackageNotFoundError:
        return False


def _untold(index: int) -> None:
    del index


def _meters(patient: _Patient) -> Iterator[str]:
    yield f"Meters, each watched for {patient.config.seconds:g} s with nothing running"
    for meter in _found(patient):
        if isinstance(meter, Unavailable):
            yield f"  {meter.name}: does not work: {meter.reason}"
            if meter.remedy:
                yield f"    mend it: {meter.remedy}"
        elif isinstance(meter, ModelledMeter):
            idle = "unknown" if meter.idle_w is None else f"{meter.idle_w:g} W"
            guess = ", an assumption" if meter.assumption else ""
            yield (
                f"  modelled {meter.domain.upper()}: {meter.power_w:.3g} W at work, idle {idle} "
                f"({meter.name}{guess})"
            )
        else:
            yield f"  {meter.name}: works; {_period(meter)}; {_noise(meter, patient)}"
    if patient.config.metering.external is None:
        yield "  external meter: none given; --external takes a command or file that prints one"


def _found(patient: _Patient) -> Iterator[Meter | Unavailable]:
    """Every kind of meter."""
    opened = open_nvml(patient.nvml)
    for gpu in patient.machine.gpus:
        yield card_meter(opened, gpu, clock=patient.clock, sleep=patient.sleep)
    if not patient.machine.gpus:
        yield Unavailable(NVML_NAME, ("gpu",), patient.machine.gpu_reason, opened.remedy)
    yield find_rapl(patient.root, clock=patient.clock, sleep=patient.sleep)
    yield find_ina3221(patient.profile, patient.root, clock=patient.clock)
    external = external_meter(patient.config.metering, clock=patient.clock)
    if external is not None:
        yield external
    for device_class in ("cpu",) if patient.device == "cpu" else ("gpu", "cpu"):
        yield find_modelled(patient.profile, device_class, patient.config.device.threads or None)


def _period(meter: Meter) -> str:
    period_s = meter.update_period_s
    if period_s is None:
        return "resolves any window"
    return (
        f"updates every {period_s * 1e3:.3g} ms, so windows of {minimum_window_s(meter):.3g} s "
        "and longer are resolved"
    )


def _noise(meter: Meter, patient: _Patient) -> str:
    """Idle power and how much it varies from window to window: what a small gain drowns in."""
    seconds = patient.config.seconds
    window_s = max(minimum_window_s(meter), seconds / 8)
    powers, notes = [], []
    for _ in range(max(2, round(seconds / window_s))):
        window = meter.open()
        patient.sleep(window_s)
        reading = window.close()
        notes += [note for note in (reading.note, *reading.flags) if note]
        if reading.total_j is not None and reading.seconds > 0:
            powers.append(reading.total_j / reading.seconds)
    said = "".join(f"; {note}" for note in dict.fromkeys(notes))
    if len(powers) < 2:
        return f"idle power could not be read{said}"
    mean = sum(powers) / len(powers)
    return (
        f"idle {mean:.4g} W, from {min(powers):.4g} to {max(powers):.4g} W over {len(powers)} "
        f"windows of {window_s:.3g} s{said}"
    )


def _load(patient: _Patient) -> Iterator[str]:
    del patient
    busy = psutil.cpu_percent()
    one, five, _ = os.getloadavg()
    yield "Load"
    yield (
        f"  {busy:.0f}% of {psutil.cpu_count()} processors at work, load {one:.2f} (1 min), "
        f"{five:.2f} (5 min)"
    )
    if busy > BUSY:
        yield "    not quiet: counters measure what else runs here; end it before measuring"


def _governors(patient: _Patient) -> Iterator[str]:
    yield "Clock governors"
    policies = clock_policies(patient.root)
    for line in policy_words(policies):
        yield f"  {line}"
    if not policies:
        yield "  unknown: this machine shows no cpufreq, as is usual in virtual machines"
    elif any(policy.governor not in ("performance", "userspace") for policy in policies):
        yield (
            "    clocks follow the load; for measurements that can be repeated hold them: "
            "sudo cpupower frequency-set -g performance"
        )


def _clocks(patient: _Patient) -> Iterator[str]:
    yield "Setting clocks (nothing was changed)"
    survey = survey_actuators(
        patient.profile, patient.device, root=patient.root, nvml=patient.nvml, cuda_uuid=_untold
    )
    if survey.actuators:
        yield f"  can be set: {clocks_words(survey.actuators)}"
    for domain, why in survey.missing.items():
        yield f"  {domain}: cannot be set: {why}"
    path = journal_path() if patient.journal is None else patient.journal
    try:
        record = read_journal(path)
    except ExitbenchError as error:
        yield f"  journal: {error}"
        return
    if record is not None and record.of_this_boot(patient.root):
        yield (
            f"  left changed by process {record.pid} ({record.time}): "
            f"{', '.join(entry.name for entry in record.entries)}"
        )
        yield f"    put them back: {RESTORE}"


def _verdict(patient: _Patient, say: Say) -> None:
    """The last line: whether energies of a run here would be measured."""
    meter = open_meter(
        patient.device,
        patient.profile,
        patient.config.metering,
        threads=patient.config.device.threads or None,
        root=patient.root,
        nvml=patient.nvml,
        cuda_uuid=_untold,
        clock=patient.clock,
        insist=False,
    )
    say(f"Energy of a run on {patient.device}")
    say(f"  {meter.words}")
    if meter.source == "measured" and not meter.required:
        say(f"usable: energy of a run on {patient.device} is measured")
        return
    state = "unavailable" if meter.required or meter.source == "unavailable" else "modelled"
    raise CheckFailed(
        f"not usable to measure: energy of a run on {patient.device} would be {state}; what would "
        "mend a meter stands above"
    )

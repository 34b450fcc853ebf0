"""``exitbench profile``: the cost table of a network on this device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..models.counting import forecast_counts
from .calibration import limits
from .configs import ProfileConfig
from .costs import CostTable
from .errors import ExitbenchError
from .files import replacing
from .hardware import ChosenProfile, hardware_profile
from .meters.base import Unavailable
from .meters.choose import ChosenMeter, choose_meter
from .options import to_plain
from .predictors import DEFAULT_KERNEL, ConvolutionPredictor, convolution_stack
from .profiler import Profile, profile
from .rundir import RunDirectory
from .sources import LiveEvidence
from .subject import Subject, load_subject, usable_precisions
from .timing import Limits
from .tracing import begin, traced_subject

Say = Callable[[str], None]
_ONE_BY_ONE = (
    "precisions are profiled one after another, so that a drift of the machine between them stands "
    "in their comparison; profile again to see how large it is"
)


def run_profile(config: ProfileConfig, say: Say) -> None:
    """Measure segments, heads, forecasts and the classifier, per precision and batch size.

    Raises:
        ExitbenchError: the network, the data, the device or the hardware profile cannot be used.
    """
    check_profile(config)
    path = config.checkpoint
    data = config.data
    if (config.run / "manifest.json").is_file():
        known = RunDirectory(config.run, create=False)
        path, data, _ = traced_subject(known, path, data)
    if path is None:
        raise ExitbenchError(
            f"{config.run} names no network to profile; give one with --checkpoint"
        )
    subject = load_subject(path, data, config.device, say)
    precisions, _ = usable_precisions(config.precisions, subject.device, True, say)
    hardware_profile(config.hardware, str(subject.device))  # refuses a wrong one early
    directory = RunDirectory(config.run)
    begin(directory, "profile", to_plain(config), subject, traced=False)
    prepared = {precision: subject.prepare(precision) for precision in precisions}
    profile_subject(directory, subject, prepared, config, say, resume=False)
    directory.finish("profile")


def check_profile(config: ProfileConfig) -> None:
    """Refuse a configuration that nothing can be measured with."""
    faults = []
    if not config.batch_sizes or min(config.batch_sizes) < 1:
        faults.append(f"batch sizes are {list(config.batch_sizes)}; each must be at least 1")
    if config.seconds <= 0:
        faults.append(f"seconds is {config.seconds}; it must be above 0")
    if not 0 < config.interval < 1:
        faults.append(f"interval is {config.interval}; it must lie between 0 and 1, such as 0.02")
    if config.horizon < 1:
        faults.append(f"horizon is {config.horizon}; it must be at least 1")
    if faults:
        raise ExitbenchError("cannot profile: " + "; ".join(faults))


def choose_energy(
    directory: RunDirectory, subject: Subject, hardware: str, say: Say, wanted: bool = True
) -> ChosenMeter:
    """The meter of a run, said aloud and noted in the manifest.

    Args:
        wanted: else it is one whose readings are all unavailable.
    """
    chosen = hardware_profile(hardware, str(subject.device))
    if wanted:
        meter = choose_meter(str(subject.device), chosen.profile)
    else:
        domain = {"cuda": "gpu"}.get(subject.device.type, "cpu")
        missing = Unavailable("no meter", (domain,), "energy was not asked for")
        meter = ChosenMeter((), (missing,), domain, "not measured, because it was not asked for.")
    say(f"energy: {meter.words}")
    directory.update(
        hardware={
            "profile": chosen.profile.name if chosen.profile else None,
            "asked": hardware,
            "power_w": active_power_w(chosen),
            "description": chosen.profile.description if chosen.profile else None,
            "why": chosen.why,
            "energy": meter.words,
            "meter": meter.name,
            "source": meter.source,
        }
    )
    return meter


def active_power_w(chosen: ChosenProfile) -> dict[str, float]:
    """The watts that a hardware profile models energy with, by device."""
    power = chosen.profile.power if chosen.profile else {}
    return {device: figures.active_w.value for device, figures in power.items()}


def profile_subject(
    directory: RunDirectory,
    subject: Subject,
    prepared: dict[str, Any],
    config: ProfileConfig,
    say: Say,
    resume: bool,
) -> None:
    """Profile every precision and batch size, and write the cost table after each.

    Args:
        resume: leave out what the table holds already, measured in the same way.
    """
    meter = choose_energy(directory, subject, config.hardware, say) if config.energy else None
    done = dict(directory.manifest.get("profile", {}))
    priced = CostTable.read(directory.cost).settings() if directory.cost.is_file() else []
    for precision, network in prepared.items():
        for batch_size in config.batch_sizes:
            key = f"{precision}, batch {batch_size}"
            how = _how(config, meter, network)
            there = (precision, batch_size, "default") in priced
            if resume and there and done.get(key, {}).get("how") == how:
                say(f"profile {key}: already there")
                continue
            say(f"profile {key}: at most {config.seconds:g} s")
            result = _profile(subject, network, batch_size, config, meter, say)
            if len(prepared) > 1:
                result = replace(result, notes=(*result.notes, _ONE_BY_ONE))
            _write(directory, precision, batch_size, result)
            directory.update(
                profile={key: {"how": how, "whole": result.whole, "notes": list(result.notes)}}
            )
            whole = result.whole
            say(
                f"profile {key}: whole network {whole['latency_ms']:.4g} ms per sample, sum of "
                f"its parts {whole['parts_latency_ms']:.4g} ms"
            )
            for note in result.notes:
                say(f"profile {key}: {note}")


def _how(config: ProfileConfig, meter: ChosenMeter | None, network: Any) -> dict[str, Any]:
    return {
        "seconds": config.seconds,
        "interval": config.interval,
        "horizon": config.horizon,
        "runtime": network.name,
        "energy": meter.words if meter else None,
        "energy_seconds": config.energy_seconds,
    }


def _profile(
    subject: Subject,
    network: Any,
    batch_size: int,
    config: ProfileConfig,
    meter: ChosenMeter | None,
    say: Say,
) -> Profile:
    exits, classes = subject.network.num_exits, subject.network.classes
    images = subject.images("calibration", 0, batch_size)
    if len(images) < batch_size:
        # Small datasets: images may repeat, their content does not change what they cost.
        images = images[torch.arange(batch_size, device=images.device) % len(images)]
    stack = convolution_stack(classes, DEFAULT_KERNEL, config.horizon).to(subject.device)
    predictor = ConvolutionPredictor(limits(np.ones(exits), 0.9))
    rows = np.arange(batch_size)

    def forecast(logits: Tensor) -> object:
        return predictor.jump(1, LiveEvidence(rows, logits, "softmax", stack), rows)

    return profile(
        network,
        subject.network.counts(),
        images,
        forecast,
        _limits(config, subject),
        meter,
        forecast_counts=forecast_counts(classes, config.horizon),
        say=say,
    )


def _limits(config: ProfileConfig, subject: Subject) -> Limits:
    limits = Limits(
        seconds=config.seconds, interval=config.interval, energy_seconds=config.energy_seconds
    )
    # A unit repeated on the CPU finds its weights in the caches, a run does not. On a GPU single
    # calls would each be waited for, which a run does not do either.
    return replace(limits, min_sample_s=0.0) if subject.device.type == "cpu" else limits


def _write(directory: RunDirectory, precision: str, batch_size: int, result: Profile) -> None:
    if directory.cost.is_file():
        table = CostTable.read(directory.cost).with_rows(result.rows)
    else:
        table = CostTable.from_rows(result.rows, str(directory.cost))
    table.write(directory.cost)
    samples = directory.path / f"cost-samples-{precision}-{batch_size}.npz"
    with replacing(samples) as temporary, temporary.open("wb") as handle:
        arrays: dict[str, Any] = {k: np.array(v) for k, v in result.samples_ms.items()}
        np.savez_compressed(handle, **arrays)



"""``exitbench profile``: the cost table of a network on this device."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..models.counting import forecast_counts
from .calibration import limits
from .conditions import settings
from .configs import MeteringConfig, ProfileConfig
from .costs import CostTable
from .environment import working_share
from .errors import ExitbenchError
from .files import replacing
from .hardware import ChosenProfile, hardware_profile
from .idle import UNKNOWN, Idle
from .metering import meter_facts, open_meter
from .meters.base import Unavailable
from .meters.choose import ChosenMeter
from .options import to_plain
from .overhead import LIMIT, measure_overhead
from .predictors import DEFAULT_KERNEL, ConvolutionPredictor, convolution_stack
from .profiler import Profile, profile
from .rundir import RunDirectory
from .setpoints import SetPoint, SetPoints, find_set_points, repriced
from .sources import LiveEvidence
from .subject import Subject, load_subject, usable_precisions
from .tiers import TIERS
from .timing import Limits
from .tracing import begin, traced_subject

Say = Callable[[str], None]
_ONE_BY_ONE = (
    "precisions are profiled one after another, so that a drift of the machine between them stands "
    "in their comparison; profile again to see how large it is"
)


def run_profile(
    config: ProfileConfig,
    say: Say,
    *,
    root: Path = Path("/"),
    nvml: ModuleType | None = None,
    journal: Path | None = None,
) -> None:
    """Measure segments, heads, forecasts and the classifier, per precision and batch size.

    Then again at every operating point that was asked for.

    Args:
        config: what to measure.
        say: takes one line.
        root, nvml, journal: where clocks are set, and what they were is kept; as those of
            ``setpoints.find_set_points``.

    Raises:
        ExitbenchError: the network, the data, the device or the hardware profile cannot be used,
            or a clock cannot be set; nothing was written then.
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
    chosen = hardware_profile(config.hardware, str(subject.device))  # refuses a wrong one early
    places: SetPoints | None = None
    if config.operating_points:
        places = find_set_points(
            config.operating_points, chosen.profile, str(subject.device),
            busy=_busy(subject), root=root, nvml=nvml, journal=journal,
        )  # fmt: skip
        places.prove()
    directory = RunDirectory(config.run)
    begin(directory, "profile", to_plain(config), subject, traced=False)
    prepared = {precision: subject.prepare(precision) for precision in precisions}
    profile_subject(directory, subject, prepared, config, say, resume=False)
    if places is not None:
        with places.session() as set_point:
            for point in places.points:
                say(f"profile: clocks set to {point.name}")
                set_point(point)
                profile_subject(
                    directory, subject, prepared, config, say, resume=False, point=point
                )
        say("profile: clocks put back")
    directory.finish("profile")


def _busy(subject: Subject) -> float:
    """The share of the logical CPUs that the network works on; all of a GPU."""
    if subject.device.type != "cpu":
        return 1.0
    return working_share(subject.threads)


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
    directory: RunDirectory,
    subject: Subject,
    hardware: str,
    say: Say,
    wanted: bool = True,
    metering: MeteringConfig | None = None,
) -> ChosenMeter:
    """The meter of a run, said aloud and noted in the manifest.

    Args:
        hardware: the hardware profile, as it was asked for.
        wanted: else it is one whose readings are all unavailable.
        metering: says whether there is an external meter; none if None.
    """
    device = str(subject.device)
    device_class = "cpu" if subject.device.type == "cpu" else "gpu"
    chosen = hardware_profile(hardware, device)
    if wanted:
        metering = metering or MeteringConfig()
        meter = open_meter(device, chosen.profile, metering, threads=subject.threads)
    else:
        missing = Unavailable("no meter", (device_class,), "energy was not asked for")
        meter = ChosenMeter(
            (), (missing,), device_class, "not measured, because it was not asked for."
        )
    say(f"energy: {meter.words}")
    known = directory.manifest.get("hardware", {})
    directory.update(
        hardware={
            "profile": chosen.profile.name if chosen.profile else None,
            "asked": hardware,
            "device_class": device_class,
            "power_w": active_power_w(chosen),
            "peaks": _peaks(chosen, device_class),
            "description": chosen.profile.description if chosen.profile else None,
            "why": chosen.why,
            "energy": meter.words,
            "meter": meter.name,
            "meters": meter_facts(meter),
            "source": meter.source,
            **_idle_facts(meter, known),
        }
    )
    return meter


def _peaks(chosen: ChosenProfile, device_class: str) -> dict[str, Any]:
    peaks = chosen.profile.peaks.get(device_class, {}) if chosen.profile else {}
    return {name: asdict(figure) for name, figure in peaks.items()}


def _idle_facts(meter: ChosenMeter, known: Mapping[str, Any]) -> dict[str, Any]:
    """Idle power and own cost as far as they are known before measuring: of the same meter."""
    idle_w: float | None = getattr(meter, "idle_w", None)
    if idle_w is not None:
        return {"idle_w": idle_w, "idle_source": "modelled", "overhead": None}
    names = ("idle_w", "idle_source", "overhead")
    same = known.get("meter") == meter.name and known.get("source") == meter.source
    return {name: known.get(name) if same else None for name in names}


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
    point: SetPoint | None = None,
) -> None:
    """Profile every precision and batch size, and write the cost table after each.

    Args:
        resume: leave out what the table holds already, measured in the same way.
        point: the operating point that the clocks are set to; None: as they are.
    """
    meter = None
    if config.energy:
        meter = choose_energy(
            directory, subject, config.hardware, say, metering=config.metering
        )
    done = dict(directory.manifest.get("profile", {}))
    priced = CostTable.read(directory.cost).settings() if directory.cost.is_file() else []
    name = "default" if point is None else point.name
    idle: Idle | None = None
    noted = False
    for precision, network in prepared.items():
        for batch_size in config.batch_sizes:
            key = profile_key(precision, batch_size, point)
            how = _how(config, meter, network, point)
            there = (precision, batch_size, name) in priced
            if resume and there and done.get(key, {}).get("how") == how:
                say(f"profile {key}: already there")
                continue
            say(f"profile {key}: at most {config.seconds:g} s, then energy")
            result = _profile(subject, network, batch_size, config, meter, idle, point, say)
            if len(prepared) > 1:
                result = replace(result, notes=(*result.notes, _ONE_BY_ONE))
            found = result.idle if result.idle and result.idle.power_w is not None else None
            if meter is not None and not noted:
                _note_metering(directory, meter, result, config, say, point)
                noted = found is not None
            # Idle power that is measured before and after belongs to one measurement alone.
            idle = None if TIERS[config.metering.tier].idle_after else found
            _write(directory, precision, batch_size, name, result)
            _tell(directory, key, how, result, say)


def profile_key(precision: str, batch_size: int, point: SetPoint | None = None) -> str:
    """What a profile is called in the manifest and in lines of progress."""
    key = f"{precision}, batch {batch_size}"
    return key if point is None else f"{key}, {point.name}"


def _tell(
    directory: RunDirectory, key: str, how: dict[str, Any], result: Profile, say: Say
) -> None:
    whole = result.whole
    entry = {
        "how": how, "whole": whole, "energy": result.energy, "notes": list(result.notes),
    }  # fmt: skip
    directory.update(profile={key: entry})
    say(
        f"profile {key}: whole network {whole['latency_ms']:.4g} ms per sample, sum of "
        f"its parts {whole['parts_latency_ms']:.4g} ms"
    )
    for note in result.notes:
        say(f"profile {key}: {note}")


def _note_metering(
    directory: RunDirectory,
    meter: ChosenMeter,
    result: Profile,
    config: ProfileConfig,
    say: Say,
    point: SetPoint | None,
) -> None:
    """Idle power, tier and the meter's own cost, as this profile found them."""
    idle = result.idle or UNKNOWN
    facts: dict[str, Any] = {"tier": config.metering.tier}
    if point is None and idle.power_w is not None:
        facts |= {"idle_w": idle.power_w, "idle_source": idle.source}
    window_s = result.energy.get("window_s")
    if meter.source == "measured" and window_s is not None:
        overhead = measure_overhead(meter, idle).plain(window_s)
        facts["overhead"] = overhead
        if overhead["share"] is not None and overhead["share"] > LIMIT:
            say(
                f"energy: reading the meter takes {overhead['share']:.1%} of a window, more than "
                f"{LIMIT:.0%}; a longer --tier has wider windows"
            )
    directory.update(hardware=facts)


def _how(
    config: ProfileConfig, meter: ChosenMeter | None, network: Any, point: SetPoint | None
) -> dict[str, Any]:
    external = config.metering
    return {
        "seconds": config.seconds,
        "interval": config.interval,
        "horizon": config.horizon,
        "runtime": network.name,
        "energy": meter.words if meter else None,
        "energy_seconds": config.energy_seconds,
        "tier": config.metering.tier,
        "external": external.external and [
            external.external, external.external_unit, external.external_covers
        ],
        "clock_mhz": None if point is None else dict(point.clock_mhz),
    }


def _profile(
    subject: Subject,
    network: Any,
    batch_size: int,
    config: ProfileConfig,
    meter: ChosenMeter | None,
    idle: Idle | None,
    point: SetPoint | None,
    say: Say,
) -> Profile:
    tier = TIERS[config.metering.tier]
    before = settings() if tier.idle_after else None
    result = profile(
        network,
        subject.network.counts(),
        _images(subject, batch_size),
        _forecast(subject, config.horizon, batch_size),
        _limits(config, subject),
        meter,
        forecast_counts=forecast_counts(subject.network.classes, config.horizon),
        operating_point="default" if point is None else point.name,
        clock_mhz=None if point is None else point.own_mhz,
        tier=tier,
        idle=idle,
        say=say,
    )
    if before is not None:
        recorded = {"settings": {"before": before, "after": settings()}}
        result = replace(result, energy={**result.energy, **recorded})
    if point is not None and meter is not None and meter.power_w is not None:
        return repriced(result, point)
    return result


def _images(subject: Subject, batch_size: int) -> Tensor:
    images = subject.images("calibration", 0, batch_size)
    if len(images) < batch_size:
        # Small datasets: images may repeat, their content does not change what they cost.
        images = images[torch.arange(batch_size, device=images.device) % len(images)]
    return images


def _forecast(subject: Subject, horizon: int, batch_size: int) -> Callable[[Tensor], object]:
    """What the convolution predictor computes from the logits of a head."""
    exits, classes = subject.network.num_exits, subject.network.classes
    stack = convolution_stack(classes, DEFAULT_KERNEL, horizon).to(subject.device)
    predictor = ConvolutionPredictor(limits(np.ones(exits), 0.9))
    rows = np.arange(batch_size)

    def forecast(logits: Tensor) -> object:
        return predictor.jump(1, LiveEvidence(rows, logits, "softmax", stack), rows)

    return forecast


def _limits(config: ProfileConfig, subject: Subject) -> Limits:
    limits = Limits(
        seconds=config.seconds, interval=config.interval, energy_seconds=config.energy_seconds
    )
    # A unit repeated on the CPU finds its weights in the caches, a run does not. On a GPU single
    # calls would each be waited for, which a run does not do either.
    return replace(limits, min_sample_s=0.0) if subject.device.type == "cpu" else limits


def _write(
    directory: RunDirectory, precision: str, batch_size: int, point: str, result: Profile
) -> None:
    if directory.cost.is_file():
        table = CostTable.read(directory.cost).with_rows(result.rows)
    else:
        table = CostTable.from_rows(result.rows, str(directory.cost))
    table.write(directory.cost)
    more = "" if point == "default" else "-" + re.sub(r"[^\w.-]+", "_", point)
    samples = directory.path / f"cost-samples-{precision}-{batch_size}{more}.npz"
    with replacing(samples) as temporary, temporary.open("wb") as handle:
        arrays: dict[str, Any] = {k: np.array(v) for k, v in result.samples_ms.items()}
        np.savez_compressed(handle, **arrays)



"""``exitbench profile``: the cost table of a network on this device."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..models.counting import forecast_counts
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
from .profileinputs import check_profile, profile_images, profile_limits, timed_forecast
from .profiler import Profile, profile
from .rundir import RunDirectory, time_now
from .serving import beside_traces
from .setpoints import SetPoint, SetPoints, find_set_points, repriced
from .subject import Subject, load_subject, usable_precisions
from .tiers import TIERS
from .tracing import begin, tell_runtime, traced_subject
from .windowlog import WindowFile, WindowLog, settled

Say = Callable[[str], None]
_ONE_BY_ONE = (
    "precisions are profiled one after another, so that a drift of the machine between them stands "
    "in their comparison; profile again to see how large it is"
)
_OTHERWISE = (
    "of an interrupted profile are left out, because its options or meter, or the settings of the "
    "machine, were other ones; they are gone when this one is written"
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

    Then again at every operating point that was asked for. One that was killed goes on where it
    was, if it is the very same and ``windows.jsonl`` is still there.

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
    path, data, known = config.checkpoint, config.data, None
    if (config.run / "manifest.json").is_file():
        known = RunDirectory(config.run, create=False)
        path, data, _ = traced_subject(known, path, data)
    if path is None:
        raise ExitbenchError(
            f"{config.run} names no network to profile; give one with --checkpoint"
        )
    subject = load_subject(path, data, config.device, say)
    subject, wanted = beside_traces(known, subject, config.precisions), config.precisions
    precisions, _ = usable_precisions(wanted, subject.device, True, say, subject.runtime_of)
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
    under_way = _window_file(directory)
    since = under_way.begin({"profile": to_plain(config)}, time_now())
    prepared = {precision: subject.prepare(precision) for precision in precisions}
    for network in prepared.values():
        tell_runtime(directory, network, say, new=False, ranges=subject.ranges)
    profile_subject(directory, subject, prepared, config, say, since)
    if places is not None:
        with places.session() as set_point:
            for point in places.points:
                say(f"profile: clocks set to {point.name}")
                set_point(point)
                profile_subject(directory, subject, prepared, config, say, since, point)
        say("profile: clocks put back")
    under_way.end()
    directory.finish("profile")


def _busy(subject: Subject) -> float:
    """The share of the logical CPUs that the network works on; all of a GPU."""
    if subject.device.type != "cpu":
        return 1.0
    return working_share(subject.threads)


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
    since: str | None = None,
    point: SetPoint | None = None,
) -> None:
    """Profile every precision and batch size, and write the cost table after each.

    What the table holds already, measured in the same way, is left out; of what was being measured
    when it was killed, energy windows are kept.

    Args:
        since: leave out only what this command has measured, which began then.
        point: the operating point that the clocks are set to; None: as they are.
    """
    meter = None
    if config.energy:
        meter = choose_energy(
            directory, subject, config.hardware, say, metering=config.metering
        )
    if since is None:
        _window_file(directory).end()  # a profile that was killed is no longer waited for
    name = "default" if point is None else point.name
    idle: Idle | None = None
    noted = False
    for precision, network in prepared.items():
        for batch_size in config.batch_sizes:
            place = (precision, batch_size, name)
            key = profile_key(precision, batch_size, point)
            how = _how(config, meter, network, point)
            log = _window_log(directory, place, how, meter)
            if _there(directory, place, key, how, since):
                log.forget()
                say(f"profile {key}: already there")
                continue
            say(f"profile {key}: at most {config.seconds:g} s, then energy")
            if others := log.others():
                say(f"profile {key}: {others} windows {_OTHERWISE}")
            result = _profile(subject, network, batch_size, config, meter, idle, log, point, say)
            if len(prepared) > 1:
                result = replace(result, notes=(*result.notes, _ONE_BY_ONE))
            found = result.idle if result.idle and result.idle.power_w is not None else None
            if meter is not None and not noted:
                _note_metering(directory, meter, result, config, say, point)
                noted = found is not None
            # Idle power that is measured before and after belongs to one measurement alone.
            idle = None if TIERS[config.metering.tier].idle_after else found
            _write(directory, precision, batch_size, name, result)
            _note(directory, key, how, result, since)
            log.forget(others=True)
            _tell(key, result, say)


def _there(
    directory: RunDirectory,
    place: tuple[str, int, str],
    key: str,
    how: dict[str, Any],
    since: str | None,
) -> bool:
    """Whether it is measured already, in this way, and by the command that began ``since``."""
    entry = directory.manifest.get("profile", {}).get(key, {})
    if entry.get("how") != how or (since is not None and entry.get("since") != since):
        return False
    return directory.cost.is_file() and place in CostTable.read(directory.cost).settings()


def _window_file(directory: RunDirectory) -> WindowFile:
    return WindowFile(directory.path / "windows.jsonl")


def _window_log(
    directory: RunDirectory,
    place: tuple[str, int, str],
    how: dict[str, Any],
    meter: ChosenMeter | None,
) -> WindowLog:
    """Where the windows of one profile are kept until it is written."""
    manner = {
        "how": how,
        "meter": meter and meter.name,
        "source": meter and meter.source,
        # Somebody who sets the machine right, and profiles again, wants new windows.
        "settings": meter and settled(settings()),
    }
    return _window_file(directory).of(place, manner)


def profile_key(precision: str, batch_size: int, point: SetPoint | None = None) -> str:
    """What a profile is called in the manifest and in lines of progress."""
    key = f"{precision}, batch {batch_size}"
    return key if point is None else f"{key}, {point.name}"


def _note(
    directory: RunDirectory, key: str, how: dict[str, Any], result: Profile, since: str | None
) -> None:
    entry = {
        "how": how, "since": since, "whole": result.whole, "energy": result.energy,
        "notes": list(result.notes),
    }  # fmt: skip
    directory.update(profile={key: entry})


def _tell(key: str, result: Profile, say: Say) -> None:
    whole = result.whole
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
    log: WindowLog,
    point: SetPoint | None,
    say: Say,
) -> Profile:
    tier = TIERS[config.metering.tier]
    before = settings() if tier.idle_after else None
    result = profile(
        network,
        subject.network.counts(),
        profile_images(subject, batch_size),
        timed_forecast(subject, config.horizon, batch_size),
        profile_limits(config, subject),
        meter,
        forecast_counts=forecast_counts(subject.network.classes, config.horizon),
        operating_point="default" if point is None else point.name,
        clock_mhz=None if point is None else point.own_mhz,
        tier=tier,
        idle=idle,
        log=log,
        say=say,
    )
    if before is not None:
        recorded = {"settings": {"before": before, "after": settings()}}
        result = replace(result, energy={**result.energy, **recorded})
    if point is not None and meter is not None and meter.power_w is not None:
        return repriced(result, point)
    return result


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



"""``exitbench run``: chosen settings really run, measured, and set beside their replay."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from .bench import Bench
from .choose import BOUNDS
from .circumstances import THIS_MACHINE, ClockFiles
from .conditions import settings as settings_here
from .configs import RunConfig
from .costs import CostTable, Prices
from .dvfs_errors import model_error_words
from .errors import ExitbenchError
from .evidence import IntArray
from .forecasts_live import judge_live, judged_settings
from .governed_live import check_governed, governed
from .hardware import hardware_profile
from .idle import UNKNOWN, Idle, between, measure_idle
from .manner import Manner, plan
from .measure import run_settings
from .measured import measured_key, sought
from .meters.base import Meter
from .meters.choose import ChosenMeter
from .options import to_plain
from .passes import PassLog
from .profiling import active_power_w, choose_energy
from .rundir import RunDirectory
from .scenes import Scene
from .serving import beside_traces, check_costs
from .settings import Setting
from .subject import Subject, load_subject, thinned
from .sweep import SETTING_COLUMNS
from .sweepfile import read_sweep, setting_of
from .sweeping import load_traces, prices_for
from .tiers import TIERS, Tier
from .tracing import begin, check_subject, tell_runtime, traced_subject

Say = Callable[[str], None]
DEFAULT_ROLES = ("full", "every-exit", "every-exit-best", "predictive", "recommended")
PERIODIC_PASS_S = 10.0  # a pass of a periodic scene takes no longer, unless the tier needs it


def run_run(config: RunConfig, say: Say, *, clocks: ClockFiles = THIS_MACHINE) -> None:
    """Run settings of a sweep and measure them; or measure how well the predictor forecasts.

    Args:
        config: what to run, and how.
        say: takes one line of progress.
        clocks: where clocks are set, if they are.

    Raises:
        ExitbenchError: there is no sweep, a setting is not in it or needs the truth, or the
            network, data or device cannot be used.
    """
    directory = RunDirectory(config.run, create=False)
    swept = read_sweep(directory)
    path, data, limit = traced_subject(directory, config.checkpoint, config.data)
    if path is None:
        raise ExitbenchError(
            f"{config.run} names no network to run; give one with --checkpoint"
        )
    if config.limit is not None and config.limit < 1:
        raise ExitbenchError(f"limit is {config.limit}; it must be at least 1")
    chosen = chosen_settings(swept, config.settings)
    subject = load_subject(path, data, config.device, say, limit)
    check_subject(directory, subject)
    if config.forward_mode == "accuracy":
        judged_settings(chosen, config, subject)
    else:
        hardware = _hardware(directory, config.hardware, str(subject.device))
        table, batch_size = CostTable.read(directory.cost), _batch_size(directory, config)
        prices = [
            prices_for(table, load_traces(directory, name), batch_size)
            for name in dict.fromkeys(setting.precision for setting in chosen)
        ]
        for found in prices:
            check_costs(directory, table, found)
        check_governed(directory, subject, config, prices, clocks)
        check_rebatched(config, prices)
    precisions = list(dict.fromkeys(setting.precision for setting in chosen))
    subject = beside_traces(directory, subject, precisions, say)
    begin(directory, "run", to_plain(config), subject)
    prepared = {name: subject.prepare(name) for name in precisions}
    for network in prepared.values():
        tell_runtime(directory, network, say, new=False, ranges=subject.ranges)
    subject.shed_weights()
    if config.forward_mode == "accuracy":
        judge_live(directory, subject, prepared, chosen, config, say)
    else:
        meter = choose_energy(directory, subject, hardware, say, metering=config.metering)
        measure_chosen(directory, subject, prepared, chosen, config, meter, say, clocks)
    directory.finish("run")


def check_rebatched(config: RunConfig, prices: Sequence[Prices]) -> None:
    """Refuse to put batches of one sample together.

    Raises:
        ExitbenchError: that was asked for.
    """
    if config.rebatch_wait is not None and prices[0].batch_size == 1:
        raise ExitbenchError(
            f"rebatch_wait is {config.rebatch_wait}, but {config.run} was swept with batch size 1, "
            "of which nothing can be put together; give --batch-size with a larger one of the cost "
            "table, or leave out --rebatch-wait"
        )


def _hardware(directory: RunDirectory, asked: str, device: str) -> str:
    """The hardware profile of a run: that of the cost table.

    Both model the same watts then, and what is governed later is this device.

    Raises:
        ExitbenchError: another one was asked for, or there is none such.
    """
    known = directory.manifest.get("hardware", {})
    name = known.get("asked", "auto") if asked == "auto" else asked
    chosen = hardware_profile(name, device)
    new = (chosen.profile.name if chosen.profile else None, active_power_w(chosen))
    old = (known.get("profile"), known.get("power_w", new[1]))
    if known.get("source") is not None and old != new:
        raise ExitbenchError(
            f"costs in {directory.path} were taken with hardware profile {old[0]} {old[1]}, "
            f"this run would use {new[0]} {new[1]} (W); both must be the same: leave out "
            f"--hardware, or profile again with --hardware {name}"
        )
    return name


def chosen_settings(swept: pd.DataFrame, names: Sequence[str]) -> list[Setting]:
    """Settings by role or by row number of sweep.csv (0 is the first after the header).

    Without names: the full network, every-exit from exit 1 and from its best start layer,
    predictive and the recommended setting, in every precision, and two points of the front.

    Raises:
        ExitbenchError: no such role or row, or one that knows the truth.
    """
    test = swept[swept.split == "test"]
    rows = []
    for name in names or DEFAULT_ROLES:
        if name.isdecimal():
            if int(name) >= len(swept):
                raise ExitbenchError(
                    f"setting {name} is no row of sweep.csv, which has rows 0 to {len(swept) - 1}"
                )
            rows.append(swept.iloc[[int(name)]])
            continue
        plays = test.chosen_as.fillna("").str.split(";").apply(lambda roles, n=name: n in roles)
        if names and not plays.any():
            known = sorted({r for roles in test.chosen_as.dropna() for r in roles.split(";") if r})
            if not known:
                raise ExitbenchError(
                    "sweep.csv has no test row with a role (column chosen_as), as if it were cut "
                    "short; write it again with 'exitbench sweep'"
                )
            raise ExitbenchError(
                f"no setting plays the role {name!r} in sweep.csv; roles are {', '.join(known)}, "
                "or give a row number"
            )
        rows.append(test[plays])
    if not names:
        rows.append(_front_points(swept, test))
    settings = [setting_of(row) for _, row in pd.concat(rows).iterrows()]
    if bounds := [s.words() for s in settings if s.policy == "oracle" or s.predictor == "perfect"]:
        raise ExitbenchError(
            f"{bounds[0]} knows the truth and can only be replayed; leave out {', '.join(BOUNDS)}"
        )
    return list(dict.fromkeys(settings))


def _front_points(swept: pd.DataFrame, test: pd.DataFrame) -> pd.DataFrame:
    """Two settings from within the front: at one and two thirds of its useful accuracies."""
    front = swept[(swept.split == "calibration") & (swept.pareto == 1)]
    front = front[front.policy.isin(["every-exit", "predictive"])].sort_values("accuracy")
    upper = front[front.accuracy >= front.accuracy.max() - 0.05]
    if len(upper) < 3:
        return test.iloc[:0]
    picked = upper.iloc[[len(upper) // 3, 2 * len(upper) // 3]][list(SETTING_COLUMNS)]
    return picked


def measure_chosen(
    directory: RunDirectory,
    subject: Subject,
    prepared: Mapping[str, Any],
    settings: Sequence[Setting],
    config: RunConfig,
    meter: ChosenMeter,
    say: Say,
    clocks: ClockFiles = THIS_MACHINE,
) -> None:
    """Run and measure settings, precision by precision; those measured already are left out."""
    tier = tier_for(meter, config.metering.tier)
    scene = Scene(None if config.period_ms is None else config.period_ms * 1e-3)
    positions = _positions(subject, config, scene, tier)
    done = {measured_key(row) for row in directory.read_measurements()}
    with governed(directory, subject, config, clocks) as governing_for:
        todo: list[tuple[Bench, list[Setting]]] = []
        for precision, network in prepared.items():
            bench = _bench(directory, subject, network, config, meter, positions)
            governing = governing_for(bench.prices)
            manner = Manner(
                tier, scene, governing=governing, rebatch_wait=config.rebatch_wait
            )
            bench = replace(bench, manner=manner)
            new = [
                setting
                for setting in settings
                if setting.precision == precision
                and measured_key(sought(setting, bench, config.repeats)) not in done
            ]
            if new:
                todo.append((bench, new))
            else:
                say(f"run {precision}: already measured")
        if todo:
            _announce(todo, config, say)
            _measure(directory, todo, config, say)


def tier_for(meter: ChosenMeter, name: str) -> Tier | None:
    """The tier of a run; None where no counter reads its energy."""
    return TIERS[name] if meter.source == "measured" else None


def _bench(
    directory: RunDirectory,
    subject: Subject,
    network: Any,
    config: RunConfig,
    meter: ChosenMeter,
    positions: IntArray,
) -> Bench:
    traces = load_traces(directory, network.precision)
    table = CostTable.read(directory.cost)
    prices = prices_for(table, traces, _batch_size(directory, config))
    return Bench(subject, network, traces, prices, meter, prices.batch_size, positions)


def _positions(
    subject: Subject, config: RunConfig, scene: Scene, tier: Tier | None
) -> IntArray:
    """The test images that are run; in a periodic scene as many as a pass has time for."""
    limit, samples = config.limit, len(subject.parts["test"])
    simulated = config.governor is not None and config.clocks == "simulated"
    if scene.period_s is not None and limit is None and not simulated:
        pass_s = max(PERIODIC_PASS_S, tier.window_s if tier else 0.0)
        limit = max(1, int(pass_s / scene.period_s))
    return thinned(samples, limit)


def _announce(todo: Sequence[tuple[Bench, list[Setting]]], config: RunConfig, say: Say) -> None:
    """Say what a scene means, and how long it takes."""
    manner = todo[0][0].manner
    if manner.simulated:
        say("run: clocks are simulated: no clock is changed, time and energy are modelled")
        if manner.governing is not None:
            count = len(manner.governing.table.points)
            say(f"run: {count} operating points ({manner.governing.levels})")
        say(f"run: {model_error_words()}")
    if manner.scene.period_s is None or manner.simulated:
        return
    bench, count = todo[0][0], sum(len(settings) for _, settings in todo)
    windows = plan(manner, bench.meter, config.repeats)
    pass_s = max(windows.floor_s, len(bench.positions) * manner.scene.period_s)
    say(
        f"run: a request every {config.period_ms:g} ms, {len(bench.positions)} of them in a pass, "
        f"{windows.least} passes of {count} settings: about {pass_s * windows.least * count:.0f} s"
    )


def _measure(
    directory: RunDirectory,
    todo: Sequence[tuple[Bench, list[Setting]]],
    config: RunConfig,
    say: Say,
) -> None:
    """Measure what is left to do, and append its rows precision by precision."""
    meter, tier, simulated = todo[0][0].meter, todo[0][0].manner.tier, todo[0][0].manner.simulated
    before = UNKNOWN if simulated else idle_power(meter, tier, say)
    publish = tier is not None and tier.idle_after and not simulated
    found = settings_here() if publish else None

    def idle_after() -> Idle:
        return between(before, idle_power(meter, tier, say)) if publish else before

    for bench, settings in todo:
        log = PassLog(directory.path / "passes.jsonl")
        rows = run_settings(
            bench, settings, config.repeats, 0, say, config.stat_each_layer, log, idle_after
        )
        for row in rows:
            directory.append_measurement(row)
            say(_measured_words(row))
        log.clear()
    if found is not None:
        directory.update(hardware={"settings": {"before": found, "after": settings_here()}})


def idle_power(meter: Meter, tier: Tier | None, say: Say) -> Idle:
    """The power of the device with nothing to do."""
    if tier is not None:
        say(f"run: idle power, {tier.idle_s:g} s")
    return measure_idle(meter, tier.idle_s if tier else 0.0)


def _measured_words(row: Mapping[str, Any]) -> str:
    modelled = row["latency_source"] == "modelled"  # with simulated clocks only decisions are real
    words = (
        f"{'decided live, priced' if modelled else 'measured'} {_setting(row).words()}: "
        f"{row['latency_ms']:.4g} ms per sample{' (modelled)' if modelled else ''}, replayed "
        f"{_number(row['replay_latency_ms'])} ms, same decisions {row['same_decisions']:.2%}"
    )
    if row["energy_mj"] is not None:
        words += f", {row['energy_mj']:.4g} mJ ({row['energy_source']})"
    if row["rebatch_wait"] is not None:
        words += (
            f"; rebatched, so that this is throughput: answers came {row['waited_batches']:.2g} "
            f"further batches later on average, {row['longest_wait_batches']} at most, and a "
            f"segment ran on {row['rows_per_segment']:.1f} samples"
        )
    if row["missed"] is not None:
        words += f", {row['missed']:.1%} over the deadline"
    if row["keeps_up"] is False:
        words += (
            "; it cannot keep up with the period, so that every request waits longer than the one "
            "before"
        )
    elif row["late"]:
        words += f", {row['late']:.1%} of the requests had to wait for an earlier one"
    return words


def _batch_size(directory: RunDirectory, config: RunConfig) -> int | None:
    if config.governor is not None or config.scene == "periodic":
        return 1
    return config.batch_size or directory.manifest.get("priced_batch_size")


def _setting(row: Mapping[str, Any]) -> Setting:
    return Setting(**{name: row[name] for name in SETTING_COLUMNS})


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4g}"

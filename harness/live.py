"""``exitbench run``: chosen settings really run, measured, and set beside their replay."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .choose import BOUNDS
from .configs import RunConfig
from .costs import CostTable
from .data import subset
from .errors import ExitbenchError
from .hardware import hardware_profile
from .judging import judge, tables
from .measure import Bench, measured_key, run_settings, sought
from .meters.base import Meter
from .meters.choose import ChosenMeter
from .options import to_plain
from .passes import PassLog
from .profiling import active_power_w, choose_energy
from .rundir import RunDirectory
from .settings import Setting
from .subject import Subject, load_subject, thinned
from .sweep import SETTING_COLUMNS
from .sweepfile import read_sweep
from .sweeping import load_traces, prices_for, setting_of, write_table
from .trace import Trace, TraceMeta, record, writing
from .tracing import begin, check_subject, traced_subject

Say = Callable[[str], None]
LIVE_PREDICTION, LIVE_CONFUSION = "prediction_live.csv", "prediction_live_confusion.csv"
DEFAULT_ROLES = ("full", "every-exit", "every-exit-best", "predictive", "recommended")


def run_run(config: RunConfig, say: Say) -> None:
    """Run settings of a sweep and measure them; or measure how well the predictor forecasts.

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
        _judged(chosen, config, subject)
    else:
        hardware = _hardware(directory, config.hardware, str(subject.device))
        table, batch_size = CostTable.read(directory.cost), _batch_size(directory, config)
        for name in {setting.precision for setting in chosen}:
            prices_for(table, load_traces(directory, name), batch_size)
    begin(directory, "run", to_plain(config), subject)
    prepared = {
        name: subject.prepare(name) for name in dict.fromkeys(s.precision for s in chosen)
    }
    if config.forward_mode == "accuracy":
        judge_live(directory, subject, prepared, chosen, config, say)
    else:
        meter = choose_energy(directory, subject, hardware, say)
        measure_chosen(directory, subject, prepared, chosen, config, meter, say)
    directory.finish("run")


def _hardware(directory: RunDirectory, asked: str, device: str) -> str:
    """The hardware profile of a run: that of the cost table, so that both model the same watts.

    Raises:
        ExitbenchError: another one was asked for, or there is none such.
    """
    known = directory.manifest.get("hardware", {})
    name = known.get("asked", "auto") if asked == "auto" else asked
    chosen = hardware_profile(name, device)
    new = (chosen.profile.name if chosen.profile else None, active_power_w(chosen))
    old = (known.get("profile"), known.get("power_w", new[1]))
    if known.get("source") == "modelled" and old != new:
        raise ExitbenchError(
            f"energies in {directory.path} are modelled with hardware profile {old[0]} {old[1]}, "
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
            known = sorted({r for roles in test.chosen_as.dropna() for r in roles.split(";")})
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
    meter: Meter | ChosenMeter,
    say: Say,
) -> None:
    """Run and measure settings, precision by precision; those measured already are left out."""
    table = CostTable.read(directory.cost)
    positions = thinned(len(subject.parts["test"]), config.limit)
    batch_size = _batch_size(directory, config)
    done = {measured_key(row) for row in directory.read_measurements()}
    for precision, network in prepared.items():
        traces = load_traces(directory, precision)
        prices = prices_for(table, traces, batch_size)
        bench = Bench(subject, network, traces, prices, meter, prices.batch_size, positions)
        todo = [
            setting
            for setting in settings
            if setting.precision == precision
            and measured_key(sought(setting, bench, config.repeats)) not in done
        ]
        if not todo:
            say(f"run {precision}: already measured")
            continue
        log = PassLog(directory.path / "passes.jsonl")
        rows = run_settings(bench, todo, config.repeats, 0, say, config.stat_each_layer, log)
        for row in rows:
            directory.append_measurement(row)
            say(
                f"measured {_setting(row).words()}: {row['latency_ms']:.4g} ms per sample, "
                f"replayed {_number(row['replay_latency_ms'])} ms, same decisions "
                f"{row['same_decisions']:.2%}"
            )
        log.clear()


def _batch_size(directory: RunDirectory, config: RunConfig) -> int | None:
    return config.batch_size or directory.manifest.get("priced_batch_size")


def _setting(row: Mapping[str, Any]) -> Setting:
    return Setting(**{name: row[name] for name in SETTING_COLUMNS})


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4g}"


def judge_live(
    directory: RunDirectory,
    subject: Subject,
    prepared: Mapping[str, Any],
    settings: Sequence[Setting],
    config: RunConfig,
    say: Say,
) -> None:
    """Forward mode ``accuracy``: run every exit, judge the forecasts of predictive settings.

    The tables stand beside those of the sweep, which are judged on the whole recorded trace.
    """
    predictive, starts = _judged(settings, config, subject)
    part = subject.parts["test"]
    few = subset(part, thinned(len(part), config.limit))
    limited = replace(subject, parts={**subject.parts, "test": few})
    rows: list[pd.DataFrame] = []
    cells: list[pd.DataFrame] = []
    with tempfile.TemporaryDirectory(dir=directory.path, prefix=".live-") as folder:
        for precision, network in prepared.items():
            traces = load_traces(directory, precision)
            live = _live_trace(limited, network, traces.test.meta, Path(folder), say)
            for setting in (s for s in predictive if s.precision == precision):
                judged = judge(setting, live, traces.scales, traces.calibration, starts)
                for item in judged:
                    say(
                        f"{setting.words()}, from exit {item.start_layer}: {item.hits} of "
                        f"{item.forecasts} forecasts right"
                    )
                for found, table in zip(
                    tables(setting, "test", judged), (rows, cells), strict=True
                ):
                    table.append(found)
    for name, frames in ((LIVE_PREDICTION, rows), (LIVE_CONFUSION, cells)):
        write_table(directory.path / name, pd.concat(frames, ignore_index=True))
    say(f"wrote {directory.path / LIVE_PREDICTION} and {LIVE_CONFUSION}")


def _judged(
    settings: Sequence[Setting], config: RunConfig, subject: Subject
) -> tuple[list[Setting], list[int]]:
    """The settings whose forecasts are judged, and the start layers they are judged at."""
    predictive = [setting for setting in settings if setting.policy == "predictive"]
    if not predictive:
        raise ExitbenchError(
            "forward mode accuracy judges forecasts, but no predictive setting was chosen; name "
            "one in --settings"
        )
    exits = subject.network.num_exits
    starts = list(range(1, exits + 1)) if config.start_layer is None else [config.start_layer]
    if not 1 <= starts[0] <= exits:
        raise ExitbenchError(f"start layer is {starts[0]}; this network has exits 1 to {exits}")
    return predictive, starts


def _live_trace(
    subject: Subject, network: Any, meta: TraceMeta, folder: Path, say: Say
) -> Trace:
    part = subject.parts["test"]
    path = folder / f"{meta.precision}.npz"
    say(f"run {meta.precision}: {len(part)} images through every exit")
    meta = replace(meta, samples=len(part))
    with writing(path, meta, part.labels, np.asarray(part.indices)) as writer:
        record(writer, subject.batches("test", 256), network)
    return Trace(path)

"""``exitbench run --forward-mode accuracy``: how well the predictor forecasts, network running."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .configs import RunConfig
from .data import subset
from .errors import ExitbenchError
from .judging import judge, tables
from .rundir import RunDirectory
from .settings import Setting
from .subject import Subject, thinned
from .sweeping import load_traces, write_table
from .trace import Trace, TraceMeta, record, writing

Say = Callable[[str], None]
LIVE_PREDICTION, LIVE_CONFUSION = "prediction_live.csv", "prediction_live_confusion.csv"


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
    predictive, starts = judged_settings(settings, config, subject)
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


def judged_settings(
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

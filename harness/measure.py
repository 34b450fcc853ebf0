"""Really running settings, measured; ``measured.py`` makes the rows and sets replay beside them.

A pass is one run over all samples, batch by batch. The first pass of every setting is not timed:
it warms up, collects ``stat_each_layer`` and gives the decisions. The timed passes of all settings
are interleaved in a fresh random order each round, so that drift meets all alike. Normalising
the images happens outside the timed stretches. A stretch that is too short for the meter's counter
is run again and again within one window; what it cost is then divided by how often it ran.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .bench import Bench, Live
from .errors import ExitbenchError
from .evidence import IntArray
from .idle import Idle
from .manner import plan
from .measured import measured_key, measurement, sought
from .onepass import run_pass
from .passes import PassLog
from .scheduler import LayerStatistics
from .settings import Setting, make_policy, true_leaves

SAID_EVERY_S = 10.0
Say = Callable[[str], None]


def run_settings(
    bench: Bench,
    settings: Sequence[Setting],
    repeats: int,
    seed: int,
    say: Say,
    stat_each_layer: bool = True,
    log: PassLog | None = None,
    idle: Callable[[], Idle] | None = None,
) -> list[dict[str, Any]]:
    """The settings really run: one row of measurements.jsonl each.

    Args:
        repeats: timed passes; a tier may need more.
        stat_each_layer: put what happened at every exit into the rows.
        log: timed passes are kept there as they end, and those it holds are not run again.
        idle: the device's idle power, asked for once all passes are done; the manner's if None.

    Raises:
        ExitbenchError: a setting needs the truth (oracle, perfect predictor), or ``repeats`` is
            below 1.
    """
    if repeats < 1:
        raise ExitbenchError(f"repeats is {repeats}; it must be at least 1")
    exits = bench.subject.network.num_exits
    lives = [
        Live(s, make_policy(s, exits, bench.traces.scales, bench.traces.calibration))
        for s in settings
    ]
    keys = [measured_key(sought(setting, bench, repeats)) for setting in settings]
    least = plan(bench.manner, bench.meter, repeats).least
    if log is not None and not bench.manner.simulated:
        for live, key in zip(lives, keys, strict=True):
            live.passes = log.passes(key)
    timed = 0 if bench.manner.simulated else least
    missing = sum(1 + max(0, timed - len(live.passes)) for live in lives)
    progress = Progress(missing * len(bench.positions), say)
    for live in lives:
        say(f"run {live.setting.words()}: decisions over {len(bench.positions)} samples")
        live.statistics = _statistics(bench, live.setting)
        live.outcome, made = run_pass(bench, live, live.statistics, progress)
        if bench.manner.simulated:
            live.passes = [made]
    _timed_passes(bench, lives, keys, repeats, seed, say, progress, log)
    if idle is not None:
        bench = replace(bench, manner=replace(bench.manner, idle=idle()))
    return [measurement(bench, live, repeats, stat_each_layer) for live in lives]


def _timed_passes(
    bench: Bench,
    lives: Sequence[Live],
    keys: Sequence[tuple[Any, ...]],
    repeats: int,
    seed: int,
    say: Say,
    progress: Progress,
    log: PassLog | None,
) -> None:
    """Run all settings in rounds until each has the passes that it needs."""
    windows = plan(bench.manner, bench.meter, repeats)
    generator = np.random.default_rng(seed)
    number = 0
    while open_lives := [live for live in lives if not windows.suffice(live.passes)]:
        number += 1
        of = f" of {windows.least}" if number <= windows.least else ""
        say(f"run: timed pass {number}{of} over {len(open_lives)} settings")
        for index in generator.permutation(len(lives)):
            live = lives[index]
            # Of a resumed run some have passes of this round already.
            if len(live.passes) >= number or windows.suffice(live.passes):
                continue
            _, made = run_pass(bench, live, progress=progress, floor_s=windows.floor_s)
            live.passes.append(made)
            if log is not None:
                log.add(keys[index], made)


class Progress:
    """Says how far the passes are, and how long they will take, at most every ten seconds.

    Args:
        total: samples of all passes.
        say: takes one line.
    """

    def __init__(self, total: int, say: Say) -> None:
        self._total, self._done, self._say = total, 0, say
        self._begin_s = self._said_s = time.perf_counter()

    def __call__(self, samples: int) -> None:
        """So many more samples are done."""
        self._done += samples
        now_s = time.perf_counter()
        if now_s - self._said_s >= SAID_EVERY_S and self._done < self._total:
            left_s = (now_s - self._begin_s) / self._done * (self._total - self._done)
            self._said_s = now_s
            self._say(f"run: {self._done / self._total:.0%} done, about {left_s:.0f} s left")


def _statistics(bench: Bench, setting: Setting) -> LayerStatistics:
    leaves = None
    if setting.policy == "predictive":
        leaves = true_leaves(setting, bench.traces.test, bench.traces.scales)
    truth: IntArray = bench.subject.parts["test"].labels
    return LayerStatistics(bench.subject.network.num_exits, truth, leaves)

"""What measuring costs itself: reading the meter, in time and, where it can be told, in energy.

A window is opened and closed around nothing, many times. How long that takes is mostly waiting for
the counter's next update, outside the window; what is spent *inside* it, between its edges, falls
on the unit that is measured and has to stay below 1% of the window. A meter that samples in a
thread spends in every window in proportion to its length, so a long idle one is looked at too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .idle import Idle
from .meters.base import Clock, Meter, Reading, minimum_window_s

LIMIT = 0.01
"""The share of a window that reading the meter may take."""

_PAIRS = 10
_ENERGY_PAIRS = 200  # windows opened and closed while their energy is watched, at most


@dataclass(frozen=True)
class Overhead:
    """The harness's own cost.

    Attributes:
        open_close_s: seconds to open and close a window, waiting for the counter included.
        inside_s: seconds of these that lie inside the window.
        sampling: share of the time that a sampling meter is at work; 0 where none samples.
        energy_j: joules of opening and closing a window, above idle; None where the counter
            cannot resolve them.
    """

    open_close_s: float
    inside_s: float
    sampling: float
    energy_j: float | None = None

    def share(self, window_s: float) -> float | None:
        """The part of a window of ``window_s`` that is spent on the meter; None of no window."""
        return None if window_s <= 0 else self.inside_s / window_s + self.sampling

    def plain(self, window_s: float) -> dict[str, Any]:
        """For the manifest."""
        return {
            "open_close_s": self.open_close_s,
            "inside_s": self.inside_s,
            "share": self.share(window_s),
            "energy_j": self.energy_j,
        }


def measure_overhead(
    meter: Meter,
    idle: Idle,
    *,
    clock: Clock = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> Overhead:
    """What ``meter`` costs on this machine.

    Args:
        meter: a meter.
        idle: the idle power, which the energy of the meter's reading is told from.
        clock: a monotonic clock in seconds.
        sleep: waits.
    """
    taken: list[float] = []
    inside: list[float] = []
    for _ in range(_PAIRS):
        begin_s = clock()
        reading = meter.open().close()
        taken.append(clock() - begin_s)
        inside.append(min(reading.overhead_s, taken[-1]))
    pair_s, inside_s = float(np.median(taken)), float(np.median(inside))
    narrowest_s = minimum_window_s(meter)
    if narrowest_s <= 0:
        return Overhead(pair_s, inside_s, 0.0)
    window = meter.open()
    sleep(narrowest_s)
    long = window.close()
    sampling = max(0.0, long.overhead_s - inside_s) / long.seconds if long.seconds > 0 else 0.0
    return Overhead(pair_s, inside_s, sampling, _energy_j(meter, idle, pair_s, narrowest_s, clock))


def _energy_j(
    meter: Meter, idle: Idle, pair_s: float, narrowest_s: float, clock: Clock
) -> float | None:
    """Joules of a pair above idle, from many of them within one window."""
    if idle.power_w is None or meter.source != "measured":
        return None
    pairs, begin_s = 0, clock()
    window = meter.open()
    while pairs < _ENERGY_PAIRS and clock() - begin_s < 2 * narrowest_s + pair_s:
        meter.open().close()
        pairs += 1
    reading = window.close()
    joules, unsure_j = reading.total_j, reading.total_uncertainty_j
    if joules is None or pairs == 0:
        return None
    above_j = joules - idle.power_w * reading.seconds
    spread_w = max((abs(end - idle.power_w) for end in idle.interval_w or ()), default=0.0)
    if above_j <= (unsure_j or 0.0) + spread_w * reading.seconds:
        return None
    return above_j / pairs


def of_reading(reading: Reading) -> str:
    """A sentence where reading the meter took too much of a window; empty where it did not."""
    if reading.seconds <= 0 or reading.overhead_s <= LIMIT * reading.seconds:
        return ""
    return (
        f"reading the meter took {reading.overhead_s / reading.seconds:.1%} of a window, more "
        f"than {LIMIT:.0%}"
    )

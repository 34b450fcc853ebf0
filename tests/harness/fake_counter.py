"""A fake machine with a counter of its energy that is read in steps, and meters that read it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from exitbench.harness.meters.base import Reading, Source, too_short
from exitbench.harness.timing import Timing


class Bench:
    """A clock in seconds that only work and sleep move, and the energy of what happened so far."""

    def __init__(
        self, power_w: float, update_period_s: float, idle_w: float | None = None
    ) -> None:
        self.power_w = power_w
        self.idle_w = power_w if idle_w is None else idle_w
        self.update_period_s = update_period_s
        self.now_s = 0.0
        self.true_j = 0.0
        self.windows: list[float] = []

    def __call__(self) -> float:
        return self.now_s

    @property
    def counter_j(self) -> float:
        """The energy at the last update, had the power since then been as it is at work."""
        late_s = self.now_s % self.update_period_s
        return self.true_j - late_s * self.power_w

    def unit(self, seconds: float, power_w: float | None = None) -> Callable[[], None]:
        """Work that takes so long."""

        def work() -> None:
            self.now_s += seconds
            self.true_j += seconds * (self.power_w if power_w is None else power_w)

        return work

    def sleep(self, seconds: float) -> None:
        """Time in which nothing runs."""
        self.now_s += seconds
        self.true_j += seconds * self.idle_w


@dataclass
class CounterMeter:
    """A counter that reads the fake machine; what it cannot resolve is None, as in real ones."""

    bench: Bench
    name: str = "fake counter"
    domains: tuple[str, ...] = ("gpu",)
    source: Source = "measured"
    extra: dict[str, float | None] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)
    opening_s: float = 0.0

    @property
    def update_period_s(self) -> float:
        return self.bench.update_period_s

    def open(self) -> CounterWindow:
        self.bench.sleep(self.opening_s)
        return CounterWindow(self, self.bench.now_s, self.bench.counter_j)


@dataclass
class CounterWindow:
    meter: CounterMeter
    opened_s: float
    opened_j: float

    def close(self) -> Reading:
        bench = self.meter.bench
        seconds = bench.now_s - self.opened_s
        bench.windows.append(seconds)
        note = too_short(seconds, bench.update_period_s)
        joules = None if note else bench.counter_j - self.opened_j
        joules_of: dict[str, float | None] = {"gpu": joules, **self.meter.extra}
        more = {"note": note, **self.meter.more}
        return Reading(seconds, joules_of, "measured", **more)


def timing(seconds: float) -> Timing:
    """A latency that every sample agrees on."""
    return Timing(np.full(6, seconds), calls=1, target_reached=True, warm=True)

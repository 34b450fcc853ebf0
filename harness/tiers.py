"""How long energy is measured: three tiers, and the windows that one of them plans.

=========  =======================================================================================
tier       per unit
=========  =======================================================================================
quick      5 s of measured time in 5 windows: a first look, without an interval
standard   30 s and 6 windows, then on until the 95% interval of the median is within 2%, or 120 s
publish    600 s in 10 windows, idle power before and after, settings of the machine recorded:
           what MLPerf Power asks of a run
=========  =======================================================================================

Every window spans at least 50 updates of its counter, in every tier. A tier that does not fit into
the time allowed is not reached: its windows shrink, never below 50 updates, and it says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

MARGIN = 1.1
"""Calls beyond those that a latency asks for: repeated, a unit runs faster than it was timed."""


@dataclass(frozen=True)
class Tier:
    """What a tier asks for.

    Attributes:
        seconds: measured time of every unit, at least.
        windows: windows of every unit, at least.
        interval: go on until the 95% interval of the median energy is within this share of it;
            None: whatever the interval.
        cap_s: measured time after which a unit is no longer gone on with for its interval.
        idle_s: time for which idle power is measured.
        idle_after: measure it again at the end.
    """

    name: str
    seconds: float
    windows: int
    interval: float | None
    cap_s: float
    idle_s: float
    idle_after: bool = False

    @property
    def window_s(self) -> float:
        """The length of a window where the counter needs no longer ones."""
        return self.seconds / self.windows


TIERS: dict[str, Tier] = {
    tier.name: tier
    for tier in (
        Tier("quick", 5.0, 5, None, 5.0, 5.0),
        Tier("standard", 30.0, 6, 0.02, 120.0, 30.0),
        Tier("publish", 600.0, 10, None, 600.0, 60.0, idle_after=True),
    )
}


@dataclass(frozen=True)
class Plan:
    """The windows of one measurement.

    Attributes:
        tier: what was asked for.
        reached: whether the time allowed suffices for it.
        window_s: length of a window.
        windows: windows of every unit, at least; 0 where not even one fits.
        seconds: measured time of every unit, at least.
        most: windows of every unit, at most.
        need_s: how long the least of it takes; where nothing fits, what one window per unit would.
        most_s: how long all of it may take.
    """

    tier: Tier
    reached: bool
    window_s: float
    windows: int
    seconds: float
    most: int
    need_s: float
    most_s: float

    @property
    def name(self) -> str:
        """The tier as it was done: ``quick``, or ``below quick``."""
        return self.tier.name if self.reached else f"below {self.tier.name}"

    @property
    def interval(self) -> float | None:
        """The share that the 95% interval must be within; None where it does not matter."""
        return self.tier.interval if self.reached else None


def plan_windows(
    tier: Tier,
    latencies_s: Sequence[float],
    *,
    narrowest_s: float,
    edge_s: float = 0.0,
    allowed_s: float | None = None,
) -> Plan:
    """The windows that ``tier`` asks for, or as many as fit into the time allowed.

    Args:
        latencies_s: of every unit, seconds of a call.
        narrowest_s: the shortest window that the counter resolves.
        edge_s: time to wait for the counter at both edges of a window together.
        allowed_s: time for everything; None: what the tier needs.
    """

    def round_s(window_s: float) -> float:
        return sum(_window_s(latency_s, window_s) + edge_s for latency_s in latencies_s)

    wide_s = max(narrowest_s, tier.window_s)
    need_s = tier.windows * round_s(wide_s)
    if allowed_s is None or allowed_s >= need_s:
        # As many again for windows that turn out short, and what the interval may take.
        most = max(2 * tier.windows, math.ceil(tier.cap_s / wide_s))
        extra = most if tier.interval is not None else tier.windows
        most_s = extra * round_s(wide_s) if allowed_s is None else allowed_s
        return Plan(
            tier, True, wide_s, tier.windows, tier.seconds, most, need_s, max(need_s, most_s)
        )
    one_s = round_s(narrowest_s)
    windows = min(tier.windows, int(allowed_s / one_s + 1e-9))
    if windows < 1:
        return Plan(tier, False, narrowest_s, 0, 0.0, 0, one_s, one_s)
    window_s = _widest(narrowest_s, wide_s, lambda width: windows * round_s(width) <= allowed_s)
    need_s = windows * round_s(window_s)
    return Plan(tier, False, window_s, windows, 0.0, windows, need_s, allowed_s)


def calls_for(latency_s: float, window_s: float) -> int:
    """How often a unit is called in a window of ``window_s``."""
    return max(1, math.ceil(MARGIN * window_s / max(latency_s, 1e-9)))


def _widest(low_s: float, high_s: float, fits: Callable[[float], bool]) -> float:
    """The widest window between two that fits; the first one does, and narrower ones fit better."""
    for _ in range(40):
        middle_s = (low_s + high_s) / 2
        low_s, high_s = (middle_s, high_s) if fits(middle_s) else (low_s, middle_s)
    return low_s


def _window_s(latency_s: float, window_s: float) -> float:
    return calls_for(latency_s, window_s) * latency_s

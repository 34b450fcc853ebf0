"""Replay under a governor: what a setting costs when the clocks follow its forecasts.

A request's way is which exits it was checked at and where it left. One walk over the trace finds
the ways of all samples; each different one is then steered once, by the ``LiveSteer`` that steers
live runs, so that a replayed request is a live one by construction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from .errors import ExitbenchError
from .evidence import Evidence, IntArray
from .governors import Governor, LiveSteer, OperatingTable, Outlook, outlook_of
from .meters.base import Source, weakest
from .policies import Policy
from .scheduler import Steer, walk
from .sources import TraceSource
from .trace import Trace

MOST_EXITS = 63  # checked exits are kept as bits of one whole number
Way = tuple[int, ...]


@dataclass(frozen=True)
class Ways:
    """The different ways of the samples of a split through the network.

    Attributes:
        exits: E.
        ways: per way the exits that are asked in order; the last is where it leaves, E + 1 the
            classifier.
        way_of: index of each sample's way, (N,).
        accuracy: share of right answers, 0..1.
        outlook: of the policy.
    """

    exits: int
    ways: tuple[Way, ...]
    way_of: IntArray
    accuracy: float
    outlook: Outlook


def find_ways(policy: Policy, trace: Trace, criterion: str | None) -> Ways:
    """The ways of all samples of a trace under a policy.

    Raises:
        ExitbenchError: the network has more than 63 exits.
    """
    exits = trace.meta.exits
    if exits > MOST_EXITS:
        raise ExitbenchError(
            f"the network has {exits} exits; requests are followed over at most {MOST_EXITS}. "
            "Train heads on fewer with --exits"
        )
    checked = np.zeros(trace.meta.samples, np.int64)

    def note(exit: int, evidence: Evidence, following: IntArray) -> None:
        checked[evidence.samples] |= np.int64(1) << np.int64(exit - 1)

    outcome = walk(policy, TraceSource(trace, criterion or "softmax"), note)
    different, way_of = np.unique(
        np.stack([checked, outcome.exit_at]), axis=1, return_inverse=True
    )
    return Ways(
        exits,
        tuple(_way(int(bits), int(left), exits) for bits, left in different.T),
        way_of.reshape(-1),
        float((outcome.label == trace.truth).mean()),
        outlook_of(policy),
    )


def _way(bits: int, left_at: int, exits: int) -> Way:
    asked = tuple(exit for exit in range(1, exits + 1) if bits >> (exit - 1) & 1)
    return asked if left_at <= exits else (*asked, left_at)


@dataclass(frozen=True)
class Governed:
    """What a setting costs on a split under a governor; means per request.

    Attributes:
        latency_s: mean time.
        latency_p99_s: time that 99 of 100 requests keep.
        missed: share of requests that take longer than the deadline, 0..1.
        switches: clock switches.
        points: share of the busy time by operating point.
        busy_j: energy until the answer.
        energy_j: the same with the idle until the deadline; there is none after a longer request.
        energy_source: the weakest source of what ``energy_j`` is made of.
        latency_source: the weakest source of the times.
    """

    latency_s: float
    latency_p99_s: float
    missed: float
    switches: float
    points: dict[str, float]
    busy_j: float
    energy_j: float
    energy_source: Source
    latency_source: Source


def govern_ways(ways: Ways, governor: Governor, table: OperatingTable) -> Governed:
    """All samples of a split, each steered along its way.

    Args:
        ways: of the policy that the governor was made for.
        governor: made for ``table``.
    """
    assert ways.outlook == governor.outlook
    steer = LiveSteer(governor, table)
    for way in ways.ways:
        steer_along(way, steer)
    requests = steer.requests
    count = np.bincount(ways.way_of, minlength=len(ways.ways))
    share = count / count.sum()
    seconds = np.array([request.seconds for request in requests])
    joules = np.array([request.joules for request in requests], dtype=np.float64)
    idle_s = np.maximum(0.0, governor.deadline_s - seconds)
    times = {
        point.name: float(share @ [request.points.get(point.name, 0.0) for request in requests])
        for point in table.points
    }
    points = {name: time_s / sum(times.values()) for name, time_s in times.items() if time_s > 0}
    used = [point for point in table.points if point.name in points]
    idles: list[Source] = [table.idle_source] if (share @ idle_s) > 0 else []
    busy_j = float(share @ joules)
    return Governed(
        latency_s=float(share @ seconds),
        latency_p99_s=float(np.quantile(seconds[ways.way_of], 0.99, method="higher")),
        missed=float(share @ [request.missed for request in requests]),
        switches=float(share @ [request.switches for request in requests]),
        points=points,
        busy_j=busy_j,
        energy_j=busy_j + float(share @ idle_s) * table.idle_w,
        energy_source=weakest([*idles, *(point.energy_source for point in used)]),
        latency_source=weakest(point.latency_source for point in used),
    )


def steer_along(way: Way, steer: Steer) -> None:
    """Tell ``steer`` of one request as the scheduler's loop would.

    Args:
        way: the exits that are asked in order; see ``Ways``.
        steer: has the account of it afterwards.
    """
    steer.begin(way[0])
    for exit, following in pairwise(way):
        steer.forecast(exit, following)
    steer.end(way[-1])


def points_text(points: Mapping[str, float]) -> str:
    """Shares by operating point in one cell, the slowest first: ``510 MHz:0.25 1020 MHz:0.75``."""
    return " ".join(f"{name}:{share:.4g}" for name, share in points.items())

"""What a request pays at each operating point: the table that governors choose from.

``operating.py`` makes it from a cost table and a hardware profile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from .errors import ExitbenchError
from .meters.base import Source, weakest


@dataclass(frozen=True)
class PointCosts:
    """What a request pays at one operating point, in seconds and joules per sample.

    Attributes:
        name: the point's name.
        clock_mhz: its clocks in MHz by domain.
        f_ratio: its clock as a share of the top clock, (0, 1].
        segments_s: arrays (E + 1,), like ``segments_j``.
        heads_s: arrays (E,), like ``heads_j``, ``forecasts_s`` and ``forecasts_j``.
        classifier_s: single values, like ``classifier_j``.
        energy_source: the weakest source among the energies, ``latency_source`` among the times.
    """

    name: str
    clock_mhz: Mapping[str, float]
    f_ratio: float
    segments_s: np.ndarray
    heads_s: np.ndarray
    forecasts_s: np.ndarray
    classifier_s: float
    segments_j: np.ndarray
    heads_j: np.ndarray
    forecasts_j: np.ndarray
    classifier_j: float
    energy_source: Source = "modelled"
    latency_source: Source = "modelled"

    @property
    def full_s(self) -> float:
        """Seconds of the network without exits."""
        return float(self.segments_s.sum()) + self.classifier_s

    @property
    def full_j(self) -> float:
        """Joules of the network without exits."""
        return float(self.segments_j.sum()) + self.classifier_j

    @property
    def power_w(self) -> float:
        """Mean watts while the network without exits runs."""
        return self.full_j / self.full_s


@dataclass(frozen=True)
class OperatingTable:
    """Costs of every operating point of a device, for one precision and single samples.

    Attributes:
        points: slowest first; the last is the top clock.
        idle_w: watts while the device waits.
        switch_s: seconds until another point is in force; nothing is computed meanwhile.
        idle_source: where ``idle_w`` comes from.
        notes: what had to be assumed, as sentences.
        aliases: other names of points, such as a mode's that is one of the levels.
    """

    points: tuple[PointCosts, ...]
    idle_w: float
    switch_s: float
    idle_source: Source = "modelled"
    notes: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)

    @property
    def energy_source(self) -> Source:
        """The weakest source among the energies of all points."""
        return weakest(point.energy_source for point in self.points)

    @property
    def latency_source(self) -> Source:
        """The weakest source among the times of all points."""
        return weakest(point.latency_source for point in self.points)

    @property
    def exits(self) -> int:
        """E."""
        return len(self.points[-1].heads_s)

    @property
    def top(self) -> int:
        """Index of the top clock."""
        return len(self.points) - 1

    @property
    def full_s(self) -> float:
        """Seconds of the network without exits at the top clock: the default deadline."""
        return self.points[-1].full_s

    def index(self, name: str) -> int:
        """The position of the point of that name.

        Raises:
            ExitbenchError: there is none.
        """
        names = [point.name for point in self.points]
        own = self.aliases.get(name, name)
        if own not in names:
            known = ", ".join(map(repr, (*names, *self.aliases)))
            raise ExitbenchError(f"operating point is {name!r}; this device has {known}")
        return names.index(own)

    def switch_j(self, one: int, other: int) -> float:
        """Joules of changing between two points: the power of the faster one, all the while."""
        return self.switch_s * max(self.points[one].power_w, self.points[other].power_w)

    @cached_property
    def stretches_s(self) -> list[PathCosts]:
        """Seconds of stretches of the network, per point."""
        return [
            PathCosts.of(p.segments_s, p.heads_s, p.forecasts_s, p.classifier_s)
            for p in self.points
        ]

    @cached_property
    def stretches_j(self) -> list[PathCosts]:
        """Joules of stretches of the network, per point."""
        return [
            PathCosts.of(p.segments_j, p.heads_j, p.forecasts_j, p.classifier_j)
            for p in self.points
        ]


@dataclass(frozen=True)
class PathCosts:
    """Costs of stretches of the network at one point, in plain numbers that are quick to look up.

    Attributes:
        ahead: sum of the segments up to each exit, (E + 2,); the first is 0.
        end: cost of the head at each exit, of the classifier at E + 1; the first is 0.
        forecast: cost of a forecast at each exit; the first is 0.
        rest: of everything after an exit with all heads and forecasts.
        rest_unforecast: the same without forecasts.
    """

    ahead: list[float]
    end: list[float]
    forecast: list[float]
    rest: list[float]
    rest_unforecast: list[float]

    @staticmethod
    def of(
        segments: np.ndarray, heads: np.ndarray, forecasts: np.ndarray, classifier: float
    ) -> PathCosts:
        """From the arrays of a ``PointCosts``."""
        end = np.array([0.0, *heads, classifier])
        forecast = np.array([0.0, *forecasts, 0.0])
        segment = np.array([0.0, *segments])

        def after(costs: np.ndarray) -> list[float]:
            sums: list[float] = (np.cumsum(costs[::-1])[::-1] - costs).tolist()
            return sums

        return PathCosts(
            np.cumsum(segment).tolist(),
            end.tolist(),
            forecast.tolist(),
            after(segment + end + forecast),
            after(segment + end),
        )

    def cost(self, exit: int, following: int) -> float:
        """Of the segments from ``exit`` (0: the start) to ``following`` and what is asked there.

        That is the head of ``following``, or the classifier.
        """
        return self.ahead[following] - self.ahead[exit] + self.end[following]

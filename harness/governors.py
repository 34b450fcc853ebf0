"""Governors: which operating point runs the part of the network that is left after a forecast.

    begin ---- segments, head ---- forecast ---- segments, head ---- forecast ... end
      choose                         choose                            choose

A governor is pure: told where a request is, where it is bound for, how much time is spent and which
point is set, it names a point of an ``OperatingTable``. ``LiveSteer`` asks it while a request is
walked, live or in replay. ``docs/governors.md`` has the formulas and their conventions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from .errors import ExitbenchError
from .pointcosts import OperatingTable, PointCosts

if TYPE_CHECKING:
    from .policies import Policy

__all__ = [
    "GOVERNORS", "Governor", "LiveSteer", "OperatingTable", "Outlook", "PointCosts", "Request",
    "Session", "make_governor", "outlook_of",
]  # fmt: skip

# Sums of the same parts in another order differ in their last digits; that is no missed deadline.
ROUNDING = 1e-9
MISSED_BY = 1e-6


@dataclass(frozen=True)
class Outlook:
    """What a policy's word about a sample's next exit is worth.

    Attributes:
        pays: a sample that stays pays for a forecast.
        certain: a sample leaves at the exit that it is due at first.
        predicts: the next exit of a sample that stays is a forecast of where it leaves, and not
            only the next place to look.
    """

    pays: bool = False
    certain: bool = False
    predicts: bool = False


def outlook_of(policy: Policy) -> Outlook:
    """What a governor may make of a policy's word."""
    from .policies import Fixed, Full, Oracle, Predictive

    return Outlook(
        pays=policy.forecasts,
        certain=isinstance(policy, Full | Fixed | Oracle),
        predicts=isinstance(policy, Predictive),
    )


class Governor(Protocol):
    """Chooses the operating point of the stretch that comes next."""

    @property
    def deadline_s(self) -> float:
        """Time allowed per request, in seconds."""

    @property
    def outlook(self) -> Outlook:
        """That of the policy whose requests it governs."""

    def choose(self, exit: int, following: int, spent_s: float, current: int) -> int:
        """The point for the stretch from ``exit`` to ``following``, as an index of the table.

        Args:
            exit: where the request is; 0 at its start, when setting a point takes no time of it.
            following: the exit that it is bound for, E + 1 for the classifier.
            spent_s: seconds since it came.
            current: the point that is set.
        """


@dataclass(frozen=True)
class Constant:
    """One point throughout."""

    point: int
    deadline_s: float
    outlook: Outlook

    def choose(self, exit: int, following: int, spent_s: float, current: int) -> int:
        return self.point


@dataclass(frozen=True)
class Proportional:
    """The clock nearest to the top clock times jump / exits left, as in the paper's program.

    Before the first forecast it is the top clock. The classifier counts as an exit. Of points that
    are equally near the faster one is taken.
    """

    table: OperatingTable
    deadline_s: float
    outlook: Outlook

    def choose(self, exit: int, following: int, spent_s: float, current: int) -> int:
        if exit == 0:
            return self.table.top
        wanted = (following - exit) / (self.table.exits + 1 - exit)
        ratios = [point.f_ratio for point in self.table.points]
        return min(
            reversed(range(len(ratios))), key=lambda index: round(abs(ratios[index] - wanted), 9)
        )


@dataclass(frozen=True)
class Deadline:
    """Of the points that keep the deadline the one with the least energy above idle.

    A point keeps it if the time spent, the switch and the stretch to the next exit end in time. If
    none does, it is the top clock. A forecast is trusted: nothing is kept back for what may follow.
    Where the next exit is no forecast (at the start, and under every-exit) room is left for all of
    the network after it, with all heads and forecasts, at the top clock.

    Attributes:
        safe: leave that room after a forecast, too, so that a wrong one misses no deadline.
    """

    table: OperatingTable
    deadline_s: float
    outlook: Outlook
    safe: bool = False

    def choose(self, exit: int, following: int, spent_s: float, current: int) -> int:
        table, limit_s = self.table, self.deadline_s * (1 + ROUNDING) - spent_s
        careful = not self.outlook.certain if exit == 0 else self.safe or not self.outlook.predicts
        best, least_j = table.top, float("inf")
        for point in range(len(table.points)):
            seconds = table.stretches_s[point].cost(exit, following)
            joules = table.stretches_j[point].cost(exit, following)
            if exit > 0 and point != current:
                seconds += table.switch_s
                joules += table.switch_j(current, point)
            above_idle_j = joules - table.idle_w * seconds
            room_s = self._room_s(point, following) if careful else 0.0
            # Of equals the faster one, which leaves more time to what may follow.
            if seconds + room_s <= limit_s and above_idle_j <= least_j:
                best, least_j = point, above_idle_j
        return best

    def _room_s(self, point: int, following: int) -> float:
        """Seconds that all of the network after ``following`` can take, if ``point`` led there."""
        table = self.table
        if following > table.exits:
            return 0.0
        top = table.stretches_s[table.top]
        room_s = 0.0 if point == table.top else table.switch_s
        if not self.outlook.pays:
            return room_s + top.rest_unforecast[following]
        return room_s + table.stretches_s[point].forecast[following] + top.rest[following]


def _fixed(
    table: OperatingTable, deadline_s: float, outlook: Outlook, operating_point: str | None
) -> Governor:
    if operating_point is not None:
        return Constant(table.index(operating_point), deadline_s, outlook)
    limit_s = deadline_s * (1 + ROUNDING)
    able = [index for index, point in enumerate(table.points) if point.full_s <= limit_s]
    return Constant(min(able, default=table.top), deadline_s, outlook)


def _top(table: OperatingTable, deadline_s: float, outlook: Outlook, _: str | None) -> Governor:
    return Constant(table.top, deadline_s, outlook)


_Make = Callable[[OperatingTable, float, Outlook, str | None], Governor]
GOVERNORS: dict[str, _Make] = {
    "fixed": _fixed,
    "race-to-idle": _top,
    "proportional": lambda table, deadline_s, outlook, _: Proportional(table, deadline_s, outlook),
    "deadline": lambda table, deadline_s, outlook, _: Deadline(table, deadline_s, outlook),
    "deadline-safe": lambda table, deadline_s, outlook, _: Deadline(
        table, deadline_s, outlook, safe=True
    ),
}


def make_governor(
    name: str | None,
    table: OperatingTable,
    deadline_s: float | None = None,
    *,
    outlook: Outlook,
    operating_point: str | None = None,
) -> Governor:
    """The governor of that name.

    Args:
        name: key of ``GOVERNORS``; None is the top clock throughout.
        table: costs of the operating points.
        deadline_s: time allowed per request; the full network's at the top clock if None.
        outlook: ``outlook_of(policy)``.
        operating_point: of ``fixed``; the slowest at which the full network keeps the deadline if
            None, and the top clock if none does.

    Raises:
        ExitbenchError: there is no such governor or operating point.
    """
    if name is not None and name not in GOVERNORS:
        raise ExitbenchError(f"governor is {name!r}; known are {', '.join(GOVERNORS)}")
    make = _top if name is None else GOVERNORS[name]
    allowed_s = table.full_s if deadline_s is None else deadline_s
    return make(table, allowed_s, outlook, operating_point)


class Session(Protocol):
    """What sets clocks: ``clocks.session.ClockSession``."""

    def apply(self, values: Mapping[str, float]) -> float:
        """Set clocks, in MHz by domain, all or none; the seconds it took."""


@dataclass(frozen=True)
class Request:
    """What one request took.

    Attributes:
        seconds: from its start to its answer.
        joules: while it ran, without the idle time after it; None where no table prices it.
        switches: how often the clock was changed, the way back to its first point included.
        points: seconds by name of the operating point; a switch counts to the point it leads to.
        missed: whether it took longer than the deadline.
    """

    seconds: float
    joules: float | None
    switches: int
    points: dict[str, float]
    missed: bool


class LiveSteer:
    """Sets the clocks of requests as a governor says; one sample at a time, live or in replay.

    A request starts at the point chosen for its first stretch, and that point is set again after
    its answer, while the device waits: this costs no request time.

    Args:
        governor: names the points.
        table: prices them; the governor's own.
        session: sets the clocks. None simulates: nothing is changed, and the time spent and the
            energy are those of the table.
        clock: monotonic seconds, where clocks are really set.

    Attributes:
        requests: those that have ended.
    """

    def __init__(
        self,
        governor: Governor,
        table: OperatingTable,
        session: Session | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.requests: list[Request] = []
        self._governor, self._table = governor, table
        self._session, self._clock = session, clock
        self._chosen: dict[tuple[int, int, float, int], int] = {}
        self._current: int | None = None
        self._first = self._at = self._switches = 0
        self._began_s = self._since_s = self._spent_s = self._joules = 0.0
        self._points: dict[str, float] = {}

    def begin(self, first: int) -> None:
        """A request starts; ``first`` (1..E + 1) is the exit that it is due at."""
        current = self._table.top if self._current is None else self._current
        self._first = self._choose(0, first, 0.0, current)
        if self._first != self._current:
            self._apply(self._first)
        self._at, self._switches, self._points = 0, 0, {}
        self._spent_s = self._joules = 0.0
        if self._session is not None:
            self._began_s = self._since_s = self._clock()

    def forecast(self, exit: int, following: int) -> None:
        """At ``exit`` the request was sent on to ``following`` (..E + 1)."""
        self._account(exit, self._governor.outlook.pays)
        assert self._current is not None
        chosen = self._choose(exit, following, self._spent_s, self._current)
        if chosen == self._current:
            return
        self._switches += 1
        if self._session is None:
            self._spend(chosen, self._table.switch_s, self._table.switch_j(self._current, chosen))
        self._apply(chosen)
        self._account_real()

    def end(self, exit: int) -> None:
        """The request was answered at ``exit`` (E + 1: the classifier)."""
        self._account(exit, False)
        seconds, joules = self._spent_s, None if self._session is not None else self._joules
        missed = seconds > self._governor.deadline_s * (1 + MISSED_BY)
        if self._current != self._first:
            self._switches += 1
            self._apply(self._first)
        self.requests.append(Request(seconds, joules, self._switches, self._points, missed))

    def _choose(self, exit: int, following: int, spent_s: float, current: int) -> int:
        if self._session is not None:
            return self._governor.choose(exit, following, spent_s, current)
        # Governors are pure and priced requests come along the same few ways again and again.
        key = (exit, following, spent_s, current)
        if key not in self._chosen:
            self._chosen[key] = self._governor.choose(*key)
        return self._chosen[key]

    def _account(self, exit: int, forecast: bool) -> None:
        """Count what it took from the last place to ``exit``, at the point that is set."""
        if self._session is not None:
            self._account_real()
            return
        assert self._current is not None
        seconds, joules = (
            each[self._current]
            for each in (self._table.stretches_s, self._table.stretches_j)
        )
        extra = (seconds.forecast[exit], joules.forecast[exit]) if forecast else (0.0, 0.0)
        self._spend(
            self._current,
            seconds.cost(self._at, exit) + extra[0],
            joules.cost(self._at, exit) + extra[1],
        )
        self._at = exit

    def _spend(self, point: int, seconds: float, joules: float) -> None:
        name = self._table.points[point].name
        self._points[name] = self._points.get(name, 0.0) + seconds
        self._spent_s += seconds
        self._joules += joules

    def _account_real(self) -> None:
        """Count the real time since the last place to the point that is set."""
        if self._session is None:
            return
        assert self._current is not None
        now_s = self._clock()
        self._spend(self._current, now_s - self._since_s, 0.0)
        # Not a sum of differences, which would gather their rounding.
        self._since_s, self._spent_s = now_s, now_s - self._began_s

    def _apply(self, point: int) -> None:
        if self._session is not None:
            self._session.apply(self._table.points[point].clock_mhz)
        self._current = point

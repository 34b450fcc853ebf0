"""A governor over a live run: its operating points, its deadline, and what sets the clocks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from ..profiles.schema import Profile
from .clocks.base import Actuator
from .clocks.choose import find_actuators
from .clocks.session import ClockSession
from .configs import RunConfig
from .costs import CostTable, Prices
from .dvfs import Point, points_of
from .errors import ExitbenchError
from .governors import Constant, make_governor
from .hardware import hardware_profile
from .manner import Governing
from .operating import operating_table
from .rundir import RunDirectory
from .subject import Subject

GoverningFor = Callable[[Prices], Governing | None]


@contextmanager
def governed(
    directory: RunDirectory, subject: Subject, config: RunConfig
) -> Iterator[GoverningFor]:
    """What governs the runs of each precision; clocks that it sets are put back at the end.

    Raises:
        ExitbenchError: the hardware profile knows no clocks or no power, or, with clocks of the
            device, they cannot be set here.
    """
    if config.governor is None:
        yield lambda prices: None
        return
    profile = _profile(directory, str(subject.device))
    device_class = {"cuda": "gpu"}.get(subject.device.type, "cpu")
    busy = busy_share(subject.threads) if device_class == "cpu" else 1.0
    table = CostTable.read(directory.cost)

    def governing(
        prices: Prices, points: tuple[Point, ...] | None, session: ClockSession | None
    ) -> Governing:
        costs = operating_table(table, prices, profile, device_class, busy=busy, points=points)
        deadline_s = None if config.deadline_ms is None else config.deadline_ms * 1e-3
        assert config.governor is not None
        point = config.operating_point
        if config.governor == "fixed":
            made = make_governor(
                "fixed", costs, deadline_s, forecasts=False, operating_point=point
            )
            assert isinstance(made, Constant)
            point = costs.points[made.point].name
        allowed_s = costs.full_s if deadline_s is None else deadline_s
        return Governing(config.governor, costs, allowed_s, point, session)

    if config.clocks == "simulated":
        yield lambda prices: governing(prices, None, None)
        return
    actuators = find_actuators(profile, str(subject.device), simulated=False)
    settable = settable_points(profile, device_class, actuators)
    with ClockSession(actuators) as session:
        yield lambda prices: governing(prices, settable, session)


def usable_cpus() -> int:
    """How many logical CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def busy_share(threads: int) -> float:
    """Share of the CPUs of this process that so many threads keep busy."""
    return min(1.0, threads / usable_cpus())


def settable_points(
    profile: Profile, device_class: str, actuators: Mapping[str, Actuator]
) -> tuple[Point, ...]:
    """The operating points that can be set here, slowest first.

    Every level of the device's own list, and the points of the profile that its lists have.

    Raises:
        ExitbenchError: the clock of this device class cannot be set.
    """
    if device_class not in actuators:
        raise ExitbenchError(
            f"the clock of the {device_class.upper()} cannot be set here; give --clocks simulated, "
            f"which changes none. What can be set: {', '.join(actuators) or 'nothing'}"
        )
    levels = {domain: actuator.levels() for domain, actuator in actuators.items()}
    own = levels[device_class]
    named = [
        point
        for point in points_of(profile, device_class)
        if point.memory_ratio < 1
        and "memory" in levels
        and all(mhz in levels.get(domain, ()) for domain, mhz in point.clock_mhz.items())
    ]
    # A point says every clock that another one changes, so that each can follow each.
    rest = {domain: levels[domain][-1] for point in named for domain in point.clock_mhz}
    points = [
        Point(f"{mhz:.10g} MHz", {**rest, device_class: mhz}, mhz / own[-1]) for mhz in own
    ]
    return tuple(
        sorted((*points, *named), key=lambda point: (point.f_ratio, point.memory_ratio))
    )


def _profile(directory: RunDirectory, device: str) -> Profile:
    asked = directory.manifest.get("hardware", {}).get("asked", "auto")
    profile = hardware_profile(asked, device).profile
    if profile is None:
        raise ExitbenchError(
            "no hardware profile fits this machine, so there are no operating points to govern; "
            "give one with --hardware"
        )
    return profile

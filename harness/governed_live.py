"""A governor over a live run: its operating points, its deadline, and what sets the clocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import get_args

from ..profiles.schema import Profile
from .circumstances import ClockFiles, with_remedy
from .clocks.base import Actuator, Domain
from .clocks.choose import find_actuators
from .clocks.session import ClockSession
from .configs import RunConfig
from .costs import CostTable, Prices
from .dvfs import Point, points_of
from .environment import working_share
from .errors import ExitbenchError
from .governors import Constant, make_governor, outlook_of
from .hardware import hardware_profile
from .levels import LevelList
from .manner import Governing
from .operating import levels_of_run, levels_told, operating_table
from .pointcosts import OperatingTable
from .policies import Full
from .rundir import RunDirectory
from .subject import Subject

GoverningFor = Callable[[Prices], Governing | None]


@contextmanager
def governed(
    directory: RunDirectory, subject: Subject, config: RunConfig, files: ClockFiles
) -> Iterator[GoverningFor]:
    """What governs the runs of each precision; clocks that it sets are put back at the end.

    Raises:
        ExitbenchError: the hardware profile knows no clocks or no power, or, with clocks of the
            device, they cannot be set here.
    """
    if config.governor is None:
        yield lambda prices: None
        return
    profile = _profile(directory, config.hardware, str(subject.device))
    device_class = {"cuda": "gpu"}.get(subject.device.type, "cpu")
    busy = working_share(subject.threads) if device_class == "cpu" else 1.0
    table = CostTable.read(directory.cost)

    def governing(
        prices: Prices, points: tuple[Point, ...] | None, session: ClockSession | None
    ) -> Governing:
        known = directory.manifest.get("hardware", {})
        costs = operating_table(
            table, prices, profile, device_class, busy=busy, points=points,
            idle_w=known.get("idle_w"), idle_source=known.get("idle_source") or "modelled",
        )  # fmt: skip
        return _governing(config, costs, session)

    if config.clocks == "simulated":
        wanted = config.operating_point
        levels = levels_of_run(profile, directory, table, wanted, root=files.root)
        profile, points = levels.profile, levels.points(device_class)
        yield lambda prices: _told(governing(prices, points, None), levels)
        return
    with with_remedy():
        actuators = find_actuators(profile, str(subject.device), simulated=False, root=files.root)
    settable = settable_points(profile, device_class, actuators)
    needed = {domain: actuators[domain] for domain in _domains(settable)}
    with ClockSession(needed, journal=files.journal) as session:
        with with_remedy():
            session.apply(settable[-1].clock_mhz)  # says at once whether clocks may be set
        yield lambda prices: governing(prices, settable, session)


def _governing(
    config: RunConfig, costs: OperatingTable, session: ClockSession | None
) -> Governing:
    deadline_s = None if config.deadline_ms is None else config.deadline_ms * 1e-3
    assert config.governor is not None
    point = config.operating_point
    if config.governor == "fixed":
        # Its point is that of the network, whatever the policy.
        made = make_governor(
            "fixed", costs, deadline_s, outlook=outlook_of(Full(costs.exits)),
            operating_point=point,
        )  # fmt: skip
        assert isinstance(made, Constant)
        point = costs.points[made.point].name
    allowed_s = costs.full_s if deadline_s is None else deadline_s
    return Governing(config.governor, costs, allowed_s, point, session)


def check_governed(
    directory: RunDirectory,
    subject: Subject,
    config: RunConfig,
    prices: Iterable[Prices],
    files: ClockFiles,
) -> None:
    """Refuse a governor that cannot govern here, before anything is noted or written.

    Raises:
        ExitbenchError: as ``governed``; clocks of the device were set and put back to find out.
    """
    with governed(directory, subject, config, files) as governing_for:
        for each in prices:
            governing_for(each)


def _domains(points: tuple[Point, ...]) -> tuple[Domain, ...]:
    return tuple(domain for domain in get_args(Domain) if domain in points[-1].clock_mhz)


def settable_points(
    profile: Profile, device_class: str, actuators: Mapping[Domain, Actuator]
) -> tuple[Point, ...]:
    """The operating points that can be set here, slowest first.

    Every level of the device's own list, and the points of the profile that its lists have.
    """
    levels: dict[str, tuple[float, ...]] = {
        domain: actuator.levels() for domain, actuator in actuators.items()
    }
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
    known = {point.name: point for point in points_of(profile, device_class)}
    points = [
        replace(known.get(name, Point(name, {}, 1.0)), clock_mhz=clock_mhz, f_ratio=mhz / own[-1])
        for mhz in own
        for name, clock_mhz in ((f"{mhz:.10g} MHz", {**rest, device_class: mhz}),)
    ]
    return tuple(
        sorted((*points, *named), key=lambda point: (point.f_ratio, point.memory_ratio))
    )


def _told(governing: Governing, levels: LevelList) -> Governing:
    return replace(governing, levels=levels_told(levels, governing.table)[1])


def _profile(directory: RunDirectory, asked: str, device: str) -> Profile:
    if asked == "auto":
        asked = directory.manifest.get("hardware", {}).get("asked", "auto")
    profile = hardware_profile(asked, device).profile
    if profile is None:
        raise ExitbenchError(
            "no hardware profile fits this machine, so there are no operating points to govern; "
            "give one with --hardware"
        )
    return profile

"""What the parts of a network cost at every operating point of a device.

The cost table's rows at operating point ``default`` were measured with the clocks as they were,
which are taken for the top clock. Rows at other operating points were measured at a set clock and
are used as they are. All others are modelled from the top clock by ``dvfs.py``: times by its time
factor, energies by that and the ratio of its powers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np

from ..profiles.schema import Profile
from .costs import CostTable, Prices
from .dvfs import Dvfs, Point, dvfs_of, find_point, points_of
from .errors import ExitbenchError
from .levels import LevelList, elsewhere, is_of_costs, levels_here
from .meters.base import Source, weakest
from .pointcosts import OperatingTable, PointCosts
from .rundir import RunDirectory

DEFAULT = "default"
TOP_ASSUMED = (
    "the clocks of the cost table's rows 'default' are not known; they are taken for the top clock"
)

MEASURED_LEVELS = "levels measured in the cost table: the profile does not list them"


class NothingToGovern(ExitbenchError):
    """A device or a cost table that leaves a governor nothing to choose from."""


def operating_table(
    table: CostTable,
    prices: Prices,
    profile: Profile,
    device_class: str,
    *,
    busy: float = 1.0,
    points: Sequence[Point] | None = None,
    idle_w: float | None = None,
    idle_source: Source = "measured",
) -> OperatingTable:
    """The costs of every operating point of a device, slowest first.

    Args:
        table: where rows measured at other operating points are looked for.
        prices: of ``table``: one precision, batch size 1, operating point ``default``.
        profile: hardware profile of the device.
        device_class: ``cpu`` or ``gpu``.
        busy: share of the device's cores that the network keeps busy.
        points: those that can be set; all that the profile knows if None, or those measured.
        idle_w: watts of the waiting device; those of the profile if None.
        idle_source: where ``idle_w`` comes from.

    Raises:
        NothingToGovern: the profile knows no clocks, or no power of this device class.
        ExitbenchError: the prices are of another batch size, or lack latencies.
    """
    _check(table, prices)
    read: tuple[str, ...] = ()
    if points is None:
        points = points_of(profile, device_class)
        if own := _measured_levels(table, prices, profile, device_class, points):
            points, read = own, (MEASURED_LEVELS,)
    model = _model(profile, device_class, busy, points)
    costs, notes = _costs(table, prices, profile, device_class, points, model)
    return OperatingTable(
        costs,
        model.idle_w if idle_w is None else idle_w,
        model.switch_s,
        "modelled" if idle_w is None else idle_source,
        (*read, *notes, *model.assumptions),
        _aliases(profile, device_class, points),
    )


def levels_of_run(
    profile: Profile,
    directory: RunDirectory,
    table: CostTable,
    wanted: str | None,
    *,
    root: Path = Path("/"),
    nvml: ModuleType | None = None,
) -> LevelList:
    """The clock levels of the device that a run's costs are of; of another one its profile's.

    Args:
        profile: of the device.
        table: the costs of the run; levels that were measured are never thinned out.
        wanted: name of a level that is not either.
        root: where ``proc`` and ``sys`` are found.
        nvml: what answers as ``pynvml``; the installed one if None.

    Raises:
        ExitbenchError: the device is of no known kind.
    """
    where = directory.environment
    if not is_of_costs(profile, directory.manifest, str(where.get("device", "cpu"))):
        return elsewhere(profile)
    measured = [name for _, _, name in table.settings()]
    keep = measured if wanted is None else [*measured, wanted]
    return levels_here(profile, where, keep, root=root, nvml=nvml)


def levels_told(levels: LevelList, table: OperatingTable) -> tuple[str, str]:
    """Where a table's clock levels are from, ``device``, ``profile`` or ``measured``; in words."""
    if MEASURED_LEVELS in table.notes:
        return "measured", MEASURED_LEVELS
    return levels.source, levels.words


def _model(
    profile: Profile, device_class: str, busy: float, points: Sequence[Point]
) -> Dvfs:
    if not points:
        raise NothingToGovern(
            f"hardware profile {profile.name} knows no clock levels of the {device_class.upper()}, "
            f"so there is nothing to govern. Add [clocks.{device_class}] to a copy of "
            f"{profile.path}, or give another --hardware."
        )
    try:
        return dvfs_of(profile, device_class, busy=busy)
    except ExitbenchError as error:
        raise NothingToGovern(str(error)) from error


def _aliases(
    profile: Profile, device_class: str, points: Sequence[Point]
) -> dict[str, str]:
    """Names of the profile's operating points that are one of ``points`` by another name."""
    named = {
        each.name: _placed(each.name, profile, device_class, points)
        for each in profile.operating_points
    }
    return {name: own for name, own in named.items() if own is not None and own != name}


def _measured_levels(
    table: CostTable,
    prices: Prices,
    profile: Profile,
    device_class: str,
    listed: Sequence[Point],
) -> tuple[Point, ...]:
    """The points that were measured, where they are no levels of the profile; else none.

    A profile's levels are a fallback: two or more measured ones that it does not have show that
    the device has a list of its own.
    """
    frame = table.frame
    rows = frame[
        (frame["precision"] == prices.precision)
        & (frame["batch_size"] == 1)
        & (frame["operating_point"] != DEFAULT)
        & frame["clock_mhz"].notna()
    ]
    clocks = dict(zip(rows["operating_point"].astype(str), rows["clock_mhz"], strict=True))
    strange = [name for name in clocks if _placed(name, profile, device_class, listed) is None]
    if not strange or len(clocks) < 2:
        return ()
    top = max(clocks.values())
    return tuple(
        Point(name, {device_class: mhz}, mhz / top)
        for name, mhz in sorted(clocks.items(), key=lambda item: item[1])
    )


def _costs(
    table: CostTable,
    prices: Prices,
    profile: Profile,
    device_class: str,
    points: Sequence[Point],
    model: Dvfs,
) -> tuple[tuple[PointCosts, ...], list[str]]:
    """The costs of every point, measured or modelled, and what was assumed for them."""
    measured, notes = _measured(table, prices, profile, device_class, points)
    top = points[-1]
    base = measured.get(top.name, prices)
    # Prices of another device follow from its peaks, which are those of its top clock.
    if base is prices and prices.latency_source == "measured":
        notes.insert(0, TOP_ASSUMED)
    costs = tuple(
        _point(measured[point.name], point, model.power_w(point))
        if point.name in measured
        else _modelled(base, model, point, top)
        for point in points
    )
    return costs, notes


def _check(table: CostTable, prices: Prices) -> None:
    if prices.batch_size != 1:
        raise ExitbenchError(
            f"{table.where} prices {prices.precision} at batch size {prices.batch_size} only, but "
            "a governor follows single requests; profile with --batch-sizes 1"
        )
    parts = {
        "segment": prices.segments["latency_ms"],
        "head": prices.heads["latency_ms"],
        "classifier": np.array([prices.classifier["latency_ms"]]),
    }
    unknown = [
        f"{kind} {index + 1}"
        for kind, values in parts.items()
        for index in np.flatnonzero(np.isnan(values))
    ]
    if unknown:
        named = ", ".join(unknown[:5]) + (" ..." if len(unknown) > 5 else "")
        raise ExitbenchError(
            f"{table.where} has no latency_ms of {named} ({prices.precision}, batch 1), so the "
            "time left until a deadline cannot be told; fill the column in, or profile with "
            "'exitbench profile'"
        )


def _measured(
    table: CostTable,
    prices: Prices,
    profile: Profile,
    device_class: str,
    points: Sequence[Point],
) -> tuple[dict[str, Prices], list[str]]:
    """Prices that were measured at a point, by its name; and what could not be placed."""
    found: dict[str, Prices] = {}
    notes = []
    for precision, batch_size, name in table.settings():
        if (precision, batch_size) != (prices.precision, 1) or name == DEFAULT:
            continue
        point = _placed(name, profile, device_class, points)
        if point is None:
            notes.append(f"operating point {name!r} of {table.where} is none of this device")
            continue
        found[point] = table.select(precision, 1, name)
        _check(table, found[point])
    return found, notes


def _placed(
    name: str, profile: Profile, device_class: str, points: Sequence[Point]
) -> str | None:
    names = [point.name for point in points]
    if name in names:
        return name
    known = {each.name for each in profile.operating_points}
    if name in known:
        try:
            alias = find_point(profile, device_class, name).name
        except ExitbenchError:
            return None
        return alias if alias in names else None
    return None


def _modelled(base: Prices, model: Dvfs, point: Point, top: Point) -> PointCosts:
    """The costs at a point, from those at the top clock."""
    costs = _point(base, top, model.power_w(top))
    if point is top:
        return costs
    slower = model.time_factor(point)
    dearer = slower * model.power_w(point) / model.power_w(top)
    return replace(
        costs,
        name=point.name,
        clock_mhz=dict(point.clock_mhz),
        f_ratio=point.f_ratio * point.units,
        segments_s=costs.segments_s * slower,
        heads_s=costs.heads_s * slower,
        forecasts_s=costs.forecasts_s * slower,
        classifier_s=costs.classifier_s * slower,
        segments_j=costs.segments_j * dearer,
        heads_j=costs.heads_j * dearer,
        forecasts_j=costs.forecasts_j * dearer,
        classifier_j=costs.classifier_j * dearer,
        energy_source="modelled",
        latency_source="modelled",
    )


def _point(prices: Prices, point: Point, power_w: float) -> PointCosts:
    """Prices as the costs of a point; an energy that is not known is power times time."""
    parts = {
        "segments": prices.segments,
        "heads": prices.heads,
        "forecasts": prices.forecasts,
        "classifier": {name: np.array([value]) for name, value in prices.classifier.items()},
    }
    seconds = {name: part["latency_ms"] * 1e-3 for name, part in parts.items()}
    joules = {name: part["energy_mj"] * 1e-3 for name, part in parts.items()}
    unknown = {name: np.isnan(joules[name]) & ~np.isnan(seconds[name]) for name in parts}
    filled = {
        name: np.where(unknown[name], seconds[name] * power_w, joules[name]) for name in parts
    }
    sources: list[Source] = ["modelled"] if any(u.any() for u in unknown.values()) else []
    if any((~np.isnan(values)).any() for values in joules.values()):
        sources.append(prices.energy_source)
    return PointCosts(
        point.name,
        dict(point.clock_mhz),
        point.f_ratio * point.units,
        seconds["segments"],
        seconds["heads"],
        seconds["forecasts"],
        float(seconds["classifier"][0]),
        filled["segments"],
        filled["heads"],
        filled["forecasts"],
        float(filled["classifier"][0]),
        weakest(sources),
        prices.latency_source,
    )

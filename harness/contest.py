"""The paper's comparison at equal accuracy and equal latency: which setting stands for each role.

Settings are chosen on the calibration split. Without a governor the cheapest setting of a role that
keeps the accuracy stands for it, as in comparison.csv. Under a governor the cheapest ones go into a
contest: each is replayed, and the one with the least energy wins, idle until the deadline included,
among those that keep the deadline as well. Only the winner sees the test split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from .choose import ROLES, cost_column, target_accuracy
from .costs import Prices
from .governed import Governed, Ways, find_ways, govern_ways
from .governors import ROUNDING, OperatingTable, make_governor
from .settings import Setting, make_policy
from .sweep import Grid, Traces, replay_grid, table
from .sweepfile import setting_of

GOVERNED_ROLES = (
    "full", "fixed", "every-exit", "every-exit-best", "predictive", "predictive-table",
)  # fmt: skip
CANDIDATES = 24  # per role, the cheapest at the top clock
MISSED_SHARE = 0.01  # of the requests may miss the deadline
Say = Callable[[str], None]


@dataclass(frozen=True)
class Winner:
    """The setting that stands for a role under a governor, and what it costs on the test split.

    Attributes:
        governor: key of ``GOVERNORS``; None is the top clock throughout.
        operating_point: that of the governor ``fixed``; the top clock's without a governor.
        accuracy, calibration_accuracy: 0..1.
    """

    role: str
    setting: Setting
    governor: str | None
    operating_point: str | None
    accuracy: float
    calibration_accuracy: float
    costs: Governed


@dataclass
class Arena:
    """One precision's traces and operating points, and the ways that settings were seen to go.

    Attributes:
        deadline_s: time allowed per request, the same for all.
        operating_point: of the governor ``fixed``; chosen like a setting if None.
    """

    traces: Traces
    points: OperatingTable
    deadline_s: float
    operating_point: str | None = None
    _ways: dict[tuple[Setting, str], Ways] = field(default_factory=dict)

    def ways(self, setting: Setting, split: str) -> Ways:
        """The ways of a split's samples under a setting; found once."""
        key = (setting, split)
        if key not in self._ways:
            trace = self.traces.test if split == "test" else self.traces.calibration
            policy = make_policy(
                setting, trace.meta.exits, self.traces.scales, self.traces.calibration
            )
            self._ways[key] = find_ways(policy, trace, setting.criterion)
        return self._ways[key]

    def run(
        self, setting: Setting, split: str, governor: str | None, operating_point: str | None
    ) -> Governed:
        """What a setting costs on a split under a governor."""
        ways = self.ways(setting, split)
        made = make_governor(
            governor,
            self.points,
            self.deadline_s,
            outlook=ways.outlook,
            operating_point=operating_point,
        )
        return govern_ways(ways, made, self.points)

    def variants(self, governor: str | None) -> list[str | None]:
        """The operating points that a governor can be made with."""
        if governor is None:
            return [self.points.points[-1].name]
        if governor != "fixed":
            return [None]
        if self.operating_point is not None:
            return [self.operating_point]
        return [point.name for point in self.points.points]


def candidates(
    traces: Traces,
    prices: Prices,
    precision: str,
    criteria: tuple[str, ...],
    beta_count: int,
    accuracy_loss: float,
    say: Say,
) -> dict[str, list[tuple[Setting, float]]]:
    """Per role the cheapest settings at the top clock that keep the accuracy, with theirs.

    All of it on the calibration split.
    """
    grid = Grid(
        policies=("full", "fixed", "every-exit", "predictive"),
        criteria=criteria,
        betas=None,
        beta_count=beta_count,
        start_layers=None,
        predictors=("convolution", "table"),
    )
    replayed = list(replay_grid(grid, traces, precision, "calibration", say))
    rows = table(replayed, prices, "calibration")
    target, cost = target_accuracy(rows, accuracy_loss), cost_column(rows)
    found: dict[str, list[tuple[Setting, float]]] = {}
    for role in ROLES:
        if role.name in GOVERNED_ROLES:
            # The tolerance undoes the rounding of the target, as in choose.cheapest.
            able = rows[role.admits(rows) & (rows.accuracy >= target - 1e-12)]
            able = able[able[cost].notna()].sort_values(
                [cost, "accuracy"], ascending=[True, False], kind="stable"
            )
            found[role.name] = [
                (setting_of(row), float(row.accuracy))
                for _, row in able.head(CANDIDATES).iterrows()
            ]
    return found


def contest(
    arena: Arena,
    found: Mapping[str, Sequence[tuple[Setting, float]]],
    governors: Iterable[str],
) -> list[Winner]:
    """Who stands for every role without a governor and under each; missing where nothing can."""
    winners = []
    for role, entries in found.items():
        plain = _tried(arena, entries[:1], None)
        if not plain or np.isnan(plain[0].costs.energy_j):
            continue
        winners.append(_shown(arena, role, None, plain[0]))
        # What a setting misses at the top clock, by its checks, is no fault of the governor.
        allowed = max(MISSED_SHARE, plain[0].costs.missed + MISSED_SHARE)
        for governor in governors:
            tried = _tried(arena, entries, governor)
            best = least_energy([entry.costs for entry in tried], allowed)
            if best is not None:
                winners.append(_shown(arena, role, governor, tried[best]))
    return winners


@dataclass(frozen=True)
class _Entry:
    """A setting in the contest, with its accuracy and costs on the calibration split."""

    setting: Setting
    accuracy: float
    operating_point: str | None
    costs: Governed


def _tried(
    arena: Arena, entries: Sequence[tuple[Setting, float]], governor: str | None
) -> list[_Entry]:
    return [
        _Entry(setting, accuracy, point, arena.run(setting, "calibration", governor, point))
        for setting, accuracy in entries
        for point in arena.variants(governor)
    ]


def _shown(arena: Arena, role: str, governor: str | None, entry: _Entry) -> Winner:
    costs = arena.run(entry.setting, "test", governor, entry.operating_point)
    accuracy = arena.ways(entry.setting, "test").accuracy
    return Winner(
        role, entry.setting, governor, entry.operating_point, accuracy, entry.accuracy, costs
    )


def least_energy(tried: Sequence[Governed], allowed: float) -> int | None:
    """Index of the least energy among those that miss at most the ``allowed`` share of deadlines.

    Where all miss more, it is the one that misses least. Costs that are not known never win.
    """
    known = [index for index, costs in enumerate(tried) if not np.isnan(costs.energy_j)]
    able = [index for index in known if tried[index].missed <= allowed + ROUNDING]
    if able:
        return min(able, key=lambda index: tried[index].energy_j)
    return min(known, key=lambda i: (tried[i].missed, tried[i].energy_j), default=None)

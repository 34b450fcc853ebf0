"""What a request costs in a scene: one after another, or one per period with idle between.

::

    continuous   |request|request|request|request|
    periodic     |request|......idle.....|request|......idle.....|
                 <------ period --------->

A battery device pays for the idle too: in a periodic scene a network that is faster saves only the
difference between working and idle power. All of it is arithmetic on the mean latency and energy of
a request; that single requests differ does not change the means, as long as the device keeps up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from .meters.base import Source, weakest
from .sweep import SETTING_COLUMNS

HOUR_S = 3600.0


@dataclass(frozen=True)
class SceneCost:
    """What a request costs in a scene; None is unknown.

    Attributes:
        busy_share: latency / period; above 1 where the device cannot keep up; 1 if continuous.
        keeps_up: whether a request is done, on average, before the next one comes.
        energy_j: joules of a request with the idle until the next one.
        idle_j: the part of these joules that the idle takes.
        requests_per_hour: how many are served.
        power_w: mean power.
    """

    busy_share: float
    keeps_up: bool
    energy_j: float | None
    idle_j: float | None
    requests_per_hour: float
    power_w: float | None

    @property
    def energy_per_hour_j(self) -> float | None:
        """Joules in an hour of this scene."""
        return None if self.power_w is None else self.power_w * HOUR_S


def continuous(latency_s: float, energy_j: float | None) -> SceneCost:
    """One request after another.

    Args:
        latency_s: mean seconds of a request, above 0.
        energy_j: its mean joules, idle power included.
    """
    power_w = None if energy_j is None else energy_j / latency_s
    return SceneCost(1.0, True, energy_j, 0.0, HOUR_S / latency_s, power_w)


def periodic(
    latency_s: float, energy_j: float | None, idle_w: float | None, period_s: float
) -> SceneCost:
    """One request every ``period_s``, the device idle between.

    A device that cannot keep up never idles: it then serves as in the continuous scene.

    Args:
        latency_s: mean seconds of a request, above 0.
        energy_j: its mean joules, idle power included.
        idle_w: watts of the idle device.
        period_s: seconds from one request to the next, above 0.
    """
    share = latency_s / period_s
    if share > 1:
        own = continuous(latency_s, energy_j)
        return SceneCost(
            share, False, own.energy_j, own.idle_j, own.requests_per_hour, own.power_w
        )
    idle_j = None if idle_w is None else idle_w * (period_s - latency_s)
    total_j = None if energy_j is None or idle_j is None else energy_j + idle_j
    power_w = None if total_j is None else total_j / period_s
    return SceneCost(share, True, total_j, idle_j, HOUR_S / period_s, power_w)


def scenario_rows(
    chosen: pd.DataFrame,
    periods_ms: Sequence[float],
    idle_w: float | None,
    idle_source: Source = "unavailable",
) -> list[dict[str, Any]]:
    """The rows of scenarios.csv: every role of the comparison in every scene.

    Only settings priced for batch size 1 and with a known latency have any: a request is one image.

    Args:
        chosen: rows of comparison.csv.
        periods_ms: periods of the periodic scene.
        idle_w: watts of the idle device; None is unknown.
        idle_source: where they come from.
    """
    rows = []
    for _, row in chosen.iterrows():
        if row.batch_size != 1 or not row.latency_ms > 0:
            continue
        latency_s = row.latency_ms * 1e-3
        energy_j = None if pd.isna(row.energy_mj) else row.energy_mj * 1e-3
        rows.append(_row(row, "continuous", None, continuous(latency_s, energy_j), idle_source))
        for period_ms in periods_ms:
            cost = periodic(latency_s, energy_j, idle_w, period_ms * 1e-3)
            rows.append(_row(row, "periodic", period_ms, cost, idle_source))
    return rows


def _row(
    chosen: pd.Series,
    scene: str,
    period_ms: float | None,
    cost: SceneCost,
    idle_source: Source,
) -> dict[str, Any]:
    idles = scene == "periodic" and cost.keeps_up
    sources = [chosen["energy_source"], *([idle_source] if idles else [])]
    return {
        "role": chosen["role"],
        **{name: chosen[name] for name in (*SETTING_COLUMNS, "batch_size", "device")},
        "scene": scene,
        "period_ms": period_ms,
        "accuracy": chosen["accuracy"],
        "latency_ms": chosen["latency_ms"],
        "busy_share": cost.busy_share,
        "keeps_up": int(cost.keeps_up),
        "energy_per_request_mj": _milli(cost.energy_j),
        "idle_energy_per_request_mj": _milli(cost.idle_j),
        "requests_per_hour": cost.requests_per_hour,
        "energy_per_hour_j": cost.energy_per_hour_j,
        "power_w": cost.power_w,
        "energy_source": "unavailable" if cost.energy_j is None else weakest(sources),
        "idle_source": idle_source,
    }


def _milli(value: float | None) -> float | None:
    return None if value is None else value * 1e3

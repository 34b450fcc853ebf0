"""The rows of measurements.jsonl: what a run gave, beside its replay, and what makes two the same.

Latency and energy are those of a sample in a pass: the median over the passes is reported, with
the fastest and the slowest pass as ``low`` and ``high``. In a periodic scene the latency is the
response time and the energy holds the idle until the next request. Of a rebatched run it is time
per sample, as of any batch; the further batches for which an answer waits are counted.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from .bench import Bench, Live
from .costs import Prices
from .energynotes import alike, apart
from .governed import find_ways, govern_ways, points_text
from .manner import Governing, Manner
from .meters.base import Source
from .overhead import of_reading
from .passes import Pass
from .scenarios import HOUR_S, periodic
from .scheduler import walk
from .settings import Setting
from .sources import TraceSource
from .stretches import typical
from .sweep import SETTING_COLUMNS, Traces, price

_HOW = (
    "batch_size", "samples", "threads", "runtime", "costs", "trace", "tier", "scene", "period_ms",
    "governor", "operating_point", "deadline_ms", "clocks", "operating_costs", "rebatch_wait",
    "ranges",
)  # fmt: skip
_FORMERLY = {"scene": "continuous"}  # of rows that were made before there was the field


def measured_key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What makes two measured runs the same, so that a resumed study leaves one out."""
    asked = row.get("asked_repeats", row.get("repeats"))
    how = (row.get(name, _FORMERLY.get(name)) for name in (*SETTING_COLUMNS, *_HOW))
    return (*how, asked, *row.get("meters", ()))


def sought(setting: Setting, bench: Bench, repeats: int) -> dict[str, Any]:
    """What ``measured_key`` reads, of a measurement that is yet to be made."""
    values: dict[str, Any] = {name: getattr(setting, name) for name in SETTING_COLUMNS}
    return values | {
        "batch_size": bench.batch_size,
        "samples": len(bench.positions),
        "asked_repeats": repeats,
        "threads": bench.subject.threads,
        "runtime": bench.prepared.name,
        "ranges": bench.subject.ranges if bench.prepared.precision == "int8" else None,
        "costs": price_digest(bench.prices),
        "trace": trace_digest(bench.traces),
        "meters": [bench.meter.name],
        **_manner(bench.manner),
    }


def _manner(manner: Manner) -> dict[str, Any]:
    governing = manner.governing
    return {
        "tier": None if manner.tier is None or manner.simulated else manner.tier.name,
        "scene": manner.scene.name,
        "period_ms": manner.scene.period_ms,
        "governor": None if governing is None else governing.name,
        "operating_point": None if governing is None else governing.operating_point,
        "deadline_ms": None if governing is None else round(governing.deadline_s * 1e3, 9),
        "clocks": None if governing is None else governing.clocks,
        "operating_costs": None if governing is None else table_digest(governing),
        "rebatch_wait": manner.rebatch_wait,
    }


def measurement(
    bench: Bench, live: Live, repeats: int, stat_each_layer: bool = True
) -> dict[str, Any]:
    """The row of measurements.jsonl of a setting that has been run.

    Args:
        repeats: the timed passes that were asked for; a tier may have needed more.
        stat_each_layer: with what happened at every exit.
    """
    assert live.outcome is not None
    assert live.statistics is not None
    beside = replayed_beside(bench, live)
    truth = bench.subject.parts["test"].labels[bench.positions]
    return {
        **sought(live.setting, bench, repeats),
        "repeats": len(live.passes),
        "device": str(bench.subject.device),
        "accuracy": float((live.outcome.label == truth).mean()),
        "macs": beside.macs,
        "mean_exit": float(live.outcome.exit_at.mean()),
        **_times(bench, live.passes),
        **_energies(bench, live.passes),
        **_conditions(live.passes, bench.manner),
        **_requests(live.passes),
        "replay_accuracy": beside.accuracy,
        "replay_latency_ms": beside.latency_ms,
        "replay_energy_mj": beside.energy_mj,
        "same_decisions": beside.same_decisions,
        "exit_histogram": " ".join(map(str, live.outcome.histogram().tolist())),
        "prediction_accuracy": live.statistics.prediction_accuracy(),
        "stat_each_layer": live.statistics.rows() if stat_each_layer else [],
        "confusion": live.statistics.confusion.tolist(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _times(bench: Bench, passes: Sequence[Pass]) -> dict[str, Any]:
    samples = len(bench.positions)
    responses = [each.requests.response_s for each in passes]
    latency = [
        each.reading.seconds * 1e3 / samples if response_s is None else response_s * 1e3
        for each, response_s in zip(passes, responses, strict=True)
    ]
    return {
        "latency_ms": float(np.median(latency)),
        "latency_low_ms": min(latency),
        "latency_high_ms": max(latency),
        "latency_source": "modelled" if bench.manner.simulated else "measured",
    }


def _energies(bench: Bench, passes: Sequence[Pass]) -> dict[str, Any]:
    samples, idle_w = len(bench.positions), _idle_w(bench.manner)
    gross = [each.reading.total_j for each in passes]
    spans_s = [each.reading.seconds for each in passes]
    unsure = _all([each.reading.total_uncertainty_j for each in passes])
    known = _all(gross)
    pairs = list(zip(known or [], spans_s, strict=False))
    net = [joules - idle_w * span_s for joules, span_s in pairs] if idle_w is not None else None
    power_w = _median([joules / span_s for joules, span_s in pairs if span_s > 0])
    return {
        "energy_mj": _median(known, 1e3 / samples),
        "energy_source": passes[0].reading.total_source if known else "unavailable",
        "energy_note": _first(each.reading.note for each in passes),
        "energy_uncertainty_mj": _median(unsure, 1e3 / samples) if known else None,
        "net_energy_mj": _median(net, 1e3 / samples) if known else None,
        "power_w": power_w,
        "energy_per_hour_j": None if power_w is None else power_w * HOUR_S,
        "energy_checks": {
            name: value * 1e3 / samples
            for name, value in typical([each.reading.checks for each in passes]).items()
        },
        "idle_w": idle_w,
        "idle_source": _idle_source(bench.manner),
    }


def _conditions(passes: Sequence[Pass], manner: Manner) -> dict[str, Any]:
    readings = [each.reading for each in passes]
    seconds = sum(reading.seconds for reading in readings)
    spent_s = sum(reading.overhead_s for reading in readings)
    flags = [flag for reading in readings for flag in (*reading.flags, of_reading(reading))]
    flags += [*apart(readings), manner.idle.note]
    return {
        "energy_flags": list(dict.fromkeys(alike(flag for flag in flags if flag).values())),
        "energy_conditions": typical([reading.conditions for reading in readings]),
        "meter_overhead": None if manner.simulated or seconds <= 0 else spent_s / seconds,
    }


def _requests(passes: Sequence[Pass]) -> dict[str, Any]:
    requests = [each.requests for each in passes]
    points = typical([each.points for each in requests])
    keeps_up = [each.keeps_up for each in requests if each.keeps_up is not None]
    longest = _all([each.longest_wait_batches for each in requests])
    return {
        "busy_share": _median(_all([each.busy_share for each in requests])),
        "late": _median(_all([each.late for each in requests])),
        "keeps_up": all(keeps_up) if keeps_up else None,
        "missed": _median(_all([each.missed for each in requests])),
        "switches": _median(_all([each.switches for each in requests])),
        "points": points_text(points) or None,
        "waited_batches": _median(_all([each.waited_batches for each in requests])),
        "longest_wait_batches": max(longest) if longest else None,
        "rows_per_segment": _median(_all([each.rows_per_segment for each in requests])),
    }


@dataclass(frozen=True)
class Beside:
    """The replay of a live setting on the same samples, in the same scene and governed alike."""

    accuracy: float
    latency_ms: float | None
    energy_mj: float | None
    macs: float
    same_decisions: float


def replayed_beside(bench: Bench, live: Live) -> Beside:
    """The same setting walked over the test trace, priced, and how many decisions agree."""
    assert live.outcome is not None
    criterion = live.setting.criterion or "softmax"
    outcome = walk(live.policy, TraceSource(bench.traces.test, criterion, bench.positions))
    same = (outcome.exit_at == live.outcome.exit_at) & (outcome.label == live.outcome.label)
    counts = (outcome.histogram()[None], outcome.checks[None], outcome.forecasts[None])
    cost = {name: float(value[0]) for name, value in price(*counts, bench.prices).items()}
    latency_ms, energy_mj = _known(cost["latency_ms"]), _known(cost["energy_mj"])
    if bench.manner.governing is not None:
        latency_ms, energy_mj = _governed(bench, live, bench.manner.governing, criterion)
    truth = bench.subject.parts["test"].labels[bench.positions]
    return Beside(
        float((outcome.label == truth).mean()),
        latency_ms,
        _in_scene(bench.manner, latency_ms, energy_mj),
        cost["macs"],
        float(same.mean()),
    )


def _governed(
    bench: Bench, live: Live, governing: Governing, criterion: str
) -> tuple[float | None, float | None]:
    """Latency and energy in ms and mJ per sample, as the operating points price the replay."""
    ways = find_ways(live.policy, bench.traces.test, criterion)
    chosen = replace(ways, way_of=ways.way_of[bench.positions])
    found = govern_ways(chosen, governing.governor(live.policy), governing.table)
    return found.latency_s * 1e3, _known(found.busy_j * 1e3)


def _in_scene(manner: Manner, latency_ms: float | None, energy_mj: float | None) -> float | None:
    """The energy of a request, the idle after it included where requests come periodically."""
    period_s = manner.scene.period_s
    if period_s is None or latency_ms is None or energy_mj is None:
        return energy_mj
    cost = periodic(latency_ms * 1e-3, energy_mj * 1e-3, _idle_w(manner), period_s)
    return None if cost.energy_j is None else cost.energy_j * 1e3


def _idle_w(manner: Manner) -> float | None:
    """Idle watts; those of the table where all is priced by it."""
    if manner.simulated and manner.governing is not None:
        return manner.governing.table.idle_w
    return manner.idle.power_w


def _idle_source(manner: Manner) -> Source:
    return "modelled" if manner.simulated else manner.idle.source


def price_digest(prices: Prices) -> str:
    """Ten hex digits that differ where prices do."""
    plain = {
        name: {key: np.asarray(value).tolist() for key, value in part.items()}
        for name in ("segments", "heads", "forecasts", "classifier")
        for part in (getattr(prices, name),)
    }
    return _digest([plain, prices.operating_point, prices.energy_source])


def table_digest(governing: Governing) -> str:
    """Ten hex digits that differ where the costs of the operating points do."""
    points = [
        {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in each}
        for each in (asdict(point).items() for point in governing.table.points)
    ]
    return _digest([points, governing.table.idle_w, governing.table.switch_s])


def trace_digest(traces: Traces) -> str:
    """Ten hex digits that differ where what two traces were recorded with does."""
    return _digest([asdict(traces.calibration.meta), asdict(traces.test.meta)])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:10]


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _all(values: Sequence[float | None]) -> list[float] | None:
    """The values, if none of them is missing."""
    known = [value for value in values if value is not None]
    return known if len(known) == len(values) else None


def _median(values: Sequence[float] | None, factor: float = 1.0) -> float | None:
    return float(np.median(values)) * factor if values else None


def _first(notes: Iterable[str]) -> str:
    return next((note for note in notes if note), "")


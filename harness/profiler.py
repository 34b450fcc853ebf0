"""The cost of every segment, head, forecast, gather and the classifier on this device, row by row.

The network runs once and every state between its parts is kept; then each part is timed alone on
its own kept input, all parts interleaved, as the scheduler runs it (``parts.py``). The walk through
the whole network is timed among them, so that what the parts leave unexplained (caches warmed by
the layer before, say) is known: the residue, whole minus the sum of the parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..models.counting import FLOAT_BYTES, Counts, NetworkCounts
from .energy import Energies, UnitEnergy, measure_energy
from .errors import ExitbenchError
from .idle import Idle
from .meters.base import Meter
from .parts import WHOLE, Call, Forecast, Part, leads, walk_parts
from .runtime.base import Prepared
from .tiers import TIERS, Tier
from .timing import Limits, Timing, measure
from .windowlog import WindowLog

SHARES = {"latency_ms": "residue_share", "energy_mj": "residue_energy_share"}
ELEMENT_BYTES: dict[str, int] = {
    "fp32": FLOAT_BYTES, "tf32": FLOAT_BYTES, "bf16": 2, "fp16": 2, "int8": 1,
}  # fmt: skip

Say = Callable[[str], None]


@dataclass(frozen=True)
class Profile:
    """The cost of a network's parts for one precision, batch size and operating point.

    Attributes:
        rows: rows of ``cost.csv``, per sample; None is unknown.
        whole: the whole network beside the sum of its parts, per sample, for the manifest.
        notes: what was not reached or could not be resolved, one sentence each.
        samples_ms: the raw latencies per sample of the data, by part (``segment 3``, ``whole``).
        energy: tier, windows, flags, conditions and checks of the energies, for the manifest.
        idle: the idle power that net energies are told from; None without a meter.
    """

    rows: list[dict[str, Any]]
    whole: dict[str, Any]
    notes: tuple[str, ...]
    samples_ms: dict[str, list[float]]
    energy: dict[str, Any] = field(default_factory=dict)
    idle: Idle | None = None


def profile(
    prepared: Prepared,
    counts: NetworkCounts,
    inputs: Tensor,
    forecast: Forecast | None,
    limits: Limits,
    meter: Meter | None,
    *,
    forecast_counts: Counts | None = None,
    operating_point: str = "default",
    clock_mhz: float | None = None,
    tier: Tier = TIERS["quick"],
    idle: Idle | None = None,
    log: WindowLog | None = None,
    say: Say = lambda line: None,
) -> Profile:
    """The measured cost of every part of ``prepared``.

    Args:
        prepared: the network, ready for one precision on one device.
        counts: the same network's ``ExitNetwork.counts()``.
        inputs: float32 images (N, 3, side, side), normalised; N is the batch size. Put them on
            the network's device, or their transfer is part of segment 1.
        forecast: what a policy computes from the logits (N, classes) of a head, beside the head
            itself; no forecast rows if None.
        limits: when measuring stops.
        meter: where energy comes from; energy is unavailable if None.
        forecast_counts: the MACs and FLOPs of one sample's forecast; needed with ``forecast``.
        operating_point: name of the clock setting.
        clock_mhz: the clock in MHz, where known.
        tier: how long the energy of every part is measured.
        idle: idle power that is known already; measured before the energies if None.
        log: energy windows are kept there, and what it holds is not measured again.
        say: takes one line on how long the energy will take.

    Raises:
        ExitbenchError: the counts are of another network, the inputs are empty, or the precision
            is unknown.
    """
    _check(prepared, counts, inputs, forecast, forecast_counts)
    units = walk_parts(prepared, inputs, forecast)
    timings = _timed(prepared, units, limits)
    energies = Energies({name: UnitEnergy() for name in timings})
    if meter is not None:
        named = {_label(part): call for part, call in units.items() if part[0] != "gather"}
        energies = measure_energy(
            named, timings, meter, limits, tier=tier, idle=idle, log=log,
            synchronise=prepared.synchronise, say=say,
        )  # fmt: skip
    batch = len(inputs)
    setting = _setting(prepared, batch)
    setting |= {"operating_point": operating_point, "clock_mhz": clock_mhz}
    counted = {part: _counts_of(part, counts, forecast_counts) for part in units if part != WHOLE}
    rows = [
        {"kind": part[0], "index": part[1], "name": _name(part, counts)}
        | setting
        | _cost_columns(part, each, setting, timings, energies)
        for part, each in counted.items()
    ]
    whole = _whole(timings["whole"], energies.units["whole"], rows, batch)
    notes = (*_timing_notes(timings, limits), *energies.notes, *_residue_notes(whole))
    samples = _raw_samples(timings, batch)
    return Profile(rows, whole, notes, samples, energies.summary, energies.idle)


def _cost_columns(
    part: Part,
    counted: Counts,
    setting: dict[str, Any],
    timings: dict[str, Timing],
    energies: Energies,
) -> dict[str, Any]:
    """What a part costs per sample, in every column of its row."""
    batch, label = setting["batch_size"], _label(part)
    return {
        **_count_columns(part, counted, setting["precision"], batch),
        **_latency_columns(timings[label], batch),
        # Gathers have a latency alone.
        **_energy_columns(energies.units.get(label, UnitEnergy()), batch),
        "uncounted": counted.uncounted_text() or None,
    }


def _timed(prepared: Prepared, units: dict[Part, Call], limits: Limits) -> dict[str, Timing]:
    """The latency of every unit by its label."""
    named = {_label(part): call for part, call in units.items()}
    before = {_label(part): [_label(lead) for lead in leads(part)] for part in units}
    return measure(named, limits, leads=before, synchronise=prepared.synchronise)


def _check(
    prepared: Prepared,
    counts: NetworkCounts,
    inputs: Tensor,
    forecast: Forecast | None,
    forecast_counts: Counts | None,
) -> None:
    if len(inputs) == 0:
        raise ExitbenchError("no images to profile with; a batch needs at least one")
    if len(counts.heads) != prepared.num_exits:
        raise ExitbenchError(
            f"the prepared network has {prepared.num_exits} exits, its counts have "
            f"{len(counts.heads)}; take both from the same network"
        )
    if prepared.precision not in ELEMENT_BYTES:
        raise ExitbenchError(
            f"precision is {prepared.precision!r}; known are {', '.join(ELEMENT_BYTES)}"
        )
    if forecast is not None and forecast_counts is None:
        raise ExitbenchError("a forecast is timed only together with its counts")


def _setting(prepared: Prepared, batch: int) -> dict[str, Any]:
    return {
        "precision": prepared.precision,
        "runtime": prepared.name,
        "device": str(prepared.device),
        "threads": torch.get_num_threads() if prepared.device.type == "cpu" else None,
        "batch_size": batch,
    }


def _label(part: Part) -> str:
    return "whole" if part == WHOLE else f"{part[0]} {part[1]}"


def _name(part: Part, counts: NetworkCounts) -> str:
    names = (*counts.exit_names, "classifier")
    return names[part[1] - 1]


def _counts_of(part: Part, counts: NetworkCounts, forecast: Counts | None) -> Counts:
    kind, number = part
    if kind == "segment":
        return counts.segments[number - 1]
    if kind == "head":
        return counts.heads[number - 1]
    if kind == "classifier":
        return counts.classifier
    if kind == "gather":
        return Counts()
    assert forecast is not None
    return forecast


def _count_columns(part: Part, counts: Counts, precision: str, batch: int) -> dict[str, Any]:
    # Heads, forecasts and the classifier stay in float32 whatever the precision of the rest.
    element = ELEMENT_BYTES[precision] if part[0] == "segment" else FLOAT_BYTES
    moved = math.ceil(counts.bytes_per_sample(batch, element))
    return {
        "macs": counts.macs,
        "flops": counts.flops,
        "params": counts.params,
        "bytes": None if part[0] == "gather" else moved,
    }


def _latency_columns(timing: Timing, batch: int) -> dict[str, Any]:
    low, high = timing.interval_s or (None, None)
    return {
        "latency_ms": _milli(timing.median_s, batch),
        "latency_low_ms": _milli(low, batch),
        "latency_high_ms": _milli(high, batch),
        "latency_source": "measured",
        "repeats": timing.repeats,
    }


def _energy_columns(energy: UnitEnergy, batch: int) -> dict[str, Any]:
    low, high = energy.interval_j or (None, None)
    return {
        "energy_mj": _milli(energy.total_j, batch),
        "energy_low_mj": _milli(low, batch),
        "energy_high_mj": _milli(high, batch),
        "energy_uncertainty_mj": _milli(energy.uncertainty_j, batch),
        "energy_source": energy.source,
        "net_energy_mj": _milli(energy.net_j, batch),
        "gpu_energy_mj": _milli(energy.gpu_j, batch),
        "gpu_energy_source": energy.gpu_source,
        "cpu_energy_mj": _milli(energy.cpu_j, batch),
        "cpu_energy_source": energy.cpu_source,
        "power_w": energy.power_w,
    }


def _whole(
    timing: Timing, energy: UnitEnergy, rows: list[dict[str, Any]], batch: int
) -> dict[str, Any]:
    """The whole network, the sum of its segments and classifier, and what lies between them."""
    backbone = [row for row in rows if row["kind"] in ("segment", "classifier")]
    whole = _latency_columns(timing, batch) | _energy_columns(energy, batch)
    for quantity in ("latency_ms", "energy_mj"):
        values = [row[quantity] for row in backbone]
        parts = None if None in values else math.fsum(values)
        known = parts is not None and whole[quantity] is not None
        whole[f"parts_{quantity}"] = parts
        whole[f"residue_{quantity}"] = whole[quantity] - parts if known else None
        shared = known and whole[quantity]
        whole[SHARES[quantity]] = whole[f"residue_{quantity}"] / whole[quantity] if shared else None
    whole["residue_energy_explained_mj"] = _explained([whole, *backbone])
    return whole


def _explained(rows: list[dict[str, Any]]) -> float | None:
    """The residue in mJ that could come from not knowing the energies better; None if unknown.

    Each may be off by its interval or its uncertainty, whichever is larger, and all of them may be
    off in the same direction.
    """
    if any(row["energy_source"] != "measured" for row in rows):
        return None
    sides = []
    for row in rows:
        ends = [row["energy_low_mj"], row["energy_high_mj"]]
        half = [abs(end - row["energy_mj"]) for end in ends if end is not None]
        known = [*half, *[u for u in [row["energy_uncertainty_mj"]] if u is not None]]
        if not known:
            return None
        sides.append(max(known))
    return math.fsum(sides)


def _residue_notes(whole: dict[str, Any]) -> list[str]:
    residue, explained = whole["residue_energy_mj"], whole["residue_energy_explained_mj"]
    if residue is None or explained is None or abs(residue) <= explained:
        return []
    return [
        f"the whole network takes {whole['energy_mj']:.4g} mJ, the sum of its parts "
        f"{whole['parts_energy_mj']:.4g} mJ: the residue of {residue:+.3g} mJ "
        f"({whole['residue_energy_share']:+.1%}) is more than the {explained:.3g} mJ that the "
        "uncertainties explain; parts alone work the caches and the device differently"
    ]


def _raw_samples(timings: dict[str, Timing], batch: int) -> dict[str, list[float]]:
    return {
        name: [seconds * 1e3 / batch for seconds in timing.samples_s.tolist()]
        for name, timing in timings.items()
    }


def _timing_notes(timings: dict[str, Timing], limits: Limits) -> list[str]:
    notes = []
    if not all(timing.warm for timing in timings.values()):
        notes.append("the warm-up ended at its time limit before times were stable")
    wide = [name for name, timing in timings.items() if not timing.target_reached]
    if wide:
        shown = ", ".join(wide[:5]) + (f" and {len(wide) - 5} more" if len(wide) > 5 else "")
        notes.append(
            f"after {limits.seconds:g} s the 95% interval of {len(wide)} of {len(timings)} "
            f"medians was still wider than {limits.interval:.1%} to a side: {shown}"
        )
    return notes


def _milli(value: float | None, batch: int) -> float | None:
    """Per sample and in thousandths: seconds to ms, joules to mJ; None stays None."""
    return None if value is None else value * 1e3 / batch

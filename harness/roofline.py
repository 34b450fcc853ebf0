"""What a network would cost on another device, from the peaks in that device's hardware profile.

A part takes the longer of its arithmetic and its memory traffic, and a fixed time to start it::

    time = max(FLOPs / (peak x efficiency), bytes / (bandwidth x bandwidth efficiency)) + launch

A head and a forecast take one launch more, for the answer's way back to the policy. FLOPs and bytes
are those of the run's own cost table, energy is active power times time; all of it is modelled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ..profiles.schema import Figure, Profile
from .costs import CostTable
from .errors import ExitbenchError
from .profiler import ELEMENT_BYTES

PEAK_OF = {
    "fp32": "fp32_gflops",
    "tf32": "tf32_gflops",
    "bf16": "bf16_gflops",
    "fp16": "fp16_gflops",
    "int8": "int8_gops",
}
DEFAULTS: Mapping[str, Figure] = {
    "efficiency": Figure(0.5, "no figure; share of the peak that a part reaches", True),
    "bandwidth_efficiency": Figure(0.7, "no figure", True),
    "launch_ms": Figure(0.05, "no figure; starting one part", True),
}
"""What stands in for a figure of [model] that the profile does not have."""
_WAITS_FOR_ANSWER = ("head", "forecast")
_COUNTS = ("kind", "index", "name", "macs", "flops", "params")


@dataclass(frozen=True)
class Roofline:
    """How fast a device class computes and moves data.

    Attributes:
        gflops: peak by precision, in GFLOP/s (int8: Gop/s); those that the profile states.
        efficiency: share of the peak that is reached.
        bandwidth_gb_s: None where the profile states none; then traffic takes no time.
        launch_s: to start one part.
        power_w: gross watts at work.
        assumptions: the figures above that are assumptions, and what was left out, in words.
    """

    gflops: Mapping[str, float]
    efficiency: float
    bandwidth_gb_s: float | None
    bandwidth_efficiency: float
    launch_s: float
    power_w: float
    assumptions: tuple[str, ...]

    def seconds(self, kind: str, precision: str, flops: float, moved_bytes: float) -> float:
        """Time of one part."""
        busy_s = flops / (self.gflops[precision] * 1e9 * self.efficiency)
        if self.bandwidth_gb_s is not None:
            rate = self.bandwidth_gb_s * 1e9 * self.bandwidth_efficiency
            busy_s = max(busy_s, moved_bytes / rate)
        return busy_s + self.launch_s * (2 if kind in _WAITS_FOR_ANSWER else 1)


def device_class_of(profile: Profile) -> str:
    """What runs the network: the GPU if its peaks and power are known, else the CPU.

    Raises:
        ExitbenchError: neither is known.
    """
    for name in ("gpu", "cpu"):
        if profile.peaks.get(name) and name in profile.power:
            return name
    raise ExitbenchError(
        f"hardware profile {profile.name} ({profile.path}) states no peaks and power of a GPU or "
        "CPU, so no network can be priced for it; add [peaks.gpu] and [power.gpu], or choose "
        "another --hardware"
    )


def roofline_of(profile: Profile, device_class: str) -> Roofline:
    """The roofline of one device class.

    Raises:
        ExitbenchError: the profile states no fp32 peak of it.
    """
    peaks = dict(profile.peaks[device_class])
    used = {name: peaks[key] for name, key in PEAK_OF.items() if key in peaks}
    if "fp32" not in used and (made := _from_cores(profile, device_class)) is not None:
        used["fp32"] = made
    if "fp32" not in used:
        raise ExitbenchError(
            f"hardware profile {profile.name} ({profile.path}) states no fp32 peak of its "
            f"{device_class.upper()}; add peaks.{device_class}.fp32_gflops, or choose another "
            "--hardware"
        )
    model = {**DEFAULTS, **profile.model.get(device_class, {})}
    active = profile.power[device_class].active_w
    bandwidth = peaks.get("bandwidth_gb_s")
    told = {**{PEAK_OF[name]: figure for name, figure in used.items()}, **model,
            "active_w": active}  # fmt: skip
    words = [f"{key} = {f.value:.4g} ({f.source})" for key, f in told.items() if f.assumption]
    if bandwidth is None:
        words.append("the profile states no memory bandwidth: traffic is taken to cost no time")
    elif bandwidth.assumption:
        words.append(f"bandwidth_gb_s = {bandwidth.value:.4g} ({bandwidth.source})")
    return Roofline(
        {name: figure.value for name, figure in used.items()},
        model["efficiency"].value,
        None if bandwidth is None else bandwidth.value,
        model["bandwidth_efficiency"].value,
        model["launch_ms"].value * 1e-3,
        active.value,
        tuple(words),
    )


def _from_cores(profile: Profile, device_class: str) -> Figure | None:
    """fp32 GFLOP/s as FLOP per cycle and core x cores x clock; None where one is unknown."""
    per_cycle = profile.peaks[device_class].get("fp32_flop_per_cycle_per_core")
    top = profile.clocks[device_class].top_mhz if device_class in profile.clocks else None
    if per_cycle is None or top is None or profile.cores is None or device_class != "cpu":
        return None
    cores = profile.cores.counts.value[-1]
    value = per_cycle.value * cores * top * 1e-3
    words = f"{per_cycle.value:g} FLOP per cycle and core x {cores:g} cores x {top:g} MHz"
    return Figure(value, words, per_cycle.assumption)


@dataclass(frozen=True)
class Elsewhere:
    """A cost table of another device.

    Attributes:
        notes: what was assumed, as sentences.
        left_out: precisions that are not in it, and why.
    """

    table: CostTable
    notes: tuple[str, ...]
    left_out: tuple[str, ...]


def price_elsewhere(
    table: CostTable, profile: Profile, device_class: str, precisions: Sequence[str]
) -> Elsewhere:
    """The cost table of the same network on another device, for single samples.

    Args:
        table: has the FLOPs and bytes of every part, at batch size 1.
        precisions: those wanted; one whose peak the profile does not state is left out.

    Raises:
        ExitbenchError: the table has no rows at batch size 1, or the profile no fp32 peak.
    """
    roofline = roofline_of(profile, device_class)
    rows: list[dict[str, Any]] = []
    notes, left_out = list(roofline.assumptions), []
    for precision in precisions:
        if precision not in roofline.gflops:
            left_out.append(
                f"{precision} is left out: hardware profile {profile.name} states no "
                f"{PEAK_OF[precision]} of its {device_class.upper()}"
            )
            continue
        own = _single(table, precision)
        if untold := int(own["bytes"].isna().sum()):
            notes.append(
                f"{precision}: {untold} parts of {table.where} have no bytes; they are priced by "
                "their arithmetic alone"
            )
        rows += [_row(row, profile, precision, roofline) for _, row in own.iterrows()]
    if not rows:
        raise ExitbenchError(
            f"hardware profile {profile.name} states no peak of the traced precisions "
            f"{', '.join(precisions)}; trace the network in fp32, too, or choose another --hardware"
        )
    table = CostTable.from_rows(rows, f"the model of {profile.name}")
    return Elsewhere(table, tuple(notes), tuple(left_out))


def _single(table: CostTable, precision: str) -> pd.DataFrame:
    """Counts of every part for one sample; those of another precision where it has no rows."""
    single = table.frame[table.frame["batch_size"] == 1]
    known = list(dict.fromkeys(single["precision"]))
    if not known:
        raise ExitbenchError(
            f"{table.where} has no rows at batch size 1, whose FLOPs and bytes price another "
            "device; profile with --batch-sizes 1"
        )
    source = precision if precision in known else known[0]
    own = single[single["precision"] == source]
    own = own[own["operating_point"] == own["operating_point"].iloc[0]]
    own = own[own["kind"] != "gather"].copy()  # single samples are not gathered
    size = ELEMENT_BYTES[precision] / ELEMENT_BYTES[source]
    segments = own["kind"] == "segment"
    own["bytes"] = own["bytes"].astype("Float64").where(~segments, own["bytes"] * size)
    return own


def _row(row: pd.Series, profile: Profile, precision: str, roofline: Roofline) -> dict[str, Any]:
    flops = 2 * row["macs"] if pd.isna(row["flops"]) else row["flops"]
    moved = 0.0 if pd.isna(row["bytes"]) else float(row["bytes"])
    # Heads, forecasts and the classifier stay in fp32 whatever the precision of the rest.
    arithmetic = precision if row["kind"] == "segment" else "fp32"
    seconds = roofline.seconds(row["kind"], arithmetic, float(flops), moved)
    return {
        **{name: None if pd.isna(row[name]) else row[name] for name in _COUNTS},
        "bytes": None if pd.isna(row["bytes"]) else math.ceil(moved),
        "precision": precision,
        "device": profile.name,
        "batch_size": 1,
        "operating_point": "default",
        "latency_ms": seconds * 1e3,
        "latency_source": "modelled",
        "energy_mj": seconds * roofline.power_w * 1e3,
        "energy_source": "modelled",
        "power_w": roofline.power_w,
    }

"""The roofline: how much arithmetic each layer reaches, under what the device could do at most.

Williams, Waterman and Patterson, "Roofline: an insightful visual performance model", 2009: at an
arithmetic intensity of I FLOP per byte a device does at most min(peak, I x bandwidth) FLOP/s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from .origin import profiled_here
from .picture import Absent, Picture
from .style import BLACK, GREY, PRECISION_LOOKS, VERMILLION, canvas, legend_below
from .view import View, cost_rows, latency_note, ordered_precisions
from .words import figures, listing

TITLE = "Roofline: arithmetic reached against arithmetic intensity"
ROOFS: dict[str, tuple[tuple[str, str], ...]] = {
    "fp32": (("fp32_gflops", "fp32"),),
    "tf32": (("tf32_gflops", "TF32"),),
    "bf16": (("bf16_gflops", "bf16"), ("fp16_gflops", "fp16")),
    "fp16": (("fp16_gflops", "fp16"),),
    "int8": (("int8_gops", "int8"),),
}
"""Peaks of a hardware profile that are a precision's roofs, and their names; of the two for bf16
the second stands in for the first."""

BEATEN = 1.02
"""Share of a roof beyond which a point is said to lie above it: medians are not sharper."""

CALIBRATE = (
    "'exitbench hardware calibrate --write FILE' measures peaks and bandwidth of this machine; "
    "profile again with --hardware FILE"
)


@dataclass(frozen=True)
class Roof:
    """A peak of the hardware profile: GFLOP/s, GOP/s or GB/s."""

    name: str
    value: float
    assumption: bool


def roofline(view: View) -> Picture | Absent:
    """Achieved arithmetic of every segment and head, with the roofs of the hardware profile."""
    rows = cost_rows(view)
    if rows is None:
        return Absent(TITLE, view.run.missing["cost.csv"])
    if not profiled_here(view):
        why = "The cost table was not measured on the machine whose peaks would be the roofs."
        return Absent(TITLE, why)
    points = drawable(rows)
    if points.empty:
        needs = "needs FLOPs, bytes and latency of the units"
        return Absent(TITLE, f"The roofline {needs}, and the cost table does not hold all three.")
    peaks = _peaks(view)
    shown = ordered_precisions(points)
    if not any(compute_roofs(peaks, p) for p in shown) and "bandwidth_gb_s" not in peaks:
        return Absent(TITLE, _no_roofs(view, peaks))
    figure, axes = canvas(11, 5, 1, len(shown), sharex=True, sharey=True)
    span = _span(points, peaks, shown)
    for axis, precision in zip(axes, shown, strict=True):
        _panel(axis, points[points["precision"] == precision], peaks, precision, span)
    axes[0].set_ylabel(f"reached (GFLOP/s; int8: GOP/s){latency_note(rows)}")
    legend_below(figure, axes, 3)
    alt = (
        f"Roofline chart, {len(shown)} panel(s) ({', '.join(shown)}): arithmetic per second "
        "of every segment and head against FLOP per byte, on logarithmic axes, under the "
        "bandwidth and peak of the hardware profile."
    )
    return Picture(figure, TITLE, alt, _caption(view, rows, points, peaks, shown))


def drawable(rows: pd.DataFrame) -> pd.DataFrame:
    """Segments and heads with arithmetic, traffic and time, with `intensity` (FLOP per byte) and
    `reached` (GFLOP/s)."""
    kinds = rows["kind"].isin(("segment", "head"))
    known = (rows[["flops", "bytes", "latency_ms"]] > 0).all(axis=1)
    found = rows[kinds & known]
    return found.assign(
        intensity=found["flops"] / found["bytes"],
        reached=found["flops"] / (found["latency_ms"] * 1e6),
    )


def _peaks(view: View) -> dict[str, Roof]:
    """The roofs that the manifest holds, by the name of the peak."""
    hardware = view.run.manifest.get("hardware")
    told = hardware.get("peaks") if isinstance(hardware, Mapping) else None
    found = {}
    for name, figure in told.items() if isinstance(told, Mapping) else ():
        value = figure.get("value") if isinstance(figure, Mapping) else None
        if isinstance(value, int | float) and value > 0:
            found[str(name)] = Roof(str(name), float(value), bool(figure.get("assumption")))
    return found


def compute_roofs(peaks: Mapping[str, Roof], precision: str) -> list[tuple[str, Roof]]:
    """The arithmetic roofs of a precision with their names; none where the profile has none."""
    found = [(words, peaks[name]) for name, words in ROOFS.get(precision, ()) if name in peaks]
    return found[:1] if precision == "bf16" else found


def _no_roofs(view: View, peaks: Mapping[str, Roof]) -> str:
    hardware = view.run.manifest.get("hardware") or {}
    name = hardware.get("profile") or "of this run"
    cycle = (
        " (FLOP per cycle and core alone give none without a clock)"
        if "fp32_flop_per_cycle_per_core" in peaks
        else ""
    )
    return (
        f"The hardware profile {name} states neither peak arithmetic{cycle} nor memory bandwidth, "
        f"so there is no roof to draw: {CALIBRATE}."
    )


def _span(points: pd.DataFrame, peaks: Mapping[str, Roof], shown: list[str]) -> tuple[float, float]:
    """The range of intensities to show, (low, high): the points and where the roofs meet."""
    found = [float(points["intensity"].min()), float(points["intensity"].max())]
    memory = peaks.get("bandwidth_gb_s")
    if memory is not None:
        roofs = [roof for precision in shown for _, roof in compute_roofs(peaks, precision)]
        found += [roof.value / memory.value for roof in roofs]
    return 0.5 * min(found), 2.5 * max(found)


def _panel(
    axis: Axes,
    rows: pd.DataFrame,
    peaks: Mapping[str, Roof],
    precision: str,
    span: tuple[float, float],
) -> None:
    colour, _ = PRECISION_LOOKS.get(precision, (BLACK, ""))
    heads, segments = (rows[rows["kind"] == kind] for kind in ("head", "segment"))
    look: dict[str, Any] = {"linestyle": "none", "zorder": 4}
    axis.plot(
        heads["intensity"],
        heads["reached"],
        marker="^",
        markersize=5,
        markerfacecolor="none",
        markeredgecolor=GREY,
        alpha=0.7,
        label="head (fp32 in every precision)",
        **look,
    )
    axis.plot(
        segments["intensity"],
        segments["reached"],
        marker="o",
        markersize=7,
        markerfacecolor=colour,
        markeredgecolor="white",
        label=f"segment, {precision}",
        **look,
    )
    _roof_lines(axis, peaks, precision, span)
    _log_axes(axis, span)
    axis.set_title(precision)
    axis.set_xlabel("arithmetic intensity (FLOP per byte)")


def _log_axes(axis: Axes, span: tuple[float, float]) -> None:
    axis.set_xscale("log")
    axis.set_yscale("log")
    fine = (1.0, 2.0, 5.0) if span[1] / span[0] < 300 else (1.0,)
    for one, subs in ((axis.xaxis, fine), (axis.yaxis, (1.0,))):
        one.set_major_locator(LogLocator(subs=subs))
        one.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        one.set_minor_formatter(NullFormatter())
    axis.set_xlim(*span)
    axis.margins(y=0.12)


def _roof_lines(
    axis: Axes, peaks: Mapping[str, Roof], precision: str, span: tuple[float, float]
) -> None:
    """Bandwidth and peaks as lines that end where they meet the highest peak."""
    memory, roofs = peaks.get("bandwidth_gb_s"), compute_roofs(peaks, precision)
    x = np.geomspace(*span, 200)
    highest = max((roof.value for _, roof in roofs), default=np.inf)
    if memory is not None:
        inside = x * memory.value <= highest
        axis.plot(
            x[inside],
            x[inside] * memory.value,
            color=BLACK,
            linestyle=_stroke(memory),
            linewidth=1.6,
            label=f"memory bandwidth{_mark(memory)}",
        )
    for words, roof in roofs:
        start = span[0] if memory is None else max(span[0], roof.value / memory.value)
        if start < span[1]:
            axis.plot(
                [start, span[1]],
                [roof.value] * 2,
                color=VERMILLION,
                linestyle=_stroke(roof),
                linewidth=1.6,
                label=f"peak arithmetic{_mark(roof)}",
            )
            _roof_words(axis, words, roof, span[1])
    if not roofs:
        axis.text(
            *(0.02, 0.97, f"peak for {precision}:\nnot in the profile"),
            fontsize=8.5,
            va="top",
            transform=axis.transAxes,
        )


def _roof_words(axis: Axes, words: str, roof: Roof, right: float) -> None:
    unit = "GOP/s" if roof.name == "int8_gops" else "GFLOP/s"
    axis.annotate(
        f"{words}: {figures(roof.value)} {unit}",
        (right, roof.value),
        xytext=(-2, 9),
        textcoords="offset points",
        ha="right",
        fontsize=8.5,
    )


def _mark(roof: Roof) -> str:
    return " (assumption)" if roof.assumption else ""


def _stroke(roof: Roof) -> Any:
    return (0, (4, 2)) if roof.assumption else "-"


def _caption(
    view: View,
    rows: pd.DataFrame,
    points: pd.DataFrame,
    peaks: Mapping[str, Roof],
    shown: list[str],
) -> str:
    parts = [
        "Under the slanted line a unit waits for memory, under the level one for arithmetic; how "
        "far below the roof it lies is what a better kernel or a larger batch could still gain. "
        "Bytes are a lower bound of the traffic.",
        *_beaten(points, peaks, shown),
    ]
    missing = [p for p in shown if not compute_roofs(peaks, p)]
    if missing:
        parts.append(f"The profile has no peak for {listing(missing)}: {CALIBRATE}.")
    left = int(rows["kind"].isin(("segment", "head")).sum()) - len(points)
    if left:
        parts.append(f"{left} units without arithmetic, bytes or latency are not drawn.")
    threads = rows["threads"].dropna()
    if len(threads) and not str(view.place.get("device") or "cpu").startswith("cuda"):
        used = int(threads.iloc[0])
        parts.append(
            f"The run used {used} thread{'s' if used != 1 else ''}; the roofs are those of "
            f"{(view.run.manifest.get('hardware') or {}).get('profile')}."
        )
    return " ".join(parts)


def _beaten(points: pd.DataFrame, peaks: Mapping[str, Roof], shown: list[str]) -> list[str]:
    """Sentences on points above a roof: a peak that is beaten is no peak."""
    found = []
    memory = peaks.get("bandwidth_gb_s")
    for precision in shown:
        own, roofs = points[points["precision"] == precision], compute_roofs(peaks, precision)
        own = own[own["kind"] == "segment"]
        top = max((roof for _, roof in roofs), key=lambda roof: roof.value, default=None)
        over = own["reached"] > BEATEN * top.value if top else pd.Series(False, index=own.index)
        if top and over.any():
            what = "assumed peak" if top.assumption else "peak of the profile"
            found.append(
                f"In {precision} the {what} is beaten by {int(over.sum())} of {len(own)} "
                "segments: the true peak is higher, or their kernels do with fewer operations than "
                "are counted (Winograd's convolutions, for one)."
            )
        if memory is None:
            continue
        fast = ~over & (own["reached"] > BEATEN * memory.value * own["intensity"])
        if fast.any():
            what = "assumed bandwidth" if memory.assumption else "bandwidth"
            found.append(
                f"In {precision} {int(fast.sum())} of {len(own)} segments lie above the {what}: "
                "their data comes from caches"
                + (", or the assumption is too low." if memory.assumption else ".")
            )
    return found

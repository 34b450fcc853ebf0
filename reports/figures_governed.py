"""Governed clocks at equal accuracy and equal latency: bars, and accuracy against energy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from .columns import SETTING
from .governed import (
    CLAIMS,
    GOVERNOR_WORDS,
    deadline_words,
    governors,
    groups,
    keeps_latency,
    one,
    settings,
    sources,
)
from .picture import Absent, Picture
from .reading import Governed
from .style import BLACK, FAINT, GREY, LOOKS, PURPLE, canvas, look_of, role_label
from .view import PREDICTIVE, Setting, View, ordered_precisions
from .words import percent

ENERGY_TITLE = "Energy at equal accuracy and equal latency"
CLOCKS_TITLE = "Accuracy against energy across clock settings"
CLAIM_LOOKS = {"claim_vs_full": (PURPLE, (0, (5, 2))), "claim_vs_every_exit": (BLACK, (0, (1, 1)))}
SIZE, STEP = 7.0, 3.5
"""Size of a mark in points, and how much larger one is that lies under another."""

MARKERS = {
    "": "o",
    "fixed": "s",
    "race-to-idle": "^",
    "proportional": "D",
    "deadline": "P",
    "deadline-safe": "X",
}


def governed_energy(view: View, governed: Governed) -> Picture | Absent:
    """Bars of energy per request, busy and idle until the deadline, per policy and governor."""
    title = f"{ENERGY_TITLE}: {governed.hardware}"
    if governed.rows["energy_mj"].isna().all():
        return Absent(title, f"{_file(governed)} holds no energy of any policy: no power is known.")
    shown = ordered_precisions(governed.rows)
    lists = {precision: groups(governed, precision) for precision in shown}
    lines = max(sum(1 + len(rows) for _, rows in found) for found in lists.values())
    figure, axes = canvas(11, 1.7 + 0.27 * lines, 1, len(shown))
    for axis, precision in zip(axes, shown, strict=True):
        _bars(axis, lists[precision], claims(governed, precision), first=axis is axes[0])
        axis.set_title(f"{precision}, deadline {deadline_words(governed, precision)}")
        axis.set_xlabel(_axis_label(governed, precision))
    figure.legend(handles=_legend(governed), loc="outside lower left", ncols=2, handlelength=3.2)
    alt = (
        f"Bar chart, {len(shown)} panel(s) ({', '.join(shown)}): energy per request of the full "
        f"network, every-exit and predictive exit at the top clock and with governors on "
        f"{governed.hardware}, the idle part until the deadline hatched, with the paper's claims "
        f"as lines; {_source_words(governed, None)}."
    )
    return Picture(figure, title, alt, _energy_caption(governed))


def _file(governed: Governed) -> str:
    return f"governed-{governed.hardware}.csv"


def _source_words(governed: Governed, precision: str | None, column: str = "energy_source") -> str:
    """Sources of the energies (or latencies); told by the clock where top and governed differ."""
    rows = settings(governed, precision)
    top = sources([row for row in rows if not row["governor"]], column)
    rest = [row for row in rows if row["governor"]]
    other = sources(rest, column)
    return top if not rest or other == top else f"{top} at the top clock, {other} with a governor"


def _axis_label(governed: Governed, precision: str | None) -> str:
    """What the energy axis shows, and where its values come from."""
    words = _source_words(governed, precision)
    return f"energy per request (mJ{', ' if len(words) < 20 else ','}{_fold(words)})"


def _fold(words: str) -> str:
    return words if len(words) < 20 else f"\n{words}"


def claims(governed: Governed, precision: str) -> list[tuple[str, float, float]]:
    """The paper's claims: column, claimed share, and the energy in mJ that it would be here."""
    rows = settings(governed, precision)
    found = []
    for column, (role, _) in CLAIMS.items():
        base = one(rows, role, "")
        claimed = next((row[column] for row in rows if row[column] is not None), None)
        if claimed is not None and base is not None and base["energy_mj"] is not None:
            found.append((column, float(claimed), claimed * base["energy_mj"]))
    return found


def _bars(
    axis: Axes,
    found: list[tuple[str, list[Setting]]],
    claimed: list[tuple[str, float, float]],
    *,
    first: bool,
) -> None:
    labels: list[str] = []
    headings: list[int] = []
    values = [r["energy_mj"] for _, rows in found for r in rows if r["energy_mj"] is not None]
    for heading, rows in found:
        headings.append(len(labels))
        labels.append(heading)
        start = len(labels)
        for row in rows:
            _bar(axis, len(labels), row)
            labels.append(_label(row))
        if rows[0]["governor"] and rows[0]["role"] in PREDICTIVE:
            for column, _, energy in claimed:
                colour, line = CLAIM_LOOKS[column]
                ends = [start - 0.5, len(labels) - 0.5]
                axis.plot([energy] * 2, ends, color=colour, linestyle=line, linewidth=2, zorder=4)
    axis.set_yticks(range(len(labels)), labels if first else [""] * len(labels))
    if first:
        for place in headings:
            axis.get_yticklabels()[place].set_fontweight("bold")
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(len(labels) - 0.4, -0.6)
    # Room for the words at the end of the longest bar.
    axis.set_xlim(0, 1.5 * max(values, default=1.0))
    axis.grid(False, axis="y")


def _label(row: Setting) -> str:
    if not row["governor"]:
        return role_label(row["role"])
    words = GOVERNOR_WORDS.get(str(row["governor"]), str(row["governor"]))
    return words if row["role"] in PREDICTIVE else f"{role_label(row['role'])}: {words}"


def _bar(axis: Axes, place: int, row: Setting) -> None:
    energy, busy = row["energy_mj"], row["busy_energy_mj"]
    if energy is None:
        where: dict[str, Any] = {"va": "center", "transform": axis.get_yaxis_transform()}
        axis.text(0.01, place, "not available", fontsize=8.5, **where)
        return
    colour = GREY if row["role"] == "full" else look_of(LOOKS, row["role"]).colour
    solid = energy if busy is None else min(busy, energy)
    axis.barh(place, solid, 0.74, color=colour, linewidth=0)
    if busy is not None and energy > busy:
        axis.barh(
            place,
            energy - busy,
            0.74,
            left=busy,
            facecolor="white",
            edgecolor=colour,
            hatch="/////",
            linewidth=0.8,
        )
    words = percent(row["energy_vs_full"], 0)
    late = f", {percent(row['missed'])} late" if row["missed"] else ""
    axis.annotate(
        f"{words}{late}",
        (energy, place),
        xytext=(5, 0),
        textcoords="offset points",
        va="center",
        fontsize=8.5,
        zorder=6,
        # A line of a claim must not run through the number.
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
    )


def _legend(governed: Governed) -> list[Any]:
    handles: list[Any] = [
        Patch(facecolor=GREY, label="at work"),
        Patch(facecolor="white", edgecolor=GREY, hatch="/////", label="idle until the deadline"),
    ]
    told = {
        column: share
        for p in ordered_precisions(governed.rows)
        for column, share, _ in claims(governed, p)
    }
    for column, share in told.items():
        colour, line = CLAIM_LOOKS[column]
        words = f"claimed in the paper: {percent(1 - share)} less than {CLAIMS[column][1]}"
        handles.append(Line2D([], [], color=colour, linestyle=line, linewidth=2, label=words))
    return handles


def _energy_caption(governed: Governed) -> str:
    facts = governed.facts
    parts = [
        "For every policy and governor the setting that needs least energy within the allowed "
        "accuracy loss (chosen on the calibration split), and for all the same time per request: "
        "who is done early is idle until the deadline. Percentages are shares of the full "
        "network's energy at the top clock in that precision; late is the share of requests that "
        "took longer than the deadline.",
        f"Energy is {_source_words(governed, None)}; latency is "
        f"{_source_words(governed, None, 'latency_source')}.",
    ]
    if any(claims(governed, precision) for precision in ordered_precisions(governed.rows)):
        parts.append("The lines are what the paper claims for predictive exit with its governor.")
    parts += [f"{str(facts['model_error']).rstrip('.')}."] if facts.get("model_error") else []
    return " ".join(parts)


def accuracy_energy_clocks(view: View, governed: Governed) -> Picture | Absent:
    """Accuracy against energy, a point per policy and governor, one panel per precision."""
    title = f"{CLOCKS_TITLE}: {governed.hardware}"
    if governed.rows["energy_mj"].isna().all():
        return Absent(title, f"{_file(governed)} holds no energy of any policy: no power is known.")
    shown = ordered_precisions(governed.rows)
    figure, axes = canvas(11, 1.7 + 2.2 * len(shown), len(shown), 1, sharex=True, sharey=True)
    for axis, precision in zip(axes, shown, strict=True):
        _points(axis, settings(governed, precision))
        axis.set_title(f"{precision}, deadline {deadline_words(governed, precision)}")
        axis.set_ylabel("accuracy (%)")
        axis.margins(y=0.2)
    axes[-1].set_xlabel(_axis_label(governed, None))
    _energy_axis(axes[-1], governed.rows["energy_mj"].dropna())
    figure.legend(handles=_clock_legend(governed), loc="outside lower left", ncols=4)
    alt = (
        f"Scatter chart, {len(shown)} panel(s) ({', '.join(shown)}): accuracy in percent against "
        f"energy per request on {governed.hardware}; the colour is the policy, the marker the "
        f"governor; {_source_words(governed, None)}."
    )
    caption = (
        "For every policy and governor the setting that needs least energy within the allowed "
        "accuracy loss, chosen on the calibration split: the further left, the better. A thin line "
        "joins one setting under several clocks. Of governors that coincide only the first of the "
        "legend is drawn; policies that coincide lie on each other. Energy includes idle until the "
        "deadline and is "
        f"{_source_words(governed, None)}. Hollow: clearly more often late than the same policy at "
        "the top clock, so not of equal latency."
    )
    return Picture(figure, title, alt, caption)


def _energy_axis(axis: Axes, energies: pd.Series) -> None:
    """The range of the energies, logarithmic where they span more than a factor of four."""
    low, high = float(energies.min()), float(energies.max())
    if low > 0 and high / low > 4:
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlim(0.93 * low, 1.05 * high)


def _points(axis: Axes, rows: list[Setting]) -> None:
    """A mark per row; marks of one setting under several clocks are joined by a thin line."""
    drawn = [row for row in rows if row["energy_mj"] is not None]
    for members in _by_setting(drawn):
        ends = sorted(row["energy_mj"] for row in members)
        axis.plot(ends, [100 * members[0]["accuracy"]] * len(ends), color=FAINT, linewidth=1)
    for row, size in _told_apart(drawn):
        colour = GREY if row["role"] == "full" else look_of(LOOKS, row["role"]).colour
        late = not keeps_latency(rows, row)
        axis.plot(
            row["energy_mj"],
            100 * row["accuracy"],
            MARKERS.get(row["governor"], "*"),
            markersize=size,
            markerfacecolor="white" if late else colour,
            markeredgecolor=colour if late else "white",
            markeredgewidth=1.4 if late else 0.5,
        )


def _told_apart(rows: list[Setting]) -> Iterator[tuple[Setting, float]]:
    """Rows with the size of their mark, each at its true place.

    Of one policy's governors that coincide the first is drawn; policies that coincide lie on each
    other, the first the largest.
    """
    places: dict[tuple[int, int], dict[str, Setting]] = {}
    for row in rows:
        # What lies within half a percent, or a twentieth of a point, would hide one another.
        energy = round(math.log(row["energy_mj"]) / 0.005) if row["energy_mj"] > 0 else 0
        places.setdefault((round(2000 * row["accuracy"]), energy), {}).setdefault(row["role"], row)
    for members in places.values():
        for place, row in enumerate(members.values()):
            yield row, SIZE + STEP * (len(members) - 1 - place)


def _by_setting(rows: list[Setting]) -> list[list[Setting]]:
    """Rows of one role and one setting together, in the order of the file."""
    found: dict[tuple[str, ...], list[Setting]] = {}
    for row in rows:
        found.setdefault(tuple(str(row[key]) for key in ("role", *SETTING)), []).append(row)
    return list(found.values())


def _clock_legend(governed: Governed) -> list[Any]:
    roles = dict.fromkeys(row["role"] for row in settings(governed))
    found: list[Any] = [
        Patch(
            facecolor=GREY if role == "full" else look_of(LOOKS, role).colour,
            label=role_label(role),
        )
        for role in roles
    ]
    for name in ("", *governors(governed)):
        look: dict[str, Any] = {"color": GREY, "linestyle": "none", "markersize": 8}
        label = GOVERNOR_WORDS.get(name, name)
        found.append(Line2D([], [], marker=MARKERS.get(name, "*"), label=label, **look))
    return found

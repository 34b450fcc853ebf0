"""Replayed against measured cost of the settings that were really run."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes

from .lines import measured, run_energy_source, run_latency_source
from .picture import Absent, Picture
from .style import BLACK, BLUE, VERMILLION, canvas, legend_below
from .view import ENERGY, LATENCY, ROLE_WORDS, Metric, Setting, View
from .words import POLICY_WORDS, beta_words, change, listing, percent

TITLE = "Replayed against measured"


def replay_against_measured(view: View) -> Picture | Absent:
    """Per measured run the replayed and the measured latency and energy, with the gap."""
    rows = measured(view)
    if not rows:
        reason = view.run.missing.get("measurements.jsonl", "measurements.jsonl holds no run yet.")
        return Absent(TITLE, reason)
    metrics = [m for m in (LATENCY, ENERGY) if any(gap(row, m) is not None for row in rows)]
    if not metrics:
        return Absent(TITLE, "No measured run has both a replayed and a measured cost.")
    figure, axes = canvas(11, 1.9 + 0.52 * len(rows), 1, len(metrics), sharey=True)
    for axis, metric in zip(axes, metrics, strict=True):
        _panel(axis, rows, metric)
        axis.set_xlabel(_label(rows, metric))
    axes[0].set_yticks(range(len(rows)), [run_label(view, row) for row in rows])
    axes[0].set_ylim(len(rows) - 0.4, -0.6)
    legend_below(figure, axes)
    nouns = " and ".join(m.noun for m in metrics)
    alt = f"Dot chart: replayed and measured {nouns} of {len(rows)} settings, with their gaps."
    return Picture(figure, TITLE, alt, _caption(rows, metrics))


def gap(row: Setting, metric: Metric) -> float | None:
    """Measured over replayed cost; None where either is missing."""
    real, replayed = row.get(metric.column), row.get(f"replay_{metric.column}")
    return float(real / replayed) if real is not None and replayed else None


def run_label(view: View, row: Setting) -> str:
    """A measured run in few words: its role, else its policy, and the rest of its setting."""
    role = view.role_of(row)
    policy = str(row["policy"])
    words = [ROLE_WORDS.get(role or "", POLICY_WORDS.get(policy, policy))]
    if role is None and row.get("predictor"):
        words.append(str(row["predictor"]))
    if role is None and row.get("start_layer") is not None:
        words.append(f"exit {int(row['start_layer'])}")
    words.append(str(row["precision"]))
    if row.get("beta") is not None:
        words.append(f"beta {beta_words(row['beta'])}")
    if row.get("rebatch_wait") is not None:
        words.append(f"rebatched within {int(row['rebatch_wait'])}")
    return ", ".join(words)


def _label(rows: list[Setting], metric: Metric) -> str:
    if metric is LATENCY:
        return f"Latency per sample (ms, {run_latency_source(rows)})"
    return f"Energy per sample (mJ, {run_energy_source(rows)})"


def _panel(axis: Axes, rows: list[Setting], metric: Metric) -> None:
    widest = max((_right(row, metric) for row in rows if gap(row, metric) is not None), default=1.0)
    for place, row in enumerate(rows):
        if gap(row, metric) is None:
            axis.text(
                *(0.01, place, "not available"),
                fontsize=9,
                va="center",
                transform=axis.get_yaxis_transform(),
            )
        else:
            _pair(axis, place, row, metric)
    axis.set_xlim(0, 1.2 * widest)
    axis.grid(False, axis="y")


def _ends(row: Setting, metric: Metric) -> tuple[float, float]:
    """The range of a measured cost; the value itself where none was recorded."""
    quantity, unit = metric.column.rsplit("_", 1)
    ends = [row.get(f"{quantity}_{side}_{unit}") for side in ("low", "high")]
    low, high = (row[metric.column] if end is None else end for end in ends)
    return float(low), float(high)


def _right(row: Setting, metric: Metric) -> float:
    return max(row[metric.column], row[f"replay_{metric.column}"], _ends(row, metric)[1])


def _pair(axis: Axes, place: int, row: Setting, metric: Metric) -> None:
    """Replayed (ring) and measured (diamond, with its range) of one run, joined."""
    real, replayed = row[metric.column], row[f"replay_{metric.column}"]
    axis.plot([replayed, real], [place, place], "-", color=BLACK, linewidth=1.2, zorder=2)
    axis.plot(_ends(row, metric), [place, place], "|-", color=BLUE, markersize=9, zorder=3)
    ring: dict[str, Any] = {
        "markerfacecolor": "white",
        "markeredgecolor": VERMILLION,
        "markeredgewidth": 1.8,
    }
    axis.plot(replayed, place, "o", markersize=9, zorder=4, label="replayed", **ring)
    axis.plot(real, place, "D", color=BLUE, markersize=6.5, zorder=5, label="really run")
    axis.annotate(
        change(gap(row, metric), 1),
        (_right(row, metric), place),
        xytext=(9, 0),
        textcoords="offset points",
        va="center",
        fontsize=9,
    )


def _caption(rows: list[Setting], metrics: list[Metric]) -> str:
    parts = []
    for metric in metrics:
        gaps = [g for row in rows if (g := gap(row, metric)) is not None]
        low, high = change(min(gaps), 1), change(max(gaps), 1)
        spread = low if low == high else f"{low} to {high}"
        source = run_energy_source(rows) if metric is ENERGY else run_latency_source(rows)
        parts.append(f"the {metric.noun} of the runs ({source}) is {spread} off its replay")
    same = [row["same_decisions"] for row in rows if row.get("same_decisions") is not None]
    text = f"The nearer the pair, the more the sweep can be trusted: {listing(parts)}"
    if same:
        share = "all" if min(same) == 1 else f"at least {percent(min(same), 2)} of the"
        text += f"; live and replayed decisions agree for {share} samples"
    return f"{text}."

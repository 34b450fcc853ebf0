"""Replayed against measured cost of the settings that were really run."""

from __future__ import annotations

from matplotlib.axes import Axes

from .lines import measured
from .picture import Absent, Picture
from .style import BLACK, BLUE, VERMILLION, canvas, legend_below
from .view import ENERGY, LATENCY, Metric, Setting, View, canonical_role
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
    axes[0].set_yticks(range(len(rows)), [run_label(row) for row in rows])
    axes[0].set_ylim(len(rows) - 0.4, -0.6)
    legend_below(figure, axes)
    nouns = " and ".join(m.noun for m in metrics)
    alt = f"Dot chart: replayed and measured {nouns} of {len(rows)} settings, with the gap in percent."
    return Picture(figure, TITLE, alt, _caption(rows, metrics))


def gap(row: Setting, metric: Metric) -> float | None:
    """Measured over replayed cost; None where either is missing."""
    real, replayed = row.get(metric.column), row.get(f"replay_{metric.column}")
    return float(real / replayed) if real is not None and replayed else None


def run_label(row: Setting) -> str:
    """A measured run in few words: its role, and what tells it from another of that role."""
    chosen = str(row.get("chosen_as") or "").split(";")[0]
    name = canonical_role(chosen, None) if chosen else str(row["policy"])
    short = {"every-exit": "every-exit, exit 1", "every-exit-best": "every-exit, best start"}
    words = [short.get(name, POLICY_WORDS.get(name, name) if name != "full" else "full network")]
    words.append(str(row["precision"]))
    if row.get("beta") is not None:
        words.append(f"beta {beta_words(row['beta'])}")
    return ", ".join(words)


def _label(rows: list[Setting], metric: Metric) -> str:
    if metric is LATENCY:
        return "Latency per sample (ms)"
    sources = sorted({str(r["energy_source"]) for r in rows if r.get("energy_mj") is not None})
    return f"Energy per sample (mJ, {listing(sources)})"


def _panel(axis: Axes, rows: list[Setting], metric: Metric) -> None:
    widest = 0.0
    for place, row in enumerate(rows):
        ratio = gap(row, metric)
        if ratio is None:
            axis.text(0.01, place, "not available", fontsize=9, va="center",
                      transform=axis.get_yaxis_transform())  # fmt: skip
            continue
        real, replayed = row[metric.column], row[f"replay_{metric.column}"]
        low, high = row.get(f"{metric.column[:-3]}_low_{metric.unit}"), row.get(
            f"{metric.column[:-3]}_high_{metric.unit}")  # fmt: skip
        axis.plot([replayed, real], [place, place], "-", color=BLACK, linewidth=1.2, zorder=2)
        if low is not None and high is not None:
            axis.errorbar(
                real, place, xerr=[[max(0, real - low)], [max(0, high - real)]], color=BLUE,
                capsize=4, linestyle="none", zorder=3,
            )  # fmt: skip
        axis.plot(replayed, place, "o", markerfacecolor="white", markeredgecolor=VERMILLION,
                  markeredgewidth=1.8, markersize=9, zorder=4, label="replayed",
                  linestyle="none")  # fmt: skip
        axis.plot(real, place, "D", color=BLUE, markersize=6.5, zorder=5, linestyle="none",
                  label="measured")  # fmt: skip
        right = max(v for v in (real, replayed, high) if v is not None)
        widest = max(widest, right)
        axis.annotate(change(ratio, 1), (right, place), xytext=(9, 0),
                      textcoords="offset points", va="center", fontsize=9)  # fmt: skip
    axis.set_xlim(0, 1.2 * widest if widest else 1)
    axis.grid(False, axis="y")


def _caption(rows: list[Setting], metrics: list[Metric]) -> str:
    parts = []
    for metric in metrics:
        gaps = [g for row in rows if (g := gap(row, metric)) is not None]
        low, high = change(min(gaps), 1), change(max(gaps), 1)
        spread = low if low == high else f"{low} to {high}"
        source = f" ({_sources(rows)})" if metric is ENERGY else ""
        parts.append(f"measured {metric.noun}{source} is {spread} off its replay")
    same = [row["same_decisions"] for row in rows if row.get("same_decisions") is not None]
    text = f"The nearer the pair, the more the sweep can be trusted: {listing(parts)}"
    if same:
        text += f"; live and replayed decisions agree for at least {percent(min(same), 2)} of samples"
    return f"{text}."


def _sources(rows: list[Setting]) -> str:
    return listing(sorted({str(r["energy_source"]) for r in rows if r.get("energy_mj") is not None}))

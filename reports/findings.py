"""What the numbers say, in sentences: the recommendation, the findings and the limits.

Every sentence is made from the files of the run; none holds a figure of its own.
"""

from __future__ import annotations

import statistics
from typing import Any

from .choice import chosen_from, half_width, unequal
from .figures_measured import gap, run_label
from .findings_energy import energy_findings
from .lines import measured, staged
from .origin import energy_limits, place_words, ranking_limits
from .view import (
    ENERGY,
    LATENCY,
    MACS,
    Metric,
    Setting,
    View,
    cost_rows,
    energy_source,
    source_note,
)
from .words import (
    accuracy_change,
    change,
    figures,
    listing,
    percent,
    point_words,
    saving,
    setting_words,
)

NOTICEABLE = 0.02
"""Cost differences below this share are told as no difference: medians are not sharper."""


LUCK = (
    "The cheapest of many is in part the luckiest there; the test split, which had no say, shows "
    "what is left."
)


def told(view: View, row: Setting, metric: Metric, to: Setting | None = None) -> str:
    """A cost against the reference (or ``to``) in words, with the source of an energy."""
    return f"{saving(view.ratio(row, metric, to), metric.noun)}{source_note(metric, row)}"


def _sourced(metric: Metric, row: Setting) -> str:
    """The metric's name, with the source where that has to be told."""
    return f"{metric.noun}{source_note(metric, row)}"


def headline(view: View) -> str:
    """The recommended setting in one sentence."""
    row, full = view.recommended, view.reference
    if full is None:
        return "No recommendation: the sweep has no row of the full network to compare with."
    if row is None:
        if view.calibration.empty:
            return (
                "No recommendation: the sweep has no rows of the calibration split, and a setting "
                "picked on the test split would be a wrong result."
            )
        return (
            f"No recommendation: no setting stays within {point_words(view.loss)} of the full "
            "network on the calibration split."
        )
    if row["key"] == full["key"]:
        return (
            f"Run the full network in {full['precision']}: no cheaper setting stays within "
            f"{point_words(view.loss)} of its accuracy on the calibration split."
        )
    where = f"the full network in {full['precision']}"
    costs = told(view, row, view.metric)
    if view.metric is not LATENCY and view.ratio(row, LATENCY) is not None:
        costs += f" and {told(view, row, LATENCY)}"
    change_words = accuracy_change(row["accuracy"] - full["accuracy"])
    lost = full["accuracy"] - row["accuracy"]
    over = f" (more than the {point_words(view.loss)} allowed)" if lost > view.loss + 1e-9 else ""
    return f"Run {setting_words(row, view.names)}: {costs} than {where}, {change_words}{over}."


def verdict(view: View) -> str:
    """Whether prediction pays, against every-exit from its best start layer."""
    wanted = view.recommended["precision"] if view.recommended else None
    predictive = view.best_predictive(wanted)
    every = view.role("every-exit-best", wanted) or view.role("every-exit", wanted)
    if predictive is None or every is None:
        missing = "predictive exit" if predictive is None else "every-exit"
        return (
            f"Whether prediction pays cannot be said: no setting of {missing} was chosen within "
            "the allowed loss."
        )
    ratio = view.ratio(predictive, view.metric, every)
    if ratio is None:
        return "Whether prediction pays cannot be said: a cost is missing."
    against = "every-exit from its best start layer"
    if every["precision"] != predictive["precision"]:
        against += f" (in {every['precision']})"
    difference = predictive["accuracy"] - every["accuracy"]
    least = noticeable(view, predictive["precision"])
    unknown = ""
    if abs(ratio - 1) < least and least > NOTICEABLE:
        unknown = (
            f" Differences below {percent(least, 0)} are not known here: so far apart lie the "
            "really run settings and their replay."
        )
    return (
        f"{_judgement(ratio, difference, view.loss, least)}: predictive exit "
        f"({predictive['predictor']} predictor) needs "
        f"{told(view, predictive, view.metric, every)} than {against} "
        f"({setting_words(every, view.names)}), {accuracy_change(difference)}.{unknown}"
    )


def noticeable(view: View, precision: str) -> float:
    """The relative difference in cost below which two settings of a precision are not told apart.

    What all runs are off their replay alike cancels between settings; how much further one run is
    off than the median run does not. At least ``NOTICEABLE``.
    """
    gaps = [g for run in measured(view, precision) if (g := gap(run, view.metric)) is not None]
    if len(gaps) < 2:
        return NOTICEABLE
    middle = statistics.median(gaps)
    return max(NOTICEABLE, *(abs(value / middle - 1) for value in gaps))


def _judgement(ratio: float, difference: float, loss: float, least: float) -> str:
    """Whether a cost ratio pays; open where it is bought or paid back with accuracy."""
    cheaper, dearer = ratio < 1 - least, ratio > 1 + least
    paid = unequal(difference, loss)
    if paid and ((cheaper and difference < 0) or (dearer and difference > 0)):
        return (
            "Whether prediction pays is open here, as the accuracy is not equal on the test split"
        )
    if cheaper:
        return "Prediction pays here"
    return (
        "Prediction does not pay here" if dearer else "Prediction makes next to no difference here"
    )


def findings(view: View) -> list[str]:
    """Further sentences that help to decide."""
    found = [
        _held(view),
        _precision_share(view),
        _plain_exit(view),
        _other_costs(view),
        _bound(view),
        _heads(view),
        _confirmed(view),
    ]
    return [*(sentence for sentence in found if sentence), *energy_findings(view)]


def _held(view: View) -> str | None:
    """Whether the accuracy limit, kept on calibration, held on test."""
    row, full = view.recommended, view.reference
    if row is None or full is None or row["key"] == full["key"]:
        return None
    lost = full["accuracy"] - row["accuracy"]
    sentence = (
        f"Accuracy on the test split: {percent(row['accuracy'])} against "
        f"{percent(full['accuracy'])} of the full network in {full['precision']}"
    )
    if lost > view.loss + 1e-9:
        return (
            f"{sentence}. That is more than the {point_words(view.loss)} allowed: the setting kept "
            "the limit on the calibration split, where it was chosen, and not on the test split."
        )
    return f"{sentence}; within the {point_words(view.loss)} allowed."


def _precision_share(view: View) -> str | None:
    """What the precision alone saves."""
    row, full = view.recommended, view.reference
    if row is None or full is None or row["precision"] == full["precision"]:
        return None
    alone = view.role("full", row["precision"])
    if alone is None or alone["precision"] != row["precision"]:
        return None
    return (
        f"Of this, the precision alone brings a part: the full network in {row['precision']} needs "
        f"{told(view, alone, view.metric)} than in {full['precision']}; against it the recommended "
        f"setting needs {told(view, row, view.metric, alone)}."
    )


def _plain_exit(view: View) -> str | None:
    """What a network simply cut off at one exit would do."""
    row = view.recommended
    if row is None or row["policy"] == "fixed":
        return (
            "Where a sample leaves is not decided by its confidence at all: cutting the network "
            "off at one exit was the cheapest that keeps the accuracy."
            if row is not None
            else None
        )
    fixed = view.role("fixed", row["precision"])
    if fixed is None or fixed["precision"] != row["precision"]:
        return None
    return (
        f"Cutting the network off instead ({setting_words(fixed, view.names)}) needs "
        f"{told(view, fixed, view.metric, row)} than the recommended setting, "
        f"{accuracy_change(fixed['accuracy'] - row['accuracy'])}."
    )


def _predictive_and(view: View, role: str) -> tuple[Setting, Setting] | None:
    """The best predictive setting and the one that plays ``role``, in the recommended precision."""
    wanted = view.recommended["precision"] if view.recommended else None
    predictive, other = view.best_predictive(wanted), view.role(role, wanted)
    return None if predictive is None or other is None else (predictive, other)


def _other_costs(view: View) -> str | None:
    """How predictive exit compares under each cost: it may pay in one and not in another."""
    pair = _predictive_and(view, "every-exit-best")
    if pair is None:
        return None
    predictive, every = pair
    parts = [
        f"{change(ratio)} {_sourced(metric, predictive)}"
        for metric in (MACS, LATENCY, ENERGY)
        if (ratio := view.ratio(predictive, metric, every)) is not None
    ]
    if not parts:
        return None
    difference = predictive["accuracy"] - every["accuracy"]
    caution = "; these are not costs at equal accuracy" if unequal(difference, view.loss) else ""
    return (
        f"Predictive exit against every-exit from its best start layer, cost by cost: "
        f"{listing(parts)}, {accuracy_change(difference)}{caution}; it checks "
        f"{figures(predictive['checks'])} heads per sample instead of {figures(every['checks'])}."
    )


def _bound(view: View) -> str | None:
    """How much a predictor without faults would still gain."""
    pair = _predictive_and(view, "perfect-predictor")
    if pair is None or pair[0]["precision"] != pair[1]["precision"]:
        return None
    predictive, perfect = pair
    ratio = view.ratio(perfect, view.metric, predictive)
    if ratio is None:
        return (
            "What better forecasts could gain cannot be said: the cost of a predictor that knew "
            "the truth, or of the best real one, is not known."
        )
    difference = perfect["accuracy"] - predictive["accuracy"]
    if unequal(difference, view.loss):
        conclusion = "what better forecasts could gain is open, as the accuracy is not equal"
    elif ratio >= 1 - NOTICEABLE:
        conclusion = "better forecasts have nothing to gain here"
    elif ratio >= 1 - noticeable(view, predictive["precision"]):
        conclusion = "less than what the replay is known to"
    else:
        conclusion = "more than that no predictor can gain here"
    return (
        "A predictor that knew the truth, chosen in the same way, would need "
        f"{told(view, perfect, view.metric, predictive)} than the best real one, "
        f"{accuracy_change(difference)}: {conclusion}."
    )


def _heads(view: View) -> str | None:
    """The price of checking."""
    rows = cost_rows(view)
    if rows is None or rows[view.metric.column].isna().all():
        return None
    precision = (view.recommended or view.reference or {}).get("precision")
    own = rows[rows["precision"] == precision] if (rows["precision"] == precision).any() else rows
    mean = own.groupby("kind")[view.metric.column].mean()
    if "head" not in mean or not mean.get("segment"):
        return None
    source = f" ({energy_source(own)})" if view.metric is ENERGY else ""
    return (
        f"One check costs {percent(mean['head'] / mean['segment'], 0)} of what the layers between "
        f"two exits cost on average, in {view.metric.noun}{source}."
    )


FAR = 1.5
"""Run over replay, or the reverse, from which on the replay is called no guide."""
TOO_FAR = (
    " So far apart, the replayed costs are no guide: something else was at work while one of them "
    "was measured, or the parts cost other than they do together. Measure again on a quiet machine."
)


def _confirmed(view: View) -> str | None:
    """Whether the recommended setting was really run, and how near the replay was."""
    row = view.recommended
    runs = measured(view)
    if row is None or not runs:
        return None
    role = view.role_of(row)
    for run in runs:
        if role is not None and view.role_of(run) == role and run["precision"] == row["precision"]:
            gaps = {m.noun: (m, g) for m in (LATENCY, ENERGY) if (g := gap(run, m)) is not None}
            told = [f"{change(g, 1)} {_sourced(m, run)}" for m, g in gaps.values()]
            off = f", {listing(told)} against its replay" if told else ""
            far = any(not 1 / FAR <= g <= FAR for _, g in gaps.values())
            return (
                f"The recommended setting was really run ({run_label(view, run)}){off}."
                f"{TOO_FAR if far else ''}"
            )
    return "The recommended setting itself was not really run; its costs are replayed."


def limits(view: View) -> list[str]:
    """What the numbers cannot tell, for this run."""
    chosen_on_test = (
        "The sweep has no calibration rows: the front is found on the test split itself and is "
        "therefore too favourable."
    )
    other = "Other batch sizes and devices have other costs"
    if view.places > 1:
        other += f"; the sweep holds {view.places} such places and this page shows one"
    return [
        *view.run.notes,
        *([chosen_on_test] if view.calibration.empty else []),
        *_sampling(view),
        *([f"{words} {LUCK}"] if (words := chosen_from(view)) else []),
        *_runs_left_out(view),
        *ranking_limits(view),
        *energy_limits(view),
        "Latency and energy in the sweep are replayed: sums of separately measured parts, for "
        f"{place_words(view)}. {other}.",
        *_uncounted(view),
        "Oracle and perfect predictor know the truth beforehand: bounds that cannot be run.",
    ]


def _sampling(view: View) -> list[str]:
    row = view.recommended or view.reference
    if row is None or not row.get("samples"):
        return []
    p, n = row["accuracy"], row["samples"]
    half = half_width(p, n)
    return [
        f"Accuracy comes from {n:,.0f} test samples: {percent(p)} is known to ±{100 * half:.1f} "
        "points (95%, binomial). Differences between settings on the same samples are sharper, "
        "yet tenths of a point should not decide."
    ]


def _runs_left_out(view: View) -> list[str]:
    """Runs of the directory that this page does not show, and runs over a part of the samples."""
    shown = measured(view)
    found = []
    if others := len(view.run.measurements) - len(shown) - len(staged(view)):
        found.append(
            f"{others} measured run{'s' if others > 1 else ''} at another batch size, operating "
            "point or device, or with another runtime, left out."
        )
    whole = int(view.test["samples"].max())
    if parts := sorted({int(row["samples"]) for row in shown if row.get("samples")} - {whole}):
        found.append(
            f"Settings were really run over {listing([f'{n:,}' for n in parts])} of the {whole:,} "
            "test samples. Their costs are those of these; in the figures they are drawn at the "
            "accuracy that their setting has on the whole split."
        )
    return found


def _uncounted(view: View) -> list[str]:
    rows = cost_rows(view)
    if rows is None:
        return []
    names: dict[str, Any] = {
        name.strip(): None
        for cell in rows["uncounted"]
        if cell
        for name in str(cell).replace(";", " ").replace(",", " ").split()
    }
    return [f"Operators whose MACs are not counted: {', '.join(names)}."] if names else []

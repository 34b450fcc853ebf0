"""Numbers and settings in plain words: the only place that turns a value into text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

NONE = "–"

POLICY_WORDS = {
    "full": "the full network",
    "every-exit": "every-exit",
    "predictive": "predictive exit",
    "fixed": "a fixed exit",
    "oracle": "the oracle (earliest correct exit)",
}


def figures(value: float | None, digits: int = 3) -> str:
    """``value`` with ``digits`` significant digits and no exponent; a dash where there is none."""
    if value is None or math.isnan(value):
        return NONE
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(decimals, 9)}f}".replace("-", "−")


def count(value: float | None) -> str:
    """A whole number with thousands set apart."""
    return NONE if value is None or math.isnan(value) else f"{value:,.0f}"


def millions(value: float | None) -> str:
    """A count in millions, as in ``12.3 M``."""
    return NONE if value is None or math.isnan(value) else f"{figures(value / 1e6)} M"


def percent(share: float | None, decimals: int = 1) -> str:
    """A share (0..1) in percent."""
    if share is None or math.isnan(share):
        return NONE
    return f"{100 * share:.{decimals}f}%".replace("-", "−")


def change(ratio: float | None, decimals: int = 0) -> str:
    """A ratio as a signed change in percent: 0.38 is ``−62%``."""
    if ratio is None or math.isnan(ratio):
        return NONE
    value = round(100 * (ratio - 1), decimals)
    return f"±{0:.{decimals}f}%" if value == 0 else f"{value:+.{decimals}f}%".replace("-", "−")


def points(difference: float | None) -> str:
    """A difference of two shares as signed percentage points: −0.008 is ``−0.8``."""
    if difference is None or math.isnan(difference):
        return NONE
    value = round(100 * difference, 1)
    return "±0.0" if value == 0 else f"{value:+.1f}".replace("-", "−")


def saving(ratio: float | None, noun: str) -> str:
    """A ratio of two costs in words that go before "than": ``62% less energy``."""
    if ratio is None or math.isnan(ratio):
        return f"an unknown change in {noun}"
    share = round(100 * abs(1 - ratio))
    less = "fewer" if noun == "MACs" else "less"
    size = f"{share}%" if share or ratio == 1 else "under 0.5%"
    return f"{size} {less if ratio <= 1 else 'more'} {noun}"


def point_words(share: float) -> str:
    """A share of accuracy as percentage points: ``1 point``, ``0.5 points``."""
    value = f"{100 * share:.3g}"
    return f"{value} point" if value == "1" else f"{value} points"


def accuracy_change(difference: float | None) -> str:
    """A change of accuracy in words: ``at 0.8 points less accuracy``."""
    if difference is None or math.isnan(difference):
        return "at an accuracy that was not compared"
    value = round(100 * difference, 1)
    if value == 0:
        return "at the same accuracy"
    unit = "point" if abs(value) == 1 else "points"
    return f"at {abs(value):.1f} {unit} {'less' if value < 0 else 'more'} accuracy"


def beta_words(beta: float | None) -> str:
    """Beta with the six digits that it is replayed with, so that a copied value is the same."""
    return NONE if beta is None else f"{beta:.6g}"


def setting_words(row: Mapping[str, Any], names: list[str], *, precision: bool = True) -> str:
    """A setting as a phrase: policy, predictor, criterion, beta, first check, precision."""
    policy = str(row["policy"])
    words = [POLICY_WORDS.get(policy, policy)]
    if row.get("predictor"):
        words[0] += f" ({row['predictor']} predictor)"
    if row.get("criterion"):
        words.append(str(row["criterion"]))
    if row.get("beta") is not None:
        words.append(f"beta {beta_words(row['beta'])}")
    if row.get("start_layer") is not None:
        place = exit_words(int(row["start_layer"]), names)
        words.append(place if policy == "fixed" else f"first check at {place}")
    if precision:
        words[0] += f" in {row['precision']}"
    return ", ".join(words)


def exit_words(number: int, names: list[str]) -> str:
    """An exit by number and name: ``exit 6 (conv5)``."""
    if number == len(names):
        return "the classifier"
    name = names[number - 1] if 0 < number < len(names) else ""
    plain = name.replace(" ", "") in ("", f"exit{number}", str(number))
    return f"exit {number}" if plain else f"exit {number} ({name})"


def listing(items: list[str]) -> str:
    """Items as ``a, b and c``."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"

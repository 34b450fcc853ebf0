"""How sure the choice of the recommended setting is, and when two accuracies are not equal."""

from __future__ import annotations

import math

from .view import View, realisable
from .words import percent, point_words


def unequal(difference: float, loss: float) -> bool:
    """Whether two accuracies on the test split are too far apart to compare costs alone.

    Both settings kept the limit on the calibration split; half of the allowed loss between them on
    the test split is too much to call that equal accuracy. All are shares (0..1).
    """
    return abs(difference) > loss / 2


def half_width(accuracy: float, samples: float) -> float:
    """Half of the 95% interval of an accuracy (share) from so many samples: normal, binomial."""
    return 1.96 * math.sqrt(accuracy * (1 - accuracy) / samples)


def chosen_from(view: View) -> str | None:
    """The calibration split's size and error, and among how many settings was chosen there."""
    row = view.recommended
    if row is None or view.calibration.empty:
        return None
    own = view.calibration[view.calibration["key"] == row["key"]]
    if own.empty or not own["samples"].iloc[0]:
        return None
    accuracy, samples = float(own["accuracy"].iloc[0]), int(own["samples"].iloc[0])
    allowed = view.loss * samples
    images = "less than one image" if allowed < 1 else f"{allowed:,.0f} image"
    images += "s" if allowed >= 1.5 else ""
    return (
        f"Chosen as the cheapest of {len(realisable(view.calibration)):,} settings on {samples:,} "
        f"calibration images. Its accuracy there, {percent(accuracy)}, is known to "
        f"±{100 * half_width(accuracy, samples):.1f} points (95%, binomial); the allowed "
        f"{point_words(view.loss)} {'are' if view.loss != 0.01 else 'is'} {images} there."
    )

"""The power of the device with nothing to do, by the meter that measures the work.

What is left of an energy above idle power x time is its net energy. It may be negative: idle power
drifts with the temperature, and a floor at 0 would hide that.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .meters.base import Meter, Source, minimum_window_s
from .timing import median_interval

_WINDOWS = 6  # the least that give a 95% interval
_SETTLE_SHARE = 0.2  # of the measured time, before it: caches, clocks and fans calm down
_SETTLE_GPU_S = 5.0  # a card holds its clocks up for some seconds after its work
_DRIFT = 0.05

Sleep = Callable[[float], None]


@dataclass(frozen=True)
class Idle:
    """Idle power.

    Attributes:
        power_w: median over windows in watts; None is unknown.
        source: where it comes from; ``unavailable`` where it is unknown.
        interval_w: 95% interval of the median; None with fewer than 6 windows or if not measured.
        note: what there is to say of it, one sentence; may be empty.
    """

    power_w: float | None = None
    source: Source = "unavailable"
    interval_w: tuple[float, float] | None = None
    note: str = ""


UNKNOWN = Idle()


def idle_takes_s(meter: Meter, seconds: float) -> float:
    """How long ``measure_idle`` takes."""
    if getattr(meter, "idle_w", None) is not None or meter.source != "measured":
        return 0.0
    window_s, windows = _windows(meter, seconds)
    return _settle_s(meter, seconds) + windows * window_s


def measure_idle(meter: Meter, seconds: float, *, sleep: Sleep = time.sleep) -> Idle:
    """The idle power that ``meter`` reads in about ``seconds``, with nothing running.

    Modelled power is that of the hardware profile, without waiting. Windows span at least 50
    updates of the counter, so it takes longer than ``seconds`` where that needs longer.

    Args:
        meter: a meter; one whose energies are all modelled knows ``idle_w``.
        seconds: the time to measure for.
        sleep: waits.
    """
    idle_w: float | None = getattr(meter, "idle_w", None)
    if idle_w is not None:
        return Idle(idle_w, "modelled")
    if meter.source != "measured":
        words = "the hardware profile does not say it"
        return Idle(note=f"idle power unknown: {meter.name} cannot measure it and {words}")
    return _measured(meter, seconds, sleep)


def _measured(meter: Meter, seconds: float, sleep: Sleep) -> Idle:
    window_s, windows = _windows(meter, seconds)
    sleep(_settle_s(meter, seconds))
    powers: list[float] = []
    notes: list[str] = []
    for _ in range(windows):
        window = meter.open()
        sleep(window_s)
        reading = window.close()
        joules = reading.total_j
        if joules is None or reading.seconds <= 0:
            notes.append(reading.note or "its windows could not be resolved")
        else:
            powers.append(joules / reading.seconds)
            notes += reading.flags
    note = f"while idle: {'; '.join(dict.fromkeys(notes))}" if notes else ""
    if not powers:
        return Idle(note=f"idle power unknown: {notes[0]}")
    return Idle(float(np.median(powers)), "measured", median_interval(powers), note)


def _settle_s(meter: Meter, seconds: float) -> float:
    least_s = _SETTLE_GPU_S if "gpu" in meter.domains else 0.0
    return max(_SETTLE_SHARE * seconds, least_s)


def _windows(meter: Meter, seconds: float) -> tuple[float, int]:
    """Length and number of the windows: 50 updates of the counter, or a sixth of the time."""
    window_s = max(minimum_window_s(meter), seconds / _WINDOWS)
    return window_s, max(1, round(seconds / window_s))


def between(before: Idle, after: Idle) -> Idle:
    """One idle power from those before and after the work; says so where it has drifted.

    Either one is taken where the other is unknown.
    """
    if before.power_w is None or after.power_w is None:
        return after if before.power_w is None else before
    mean_w = (before.power_w + after.power_w) / 2
    ends = [
        *(before.interval_w or (before.power_w,)),
        *(after.interval_w or (after.power_w,)),
    ]
    notes = [note for note in (before.note, after.note) if note]
    change = (after.power_w - before.power_w) / before.power_w if before.power_w else 0.0
    if abs(change) > _DRIFT:
        notes.append(
            f"idle power went from {before.power_w:.4g} W to {after.power_w:.4g} W ({change:+.1%}) "
            "during the measurement; net energies hang on it: let the device warm up first"
        )
    interval = (min(ends), max(ends)) if before.source == "measured" else None
    note = "; ".join(dict.fromkeys(notes))
    return Idle(mean_w, before.source, interval, note)

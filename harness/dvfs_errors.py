"""How far the clock model is from published measurements that it was not fitted to.

A800: priced by the profile of the A100, as it is, and with the A800's own power at its top clock.
AGX Xavier: each network is anchored at its own latency and power in MAXN. Everything else is what
the shipped profiles and ``dvfs.DEFAULTS`` say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from statistics import fmean

from ..profiles.loading import load_profile
from ..profiles.schema import Profile
from .dvfs import Point, dvfs_of, find_point
from .published import A800_POWER_W, XAVIER_MODES

_ANCHOR = "MAXN"
_SHOWN = {
    "AGX Xavier, three lower modes": ("MODE_30W_ALL", "MODE_15W", "MODE_10W"),
    "of these the 10 W mode, half the GPU off": ("MODE_10W",),
}


@dataclass(frozen=True)
class ModelError:
    """Errors of one quantity on one device, as shares of what was measured.

    Attributes:
        device: whose measurements.
        quantity: ``power``, ``latency``, ``energy`` or ``idle power``.
        count: how many of them.
        mean: of the errors without their signs.
        bias: of the errors with their signs; above 0 the model says too much.
        worst: the largest without its sign, and where that is.
    """

    device: str
    quantity: str
    count: int
    mean: float
    bias: float
    worst: float
    worst_at: str


@cache
def model_errors() -> tuple[ModelError, ...]:
    """The errors of the model against each set of measurements in ``published.py``."""
    a100, xavier = load_profile("nvidia-a100"), load_profile("jetson-agx-xavier")
    top = max(A800_POWER_W)
    below = {mhz: watts for mhz, watts in A800_POWER_W.items() if mhz < top}
    anchored = _anchored(a100, A800_POWER_W[top])
    rows = [
        _row("A800, power of the A100's profile", "power", _a800(a100, A800_POWER_W)),
        _row("A800, anchored at its top clock", "power", _a800(anchored, below)),
    ]
    for device, modes in _SHOWN.items():
        found = [_xavier(xavier, mode) for mode in modes]
        for quantity in ("power", "latency", "energy"):
            errors = {where: value for each in found for where, value in each[quantity].items()}
            rows.append(_row(device, quantity, errors))
    idle_w = XAVIER_MODES[_ANCHOR].idle_w
    idle = {name: idle_w / mode.idle_w - 1 for name, mode in XAVIER_MODES.items()}
    del idle[_ANCHOR]
    return (*rows, _row("AGX Xavier, three lower modes", "idle power", idle))


def error_table() -> list[str]:
    """The errors as lines of a Markdown table."""
    lines = [
        "| measured on | quantity | values | mean error | bias | worst |",
        "|---|---|---|---|---|---|",
    ]
    for each in model_errors():
        shares = f"{each.mean:.1%} | {each.bias:+.1%} | {each.worst:.1%} ({each.worst_at})"
        lines.append(f"| {each.device} | {each.quantity} | {each.count} | {shares} |")
    return lines


def model_error_words() -> str:
    """One sentence to stand beside modelled figures."""
    power, latency, energy = (
        _shares(_found("AGX Xavier", quantity)) for quantity in ("power", "latency", "energy")
    )
    return (
        "On published measurements that it was not fitted to, the clock model was off by "
        f"{_shares(_found('A800, anchored', 'power'))} in power at the clocks of an A800, and over "
        f"the modes of an AGX Xavier by {power} in power, {latency} in latency and {energy} in "
        f"energy; idle power, which it keeps constant, by {_found('AGX Xavier', 'idle').mean:.0%}"
    )


def model_error_share() -> float:
    """The larger mean error of the model in power (A800) and energy (AGX Xavier), as a share.

    Energies at two clocks that lie closer together than this cannot be told apart by the model.
    """
    return max(_found("A800, anchored", "power").mean, _found("AGX Xavier", "energy").mean)


def _found(device: str, quantity: str) -> ModelError:
    return next(
        each
        for each in model_errors()
        if each.device.startswith(device) and each.quantity.startswith(quantity)
    )


def _shares(error: ModelError) -> str:
    return f"{error.mean:.0%} on average (worst {error.worst:.0%})"


def _row(device: str, quantity: str, errors: Mapping[str, float]) -> ModelError:
    sizes = {where: abs(error) for where, error in errors.items()}
    worst_at = max(sizes, key=lambda where: sizes[where])
    mean, bias = fmean(sizes.values()), fmean(errors.values())
    return ModelError(device, quantity, len(errors), mean, bias, sizes[worst_at], worst_at)


def _a800(profile: Profile, measured: Mapping[float, float]) -> dict[str, float]:
    model, top = dvfs_of(profile, "gpu"), max(A800_POWER_W)
    return {
        f"{mhz:g} MHz": model.power_w(Point("", {}, mhz / top)) / watts - 1
        for mhz, watts in measured.items()
    }


def _xavier(profile: Profile, mode: str) -> dict[str, dict[str, float]]:
    point = find_point(profile, "gpu", mode)
    errors: dict[str, dict[str, float]] = {"power": {}, "latency": {}, "energy": {}}
    for network, measured in XAVIER_MODES[mode].runs.items():
        anchor = XAVIER_MODES[_ANCHOR].runs[network]
        model = dvfs_of(_anchored(profile, anchor.power_w), "gpu")
        power_w = model.power_w(point)
        latency_s = anchor.latency_s * model.time_factor(point)
        where = f"{network}, {mode}"
        errors["power"][where] = power_w / measured.power_w - 1
        errors["latency"][where] = latency_s / measured.latency_s - 1
        errors["energy"][where] = power_w * latency_s / measured.energy_j - 1
    return errors


def _anchored(profile: Profile, active_w: float) -> Profile:
    power = profile.power["gpu"]
    figure = replace(power.active_w, value=active_w, source="the measurement itself")
    return replace(profile, power={**profile.power, "gpu": replace(power, active_w=figure)})

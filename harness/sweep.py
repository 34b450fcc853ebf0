"""The sweep: thousands of settings replayed over the traces and priced with the cost table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .calibration import thresholds
from .costs import Prices
from .criteria import CRITERIA
from .errors import ExitbenchError
from .replay import Replayed, replay, replay_starts
from .settings import Setting, make_policy
from .trace import Trace

SETTING_COLUMNS = ("policy", "criterion", "beta", "start_layer", "predictor", "precision")


@dataclass(frozen=True)
class Grid:
    """The axes of a sweep. ``beta`` None means a grid chosen from the calibration split."""

    policies: tuple[str, ...]
    criteria: tuple[str, ...]
    betas: tuple[float, ...] | None
    beta_count: int
    start_layers: tuple[int, ...] | None
    predictors: tuple[str, ...]


@dataclass(frozen=True)
class Traces:
    """The two traces of one precision, and the thresholds taken from the first."""

    calibration: Trace
    test: Trace
    scales: dict[str, NDArray[np.float64]] = field(init=False)

    def __post_init__(self) -> None:
        first, second = self.calibration.meta, self.test.meta
        for name in ("precision", "exits", "classes", "network", "kernel", "horizon"):
            if getattr(first, name) != getattr(second, name):
                raise ExitbenchError(
                    f"{self.calibration.path} and {self.test.path} differ in {name} "
                    f"({getattr(first, name)} and {getattr(second, name)}); record them again "
                    "together"
                )
        object.__setattr__(self, "scales", thresholds(self.calibration))


def auto_betas(trace: Trace, criterion: str, scale: NDArray[Any], count: int) -> list[float]:
    """Values of beta that span the useful range of a criterion.

    They are quantiles of confidence / T over all exits and samples of the calibration split, so
    from one value to the next about as many more samples stay; the upper quantiles, where little
    accuracy is lost, are denser. The last value lies above every confidence: nobody leaves.
    """
    ratios = _ratios(trace, criterion, scale)
    levels = 1 / (1 + np.exp(-np.linspace(-3.0, 7.5, max(1, count - 1))))
    values = [*np.quantile(ratios, levels).tolist(), float(ratios.max()) * 1.0001]
    # Six digits, so that a value copied from a table is the value that was replayed.
    return sorted({float(f"{value:.6g}") for value in values if value > 0})


def median_beta(trace: Trace, criterion: str, scale: NDArray[Any]) -> float:
    """The beta that half of the confidences reach, over all exits and samples."""
    return float(f"{np.median(_ratios(trace, criterion, scale)):.6g}")


def _ratios(trace: Trace, criterion: str, scale: NDArray[Any]) -> NDArray[np.float64]:
    """confidence / T over all samples, of the exits where that means something."""
    usable = scale > 0
    if not usable.any():
        raise ExitbenchError(
            f"no exit has a positive threshold under the criterion {criterion!r}, so no beta "
            "makes sense; choose softmax, margin or entropy"
        )
    return (trace.confidence(criterion)[usable] / scale[usable, None]).ravel()


def replay_grid(
    grid: Grid, traces: Traces, precision: str, split: str, say: Callable[[str], None]
) -> Iterator[Replayed]:
    """Every setting of the grid on one split."""
    trace = traces.test if split == "test" else traces.calibration
    exits = trace.meta.exits
    starts = list(grid.start_layers or range(1, exits + 1))
    if wrong := [start for start in starts if not 1 <= start <= exits]:
        raise ExitbenchError(f"start layers {wrong} do not exist; this network has 1 to {exits}")
    for policy in ("full", "oracle"):
        if policy in grid.policies:
            yield _one(Setting(policy, precision=precision), traces, trace)
    if "fixed" in grid.policies:
        for exit in range(1, exits + 1):
            yield _one(Setting("fixed", start_layer=exit, precision=precision), traces, trace)
    kinds = _kinds(grid)
    for criterion in grid.criteria if kinds else ():
        betas = grid.betas
        if betas is None:
            scale = traces.scales[criterion]
            betas = tuple(auto_betas(traces.calibration, criterion, scale, grid.beta_count))
        say(f"sweep {precision} {split}: {criterion}, {len(betas)} values of beta, "
            f"{len(starts)} start layers")
        for beta in betas:
            for policy, predictor in kinds:
                setting = Setting(policy, criterion, beta, None, predictor, precision)
                yield from replay_starts(
                    setting, starts, traces.scales, traces.calibration, trace
                )
        traces.calibration.forget(criterion)
        traces.test.forget(criterion)


def _one(setting: Setting, traces: Traces, trace: Trace) -> Replayed:
    policy = make_policy(setting, trace.meta.exits, traces.scales, traces.calibration, trace)
    return replay(setting, policy, trace)


def _kinds(grid: Grid) -> list[tuple[str, str | None]]:
    kinds: list[tuple[str, str | None]] = []
    if "every-exit" in grid.policies:
        kinds.append(("every-exit", None))
    if "predictive" in grid.policies:
        kinds += [("predictive", predictor) for predictor in grid.predictors]
    return kinds


def table(replayed: Sequence[Replayed], prices: Prices, split: str) -> pd.DataFrame:
    """One row per replayed setting of one precision and split, priced.

    Costs are means per sample. What the cost table does not know is NaN.
    """
    histogram = np.stack([row.histogram for row in replayed])
    checks = np.stack([row.checks for row in replayed])
    forecasts = np.stack([row.forecasts for row in replayed])
    samples = int(histogram[0].sum())
    frame = pd.DataFrame(
        {name: [getattr(row.setting, name) for row in replayed] for name in SETTING_COLUMNS}
    )
    frame.insert(0, "split", split)
    frame["samples"] = samples
    frame["accuracy"] = [row.accuracy for row in replayed]
    for quantity, cost in price(histogram, checks, forecasts, prices).items():
        frame[quantity] = cost
    frame["energy_source"] = frame.energy_mj.map(prices.source_of)
    frame["latency_source"] = frame.latency_ms.map(prices.latency_source_of)
    exits_run = np.arange(1, histogram.shape[1] + 1)
    frame["mean_exit"] = histogram @ exits_run / samples
    frame["checks"] = checks.sum(1) / samples
    frame["prediction_accuracy"] = [row.prediction_accuracy for row in replayed]
    frame["exit_histogram"] = [" ".join(map(str, row.histogram.tolist())) for row in replayed]
    full = frame.loc[frame.policy == "full", "macs"]
    frame["macs_saved_full"] = 1 - frame.macs / full.iloc[0] if len(full) else np.nan
    return frame


def price(
    histogram: NDArray[Any], checks: NDArray[Any], forecasts: NDArray[Any], prices: Prices
) -> dict[str, NDArray[np.float64]]:
    """Mean cost per sample of S settings by quantity, (S,); NaN where a price is not known.

    A sample pays every segment up to where it left, every head it was checked at, every forecast
    it asked for, and the classifier if it reached it.

    Args:
        histogram: (S, E + 1) samples that left at each exit.
        checks: (S, E) heads run.
        forecasts: (S, E) forecasts paid for.
    """
    return prices.price(
        segments=histogram[:, ::-1].cumsum(1)[:, ::-1],
        heads=checks,
        forecasts=forecasts,
        classifier=histogram[:, -1],
        samples=histogram.sum(1),
    )


def saved_every_exit(
    calibration: pd.DataFrame, test: pd.DataFrame
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """1 - MACs / those of every row's every-exit partner: (S,) for either split.

    The partner is the cheapest every-exit from exit 1 that is at least as accurate as the row's
    setting on the calibration split, for both splits; NaN where there is none. Taken on the test
    split, it would be the baseline that was luckiest there.

    Args:
        calibration: rows of ``table``.
        test: the same settings in the same order, on the test split.
    """
    assert calibration[list(SETTING_COLUMNS)].reset_index(drop=True).equals(
        test[list(SETTING_COLUMNS)].reset_index(drop=True)
    )
    classic = np.flatnonzero((calibration.policy == "every-exit") & (calibration.start_layer == 1))
    if not len(classic):
        return np.full(len(calibration), np.nan), np.full(len(test), np.nan)
    accuracy, macs = calibration.accuracy.to_numpy(), calibration.macs.to_numpy(float)
    # From the most accurate down; of equal accuracies the cheaper first.
    ordered = classic[np.lexsort((macs[classic], -accuracy[classic]))]
    cheapest = np.minimum.accumulate(macs[ordered])
    partner = ordered[np.searchsorted(-cheapest, -cheapest, side="left")]
    reach = np.searchsorted(-accuracy[ordered], -accuracy, side="right")
    known, chosen = reach > 0, partner[np.maximum(reach, 1) - 1]
    first, second = (
        np.where(known, 1 - own / own[chosen], np.nan) for own in (macs, test.macs.to_numpy(float))
    )
    return first, second


def check_criteria(names: Sequence[str]) -> None:
    """Refuse criteria that do not exist."""
    if wrong := [name for name in names if name not in CRITERIA]:
        raise ExitbenchError(f"criteria {wrong} do not exist; known are {', '.join(CRITERIA)}")


def parse_betas(values: Sequence[str]) -> tuple[float, ...] | None:
    """Numbers, or None for ``auto``.

    Raises:
        ExitbenchError: a value is neither.
    """
    if list(values) == ["auto"]:
        return None
    try:
        betas = tuple(float(value) for value in values)
    except ValueError as error:
        raise ExitbenchError(
            f"beta is {' '.join(values)}; give numbers above 0, or the single word auto"
        ) from error
    if not betas or any(not np.isfinite(beta) or beta <= 0 for beta in betas):
        raise ExitbenchError(f"beta is {' '.join(values)}; every value must be above 0")
    return betas


def sweep(
    grid: Grid,
    traces: Mapping[str, Traces],
    prices: Mapping[str, Prices],
    say: Callable[[str], None],
) -> pd.DataFrame:
    """The sweep over every precision and both splits: the rows of sweep.csv, unmarked."""
    check_criteria(grid.criteria)
    frames = []
    for precision, pair in traces.items():
        priced = []
        for split in ("calibration", "test"):
            rows = list(replay_grid(grid, pair, precision, split, say))
            if not rows:
                raise ExitbenchError("the sweep has no settings; name at least one policy")
            priced.append(table(rows, prices[precision], split))
        for frame, saved in zip(priced, saved_every_exit(*priced), strict=True):
            frame["macs_saved_every_exit"] = saved
        frames += priced
    return pd.concat(frames, ignore_index=True)

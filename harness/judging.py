"""How well a predictor forecasts: forecast jump against true jump, by start layer.

The true jump leads to the first later exit at which the sample really would leave, or to the
classifier. A forecast is a hit when it names exactly that exit; a forecast of the whole horizon
because nothing was found within it (or to the classifier, where that is nearer) is a hit only if
that is the true jump.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .replay import decide_all
from .settings import Setting, make_policy, true_leaves
from .trace import Trace


@dataclass(frozen=True)
class Judged:
    """The forecasts made at one start layer.

    Attributes:
        start_layer: the exit at which the forecasts were made.
        confusion: counts of forecast jump (row, from 1) against true jump (column, from 1).
    """

    start_layer: int
    confusion: NDArray[np.int64]

    @property
    def forecasts(self) -> int:
        """How many samples stayed at the start layer and got a forecast."""
        return int(self.confusion.sum())

    @property
    def hits(self) -> int:
        """How many forecasts named the right exit."""
        return int(self.confusion.trace())

    @property
    def accuracy(self) -> float | None:
        """Hits over forecasts; None if there was none."""
        return self.hits / self.forecasts if self.forecasts else None


def judge(
    setting: Setting,
    trace: Trace,
    scales: Mapping[str, NDArray[Any]],
    calibration: Trace,
    start_layers: Sequence[int],
) -> list[Judged]:
    """The forecasts of a predictive setting's predictor, made at each start layer in turn."""
    assert setting.criterion is not None
    exits = trace.meta.exits
    policy = make_policy(setting, exits, scales, calibration, truth_of=trace)
    following = decide_all(policy, trace, setting.criterion).astype(np.int64)
    known = true_leaves(setting, trace, scales)
    assert known is not None
    leaves = known.astype(np.int64)
    judged = []
    for start in start_layers:
        stay = following[start - 1] != start
        confusion = np.zeros((exits, exits), dtype=np.int64)
        forecast, true = following[start - 1, stay] - start, leaves[start - 1, stay] - start
        np.add.at(confusion, (forecast - 1, true - 1), 1)
        judged.append(Judged(start, confusion))
    return judged


def tables(
    setting: Setting, split: str, judged: Sequence[Judged]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of prediction.csv and of prediction_confusion.csv for one setting."""
    key = {
        "criterion": setting.criterion,
        "beta": setting.beta,
        "predictor": setting.predictor,
        "precision": setting.precision,
        "split": split,
    }
    rows = [
        {
            **key,
            "start_layer": item.start_layer,
            "forecasts": item.forecasts,
            "hits": item.hits,
            "prediction_accuracy": item.accuracy,
        }
        for item in judged
    ]
    cells = [
        {
            **key,
            "start_layer": item.start_layer,
            "forecast_jump": int(forecast) + 1,
            "true_jump": int(true) + 1,
            "count": int(item.confusion[forecast, true]),
        }
        for item in judged
        for forecast, true in np.argwhere(item.confusion)
    ]
    columns = [*key, "start_layer", "forecast_jump", "true_jump", "count"]
    return pd.DataFrame(rows), pd.DataFrame(cells, columns=columns)

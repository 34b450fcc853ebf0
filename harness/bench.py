"""What settings are run on, and a setting on its way to a measurement."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .costs import Prices
from .evidence import IntArray
from .manner import Manner
from .meters.base import Meter
from .passes import Pass
from .policies import Policy
from .scheduler import LayerStatistics, Outcome
from .settings import Setting
from .subject import Subject
from .sweep import Traces


@dataclass
class Live:
    """A setting made ready to run, with what its passes gave.

    Attributes:
        setting: what is run.
        policy: made from the calibration trace; knows no truth.
        outcome: the decisions, from the first pass.
        statistics: ``stat_each_layer``, from the first pass.
        passes: the timed passes.
    """

    setting: Setting
    policy: Policy
    outcome: Outcome | None = None
    statistics: LayerStatistics | None = None
    passes: list[Pass] = field(default_factory=list)


@dataclass(frozen=True)
class Bench:
    """All that the settings of one precision are run on.

    Attributes:
        subject: network and data.
        prepared: the network in that precision.
        traces: its traces; thresholds come from the calibration trace.
        prices: its prices, for the replay beside the run.
        meter: reads the energy of a timed stretch.
        batch_size: images per batch.
        positions: the images of the test split that are run.
        manner: how they are run.
    """

    subject: Subject
    prepared: Any
    traces: Traces
    prices: Prices
    meter: Meter
    batch_size: int
    positions: IntArray
    manner: Manner = field(default_factory=Manner)

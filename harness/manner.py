"""The manner in which settings are run: how long, in which scene, by which governor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .governors import Governor, LiveSteer, OperatingTable, Session, make_governor, outlook_of
from .idle import UNKNOWN, Idle
from .meters.base import Meter, minimum_window_s
from .passes import Pass
from .policies import Policy
from .scenes import CONTINUOUS, Scene
from .tiers import Tier
from .windows import within


@dataclass(frozen=True)
class Governing:
    """A governor over runs.

    Attributes:
        name: key of ``GOVERNORS``.
        table: what a request costs at every operating point, in one precision.
        deadline_s: time allowed per request.
        operating_point: of the governor ``fixed``, else None.
        session: sets the clocks; None simulates, and prices time and energy by the table.
        levels: where the clock levels come from, in words; empty where clocks are set.
    """

    name: str
    table: OperatingTable
    deadline_s: float
    operating_point: str | None = None
    session: Session | None = None
    levels: str = ""

    @property
    def clocks(self) -> str:
        """``simulated`` or ``device``."""
        return "simulated" if self.session is None else "device"

    def governor(self, policy: Policy) -> Governor:
        """The governor for a policy."""
        return make_governor(
            self.name,
            self.table,
            self.deadline_s,
            outlook=outlook_of(policy),
            operating_point=self.operating_point,
        )

    def steer(self, policy: Policy) -> LiveSteer:
        """Sets the clocks of one pass."""
        return LiveSteer(self.governor(policy), self.table, self.session)


@dataclass(frozen=True)
class Manner:
    """How settings are run.

    Attributes:
        tier: how long, where a counter reads the energy; None: as often as asked for.
        scene: when requests come.
        idle: power of the device with nothing to do.
        governing: sets the clocks; None: they are left as they are.
        rebatch_wait: throughput mode: what is left of several batches runs on together, and a
            sample has its answer before more than so many further batches are fed; None: each
            batch by itself.
    """

    tier: Tier | None = None
    scene: Scene = CONTINUOUS
    idle: Idle = UNKNOWN
    governing: Governing | None = None
    rebatch_wait: int | None = None

    @property
    def simulated(self) -> bool:
        """Whether time and energy are priced by operating points instead of measured."""
        return self.governing is not None and self.governing.session is None


@dataclass(frozen=True)
class Windows:
    """How wide the windows of a setting's timed passes are, and how many there are.

    Attributes:
        floor_s: a pass that is shorter is repeated within its window.
        least: timed passes.
        cap_s: measured time after which ``target`` is given up.
        target: go on until the 95% interval of the median is within this share of it; None:
            ``least`` are enough.
    """

    floor_s: float
    least: int
    target: float | None = None
    cap_s: float = 0.0

    def suffice(self, passes: Sequence[Pass]) -> bool:
        """Whether a setting has been run often enough."""
        if len(passes) < self.least:
            return False
        if self.target is None or sum(each.window_s for each in passes) >= self.cap_s:
            return True
        return settled(passes, self.target)


def plan(manner: Manner, meter: Meter, repeats: int) -> Windows:
    """The timed passes of every setting.

    Args:
        repeats: how many are asked for; a tier may ask for more.
    """
    if manner.simulated:
        return Windows(0.0, 1)
    narrowest_s, tier = minimum_window_s(meter), manner.tier
    if tier is None:
        return Windows(narrowest_s, repeats)
    floor_s = max(narrowest_s, tier.window_s)
    return Windows(floor_s, max(repeats, tier.windows), tier.interval, tier.cap_s)


def settled(passes: Sequence[Pass], target: float) -> bool:
    """Whether the 95% interval of the median is within ``target`` of it.

    That of the energy; of the time where an energy is not resolved.
    """
    joules = [each.reading.total_j for each in passes]
    known = [value for value in joules if value is not None]
    values = known if len(known) == len(passes) else [each.reading.seconds for each in passes]
    return within(values, target)

"""How requests come: one right after another, or one per period, with the device idle between.

    slot       |0        |1        |2        |3        |4
    serving    ####......#####.....############........###   . asleep until the next slot
                                             ^ request 3 is late: 2 was still being served

Slots are counted from the start, so that neither a late request nor a late awakening moves those
that follow. The last period is waited for as well: its idle belongs to its request.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Scene:
    """When requests come.

    Attributes:
        period_s: a request every so many seconds; None: one right after another.
        awake: wait busily instead of asleep, as the baseline of the paper's program does.
        clock: a monotonic clock in seconds.
        sleep: sleeps for so many seconds; may wake too early.
    """

    period_s: float | None = None
    awake: bool = False
    clock: Callable[[], float] = time.perf_counter
    sleep: Callable[[float], None] = time.sleep

    @property
    def name(self) -> str:
        """``continuous`` or ``periodic``."""
        return "continuous" if self.period_s is None else "periodic"

    @property
    def period_ms(self) -> float | None:
        """The period as files hold it; rounded, so that it is read as it was given."""
        return None if self.period_s is None else round(self.period_s * 1e3, 9)


CONTINUOUS = Scene()


@dataclass(frozen=True)
class Paced:
    """What became of requests that came one per period.

    Attributes:
        period_s: the period.
        response_s: per request, from its slot to its answer: waiting for an earlier one included.
        busy_s: per request, from its start to its answer.
        late: requests that could not start at their slot, because an earlier one was not done.
        span_s: from the first slot to the end of the last period, or to the last answer if later.
    """

    period_s: float
    response_s: tuple[float, ...]
    busy_s: tuple[float, ...]
    late: int
    span_s: float

    @property
    def keeps_up(self) -> bool:
        """Whether requests are served as fast as they come, in the mean."""
        return sum(self.busy_s) <= self.period_s * len(self.busy_s)

    @property
    def busy_share(self) -> float:
        """Share of the span in which a request was served."""
        return min(1.0, sum(self.busy_s) / self.span_s) if self.span_s > 0 else 1.0


def pace(scene: Scene, requests: int, serve: Callable[[int], object]) -> Paced:
    """Serve ``requests`` requests, one per period, and wait out the last one's period.

    Args:
        serve: called with 0, 1, ...; returns when the answer is there, on every device.
    """
    assert scene.period_s is not None, "a continuous scene has no period"
    clock, start_s = scene.clock, scene.clock()
    response, busy, late, done_s = [], [], 0, start_s
    for number in range(requests):
        slot_s = start_s + number * scene.period_s
        late += done_s > slot_s
        _wait_until(scene, slot_s)
        begun_s = clock()
        serve(number)
        done_s = clock()
        response.append(done_s - slot_s)
        busy.append(done_s - begun_s)
    _wait_until(scene, start_s + requests * scene.period_s)
    return Paced(scene.period_s, tuple(response), tuple(busy), late, clock() - start_s)


def paced_by_prices(period_s: float, service_s: Sequence[float]) -> Paced:
    """What would become of requests that each take so long, where time is priced, not spent."""
    response, late, done_s = [], 0, 0.0
    for number, seconds in enumerate(service_s):
        slot_s = number * period_s
        late += done_s > slot_s
        done_s = max(done_s, slot_s) + seconds
        response.append(done_s - slot_s)
    span_s = max(done_s, period_s * len(service_s))
    return Paced(period_s, tuple(response), tuple(service_s), late, span_s)


def _wait_until(scene: Scene, due_s: float) -> None:
    while (left_s := due_s - scene.clock()) > 0:
        if not scene.awake:
            scene.sleep(left_s)

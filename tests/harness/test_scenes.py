"""Requests one per period: an absolute schedule, asleep between, late ones counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
from exitbench.harness.scenes import CONTINUOUS, Scene, pace, paced_by_prices


@dataclass
class Machine:
    """A clock that only work and sleep move."""

    now_s: float = 50.0
    wakes_s: float = 0.0  # later than asked for; below 0: earlier
    slept: list[float] = field(default_factory=list)

    def clock(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        # However early it wakes, a nap takes some time.
        self.now_s += max(seconds + self.wakes_s, seconds / 2)

    def works(self, *seconds: float) -> Callable[[int], None]:
        """Serves request i in the i-th of these times."""

        def serve(number: int) -> None:
            self.now_s += seconds[number]

        return serve

    def scene(self, period_s: float) -> Scene:
        return Scene(period_s, clock=self.clock, sleep=self.sleep)


def test_a_request_comes_every_period_and_the_device_sleeps_between() -> None:
    machine = Machine()
    paced = pace(machine.scene(1.0), 3, machine.works(0.25, 0.5, 0.125))
    assert paced.busy_s == paced.response_s == (0.25, 0.5, 0.125)
    assert machine.slept == [0.75, 0.5, 0.875]  # the idle after the last request is its own
    assert paced.span_s == 3.0
    assert (paced.late, paced.keeps_up) == (0, True)
    assert paced.busy_share == pytest.approx(0.875 / 3)


def test_waking_late_moves_no_later_slot() -> None:
    machine = Machine(wakes_s=0.01)
    paced = pace(machine.scene(1.0), 100, machine.works(*[0.25] * 100))
    # Every request but the first starts 10 ms after its slot; the last wait ends as late as one.
    assert paced.response_s[0] == 0.25
    assert paced.response_s[1:] == pytest.approx([0.26] * 99)
    assert paced.span_s == pytest.approx(100.01)
    assert paced.late == 0


def test_waking_early_starts_no_request_before_its_slot() -> None:
    machine = Machine(wakes_s=-0.2)
    paced = pace(machine.scene(1.0), 5, machine.works(*[0.25] * 5))
    assert min(paced.response_s) >= 0.25
    assert paced.span_s >= 5.0


def test_a_request_longer_than_the_period_delays_the_next_one_only() -> None:
    machine = Machine()
    paced = pace(machine.scene(1.0), 4, machine.works(0.5, 1.25, 0.5, 0.5))
    assert paced.late == 1
    assert paced.response_s == (0.5, 1.25, 0.75, 0.5)  # the third waits for the second
    assert paced.keeps_up
    assert paced.span_s == 4.0


def test_requests_that_are_all_longer_than_the_period_are_served_without_idle() -> None:
    machine = Machine()
    paced = pace(machine.scene(1.0), 4, machine.works(*[1.5] * 4))
    assert machine.slept == []
    assert not paced.keeps_up
    assert paced.late == 3
    assert paced.response_s == (1.5, 2.0, 2.5, 3.0)
    assert (paced.span_s, paced.busy_share) == (6.0, 1.0)


def test_awake_it_waits_without_sleeping() -> None:
    machine = Machine()

    def tick() -> float:
        machine.now_s += 0.001
        return machine.now_s

    paced = pace(Scene(0.1, awake=True, clock=tick, sleep=machine.sleep), 3, lambda number: None)
    assert machine.slept == []
    assert paced.span_s == pytest.approx(0.3, abs=0.003)  # looks at the clock end the span


@pytest.mark.parametrize(
    "service_s", [(0.25, 0.5, 0.125), (0.5, 1.25, 0.5, 0.5), (1.5, 1.5, 1.5, 1.5), (2.5, 0.25)]
)
def test_priced_requests_are_paced_like_real_ones(service_s: Sequence[float]) -> None:
    machine = Machine(now_s=0.0)
    real = pace(machine.scene(1.0), len(service_s), machine.works(*service_s))
    assert paced_by_prices(1.0, service_s) == real


def test_a_scene_says_its_name_and_its_period_as_it_was_given() -> None:
    assert (CONTINUOUS.name, CONTINUOUS.period_ms) == ("continuous", None)
    for period_ms in (0.1, 33.3, 100.0, 60_000.0):
        scene = Scene(period_ms * 1e-3)
        assert (scene.name, scene.period_ms) == ("periodic", period_ms)

"""Idle power: by the meter that measures the work, and what is left of an energy above it."""

from __future__ import annotations

import time

import pytest
from exitbench.harness.idle import Idle, between, idle_takes_s, measure_idle
from exitbench.harness.meters.modelled import ModelledMeter
from fake_counter import Bench, CounterMeter

# The fake counter may be one update of 50 off at either edge.
ONE_UPDATE = 0.02


def test_idle_power_is_read_while_nothing_runs() -> None:
    bench = Bench(power_w=100.0, update_period_s=0.02, idle_w=12.0)
    idle = measure_idle(CounterMeter(bench), 6.0, sleep=bench.sleep)
    assert idle.power_w == pytest.approx(12.0, rel=10 * ONE_UPDATE)
    assert idle.source == "measured"
    assert len(bench.windows) == 6
    assert idle.interval_w is not None
    assert idle.interval_w[0] <= idle.power_w <= idle.interval_w[1]


@pytest.mark.parametrize(("domain", "waits_s"), [("cpu", 1.0), ("gpu", 5.0)])
def test_it_waits_before_the_first_window_until_the_machine_has_calmed_down(
    domain: str, waits_s: float
) -> None:
    bench, events = Bench(100.0, 0.02), []

    class Loud(CounterMeter):
        def open(self):  # type: ignore[no-untyped-def]
            events.append(bench.now_s)
            return super().open()

    measure_idle(Loud(bench, domains=(domain,)), 5.0, sleep=bench.sleep)
    assert events[0] == pytest.approx(waits_s)


def test_windows_of_a_slow_counter_are_as_wide_as_it_needs() -> None:
    bench = Bench(power_w=50.0, update_period_s=0.5)
    meter = CounterMeter(bench)
    idle = measure_idle(meter, 5.0, sleep=bench.sleep)
    assert bench.windows == [pytest.approx(25.0)]
    assert idle.power_w == pytest.approx(50.0, rel=ONE_UPDATE)
    assert idle.interval_w is None
    assert idle_takes_s(meter, 5.0) == pytest.approx(bench.now_s)


def test_a_modelled_meter_takes_the_profiles_idle_power_without_waiting() -> None:
    meter = ModelledMeter("power", "cpu", 20.0, True, time.perf_counter, idle_w=4.0)

    def sleep(seconds: float) -> None:
        raise AssertionError(f"waited {seconds} s")

    assert measure_idle(meter, 60.0, sleep=sleep) == Idle(4.0, "modelled")
    assert idle_takes_s(meter, 60.0) == 0.0


def test_what_cannot_be_read_is_unknown_and_not_zero() -> None:
    bench = Bench(100.0, 0.02)
    meter = CounterMeter(bench, extra={"cpu": None})
    idle = measure_idle(meter, 5.0, sleep=bench.sleep)
    assert idle.power_w is None
    assert idle.source == "unavailable"
    assert "idle power unknown" in idle.note


def test_flags_of_the_idle_windows_are_told() -> None:
    bench = Bench(100.0, 0.02)
    meter = CounterMeter(bench, more={"flags": ("another process is on the card",)})
    idle = measure_idle(meter, 5.0, sleep=bench.sleep)
    assert idle.note == "while idle: another process is on the card"


def test_a_drift_between_before_and_after_is_told_and_the_mean_taken() -> None:
    before = Idle(10.0, "measured", (9.9, 10.1))
    after = Idle(12.0, "measured", (11.8, 12.2))
    both = between(before, after)
    assert both.power_w == 11.0
    assert both.interval_w == (9.9, 12.2)
    assert "from 10 W to 12 W (+20.0%)" in both.note
    assert between(before, Idle(10.2, "measured")).note == ""
    assert between(Idle(), after) == after
    assert between(before, Idle()) == before

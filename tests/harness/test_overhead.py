"""The harness's own cost: reading a meter, in time and energy."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from exitbench.harness.idle import Idle, measure_idle
from exitbench.harness.meters.base import Reading
from exitbench.harness.overhead import measure_overhead, of_reading
from fake_counter import Bench, CounterMeter, CounterWindow


@dataclass
class Dear(CounterMeter):
    """A meter whose reading costs time inside the window, and power while it waits to open."""

    inside_s: float = 0.0
    waiting_w: float = 0.0

    def open(self) -> CounterWindow:
        self.bench.unit(self.opening_s, self.waiting_w)()
        return DearWindow(self, self.bench.now_s, self.bench.counter_j)


@dataclass
class DearWindow(CounterWindow):
    def close(self) -> Reading:
        assert isinstance(self.meter, Dear)
        self.meter.bench.unit(self.meter.inside_s)()
        reading = super().close()
        return Reading(
            reading.seconds, reading.joules, "measured", reading.note,
            uncertainty_j={"gpu": 0.5}, overhead_s=self.meter.inside_s,
        )  # fmt: skip


def test_what_lies_inside_the_window_is_told_from_the_waiting_outside() -> None:
    bench = Bench(power_w=10.0, update_period_s=0.02)
    meter = Dear(bench, opening_s=0.03, inside_s=0.001)
    cost = measure_overhead(meter, Idle(), clock=bench, sleep=bench.sleep)
    assert cost.open_close_s == pytest.approx(0.031)
    assert cost.inside_s == pytest.approx(0.001)
    assert cost.share(1.0) == pytest.approx(0.001)
    assert cost.share(0.0) is None
    assert cost.plain(0.5)["share"] == pytest.approx(0.002)


class Sampling(Dear):
    """A meter that is at work in a thread for a share of the time, however long the window."""

    def open(self) -> CounterWindow:
        return SamplingWindow(self, self.bench.now_s, self.bench.counter_j)


class SamplingWindow(DearWindow):
    def close(self) -> Reading:
        reading = super().close()
        return replace(reading, overhead_s=reading.overhead_s + 0.004 * reading.seconds)


def test_a_meter_that_samples_takes_its_share_of_a_window_of_any_length() -> None:
    bench = Bench(power_w=10.0, update_period_s=0.02)
    meter = Sampling(bench, inside_s=0.001)
    cost = measure_overhead(meter, Idle(), clock=bench, sleep=bench.sleep)
    # Its share of the short windows that its own cost is told from is in both.
    assert cost.share(1.0) == pytest.approx(0.001 + 0.004, rel=0.01)
    assert cost.share(10.0) == pytest.approx(0.0001 + 0.004, rel=0.01)


def test_its_energy_is_told_where_it_stands_out_from_idle() -> None:
    bench = Bench(power_w=50.0, update_period_s=0.02, idle_w=10.0)
    meter = Dear(bench, opening_s=0.03, waiting_w=50.0)
    idle = measure_idle(meter, 6.0, sleep=bench.sleep)
    cost = measure_overhead(meter, idle, clock=bench, sleep=bench.sleep)
    # 30 ms at 40 W above idle; the outer window may be off by half a joule in some 70 pairs
    assert cost.energy_j == pytest.approx(0.03 * 40.0, rel=0.05)


def test_an_energy_that_drowns_in_the_uncertainty_is_unknown() -> None:
    bench = Bench(power_w=10.0, update_period_s=0.02)
    meter = Dear(bench, opening_s=0.03, waiting_w=10.1)
    cost = measure_overhead(meter, Idle(10.0, "measured"), clock=bench, sleep=bench.sleep)
    assert cost.energy_j is None


def test_a_window_that_its_meter_takes_more_than_a_hundredth_of_is_told() -> None:
    fine = Reading(1.0, {"gpu": 1.0}, "measured", overhead_s=0.01)
    dear = Reading(1.0, {"gpu": 1.0}, "measured", overhead_s=0.023)
    assert of_reading(fine) == ""
    assert of_reading(dear) == "reading the meter took 2.3% of a window, more than 1%"

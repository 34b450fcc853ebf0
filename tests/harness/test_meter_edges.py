"""Energy from counters and sensors of a known load: right, or within what is stated."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

import pytest
from exitbench.harness.meters.counters import Counter, Period, find_period
from exitbench.harness.meters.edges import EdgeWindow, Share
from exitbench.harness.meters.sampled import THREAD, Sample, Sampler, Watched
from fake_machine import Clock, Load, Ticking
from hypothesis import given, settings
from hypothesis import strategies as st

PERIODS = st.sampled_from([0.001, 0.1, 1.0])
WATTS = st.floats(5.0, 400.0)
UNIT_J = 1e-6


@dataclass
class Lab:
    """A counter of a known load, and what it is wanted for."""

    clock: Clock
    load: Load
    ticking: Ticking
    counter: Counter

    @classmethod
    def of(
        cls,
        load: Load,
        period_s: float,
        *,
        phase: float = 0.0,
        range_units: int | None = None,
        offset: int = 0,
        read_s: float = 0.0,
        unit_j: float = UNIT_J,
    ) -> Lab:
        clock = Clock()
        ticking = Ticking(
            clock,
            load,
            period_s,
            unit_j,
            range_units=range_units,
            offset=offset,
            phase_s=phase * period_s,
            read_s=read_s,
        )
        counter = Counter("counter", ticking, unit_j, clock, range_raw=range_units)
        counter.period = Period(period_s, unit_j)
        return cls(clock, load, ticking, counter)

    def open(self) -> EdgeWindow:
        return EdgeWindow([self.counter], self.clock, self.clock.sleep)

    def close(self, window: EdgeWindow) -> tuple[Share, float]:
        """What the counter says, and what is true."""
        (share,) = window.shares()
        assert window.closed_s is not None
        true_j = self.load.joules(window.closed_s) - self.load.joules(window.opened_s)
        return share, true_j

    def work(self, seconds: float) -> tuple[Share, float]:
        window = self.open()
        self.clock.sleep(seconds)
        return self.close(window)


def holds(share: Share, true_j: float) -> None:
    assert share.joules is not None, share.note
    # The stated bracket; a unit's worth for the sums of floating point.
    assert abs(share.joules - true_j) <= share.uncertainty_j + 1e-9 * true_j


@given(WATTS, PERIODS, st.floats(0, 1), st.floats(50.5, 500))
def test_a_constant_load_is_right_to_a_tenth_of_a_percent(
    watts: float, period_s: float, phase: float, updates: float
) -> None:
    lab = Lab.of(Load((0, watts)), period_s, phase=phase)
    share, true_j = lab.work(updates * period_s)
    holds(share, true_j)
    assert share.joules == pytest.approx(true_j, rel=1e-3)
    # Not uselessly wide: one update at the end, a twentieth at the start, of at least 50.
    assert share.uncertainty_j <= 1.1 * watts * period_s + 2 * UNIT_J


@given(WATTS, WATTS, PERIODS, st.floats(0, 1), st.floats(60, 300))
def test_a_ramp_is_right_to_a_tenth_of_a_percent_or_as_stated(
    low_w: float, high_w: float, period_s: float, phase: float, updates: float
) -> None:
    load = Load((100.0, low_w), (100.0 + updates * period_s, high_w))
    lab = Lab.of(load, period_s, phase=phase)
    share, true_j = lab.work(updates * period_s)
    holds(share, true_j)
    assert share.uncertainty_j <= 1.2 * max(low_w, high_w) * period_s + 2 * UNIT_J


@given(WATTS, WATTS, PERIODS, st.floats(0, 1), st.floats(-2, 66), st.floats(51, 64))
def test_a_step_anywhere_is_within_the_stated_uncertainty(
    before_w: float, after_w: float, period_s: float, phase: float, at: float, updates: float
) -> None:
    step_s = 100.0 + at * period_s
    lab = Lab.of(Load((step_s, before_w), (step_s, after_w)), period_s, phase=phase)
    share, true_j = lab.work(updates * period_s)
    holds(share, true_j)
    assert share.uncertainty_j <= 1.2 * max(before_w, after_w) * period_s + 2 * UNIT_J


@given(st.floats(10, 400), st.sampled_from([0.1, 0.5, 1.0]), st.floats(0, 1), st.floats(55, 200))
def test_the_step_of_a_coarse_counter_is_in_the_stated_uncertainty(
    watts: float, unit_j: float, phase: float, updates: float
) -> None:
    lab = Lab.of(Load((0, watts)), 0.1, phase=phase, unit_j=unit_j)
    share, true_j = lab.work(updates * 0.1)
    holds(share, true_j)
    # An update and the counter's step at the end; the step once more at the start.
    assert share.uncertainty_j <= 1.2 * (watts * 0.1 + unit_j) + unit_j


@given(WATTS, st.integers(0, 10**6), st.integers(1, 12))
def test_wraps_are_counted_wherever_they_fall(watts: float, offset: int, reads: int) -> None:
    # A range of 3000 J may go unread for 3 s; here it wraps up to several times in one window.
    range_units = 3_000_000_000
    lab = Lab.of(Load((0, watts)), 0.001, range_units=range_units, offset=offset * 3000)
    window = lab.open()
    for _ in range(reads):
        lab.clock.sleep(2.5)
        lab.counter.read()
    share, true_j = lab.close(window)
    holds(share, true_j)
    assert share.joules == pytest.approx(true_j, rel=1e-3)


@given(WATTS, st.floats(0, 1), st.floats(0.1, 0.9))
def test_a_slow_read_is_within_the_uncertainty_that_it_widens(
    watts: float, phase: float, read_s: float
) -> None:
    quick = Lab.of(Load((0, watts)), 0.1, phase=phase)
    slow = Lab.of(Load((0, watts)), 0.1, phase=phase, read_s=read_s)
    quick_share, _ = quick.work(20.0)
    share, true_j = slow.work(20.0)
    holds(share, true_j)
    assert share.uncertainty_j > quick_share.uncertainty_j + 0.5 * watts * read_s
    # Not uselessly wide: a few reads' worth of energy, half of it at each edge.
    assert share.uncertainty_j <= watts * (4 * read_s + 0.3)


@given(WATTS, st.floats(0, 1), st.floats(0.1, 0.9))
def test_one_slow_read_at_the_close_is_within_the_uncertainty(
    watts: float, phase: float, read_s: float
) -> None:
    lab = Lab.of(Load((0, watts)), 0.1, phase=phase)
    window = lab.open()
    lab.clock.sleep(20.0)
    lab.ticking.read_s = read_s
    window.stop()
    lab.ticking.read_s = 0.0
    share, true_j = lab.close(window)
    holds(share, true_j)
    # The read and the update that is never known.
    assert share.uncertainty_j <= 1.1 * watts * (read_s + 0.2)


@given(st.lists(st.tuples(st.floats(0, 9), st.floats(6, 12)), min_size=2, max_size=6), WATTS, WATTS)
def test_nested_and_overlapping_windows_agree(
    spans: list[tuple[float, float]], low_w: float, high_w: float
) -> None:
    lab = Lab.of(Load((104.0, low_w), (107.0, high_w)), 0.1)
    moments = sorted(
        [(begin, number, True) for number, (begin, _) in enumerate(spans)]
        + [(begin + length, number, False) for number, (begin, length) in enumerate(spans)]
    )
    windows: dict[int, EdgeWindow] = {}
    for moment, number, opening in moments:
        lab.clock.sleep(max(100.0 + moment - lab.clock.now_s, 0.0))
        if opening:
            windows[number] = lab.open()
        else:
            holds(*lab.close(windows[number]))


def test_windows_of_several_counters_share_their_edges() -> None:
    clock = Clock()
    loads = [Load((0, 40.0)), Load((0, 7.0))]
    counters = []
    for load, phase_s in zip(loads, (0.0, 0.0004), strict=True):
        ticking = Ticking(clock, load, 0.001, UNIT_J, phase_s=phase_s)
        counters.append(Counter("counter", ticking, UNIT_J, clock))
        counters[-1].period = Period(0.001, UNIT_J)
    window = EdgeWindow(counters, clock, clock.sleep)
    clock.sleep(0.2)
    shares = window.shares()
    assert window.seconds == pytest.approx(0.2)
    for share, watts in zip(shares, (40.0, 7.0), strict=True):
        assert share.joules == pytest.approx(watts * 0.2, rel=1e-3)


def test_waiting_at_the_edges_sleeps_and_reading_inside_a_window_is_counted() -> None:
    lab = Lab.of(Load((0, 50.0)), 0.1, read_s=0.001)
    outer = lab.open()
    lab.clock.sleep(10)
    inner = lab.open()
    lab.clock.sleep(10)
    reads = lab.counter.spent_s / 0.001
    lab.close(inner)
    lab.clock.sleep(10)
    lab.close(outer)
    # Two waits and the reads that begin them: 20 looks a period, a few more for the first.
    assert reads < 60
    assert inner.overhead_s == 0
    assert 0.001 <= outer.overhead_s < 0.1


@pytest.mark.parametrize("period_s", [0.001, 0.02, 0.1, 1.0])
def test_the_period_of_a_counter_is_found(period_s: float) -> None:
    lab = Lab.of(Load((0, 50.0), (1000, 300.0)), period_s, read_s=1e-5)
    found = find_period(lab.counter, lab.clock, lab.clock.sleep)
    assert found is not None
    # Polling finds each tick up to a twentieth of a period late.
    assert found.seconds == pytest.approx(period_s, rel=0.02)


def test_the_step_of_a_coarse_counter_is_found_and_stated() -> None:
    lab = Lab.of(Load((100, 50.0), (102, 300.0)), 0.1, unit_j=1e-3)
    coarse = Counter("counter", lambda: lab.ticking() // 500 * 500, 1e-3, lab.clock)
    found = find_period(coarse, lab.clock, lab.clock.sleep)
    assert found is not None
    assert found.resolution_j == pytest.approx(0.5)


def test_a_stuck_counter_has_no_period() -> None:
    lab = Lab.of(Load((0, 0.0)), 0.1)
    assert find_period(lab.counter, lab.clock, lab.clock.sleep) is None


# Sensors of watts


def sampled(
    load: Load, seconds: float, period_s: float = 0.05, read_s: float = 0.0
) -> tuple[float, float, float]:
    """What a sampler says, what it states, and what is true."""
    clock = Clock()

    def look() -> tuple[dict[str, float], dict[str, float]]:
        clock.sleep(read_s / 2)
        watts = load.watts(clock.now_s)
        clock.sleep(read_s / 2)
        return {"w": watts}, {}

    sampler = Sampler(look, period_s, clock, threaded=False)
    watch = sampler.watch()
    clock.every(period_s, sampler.sample)
    clock.sleep(seconds)
    watched = watch.close()
    assert watched.gap == ""
    joules, uncertainty_j = watched.joules("w")
    return joules, uncertainty_j, load.joules(watched.closed_s) - load.joules(watched.opened_s)


@given(WATTS, WATTS, st.floats(2.5, 20))
def test_a_sampled_ramp_is_right_to_a_tenth_of_a_percent(
    low_w: float, high_w: float, seconds: float
) -> None:
    joules, _, true_j = sampled(Load((100.0, low_w), (100.0 + seconds, high_w)), seconds)
    assert joules == pytest.approx(true_j, rel=1e-3)


@given(WATTS, WATTS, st.floats(0, 5), st.floats(2.5, 5))
def test_a_sampled_step_is_within_the_stated_uncertainty(
    before_w: float, after_w: float, at_s: float, seconds: float
) -> None:
    load = Load((100 + at_s, before_w), (100 + at_s, after_w))
    joules, uncertainty_j, true_j = sampled(load, seconds)
    assert abs(joules - true_j) <= uncertainty_j + 1e-9 * true_j
    # Not uselessly wide: one step between two samples.
    assert uncertainty_j <= abs(after_w - before_w) * 0.05 + 1e-6


def test_slow_reads_of_a_sensor_widen_the_uncertainty() -> None:
    load = Load((101.0, 10.0), (104.0, 30.0))
    quick, slow = sampled(load, 5.0), sampled(load, 5.0, read_s=0.02)
    assert slow[1] > quick[1]
    assert abs(slow[0] - slow[2]) <= slow[1]


def test_what_happened_while_nobody_could_look_is_within_the_stated_uncertainty() -> None:
    # 30 W for half a second that no sample saw, though some saw 30 W before; else 10 W.
    moments = [at / 20 for at in range(-1, 102) if not 40 < at < 50]
    samples = tuple(Sample(s, s, {"w": 30.0 if 0.5 < s < 0.7 else 10.0}) for s in moments)
    watched = Watched(0.0, 5.0, 0.05, samples, ())
    assert watched.gap == ""
    joules, uncertainty_j = watched.joules("w")
    true_j = 10.0 * 5 + 20.0 * 0.2 + 20.0 * 0.45
    assert abs(joules - true_j) <= uncertainty_j
    assert uncertainty_j < 1.5 * 20.0 * 0.5  # not uselessly wide


@settings(max_examples=20)
@given(st.lists(st.floats(3, 9), min_size=2, max_size=5))
def test_watches_that_overlap_share_samples_and_agree(lengths: list[float]) -> None:
    clock, load = Clock(), Load((100, 10.0), (110, 60.0))
    sampler = Sampler(lambda: ({"w": load.watts(clock.now_s)}, {}), 0.05, clock, threaded=False)
    clock.every(0.05, sampler.sample)
    watches = [sampler.watch() for _ in lengths]
    for watch, length in sorted(zip(watches, lengths, strict=True), key=lambda pair: pair[1]):
        clock.sleep(max(100 + length - clock.now_s, 0.0))
        watched = watch.close()
        joules, uncertainty_j = watched.joules("w")
        true_j = load.joules(watched.closed_s) - load.joules(watched.opened_s)
        assert abs(joules - true_j) <= uncertainty_j + 1e-9 * true_j
    assert sampler.samples == []


def test_a_window_dropped_unclosed_does_not_keep_later_ones_from_being_sampled() -> None:
    sampler = Sampler(lambda: ({"w": 1.0}, {}), 0.01, time.perf_counter)
    sampler.watch()
    # Real time: the thread ends once it finds that nobody watches.
    deadline_s = time.perf_counter() + 30
    while THREAD in [thread.name for thread in threading.enumerate()]:
        assert time.perf_counter() < deadline_s
        time.sleep(0.01)
    watch = sampler.watch()
    while len(sampler.samples) < 5 and time.perf_counter() < deadline_s:
        time.sleep(0.01)
    assert len(watch.close().samples) >= 5

"""Timing with a clock that only the units move, so that every number is exact."""

from __future__ import annotations

import gc
from collections.abc import Callable

import numpy as np
import pytest
from exitbench.harness.timing import Limits, measure, median_interval, median_rank, resolution_s
from hypothesis import given
from hypothesis import strategies as st


class FakeClock:
    """Nanoseconds that pass only when a unit works; each look takes ``tick_ns``."""

    def __init__(self, tick_ns: int = 0) -> None:
        self.now_ns = 0
        self.tick_ns = tick_ns

    def __call__(self) -> int:
        self.now_ns += self.tick_ns
        return self.now_ns

    def working(self, durations_ns: Callable[[], float]) -> Callable[[], None]:
        def unit() -> None:
            self.now_ns += round(durations_ns())

        return unit


def test_a_constant_unit_is_measured_exactly_and_stops_at_once() -> None:
    clock = FakeClock()
    timing = measure({"a": clock.working(lambda: 1e6)}, Limits(), clock=clock)["a"]
    assert timing.median_s == pytest.approx(1e-3, rel=1e-12)
    assert timing.interval_s == pytest.approx((1e-3, 1e-3), rel=1e-12)
    assert timing.target_reached
    assert timing.warm
    assert timing.repeats == 6  # the fewest that give a 95% interval


def test_a_short_unit_is_repeated_inside_its_sample() -> None:
    clock = FakeClock()
    units = {"short": clock.working(lambda: 1_000), "long": clock.working(lambda: 200_000)}
    timings = measure(units, Limits(min_sample_s=50e-6), clock=clock)
    assert timings["short"].calls == 50
    assert timings["short"].median_s == pytest.approx(1e-6)
    assert timings["long"].calls == 1


def test_a_coarse_clock_makes_samples_longer() -> None:
    clock = FakeClock(tick_ns=1_000)
    timing = measure({"a": clock.working(lambda: 10_000)}, Limits(), clock=clock)["a"]
    # 100 steps of 1 us over calls of 10 us and the tick that the window itself takes
    assert timing.calls == pytest.approx(10, abs=1)


def test_a_unit_that_is_not_to_be_repeated_is_called_once_a_sample() -> None:
    clock = FakeClock()
    units = {"short": clock.working(lambda: 1_000)}
    assert measure(units, Limits(min_sample_s=0.0), clock=clock)["short"].calls == 1


def test_the_first_slow_calls_are_warm_up_and_not_in_the_samples() -> None:
    clock = FakeClock()
    pending = [9e6, 7e6, 5e6, 3e6]
    unit = clock.working(lambda: pending.pop(0) if pending else 1e6)
    timing = measure({"a": unit}, Limits(), clock=clock)["a"]
    assert timing.warm
    assert timing.samples_s.max() == pytest.approx(1e-3)


def test_a_unit_that_never_settles_ends_at_the_time_limit_and_says_so() -> None:
    clock = FakeClock()
    random = np.random.default_rng(1)
    unit = clock.working(lambda: random.uniform(1e6, 9e6))
    timing = measure({"a": unit}, Limits(seconds=1.0, interval=0.001), clock=clock)["a"]
    assert not timing.target_reached
    assert 0.7 < timing.samples_s.sum() < 1.1
    assert timing.interval_s is not None


def test_every_unit_is_sampled_once_even_when_one_takes_all_the_time() -> None:
    clock = FakeClock()
    units = {"slow": clock.working(lambda: 60e9), "fast": clock.working(lambda: 1e6)}
    timings = measure(units, Limits(seconds=1.0), clock=clock)
    assert {name: timing.repeats for name, timing in timings.items()} == {"slow": 1, "fast": 1}
    assert timings["slow"].interval_s is None
    assert not timings["slow"].target_reached
    assert not timings["slow"].warm


def test_what_leads_up_to_a_unit_is_called_before_each_sample_and_not_timed() -> None:
    clock, calls = FakeClock(), []
    work = {"a": clock.working(lambda: 1e6), "b": clock.working(lambda: 5e6)}
    units = {name: lambda name=name: (calls.append(name), work[name]()) for name in work}
    timings = measure(units, Limits(), leads={"a": ("b", "b")}, clock=clock)
    assert timings["a"].median_s == pytest.approx(1e-3, rel=1e-12)
    warm_up = 6 * len(units)  # six rounds, to which nothing leads up
    text = "".join(calls[warm_up:])
    assert text.count("bba") == text.count("a") == timings["b"].repeats


def test_what_has_just_run_is_not_called_again_to_lead_up_to_a_unit() -> None:
    clock, calls = FakeClock(), []
    units = {}
    for name in "abcd":
        work = clock.working(lambda: 1e6)
        units[name] = lambda name=name, work=work: (calls.append(name), work())
    leads = {"b": ("a",), "c": ("a", "b"), "d": ("b",)}
    timings = measure(units, Limits(), leads=leads, clock=clock)
    text = "".join(calls[24:])  # after six rounds of warming up
    # c stands after b, which stands after a; d would be the second after b, and b is called for it.
    assert text.count("abc") == timings["c"].repeats == 6
    assert text.count("bd") == text.count("d") == 6
    assert len(text) == 6 * 5


def test_no_round_begins_that_would_end_after_the_time_limit() -> None:
    clock = FakeClock()
    random = np.random.default_rng(1)
    unit = clock.working(lambda: random.uniform(3.9e9, 4.1e9))
    timing = measure({"a": unit}, Limits(seconds=19.0, interval=1e-6), clock=clock)["a"]
    # Warming up takes two calls of four seconds, which is beyond a quarter of the time.
    assert timing.repeats == 2


def test_units_are_shuffled_in_every_round_and_seeded() -> None:
    def order(seed: int) -> str:
        clock, calls = FakeClock(), []
        units = {}
        for name in "abcd":
            work = clock.working(lambda: 1e6)
            units[name] = lambda name=name, work=work: (calls.append(name), work())
        measure(units, Limits(seed=seed), clock=clock)
        return "".join(calls)

    first = order(0)
    rounds = {first[i : i + 4] for i in range(0, len(first), 4)}
    assert all(sorted(r) == list("abcd") for r in rounds)
    assert len(rounds) > 1
    assert order(0) == first != order(1)


def test_the_device_is_waited_for_before_a_window_opens_and_before_it_closes() -> None:
    events: list[str] = []
    now_ns = 0

    def clock() -> int:
        nonlocal now_ns
        events.append("clock")
        now_ns += 1_000_000
        return now_ns

    measure(
        {"a": lambda: events.append("call")},
        Limits(),
        synchronise=lambda: events.append("wait"),
        clock=clock,
    )
    called = [i for i, event in enumerate(events) if event == "call"]
    first, last = called[0], called[-1]
    assert events[first - 2 : first + 3] == ["wait", "clock", "call", "wait", "clock"]
    assert events[last + 1 : last + 3] == ["wait", "clock"]


def test_the_garbage_collector_rests_meanwhile_and_comes_back_even_after_an_error() -> None:
    seen = []

    def fail() -> None:
        seen.append(gc.isenabled())
        raise ValueError("unit")

    with pytest.raises(ValueError, match="unit"):
        measure({"a": fail}, Limits())
    assert seen == [False]
    assert gc.isenabled()


def test_no_units_give_no_timings() -> None:
    assert measure({}, Limits()) == {}


def test_the_interval_of_a_textbook_example() -> None:
    # Altman et al., "Statistics with Confidence", 2000, p. 38: n = 11 gives ranks 2 and 10.
    values = [66, 71.2, 83, 83.6, 101, 107.6, 122, 143, 160, 177, 414]
    assert median_interval(values[::-1]) == (71.2, 177)
    assert median_interval(values[:5]) is None
    assert median_interval(values[:6]) == (66, 107.6)


@given(st.integers(min_value=6, max_value=400))
def test_the_interval_covers_95_percent_and_the_next_narrower_one_does_not(count: int) -> None:
    from math import comb

    def coverage(rank: int) -> float:
        return 1 - 2 * sum(comb(count, k) for k in range(rank)) / 2**count

    rank = median_rank(count)
    assert coverage(rank) >= 0.95
    assert rank + 1 > count // 2 or coverage(rank + 1) < 0.95


def test_the_rank_of_many_samples_is_near_the_normal_approximation() -> None:
    # n / 2 - 0.98 sqrt(n); its error is about one rank.
    assert median_rank(100_000) == pytest.approx(50_000 - 0.98 * 100_000**0.5, abs=2)


def test_the_real_clock_has_a_resolution_below_a_millisecond() -> None:
    assert 0 < resolution_s() < 1e-3

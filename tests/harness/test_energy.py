"""Energies of units by a counter that is read in steps: gross, net, uncertain or unresolved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from exitbench.harness.energy import Energies, measure_energy
from exitbench.harness.idle import UNKNOWN, Idle
from exitbench.harness.meters.card import CHECK
from exitbench.harness.tiers import TIERS
from exitbench.harness.timing import Limits
from fake_counter import Bench, CounterMeter, CounterWindow, timing

FREE = Limits()
# Each edge of a window may be one update of at least 50 off.
EDGES = 0.02


def energies_of(
    bench: Bench,
    units: dict[str, float],
    *,
    meter: Any = None,
    tier: str = "quick",
    idle: Idle | None = UNKNOWN,
    limits: Limits = FREE,
    timed: dict[str, float] | None = None,
    say: Callable[[str], None] = lambda line: None,
    **powers_w: float,
) -> Energies:
    """Units that take so many seconds, at the power of the machine or at their own."""
    return measure_energy(
        {name: bench.unit(seconds, powers_w.get(name)) for name, seconds in units.items()},
        {name: timing(seconds) for name, seconds in (timed or units).items()},
        meter or CounterMeter(bench),
        limits,
        tier=TIERS[tier],
        idle=idle,
        say=say,
        sleep=bench.sleep,
        clock=bench,
    )


def test_a_window_of_a_counter_spans_fifty_updates() -> None:
    bench = Bench(power_w=100.0, update_period_s=0.1)
    found = energies_of(bench, {"short": 0.001, "long": 9.0})
    assert found.notes == []
    assert min(bench.windows) >= 50 * 0.1
    short = found.units["short"]
    assert short.total_j == pytest.approx(0.1, rel=EDGES)
    assert found.units["long"].total_j == pytest.approx(900.0, rel=EDGES)
    assert short.source == short.gpu_source == "measured"
    assert short.power_w == pytest.approx(100.0, rel=EDGES)
    assert short.cpu_j is None


@pytest.mark.parametrize(("tier", "windows"), [("quick", 5), ("standard", 6), ("publish", 10)])
def test_every_unit_is_measured_as_long_and_as_often_as_the_tier_asks(
    tier: str, windows: int
) -> None:
    bench = Bench(power_w=100.0, update_period_s=0.02)
    found = energies_of(bench, {"a": 0.1, "b": 0.2}, tier=tier, idle=None)
    assert found.summary["tier"] == tier
    assert found.summary["windows"] == windows
    assert found.summary["measured_s"] >= 2 * TIERS[tier].seconds
    assert (found.units["a"].interval_j is None) == (windows < 6)


def test_a_unit_that_runs_faster_than_it_was_timed_still_gets_the_time_of_its_tier() -> None:
    bench = Bench(power_w=50.0, update_period_s=0.001)
    found = energies_of(bench, {"a": 0.001}, timed={"a": 0.004})
    assert sum(bench.windows) >= 5.0
    assert found.units["a"].total_j == pytest.approx(0.05, rel=EDGES)


def test_standard_goes_on_until_the_interval_is_narrow_and_no_longer() -> None:
    def wobbling(shares: list[float]) -> Energies:
        bench = Bench(power_w=100.0, update_period_s=0.001)
        calls = [0]

        class Wobble(CounterMeter):
            def open(self) -> CounterWindow:
                calls[0] += 1
                bench.power_w = 100.0 * shares[calls[0] % len(shares)]
                return super().open()

        meter = Wobble(bench)

        def unit() -> None:
            bench.now_s += 1.0
            bench.true_j += bench.power_w

        return measure_energy(
            {"a": unit}, {"a": timing(1.0)}, meter, FREE, tier=TIERS["standard"],
            idle=Idle(), sleep=bench.sleep, clock=bench,
        )  # fmt: skip

    calm, wild = wobbling([1.0, 1.01]), wobbling([1.0, 1.3])
    assert calm.summary["windows"] == 6
    assert calm.notes == []
    # Half the windows read 30% more, so no number of windows narrows the interval.
    assert wild.summary["measured_s"] >= 120.0
    assert wild.notes == [
        "after 120 s each, the 95% interval of the energy of a was still wider than 2% to a side"
    ]


def test_how_long_it_takes_is_said_before_it_does() -> None:
    bench, said = Bench(power_w=100.0, update_period_s=0.1), []

    def say(line: str) -> None:
        said.append((line, len(bench.windows)))

    energies_of(bench, {str(n): 0.001 for n in range(63)}, idle=None, say=say)
    # 63 units x 5 windows x 5.5 s, the edges, and 5 s of idle after the 5 s that a card needs
    assert said == [
        ("energy (quick): 5 windows of 5 s for each of 63 units and 10 s of idle, about 30 min", 0)
    ]
    energies_of(bench, {"a": 0.001}, tier="standard", say=say)
    assert said[1][0] == (
        "energy (standard): 6 windows of 5 s for one unit, about 34 s; up to 137 s where "
        "that takes until the 95% interval is within 2%"
    )


def test_a_time_limit_narrows_the_windows_and_says_that_the_tier_was_not_reached() -> None:
    bench = Bench(power_w=100.0, update_period_s=0.01)
    limits = Limits(energy_seconds=20.0)
    found = energies_of(bench, {str(n): 0.001 for n in range(5)}, limits=limits)
    assert found.summary["tier"] == "below quick"
    assert 0.5 <= min(bench.windows) < 1.0
    # A round is not begun that would end more than a tenth late.
    assert bench.now_s <= 20.0 * 1.1
    assert found.notes[0].startswith(
        "energy: the tier quick was not reached, because 20 s are allowed: 5 windows of about 0.7"
    )
    assert found.units["3"].total_j == pytest.approx(0.1, rel=EDGES)


def test_a_round_that_the_time_does_not_suffice_for_leaves_the_tier_unreached() -> None:
    bench = Bench(power_w=100.0, update_period_s=0.001)
    # Each unit turns out twice as slow as it was timed.
    timed = dict.fromkeys("abcd", 0.01)
    limits = Limits(energy_seconds=23.0)
    found = energies_of(bench, dict.fromkeys("abcd", 0.02), timed=timed, limits=limits)
    assert found.summary["tier"] == "below quick"
    assert found.summary["windows"] == 2
    assert "23 s are allowed: 2 windows of about 1 s per unit instead of 5" in found.notes[0]
    assert bench.now_s <= 23.0 * 1.1


def test_a_time_limit_too_short_for_the_counter_is_said_and_nothing_is_measured() -> None:
    bench = Bench(power_w=100.0, update_period_s=0.1)
    limits = Limits(energy_seconds=20.0)
    found = energies_of(bench, dict.fromkeys("abcd", 0.001), limits=limits, idle=None)
    assert bench.windows == []
    assert {energy.source for energy in found.units.values()} == {"unavailable"}
    assert {energy.total_j for energy in found.units.values()} == {None}
    # four windows of 5.5 s with 0.2 s at the edges, and a window of 5 s idle after 5 s
    assert found.notes == [
        "energy unavailable: fake counter updates every 0.1 s, so one window of 5 s for each of 4 "
        "units and idle power need 32.8 s, but 20 s are allowed; give more with --energy-seconds, "
        "or leave it out"
    ]
    assert found.summary == {"tier": None}


def test_net_energy_is_gross_less_idle_power_times_time() -> None:
    bench = Bench(power_w=100.0, update_period_s=0.01, idle_w=30.0)
    found = energies_of(bench, {"a": 0.01}, idle=None)
    assert found.idle.power_w == pytest.approx(30.0, rel=0.1)
    # 1 J gross; one update of 50 off is 2% of the gross, whatever is subtracted
    assert found.units["a"].total_j == pytest.approx(1.0, rel=EDGES)
    assert found.units["a"].net_j == pytest.approx(0.7, abs=0.05)


def test_net_energy_may_be_negative() -> None:
    bench = Bench(power_w=10.0, update_period_s=0.001)
    found = energies_of(bench, {"a": 0.01}, idle=Idle(12.0, "measured"))
    assert found.units["a"].net_j == pytest.approx(-0.02, rel=0.1)
    assert found.units["a"].total_j == pytest.approx(0.1, rel=EDGES)


def test_without_idle_power_there_is_no_net_energy() -> None:
    bench = Bench(power_w=10.0, update_period_s=0.001)
    assert energies_of(bench, {"a": 0.01}).units["a"].net_j is None


def test_publish_measures_idle_power_before_and_after() -> None:
    bench = Bench(power_w=100.0, update_period_s=0.02, idle_w=10.0)
    work = bench.unit(1.0)

    def warming() -> None:
        work()
        bench.idle_w = 20.0

    found = measure_energy(
        {"a": warming}, {"a": timing(1.0)}, CounterMeter(bench), FREE, tier=TIERS["publish"],
        sleep=bench.sleep, clock=bench,
    )  # fmt: skip
    assert found.idle.power_w == pytest.approx(15.0, rel=0.05)
    assert "idle power went from" in found.notes[0]


def test_the_uncertainty_of_a_unit_is_the_largest_of_its_windows_per_call() -> None:
    bench = Bench(power_w=100.0, update_period_s=0.001)
    meter = CounterMeter(bench, more={"uncertainty_j": {"gpu": 0.5}})
    found = energies_of(bench, {"a": 1.0}, meter=meter)
    calls = round(bench.windows[0])
    assert found.units["a"].uncertainty_j == pytest.approx(0.5 / calls)
    assert energies_of(bench, {"a": 1.0}).units["a"].uncertainty_j is None


def test_flags_checks_and_conditions_of_the_windows_are_kept_with_the_units() -> None:
    bench = Bench(power_w=100.0, update_period_s=0.001)
    hot = {"flags": ("the card was throttled",)}

    class Sometimes(CounterMeter):
        def open(self) -> CounterWindow:
            self.more = {
                "checks": {"power x time": 101.0},
                "conditions": {"clock_mhz": 1000.0 + len(bench.windows), "governor": "powersave"},
                "overhead_s": 0.02,
                **(hot if len(bench.windows) == 3 else {}),
            }
            return super().open()

    found = energies_of(bench, {"a": 1.0, "b": 1.0}, meter=Sometimes(bench))
    # The fourth window: whose it is hangs on the shuffled order.
    assert found.notes in (
        [["energy of a: the card was throttled"], ["energy of b: the card was throttled"]]
    )
    assert found.summary["flags"] == [found.notes[0].removeprefix("energy of ")]
    assert found.summary["overhead"] == pytest.approx(0.01)
    assert found.summary["checks"] == {"power x time": pytest.approx(1010.0)}
    assert found.summary["joules"] == {"gpu": pytest.approx(2000.0, rel=EDGES)}
    assert found.summary["conditions"] == {
        "clock_mhz": {"low": 1000.0, "high": 1009.0}, "governor": ["powersave"],
    }  # fmt: skip


@pytest.mark.parametrize(("watts", "flagged"), [(105.0, False), (115.0, True)])
def test_a_second_opinion_of_all_windows_together_is_flagged_beyond_a_tenth(
    watts: float, flagged: bool
) -> None:
    bench = Bench(power_w=100.0, update_period_s=0.001)
    # Windows of 2 s: the calls that fill one of 1 s and a tenth.
    meter = CounterMeter(bench, more={"checks": {CHECK: 2 * watts}})
    flags = energies_of(bench, {"a": 1.0}, meter=meter).summary["flags"]
    assert bool(flags) is flagged
    if flagged:
        assert flags[0].startswith("all windows together: the energy counter says ")
        assert flags[0].endswith("they differ by 15%")


def test_flags_that_differ_in_their_figures_only_are_said_once() -> None:
    bench = Bench(power_w=100.0, update_period_s=0.001)

    class Throttled(CounterMeter):
        def open(self) -> CounterWindow:
            looks = len(bench.windows) + 1
            self.more = {"flags": (f"throttled (heat) at {looks} of 12.5 looks",)}
            return super().open()

    found = energies_of(bench, {"a": 1.0, "b": 1.0}, meter=Throttled(bench))
    (flag,) = found.summary["flags"]
    assert flag.startswith("all units: throttled (heat) at ")
    assert flag.endswith(" of 12.5 looks; 9 more with other figures")


def test_a_meter_that_takes_too_much_of_a_window_is_flagged() -> None:
    bench = Bench(power_w=100.0, update_period_s=0.001)
    meter = CounterMeter(bench, more={"overhead_s": 0.05})
    found = energies_of(bench, {"a": 1.0}, meter=meter)
    assert found.notes == [
        "energy of all units: reading the meter took 2.5% of a window, more than 1%"
    ]
    assert found.summary["flags"] == [found.notes[0].removeprefix("energy of ")]


def test_a_window_that_stays_too_short_is_unresolved_with_its_reason() -> None:
    bench = Bench(power_w=50.0, update_period_s=0.01)
    found = energies_of(bench, {"a": 0.0}, timed={"a": 0.01})
    assert found.units["a"].total_j is None
    assert found.units["a"].source == "unavailable"
    assert len(found.notes) == 1
    assert "energy unresolved for all units: the window of 0 ms is too short" in found.notes[0]
    # Ten times the calls it was timed for, then no more, however often it is asked.
    assert len(bench.windows) <= 3 * 10


class Failing(CounterMeter):
    """A counter that cannot be read in every third window, or from some window on."""

    from_window: int | None = None

    def open(self) -> CounterWindow:
        number = len(self.bench.windows)
        bad = number % 3 == 0 if self.from_window is None else number >= self.from_window
        self.extra = {"cpu": None} if bad else {}
        return super().open()


def test_windows_that_could_not_be_read_do_not_count_towards_a_tier() -> None:
    bench = Bench(power_w=50.0, update_period_s=0.001)
    found = energies_of(bench, {"a": 0.01}, meter=Failing(bench))
    assert (found.summary["tier"], found.summary["windows"]) == ("quick", 5)
    assert len(bench.windows) == 8  # every third was not read


def test_a_tier_is_not_reached_where_most_windows_could_not_be_read() -> None:
    bench = Bench(power_w=50.0, update_period_s=0.001)
    meter = Failing(bench)
    meter.from_window = 2
    found = energies_of(bench, {"a": 0.01}, meter=meter, tier="publish")
    assert (found.summary["tier"], found.summary["windows"]) == ("below publish", 2)
    assert found.units["a"].total_j == pytest.approx(0.5, rel=EDGES)
    assert found.notes[0].startswith(
        "energy: the tier publish was not reached, because windows could not be resolved: 2 windows"
    )


def test_a_domain_without_a_reading_makes_the_total_unavailable_and_not_smaller() -> None:
    bench = Bench(power_w=50.0, update_period_s=0.001)
    meter = CounterMeter(bench, extra={"cpu": None})
    found = energies_of(bench, {"a": 0.01}, meter=meter).units["a"]
    assert found.gpu_j == pytest.approx(0.5, rel=EDGES)
    assert found.total_j is None
    assert found.net_j is None
    assert found.source == "unavailable"
    assert found.gpu_source == "measured"


def test_a_measured_meter_without_an_update_period_still_gets_its_windows() -> None:
    bench = Bench(power_w=50.0, update_period_s=1e-6)

    class Steady(CounterMeter):
        update_period_s = None  # type: ignore[assignment]

    found = energies_of(bench, {"a": 0.01}, meter=Steady(bench))
    assert found.summary["windows"] == 5
    assert found.units["a"].total_j == pytest.approx(0.5, rel=1e-3)


def test_units_take_turns_in_a_new_order_every_round() -> None:
    bench, order = Bench(power_w=50.0, update_period_s=0.02), []

    def unit(name: str) -> Callable[[], None]:
        work = bench.unit(1.2)

        def call() -> None:
            order.append(name)
            work()

        return call

    names = "abcd"
    measure_energy(
        {name: unit(name) for name in names}, {name: timing(1.2) for name in names},
        CounterMeter(bench), FREE, idle=Idle(), sleep=bench.sleep, clock=bench,
    )  # fmt: skip
    rounds = ["".join(order[at : at + 4]) for at in range(0, 20, 4)]
    assert all(sorted(each) == list(names) for each in rounds)
    assert len(set(rounds)) > 1


def test_the_device_is_waited_for_at_both_edges_of_an_energy_window() -> None:
    events: list[str] = []
    bench = Bench(power_w=50.0, update_period_s=0.001)

    class Loud(CounterMeter):
        def open(self) -> CounterWindow:
            events.append("open")
            return super().open()

    measure_energy(
        {"a": bench.unit(2.0)}, {"a": timing(2.0)}, Loud(bench), FREE, idle=Idle(),
        synchronise=lambda: events.append("wait"), sleep=bench.sleep, clock=bench,
    )  # fmt: skip
    assert events == ["wait", "open", "wait"] * 5


def test_a_meter_that_dies_is_given_up_and_what_it_read_before_is_kept() -> None:
    bench = Bench(power_w=100.0, update_period_s=0.001)
    opened = [0]

    class Dying(CounterMeter):
        def open(self) -> CounterWindow:
            opened[0] += 1
            self.extra = {"gpu": None} if opened[0] > 7 else {}
            self.more = {"note": "the meter was unplugged"} if opened[0] > 7 else {}
            return super().open()

    found = energies_of(bench, {str(n): 0.01 for n in range(4)}, meter=Dying(bench))
    # Seven windows were read; ten in a row that were not are enough, of the twenty planned.
    assert opened == [17]
    assert found.units["0"].total_j == pytest.approx(1.0, rel=EDGES)
    assert found.summary["tier"] == "below quick"
    assert any("the meter was unplugged" in note for note in found.notes)


def test_a_study_is_not_held_up_by_a_meter_that_never_answers() -> None:
    bench = Bench(power_w=100.0, update_period_s=0.001)
    meter = CounterMeter(bench, extra={"gpu": None}, more={"note": "the meter was unplugged"})
    found = energies_of(bench, {str(n): 0.01 for n in range(60)}, meter=meter)
    assert len(bench.windows) == 10
    assert {energy.source for energy in found.units.values()} == {"unavailable"}

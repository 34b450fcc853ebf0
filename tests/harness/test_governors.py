"""Governors choose what their formulas say, and steering keeps the account of it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest
from exitbench.harness.errors import ExitbenchError
from exitbench.harness.governors import (
    GOVERNORS,
    LiveSteer,
    OperatingTable,
    Outlook,
    Request,
    make_governor,
)
from hypothesis import given
from hypothesis import strategies as st
from operating_fixtures import point, table_of, tables, two_points, ways

SLOW, TOP = 0, 1
FORECASTING = Outlook(pays=True, predicts=True)
CERTAIN = Outlook(certain=True)
LOOKING = Outlook()  # every-exit: the next exit is only the next place to look


def governed(
    name: str | None, table: OperatingTable, way: tuple[int, ...], **more: Any
) -> Request:
    """One simulated request along a way."""
    values = {"deadline_s": None, "outlook": FORECASTING, **more}
    steer = LiveSteer(make_governor(name, table, **values), table)
    follow(steer, way)
    (request,) = steer.requests
    return request


def follow(steer: LiveSteer, way: tuple[int, ...]) -> None:
    steer.begin(way[0])
    for exit, following in pairwise(way):
        steer.forecast(exit, following)
    steer.end(way[-1])


def test_the_default_deadline_is_what_the_full_network_takes_at_the_top_clock():
    table = two_points()
    governor = make_governor("deadline", table, outlook=CERTAIN)
    assert governor.deadline_s == pytest.approx(4.2)  # four segments and the classifier
    assert make_governor("deadline", table, 9.0, outlook=CERTAIN).deadline_s == 9.0


@pytest.mark.parametrize(("deadline_s", "chosen"), [(5.85, SLOW), (5.84, TOP)])
def test_deadline_takes_the_slow_point_only_if_it_arrives_in_time(deadline_s, chosen):
    # From exit 1 to 3: two segments and a head, 4.2 s at half the clock, and a switch of 0.5 s.
    governor = make_governor("deadline", two_points(), deadline_s, outlook=FORECASTING)
    assert governor.choose(1, 3, 1.15, TOP) == chosen


def test_deadline_switches_only_where_the_switch_costs_less_than_it_saves():
    # Above idle the stretch costs 2.1 s x 5 W = 10.5 J at the top clock and 4.2 s x 1 W = 4.2 J at
    # the slow one; switching adds its time x 5 W.
    for switch_s, chosen in ((1.25, SLOW), (1.27, TOP)):
        governor = make_governor(
            "deadline", two_points(switch_s=switch_s), 100.0, outlook=FORECASTING
        )
        assert governor.choose(1, 3, 1.15, TOP) == chosen


def test_deadline_counts_no_switch_where_the_point_stays_or_the_request_has_not_begun():
    governor = make_governor("deadline", two_points(), 5.35, outlook=FORECASTING)
    assert governor.choose(1, 3, 1.15, SLOW) == SLOW
    certain = make_governor("deadline", two_points(), 8.4, outlook=CERTAIN)
    assert certain.choose(0, 4, 0.0, TOP) == SLOW


def test_deadline_prefers_the_point_of_least_energy_to_the_slowest():
    # At a quarter of the clock 1.9 W are drawn four times as long: 0.9 W x 4 against 1 W x 2.
    table = table_of(point(0.25, 1.9), point(0.5, 2.0), point(1.0, 6.0), switch_s=0.0)
    governor = make_governor("deadline", table, 100.0, outlook=FORECASTING)
    assert governor.choose(1, 3, 1.0, 2) == 1


def test_of_points_that_cost_the_same_deadline_takes_the_fastest():
    # Above idle both cost 5 J per second of work at the top clock.
    table = table_of(point(0.5, 3.5), point(1.0, 6.0), switch_s=0.0)
    governor = make_governor("deadline", table, 100.0, outlook=FORECASTING)
    assert governor.choose(1, 3, 1.0, SLOW) == TOP


def test_where_no_point_keeps_the_deadline_it_is_the_top_clock():
    for name in ("deadline", "deadline-safe"):
        governor = make_governor(name, two_points(), 1.0, outlook=FORECASTING)
        assert governor.choose(1, 3, 0.9, SLOW) == TOP


@pytest.mark.parametrize(("deadline_s", "chosen"), [(7.65, SLOW), (7.64, TOP)])
def test_deadline_safe_leaves_room_for_the_rest_at_the_top_clock(deadline_s, chosen):
    # 5.85 s as above; then a forecast at the slow clock (0.1 s), the switch back (0.5 s), the last
    # segment (1 s) and the classifier (0.2 s).
    governor = make_governor("deadline-safe", two_points(), deadline_s, outlook=FORECASTING)
    assert governor.choose(1, 3, 1.15, TOP) == chosen


@pytest.mark.parametrize("name", ["deadline", "deadline-safe"])
def test_what_is_no_forecast_is_not_trusted(name):
    # To exit 1 at the slow clock 2.2 s, back to the top 0.5 s, three segments and two heads 3.2 s,
    # the classifier 0.2 s: 6.1 s; and at the start and after each check two forecasts more.
    looking = make_governor(name, two_points(), 6.1, outlook=LOOKING)
    assert looking.choose(0, 1, 0.0, TOP) == SLOW
    assert make_governor(name, two_points(), 6.09, outlook=LOOKING).choose(0, 1, 0.0, TOP) == TOP
    paying = make_governor(name, two_points(), 6.3, outlook=FORECASTING)
    assert paying.choose(0, 1, 0.0, TOP) == SLOW
    assert make_governor(name, two_points(), 6.29, outlook=FORECASTING).choose(0, 1, 0.0, 1) == TOP
    # Under every-exit the next exit is no forecast either.
    assert make_governor(name, two_points(), 5.0, outlook=LOOKING).choose(1, 2, 1.1, TOP) == TOP


def test_proportional_takes_the_level_nearest_to_jump_over_exits_left():
    levels = table_of(*(point(ratio, 5.0, exits=8) for ratio in (0.25, 0.5, 0.75, 1.0)))
    governor = make_governor("proportional", levels, outlook=FORECASTING)
    assert governor.choose(0, 3, 0.0, 0) == 3  # nothing is forecast yet
    assert governor.choose(3, 4, 1.0, 3) == 0  # 1 of 6 left
    assert governor.choose(3, 6, 1.0, 3) == 1  # 3 of 6
    assert governor.choose(1, 6, 1.0, 3) == 2  # 5 of 8, as near to 0.5 as to 0.75
    assert governor.choose(6, 9, 1.0, 3) == 3  # all the way to the classifier


def test_race_to_idle_is_the_top_clock_always():
    request = governed("race-to-idle", two_points(), (1, 3))
    assert request.points == {"1000 MHz": pytest.approx(3.25)}
    assert request == governed(None, two_points(), (1, 3))


@pytest.mark.parametrize(
    ("deadline_s", "name"), [(8.4, "500 MHz"), (8.39, "1000 MHz"), (0.1, "1000 MHz")]
)
def test_fixed_is_the_slowest_at_which_the_full_network_keeps_the_deadline(deadline_s, name):
    request = governed("fixed", two_points(), (1, 3), deadline_s=deadline_s)
    assert list(request.points) == [name]
    assert request.switches == 0


def test_fixed_takes_a_point_by_its_name_and_names_those_there_are():
    assert list(governed("fixed", two_points(), (1,), operating_point="500 MHz").points) == [
        "500 MHz"
    ]
    with pytest.raises(ExitbenchError, match=r"'900 MHz'.*'500 MHz', '1000 MHz'"):
        governed("fixed", two_points(), (1,), operating_point="900 MHz")


def test_an_unknown_governor_is_refused_with_those_that_are_known():
    with pytest.raises(ExitbenchError, match=r"ondemand.*race-to-idle"):
        make_governor("ondemand", two_points(), outlook=CERTAIN)


def test_the_account_of_a_simulated_request_by_hand():
    request = governed("deadline", two_points(), (1, 3), deadline_s=5.85)
    # At the top clock to exit 1: segment, head, forecast. A switch. At the slow one to exit 3.
    assert request.seconds == pytest.approx(1.15 + 0.5 + 4.2)
    assert request.joules == pytest.approx(1.15 * 6 + 0.5 * 6 + 4.2 * 2)
    assert request.points == pytest.approx({"1000 MHz": 1.15, "500 MHz": 4.7})
    assert request.switches == 2  # and back again, while the device waits
    assert not request.missed


def test_who_leaves_early_pays_no_forecast_and_no_classifier():
    assert governed(None, two_points(), (2,)).seconds == pytest.approx(2.1)
    assert governed(None, two_points(), (4,)).seconds == pytest.approx(4.2)
    assert governed(None, two_points(), (2, 4)).seconds == pytest.approx(4.35)
    unpaid = governed(None, two_points(), (2, 4), outlook=LOOKING)
    assert unpaid.seconds == pytest.approx(4.3)


def test_requests_do_not_depend_on_those_before_them():
    table = two_points()
    steer = LiveSteer(make_governor("deadline", table, 5.85, outlook=FORECASTING), table)
    different = [(1, 3), (1,), (4,), (1, 2, 4)]
    for way in (*different, *reversed(different)):
        follow(steer, way)
    assert steer.requests[:4] == steer.requests[:3:-1]
    assert steer.requests[0] == governed("deadline", table, (1, 3), deadline_s=5.85)


class _Device:
    """A session and a clock: setting clocks takes 0.25 s, and time passes as it is told to."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.applied: list[Mapping[str, float]] = []

    def apply(self, values: Mapping[str, float]) -> float:
        self.applied.append(dict(values))
        self.now_s += 0.25
        return 0.25

    def clock(self) -> float:
        return self.now_s


def test_on_a_device_clocks_are_set_and_real_time_is_what_counts():
    table, device = two_points(), _Device()
    governor = make_governor("deadline", table, 5.85, outlook=FORECASTING)
    steer = LiveSteer(governor, table, device, device.clock)
    steer.begin(1)
    assert device.applied == [{"cpu": 1000.0}]
    device.now_s += 1.0
    steer.forecast(1, 3)
    assert device.applied[1:] == [{"cpu": 500.0}]
    device.now_s += 5.0
    steer.end(3)
    # Put back for the next request, after the answer.
    assert device.applied[2:] == [{"cpu": 1000.0}]
    assert steer.requests == [
        Request(6.25, None, 2, {"1000 MHz": 1.0, "500 MHz": 5.25}, missed=True)
    ]
    device.now_s += 50.0
    steer.begin(1)
    device.now_s += 2.0
    steer.end(1)
    assert steer.requests[1] == Request(2.0, None, 0, {"1000 MHz": 2.0}, missed=False)


def test_on_a_device_too_much_time_spent_leads_to_the_top_clock():
    table, device = two_points(), _Device()
    governor = make_governor("deadline", table, 5.85, outlook=FORECASTING)
    steer = LiveSteer(governor, table, device, device.clock)
    steer.begin(1)
    device.now_s += 1.2  # the table says 1.15
    steer.forecast(1, 3)
    assert device.applied == [{"cpu": 1000.0}]


@given(data=st.data(), table=tables(), name=st.sampled_from(["deadline", "deadline-safe"]))
def test_deadline_keeps_the_deadline_whenever_a_point_does(data, table, name):
    exits = table.exits
    exit = data.draw(st.integers(1, exits))
    following = data.draw(st.integers(exit + 1, exits + 1))
    spent_s, deadline_s = data.draw(st.floats(0.0, 10.0)), data.draw(st.floats(0.01, 40.0))
    current = data.draw(st.integers(0, table.top))
    governor = make_governor(name, table, deadline_s, outlook=FORECASTING)

    def ends_s(index: int) -> float:
        switch_s = 0.0 if index == current else table.switch_s
        costs = table.points[index]
        ends = costs.heads_s[following - 1] if following <= exits else costs.classifier_s
        ended_s = spent_s + switch_s + costs.segments_s[exit:following].sum() + ends
        if name == "deadline-safe" and following <= exits:
            top = table.points[-1]
            ended_s += costs.forecasts_s[following - 1] + (index != table.top) * table.switch_s
            ended_s += top.segments_s[following:].sum() + top.classifier_s
            ended_s += top.heads_s[following:].sum() + top.forecasts_s[following:].sum()
        return ended_s

    chosen = governor.choose(exit, following, spent_s, current)
    # The sums are taken in another order than the governor's: a billionth is for that.
    able = [p for p in range(len(table.points)) if ends_s(p) <= deadline_s * (1 - 1e-9)]
    if able:
        assert ends_s(chosen) <= deadline_s * (1 + 2e-9)
    else:
        assert chosen == table.top or ends_s(chosen) <= deadline_s * (1 + 2e-9)


@given(data=st.data(), table=tables())
def test_deadline_never_takes_more_energy_for_a_stretch_than_the_top_clock(data, table):
    exit = data.draw(st.integers(1, table.exits))
    following = data.draw(st.integers(exit + 1, table.exits + 1))
    current = data.draw(st.integers(0, table.top))
    deadline_s = data.draw(st.floats(0.01, 40.0))
    governor = make_governor("deadline", table, deadline_s, outlook=FORECASTING)

    def above_idle_j(index: int) -> float:
        seconds = table.stretches_s[index].cost(exit, following)
        joules = table.stretches_j[index].cost(exit, following)
        if index != current:
            seconds += table.switch_s
            joules += table.switch_j(current, index)
        return joules - table.idle_w * seconds

    chosen = governor.choose(exit, following, 0.0, current)
    kept = table.stretches_s[table.top].cost(exit, following) + table.switch_s <= deadline_s
    if kept or chosen == table.top:
        assert above_idle_j(chosen) <= above_idle_j(table.top)


@given(data=st.data(), table=tables(), slack=st.floats(1.0, 3.0))
def test_deadline_safe_never_misses_what_the_top_clock_can_keep(data, table, slack):
    outlook = data.draw(st.sampled_from([FORECASTING, LOOKING, Outlook(predicts=True)]))
    top = table.points[-1]
    most_s = top.segments_s.sum() + top.heads_s.sum() + top.classifier_s
    most_s += top.forecasts_s.sum() if outlook.pays else 0.0
    way = data.draw(ways(table.exits))
    request = governed(
        "deadline-safe", table, way, deadline_s=float(most_s * slack), outlook=outlook
    )
    assert not request.missed


@given(data=st.data(), table=tables(), name=st.sampled_from([None, *GOVERNORS]))
def test_the_account_adds_up(data, table, name):
    way = data.draw(ways(table.exits))
    deadline_s = data.draw(st.floats(0.01, 40.0))
    request = governed(name, table, way, deadline_s=deadline_s)
    assert sum(request.points.values()) == pytest.approx(request.seconds)
    assert request.missed == (request.seconds > deadline_s * (1 + 1e-6))
    fastest, slowest = (
        governed("fixed", table, way, operating_point=table.points[i].name) for i in (-1, 0)
    )
    between = request.switches * table.switch_s
    assert fastest.seconds <= request.seconds * (1 + 1e-9)
    assert request.seconds <= (slowest.seconds + between) * (1 + 1e-9)


@given(data=st.data(), table=tables(), name=st.sampled_from([*GOVERNORS]))
def test_governors_are_pure(data, table, name):
    way = data.draw(ways(table.exits))
    deadline_s = data.draw(st.floats(0.01, 40.0))
    assert governed(name, table, way, deadline_s=deadline_s) == governed(
        name, table, way, deadline_s=deadline_s
    )

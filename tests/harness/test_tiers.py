"""Tiers: how many windows of which length they plan, and what fits into the time allowed."""

from __future__ import annotations

import pytest
from exitbench.harness.tiers import MARGIN, TIERS, Plan, plan_windows
from hypothesis import given
from hypothesis import strategies as st

MILLI = [0.001] * 10


def planned(tier: str, narrowest_s: float, allowed_s: float | None = None) -> Plan:
    return plan_windows(TIERS[tier], MILLI, narrowest_s=narrowest_s, allowed_s=allowed_s)


@pytest.mark.parametrize(
    ("tier", "window_s", "windows", "seconds"),
    [("quick", 1.0, 5, 5.0), ("standard", 5.0, 6, 30.0), ("publish", 60.0, 10, 600.0)],
)
def test_a_tier_spreads_its_time_over_its_windows(
    tier: str, window_s: float, windows: int, seconds: float
) -> None:
    plan = planned(tier, narrowest_s=0.05)
    assert (plan.window_s, plan.windows, plan.seconds) == (window_s, windows, seconds)
    assert plan.name == tier
    # ten units, each window a tenth wider than asked for, to the call
    assert plan.need_s == pytest.approx(10 * windows * window_s * MARGIN, rel=0.01)


def test_a_slow_counter_widens_the_windows_and_not_their_number() -> None:
    plan = planned("quick", narrowest_s=5.0)
    assert (plan.window_s, plan.windows) == (5.0, 5)


def test_only_standard_goes_on_for_its_interval_and_up_to_its_cap() -> None:
    assert [tier for tier in TIERS if planned(tier, 0.05).interval is not None] == ["standard"]
    plan = planned("standard", 0.05)
    assert plan.most * plan.window_s == TIERS["standard"].cap_s
    assert plan.most_s == pytest.approx(4 * plan.need_s)


def test_less_time_gives_narrower_windows_before_it_gives_fewer() -> None:
    plan = planned("quick", narrowest_s=0.5, allowed_s=40.0)
    assert plan.name == "below quick"
    assert plan.windows == 5
    assert 0.5 < plan.window_s < 1.0
    assert plan.need_s == pytest.approx(40.0, rel=0.01)


def test_windows_never_shrink_below_what_the_counter_resolves() -> None:
    plan = planned("standard", narrowest_s=5.0, allowed_s=120.0)
    assert (plan.name, plan.window_s, plan.windows) == ("below standard", 5.0, 2)
    assert plan.interval is None


def test_where_not_one_window_fits_the_need_of_one_is_told() -> None:
    plan = planned("quick", narrowest_s=5.0, allowed_s=50.0)
    assert plan.windows == 0
    assert plan.need_s == pytest.approx(55.0)


def test_a_unit_longer_than_a_window_counts_with_its_own_length() -> None:
    plan = plan_windows(TIERS["quick"], [0.001, 7.0], narrowest_s=0.05, edge_s=0.002)
    assert plan.need_s == pytest.approx(5 * (1.1 + 7.0 + 2 * 0.002))


@given(
    tier=st.sampled_from(list(TIERS)),
    latencies_s=st.lists(st.floats(1e-6, 20.0), min_size=1, max_size=80),
    narrowest_s=st.floats(0.0, 60.0),
    edge_s=st.floats(0.0, 2.0),
    allowed_s=st.floats(0.1, 1e5) | st.none(),
)
def test_a_plan_keeps_the_time_allowed_and_the_narrowest_window(
    tier: str,
    latencies_s: list[float],
    narrowest_s: float,
    edge_s: float,
    allowed_s: float | None,
) -> None:
    plan = plan_windows(
        TIERS[tier], latencies_s, narrowest_s=narrowest_s, edge_s=edge_s, allowed_s=allowed_s
    )
    assert plan.window_s >= narrowest_s
    if allowed_s is None:
        assert plan.reached
    elif plan.windows:
        # The widest window is found by bisection to far below this.
        assert plan.need_s <= allowed_s * (1 + 1e-9)
    if plan.reached:
        assert plan.windows * plan.window_s >= TIERS[tier].seconds * (1 - 1e-9)

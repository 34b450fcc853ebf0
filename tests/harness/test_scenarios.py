"""Scenes by hand: energy per request and per hour, idle included, one after another or on time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from exitbench.harness.scenarios import SceneCost, continuous, periodic, scenario_rows
from hypothesis import given
from hypothesis import strategies as st


def test_one_request_after_another_never_idles() -> None:
    # 20 ms at 0.5 J: 50 requests a second, 25 W
    cost = continuous(0.02, 0.5)
    assert cost == SceneCost(1.0, True, 0.5, 0.0, pytest.approx(180_000), pytest.approx(25.0))
    assert cost.energy_per_hour_j == pytest.approx(90_000)


def test_between_requests_the_device_idles() -> None:
    # 20 ms of work at 0.5 J, then 80 ms at 10 W: 0.8 J
    cost = periodic(0.02, 0.5, 10.0, 0.1)
    assert cost.busy_share == pytest.approx(0.2)
    assert cost.keeps_up
    assert cost.idle_j == pytest.approx(0.8)
    assert cost.energy_j == pytest.approx(1.3)
    assert cost.requests_per_hour == pytest.approx(36_000)
    assert cost.power_w == pytest.approx(13.0)
    assert cost.energy_per_hour_j == pytest.approx(46_800)


def test_a_faster_network_saves_only_the_difference_between_working_and_idle_power() -> None:
    # 25 W at work, 10 W idle: the 10 ms that are saved save 15 W of them
    slow, fast = periodic(0.02, 0.5, 10.0, 0.1), periodic(0.01, 0.25, 10.0, 0.1)
    assert slow.energy_j - fast.energy_j == pytest.approx(0.01 * 15.0)  # type: ignore[operator]


def test_what_cannot_keep_up_serves_one_after_another() -> None:
    cost = periodic(0.2, 5.0, 10.0, 0.1)
    assert cost.busy_share == pytest.approx(2.0)
    assert not cost.keeps_up
    assert (cost.energy_j, cost.idle_j) == (5.0, 0.0)
    assert cost.requests_per_hour == pytest.approx(18_000)
    assert cost.power_w == pytest.approx(25.0)


def test_a_request_exactly_as_long_as_the_period_keeps_up() -> None:
    cost = periodic(0.1, 2.5, 10.0, 0.1)
    assert (cost.keeps_up, cost.idle_j, cost.energy_j) == (True, 0.0, 2.5)


@pytest.mark.parametrize(("energy_j", "idle_w"), [(None, 10.0), (0.5, None), (None, None)])
def test_what_is_not_known_stays_unknown(energy_j: float | None, idle_w: float | None) -> None:
    cost = periodic(0.02, energy_j, idle_w, 0.1)
    assert (cost.energy_j, cost.power_w, cost.energy_per_hour_j) == (None, None, None)
    assert cost.requests_per_hour == pytest.approx(36_000)


@given(
    latency_s=st.floats(1e-5, 10.0),
    power_w=st.floats(0.1, 1000.0),
    idle_share=st.floats(0.0, 1.0),
    period_s=st.floats(1e-4, 100.0),
)
def test_mean_power_lies_between_idle_and_work(
    latency_s: float, power_w: float, idle_share: float, period_s: float
) -> None:
    idle_w = idle_share * power_w
    cost = periodic(latency_s, power_w * latency_s, idle_w, period_s)
    assert cost.power_w is not None
    # a hair for the rounding of sums and quotients
    assert idle_w * (1 - 1e-9) <= cost.power_w <= power_w * (1 + 1e-9)
    assert cost.energy_per_hour_j == pytest.approx(cost.power_w * 3600)


def chosen(**changes: Any) -> pd.DataFrame:
    """A comparison of one role."""
    row = {
        "role": "full", "policy": "full", "criterion": None, "beta": np.nan,
        "start_layer": np.nan, "predictor": None, "precision": "fp32", "batch_size": 1,
        "device": "cpu", "accuracy": 0.9, "latency_ms": 20.0, "energy_mj": 500.0,
        "energy_source": "measured",
    }  # fmt: skip
    return pd.DataFrame([row | changes])


def test_every_role_has_a_row_per_scene_and_period() -> None:
    rows = scenario_rows(chosen(), (100.0, 10.0), 10.0, "measured")
    found = [(row["scene"], row["period_ms"], row["keeps_up"]) for row in rows]
    assert found == [("continuous", None, 1), ("periodic", 100.0, 1), ("periodic", 10.0, 0)]
    assert rows[1]["energy_per_request_mj"] == pytest.approx(1300.0)
    assert rows[1]["idle_energy_per_request_mj"] == pytest.approx(800.0)
    assert [row["energy_source"] for row in rows] == ["measured"] * 3
    assert {row["idle_source"] for row in rows} == {"measured"}


def test_energies_are_as_trustworthy_as_the_weakest_part_that_went_in() -> None:
    rows = scenario_rows(chosen(), (100.0, 10.0), 10.0, "modelled")
    # Only the scene that idles has any idle power in it.
    assert [row["energy_source"] for row in rows] == ["measured", "modelled", "measured"]


def test_without_idle_power_periodic_energies_are_unavailable() -> None:
    rows = scenario_rows(chosen(), (100.0,), None)
    assert [row["energy_source"] for row in rows] == ["measured", "unavailable"]
    assert rows[1]["energy_per_request_mj"] is None
    assert rows[1]["requests_per_hour"] == pytest.approx(36_000)


def test_larger_batches_and_unknown_latencies_have_no_scenes() -> None:
    assert scenario_rows(chosen(batch_size=64), (100.0,), 10.0) == []
    assert scenario_rows(chosen(latency_ms=np.nan), (100.0,), 10.0) == []

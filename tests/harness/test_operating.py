"""Costs at every operating point: measured ones as they are, the others from the clock model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exitbench.harness.costs import CostTable
from exitbench.harness.dvfs import dvfs_of, points_of
from exitbench.harness.errors import ExitbenchError
from exitbench.harness.operating import TOP_ASSUMED, NothingToGovern, operating_table
from exitbench.profiles.loading import load_profile
from exitbench.profiles.schema import Profile

PROFILE = """
schema = 1
name = "bench"
description = "three clocks"
priority = 0
[[match]]
machine = ["none"]
source = "test"
[power.cpu]
covers = "cpu"
idle_w = { value = 2, source = "test" }
active_w = { value = 10, source = "test" }
[clocks.cpu]
levels_mhz = { value = [500, 750, 1000], source = "test" }
switch_ms = { value = 3, source = "test" }
[dvfs.cpu]
static_w = { value = 2, source = "test" }
voltage_floor = { value = 0.8, source = "test" }
voltage_knee = { value = 0.5, source = "test" }
fixed_time_share = { value = 0.2, source = "test" }
"""
NO_CLOCKS = PROFILE.replace("[clocks.cpu]", "[clocks.gpu]")


def profile_of(folder: Path, text: str = PROFILE) -> Profile:
    (folder / "bench.toml").write_text(text, encoding="utf-8")
    return load_profile(folder / "bench.toml")


def rows(point: str = "default", factor: float = 1.0, **more: Any) -> list[dict[str, Any]]:
    """Two exits; segments take 4, 5 and 6 ms, heads 1, forecasts 0.5, the classifier 2."""
    units = [("segment", i, 3.0 + i) for i in (1, 2, 3)]
    units += [("head", i, 1.0) for i in (1, 2)] + [("forecast", i, 0.5) for i in (1, 2)]
    units += [("classifier", 3, 2.0)]
    return [
        {
            "kind": kind, "index": index, "macs": 1, "operating_point": point,
            "latency_ms": latency * factor, **more,
        }
        for kind, index, latency in units
    ]  # fmt: skip


def with_energy(power_w: float, source: str, **more: Any) -> list[dict[str, Any]]:
    return [
        {**row, "energy_mj": row["latency_ms"] * power_w, "energy_source": source}
        for row in rows(**more)
    ]


def table_and_points(folder: Path, *tables: list[dict[str, Any]], **more: Any):
    table = CostTable.from_rows([row for each in tables for row in each])
    prices = table.select("fp32", 1)
    return operating_table(table, prices, profile_of(folder), "cpu", **more)


def test_the_default_clocks_are_taken_for_the_top_clock_and_it_is_said(tmp_path):
    found = table_and_points(tmp_path, with_energy(7.0, "measured"))
    top = found.points[-1]
    assert [point.name for point in found.points] == ["500 MHz", "750 MHz", "1000 MHz"]
    assert top.segments_s == pytest.approx([0.004, 0.005, 0.006])
    assert top.classifier_j == pytest.approx(0.014)
    assert (top.latency_source, top.energy_source) == ("measured", "measured")
    assert TOP_ASSUMED in found.notes


def test_lower_clocks_are_modelled_from_the_top_and_marked(tmp_path):
    found = table_and_points(tmp_path, with_energy(7.0, "measured"))
    slow = found.points[0]
    # A fifth of the time does not scale, the rest doubles; 2 W stay, 8 W follow f V^2.
    slower, watts = 0.2 + 0.8 / 0.5, 2 + 8 * 0.5 * 0.8**2
    assert slow.segments_s == pytest.approx(np.array([0.004, 0.005, 0.006]) * slower)
    assert slow.heads_s == pytest.approx([0.001 * slower] * 2)
    # The measured 7 W, and not the 10 W of the profile, by the model's ratio of powers.
    assert slow.power_w == pytest.approx(7.0 * watts / 10)
    assert slow.forecasts_j == pytest.approx([0.0005 * slower * 7.0 * watts / 10] * 2)
    assert (slow.latency_source, slow.energy_source) == ("modelled", "modelled")
    assert (found.latency_source, found.energy_source) == ("modelled", "modelled")


def test_without_energies_they_are_power_times_time_and_modelled(tmp_path):
    found = table_and_points(tmp_path, rows())
    model, points = dvfs_of(profile_of(tmp_path), "cpu"), points_of(profile_of(tmp_path), "cpu")
    assert [p.power_w for p in found.points] == pytest.approx([model.power_w(p) for p in points])
    assert found.points[-1].power_w == pytest.approx(10)
    assert found.points[-1].energy_source == "modelled"
    assert found.points[-1].latency_source == "measured"


def test_one_energy_that_is_missing_makes_the_point_modelled(tmp_path):
    priced = with_energy(7.0, "measured")
    priced[0] |= {"energy_mj": None, "energy_source": "unavailable"}
    top = table_and_points(tmp_path, priced).points[-1]
    assert top.segments_j == pytest.approx([0.004 * 10, 0.005 * 7, 0.006 * 7])
    assert top.energy_source == "modelled"


def test_a_point_that_was_measured_goes_before_the_model(tmp_path):
    slow = with_energy(3.0, "measured", point="500 MHz", factor=1.5)
    found = table_and_points(tmp_path, with_energy(7.0, "measured"), slow)
    assert found.points[0].segments_s == pytest.approx([0.006, 0.0075, 0.009])
    assert found.points[0].power_w == pytest.approx(3.0)
    assert found.points[0].energy_source == "measured"
    assert found.points[1].energy_source == "modelled"


def test_the_top_clock_that_was_measured_goes_before_the_default(tmp_path):
    top = with_energy(9.0, "measured", point="1000 MHz", factor=0.9)
    found = table_and_points(tmp_path, with_energy(7.0, "measured"), top)
    assert found.points[-1].segments_s == pytest.approx([0.0036, 0.0045, 0.0054])
    slower, watts = 0.2 + 0.8 / 0.5, 2 + 8 * 0.5 * 0.8**2
    assert found.points[0].full_s == pytest.approx(found.points[-1].full_s * slower)
    assert found.points[0].power_w == pytest.approx(9.0 * watts / 10)
    assert TOP_ASSUMED not in found.notes


def test_a_measured_point_of_another_device_is_left_out_and_named(tmp_path):
    found = table_and_points(tmp_path, rows(), rows(point="333 MHz"))
    assert len(found.points) == 3
    assert any("'333 MHz'" in note for note in found.notes)


def test_measured_levels_that_the_profile_does_not_have_are_the_devices_own_list(tmp_path):
    low = with_energy(3.0, "measured", point="400 MHz", factor=2.0, clock_mhz=400)
    high = with_energy(9.0, "measured", point="1600 MHz", factor=0.7, clock_mhz=1600)
    found = table_and_points(tmp_path, with_energy(7.0, "measured"), high, low)
    assert [(p.name, p.f_ratio) for p in found.points] == [("400 MHz", 0.25), ("1600 MHz", 1.0)]
    assert [p.power_w for p in found.points] == pytest.approx([3.0, 9.0])
    assert found.energy_source == "measured"
    assert found.points[0].clock_mhz == {"cpu": 400}


def test_a_mode_that_is_one_of_the_levels_is_known_by_both_names(tmp_path):
    mode = '[[operating_points]]\nname = "ECO"\nclock_mhz = { cpu = 750 }\nsource = "test"\n'
    table = CostTable.from_rows(rows())
    profile = profile_of(tmp_path, PROFILE + mode)
    found = operating_table(table, table.select("fp32", 1), profile, "cpu")
    assert len(found.points) == 3
    assert found.index("ECO") == found.index("750 MHz") == 1
    with pytest.raises(ExitbenchError, match="'ECO'"):
        found.index("TURBO")


def test_idle_power_is_the_profiles_unless_it_was_measured(tmp_path):
    assert table_and_points(tmp_path, rows()).idle_w == 2
    assert table_and_points(tmp_path, rows()).idle_source == "modelled"
    found = table_and_points(tmp_path, rows(), idle_w=1.4, idle_source="measured")
    assert (found.idle_w, found.idle_source) == (1.4, "measured")


def test_busy_cores_alone_draw_the_power_that_follows_the_clock(tmp_path):
    half = table_and_points(tmp_path, rows(), busy=0.5)
    assert half.points[-1].power_w == pytest.approx(2 + 0.5 * 8)
    assert half.switch_s == pytest.approx(0.003)


def test_forecasts_without_rows_are_unknown_and_not_free(tmp_path):
    few = [row for row in rows() if row["kind"] != "forecast"]
    found = table_and_points(tmp_path, few)
    assert np.isnan(found.points[0].forecasts_s).all()
    assert np.isnan(found.points[0].forecasts_j).all()
    assert not np.isnan(found.points[0].heads_j).any()


def refusal(folder: Path, cost: list[dict[str, Any]], text: str = PROFILE, batch: int = 1) -> str:
    table = CostTable.from_rows(cost)
    with pytest.raises(ExitbenchError) as caught:
        operating_table(table, table.select("fp32", batch), profile_of(folder, text), "cpu")
    return str(caught.value)


def test_what_cannot_be_governed_is_refused_with_the_remedy(tmp_path):
    batched = [{**row, "batch_size": 64} for row in rows()]
    assert "--batch-sizes 1" in refusal(tmp_path, batched, batch=64)
    untimed = rows()
    untimed[1]["latency_ms"] = None
    assert "latency_ms of segment 2" in refusal(tmp_path, untimed)
    assert "[clocks.cpu]" in refusal(tmp_path, rows(), NO_CLOCKS)
    table = CostTable.from_rows(rows())
    prices, profile = table.select("fp32", 1), profile_of(tmp_path)
    with pytest.raises(NothingToGovern):
        operating_table(table, prices, profile, "gpu")

"""Costs on another device, from its peaks: by hand, and honest about what is not known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from exitbench.harness.costs import CostTable
from exitbench.harness.errors import ExitbenchError
from exitbench.harness.roofline import device_class_of, price_elsewhere, roofline_of
from exitbench.profiles.loading import list_profiles, load_profile
from exitbench.profiles.schema import Profile

PROFILE = """
schema = 1
name = "board"
description = "a GPU with round figures"
priority = 0
[[match]]
machine = ["none"]
source = "test"
[power.gpu]
covers = "module"
idle_w = { value = 2, source = "test" }
active_w = { value = 10, source = "test" }
[power.cpu]
covers = "module"
active_w = { value = 5, source = "test" }
[peaks.gpu]
fp32_gflops = { value = 100, source = "test" }
int8_gops = { value = 400, source = "test" }
fp16_gflops = { value = 200, source = "test" }
bandwidth_gb_s = { value = 10, source = "test" }
[model.gpu]
efficiency = { value = 0.5, source = "test" }
bandwidth_efficiency = { value = 0.8, source = "test" }
launch_ms = { value = 0.1, source = "test" }
"""


def profile_of(folder: Path, text: str = PROFILE) -> Profile:
    (folder / "board.toml").write_text(text, encoding="utf-8")
    return load_profile(folder / "board.toml")


def rows(**more: Any) -> list[dict[str, Any]]:
    """One exit: a segment bound by arithmetic, one by memory, a head, a forecast, a classifier."""
    counts = {
        ("segment", 1): (50_000_000, 1_000),  # 1 ms of arithmetic
        ("segment", 2): (50_000, 16_000_000),  # 2 ms of traffic
        ("head", 1): (5_000_000, 100),  # 0.1 ms
        ("forecast", 1): (0, 800_000),  # 0.1 ms
        ("classifier", 2): (2_500_000, 100),  # 0.05 ms
    }
    return [
        {"kind": kind, "index": index, "macs": flops // 2, "flops": flops, "bytes": moved, **more}
        for (kind, index), (flops, moved) in counts.items()
    ]


def test_a_part_takes_the_longer_of_arithmetic_and_traffic_and_a_launch(tmp_path):
    priced = price_elsewhere(CostTable.from_rows(rows()), profile_of(tmp_path), "gpu", ["fp32"])
    prices = priced.table.select("fp32", 1)
    assert prices.segments["latency_ms"] == pytest.approx([1.1, 2.1])
    assert prices.classifier["latency_ms"] == pytest.approx(0.15)
    # The answer of a head or a forecast has to come back to the policy: one launch more.
    assert prices.heads["latency_ms"] == pytest.approx([0.3])
    assert prices.forecasts["latency_ms"] == pytest.approx([0.3])
    assert prices.segments["energy_mj"] == pytest.approx([11.0, 21.0])
    assert (prices.latency_source, prices.energy_source) == ("modelled", "modelled")
    assert prices.segments["macs"].tolist() == [25_000_000, 25_000]


def test_only_segments_compute_in_the_precision_of_the_network(tmp_path):
    table = CostTable.from_rows(rows(precision="int8"))
    prices = price_elsewhere(table, profile_of(tmp_path), "gpu", ["int8"]).table.select("int8", 1)
    assert prices.segments["latency_ms"] == pytest.approx([0.25 + 0.1, 2.1])
    assert prices.heads["latency_ms"] == pytest.approx([0.3])
    assert prices.classifier["latency_ms"] == pytest.approx(0.15)


def test_bytes_of_another_precision_are_scaled_to_this_one(tmp_path):
    table = CostTable.from_rows(rows(precision="fp32"))
    prices = price_elsewhere(table, profile_of(tmp_path), "gpu", ["int8"]).table.select("int8", 1)
    assert prices.segments["latency_ms"][1] == pytest.approx(0.5 + 0.1)  # a quarter of the traffic
    assert prices.forecasts["latency_ms"] == pytest.approx([0.3])  # always fp32


def test_a_precision_without_a_peak_is_left_out_with_a_note(tmp_path):
    """bf16 is not priced with the peak of fp16."""
    table = CostTable.from_rows([*rows(), *rows(precision="bf16")])
    priced = price_elsewhere(table, profile_of(tmp_path), "gpu", ["fp32", "bf16"])
    assert priced.table.settings() == [("fp32", 1, "default")]
    (words,) = priced.left_out
    assert "bf16 is left out" in words
    assert "bf16_gflops" in words
    with pytest.raises(ExitbenchError, match=r"bf16.*fp32, too"):
        price_elsewhere(table, profile_of(tmp_path), "gpu", ["bf16"])


def test_flops_follow_from_macs_and_parts_without_bytes_are_named(tmp_path):
    by_hand = [{**row, "flops": None, "bytes": None} for row in rows()]
    priced = price_elsewhere(CostTable.from_rows(by_hand), profile_of(tmp_path), "gpu", ["fp32"])
    prices = priced.table.select("fp32", 1)
    assert prices.segments["latency_ms"] == pytest.approx([1.1, 0.101])
    assert any("5 parts" in note and "no bytes" in note for note in priced.notes)


def test_a_table_without_single_samples_is_refused(tmp_path):
    table = CostTable.from_rows(rows(batch_size=64))
    with pytest.raises(ExitbenchError, match="--batch-sizes 1"):
        price_elsewhere(table, profile_of(tmp_path), "gpu", ["fp32"])


def test_assumptions_are_handed_on_and_defaults_are_assumptions(tmp_path):
    bare = profile_of(tmp_path, PROFILE.partition("[model.gpu]")[0])
    words = "; ".join(roofline_of(bare, "gpu").assumptions)
    for name in ("efficiency = 0.5", "bandwidth_efficiency = 0.7", "launch_ms = 0.05"):
        assert name in words
    assert roofline_of(profile_of(tmp_path), "gpu").assumptions == ()


def test_the_gpu_runs_the_network_where_its_peaks_and_power_are_known(tmp_path):
    assert device_class_of(profile_of(tmp_path)) == "gpu"
    assert device_class_of(profile_of(tmp_path, PROFILE.replace("peaks.gpu", "peaks.cpu"))) == "cpu"
    nothing = PROFILE.partition("[peaks.gpu]")[0]
    with pytest.raises(ExitbenchError, match="no peaks"):
        device_class_of(profile_of(tmp_path, nothing))
    with pytest.raises(ExitbenchError, match="fp32"):
        roofline_of(profile_of(tmp_path, PROFILE.replace("fp32_gflops", "tf32_gflops")), "gpu")


@pytest.mark.parametrize("name", [n for n in list_profiles() if not n.startswith("generic")])
def test_every_shipped_profile_of_a_device_can_price_a_network(name):
    profile = load_profile(name)
    priced = price_elsewhere(
        CostTable.from_rows(rows()), profile, device_class_of(profile), ["fp32"]
    )
    assert (priced.table.select("fp32", 1).segments["latency_ms"] > 0).all()

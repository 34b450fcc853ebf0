"""What a machine is set to, read from a folder that looks like sysfs."""

from __future__ import annotations

from pathlib import Path

from exitbench.harness.conditions import clock_policies, policy_words, settings
from fake_clocks import add_policy, add_range_policy
from fake_machine import Card, fake_nvml


def test_policies_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (10, 2, 0):
        add_policy(tmp_path, number)
    found = clock_policies(tmp_path)
    assert [policy.name for policy in found] == ["policy0", "policy2", "policy10"]
    assert (found[0].governor, found[0].min_mhz, found[0].max_mhz) == ("schedutil", 345.6, 2035.2)


def test_alike_policies_share_a_line(tmp_path: Path) -> None:
    add_range_policy(tmp_path, 0, 800_000, 4_800_000)
    add_range_policy(tmp_path, 1, 800_000, 4_800_000)
    add_range_policy(tmp_path, 2, 400_000, 2_000_000, governor="performance")
    assert list(policy_words(clock_policies(tmp_path))) == [
        "policy0 to policy1: governor powersave, driver unknown, 800 to 4800 MHz",
        "policy2: governor performance, driver unknown, 400 to 2000 MHz",
    ]


def test_what_a_machine_does_not_show_is_unknown(tmp_path: Path) -> None:
    assert clock_policies(tmp_path) == []
    found = settings(tmp_path)
    assert found["clock_policies"] == []
    assert found["boost"] is None
    assert found["load_1min"] >= 0


def test_a_file_with_odd_content_is_unknown_and_no_error(tmp_path: Path) -> None:
    folder = add_policy(tmp_path, 0)
    (folder / "scaling_max_freq").write_text("<unsupported>\n")
    (folder / "scaling_governor").write_bytes(b"\xff\xfe")
    found = clock_policies(tmp_path)[0]
    assert (found.max_mhz, found.governor) == (None, None)
    assert "unknown limits" in next(policy_words([found]))


def test_settings_are_plain_values_for_a_manifest(tmp_path: Path) -> None:
    import json

    add_policy(tmp_path, 0)
    boost = tmp_path / "sys/devices/system/cpu/cpufreq/boost"
    boost.write_text("1\n")
    found = json.loads(json.dumps(settings(tmp_path)))
    assert found["boost"] == "1"
    assert found["clock_policies"][0]["governor"] == "schedutil"


def test_how_the_cards_are_set_is_recorded_as_far_as_they_tell(tmp_path: Path) -> None:
    library = fake_nvml(Card(), Card(uuid="GPU-bbbb-2"))
    library.nvmlSystemGetDriverVersion = lambda: "580.65"  # type: ignore[attr-defined]
    library.nvmlDeviceGetPersistenceMode = lambda card: 1  # type: ignore[attr-defined]
    library.nvmlDeviceGetEccMode = lambda card: [1, 0]  # type: ignore[attr-defined]
    library.nvmlDeviceGetEnforcedPowerLimit = lambda card: 650_000  # type: ignore[attr-defined]
    found = settings(tmp_path, library)
    assert found["gpu_driver"] == "580.65"
    assert found["gpus"][1] == {
        "index": 1,
        "name": "NVIDIA H200",
        "persistence_mode": 1,
        "ecc": 1,
        "power_limit_w": 650.0,
    }


def test_a_machine_without_cards_records_none(tmp_path: Path) -> None:
    found = settings(tmp_path, fake_nvml(driver=False))
    assert (found["gpu_driver"], found["gpus"]) == (None, [])

"""The device's own clock levels, read where the run is of this machine; else its profile's."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from exitbench.harness.clocks import sysfs
from exitbench.harness.dvfs import dvfs_of
from exitbench.harness.levels import MOST, LevelList, is_of_costs, levels_here
from exitbench.profiles.loading import load_profile
from exitbench.profiles.schema import Profile
from fake_clocks import (
    CPU_MODEL,
    ClockCard,
    Kernel,
    add_cpuinfo,
    add_devfreq,
    add_policy,
    add_range_policy,
    lockable_nvml,
)  # fmt: skip
from test_operating import PROFILE

KHZ = (400_000, 800_000, 1_600_000, 2_000_000)
H100 = tuple(range(345, 1981, 15))
HERE = {"machine": platform.machine(), "cpu": CPU_MODEL, "device": "cpu", "gpu": None}
ON_CARD = {**HERE, "device": "cuda:0", "gpu": "NVIDIA H100 80GB HBM3"}


def mode(name: str, clocks: str, figures: str = "") -> str:
    return (
        f'[[operating_points]]\nname = "{name}"\nclock_mhz = {{ {clocks} }}\nsource = "test"\n'
        f"{figures}\n"
    )


def profile_of(folder: Path, text: str = PROFILE) -> Profile:
    (folder / "bench.toml").write_text(text, encoding="utf-8")
    return load_profile(folder / "bench.toml")


def listed(root: Path, profile: Profile, keep: Sequence[str] = (), **where: Any) -> LevelList:
    """The levels on a machine that is the run's unless ``where`` says otherwise."""
    add_cpuinfo(root)
    return levels_here(profile, {**HERE, **where}, keep, root=root)


def on_card(root: Path, card: ClockCard, profile: Profile, keep: Sequence[str] = ()) -> LevelList:
    add_cpuinfo(root)
    library: ModuleType = lockable_nvml(card)
    return levels_here(
        profile, ON_CARD, keep, root=root, nvml=library, environ={}, cuda_uuid=lambda index: None
    )


def names(found: LevelList, device_class: str = "cpu") -> list[str]:
    return [point.name for point in found.points(device_class) or ()]


def test_the_drivers_list_goes_before_the_profiles_at_shares_of_its_own_top(
    tmp_path: Path,
) -> None:
    add_policy(tmp_path, 0, KHZ)
    found = listed(tmp_path, profile_of(tmp_path))
    points = found.points("cpu")
    assert points is not None
    assert [(point.name, point.f_ratio) for point in points] == [
        ("400 MHz", 0.2), ("800 MHz", 0.4), ("1600 MHz", 0.8), ("2000 MHz", 1.0),
    ]  # fmt: skip
    assert found.source == "device"
    assert found.words == "the device's own levels, all 4 of cpufreq policy0"
    # What the profile says of its clock else stays.
    assert dvfs_of(found.profile, "cpu").switch_s == pytest.approx(0.003)


def test_levels_are_read_without_permission_and_nothing_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = Kernel()
    monkeypatch.setattr(sysfs, "put_text", kernel.put_text)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    add_policy(tmp_path, 0, KHZ)
    add_devfreq(tmp_path, "17000000.gp10b")
    assert listed(tmp_path, profile_of(tmp_path)).source == "device"
    jetson = listed(tmp_path, load_profile("jetson-tx2"), device="cuda", gpu="NVIDIA Tegra X2")
    assert jetson.words == "the device's own levels, all 4 of devfreq 17000000.gp10b"
    assert kernel.writes == []


def test_a_card_is_asked_for_its_list_and_not_locked(tmp_path: Path) -> None:
    card = ClockCard("NVIDIA H100 80GB HBM3", graphics_clocks=(345, 900, 1755))
    found = on_card(tmp_path, card, load_profile("nvidia-h100"))
    assert names(found, "gpu") == ["345 MHz", "900 MHz", "1755 MHz"]
    assert "3 of NVML graphics clock of GPU 0 (NVIDIA H100 80GB HBM3)" in found.words
    assert card.calls == []


def test_a_range_without_a_list_is_the_devices_own_range_in_steps(tmp_path: Path) -> None:
    add_range_policy(tmp_path, 0, 800_000, 1_150_000)
    found = listed(tmp_path, profile_of(tmp_path))
    assert names(found) == ["800 MHz", "900 MHz", "1000 MHz", "1100 MHz", "1150 MHz"]
    assert "the driver lists no levels: steps of 100 MHz" in found.words


def test_a_profile_that_knows_no_clock_is_governed_by_the_devices_list(tmp_path: Path) -> None:
    add_policy(tmp_path, 0, KHZ)
    found = listed(tmp_path, profile_of(tmp_path, PROFILE.replace("[clocks.cpu]", "[clocks.gpu]")))
    assert len(names(found)) == len(KHZ)


def test_a_long_list_is_thinned_evenly_with_both_ends_and_what_is_wanted(tmp_path: Path) -> None:
    card = ClockCard("NVIDIA H100 80GB HBM3", graphics_clocks=H100)
    profile = load_profile("nvidia-h100")
    found = on_card(tmp_path, card, profile)
    points = found.points("gpu")
    assert points is not None
    clocks = [point.clock_mhz["gpu"] for point in points]
    assert len(clocks) == MOST
    assert (clocks[0], clocks[-1]) == (345, 1980)
    gaps = [high - low for low, high in pairwise(clocks)]
    assert set(gaps) <= {45, 60}  # 109 steps in 31 gaps
    assert f"{MOST} of the 110 of NVML" in found.words
    left_out = next(mhz for mhz in H100 if mhz not in clocks)
    kept = on_card(tmp_path, card, profile, keep=["default", f"{left_out} MHz", "5 GHz"])
    assert set(names(kept, "gpu")) - set(names(found, "gpu")) == {f"{left_out} MHz"}


def test_named_points_stay_where_the_device_has_their_clock(tmp_path: Path) -> None:
    khz = tuple(range(1_000_000, 5_000_000, 50_000))
    add_policy(tmp_path, 0, khz)
    # 80 levels in 31 gaps: the second of them goes, unless it is wanted.
    profile = profile_of(
        tmp_path,
        PROFILE.replace("[500, 750, 1000]", "[750, 1050, 4950]")
        + mode("ECO", "cpu = 1050") + mode("GONE", "cpu = 750"),
    )  # fmt: skip
    found = listed(tmp_path, profile)
    assert [point.name for point in found.profile.operating_points] == ["ECO"]
    assert "1050 MHz" in names(found)
    assert "1050 MHz" not in names(listed(tmp_path, profile_of(tmp_path)))
    assert any("no level of the device: GONE" in note for note in found.notes)


@pytest.mark.parametrize(("top", "stated"), [(2000, 7.0), (2400, None)])
def test_what_a_point_states_against_another_top_clock_is_not_used(
    tmp_path: Path, top: int, stated: float | None
) -> None:
    add_policy(tmp_path, 0, KHZ)
    figures = (
        'power_w = { value = 7, source = "test" }\ntime_factor = { value = 3, source = "test" }'
    )
    text = PROFILE.replace("1000]", f"{top}]") + mode("ECO", "cpu = 800", figures)
    found = listed(tmp_path, profile_of(tmp_path, text.replace("750,", "800,")))
    points = {point.name: point for point in found.points("cpu") or ()}
    assert points["800 MHz"].stated_w == stated
    assert points["800 MHz"].stated_time == (3.0 if stated else None)
    assert any("top clock are not used" in note for note in found.notes) == (stated is None)


def test_voltages_of_the_profile_are_interpolated_at_the_devices_levels(tmp_path: Path) -> None:
    add_policy(tmp_path, 0, (500_000, 600_000, 900_000, 1_000_000, 1_200_000))
    table = 'switch_ms = { value = 3, source = "test" }\n'
    volts = f'{table}voltage_mv = {{ value = [600, 700, 1000], source = "test" }}\n'
    found = listed(tmp_path, profile_of(tmp_path, PROFILE.replace(table, volts)))
    voltage = found.profile.clocks["cpu"].voltage_mv
    assert voltage is not None
    assert voltage.value == pytest.approx((600, 640, 880, 1000, 1000))


def stays(found: LevelList, profile: Profile, words: str, why: str) -> bool:
    return (
        (found.profile, found.source, found.points("cpu")) == (profile, "profile", None)
        and found.words == f"levels of the profile: {words}"
        and why in found.notes[0]
    )


@pytest.mark.parametrize(
    "where", [{"cpu": "Another CPU"}, {"machine": "riscv64"}, {"cpu": None, "machine": None}]
)
def test_a_run_of_another_machine_keeps_the_levels_of_its_profile(
    tmp_path: Path, where: dict[str, Any]
) -> None:
    add_policy(tmp_path, 0, KHZ)
    profile = profile_of(tmp_path)
    found = listed(tmp_path, profile, **where)
    assert stays(found, profile, "the run is of another machine", next(iter(where)))


def test_a_run_of_another_card_keeps_the_levels_of_its_profile(tmp_path: Path) -> None:
    profile = load_profile("nvidia-h100")
    other = on_card(tmp_path, ClockCard("NVIDIA A100-SXM4-80GB"), profile)
    assert stays(other, profile, "the run is of another machine", "A100-SXM4-80GB")
    older = on_card(tmp_path, ClockCard("H100 80GB HBM3"), profile)  # without the maker's name
    assert older.source == "device"


def test_a_machine_that_shows_no_list_keeps_the_levels_of_its_profile(tmp_path: Path) -> None:
    profile, words = profile_of(tmp_path), "this machine shows none of its own"
    assert stays(listed(tmp_path, profile), profile, words, "has no policy")
    add_policy(tmp_path, 0, (1_000_000,))
    assert stays(listed(tmp_path, profile), profile, words, "one level only")
    card = load_profile("nvidia-h100")
    sliced = on_card(tmp_path, ClockCard("NVIDIA H100 80GB HBM3", mig=True), card)
    assert stays(sliced, card, words, "MIG")


def test_the_profile_of_the_costs_is_known_though_a_run_has_noted_another(tmp_path: Path) -> None:
    bench, tx2 = profile_of(tmp_path), load_profile("jetson-tx2")
    noted = {"asked": "jetson-tx2", "profile": "jetson-tx2"}
    priced = {"profile": {"config": {"hardware": str(tmp_path / "bench.toml")}}}
    manifest = {"hardware": noted, "commands": priced}
    assert is_of_costs(bench, manifest, "cpu")
    assert not is_of_costs(tx2, manifest, "cpu")
    # Costs by hand: what the manifest says is all that is known.
    assert is_of_costs(tx2, {"hardware": noted}, "cpu")
    assert not is_of_costs(bench, {"hardware": noted}, "cpu")
    found = {"asked": "auto", "profile": "bench"}
    chosen = {"hardware": found, "commands": {"study": {"config": {"hardware": "auto"}}}}
    assert is_of_costs(bench, chosen, "cpu")
    assert not is_of_costs(tx2, chosen, "cpu")

"""The doctor on machines that a folder and a module stand for."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from exitbench.harness.clocks.journal import Entry, write_journal
from exitbench.harness.configs import DeviceConfig, MeteringConfig
from exitbench.harness.configs_device import DoctorConfig
from exitbench.harness.doctor import run_doctor
from exitbench.harness.errors import CheckFailed
from fake_clocks import add_policy, add_range_policy
from fake_machine import Card, Clock, Powercap, fake_nvml
from pipeline_fixtures import Said

POWER_W, PERIOD_S = 20.0, 0.001


class Counted(Clock):
    """A clock on which a RAPL counter goes on, by so many watts and in steps."""

    def __init__(self, cap: Powercap) -> None:
        super().__init__(step_s=1e-4)
        cap.zone("intel-rapl:0", "package-0")

        def tick() -> None:
            steps = math.floor(self.now_s / PERIOD_S)
            cap.set_uj("intel-rapl:0", round(steps * PERIOD_S * POWER_W * 1e6))

        self.on_tick = tick
        tick()

    def sleep(self, seconds: float) -> None:
        """Nothing happens for a while."""
        self.now_s += seconds
        self.on_tick()


def examined(
    root: Path,
    nvml: Any = None,
    clock: Clock | None = None,
    device: str = "cpu",
    hardware: str = "generic-x86",
    **more: Any,
) -> tuple[Said, CheckFailed | None]:
    """What the doctor says, and how the check failed if it did."""
    said = Said()
    config = DoctorConfig(
        seconds=1.0, hardware=hardware, device=DeviceConfig(device), **more.pop("config", {})
    )
    waiting = {"clock": clock, "sleep": clock.sleep} if isinstance(clock, Counted) else {}
    more.setdefault("journal", root / "no-journal")
    try:
        run_doctor(config, said, root=root, nvml=nvml or fake_nvml(), **waiting, **more)
    except CheckFailed as failure:
        return said, failure
    return said, None


def line(said: Said, start: str) -> str:
    found = [each for each in said.lines if each.strip().startswith(start)]
    assert len(found) == 1, said.lines
    return found[0]


def test_a_machine_with_a_readable_counter_is_usable(tmp_path: Path) -> None:
    said, failure = examined(tmp_path, clock=Counted(Powercap(tmp_path)))
    assert failure is None
    assert said.lines[-1] == "usable: energy of a run on cpu is measured"
    rapl = line(said, "RAPL")
    assert "works; updates every" in rapl
    # The counter goes on evenly: to one of the 125 steps in a window.
    idle_w = float(rapl.split("; idle ")[1].split(" W")[0])
    assert idle_w == pytest.approx(POWER_W, rel=1 / 125)
    assert "over 8 windows of 0.125 s" in rapl


def test_a_machine_without_a_meter_fails_the_check_and_says_what_would_happen(
    tmp_path: Path,
) -> None:
    said, failure = examined(tmp_path)
    assert failure is not None
    assert failure.exit_status == 1
    assert "energy of a run on cpu would be modelled" in str(failure)
    assert "virtual machines, containers" in line(said, "RAPL")
    assert "no INA3221" in line(said, "INA3221")
    assert "an assumption" in line(said, "modelled CPU")
    assert "none given" in line(said, "external meter")


def test_without_a_permission_the_exact_command_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Powercap(tmp_path).zone("intel-rapl:0", "package-0")
    read = Path.read_text

    def refused(path: Path, *arguments: Any, **named: Any) -> str:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, *arguments, **named)

    monkeypatch.setattr(Path, "read_text", refused)
    opened = open

    def refused_open(path: Any, *arguments: Any, **named: Any) -> Any:
        if str(path).endswith("energy_uj"):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **named)

    monkeypatch.setattr("builtins.open", refused_open)
    said, failure = examined(tmp_path)
    assert failure is not None
    assert "sudo chmod a+r /sys/class/powercap/intel-rapl" in line(said, "mend it: sudo chmod")


def test_every_card_has_its_line(tmp_path: Path) -> None:
    cards = (
        Card("NVIDIA A100-SXM4-80GB", "GPU-a", energy_mj=None),
        Card("NVIDIA H200", "GPU-b", mig=True),
    )
    said, failure = examined(tmp_path, fake_nvml(*cards), device="cuda:0", hardware="auto")
    assert failure is not None
    lines = [each for each in said.lines if "GPU 0" in each or "MIG" in each]
    assert any("no energy counter" in each for each in lines)
    assert any("MIG" in each for each in lines)


def test_governors_are_told_by_policy_and_a_wandering_clock_with_its_remedy(
    tmp_path: Path,
) -> None:
    add_policy(tmp_path, 0, governor="schedutil")
    add_policy(tmp_path, 4, governor="schedutil")
    add_range_policy(tmp_path, 8, 800_000, 4_800_000, governor="performance")
    said, _ = examined(tmp_path)
    assert "policy0 to policy4: governor schedutil" in line(said, "policy0")
    assert "800 to 4800 MHz" in line(said, "policy8: governor performance")
    assert line(said, "clocks follow the load").endswith("cpupower frequency-set -g performance")


def test_where_all_clocks_are_held_there_is_no_remedy(tmp_path: Path) -> None:
    add_policy(tmp_path, 0, governor="performance")
    said, _ = examined(tmp_path)
    assert not [each for each in said.lines if "follow the load" in each]


def test_what_could_be_set_is_told_and_nothing_is_changed(tmp_path: Path) -> None:
    add_policy(tmp_path, 0)
    before = {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    said, _ = examined(tmp_path)
    assert "CPU clock" in line(said, "can be set")
    assert line(said, "gpu: cannot be set")
    after = {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before


def test_clocks_that_a_killed_process_left_are_told_with_the_command(tmp_path: Path) -> None:
    journal = tmp_path / "state/clocks.json"
    write_journal(journal, [Entry("cpufreq policy0", {"kind": "cpufreq"})])
    said, _ = examined(tmp_path, journal=journal)
    assert "cpufreq policy0" in line(said, "left changed by process")
    assert "exitbench hardware restore" in line(said, "put them back")


def test_an_external_meter_is_tried(tmp_path: Path) -> None:
    config = {"metering": MeteringConfig(external=f"file:{tmp_path / 'missing'}")}
    said, failure = examined(tmp_path, config=config)
    assert failure is not None
    assert "does not work" in line(said, "external meter")


def test_the_load_of_the_machine_is_told(tmp_path: Path) -> None:
    said, _ = examined(tmp_path)
    assert "processors at work" in said.lines[said.lines.index("Load") + 1]

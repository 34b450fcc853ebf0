"""The hardware commands and the profile that a run is priced with."""

from __future__ import annotations

import json
import re
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType

import pytest
from exitbench.harness.configs_device import (
    HardwareDetectConfig,
    HardwareListConfig,
    HardwareShowConfig,
)
from exitbench.harness.dvfs import DEFAULTS, dvfs_of, find_point
from exitbench.harness.errors import ExitbenchError
from exitbench.harness.hardware import (
    hardware_profile,
    run_hardware_detect,
    run_hardware_list,
    run_hardware_show,
)
from exitbench.profiles.detect import Machine, fits_of
from exitbench.profiles.loading import list_profiles, load_profile
from exitbench.profiles.nvml import Gpu
from exitbench.profiles.schema import (
    ACTUATORS,
    COVERS,
    MATCH_KEYS,
    METERS,
    PEAKS,
    ClockDomain,
    Cores,
    OperatingPoint,
    Power,
    Profile,
    Rails,
)
from fake_machine import Card, fake_nvml

SOURCE = re.compile(r'source = "((?:[^"\\]|\\.)*)"')


def untold(index: int) -> None:
    """CUDA does not tell the UUID of its cards."""
    del index


def x86(*gpu_names: str) -> Machine:
    gpus = tuple(Gpu(i, name, f"GPU-{i}", None, False) for i, name in enumerate(gpu_names))
    machine = Machine(machine="x86_64", gpus=gpus)
    return replace(machine, fits=fits_of(machine))


def detected(root: Path, nvml: ModuleType) -> str:
    lines: list[str] = []
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc/cpuinfo").write_text("processor: 0\nmodel name: Some CPU\n")
    (root / "proc/meminfo").write_text("MemTotal: 8388608 kB\n")
    run_hardware_detect(HardwareDetectConfig(), lines.append, root=root, nvml=nvml)
    return "\n".join(lines)


def test_the_list_has_a_line_for_each_shipped_profile() -> None:
    lines: list[str] = []
    run_hardware_list(HardwareListConfig(), lines.append)
    assert [line.split()[0] for line in lines] == list(list_profiles())


def test_show_gives_each_figure_with_its_unit_and_source_and_marks_assumptions() -> None:
    lines: list[str] = []
    run_hardware_show(HardwareShowConfig("jetson-tx2"), lines.append)
    text = "\n".join(lines)
    assert "active_w = 7.4 [VDD_IN" in text
    assert "active_w = 11 [assumption: " in text
    assert "levels_mhz = 114.75, 216.75" in text
    assert "MAXN: cpu 2035.2 MHz, gpu 1300.5 MHz" in text
    assert "ina3221, external, modelled" in text
    assert "total = VDD_IN" in text
    assert "set by: devfreq [" in text
    assert "nodes: 17000000.gp10b, *.gp10b" in text
    assert "switch_ms = 5 [assumption: as an Orin" in text
    assert "counts = 1, 2, 3, 4, 5, 6 [" in text
    assert "    cores = 4 [nvpmodel.conf, mode 1" in text
    assert "Power and time over the clocks of the GPU" in text
    assert "memory_w = 1.3 [assumption: " in text
    assert "efficiency = 0.5 [assumption: " in text


@pytest.mark.parametrize("name", list_profiles())
def test_show_leaves_no_figure_of_a_profile_out(name: str) -> None:
    lines: list[str] = []
    run_hardware_show(HardwareShowConfig(name), lines.append)
    text = "\n".join(lines)
    raw = load_profile(name).path.read_text(encoding="utf-8")
    sources = [json.loads(f'"{found}"') for found in SOURCE.findall(raw)]
    assert len(sources) > 5
    assert [source for source in sources if source not in text] == []


def test_show_of_an_unknown_name_is_an_error_for_the_user() -> None:
    with pytest.raises(ExitbenchError, match="there is no hardware profile 'toaster'"):
        run_hardware_show(HardwareShowConfig("toaster"), lambda line: None)


def test_detect_says_cpu_memory_meters_and_profile_with_reasons(tmp_path: Path) -> None:
    text = detected(tmp_path, fake_nvml(driver=False))
    assert "CPU     Some CPU" in text
    assert "Memory  8.0 GiB" in text
    assert "GPU     none: NVML does not start: Driver Not Loaded" in text
    assert "RAPL energy counters: not usable" in text
    assert "INA3221 power sensors: not usable: this machine has no INA3221" in text
    assert "NVML energy counter: not usable" in text
    assert "on cpu: CPU energy is" in text


def test_detect_says_of_a_card_whether_its_counter_is_usable(tmp_path: Path) -> None:
    text = detected(tmp_path, fake_nvml(Card(), Card(uuid="GPU-b", mig=True)))
    assert "GPU 0   NVIDIA H200 (140.4 GiB, GPU-aaaa-1)" in text
    assert "NVML energy counter of GPU 0 (NVIDIA H200): usable, updates every" in text
    assert "MIG slices: the energy counter counts the whole card" in text
    assert "nvidia-h200" in text
    assert "on cuda:0: GPU energy is measured by the NVML energy counter of GPU 0" in text


def test_each_device_is_priced_by_the_profile_that_knows_it() -> None:
    machine = x86("NVIDIA H200")
    gpu = hardware_profile("auto", "cuda:0", machine, cuda_uuid=untold).profile
    cpu = hardware_profile("auto", "cpu", machine).profile
    assert gpu is not None
    assert cpu is not None
    assert (gpu.name, cpu.name) == ("nvidia-h200", "generic-x86")


def test_the_card_of_the_run_decides_and_not_the_best_card_of_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    machine = x86("NVIDIA H200", "Some Other Card")
    chosen = hardware_profile("auto", "cuda:1", machine, cuda_uuid=untold).profile
    assert chosen is not None
    assert "gpu" not in chosen.power


def test_a_profile_that_is_asked_for_is_taken() -> None:
    chosen = hardware_profile("jetson-tx2", "cpu")
    assert chosen.profile is not None
    assert (chosen.profile.name, chosen.why) == ("jetson-tx2", "asked for")


def test_a_machine_that_nothing_fits_gets_no_profile_and_a_reason() -> None:
    chosen = hardware_profile("auto", "cpu", Machine(machine="riscv64"))
    assert chosen.profile is None
    assert "no shipped hardware profile fits" in chosen.why


def guide(checkout: Path) -> str:
    return (checkout / "docs/hardware.md").read_text(encoding="utf-8")


def test_the_example_in_the_guide_is_a_profile(checkout: Path, tmp_path: Path) -> None:
    (example,) = re.findall(r"^```toml\n(.*?)^```", guide(checkout), re.DOTALL | re.MULTILINE)
    file = tmp_path / "my-board.toml"
    file.write_text(example, encoding="utf-8")
    profile = load_profile(file)
    assert profile.power["cpu"].active_w.value == 71
    quiet = find_point(profile, "cpu", "quiet")
    assert dvfs_of(profile, "cpu").power_w(quiet) == 31


def test_the_guide_tells_every_key_and_every_profile(checkout: Path) -> None:
    parts = (Profile, Power, Rails, ClockDomain, Cores, OperatingPoint)
    keys = {each.name for part in parts for each in fields(part)} - {"path", "match"}
    keys |= {*PEAKS, *MATCH_KEYS, *METERS, *ACTUATORS, *COVERS, *DEFAULTS} - {"switch_ms"}
    keys |= {"efficiency", "bandwidth_efficiency", "launch_ms", "static_w", *list_profiles()}
    prose = re.sub(r"^```.*?^```", "", guide(checkout), flags=re.DOTALL | re.MULTILINE)
    told = set(re.findall(r"[\w-]+", " ".join(re.findall(r"`([^`]+)`", prose))))
    assert keys - told == set()


def test_detect_reads_the_power_sensors_of_a_jetson(tmp_path: Path) -> None:
    tree = tmp_path / "proc/device-tree"
    tree.mkdir(parents=True)
    (tree / "model").write_text("NVIDIA Jetson Orin Nano Super Developer Kit\0")
    sensors = tmp_path / "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1"
    sensors.mkdir(parents=True)
    for channel, rail in enumerate(("VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"), start=1):
        (sensors / f"in{channel}_label").write_text(f"{rail}\n")
        (sensors / f"in{channel}_input").write_text("5000\n")
        (sensors / f"curr{channel}_input").write_text("700\n")
    text = detected(tmp_path, fake_nvml(driver=False))
    assert "INA3221 power sensors (rails VDD_IN): usable, updates every" in text
    assert "jetson-orin-nano: " in text

"""What a machine is found to be, and which profile fits it."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from exitbench.profiles.detect import Machine, detect
from exitbench.profiles.nvml import list_gpus, open_nvml

CPUINFO = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Core(TM) i7-10700 CPU @ 2.90GHz
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu sse avx2{flag}

processor\t: 1
vendor_id\t: GenuineIntel
model name\t: Intel(R) Core(TM) i7-10700 CPU @ 2.90GHz
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu sse avx2{flag}

"""


class NVMLError(Exception):
    """As pynvml raises it."""


def nvml(*names: str, driver: bool = True, broken: int | None = None) -> ModuleType:
    """A module that answers as pynvml."""
    library: Any = ModuleType("pynvml")
    library.NVMLError = NVMLError

    def start() -> None:
        if not driver:
            raise NVMLError("Driver Not Loaded")

    def unsupported(card: int) -> None:
        raise NVMLError("Not Supported")

    def handle(index: int) -> int:
        if index == broken:
            raise NVMLError("GPU is lost")
        return index

    library.nvmlInit = start
    library.nvmlDeviceGetCount = lambda: len(names)
    library.nvmlDeviceGetHandleByIndex = handle
    library.nvmlDeviceGetName = lambda card: names[card].encode()
    library.nvmlDeviceGetUUID = lambda card: f"GPU-{card}"
    library.nvmlDeviceGetMemoryInfo = unsupported
    library.nvmlDeviceGetMigMode = unsupported
    library.nvmlDeviceGetTotalEnergyConsumption = unsupported
    assert isinstance(library, ModuleType)
    return library


def look(root: Path, machine: str = "x86_64", library: ModuleType | None = None) -> Machine:
    return detect(root, nvml=library or nvml(driver=False), machine=machine)


def write(root: Path, name: str, text: str) -> None:
    file = root / "proc" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_an_x86_machine_is_described_and_fits_the_generic_profile(tmp_path: Path) -> None:
    write(tmp_path, "cpuinfo", CPUINFO.format(flag=""))
    write(tmp_path, "meminfo", "MemTotal:       16384 kB\nMemFree: 1 kB\n")
    machine = look(tmp_path)
    assert machine.cpu_model == "Intel(R) Core(TM) i7-10700 CPU @ 2.90GHz"
    assert (machine.cpu_vendor, machine.cores, machine.processors) == ("GenuineIntel", 1, 2)
    assert machine.memory_bytes == 16 * 2**20
    assert not machine.virtual
    assert [fit.profile.name for fit in machine.fits] == ["generic-x86"]
    assert machine.fits[0].why == "machine is 'x86_64'"


def test_a_virtual_machine_is_recognised(tmp_path: Path) -> None:
    write(tmp_path, "cpuinfo", CPUINFO.format(flag=" hypervisor"))
    assert look(tmp_path).virtual


def test_an_empty_root_leaves_unknown_what_it_does_not_tell(tmp_path: Path) -> None:
    machine = look(tmp_path, machine="riscv64")
    assert (machine.cpu_model, machine.cores, machine.memory_bytes) == (None, None, None)
    assert (machine.fits, machine.fit_for("cpu")) == ((), None)


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("model", "quill\0", "device_tree_model is 'quill'"),
        ("compatible", "nvidia,p2597\0nvidia,tegra186\0", "soc is 'tegra186'"),
        (
            "nvidia,dtsfilename",
            "/dvs/hardware/tegra186-quill-p3310-1000-c03-00-base.dts\0",
            "device_tree_file is '/dvs/hardware/tegra186-quill-p3310-1000-c03-00-base.dts'",
        ),
    ],
)
def test_a_jetson_tx2_is_known_by_its_device_tree(
    tmp_path: Path, name: str, text: str, why: str
) -> None:
    write(tmp_path, f"device-tree/{name}", text)
    fits = look(tmp_path, machine="aarch64").fits
    assert [fit.profile.name for fit in fits] == ["jetson-tx2", "generic-arm64"]
    assert fits[0].why == why


MODEL, COMPATIBLE, FILE = (
    "device-tree/model",
    "device-tree/compatible",
    "device-tree/nvidia,dtsfilename",
)
ORIN = "nvidia,p3768-0000+p3767-0005-super\0nvidia,tegra234\0"


@pytest.mark.parametrize(
    ("name", "tree"),
    [
        ("raspberry-pi-5", {MODEL: "Raspberry Pi 5 Model B Rev 1.0\0"}),
        ("raspberry-pi-5", {MODEL: "Raspberry Pi 5 Model B Rev 1.1\0"}),
        ("jetson-tx2", {MODEL: "NVIDIA Jetson TX2 Developer Kit\0"}),
        (
            "jetson-agx-xavier",
            {MODEL: "Jetson-AGX\0", COMPATIBLE: "nvidia,galen\0nvidia,tegra194\0"},
        ),
        ("jetson-agx-xavier", {MODEL: "NVIDIA Jetson AGX Xavier Developer Kit\0"}),
        ("jetson-agx-xavier", {FILE: "/dvs/tegra194-p2888-0001-p2822-0000.dts\0"}),
        (
            "jetson-orin-nano",
            {MODEL: "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0"},
        ),
        (
            "jetson-orin-nano",
            {MODEL: "NVIDIA Jetson Orin Nano Super Developer Kit\0", COMPATIBLE: ORIN},
        ),
        ("jetson-orin-nano", {MODEL: "NVIDIA Orin Nano Developer Kit\0"}),
        ("generic-arm64", {}),
        ("generic-arm64", {MODEL: "Raspberry Pi 4 Model B Rev 1.4\0"}),
        ("generic-arm64", {MODEL: "NVIDIA Jetson AGX Orin Developer Kit\0", COMPATIBLE: ORIN}),
        (
            "generic-arm64",
            {MODEL: "NVIDIA Jetson Xavier NX Developer Kit\0", COMPATIBLE: "x\0nvidia,tegra194\0"},
        ),
    ],
)
def test_exactly_the_right_profile_wins_on_each_arm_machine(
    tmp_path: Path, name: str, tree: dict[str, str]
) -> None:
    for file, text in tree.items():
        write(tmp_path, file, text)
    fits = [fit.profile.name for fit in look(tmp_path, machine="aarch64").fits]
    assert fits == [name, *({"generic-arm64"} - {name})]


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("nvidia-a100", "NVIDIA A100-SXM4-80GB"),
        ("nvidia-h100", "NVIDIA H100 80GB HBM3"),
        ("nvidia-h200", "NVIDIA H200"),
        ("rtx-4090", "NVIDIA GeForce RTX 4090"),
    ],
)
def test_exactly_the_right_profile_wins_beside_each_card(
    tmp_path: Path, name: str, card: str
) -> None:
    machine = look(tmp_path, library=nvml(card))
    assert [fit.profile.name for fit in machine.fits] == [name, "generic-x86"]


@pytest.mark.parametrize(
    "card",
    [
        "NVIDIA A100-PCIE-40GB", "NVIDIA A100-SXM4-40GB", "NVIDIA H100 PCIe", "NVIDIA H100 NVL",
        "NVIDIA GeForce RTX 4090 D", "NVIDIA GeForce RTX 4090 Laptop GPU",
    ],
)  # fmt: skip
def test_a_sister_card_with_other_clocks_and_limits_fits_no_profile(
    tmp_path: Path, card: str
) -> None:
    machine = look(tmp_path, library=nvml(card))
    assert [fit.profile.name for fit in machine.fits] == ["generic-x86"]


def test_a_card_goes_before_the_generic_profile_which_still_prices_the_cpu(tmp_path: Path) -> None:
    machine = look(tmp_path, library=nvml("NVIDIA H200"))
    assert [fit.profile.name for fit in machine.fits] == ["nvidia-h200", "generic-x86"]
    gpu, cpu = machine.fit_for("gpu"), machine.fit_for("cpu")
    assert gpu is not None
    assert cpu is not None
    assert gpu.profile.name == "nvidia-h200"
    assert gpu.why == "gpu_name is 'NVIDIA H200'"
    assert cpu.profile.name == "generic-x86"


def test_a_name_that_only_begins_alike_is_another_card(tmp_path: Path) -> None:
    machine = look(tmp_path, library=nvml("NVIDIA H200 NVL"))
    assert machine.fit_for("gpu") is None


def test_a_card_without_memory_or_mig_calls_is_still_listed(tmp_path: Path) -> None:
    machine = look(tmp_path, library=nvml("Tesla K80"))
    gpu = machine.gpus[0]
    assert (gpu.index, gpu.name, gpu.memory_bytes, gpu.mig) == (0, "Tesla K80", None, False)


def test_a_card_that_does_not_answer_keeps_the_numbers_of_the_others() -> None:
    gpus = list_gpus(open_nvml(nvml("NVIDIA A100", "NVIDIA H200", broken=0)))
    assert [(gpu.index, gpu.name) for gpu in gpus] == [(1, "NVIDIA H200")]


def test_without_a_driver_the_reason_is_told(tmp_path: Path) -> None:
    machine = look(tmp_path)
    assert machine.gpus == ()
    assert machine.gpu_reason == "NVML does not start: Driver Not Loaded"
    assert look(tmp_path, library=nvml()).gpu_reason == "NVML sees no GPU"

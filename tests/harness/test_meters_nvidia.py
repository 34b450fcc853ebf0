"""The NVIDIA meter on a module that answers as pynvml, and on a real card where there is one."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass, replace
from types import ModuleType

import pytest
from exitbench.harness.meters.base import Reading, Unavailable, minimum_window_s
from exitbench.harness.meters.choose import choose_meter
from exitbench.harness.meters.nvidia import NvidiaMeter, find_nvidia, locate
from exitbench.harness.meters.sampled import THREAD, Sampler
from exitbench.profiles.nvml import Gpu, list_gpus, open_nvml
from fake_machine import Card, Clock, Load, Ticking, fake_nvml


def found(
    library: ModuleType, index: int = 0, uuid: str | None = None, **environ: str
) -> NvidiaMeter | Unavailable:
    """The meter of ``cuda:index`` with a counter that moves every 10 ms."""
    return find_nvidia(open_nvml(library), index, environ, uuid=uuid, clock=Clock(0.01))


@dataclass
class Bench:
    """One card under a known load, its meter, and the clock."""

    card: Card
    meter: NvidiaMeter
    clock: Clock

    @property
    def counter(self) -> Ticking:
        assert isinstance(self.card.counter, Ticking)
        return self.card.counter

    def reading(self, seconds: float) -> Reading:
        """A window of so long, in which the card is looked at as the thread would."""
        window = self.meter.open()
        self.clock.sleep(seconds)
        return window.close()


def usable(card: Card, watts: float = 300.0, without: tuple[str, ...] = ()) -> Bench:
    """A card whose counter follows a load of so many watts in steps of 20 ms."""
    clock = Clock()
    card.counter = Ticking(clock, Load((0, watts)), 0.02, 1e-3)
    opened = open_nvml(fake_nvml(card, without=without))
    meter = find_nvidia(opened, 0, {}, clock=clock, sleep=clock.sleep)
    assert isinstance(meter, NvidiaMeter), meter
    # The looks of the thread come by the fake clock instead.
    sampler = meter.card.sampler
    meter.card.sampler = Sampler(sampler.look, sampler.period_s, clock, threaded=False)
    clock.every(sampler.period_s, meter.card.sampler.sample)
    return Bench(card, meter, clock)


def cards(*uuids: str, names: tuple[str, ...] = ()) -> list[Gpu]:
    names = names or ("NVIDIA H200",) * len(uuids)
    return [Gpu(i, names[i], uuid, None, False) for i, uuid in enumerate(uuids)]


def test_millijoules_of_the_counter_become_joules() -> None:
    bench = usable(Card())
    # Polling sees each tick up to a twentieth late.
    assert bench.meter.update_period_s == pytest.approx(0.02, rel=0.02)
    reading = bench.reading(2)
    assert reading.joules == {"gpu": pytest.approx(600.0, rel=1e-3)}
    assert (reading.gpu_source, reading.note) == ("measured", "")
    assert reading.total_j == reading.gpu_j
    # One update of 20 ms at the end, a twentieth of one at the start.
    assert 0 < reading.uncertainty_j["gpu"] < 1.1 * 300 * 0.02


def test_nested_windows_do_not_disturb_each_other() -> None:
    bench = usable(Card(), watts=1.0)
    outer = bench.meter.open()
    bench.clock.sleep(2)
    inner = bench.meter.open()
    bench.clock.sleep(2)
    assert inner.close().gpu_j == pytest.approx(2.0, rel=2e-3)
    bench.clock.sleep(2)
    # Closing and opening the inner window took an update each, of 300.
    assert outer.close().gpu_j == pytest.approx(6.0, rel=1e-2)


def test_a_window_that_is_too_short_is_none_with_a_note() -> None:
    reading = usable(Card()).reading(0.1)
    assert reading.joules == {"gpu": None}
    assert reading.gpu_source == "unavailable"
    assert reading.uncertainty_j == {}
    assert "too short" in reading.note


@pytest.mark.parametrize("when", ["before", "within"])
def test_a_card_lost_leaves_the_window_unresolved(when: str) -> None:
    bench = usable(Card())
    bench.card.lost = when == "before"
    window = bench.meter.open()
    bench.clock.sleep(5)
    bench.card.lost = True
    reading = window.close()
    assert reading.gpu_j is None
    assert "GPU is lost" in reading.note


def test_clocks_temperature_and_company_are_logged() -> None:
    card = Card(
        sm_mhz=1980, memory_mhz=3201, temperature_c=61, reasons=0x1, others=(), limit_w=700.0
    )
    reading = usable(card).reading(2)
    assert reading.conditions == {
        "gpu_sm_mhz": 1980,
        "gpu_sm_mhz_lowest": 1980,
        "gpu_memory_mhz": 3201,
        "gpu_memory_mhz_lowest": 3201,
        "gpu_power_limit_w": 700.0,
        "gpu_temperature_c": 61,
        "gpu_throttle": [],
        "gpu_other_processes": [],
        "gpu_power_check": "its power is not checked: the driver has no instant power, only an "
        "average",
    }
    assert reading.flags == ()


def test_a_card_throttled_in_the_middle_of_a_window_is_flagged() -> None:
    bench = usable(Card(reasons=0x1))
    window = bench.meter.open()
    bench.clock.sleep(2)
    bench.card.reasons = 0x4
    bench.clock.sleep(1)
    bench.card.reasons = 0x1
    bench.clock.sleep(2)
    reading = window.close()
    assert reading.gpu_j == pytest.approx(1500, rel=1e-3)
    (flag,) = reading.flags
    assert flag.startswith("GPU 0 was throttled (software power cap) at 4 of ")
    assert reading.conditions["gpu_throttle"] == ["software power cap"]


def test_this_process_on_the_card_is_no_company_and_another_is() -> None:
    alone = usable(Card(others=(os.getpid(),))).reading(2)
    assert (alone.flags, alone.conditions["gpu_other_processes"]) == ((), [])
    shared = usable(Card(others=(os.getpid(), 4_000_001))).reading(2)
    assert shared.flags == ("GPU 0 was shared: other processes were on it (pid 4000001)",)


@pytest.mark.parametrize(("watts", "flagged"), [(300.0, False), (320.0, False), (340.0, True)])
def test_the_counter_is_checked_by_instant_power(watts: float, flagged: bool) -> None:
    reading = usable(Card(instant_w=lambda: watts)).reading(10)
    assert reading.gpu_j == pytest.approx(3000, rel=1e-3)
    assert reading.checks == {"NVML instant power": pytest.approx(watts * 10, rel=1e-3)}
    assert bool(reading.flags) is flagged
    if flagged:
        assert "they differ by 13%" in reading.flags[0]


def test_few_looks_are_kept_but_flag_no_window_and_fewer_are_no_second_opinion() -> None:
    few = usable(Card(instant_w=lambda: 900.0)).reading(2)
    assert few.checks == {"NVML instant power": pytest.approx(1800, rel=1e-3)}
    assert few.flags == ()
    fewer = usable(Card(instant_w=lambda: 900.0)).reading(0.3)
    assert (fewer.checks, fewer.flags) == ({}, ())
    assert "too few looks" in fewer.conditions["gpu_power_check"]


@pytest.mark.parametrize(
    ("name", "architecture", "checked"),
    [
        ("Tesla V100-SXM2-16GB", 5, True),
        ("NVIDIA A100-SXM4-80GB", 7, True),
        ("NVIDIA A30", 7, True),
        ("NVIDIA A40", 7, False),
        ("NVIDIA RTX A1000", 7, False),
        ("NVIDIA H200", 9, False),
        ("Some Card", None, False),
    ],
)
def test_the_older_power_reading_is_used_only_where_it_is_no_average(
    name: str, architecture: int | None, checked: bool
) -> None:
    card = Card(name=name, architecture=architecture, usage_w=lambda: 300.0)
    reading = usable(card).reading(10)
    assert bool(reading.checks) is checked
    assert ("gpu_power_check" in reading.conditions) is not checked


def test_an_old_library_that_has_only_the_counter_still_measures() -> None:
    optional = (
        "nvmlDeviceGetFieldValues",
        "nvmlDeviceGetPowerUsage",
        "nvmlDeviceGetArchitecture",
        "nvmlDeviceGetClockInfo",
        "nvmlDeviceGetTemperature",
        "nvmlDeviceGetCurrentClocksEventReasons",
        "nvmlDeviceGetCurrentClocksThrottleReasons",
        "nvmlDeviceGetComputeRunningProcesses",
        "nvmlDeviceGetGraphicsRunningProcesses",
        "nvmlDeviceGetMigMode",
        "nvmlDeviceGetMemoryInfo",
        "nvmlDeviceGetPciInfo",
    )
    reading = usable(Card(), without=optional).reading(2)
    assert reading.gpu_j == pytest.approx(600, rel=1e-3)
    assert (reading.flags, reading.checks) == ((), {})
    assert list(reading.conditions) == ["gpu_power_check"]


def test_the_older_name_of_throttle_reasons_is_understood() -> None:
    newer = ("nvmlDeviceGetCurrentClocksEventReasons",)
    reading = usable(Card(reasons=0x40), without=newer).reading(2)
    assert "hardware thermal slowdown" in reading.flags[0]


def test_a_thread_looks_at_the_card_while_a_window_is_open_and_then_ends() -> None:
    card = Card(instant_w=lambda: 300.0)
    meter = find_nvidia(open_nvml(fake_nvml(card)), 0, {})
    assert isinstance(meter, NvidiaMeter)
    window = meter.open()
    # Real time: the looks come every quarter of a second.
    deadline_s = time.perf_counter() + 30
    while len(meter.card.sampler.samples) < 3 and time.perf_counter() < deadline_s:
        time.sleep(0.05)
    assert len(meter.card.sampler.samples) >= 3
    window.close()
    assert meter.card.sampler.samples == []
    while THREAD in [thread.name for thread in threading.enumerate()]:
        assert time.perf_counter() < deadline_s
        time.sleep(0.01)


def test_a_machine_without_driver_says_so() -> None:
    meter = found(fake_nvml(driver=False))
    assert isinstance(meter, Unavailable)
    assert "Driver Not Loaded" in meter.reason


def test_an_impostor_of_pynvml_is_recognised() -> None:
    meter = found(ModuleType("pynvml"))
    assert isinstance(meter, Unavailable)
    assert "not NVIDIA's nvidia-ml-py" in meter.reason
    assert "pip install nvidia-ml-py" in meter.remedy


def test_a_card_without_a_counter_is_found_out_by_calling_it() -> None:
    meter = found(fake_nvml(Card(name="Tesla P100", energy_mj=None)))
    assert isinstance(meter, Unavailable)
    assert "Tesla P100" in meter.reason
    assert "Not Supported" in meter.reason


def test_a_version_without_the_counter_is_told_from_an_impostor() -> None:
    meter = found(fake_nvml(Card(), without=("nvmlDeviceGetTotalEnergyConsumption",)))
    assert isinstance(meter, Unavailable)
    assert "too old" in meter.reason
    assert meter.remedy == "pip install --upgrade nvidia-ml-py"


def test_a_counter_that_stands_still_is_unavailable() -> None:
    clock = Clock(0.01)
    opened = open_nvml(fake_nvml(Card(step_mj=0)))
    meter = find_nvidia(opened, 0, {}, clock=clock, sleep=clock.sleep)
    assert isinstance(meter, Unavailable)
    assert "does not move" in meter.reason


def test_mig_is_unavailable_because_the_counter_is_the_whole_cards() -> None:
    card = found(fake_nvml(Card(mig=True)))
    assert isinstance(card, Unavailable)
    assert "MIG" in card.reason
    sliced = found(fake_nvml(Card()), CUDA_VISIBLE_DEVICES="MIG-1234")
    assert isinstance(sliced, Unavailable)
    assert "MIG" in sliced.reason


@pytest.mark.parametrize(
    ("visible", "index", "uuid"),
    [
        (None, 1, "GPU-bb"),
        ("1,0", 0, "GPU-bb"),
        ("2", 0, "GPU-cc"),
        ("GPU-cc,GPU-aa", 1, "GPU-aa"),
        ("GPU-c", 0, "GPU-cc"),
        (" 1 , 2", 1, "GPU-cc"),
    ],
)
def test_cuda_visible_devices_is_honoured_by_number_and_by_uuid(
    visible: str | None, index: int, uuid: str
) -> None:
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    gpu = locate(cards("GPU-aa", "GPU-bb", "GPU-cc"), index, environ)
    assert isinstance(gpu, Gpu)
    assert gpu.uuid == uuid


@pytest.mark.parametrize(
    ("visible", "index", "reason"),
    [
        ("", 0, "0 GPUs are visible"),
        ("-1,0", 0, "0 GPUs are visible"),
        ("0,-1,1", 1, "1 GPUs are visible"),
        ("7", 0, "NVML knows no GPU 7"),
        ("GPU-zz", 0, "is no GPU that NVML knows"),
        ("GPU-", 0, "fits several GPUs"),
    ],
)
def test_a_list_that_names_no_one_card_is_unavailable(
    visible: str, index: int, reason: str
) -> None:
    gpu = locate(cards("GPU-aa", "GPU-bb"), index, {"CUDA_VISIBLE_DEVICES": visible})
    assert isinstance(gpu, Unavailable)
    assert reason in gpu.reason


def test_what_cuda_itself_says_of_the_card_goes_before_the_environment() -> None:
    both = cards("GPU-aa", "GPU-bb", names=("NVIDIA A100", "NVIDIA H200"))
    gpu = locate(both, 0, {"CUDA_VISIBLE_DEVICES": "0"}, uuid="bb")
    assert isinstance(gpu, Gpu)
    assert gpu.name == "NVIDIA H200"


@pytest.mark.parametrize("told", ["0:3b:0.0", "00000000:3B:00.0"])
def test_a_card_is_found_by_its_pci_place(told: str) -> None:
    both = [
        replace(gpu, pci=place)
        for gpu, place in zip(
            cards("GPU-aa", "GPU-bb"), ("0000:1a:00.0", "0000:3b:00.0"), strict=True
        )
    ]
    gpu = locate(both, 0, {}, uuid=told)
    assert isinstance(gpu, Gpu)
    assert gpu.uuid == "GPU-bb"
    elsewhere = locate(both, 0, {}, uuid="0:ff:0.0")
    assert isinstance(elsewhere, Unavailable)
    assert "PCI place 0000:ff:00.0" in elsewhere.reason


def test_the_pci_place_that_nvml_tells_is_understood() -> None:
    (gpu,) = list_gpus(open_nvml(fake_nvml(Card(pci="00000000:3B:00.0"))))
    assert gpu.pci == "0000:3b:00.0"


def test_numbers_of_unlike_cards_are_not_guessed() -> None:
    both = cards("GPU-aa", "GPU-bb", names=("NVIDIA A100", "NVIDIA H200"))
    guess = locate(both, 0, {})
    assert isinstance(guess, Unavailable)
    assert guess.remedy == "export CUDA_DEVICE_ORDER=PCI_BUS_ID"
    gpu = locate(both, 1, {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"})
    assert isinstance(gpu, Gpu)
    assert gpu.name == "NVIDIA H200"


@pytest.mark.cuda
def test_a_real_card_draws_more_than_nothing_and_less_than_a_kilowatt_and_a_half() -> None:
    import torch

    meter = choose_meter("cuda:0", None)
    if meter.required:
        pytest.skip(meter.words)
    window = meter.open()
    end_s = time.perf_counter() + minimum_window_s(meter)
    matrix = torch.ones(2048, 2048, device="cuda:0")
    while time.perf_counter() < end_s:
        matrix = matrix @ matrix * 0.0
        torch.cuda.synchronize()
    reading = window.close()
    assert reading.gpu_j is not None, reading.note
    assert 0 < reading.gpu_j / reading.seconds < 1500


@pytest.mark.cuda
def test_a_real_card_gives_the_same_energy_to_zeus() -> None:
    monitors = pytest.importorskip("zeus.monitor", reason="needs the package zeus")
    import torch

    torch.zeros(1, device="cuda:0")
    chosen = choose_meter("cuda:0", None)
    meter = next((each for each in chosen.meters if isinstance(each, NvidiaMeter)), None)
    if meter is None:
        pytest.skip(chosen.words)
    monitor = monitors.ZeusMonitor(gpu_indices=[0], cpu_indices=[])
    matrix = torch.randn(2048, 2048, device="cuda:0")
    window = meter.open()
    monitor.begin_window("work")
    end_s = time.perf_counter() + max(10.0, 2 * minimum_window_s(meter))
    while time.perf_counter() < end_s:
        for _ in range(20):
            torch.mm(matrix, matrix)
        torch.cuda.synchronize()
    theirs = monitor.end_window("work").gpu_energy[0]
    reading = window.close()
    assert reading.gpu_j is not None, reading.note
    # Both read the same counter; zeus begins and ends anywhere between two of its ticks.
    update_j = reading.gpu_j / reading.seconds * meter.update_period_s
    assert abs(reading.gpu_j - theirs) <= reading.uncertainty_j["gpu"] + 2 * update_j

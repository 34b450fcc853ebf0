"""The NVIDIA meter on a module that answers as pynvml, and on a real card where there is one."""

from __future__ import annotations

import time
from types import ModuleType

import pytest
from exitbench.harness.meters.base import Unavailable, minimum_window_s
from exitbench.harness.meters.choose import choose_meter
from exitbench.harness.meters.nvidia import NvidiaMeter, find_nvidia, locate
from exitbench.profiles.nvml import Gpu, open_nvml
from fake_machine import Card, Clock, fake_nvml


def found(
    library: ModuleType, index: int = 0, uuid: str | None = None, **environ: str
) -> NvidiaMeter | Unavailable:
    """The meter of ``cuda:index`` with a counter that moves every 10 ms."""
    return find_nvidia(open_nvml(library), index, environ, uuid=uuid, clock=Clock(0.01))


def usable(card: Card) -> tuple[NvidiaMeter, Clock]:
    """The meter of one card whose counter stands still once its period is known."""
    clock = Clock(0.01)
    meter = find_nvidia(open_nvml(fake_nvml(card)), 0, {}, clock=clock)
    assert isinstance(meter, NvidiaMeter)
    card.step_mj = 0
    return meter, clock


def cards(*uuids: str, names: tuple[str, ...] = ()) -> list[Gpu]:
    names = names or ("NVIDIA H200",) * len(uuids)
    return [Gpu(i, names[i], uuid, None, False) for i, uuid in enumerate(uuids)]


def test_millijoules_of_the_counter_become_joules() -> None:
    card = Card()
    meter, clock = usable(card)
    assert meter.update_period_s == pytest.approx(0.01, rel=1e-6)
    window = meter.open()
    clock.now_s += 2
    assert card.energy_mj is not None
    card.energy_mj += 350_000
    reading = window.close()
    assert reading.joules == {"gpu": pytest.approx(350.0)}
    assert (reading.gpu_source, reading.note) == ("measured", "")
    assert reading.total_j == reading.gpu_j


def test_nested_windows_do_not_disturb_each_other() -> None:
    card = Card(energy_mj=0)
    meter, clock = usable(card)

    def work() -> None:
        clock.now_s += 2
        assert card.energy_mj is not None
        card.energy_mj += 1000

    outer = meter.open()
    work()
    inner = meter.open()
    work()
    assert inner.close().gpu_j == pytest.approx(1.0)
    work()
    assert outer.close().gpu_j == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("moved_mj", "seconds", "note"),
    [
        (1000, 0.1, "too short"),
        (0, 5, "did not move"),
        (-500, 5, "went backwards"),
    ],
)
def test_what_cannot_be_resolved_is_none_with_a_note(
    moved_mj: int, seconds: float, note: str
) -> None:
    card = Card(energy_mj=10_000)
    meter, clock = usable(card)
    window = meter.open()
    clock.now_s += seconds
    assert card.energy_mj is not None
    card.energy_mj += moved_mj
    reading = window.close()
    assert reading.joules == {"gpu": None}
    assert reading.gpu_source == "unavailable"
    assert note in reading.note


@pytest.mark.parametrize("when", ["before", "within"])
def test_a_card_lost_leaves_the_window_unresolved(when: str) -> None:
    card = Card()
    meter, clock = usable(card)
    card.lost = when == "before"
    window = meter.open()
    clock.now_s += 5
    card.lost = True
    reading = window.close()
    assert reading.gpu_j is None
    assert "GPU is lost" in reading.note


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


def test_a_counter_that_stands_still_is_unavailable() -> None:
    meter = found(fake_nvml(Card(step_mj=0)))
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

"""Locked clocks of NVIDIA cards."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
from exitbench.harness.clocks.base import ClockError
from exitbench.harness.clocks.nvml import NvmlActuator, card_by_uuid, find_nvml
from fake_clocks import ClockCard, CodedNVMLError, lockable_nvml

A100 = "NVIDIA A100-SXM4-80GB"


def actuator(card: ClockCard, domain: str = "gpu") -> NvmlActuator:
    found = find_nvml(domain, 0, {}, nvml=lockable_nvml(card))  # type: ignore[arg-type]
    return replace(found, sleep=lambda seconds: None)


def test_levels_are_the_clocks_that_the_card_lists_at_its_top_memory_clock() -> None:
    library: Any = lockable_nvml(ClockCard(A100, memory_clocks=(1593, 405)))
    clocks = {1593: list(range(1410, 209, -15)), 405: [420, 210]}
    library.nvmlDeviceGetSupportedGraphicsClocks = lambda card, memory: clocks[memory]
    found = find_nvml("gpu", 0, {}, nvml=library)

    assert found.levels() == tuple(float(mhz) for mhz in range(210, 1411, 15))
    assert found.name == f"NVML graphics clock of GPU 0 ({A100})"


def test_a_lock_is_set_with_both_ends_at_one_clock_and_taken_off_again() -> None:
    card = ClockCard(A100)
    found = actuator(card)
    snapshot = found.snapshot()

    found.set(705.0)
    assert card.locks == {"gpu": (705, 705)}
    assert found.current() == 705.0
    found.restore(snapshot)
    found.restore(snapshot)

    assert card.locks == {}


def test_a_clock_that_is_not_listed_never_reaches_the_driver() -> None:
    card = ClockCard(A100)

    with pytest.raises(ClockError, match="has no level 700 MHz"):
        actuator(card).set(700.0)

    assert card.calls == []


def test_no_permission_names_root_and_the_capability() -> None:
    card = ClockCard(A100, lock_error={"gpu": CodedNVMLError(4, "Insufficient Permissions")})

    with pytest.raises(ClockError, match=r"CAP_SYS_ADMIN.*run the command as root"):
        actuator(card).set(705.0)

    assert card.locks == {}


def test_a_card_that_cannot_lock_says_so() -> None:
    card = ClockCard(A100, lock_error={"gpu": CodedNVMLError(3, "Not Supported")})

    with pytest.raises(ClockError, match="does not support locking"):
        actuator(card).set(705.0)


def test_a_lock_without_effect_is_an_error_and_is_taken_off() -> None:
    card = ClockCard(A100, obeys=False)

    with pytest.raises(ClockError, match=r"at 705 MHz, but the card runs at 1410 MHz"):
        actuator(card).set(705.0)

    assert card.locks == {}


def test_a_lock_without_effect_is_seen_on_an_idle_card_too() -> None:
    # An idle card may run below its lock, never above it.
    card = ClockCard(A100, obeys=False, limits=0x1)

    with pytest.raises(ClockError, match="no effect"):
        actuator(card).set(705.0)


@pytest.mark.parametrize("reason", [0x1, 0x4, 0x20, 0x40])
def test_a_card_that_is_idle_or_throttled_may_run_below_its_lock(reason: int) -> None:
    card = ClockCard(A100, runs_mhz=210, limits=reason)

    actuator(card).set(1410.0)

    assert card.locks == {"gpu": (1410, 1410)}


def test_a_card_that_runs_below_its_lock_for_no_reason_is_an_error() -> None:
    card = ClockCard(A100, runs_mhz=1200)

    with pytest.raises(ClockError, match="no effect"):
        actuator(card).set(1410.0)


def test_one_step_of_drift_is_no_error_and_two_are() -> None:
    card = ClockCard(A100, runs_mhz=1395)

    actuator(card).set(1410.0)

    assert card.locks == {"gpu": (1410, 1410)}
    with pytest.raises(ClockError, match="no effect"):
        actuator(replace(card, runs_mhz=1380, locks={})).set(1410.0)


def test_a_memory_with_one_clock_is_there_already() -> None:
    card = ClockCard(A100)
    found = actuator(card, "memory")

    found.set(1593.0)
    found.restore(found.snapshot())

    assert found.levels() == (1593.0,)
    assert card.calls == []


def test_a_memory_lock_that_is_said_to_work_and_does_not_is_an_error() -> None:
    card = ClockCard(
        "NVIDIA H100 80GB HBM3",
        memory_clocks=(2619, 1593),
        free_mhz={"gpu": 1980, "memory": 2619},
        obeys=False,
    )

    with pytest.raises(ClockError, match=r"memory clock .* no effect"):
        actuator(card, "memory").set(1593.0)


def test_a_card_in_mig_slices_is_left_alone() -> None:
    with pytest.raises(ClockError, match="MIG"):
        find_nvml("gpu", 0, {}, nvml=lockable_nvml(ClockCard(A100, mig=True)))


def test_the_card_is_the_one_that_cuda_sees() -> None:
    library = lockable_nvml(ClockCard(uuid="GPU-a"), ClockCard(uuid="GPU-b"))

    found = find_nvml("gpu", 0, {"CUDA_VISIBLE_DEVICES": "GPU-b"}, nvml=library)

    assert found.gpu.uuid == "GPU-b"
    assert card_by_uuid("gpu", "GPU-b", library).gpu.index == 1


def test_an_old_library_without_locks_is_told_what_to_do() -> None:
    library: ModuleType = lockable_nvml(ClockCard(A100))
    del library.nvmlDeviceSetGpuLockedClocks

    with pytest.raises(ClockError, match="pip install --upgrade nvidia-ml-py"):
        find_nvml("gpu", 0, {}, nvml=library).set(705.0)


def test_no_nvml_is_told_with_the_reason() -> None:
    with pytest.raises(ClockError, match="not NVIDIA's nvidia-ml-py"):
        find_nvml("gpu", 0, {}, nvml=ModuleType("pynvml"))


def test_a_card_that_lists_no_clocks_has_none_to_set() -> None:
    library = lockable_nvml(ClockCard(A100))

    def not_supported(card: ClockCard) -> list[int]:
        raise CodedNVMLError(3, "Not Supported")

    library.nvmlDeviceGetSupportedMemoryClocks = not_supported  # type: ignore[attr-defined]

    with pytest.raises(ClockError, match="does not list the clocks that can be set: Not Supported"):
        find_nvml("gpu", 0, {}, nvml=library)
    with pytest.raises(ClockError, match="lists no clocks that can be set"):
        find_nvml("gpu", 0, {}, nvml=lockable_nvml(ClockCard(A100, memory_clocks=())))


def test_a_card_that_is_gone_cannot_be_put_back() -> None:
    with pytest.raises(ClockError, match="GPU-x cannot be put back: NVML sees no such card"):
        card_by_uuid("gpu", "GPU-x", lockable_nvml(ClockCard()))

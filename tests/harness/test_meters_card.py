"""What is asked of a card beside its energy, where driver and library are of different age."""

from __future__ import annotations

from typing import Any

from exitbench.harness.meters.nvidia import NvidiaMeter, find_nvidia
from exitbench.profiles.nvml import open_nvml
from fake_machine import Card, Clock, fake_nvml


def test_a_driver_older_than_the_library_is_asked_by_the_older_name_of_the_function() -> None:
    library: Any = fake_nvml(Card(others=(4_000_001,)))

    class NVMLLibraryMismatchError(Exception):
        """As nvidia-ml-py raises it; none of its NVMLErrors."""

    def newer(card: Card) -> list[Any]:
        raise NVMLLibraryMismatchError("use a versioned function")

    library.NVMLLibraryMismatchError = NVMLLibraryMismatchError
    older = library.nvmlDeviceGetComputeRunningProcesses
    for kind in ("Compute", "Graphics"):
        setattr(library, f"nvmlDeviceGet{kind}RunningProcesses", newer)
    clock = Clock(0.01)
    without = find_nvidia(open_nvml(library), 0, {}, clock=clock, sleep=clock.sleep)
    assert isinstance(without, NvidiaMeter)
    assert without.card.company() is None
    library.nvmlDeviceGetComputeRunningProcesses_v2 = older
    assert without.card.company() == {4_000_001}

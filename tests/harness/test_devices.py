"""Devices and threads by name."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest
import torch
from exitbench.harness.devices import (
    apply_threads,
    fp32_on_cuda,
    has_fast_bf16,
    has_fast_fp16,
    has_tf32,
    resolve_device,
    resolve_threads,
)
from exitbench.harness.errors import ExitbenchError

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


@no_gpu
def test_auto_is_the_cpu_where_there_is_no_gpu() -> None:
    assert resolve_device("auto") == torch.device("cpu")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_auto_is_the_first_gpu_and_a_missing_one_is_refused() -> None:
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda", 0)
    with pytest.raises(ExitbenchError, match="this machine has only cuda:0"):
        resolve_device("cuda:99")


@no_gpu
@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:3"])
def test_a_gpu_that_is_not_there_is_refused_with_a_remedy(name: str) -> None:
    with pytest.raises(ExitbenchError, match=rf"{name}.*no CUDA device.*--device cpu"):
        resolve_device(name)


@pytest.mark.parametrize("name", ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "CPU"])
def test_unknown_device_names_are_refused(name: str) -> None:
    with pytest.raises(ExitbenchError, match="auto, cpu, cuda or cuda:N"):
        resolve_device(name)


def test_no_thread_count_means_the_physical_cores_this_process_may_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 16 if logical else 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    assert resolve_threads(0) == 8
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 5, 6}, raising=False)
    assert resolve_threads(0) == 3


def test_unknown_physical_cores_fall_back_to_the_usable_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    assert resolve_threads(0) == 2


def test_a_thread_count_is_taken_as_given_and_set() -> None:
    before = torch.get_num_threads()
    try:
        assert apply_threads(1) == 1
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_negative_threads_are_refused() -> None:
    with pytest.raises(ExitbenchError, match="threads is -1"):
        resolve_threads(-1)


def test_the_cpu_knows_whether_it_has_bf16_instructions() -> None:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        pytest.skip("no /proc/cpuinfo to compare with")
    flags = set(cpuinfo.read_text().split())
    assert has_fast_bf16(torch.device("cpu")) == bool(flags & {"avx512_bf16", "amx_tile"})


def test_half_formats_of_a_gpu_are_not_to_be_had_on_the_cpu() -> None:
    assert not has_fast_fp16(torch.device("cpu"))
    assert not has_tf32(torch.device("cpu"))


@pytest.mark.parametrize(
    ("capability", "fp16", "tf32"),
    [((5, 3), True, False), ((6, 1), False, False), ((6, 2), True, False), ((7, 5), True, False),
     ((8, 0), True, True), ((9, 0), True, True), ((12, 0), True, True)],
)  # fmt: skip
def test_what_a_gpu_computes_fast_is_told_by_its_capability(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], fp16: bool, tf32: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    card = torch.device("cuda", 0)
    assert (has_fast_fp16(card), has_tf32(card)) == (fp16, tf32)


def formats() -> tuple[str, ...]:
    backends = torch.backends
    found = backends.cudnn.conv.fp32_precision, backends.cuda.matmul.fp32_precision
    return tuple("ieee" if name == "none" else name for name in found)


def test_what_fp32_means_on_a_gpu_is_put_back() -> None:
    before = formats()
    with fp32_on_cuda("tf32"):
        assert formats() == ("tf32", "ieee")
        with fp32_on_cuda():
            assert formats() == ("ieee", "ieee")
            with fp32_on_cuda(None, "tf32"):
                assert formats() == ("ieee", "tf32")
            assert formats() == ("ieee", "ieee")
        assert formats() == ("tf32", "ieee")
    assert formats() == before
    with pytest.raises(RuntimeError, match="device"), fp32_on_cuda("ieee", "tf32"):
        torch.empty(1, device="no such device")
    assert formats() == before


@pytest.mark.parametrize("allowed", [True, False])
def test_what_the_older_switches_said_is_put_back_too(allowed: bool) -> None:
    old = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        with fp32_on_cuda("ieee" if allowed else "tf32"):
            pass
        assert torch.backends.cudnn.allow_tf32 is allowed
        assert torch.backends.cuda.matmul.allow_tf32 is allowed
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = old

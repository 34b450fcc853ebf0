"""The whole backbone through our runtimes against what anyone would run instead.

Peers take turns in one process, one pass each per round, and every ratio is the median of the
rounds' own ratios. Random weights: the time of a convolution does not depend on their values.
"""

from __future__ import annotations

import os
import random
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from exitbench.harness.runtime import Prepared, availability, prepare
from exitbench.models.network import ExitNetwork
from goal_rows import MISSED, Row
from precision import make_network
from torch import Tensor, nn

JOB = "network"
EAGER, OURS, INT8 = "eager fp32", "ours fp32", "ours int8"
COMPILED, OPENVINO = "torch.compile fp32", "OpenVINO fp32"
FULL_GOALS = {1: 0.65, 64: 0.95}
PEER_GOALS = {1: 1.10, 64: 1.05}
INT8_GOAL = 3.8
LARGEST_ERROR = 1e-3  # of logits, relative: peers must compute the same function

Pass = Callable[[], Tensor]


class Backbone(nn.Module):
    """The network without its exits, as a plain module."""

    def __init__(self, network: ExitNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network.run_backbone(images)


def measure_network(model: str, threads: int, quick: bool) -> list[Row]:
    """The rows of one network at one number of threads; call in a process of its own."""
    network = make_network(model)
    ours = {
        EAGER: prepare(network, "fp32", runtime="eager"),
        OURS: prepare(network, "fp32"),
    }
    missing: dict[str, str] = {}
    images = torch.randn(64, *network.input_shape)
    reason = availability("int8")
    if reason is None:
        ours[INT8] = prepare(network, "int8", calibration_images=images[:16])
    else:
        missing[INT8] = reason
    rows: list[Row] = []
    for batch in (1, 64):
        some = images[:batch].contiguous(memory_format=torch.channels_last)
        peers: dict[str, Pass] = {name: _own(each, some) for name, each in ours.items()}
        absent = dict(missing)
        for name, make in ((COMPILED, _compiled), (OPENVINO, _openvino)):
            found = "left out by --quick" if quick and make is _compiled else _tried(
                make, network, some, threads
            )
            if isinstance(found, str):
                absent[name] = found
            else:
                peers[name] = found
        times = interleaved(peers, _rounds(model, batch, threads, quick))
        found = _rows(model, batch, threads, ours, times, absent)
        rows += [_explained(row, ours, some, quick) for row in found]
    return rows


def _explained(row: Row, ours: dict[str, Prepared], images: Tensor, quick: bool) -> Row:
    """A missed row with the segments where most of the time goes, beside eager's."""
    name = INT8 if row.least else OURS
    if row.status != MISSED or name not in ours:
        return row
    rounds = 2 if quick else 20 if len(images) == 1 else 4
    mine, eager = segment_times([ours[name], ours[EAGER]], images, rounds)
    order = sorted(range(len(mine)), key=lambda at: -mine[at])[:4]
    places = ", ".join(
        f"{at + 1} ({mine[at] / sum(mine):.0%}, {mine[at] / eager[at]:.2f} x eager's)"
        for at in order
    )
    note = f"{row.note}. " if row.note else ""
    note += f"Segments that take most: {places}; all of them {sum(mine) / sum(eager):.2f} x eager's"
    segments = {"ms": [each * 1e3 for each in mine], "eager_ms": [each * 1e3 for each in eager]}
    return replace(row, note=note, detail={**row.detail, "segments": segments})


def segment_times(
    peers: Sequence[Prepared], images: Tensor, rounds: int
) -> list[list[float]]:
    """Median seconds of each segment of each peer, in passes through all segments, in turn."""
    times: list[list[list[float]]] = [[[] for _ in range(p.num_exits + 1)] for p in peers]
    for turn in range(rounds + 1):
        for prepared, mine in zip(peers, times, strict=True):
            state: Any = images
            for number, found in enumerate(mine, start=1):
                start = time.perf_counter()
                state = prepared.run_segment(number, state)
                if turn:
                    found.append(time.perf_counter() - start)
    return [[median(found) for found in mine] for mine in times]


def interleaved(peers: dict[str, Pass], rounds: int) -> dict[str, list[float]]:
    """Seconds per call of each peer, in a new order each round, after two rounds of warming up."""
    times: dict[str, list[float]] = {name: [] for name in peers}
    order = random.Random(0)
    with torch.inference_mode():
        for turn in range(rounds + 2):
            for name in order.sample(list(peers), len(peers)):
                start = time.perf_counter()
                peers[name]()
                seconds = time.perf_counter() - start
                if turn >= 2:
                    times[name].append(seconds)
    return times


def ratio(first: list[float], second: list[float]) -> float:
    """The median over rounds of first / second."""
    return median(a / b for a, b in zip(first, second, strict=True))


def usable_cpus() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def without_cpus(model: str, threads: int) -> list[Row]:
    """The rows of a number of threads that this process has no CPUs for."""
    note = f"this process may use {usable_cpus()} CPU(s), too few for {threads} threads"
    return [
        Row(JOB, what, goal, None, least=least, note=note)
        for batch in (1, 64)
        for what, goal, least in _goals(model, batch, threads)
    ]


def _goals(model: str, batch: int, threads: int) -> list[tuple[str, float, bool]]:
    where = f"{model}, batch {batch}, {threads} thread{'s' if threads > 1 else ''}"
    return [
        (f"fp32 / eager fused: {where}", FULL_GOALS[batch], False),
        (f"fp32 / better of torch.compile and OpenVINO: {where}", PEER_GOALS[batch],
         False),
        (f"int8, times faster than fp32 eager fused: {where}", INT8_GOAL, True),
    ]  # fmt: skip


def _rounds(model: str, batch: int, threads: int, quick: bool) -> int:
    if batch == 1:
        return 15 if quick else 100
    if quick:
        return 3
    return {"vgg19": 20, "resnet34": 12}[model]


def _own(prepared: Prepared, images: Tensor) -> Pass:
    last = prepared.num_exits + 1
    return lambda: prepared.run_classifier(prepared.run_stretch(1, last, images))


def _tried(
    make: Callable[[ExitNetwork, Tensor, int], Pass],
    network: ExitNetwork,
    images: Tensor,
    threads: int,
) -> Pass | str:
    """The peer, once it was seen to compute the same as the network; else why there is none."""
    with torch.inference_mode():
        wanted = network.run_backbone(images)
    try:
        call = make(network, images, threads)
        with torch.inference_mode():
            found = call()
    except (ImportError, OSError, RuntimeError) as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160]}"
    off = float((found - wanted).abs().max() / wanted.abs().max())
    return call if off <= LARGEST_ERROR else f"its logits are {off:.1%} off"


def _compiled(network: ExitNetwork, images: Tensor, threads: int) -> Pass:
    """The whole backbone by inductor with frozen weights."""
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++")):
        raise OSError("torch.compile needs a C++ compiler, and there is none")
    from torch._inductor import config as inductor

    torch._dynamo.reset()
    inductor.freezing = True  # type: ignore[assignment]
    model = Backbone(network).eval().to(memory_format=torch.channels_last)
    compiled = torch.compile(model, dynamic=False)
    # Freezing works without gradients only; tensors of inference_mode would be refused.
    plain = images.clone()

    def call() -> Tensor:
        with torch.inference_mode(False), torch.no_grad():
            found: Tensor = compiled(plain)
        return found

    call()
    return call


def _openvino(network: ExitNetwork, images: Tensor, threads: int) -> Pass:
    """The whole backbone, exported plainly, by OpenVINO in fp32."""
    import openvino

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = openvino.convert_model(Backbone(network).eval(), example_input=images)
    exported.reshape(list(images.shape))
    options = {
        "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }  # fmt: skip
    request = openvino.Core().compile_model(exported, "CPU", options).create_infer_request()
    given = images.contiguous().numpy()

    def call() -> Tensor:
        found = request.infer([given], share_inputs=True, share_outputs=True)
        return torch.from_numpy(found[0])

    return call


def _rows(
    model: str,
    batch: int,
    threads: int,
    ours: dict[str, Prepared],
    times: dict[str, list[float]],
    absent: dict[str, str],
) -> list[Row]:
    detail: dict[str, Any] = {
        "model": model, "batch_size": batch, "threads": threads,
        "ms_per_image": {name: median(each) / batch * 1e3 for name, each in times.items()},
        "rounds": len(times[EAGER]),
        "runtimes": {name: prepared.words for name, prepared in ours.items()},
        "absent": absent,
    }  # fmt: skip
    (full, *full_goal), (best, *best_goal), (int8, *int8_goal) = _goals(model, batch, threads)
    rows = [_row(full, full_goal, ratio(times[OURS], times[EAGER]), "", detail)]
    rivals = {name: median(times[name]) for name in (COMPILED, OPENVINO) if name in times}
    without = "; ".join(f"{n}: {absent[n]}" for n in (COMPILED, OPENVINO) if n in absent)
    better = min(rivals, key=rivals.__getitem__) if rivals else None
    found = None if better is None else ratio(times[OURS], times[better])
    said = without if better is None else f"against {better}" + (
        f"; without {without}" if without else ""
    )
    rows.append(_row(best, best_goal, found, said, {**detail, "better": better}))
    faster = ratio(times[EAGER], times[INT8]) if INT8 in times else None
    rows.append(_row(int8, int8_goal, faster, absent.get(INT8, ""), detail))
    return rows


def _row(
    what: str, goal: list[Any], measured: float | None, note: str, detail: dict[str, Any]
) -> Row:
    return Row(JOB, what, goal[0], measured, least=goal[1], note=note, detail=detail)

"""Goals of whole commands: trace, replay, profile, memory of a run, and the share of the heads."""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import torch
from exitbench.harness.configs import DeviceConfig, ProfileConfig
from exitbench.harness.predictors import DEFAULT_HORIZON, DEFAULT_KERNEL, convolution_stack
from exitbench.harness.profiling import run_profile
from exitbench.harness.runtime import Prepared, prepare
from exitbench.harness.scheduler import walk
from exitbench.harness.sources import LiveSource
from exitbench.harness.trace import TraceMeta, record, writing
from goal_network import interleaved, ratio
from goal_rows import Row
from goal_subject import make_checkpoint, make_elsewhere, make_images, make_subject
from goal_walks import make_script, scripted
from precision import make_network
from replay import make_traces, whole_sweep
from torch import Tensor

TRACED = 10_000
MODELS = ("vgg19", "resnet34")
MIB = 2**20


def measure_heads(folder: Path, threads: int, quick: bool) -> list[Row]:
    """The share of 20 heads in a full pass at batch 1: logits alone, without decisions."""
    network = make_network("vgg19")
    prepared = prepare(network, "fp32")
    image = torch.randn(1, *network.input_shape)
    peers = {"with": lambda: _pass(prepared, image, True),
             "without": lambda: _pass(prepared, image, False)}  # fmt: skip
    times = interleaved(peers, 30 if quick else 200)
    share = 1 - ratio(times["without"], times["with"])
    took = {name: median(each) * 1e3 for name, each in times.items()}
    note = f"{took['with']:.3g} ms with the heads, {took['without']:.3g} ms without"
    detail = {"ms": took, "rounds": len(times["with"]), "runtime": prepared.words}
    what = "share of 20 heads in a full pass: vgg19, batch 1"
    return [Row("heads", what, 10.0, share * 100, "%", note=note, detail=detail)]


def _pass(prepared: Prepared, images: Tensor, heads: bool) -> Tensor:
    """A full pass, segment by segment, with all heads or without."""
    state: Any = images
    for number in range(1, prepared.num_exits + 1):
        state = prepared.run_segment(number, state)
        if heads:
            prepared.run_head(number, state)
    return prepared.run_classifier(prepared.run_segment(prepared.num_exits + 1, state))


def measure_trace(folder: Path, threads: int, quick: bool) -> list[Row]:
    """Recording a split against the same passes with all heads, batch by batch in turn."""
    count = TRACED // 10 if quick else TRACED
    subject = make_subject(folder, "vgg19", count, threads)
    prepared, part = subject.prepare("fp32"), subject.parts["test"]
    meta = TraceMeta(
        "test", "fp32", count, prepared.num_exits, subject.network.classes, DEFAULT_KERNEL,
        DEFAULT_HORIZON, subject.dataset, subject.digest, subject.exit_names,
    )  # fmt: skip
    plain: list[float] = []

    def batches() -> Iterator[Tensor]:
        for images in subject.batches("test", 256):
            start = time.perf_counter()
            _pass(prepared, images, True)
            plain.append(time.perf_counter() - start)
            yield images

    _pass(prepared, subject.images("test", 0, 256), True)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        start = time.perf_counter()
        with writing(Path(place) / "trace.npz", meta, part.labels, part.indices) as writer:
            record(writer, batches(), prepared)
        traced = time.perf_counter() - start - sum(plain)
    note = f"{traced:.3g} s for {count:,} images, the passes alone {sum(plain):.3g} s"
    detail = {"trace_s": traced, "passes_s": sum(plain), "images": count}
    what = f"trace of {count:,} images / the same passes with all heads: vgg19"
    return [Row("trace", what, 1.05, traced / sum(plain), note=note, detail=detail)]


def measure_replay(folder: Path, threads: int, quick: bool) -> list[Row]:
    """The sweep of benchmarks/replay.py, scaled to 10,000 settings, and its peak memory."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        found = whole_sweep(make_traces(Path(place), 10_000), 3 if quick else 26)
    seconds = found["seconds"] / found["settings"] * 10_000
    note = f"{found['settings']:,} settings x 10,000 samples x 20 exits in {found['seconds']:.3g} s"
    what = "replay, 10,000 settings"
    peak = found["peak_gib"] * 1024
    return [
        Row("replay", f"{what}: time", 20.0, seconds, "s", note=note, detail=dict(found)),
        Row("replay", f"{what}: peak memory", 1024.0, peak, "MiB",
            note="everything imported and the trace made in the same process", detail=dict(found)),
    ]  # fmt: skip


def measure_profile(folder: Path, threads: int, quick: bool) -> list[Row]:
    """``exitbench profile`` with its default limits, latency only."""
    rows = []
    for model in MODELS:
        what = f"profile of {model}, tier quick, latency only, batch 1 and 64"
        if quick:
            rows.append(Row("profile", what, 60.0, None, "s", note="left out by --quick"))
            continue
        lines: list[str] = []
        with tempfile.TemporaryDirectory(dir=folder) as place:
            config = ProfileConfig(
                Path(place), make_checkpoint(folder, model), energy=False,
                data=make_images(folder, 64), device=DeviceConfig("cpu", threads),
            )  # fmt: skip
            start = time.perf_counter()
            run_profile(config, lines.append)
            seconds = time.perf_counter() - start
        wide = [line for line in lines if "wider than" in line or "warm-up" in line]
        detail = {"limit_s": config.seconds, "said": lines}
        rows.append(Row("profile", what, 60.0, seconds, "s", note="; ".join(wide), detail=detail))
    return rows


def _file_pages() -> int:
    """Bytes of this process's resident memory that are pages of files; 0 where nothing tells."""
    path = Path("/proc/self/status")
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("RssFile:"):
                return int(line.split()[1]) * 1024
    return 0


def measure_memory(folder: Path, threads: int, quick: bool) -> list[Row]:
    """Peak memory of a process that loads a checkpoint and runs a batch under predictive exit.

    Only sound in a process that has done nothing else: the peak of a process never falls.
    """
    make_elsewhere(folder, "vgg19", 64)
    before, files_before = psutil.Process().memory_info().rss, _file_pages()
    steps: dict[str, float] = {}

    def note(step: str) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # KiB on Linux
        steps[step] = (peak - before) / MIB

    subject = make_subject(folder, "vgg19", 64, threads)
    note("loaded")
    prepared = subject.prepare("fp32")
    note("prepared")
    weights = sum(t.numel() * t.element_size() for t in subject.network.state_dict().values())
    subject.shed_weights()  # as ``exitbench run`` does
    exits, everyone = prepared.num_exits, np.arange(64)
    stack = convolution_stack(subject.network.classes, DEFAULT_KERNEL, DEFAULT_HORIZON)
    policy = scripted("predictive", exits, make_script(exits, 64, 8.0, 0))
    walk(policy, LiveSource(prepared, exits, subject.images("test"), everyone, "softmax", stack))
    note("run")
    largest = 64 * 4 * max(p.channels * p.side**2 for p in subject.network.exit_points)
    goal = (2.5 * weights + 2 * largest) / MIB
    said = ", ".join(f"{size:.0f} MiB once {step}" for step, size in steps.items())
    steps["program_files"] = (_file_pages() - files_before) / MIB
    text = (
        f"peak above what the imports took: {said}; of that, {steps['program_files']:.0f} MiB are "
        f"pages of libraries that were first used. Goal: weights ({weights / MIB:.0f} MiB) x 2.5 + "
        f"two of the largest activation ({largest / MIB:.0f} MiB)"
    )
    what = "memory of a predictive run: vgg19, batch 64"
    return [Row("memory", what, round(goal, 1), steps["run"], "MiB", note=text, detail=steps)]

"""How much faster bf16 and int8 run the full backbone than fused fp32.

Why: a lower precision is offered as a saving, so it must really be faster than the fp32 that anyone
would run: torch's own convolutions, batch norm folded, channels_last (runtime `eager`).
How: one process, one thread; the peers take turns, one pass each per round, so that a busy moment
hits all alike; medians over rounds, and each ratio is the median of the rounds' own ratios.
Random weights: the time of a convolution does not depend on their values.

    python benchmarks/precision.py [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import time
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch
from exitbench.harness.files import write_json
from exitbench.harness.runtime import PRECISIONS, RUNTIMES, Prepared, availability, prepare
from exitbench.models.blocks import State
from exitbench.models.network import ExitNetwork
from exitbench.models.registry import MODELS, ModelArguments, build
from torch import Tensor, nn

BASELINE = ("fp32", "eager")


def make_network(model: str) -> ExitNetwork:
    """VGG-19 or ResNet-34 at full width with all exits, activations in a sound range."""
    torch.manual_seed(0)
    network = build(model, ModelArguments())
    # Batch norm sees one batch, so that activations neither vanish nor explode over the layers.
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        network.run_backbone(torch.randn(16, *network.input_shape))
    return network.eval()


def run_once(prepared: Prepared, images: Tensor) -> float:
    """Seconds for all segments and the classifier."""
    start = time.perf_counter()
    state: State = images
    for number in range(1, prepared.num_exits + 2):
        state = prepared.run_segment(number, state)
    prepared.run_classifier(state)
    return time.perf_counter() - start


def measure(peers: dict[str, Prepared], images: Tensor, rounds: int) -> dict[str, list[float]]:
    """Seconds per pass of each peer, taking turns, after two rounds of warming up."""
    times: dict[str, list[float]] = {name: [] for name in peers}
    for turn in range(rounds + 2):
        for name, prepared in peers.items():
            seconds = run_once(prepared, images)
            if turn >= 2:
                times[name].append(seconds)
    return times


def make_peers(network: ExitNetwork, images: Tensor) -> dict[str, Prepared]:
    """Each available precision under each runtime that serves it, the baseline first."""
    peers = {}
    for precision in PRECISIONS:
        reason = availability(precision)
        if reason is not None:
            print(f"{precision} left out: {reason}")
            continue
        for name, runtime in RUNTIMES.items():
            if precision in runtime.precisions:
                peers[f"{precision} {name}"] = prepare(
                    network, precision, calibration_images=images, runtime=name
                )
    baseline = " ".join(BASELINE)
    return {baseline: peers.pop(baseline), **peers}


def compare(model: str, batches: tuple[int, ...], quick: bool) -> list[dict[str, Any]]:
    """One row per peer and batch size."""
    network = make_network(model)
    images = torch.randn(max(batches), *network.input_shape)
    peers = make_peers(network, images[:16])
    rows = []
    for batch in batches:
        rounds = (5 if batch > 1 else 15) if quick else (25 if batch > 1 else 100)
        times = measure(peers, images[:batch], rounds)
        reference = times[" ".join(BASELINE)]
        for name, seconds in times.items():
            ratios = [slow / fast for slow, fast in zip(reference, seconds, strict=True)]
            rows.append(
                {
                    "model": model,
                    "batch_size": batch,
                    "peer": name,
                    "latency_ms": median(seconds) / batch * 1e3,
                    "times_faster": median(ratios),
                    "rounds": rounds,
                }
            )
    return rows


def main() -> None:
    """Measure, print the table, and write it as JSON if asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few rounds: a first impression")
    parser.add_argument("--json", type=Path, help="write the rows and the conditions to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    print(f"{'model':<10}{'batch':>6}  {'peer':<14}{'ms per image':>13}{'x faster':>10}")
    for model in sorted(MODELS, reverse=True):
        for row in compare(model, (1, 64), options.quick):
            rows.append(row)
            print(
                f"{row['model']:<10}{row['batch_size']:>6}  {row['peer']:<14}"
                f"{row['latency_ms']:>13.3f}{row['times_faster']:>10.2f}"
            )
        gc.collect()
    if options.json is not None:
        conditions = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "torch": torch.__version__,
            "machine": platform.machine(),
            "cpu": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        }
        write_json(options.json, {"conditions": conditions, "rows": rows})


if __name__ == "__main__":
    main()

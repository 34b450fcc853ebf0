"""How fast the sweep replays: 10,000 settings over 10,000 samples x 20 exits on one core.

What is measured, on made-up logits that grow surer with depth:

1. the whole sweep (settings per second, seconds, peak memory of the process), against the goal of
   20 s and 1 GB;
2. replay with the shared decision table (what the sweep does) against its peer in the same
   process, the plain walk of every setting on its own: interleaved, medians, as a ratio.

    python benchmarks/replay.py [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from exitbench.harness.costs import CostTable
from exitbench.harness.environment import environment
from exitbench.harness.replay import replay, replay_starts
from exitbench.harness.settings import Setting, make_policy
from exitbench.harness.sweep import Grid, Traces, replay_grid, table
from exitbench.harness.trace import Trace, TraceMeta, trace_logits

CLASSES, EXITS, HORIZON = 10, 20, 8
PREDICTORS = ("convolution", "table", "constant", "perfect")
CRITERIA = ("softmax", "activation", "margin", "entropy")


def make_traces(folder: Path, samples: int) -> Traces:
    """Calibration and test traces of made-up logits."""
    pair = []
    for seed, split in enumerate(("calibration", "test")):
        generator = np.random.default_rng(seed)
        truth = generator.integers(0, CLASSES, samples)
        hard = generator.uniform(0, 1, samples)
        logits = generator.normal(size=(samples, EXITS + 1, CLASSES)).astype(np.float32)
        depth = np.arange(1, EXITS + 2) / (EXITS + 1)
        logits[np.arange(samples), :, truth] += 6 * np.clip(depth - hard[:, None] + 0.4, 0, 1)
        names = (*(f"exit {i}" for i in range(1, EXITS + 1)), "classifier")
        meta = TraceMeta(
            split, "fp32", samples, EXITS, CLASSES, (1.0, 1.0, 1.0), HORIZON, "made up", "", names
        )
        path = folder / f"{split}.npz"
        trace_logits(path, logits, truth, np.arange(samples), meta)
        pair.append(Trace(path))
    return Traces(*pair)


def made_up_costs() -> CostTable:
    """A cost table in which every segment, head and forecast costs the same."""
    rows = [
        {"kind": kind, "index": index, "macs": macs, "latency_ms": macs / 1e6}
        for kind, count, macs in (
            ("segment", EXITS + 1, 10_000_000),
            ("head", EXITS, 400_000),
            ("forecast", EXITS, 800),
        )
        for index in range(1, count + 1)
    ]
    last = {"kind": "classifier", "index": EXITS + 1, "macs": 5120, "latency_ms": 0.005}
    return CostTable.from_rows([*rows, last])


def whole_sweep(traces: Traces, betas: int) -> dict[str, float]:
    """Seconds and peak memory of a sweep of the test split, pricing included."""
    grid = Grid(("full", "every-exit", "predictive"), CRITERIA, None, betas, None, PREDICTORS)
    opened = time.perf_counter()
    rows = list(replay_grid(grid, traces, "fp32", "test", lambda line: None))
    table(rows, made_up_costs().select("fp32"), "test")
    seconds = time.perf_counter() - opened
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux
    return {"settings": len(rows), "seconds": seconds, "peak_gib": peak}


def against_plain(traces: Traces, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds per setting, shared table and plain walk, over all start layers."""
    found = {}
    for predictor in (None, *PREDICTORS):
        policy = "predictive" if predictor else "every-exit"
        setting = Setting(policy, "softmax", 0.9, None, predictor)
        times: dict[str, list[float]] = {"shared": [], "plain": []}
        for _ in range(rounds):
            opened = time.perf_counter()
            shared = list(
                replay_starts(
                    setting, range(1, EXITS + 1), traces.scales, traces.calibration, traces.test
                )
            )
            between = time.perf_counter()
            for row in shared:
                made = make_policy(
                    row.setting, EXITS, traces.scales, traces.calibration, traces.test
                )
                alone = replay(row.setting, made, traces.test)
                assert (alone.histogram == row.histogram).all()
            times["shared"].append((between - opened) / EXITS * 1e3)
            times["plain"].append((time.perf_counter() - between) / EXITS * 1e3)
        ours, plain = (statistics.median(times[name]) for name in ("shared", "plain"))
        found[predictor or "every-exit"] = {
            "shared_ms": ours,
            "plain_ms": plain,
            "ratio": ours / plain,
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the settings, one round")
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        traces = make_traces(Path(folder), 10_000)
        sweep = whole_sweep(traces, 3 if options.quick else 26)
        ratios = against_plain(traces, 1 if options.quick else 3)
    print(
        f"{sweep['settings']} settings over 10,000 samples x {EXITS} exits: "
        f"{sweep['seconds']:.1f} s, peak memory {sweep['peak_gib']:.2f} GiB "
        "(goal for 10,000 settings: 20 s, 1 GB)"
    )
    print(f"{'per setting':<12} {'shared table':>14} {'plain walk':>12} {'ratio':>7}")
    for name, row in ratios.items():
        print(
            f"{name:<12} {row['shared_ms']:>11.2f} ms {row['plain_ms']:>9.2f} ms "
            f"{row['ratio']:>7.2f}"
        )
    if options.json:
        result = {"environment": environment(), "sweep": sweep, "against_plain": ratios}
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""What measuring energy costs, and whether two who measure the same work agree.

1. Opening and closing a window of every meter that works here: modelled power and external meters
   (files that a thread of this script keeps writing) always, RAPL and NVML where there are any.
   Waiting for the counter's next tick is in both, but outside the window; what is spent inside it
   is its share of the shortest window that the meter resolves.
2. On an NVIDIA GPU with the package ``zeus`` installed: the energy of the same work on the same
   card, ours and theirs, in windows around each other.

    python benchmarks/meters.py [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exitbench.harness.environment import environment
from exitbench.harness.meters.base import Meter, Unavailable, minimum_window_s
from exitbench.harness.meters.external import find_external
from exitbench.harness.meters.ina3221 import find_ina3221
from exitbench.harness.meters.modelled import find_modelled
from exitbench.harness.meters.nvidia import card_meter
from exitbench.harness.meters.rapl import find_rapl
from exitbench.profiles.loading import load_profile
from exitbench.profiles.nvml import list_gpus, open_nvml

PERIOD_S = 0.05  # of the files that stand for instruments
WATTS = 40.0
LIMIT = 0.01


@contextmanager
def instruments() -> Iterator[dict[str, Path]]:
    """Files as instruments keep them: joules counted up, and watts; written 20 times a second."""
    over = threading.Event()
    with tempfile.TemporaryDirectory() as name:
        files = {unit: Path(name) / unit for unit in ("joules", "watts")}

        def write(number: int) -> None:
            shown = {"joules": WATTS * time.perf_counter(), "watts": WATTS + number % 5 / 10}
            for unit, path in files.items():
                whole = path.with_suffix(".new")
                whole.write_text(f"{shown[unit]:.6f}\n")
                whole.replace(path)

        def keep_writing() -> None:
            number = 0
            while not over.wait(PERIOD_S):
                number += 1
                write(number)

        write(0)
        writer = threading.Thread(target=keep_writing)
        writer.start()
        try:
            yield files
        finally:
            over.set()
            writer.join()


def usable_meters(files: dict[str, Path]) -> tuple[dict[str, Meter], list[str]]:
    """The meters that work here by a short name, and why the others do not."""
    opened = open_nvml()
    profile = load_profile("generic-x86")
    found: dict[str, Meter | Unavailable] = {
        "modelled": find_modelled(profile, "cpu"),
        "file of joules": find_external(f"file:{files['joules']}", "joules"),
        "file of watts": find_external(f"file:{files['watts']}", "watts"),
        "RAPL": find_rapl(),
        "INA3221": find_ina3221(None),
    }
    found |= {f"NVML, GPU {gpu.index}": card_meter(opened, gpu) for gpu in list_gpus(opened)}
    if opened.library is None:
        found["NVML"] = Unavailable("NVML energy counter", ("gpu",), opened.reason)
    usable = {name: each for name, each in found.items() if not isinstance(each, Unavailable)}
    missing = [f"{n}: {each.reason}" for n, each in found.items() if isinstance(each, Unavailable)]
    return usable, missing


def overhead(name: str, meter: Meter, times: int) -> dict[str, Any]:
    """Opening empty windows, and closing one that is wide enough and what reading takes of it."""
    opening = []
    for _ in range(times):
        begin_s = time.perf_counter()
        window = meter.open()
        opening.append(time.perf_counter() - begin_s)
        window.close()
    window = meter.open()
    time.sleep(max(minimum_window_s(meter), 1.0))
    begin_s = time.perf_counter()
    reading = window.close()
    close_s = time.perf_counter() - begin_s
    return {
        "meter": name,
        "words": meter.name,
        "update_period_ms": None if meter.update_period_s is None else meter.update_period_s * 1e3,
        "open_ms": statistics.median(opening) * 1e3,
        "close_ms": close_s * 1e3,
        "window_s": reading.seconds,
        "inside_share": reading.overhead_s / reading.seconds,
        "uncertainty_share": _share(reading.total_uncertainty_j, reading.total_j),
        "note": reading.note,
    }


def _share(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole


@dataclass(frozen=True)
class Agreement:
    """Joules of the same work by this package and by zeus, and how far they may lie apart."""

    seconds: float
    ours_j: float
    zeus_j: float
    allowed_j: float


def agreement(seconds: float, rounds: int) -> tuple[list[Agreement], str]:
    """The energies of the same work on the first card; or why there is nothing to compare."""
    opened = open_nvml()
    gpus = list_gpus(opened)
    if not gpus:
        return [], f"not compared with zeus: {opened.reason or 'NVML sees no GPU'}"
    if importlib.util.find_spec("zeus") is None:
        return [], "not compared with zeus: it is not installed (pip install zeus)"
    import torch
    from exitbench.harness.meters.choose import torch_uuid
    from exitbench.harness.meters.nvidia import find_nvidia
    from zeus.monitor import ZeusMonitor

    torch.zeros(1, device="cuda:0")
    meter = find_nvidia(opened, 0, {}, uuid=torch_uuid(0))
    if isinstance(meter, Unavailable):
        return [], f"not compared with zeus: {meter.reason}"
    monitor = ZeusMonitor(gpu_indices=[0], cpu_indices=[])
    found = []
    for number in range(rounds):
        window = meter.open()
        monitor.begin_window(str(number))
        _work(max(seconds, 2 * minimum_window_s(meter)))
        theirs = monitor.end_window(str(number))
        reading = window.close()
        if reading.gpu_j is None:
            return found, f"not compared with zeus: {reading.note}"
        # Theirs begins and ends anywhere between two ticks of the counter.
        update_j = reading.gpu_j / reading.seconds * meter.update_period_s
        allowed_j = reading.uncertainty_j["gpu"] + 2 * update_j
        found.append(Agreement(reading.seconds, reading.gpu_j, theirs.gpu_energy[0], allowed_j))
    return found, ""


def _work(seconds: float) -> None:
    """Keep the card busy; ends when it has finished."""
    import torch

    matrix = torch.randn(2048, 2048, device="cuda:0")
    end_s = time.perf_counter() + seconds
    while time.perf_counter() < end_s:
        for _ in range(20):
            torch.mm(matrix, matrix)
        torch.cuda.synchronize()


def main() -> None:
    """Measure, print the tables, and write them as JSON if asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few windows: a first impression")
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args()
    with instruments() as files:
        usable, missing = usable_meters(files)
        rows = [overhead(name, each, 5 if options.quick else 50) for name, each in usable.items()]
    print(
        f"{'meter':<16}{'updates every':>15}{'open':>10}{'close':>10}{'window':>9}"
        f"{'inside it':>11}{'uncertain':>11}"
    )
    for row in rows:
        print(_line(row))
    for line in missing:
        print(f"not here: {line}")
    print(f"goal: less than {LIMIT:.0%} of a window is spent on reading inside it")
    pairs, why = agreement(5.0 if options.quick else 20.0, 2 if options.quick else 6)
    for pair in pairs:
        print(
            f"same work for {pair.seconds:.1f} s: {pair.ours_j:.2f} J, zeus {pair.zeus_j:.2f} J "
            f"({pair.ours_j / pair.zeus_j - 1:+.2%}; edges allow {pair.allowed_j:.2f} J)"
        )
    if why:
        print(why)
    if options.json:
        result = {
            "environment": environment(),
            "overhead": rows,
            "missing": missing,
            "agreement": [pair.__dict__ for pair in pairs],
            "agreement_note": why,
        }
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _line(row: dict[str, Any]) -> str:
    period, uncertain = row["update_period_ms"], row["uncertainty_share"]
    return (
        f"{row['meter']:<16}"
        f"{'any time' if period is None else f'{period:.3g} ms':>15}"
        f"{row['open_ms']:>7.3g} ms{row['close_ms']:>7.3g} ms{row['window_s']:>7.3g} s"
        f"{row['inside_share']:>11.3%}"
        f"{'not stated' if uncertain is None else f'{uncertain:.2%}':>11}"
    )


if __name__ == "__main__":
    main()

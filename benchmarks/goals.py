"""How far this version is from its goals of speed and memory: one command, one table.

Every job runs in a process of its own, with its number of threads set before torch is used; peers
take turns inside it, and ratios are medians of the rounds' own ratios. What cannot be measured here
says so and why. docs/results/speed.md describes every row.

    python benchmarks/goals.py [--quick] [--only NAMES] [--json FILE] [--markdown FILE]
        [--figures DIR] [--checkpoint FILE --data DATASET]
    python benchmarks/goals.py --from FILE [--markdown FILE] [--figures DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from exitbench.harness.errors import ExitbenchError
from exitbench.harness.files import check_writable, read_json, write_json, write_text
from goal_rows import FAILED, Row, from_plain, markdown, summary, table

MARKS = ("<!-- goals: written by benchmarks/goals.py -->", "<!-- end of goals -->")
TIMEOUT_S = 1800


@dataclass(frozen=True)
class Job:
    """What one process measures."""

    name: str
    threads: int = 1
    model: str = ""

    def __str__(self) -> str:
        return " ".join(filter(None, (self.name, self.model, f"({self.threads} thread(s))")))


JOBS = (
    *(Job("network", threads, model) for threads in (1, 2) for model in ("vgg19", "resnet34")),
    Job("accuracy"), Job("walks"), Job("heads"), Job("trace"), Job("replay"), Job("profile"),
    Job("memory"), Job("gpu"), Job("roofline"),
)  # fmt: skip
NAMES = tuple(dict.fromkeys(job.name for job in JOBS))


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the table, write what was asked for; 1 if something broke, else 0."""
    options = _options(arguments)
    if options.job is not None:
        _work(options)
        return 0
    try:
        _check(options)
        source = options.source
        return _show(options, _measured(options) if source is None else _earlier(source))
    except ExitbenchError as error:
        print(error, file=sys.stderr)
        return 2


def _check(options: argparse.Namespace) -> None:
    """Refuse, before minutes of measuring, what could not be read or written after them.

    Raises:
        ExitbenchError: says which option.
    """
    figures = options.figures and options.figures / "goals.svg"
    for path in filter(None, (options.json, options.markdown, figures)):
        check_writable(path)
    if options.markdown is not None:
        _around(options.markdown)
    if options.data is not None and options.checkpoint is None:
        raise ExitbenchError(
            f"--data {options.data} names the data of a --checkpoint, and none is given; leave it "
            "out, or name one"
        )
    if options.checkpoint is not None and not options.checkpoint.is_file():
        raise ExitbenchError(
            f"--checkpoint {options.checkpoint} does not exist; correct the path, or leave it out "
            "to train the network of the demo"
        )


def _earlier(source: Path) -> dict[str, Any]:
    """What an earlier ``--json`` wrote.

    Raises:
        ExitbenchError: the file holds something else.
    """
    found = read_json(source)
    if not isinstance(found, dict) or not {"conditions", "rows", "data"} <= found.keys():
        raise ExitbenchError(
            f"{source} was not written by goals.py --json: conditions, rows and data are needed"
        )
    return found


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few rounds: a first impression")
    parser.add_argument(
        "--only", nargs="+", choices=NAMES, metavar="NAME", help=f"of {', '.join(NAMES)}"
    )
    parser.add_argument("--json", type=Path, help="write rows, conditions and raw data here")
    parser.add_argument(
        "--markdown", type=Path,
        help="write the table here; in a page with the marks, only between them",
    )  # fmt: skip
    parser.add_argument("--figures", type=Path, help="write figures (SVG, PNG) to this folder")
    parser.add_argument(
        "--checkpoint", type=Path,
        help="trained network whose accuracy in int8 is measured; default: train that of the demo",
    )  # fmt: skip
    parser.add_argument("--data", help="its data set, as exitbench's --data.dataset")
    parser.add_argument(
        "--from", dest="source", type=Path, help="measure nothing; show what --json wrote here"
    )
    for name in ("--job", "--model", "--folder", "--out"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def _measured(options: argparse.Namespace) -> dict[str, Any]:
    """Rows, data and conditions of all jobs that were asked for."""
    conditions = _conditions(options)
    rows: list[dict[str, Any]] = []
    data: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="exitbench-goals-") as folder:
        for job in JOBS:
            if options.only and job.name not in options.only:
                continue
            print(f"== {job}", file=sys.stderr, flush=True)
            start = time.perf_counter()
            found = _run(job, options, Path(folder))
            rows += found["rows"]
            data |= found["data"]
            seconds[str(job)] = round(time.perf_counter() - start, 1)
    conditions |= {"load_1min_after": _load(), "seconds": seconds}
    return {"conditions": conditions, "rows": rows, "data": data}


def _run(job: Job, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What the process of a job found; a row that says so if it broke."""
    out = folder / "found.json"
    out.unlink(missing_ok=True)
    command = [sys.executable, str(Path(__file__).resolve()), "--job", job.name,
               "--threads", str(job.threads), "--model", job.model, "--folder", str(folder),
               "--out", str(out)]  # fmt: skip
    command += ["--quick"] if options.quick else []
    if options.checkpoint is not None:
        command += ["--checkpoint", str(options.checkpoint)]
        command += ["--data", options.data] if options.data else []
    threads = {name: str(job.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    try:
        ended = subprocess.run(
            command, env={**os.environ, **threads}, capture_output=True, text=True,
            timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
        why = (ended.stderr.strip().splitlines() or ["no message"])[-1]
        code: int | str = ended.returncode
    except subprocess.TimeoutExpired:
        code, why = "none", f"it took longer than {TIMEOUT_S} s"
    if code != 0 or not out.is_file():
        note = f"the process ended with status {code}: {why[:300]}"
        row = Row(job.name, str(job), None, None, note=note, failed=True)
        return {"rows": [row.plain()], "data": {}}
    return json.loads(out.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def _work(options: argparse.Namespace) -> None:
    """In a process of its own: measure one job and write what it found."""
    import torch

    torch.set_num_threads(options.threads)
    rows: list[Row] = []
    data: dict[str, Any] = {}
    folder = Path(options.folder)
    name, common = options.job, (folder, options.threads, options.quick)
    if name == "network":
        rows = _network(options)
    elif name == "walks":
        from goal_walks import measure_walks

        rows, data = measure_walks(*common)
    elif name == "roofline":
        from goal_roofline import measure_roofline

        data = {"roofline": measure_roofline(*common)}
    elif name in ("accuracy", "gpu"):
        import goal_accuracy as trained

        more = (options.checkpoint, options.data) if name == "accuracy" else ()
        rows = getattr(trained, f"measure_{name}")(*common, *more)
    else:
        import goal_pipeline as pipeline

        rows = getattr(pipeline, f"measure_{name}")(*common)
    write_json(Path(options.out), {"rows": [row.plain() for row in rows], "data": data})


def _network(options: argparse.Namespace) -> list[Row]:
    from goal_network import measure_network, usable_cpus, without_cpus

    if usable_cpus() < options.threads:
        return without_cpus(options.model, options.threads)
    return measure_network(options.model, options.threads, options.quick)


def _conditions(options: argparse.Namespace) -> dict[str, Any]:
    import importlib.metadata

    from exitbench.harness.environment import environment

    found = environment()
    for package in ("openvino",):
        try:
            found["packages"][package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found["packages"][package] = None
    del found["threads"]  # each job has its own
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"), "quick": options.quick,
        **found, "load_1min": _load(),
    }  # fmt: skip


def _load() -> float | None:
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _show(options: argparse.Namespace, result: dict[str, Any]) -> int:
    """Print the table and write what was asked for; 1 if something broke."""
    rows = [from_plain(row) for row in result["rows"]]
    lines = [*table(rows), "", f"{summary(rows)}.", *_said(result["conditions"])]
    print("\n".join(lines))
    if options.json is not None:
        write_json(options.json, result)
    if options.markdown is not None:
        _write_page(options.markdown, [*_said(result["conditions"]), "", f"{summary(rows)}.", "",
                                       *markdown(rows)])  # fmt: skip
    if options.figures is not None:
        from goal_figures import draw

        for line in draw(result, options.figures):
            print(line)
    return 1 if any(row.status == FAILED for row in rows) else 0


def _said(conditions: dict[str, Any]) -> Iterator[str]:
    packages = conditions["packages"]
    yield (
        f"{conditions['date'][:10]}; {conditions['cpu']}, {conditions['cores']} CPU(s), "
        f"{conditions['memory_gib']} GiB, GPU: {conditions['gpu'] or 'none'}; "
        f"torch {packages['torch']}, openvino {packages['openvino'] or 'not installed'}, Python "
        f"{conditions['python']}; load before {conditions['load_1min']}, after "
        f"{conditions['load_1min_after']}" + ("; --quick" if conditions["quick"] else "")
    )


def _write_page(path: Path, lines: list[str]) -> None:
    """The lines as a file; between the marks where the file has them."""
    text = "\n".join([MARKS[0], "", *lines, "", MARKS[1]])
    before, after = _around(path)
    write_text(path, before + text + after)


def _around(path: Path) -> tuple[str, str]:
    """What a page has before and after its table.

    Raises:
        ExitbenchError: there is such a file, but without the marks.
    """
    if not path.is_file():
        return "", "\n"
    before, first, rest = path.read_text(encoding="utf-8").partition(MARKS[0])
    _, last, after = rest.partition(MARKS[1])
    if not first or not last:
        raise ExitbenchError(
            f"{path} exists without the marks {MARKS[0]} and {MARKS[1]}; put them where the "
            "table belongs, or choose another file"
        )
    return before, after


if __name__ == "__main__":
    sys.exit(main())

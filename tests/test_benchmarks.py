"""The table of goals: what it says of numbers and of what cannot be measured, and that it runs."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

MODULES = ("goals", "goal_rows", "goal_walks", "goal_subject", "goal_roofline", "goal_figures",
           "goal_network", "precision")  # fmt: skip


@pytest.fixture(scope="module")
def benchmarks(checkout: Path) -> Iterator[Path]:
    """The folder of the scripts, importable as they import each other."""
    folder = checkout / "benchmarks"
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    for name in MODULES:
        sys.modules.pop(name, None)


def module(name: str) -> Any:
    return importlib.import_module(name)


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, str(folder / "goals.py"), *arguments],
        capture_output=True, text=True, env=hidden, check=False,
    )  # fmt: skip


def test_a_row_says_met_missed_by_how_much_or_that_there_is_no_number(benchmarks: Path) -> None:
    row = module("goal_rows").Row
    assert row("a", "w", 1.05, 1.0).verdict() == "met"
    assert row("a", "w", 1.0, 1.1).verdict() == "missed by 10.0%"
    assert row("a", "w", 3.8, 1.9, least=True).verdict() == "missed by 50.0%"
    assert row("a", "w", 10.0, 12.5, "%").verdict() == "missed by 2.50 %"
    assert row("a", "w", 0.5, -0.2, "points").verdict() == "met"
    assert row("a", "w", 3.0, None, note="no GPU").verdict() == "unavailable"
    assert row("a", "w", None, None, note="it broke", failed=True).verdict() == "failed"
    assert row("a", "w", None, 1.1).verdict() == "no goal"


def test_the_tables_hold_every_row_and_number_equal_notes_once(benchmarks: Path) -> None:
    rows = module("goal_rows")
    some = [rows.Row("a", "one", 1.05, 1.0, note="same"), rows.Row("a", "two", 3.0, None),
            rows.Row("a", "three", 20.0, 30.0, "s", note="same")]  # fmt: skip
    page = "\n".join(rows.markdown(some))
    assert "| one | at most 1.05 x | 1.000 x | met (1) |" in page
    assert "| two | at most 3 x | - | unavailable |" in page
    assert "| three | at most 20 s | 30.0 s | missed by 50.0% (1) |" in page
    assert page.count("1. same") == 1
    assert "2." not in page
    assert sum("one" in line or "two" in line for line in rows.table(some)) == 2
    assert rows.summary(some) == "1 met, 1 missed, 1 unavailable"
    assert [rows.from_plain(json.loads(json.dumps(row.plain()))) for row in some] == some


def test_a_script_has_the_mean_that_was_asked_for_and_sends_nobody_too_far(
    benchmarks: Path,
) -> None:
    make = module("goal_walks").make_script
    for mean in (1.5, 4.0, 8.0, 14.0):
        script = make(20, 512, mean, 0)
        assert script.leave_at.mean() == pytest.approx(mean, rel=0.02)
        assert script.leave_at.min() >= 1
        assert script.leave_at.max() <= 21
        exits = np.arange(1, 21)[:, None]
        inside = script.leave_at > exits
        assert (exits + script.jump <= script.leave_at)[inside].all()
        assert script.jump.min() >= 1
        assert script.jump.max() <= 8


def test_scripted_policies_follow_the_script_through_a_real_network(
    benchmarks: Path, make_network: Any
) -> None:
    import torch
    from exitbench.harness.predictors import convolution_stack
    from exitbench.harness.runtime import prepare
    from exitbench.harness.scheduler import walk
    from exitbench.harness.sources import LiveSource

    walks = module("goal_walks")
    network = make_network()
    prepared = prepare(network, "fp32")
    exits, everyone = network.num_exits, np.arange(24)
    script = walks.make_script(exits, 24, 6.0, 1)
    images, stack = torch.randn(24, *network.input_shape), convolution_stack(network.classes)
    for name in ("every-exit", "predictive"):
        source = LiveSource(prepared, exits, images, everyone, "softmax", stack)
        outcome = walk(walks.scripted(name, exits, script), source)
        assert (outcome.exit_at == script.leave_at).all(), name


def test_flops_leave_out_the_products_with_padding(benchmarks: Path, make_network: Any) -> None:
    import torch
    from torch import nn

    roofline = module("goal_roofline")
    conv = nn.Conv2d(1, 1, 3, padding=1)
    assert roofline._taps(conv, torch.zeros(1, 1, 2, 2), 2) == 4  # of 6
    assert roofline._taps(nn.Conv2d(1, 1, 3, stride=2, padding=1), torch.zeros(1, 1, 4, 4), 2) == 5
    network = make_network()
    counted = [each.flops for each in network.counts().segments]
    useful = roofline.useful_flops(network)
    assert all(0 <= mine <= all_of for mine, all_of in zip(useful, counted, strict=True))
    assert sum(useful) > 0.5 * sum(counted)


@pytest.mark.slow
def test_one_command_gives_table_json_and_page_and_names_what_is_not_there(
    benchmarks: Path, tmp_path: Path
) -> None:
    page = tmp_path / "speed.md"
    marks = module("goals").MARKS
    page.write_text(f"# Speed\n\n{marks[0]}\nold\n{marks[1]}\n\nafter\n", encoding="utf-8")
    found = run(
        benchmarks, "--quick", "--only", "gpu", "heads", "profile",
        "--json", str(tmp_path / "goals.json"), "--markdown", str(page),
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    result = json.loads((tmp_path / "goals.json").read_text(encoding="utf-8"))
    assert {"date", "cpu", "torch", "packages", "load_1min", "quick"} <= set(result["conditions"])
    rows = {row["job"]: row for row in result["rows"]}
    assert rows["gpu"]["status"] == "unavailable"
    assert rows["gpu"]["measured"] is None
    assert rows["gpu"]["note"] == "no GPU"
    assert rows["profile"]["note"] == "left out by --quick"
    assert rows["heads"]["status"] in ("met", "missed")
    assert 0 < rows["heads"]["measured"] < 100
    written = page.read_text(encoding="utf-8")
    assert written.startswith("# Speed")
    assert written.endswith("after\n")
    assert "old" not in written
    for row in result["rows"]:
        assert row["what"] in found.stdout
        assert row["what"] in written


def test_a_broken_job_is_a_failed_row_and_not_a_silent_one(
    benchmarks: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_text("no network")
    found = run(benchmarks, "--quick", "--only", "accuracy", "--checkpoint", str(broken))
    assert found.returncode == 1
    assert "failed" in found.stdout
    assert "broken.safetensors" in "".join(found.stdout.split())


def test_what_cannot_be_read_or_written_is_said_before_anything_is_measured(
    benchmarks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    goals = module("goals")
    monkeypatch.setattr(goals, "_measured", lambda options: pytest.fail("it measured"))
    (tmp_path / "file").write_text("mine\n")
    (tmp_path / "other.json").write_text("{}")
    for arguments, words in (
        (["--checkpoint", "no.safetensors"], "no.safetensors does not exist"),
        (["--data", "digits"], "--checkpoint, and none is given"),
        (["--figures", str(tmp_path / "file" / "figures")], "cannot write"),
        (["--markdown", str(tmp_path / "file")], "without the marks"),
        (["--from", str(tmp_path / "other.json")], "not written by goals.py"),
    ):
        assert goals.main(arguments) == 2
        assert words in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine\n"


def test_a_page_without_marks_is_left_alone(benchmarks: Path, tmp_path: Path) -> None:
    source, page = tmp_path / "goals.json", tmp_path / "page.md"
    row = module("goal_rows").Row("gpu", "graphs", 3.0, None, note="no GPU").plain()
    conditions = {
        "date": "2026-11-26T00:00:00", "cpu": "c", "cores": 1, "memory_gib": 1.0, "gpu": None,
        "python": "3", "packages": {"torch": "2", "openvino": None}, "load_1min": 0.0,
        "load_1min_after": 0.0, "quick": True,
    }  # fmt: skip
    source.write_text(json.dumps({"conditions": conditions, "rows": [row], "data": {}}))
    page.write_text("mine\n")
    found = run(benchmarks, "--from", str(source), "--markdown", str(page))
    assert found.returncode == 2
    assert "marks" in found.stderr
    assert page.read_text() == "mine\n"
    found = run(benchmarks, "--from", str(source), "--markdown", str(tmp_path / "new.md"))
    assert found.returncode == 0
    assert "unavailable" in (tmp_path / "new.md").read_text()

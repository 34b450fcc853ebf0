"""Damaged files of a run directory, and too little memory, at the command line: no tracebacks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exitbench.harness import cli

Damage = Callable[[Path], None]


def manifest(drop: str | None = None, **changes: Any) -> Damage:
    def damage(run: Path) -> None:
        path = run / "manifest.json"
        values = json.loads(path.read_text()) | changes
        values.pop(drop, None)
        path.write_text(json.dumps(values))

    return damage


def measurement(**changes: Any) -> Damage:
    def damage(run: Path) -> None:
        path = run / "measurements.jsonl"
        row = json.loads(path.read_text().splitlines()[0])
        path.write_text(json.dumps(row | changes) + "\n")

    return damage


def array(name: str) -> Damage:
    def damage(run: Path) -> None:
        path = run / "trace-test-fp32.npz"
        with np.load(path) as file:
            arrays = dict(file)
        np.savez(path, **arrays | {name: arrays[name][:-1]})

    return damage


def latin(run: Path) -> None:
    (run / "measurements.jsonl").write_bytes(b'{"policy": "\xe9"}\n')


SWEEP = ["sweep", "--criteria", "softmax", "--beta", "0.3"]
GOVERN = ["govern"]
SUBSET = ["subset", "--out", "list.json"]
RUN = ["run", "--settings", "full", "--repeats", "1", "--device", "cpu", "--threads", "1"]
CASES: dict[str, tuple[Damage, list[str], str]] = {
    "no environment": (manifest(drop="environment"), SWEEP, "lacks 'environment'"),
    "checkpoint": (manifest(checkpoint="net"), RUN, "checkpoint is 'net', expected a table"),
    "checkpoint, reported": (manifest(checkpoint=[1]), ["report"], "checkpoint is [1]"),
    "commands": (manifest(commands=["trace"]), SWEEP, "commands is ['trace'], expected a table"),
    "a command": (manifest(commands={"sweep": 1}), SWEEP, "commands.sweep is 1"),
    "precisions": (manifest(precisions={"fp32": 1}), ["report"], "precisions.fp32 is 1"),
    "idle power": (manifest(hardware={"idle_w": "low"}), SWEEP, "hardware.idle_w is 'low'"),
    "idle below 0": (manifest(hardware={"idle_w": -3}), GOVERN, "hardware.idle_w is -3"),
    "idle source": (manifest(hardware={"idle_source": "x"}), SWEEP, "hardware.idle_source is 'x'"),
    "govern": (manifest(govern="oops"), GOVERN, "govern is 'oops', expected a table"),
    "path": (manifest(checkpoint={"path": 3}), RUN, "checkpoint.path is 3, expected text"),
    "sizes": (manifest(checkpoint={"sizes": {"test": "all"}}), SUBSET, "counts 'all' samples"),
    "text of measurements": (latin, RUN, "measurements.jsonl is no UTF-8 text"),
    "samples": (measurement(samples="many"), ["report"], "samples is 'many'"),
    "samples, run": (measurement(samples=[1]), RUN, "samples is [1]"),
    "layers": (measurement(stat_each_layer=[{"exit": "x"}]), ["report"], "stat_each_layer must"),
    "indices": (array("indices"), SUBSET, "the array 'indices' is int64 of shape (59,)"),
    "truth": (array("truth"), SWEEP, "the array 'truth' is int64 of shape (59,)"),
    "label": (array("label"), SWEEP, "the array 'label' is uint8 of shape (5, 60)"),
    "confidence": (array("confidence_softmax"), SUBSET, "of shape (4, 60), which must be (5, 60)"),
    "rounds": (array("rounds_softmax"), SWEEP, "the array 'rounds_softmax'"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_damaged_run_directory_is_named_with_what_would_be_right(
    finished: Path,
    tmp_path: Path,
    name: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    damage, command, words = CASES[name]
    damage(run)
    assert cli.main([*command, "--run", str(run)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("exitbench: ")
    assert words in said
    assert not (tmp_path / "list.json").exists()


def test_too_little_memory_is_one_message(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    # More than any machine has, so that it is refused before a byte of it is written.
    sizes = str(10**15)
    arguments = ["--run", str(run), "--batch-sizes", sizes, "--no-energy"]
    assert cli.main(["profile", *arguments, "--device", "cpu", "--threads", "1"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("exitbench: the memory does not suffice (")
    assert "--batch-size" in said


@pytest.mark.parametrize("words", ["CUDA out of memory. Tried to allocate 2 GiB", "std::bad_alloc"])
def test_memory_errors_of_devices_are_known_by_their_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    def fail(config: Any, say: Any) -> None:
        raise RuntimeError(words)

    monkeypatch.setattr(cli, "_runner", lambda config: fail)
    assert cli.main(["hardware", "list"]) == 2
    assert f"the memory does not suffice ({words})" in capsys.readouterr().err


def test_another_error_of_the_program_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(config: Any, say: Any) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(cli, "_runner", lambda config: fail)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        cli.main(["hardware", "list"])


def test_a_sweep_of_the_full_network_alone_computes_no_beta(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    assert cli.main(["sweep", "--run", str(run), "--policies", "full"]) == 0
    assert "beta" not in capsys.readouterr().out

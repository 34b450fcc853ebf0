"""A training that was killed goes on where it was, and work done is not done twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exitbench.harness.configs import DataConfig, DeviceConfig, TrainConfig
from exitbench.harness.errors import ExitbenchError
from exitbench.harness.training import run_train
from exitbench.harness.training_state import state_path
from exitbench.models import load_checkpoint
from safetensors.torch import load_file, save_file


class Killed(Exception):
    """Stands for whatever ends a process between two epochs."""


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    generator = np.random.default_rng(0)
    path = tmp_path / "data" / "images.npz"
    path.parent.mkdir()
    np.savez(
        path,
        x_train=generator.integers(0, 256, (48, 32, 32, 3), dtype=np.uint8),
        y_train=np.arange(48) % 3,
        x_test=generator.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8),
        y_test=np.arange(6) % 3,
    )
    return TrainConfig(
        out=tmp_path / "net.safetensors",
        mode="joint",
        width=0.125,
        exits=(2, 9),
        epochs=4,
        batch_size=16,
        validation_share=0.1,
        data=DataConfig(dataset=f"npz:{path}"),
        device=DeviceConfig(device="cpu", threads=1),
    )


def silent(line: str) -> None:
    """Take a line of progress and show it to nobody."""


def dying_after(epoch: int) -> Callable[[str], None]:
    def say(line: str) -> None:
        if line.startswith(f"epoch {epoch}/") and "loss" in line:
            raise Killed

    return say


def interrupt(config: TrainConfig, epoch: int = 2) -> None:
    with pytest.raises(Killed):
        run_train(config, dying_after(epoch))


def assert_same_weights(a: Path, b: Path) -> None:
    first, second = load_file(a), load_file(b)
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert different == []


VARIANTS: dict[str, dict[str, Any]] = {
    "adam": {},
    "sgd": {"optimizer": "sgd", "learning_rate": 0.01},
    "float32": {"mixed_precision": False},
    "shared heads": {"share_heads": True},
    "resnet34": {"model": "resnet34"},
    "patience": {"patience": 3},
    "backbone only": {"mode": "original"},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_an_interrupted_training_gives_the_weights_of_an_uninterrupted_one(
    config: TrainConfig, tmp_path: Path, changes: dict[str, Any]
) -> None:
    config = replace(config, **changes)
    whole = replace(config, out=tmp_path / "whole.safetensors")
    run_train(whole, silent)
    interrupt(config)
    assert not config.out.exists()
    lines: list[str] = []
    run_train(config, lines.append)
    assert any(line.startswith("going on after epoch 2 of 4") for line in lines)
    assert not any(line.startswith("epoch 2/4") for line in lines)
    assert_same_weights(config.out, whole.out)
    records = [load_checkpoint(path)[1].training for path in (config.out, whole.out)]
    for key in ("epochs", "kept_epoch", "test_accuracy", "validation_accuracy"):
        assert records[0][key] == records[1][key]
    losses = [[epoch["loss"] for epoch in record["history"]] for record in records]
    assert losses[0] == losses[1]


def test_a_training_of_heads_goes_on_too(config: TrainConfig, tmp_path: Path) -> None:
    backbone = tmp_path / "backbone.safetensors"
    run_train(replace(config, out=backbone, mode="original", epochs=1), silent)
    config = replace(config, mode="exits", init=backbone)
    whole = replace(config, out=tmp_path / "whole.safetensors")
    run_train(whole, silent)
    interrupt(config)
    run_train(config, silent)
    assert_same_weights(config.out, whole.out)


def test_a_killed_process_loses_at_most_the_epoch_it_was_in(
    config: TrainConfig, tmp_path: Path
) -> None:
    """SIGKILL in the middle of epoch 3: no handler runs, nothing is cleaned up."""
    program = f"""
import os, signal
from pathlib import Path
from exitbench.harness import training_loop
from exitbench.harness.configs import DataConfig, DeviceConfig, TrainConfig
from exitbench.harness.training import run_train

training_loop.PROGRESS_S = 0.0

def say(line):
    if line.startswith("epoch 3/4: step 2/"):
        os.kill(os.getpid(), signal.SIGKILL)

run_train(TrainConfig(out=Path({str(config.out)!r}), mode="joint", width=0.125, exits=(2, 9),
    epochs=4, batch_size=16, validation_share=0.1, data=DataConfig({config.data.dataset!r}),
    device=DeviceConfig("cpu", 1)), say)
"""
    whole = replace(config, out=tmp_path / "whole.safetensors")
    ended = subprocess.run([sys.executable, "-c", program], env=dict(os.environ), check=False)
    assert ended.returncode == -signal.SIGKILL
    assert state_path(config.out).is_file()
    assert not config.out.exists()
    run_train(whole, silent)
    lines: list[str] = []
    run_train(config, lines.append)
    assert any(line.startswith("going on after epoch 2 of 4") for line in lines)
    assert_same_weights(config.out, whole.out)


def test_a_training_killed_after_its_last_epoch_only_ends(config: TrainConfig) -> None:
    interrupt(config, epoch=4)
    lines: list[str] = []
    run_train(config, lines.append)
    assert not any(line.startswith("epoch ") for line in lines)
    assert config.out.is_file()


def test_the_state_is_removed_at_the_end(config: TrainConfig) -> None:
    interrupt(config)
    assert state_path(config.out).is_file()
    run_train(config, silent)
    assert [path.name for path in config.out.parent.iterdir() if path.is_file()] == [
        config.out.name
    ]


def test_a_state_of_other_settings_is_refused_by_the_names_of_the_settings(
    config: TrainConfig,
) -> None:
    interrupt(config)
    other = replace(config, epochs=5, optimizer="sgd")
    with pytest.raises(ExitbenchError) as caught:
        run_train(other, silent)
    message = str(caught.value)
    assert "epochs (4, now 5)" in message
    assert "optimizer ('adam', now 'sgd')" in message
    assert "seed" not in message
    assert "--no-resume" in message
    assert "--out" in message
    assert state_path(config.out).is_file()


def test_changed_images_count_as_other_settings(config: TrainConfig) -> None:
    interrupt(config)
    path = Path(config.data.dataset.partition(":")[2])
    with np.load(path) as stored:
        arrays = dict(stored)
    arrays["x_train"][0] = 255 - arrays["x_train"][0]
    np.savez(path, **arrays)
    with pytest.raises(ExitbenchError, match="data "):
        run_train(config, silent)


def test_threads_do_not_count_as_settings(config: TrainConfig) -> None:
    interrupt(config, epoch=4)
    run_train(replace(config, device=DeviceConfig(device="cpu", threads=2)), silent)
    assert config.out.is_file()


def test_without_resume_an_interrupted_training_starts_afresh(config: TrainConfig) -> None:
    interrupt(config)
    lines: list[str] = []
    run_train(replace(config, epochs=1, resume=False), lines.append)
    assert any(line.startswith("epoch 1/1") for line in lines)
    assert not state_path(config.out).exists()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def of_another_program(path: Path) -> None:
    save_file({"x": torch.zeros(1)}, path)


def no_safetensors(path: Path) -> None:
    path.write_text("hello")


@pytest.mark.parametrize("damage", [truncate, of_another_program, no_safetensors])
def test_a_damaged_state_is_refused(config: TrainConfig, damage: Callable[[Path], None]) -> None:
    interrupt(config)
    damage(state_path(config.out))
    with pytest.raises(ExitbenchError, match=r"cannot be gone on from .*--no-resume"):
        run_train(config, silent)


def test_a_finished_training_is_not_done_again(config: TrainConfig) -> None:
    run_train(config, silent)
    before = config.out.read_bytes()
    lines: list[str] = []
    run_train(config, lines.append)
    assert any("is trained with these settings already" in line for line in lines)
    assert not any(line.startswith("epoch ") for line in lines)
    assert config.out.read_bytes() == before


def test_a_checkpoint_of_other_settings_is_replaced_and_that_is_said(config: TrainConfig) -> None:
    run_train(replace(config, epochs=1), silent)
    lines: list[str] = []
    run_train(replace(config, epochs=2), lines.append)
    assert any("will be replaced: epochs (1, now 2)" in line for line in lines)
    assert load_checkpoint(config.out)[1].training["epochs"] == 2


@pytest.mark.parametrize("resume", [True, False])
def test_a_file_that_is_no_checkpoint_is_never_replaced(config: TrainConfig, resume: bool) -> None:
    config.out.write_text("my diary")
    with pytest.raises(ExitbenchError, match="not a complete safetensors file"):
        run_train(replace(config, resume=resume), silent)
    assert config.out.read_text() == "my diary"

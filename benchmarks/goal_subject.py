"""Networks and images that goals are measured with: made up, in the forms that commands read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from exitbench.harness.configs import DataConfig, DeviceConfig
from exitbench.harness.subject import Subject, load_subject
from exitbench.models import Checkpoint, save_checkpoint
from exitbench.models.registry import ModelArguments
from precision import make_network

CALIBRATION = 64
CLASSES = 10


def make_checkpoint(folder: Path, model: str) -> Path:
    """A full-width network with all exits and random weights, as ``exitbench train`` saves one."""
    path = folder / f"{model}.safetensors"
    if not path.exists():
        header = Checkpoint(model, ModelArguments(), "npz")
        save_checkpoint(path, make_network(model), header)
    return path


def make_images(folder: Path, tests: int) -> DataConfig:
    """A data set of random images: ``tests`` in the test split, CALIBRATION to calibrate on."""
    path = folder / f"images-{tests}.npz"
    if not path.exists():
        generator = np.random.default_rng(0)
        arrays = {}
        for name, count in (("train", 2 * CALIBRATION), ("test", tests)):
            arrays[f"x_{name}"] = generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
            arrays[f"y_{name}"] = np.arange(count) % CLASSES
        np.savez(path, **arrays)
    return DataConfig(dataset=f"npz:{path}", split_seed=0, calibration_samples=CALIBRATION)


def make_subject(folder: Path, model: str, tests: int, threads: int) -> Subject:
    """What commands load from a checkpoint and a data set, of these."""
    return load_subject(
        make_checkpoint(folder, model), make_images(folder, tests),
        DeviceConfig("cpu", threads), lambda line: None,
    )  # fmt: skip


def make_elsewhere(folder: Path, model: str, tests: int) -> None:
    """Make the files of ``make_subject`` in another process, whose memory is not this one's."""
    command = [sys.executable, str(Path(__file__).resolve()), str(folder), model, str(tests)]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    make_checkpoint(Path(sys.argv[1]), sys.argv[2])
    make_images(Path(sys.argv[1]), int(sys.argv[3]))

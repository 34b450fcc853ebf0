"""Small real inputs of the pipeline tests: images, networks, logits, cost tables, studies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from exitbench.harness.configs import DeviceConfig, StudyConfig
from exitbench.harness.costs import CostTable
from exitbench.harness.data import load_dataset, normalise
from exitbench.harness.errors import ExitbenchError
from exitbench.harness.trace import Trace, TraceMeta, trace_logits
from exitbench.models import Checkpoint, ModelArguments, build, save_checkpoint
from torch import Tensor, nn

CLASSES = 4
VGG_EXITS = (1, 4, 8, 13, 20)
RESNET_EXITS = (1, 8, 15, 26)  # two inside a block, two at an end
CPU = DeviceConfig("cpu", 1)


class Killed(Exception):
    """Stands for a process that ends at this point."""


@dataclass
class Said:
    """Takes lines of progress; ends when a line starts with ``stop_at``."""

    stop_at: str | None = None
    lines: list[str] = field(default_factory=list)

    def __call__(self, line: str) -> None:
        self.lines.append(line)
        if self.stop_at is not None and line.startswith(self.stop_at):
            raise Killed(line)

    def starting(self, start: str) -> list[str]:
        """The lines that start so."""
        return [line for line in self.lines if line.startswith(start)]


def silent(line: str) -> None:
    """Takes a line of progress and shows it to nobody."""


@dataclass(frozen=True)
class Inputs:
    """Files that every test may read and none may change."""

    npz: Path
    vgg: Path
    resnet: Path
    plain: Path

    @property
    def dataset(self) -> str:
        return f"npz:{self.npz}"


def make_inputs(folder: Path) -> Inputs:
    """A dataset, a VGG-19 with 5 exits, a ResNet-34 with 4, and a VGG-19 without any."""
    files = Inputs(*(folder / name for name in ("images.npz", "vgg.st", "resnet.st", "plain.st")))
    make_npz(files.npz)
    make_checkpoint(files.vgg, "vgg19", VGG_EXITS, files.dataset)
    make_checkpoint(files.resnet, "resnet34", RESNET_EXITS, files.dataset)
    make_checkpoint(files.plain, "vgg19", (), files.dataset)
    return files


def make_npz(path: Path) -> None:
    """Four classes of 32x32 images, each with a patch of its own in noise: 120 train, 60 test."""
    generator = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 120), ("test", 60)):
        labels = np.arange(count) % CLASSES
        # Strong, weak and very weak patches: easy, harder and hopeless samples.
        strength = generator.choice([3, 8, 25], size=count)
        images = generator.integers(40, 120, (count, 32, 32, 3))
        for image, label, add in zip(images, labels, strength, strict=True):
            row, column = divmod(int(label), 2)
            image[row * 16 : row * 16 + 16, column * 16 : column * 16 + 16, label % 3] += add
        arrays[f"x_{split}"] = images.clip(0, 255).astype(np.uint8)
        arrays[f"y_{split}"] = labels
    np.savez(path, **arrays)


def make_checkpoint(path: Path, model: str, exits: tuple[int, ...], dataset: str) -> None:
    """A network at an eighth of its width that has seen the images a few times."""
    torch.set_num_threads(1)
    data = load_dataset(dataset)
    arguments = ModelArguments(classes=CLASSES, width=0.125, exits=exits)
    images, labels = normalise(data.x_train, data.normalisation), torch.from_numpy(data.y_train)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build(model, arguments).train()
        optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
        for _ in range(4):
            for part in torch.randperm(len(labels)).split(40):
                losses = [
                    nn.functional.cross_entropy(logits, labels[part])
                    for logits in network(images[part])
                ]
                optimizer.zero_grad()
                torch.stack(losses).sum().backward()
                optimizer.step()
        _settle(network, images)
    checkpoint = Checkpoint(
        model, arguments, data.name, data.class_names, data.normalisation, {}, {"mode": "joint"}
    )
    save_checkpoint(path, network.eval(), checkpoint)


def _settle(network: nn.Module, images: Tensor) -> None:
    # A few steps do not suffice for the running statistics of the batch norms.
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    with torch.no_grad():
        network(images)


def study_config(checkpoint: Path, run: Path, **changes: Any) -> StudyConfig:
    """A study of one precision in about two seconds."""
    values: dict[str, Any] = {
        "precisions": ("fp32",), "batch_sizes": (1, 8), "seconds": 0.2, "repeats": 1,
        "criteria": ("softmax",), "beta_count": 5, "device": CPU,
    }  # fmt: skip
    return StudyConfig(checkpoint, run, **{**values, **changes})


def trace_of(
    folder: Path, split: str, logits: Any, truth: Any, *, horizon: int = 2, **changes: Any
) -> Trace:
    """A trace of logits (N, exits + 1, classes)."""
    values = np.asarray(logits, dtype=np.float32)
    count, depth, classes = values.shape
    meta = {
        "split": split, "precision": "fp32", "samples": count, "exits": depth - 1,
        "classes": classes, "kernel": (1.0, 1.0, 1.0), "horizon": horizon, "dataset": "by hand",
        "network": "by hand", "exit_names": tuple(f"e{i}" for i in range(depth)),
    }  # fmt: skip
    path = folder / f"{split}.npz"
    trace_logits(path, values, np.asarray(truth), np.arange(count), TraceMeta(**meta | changes))
    return Trace(path)


def sure(share: float, label: int = 0) -> list[float]:
    """Logits of two classes whose softmax gives ``share`` (above 0.5) to ``label``."""
    logit = float(np.log(share / (1 - share)))
    return [logit, 0.0] if label == 0 else [0.0, logit]


def cost_rows(segments: Sequence[float], heads: Sequence[float], **more: Any) -> list[dict]:
    """Rows of a cost table by hand: MACs; the classifier costs 5, a forecast 7.

    Args:
        more: further columns as functions of the row's kind and index.
    """
    units = [("segment", i, macs) for i, macs in enumerate(segments, start=1)]
    units += [("head", i, macs) for i, macs in enumerate(heads, start=1)]
    units += [("forecast", i, 7) for i in range(1, len(heads) + 1)]
    units += [("classifier", len(segments), 5)]
    return [
        {"kind": kind, "index": index, "macs": macs}
        | {name: value(kind, index) for name, value in more.items()}
        for kind, index, macs in units
    ]


def write_cost(path: Path, rows: list[dict]) -> Path:
    """A cost table as somebody writes it by hand: only the columns that are known."""
    CostTable.from_rows(rows)  # is right
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def refused(call: Callable[..., Any], *arguments: Any, **named: Any) -> str:
    """The message with which a call is refused."""
    with pytest.raises(ExitbenchError) as caught:
        call(*arguments, **named)
    return str(caught.value)


def leftovers(folder: Path) -> list[str]:
    """Hidden and temporary files in a folder."""
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]

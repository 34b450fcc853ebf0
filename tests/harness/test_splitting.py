"""Calibration never holds an image that the network was trained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exitbench.harness.configs import DataConfig, TrainConfig
from exitbench.harness.data import Split, load_dataset, splits
from exitbench.harness.quantization import CALIBRATION_IMAGES
from exitbench.harness.splitting import settle
from exitbench.harness.subject import load_subject
from exitbench.harness.training import run_train
from exitbench.models import Checkpoint, load_checkpoint, save_checkpoint
from pipeline_fixtures import CPU, Inputs, Said, refused, silent

TRAINED = DataConfig(split_seed=3, calibration_samples=20)


@pytest.fixture(scope="module")
def network(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network trained on another split than the default one."""
    out = tmp_path_factory.mktemp("network") / "net.safetensors"
    data = replace(TRAINED, dataset=inputs.dataset)
    small = TrainConfig(out, width=0.125, exits=(1, 20), epochs=1, batch_size=32)
    run_train(replace(small, data=data, device=CPU), silent)
    return out


def changed(path: Path, out: Path, training: dict[str, Any]) -> Path:
    """The network with another training record."""
    network, checkpoint = load_checkpoint(path)
    save_checkpoint(out, network, replace(checkpoint, training=training))
    return out


def test_calibration_is_the_split_that_the_network_was_not_trained_on(
    network: Path, inputs: Inputs
) -> None:
    subject = load_subject(network, DataConfig(), CPU, silent)
    trained_on = splits(load_dataset(inputs.dataset), 3, 20)["train"].indices
    assert len(subject.parts["calibration"]) == 20
    assert not set(subject.parts["calibration"].indices) & set(trained_on)
    assert (subject.data.split_seed, subject.data.calibration_samples) == (3, 20)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (DataConfig(split_seed=7), "split seed is 7, but"),
        (DataConfig(calibration_samples=12), "calibration samples is 12, but"),
    ],
)
def test_another_split_than_that_of_the_training_is_refused(
    network: Path, asked: DataConfig, words: str
) -> None:
    message = refused(load_subject, network, asked, CPU, silent)
    assert words in message
    assert "hold images that it was trained on. Leave out --" in message


def test_heads_are_trained_on_the_split_of_their_backbone(
    network: Path, inputs: Inputs, tmp_path: Path
) -> None:
    config = TrainConfig(
        tmp_path / "heads.safetensors", mode="exits", init=network, epochs=1, batch_size=32,
        data=DataConfig(dataset=inputs.dataset), device=CPU,
    )  # fmt: skip
    other = replace(config, data=replace(config.data, split_seed=0))
    assert "split seed is 0, but" in refused(run_train, other, silent)
    assert not config.out.exists()
    run_train(config, silent)
    settings = load_checkpoint(config.out)[1].training["settings"]
    assert (settings["split_seed"], settings["calibration_samples"]) == (3, 20)


def test_the_split_of_a_parent_counts_too(network: Path, tmp_path: Path) -> None:
    training = load_checkpoint(network)[1].training
    other = {**training, "settings": {**training["settings"], "split_seed": 4}}
    mixed = changed(network, tmp_path / "mixed", {**other, "parent": training})
    message = refused(load_subject, mixed, DataConfig(), CPU, silent)
    assert "was trained on several splits" in message
    assert "split seed 4, 20 calibration images; split seed 3, 20 calibration images" in message
    old = changed(network, tmp_path / "old", {"mode": "exits", "parent": training})
    assert "split seed is 0, but" in refused(
        load_subject, old, DataConfig(split_seed=0), CPU, silent
    )


def test_the_same_images_under_another_name_are_the_same_images(
    network: Path, inputs: Inputs, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.npz"
    copy.write_bytes(inputs.npz.read_bytes())
    subject = load_subject(network, DataConfig(dataset=f"npz:{copy}"), CPU, silent)
    assert subject.data.split_seed == 3


def test_what_cannot_be_verified_is_said(network: Path, tmp_path: Path) -> None:
    said = Said()
    old = changed(network, tmp_path / "old", {"mode": "joint"})
    subject = load_subject(old, DataConfig(), CPU, said)
    assert (subject.data.split_seed, len(subject.parts["calibration"])) == (0, 12)
    assert any("cannot be verified" in line for line in said.lines)


def test_another_dataset_than_that_of_the_training_is_split_freely(network: Path) -> None:
    checkpoint = load_checkpoint(network)[1]
    said = Said()
    digits = load_dataset("digits")
    assert settle(DataConfig(), digits, checkpoint, network, said) == DataConfig(split_seed=0)
    assert settle(DataConfig(split_seed=9), digits, checkpoint, network, said).split_seed == 9
    assert not said.lines


def test_int8_ranges_see_every_class_of_a_split_that_is_ordered_by_class(
    network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = np.repeat(np.arange(10), 60)
    images = np.broadcast_to(labels[:, None, None, None], (600, 32, 32, 3)).astype(np.uint8)
    subject = load_subject(network, DataConfig(), CPU, silent)
    part = Split("calibration", images, labels, np.arange(600))
    ordered = replace(subject, parts={**subject.parts, "calibration": part})
    taken: list[torch.Tensor] = []
    # The kernels of int8 are not on every machine; what they would be shown is.
    monkeypatch.setattr(
        "exitbench.harness.subject.prepare", lambda *given, **more: taken.append(given[-1])
    )
    ordered.prepare("int8")
    assert len(taken[0]) == CALIBRATION_IMAGES
    assert len(taken[0][:, 0, 0, 0].unique()) == 10


def test_a_record_that_was_changed_by_hand_is_refused(network: Path, tmp_path: Path) -> None:
    checkpoint: Checkpoint = load_checkpoint(network)[1]
    settings = {**checkpoint.training["settings"], "split_seed": "three"}
    odd = changed(network, tmp_path / "odd", {"settings": settings})
    assert "split seed 'three'" in refused(load_subject, odd, DataConfig(), CPU, silent)

"""Training: what each mode fits, what it leaves alone, and what a checkpoint says of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exitbench.harness import training_loop
from exitbench.harness.configs import DataConfig, DeviceConfig, TrainConfig
from exitbench.harness.difficulty import sample_list, write_samples
from exitbench.harness.errors import ExitbenchError
from exitbench.harness.training import run_train
from exitbench.harness.training_modes import default_learning_rate
from exitbench.models import load_checkpoint
from safetensors.torch import load_file
from torch import Tensor

EXITS = (3, 6, 20)


def write_images(path: Path, seed: int = 0, test_seed: int = 1, classes: int = 4) -> Path:
    """Classes that differ in brightness: 12 training and 6 test images of each."""

    def images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(count * classes) % classes
        noise = np.random.default_rng(seed).normal(30, 10, (len(labels), 32, 32, 3))
        return (noise + 50 * labels[:, None, None, None]).clip(0, 255).astype(np.uint8), labels

    x_train, y_train = images(12, seed)
    x_test, y_test = images(6, test_seed)
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    path = write_images(tmp_path_factory.mktemp("images") / "four.npz")
    return DataConfig(dataset=f"npz:{path}")


@pytest.fixture
def config(tmp_path: Path, data: DataConfig) -> TrainConfig:
    return TrainConfig(
        out=tmp_path / "net.safetensors",
        width=0.125,
        exits=EXITS,
        epochs=2,
        batch_size=16,
        validation_share=0.2,
        data=data,
        device=DeviceConfig(device="cpu", threads=1),
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, data: DataConfig) -> dict[str, Path]:
    """A checkpoint of each network with its backbone trained inside, and of the plain VGG-19."""
    folder = tmp_path_factory.mktemp("trained")
    settings: dict[str, tuple[str, str, tuple[int, ...] | None]] = {
        "vgg19": ("vgg19", "original", EXITS),
        "resnet34": ("resnet34", "original", (1, 2, 32)),
        "plain": ("vgg19", "normal", None),
    }
    for name, (model, mode, exits) in settings.items():
        run_train(
            TrainConfig(
                out=folder / f"{name}.safetensors",
                model=model,  # type: ignore[arg-type]
                mode=mode,  # type: ignore[arg-type]
                exits=exits,
                width=0.125,
                epochs=1,
                batch_size=16,
                data=data,
                device=DeviceConfig(device="cpu", threads=1),
            ),
            silent,
        )
    return {name: folder / f"{name}.safetensors" for name in settings}


def silent(line: str) -> None:
    """Take a line and show it to nobody."""


def trained_file(config: TrainConfig, **changes: Any) -> dict[str, Tensor]:
    config = replace(config, **changes)
    run_train(config, silent)
    return load_file(config.out)


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def part(tensors: dict[str, Tensor], heads: bool) -> dict[str, Tensor]:
    return {name: v for name, v in tensors.items() if name.startswith("heads.") == heads}


# What each mode fits


@pytest.mark.parametrize("model", ["vgg19", "resnet34"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_mode_exits_changes_not_one_backbone_value_or_statistic(
    config: TrainConfig, trained: dict[str, Path], model: str, optimizer: str
) -> None:
    before = load_file(trained[model])
    after = trained_file(config, mode="exits", init=trained[model], exits=None, optimizer=optimizer)
    backbone = part(before, heads=False)
    assert any(name.endswith("running_mean") for name in backbone)
    assert any(name.endswith("num_batches_tracked") for name in backbone)
    assert equal(backbone, part(after, heads=False))
    assert not any(
        torch.equal(before[n], after[n]) for n in before if n.endswith("classify.weight")
    )


def test_mode_original_trains_the_backbone_and_leaves_the_heads_alone(
    config: TrainConfig, trained: dict[str, Path]
) -> None:
    before = load_file(trained["vgg19"])
    after = trained_file(config, init=trained["vgg19"])
    assert equal(part(before, heads=True), part(after, heads=True))
    assert not torch.equal(before["classifier.linear.weight"], after["classifier.linear.weight"])


def test_mode_joint_trains_backbone_and_heads(
    config: TrainConfig, trained: dict[str, Path]
) -> None:
    before = load_file(trained["vgg19"])
    after = trained_file(config, mode="joint", init=trained["vgg19"])
    weights = [name for name in before if name.endswith((".weight", ".bias"))]
    assert not [name for name in weights if torch.equal(before[name], after[name])]


def test_mode_normal_gives_a_network_without_heads(trained: dict[str, Path]) -> None:
    network, checkpoint = load_checkpoint(trained["plain"])
    assert network.num_exits == 0
    assert len(checkpoint.training["test_accuracy"]) == 1


def test_heads_are_created_on_the_backbone_of_a_normal_checkpoint(
    config: TrainConfig, trained: dict[str, Path]
) -> None:
    plain = load_file(trained["plain"])
    after = trained_file(config, mode="exits", init=trained["plain"], exits=(3, 7))
    assert equal(plain, part(after, heads=False))
    network, checkpoint = load_checkpoint(config.out)
    assert [point.name for point in network.exit_points] == ["pool1", "conv3_1"]
    assert checkpoint.arguments.exits == (3, 7)


def test_a_normal_checkpoint_gets_all_exits_if_none_are_chosen(
    config: TrainConfig, trained: dict[str, Path]
) -> None:
    trained_file(config, mode="exits", init=trained["plain"], exits=None, epochs=1)
    assert load_checkpoint(config.out)[0].num_exits == 20


def test_separate_heads_give_way_to_shared_ones_when_asked(
    config: TrainConfig, trained: dict[str, Path]
) -> None:
    before = load_file(trained["vgg19"])
    after = trained_file(config, mode="exits", init=trained["vgg19"], share_heads=True)
    assert equal(part(before, heads=False), part(after, heads=False))
    assert len(part(after, heads=True)) < len(part(before, heads=True))
    assert load_checkpoint(config.out)[1].arguments.share_heads


def test_training_learns_what_can_be_learned(config: TrainConfig) -> None:
    """Classes of brightness, which one linear unit separates; chance is 0.25."""
    trained_file(config, epochs=10, batch_size=8, learning_rate=0.003, seed=2)
    record = load_checkpoint(config.out)[1].training
    assert record["history"][-1]["loss"] < 0.6 * record["history"][0]["loss"]
    assert record["test_accuracy"][-1] > 0.7


# The same twice


def test_the_same_seed_gives_the_same_weights(config: TrainConfig, tmp_path: Path) -> None:
    first = trained_file(config, mode="joint")
    torch.manual_seed(99)
    second = trained_file(config, mode="joint", out=tmp_path / "again.safetensors")
    assert equal(first, second)


def test_another_seed_gives_other_weights(config: TrainConfig, tmp_path: Path) -> None:
    first = trained_file(config)
    second = trained_file(config, seed=1, out=tmp_path / "other.safetensors")
    assert not equal(first, second)


def test_the_callers_random_numbers_are_left_alone(config: TrainConfig) -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    trained_file(config, epochs=1)
    assert torch.equal(torch.rand(3), wanted)


# Never on test


def test_the_test_split_has_no_influence_on_the_weights(
    config: TrainConfig, tmp_path: Path
) -> None:
    files = [write_images(tmp_path / f"{n}.npz", test_seed=n) for n in (1, 2)]
    first, second = (
        trained_file(
            config,
            out=tmp_path / f"{file.stem}.safetensors",
            patience=1,
            data=DataConfig(dataset=f"npz:{file}"),
        )
        for file in files
    )
    assert equal(first, second)


def test_early_stopping_ends_with_the_best_weights(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation accuracies as given here: the second epoch is the best, the fourth the last."""
    course = iter([0.3, 0.6, 0.5, 0.4])
    seen: list[dict[str, Tensor]] = []

    def judged(network: torch.nn.Module, *_: Any, **__: Any) -> list[float]:
        seen.append({name: value.clone() for name, value in network.state_dict().items()})
        return [next(course)]

    monkeypatch.setattr(training_loop, "evaluate", judged)
    lines: list[str] = []
    run_train(replace(config, epochs=9, patience=2), lines.append)
    network, checkpoint = load_checkpoint(config.out)
    assert len(seen) == 4
    assert equal(network.state_dict(), seen[1])
    assert checkpoint.training["epochs"] == 4
    assert checkpoint.training["kept_epoch"] == 2
    assert any("kept the weights of epoch 2" in line for line in lines)


# What is recorded and said


def test_the_record_tells_how_the_network_was_trained(
    config: TrainConfig, trained: dict[str, Path]
) -> None:
    trained_file(config, mode="exits", init=trained["vgg19"], seed=4)
    checkpoint = load_checkpoint(config.out)[1]
    record = checkpoint.training
    wanted = {
        "mode": "exits",
        "epochs": 2,
        "kept_epoch": 2,
        "optimizer": "adam",
        "learning_rate": default_learning_rate("exits", "adam"),
        "weight_decay": 5e-4,
        "batch_size": 16,
        "seed": 4,
        "torch": torch.__version__,
        "device": "cpu",
        "threads": 1,
    }
    assert {key: record[key] for key in wanted} == wanted
    assert record["parent"]["mode"] == "original"
    assert [epoch["epoch"] for epoch in record["history"]] == [1, 2]
    assert record["seconds"] > 0
    for key in ("validation_accuracy", "test_accuracy"):
        assert len(record[key]) == len(EXITS) + 1
        assert all(0 <= accuracy <= 1 for accuracy in record[key])


def test_accuracy_of_untrained_heads_is_missing_in_the_history_not_zero(
    config: TrainConfig,
) -> None:
    trained_file(config, epochs=1)
    (epoch,) = load_checkpoint(config.out)[1].training["history"]
    assert epoch["validation"][:-1] == [None, None, None]
    assert epoch["validation"][-1] is not None


def test_without_validation_images_there_is_no_validation_accuracy(config: TrainConfig) -> None:
    trained_file(config, epochs=1, validation_share=0.0)
    record = load_checkpoint(config.out)[1].training
    assert record["history"][0]["validation"] is None
    assert record["validation_accuracy"] is None
    assert len(record["test_accuracy"]) == 4


def test_one_line_per_epoch_and_progress_within_it(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_loop, "PROGRESS_S", 0.0)
    lines: list[str] = []
    run_train(replace(config, mode="joint"), lines.append)
    assert len([line for line in lines if line.startswith("epoch 1/2: loss")]) == 1
    assert any(line.startswith("epoch 2/2: step 1/") and "loss" in line for line in lines)
    epoch = next(line for line in lines if line.startswith("epoch 2/2: loss"))
    assert "learning rate" in epoch
    assert len(epoch.partition("validation ")[2].split("|")[0].split()) == len(EXITS)
    assert sum(line.startswith("test accuracy") for line in lines) == 1


def test_the_test_accuracy_is_of_the_chosen_subset(config: TrainConfig, tmp_path: Path) -> None:
    path = tmp_path / "easy.json"
    write_samples(path, sample_list(config.data.dataset, "test", 24, [0, 4, 8]))
    trained_file(config, epochs=1, data=replace(config.data, subset=path))
    accuracies = load_checkpoint(config.out)[1].training["test_accuracy"]
    assert all(round(3 * value, 9) == round(3 * value) for value in accuracies)


def test_a_batch_size_that_leaves_one_image_over_trains(config: TrainConfig) -> None:
    # 48 images - 5 for calibration - 8 for validation = 35 = 2 * 17 + 1.
    trained_file(config, epochs=1, batch_size=17)
    assert load_checkpoint(config.out)[1].training["images"] == 35


# Bad input

BAD: list[tuple[dict[str, Any], str]] = [
    ({"mode": "exits"}, "needs --init"),
    ({"mode": "exits", "init": Path("nowhere.safetensors")}, "no checkpoint at nowhere"),
    ({"mode": "normal"}, "mode 'normal' has none"),
    ({"mode": "joint", "exits": ()}, "at least one exit"),
    ({"exits": (1, 21)}, "rising numbers from 1 to 20"),
    ({"batch_size": 1}, "at least 2 images per step"),
    ({"epochs": 0}, "epochs is 0"),
    ({"learning_rate": -1.0}, "learning_rate is -1"),
    ({"learning_rate": float("nan")}, "learning_rate is nan"),
    ({"learning_rate": 1e300}, "learning_rate is 1e\\+300; at most 1e\\+30"),
    ({"weight_decay": 1e300}, "weight_decay is 1e\\+300; at most 1e\\+30"),
    ({"validation_share": 0.7}, "0 to 0.5"),
    ({"patience": 2, "validation_share": 0.0}, "patience needs validation images"),
    ({"out": Path()}, "out is the folder"),
    ({"device": DeviceConfig(device="tpu")}, "auto, cpu, cuda or cuda:N"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_bad_settings_are_refused_and_nothing_is_written(
    config: TrainConfig, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ExitbenchError, match=message):
        run_train(replace(config, **changes), silent)
    assert list(config.out.parent.iterdir()) == []


def test_all_faults_of_the_settings_are_named_at_once(config: TrainConfig) -> None:
    with pytest.raises(ExitbenchError) as caught:
        run_train(replace(config, epochs=0, batch_size=1, mode="exits"), silent)
    assert all(word in str(caught.value) for word in ("epochs", "batch_size", "--init"))


def test_a_checkpoint_for_other_classes_is_refused(
    config: TrainConfig, trained: dict[str, Path], tmp_path: Path
) -> None:
    file = write_images(tmp_path / "three.npz", classes=3)
    data = DataConfig(dataset=f"npz:{file}")
    with pytest.raises(ExitbenchError, match=r"4 classes, but .* has 3"):
        run_train(replace(config, mode="exits", init=trained["vgg19"], data=data), silent)


def test_a_side_that_the_initial_network_does_not_take_is_refused(
    config: TrainConfig, trained: dict[str, Path]
) -> None:
    with pytest.raises(ExitbenchError, match="takes images of 32 pixels"):
        run_train(replace(config, mode="exits", init=trained["vgg19"], side=64), silent)


@pytest.mark.parametrize("change", [{"width": 2.0}, {"model": "resnet34"}])
def test_another_backbone_than_the_initial_one_is_refused(
    config: TrainConfig, trained: dict[str, Path], change: dict[str, Any]
) -> None:
    wanted = replace(config, mode="exits", init=trained["vgg19"], **change)
    with pytest.raises(ExitbenchError, match=r"is .*leave out --(width|model)"):
        run_train(wanted, silent)


def test_the_initial_checkpoint_is_never_overwritten(config: TrainConfig) -> None:
    trained_file(config, epochs=1)
    with pytest.raises(ExitbenchError, match="init and out are the same file"):
        run_train(replace(config, mode="exits", init=config.out), silent)


def test_a_place_that_cannot_be_written_is_told_before_the_first_epoch(
    config: TrainConfig, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    said: list[str] = []
    with pytest.raises(ExitbenchError, match=r"cannot write .*Choose a folder"):
        run_train(replace(config, out=tmp_path / "file" / "net.safetensors"), said.append)
    assert not any("epoch" in line for line in said)


def diverging(config: TrainConfig) -> None:
    run_train(replace(config, optimizer="sgd", learning_rate=1e30), silent)


def ruined_at_the_last_step(config: TrainConfig) -> None:
    # One step: its loss is finite, but 1e20 * 1e29 times a weight is more than a float32 holds.
    steep = replace(config, optimizer="sgd", learning_rate=1e20, weight_decay=1e29)
    run_train(replace(steep, epochs=1, batch_size=64), silent)


@pytest.mark.parametrize("run", [diverging, ruined_at_the_last_step])
def test_a_training_that_diverges_stops_and_leaves_no_checkpoint(
    config: TrainConfig, run: Callable[[TrainConfig], None]
) -> None:
    with pytest.raises(ExitbenchError, match=r"diverged .* lower --learning-rate"):
        run(config)
    assert not config.out.exists()

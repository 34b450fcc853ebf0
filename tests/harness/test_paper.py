"""The paper's flags: what they are translated to, and the three commands of its guide."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from exitbench.harness import cli
from exitbench.harness.configs import DataConfig, DeviceConfig, TrainConfig
from exitbench.harness.configs_paper import PaperConfig
from exitbench.harness.errors import ExitbenchError
from exitbench.harness.paper import (
    CLOCK_FLAGS,
    SCENE_FLAGS,
    EvaluationArguments,
    confusion_lines,
    translate,
)
from exitbench.harness.scenes import CONTINUOUS

TRAIN_ORIGINAL = (
    "--model_name vgg19 --optimizer adam --train_mode original --task train --device cuda "
    "--trained_file_suffix cifar10 --save 1 --dataset_type cifar10 --jump 1"
)
TRAIN_EXITS = (
    "--model_name vgg19 --optimizer adam --train_mode exits --task train --device cuda "
    "--pretrained_file models_new/vgg19_train_original_cifar10.pt "
    "--trained_file_suffix cifar10 --save 1 --dataset_type cifar10 --jump 1"
)
EVALUATE = (
    "--model_name vgg19 --optimizer adam --train_mode exits --task evaluate --device cuda "
    "--pretrained_file models_new/vgg19_train_exits_cifar10.pt --beta 15 --save 0 "
    "--dataset_type cifar10 --evaluate_mode exits --jump 1 --quantization 0 "
    "--forward_mode normal_forward --start_layer 8"
)


def _parse(line: str) -> PaperConfig:
    config = cli.parse(["paper", *line.split()])
    assert isinstance(config, PaperConfig)
    return config


def _evaluation(line: str) -> EvaluationArguments:
    task = translate(_parse(line)).task
    assert isinstance(task, EvaluationArguments)
    return task


def _training(line: str) -> TrainConfig:
    task = translate(_parse(line)).task
    assert isinstance(task, TrainConfig)
    return task


def test_the_guides_first_command_trains_the_backbone_into_models_new() -> None:
    meant = translate(_parse(TRAIN_ORIGINAL))
    assert meant.task == TrainConfig(
        out=Path("models_new/vgg19_train_original_cifar10.safetensors"),
        mode="original",
        optimizer="adam",
        data=DataConfig(dataset="cifar10"),
        device=DeviceConfig(device="cuda"),
    )
    assert meant.keep
    assert meant.notes == ()


def test_the_guides_second_command_trains_the_exits_of_that_file() -> None:
    task = _training(TRAIN_EXITS)
    assert task.mode == "exits"
    assert task.init == Path("models_new/vgg19_train_original_cifar10.safetensors")
    assert task.out == Path("models_new/vgg19_train_exits_cifar10.safetensors")


def test_the_guides_third_command_evaluates_predictive_exit() -> None:
    meant = translate(_parse(EVALUATE))
    assert meant.task == EvaluationArguments(
        checkpoint=Path("models_new/vgg19_train_exits_cifar10.safetensors"),
        policy="predictive",
        criterion="reference",
        beta=15.0,
        start_layer=8,
        predictor="convolution",
        precision="fp32",
        data=DataConfig(dataset="cifar10"),
        device=DeviceConfig(device="cuda"),
        batch_size=64,
        forward_mode="normal",
        stat_each_layer=False,
    )
    assert not meant.keep
    assert meant.notes == ()


def test_evaluate_mode_normal_runs_the_full_network() -> None:
    task = _evaluation(f"{EVALUATE} --evaluate_mode normal")
    assert task.policy == "full"
    assert task.beta is None


def test_accuracy_forward_measures_the_forecasts() -> None:
    task = _evaluation(f"{EVALUATE} --forward_mode accuracy_forward --stat_each_layer 1")
    assert task.forward_mode == "accuracy"
    assert task.stat_each_layer


def test_quantization_is_int8_on_the_cpu_and_says_so() -> None:
    meant = translate(_parse(f"{EVALUATE} --quantization 1"))
    assert isinstance(meant.task, EvaluationArguments)
    assert (meant.task.precision, meant.task.device.device) == ("int8", "cpu")
    assert any("int8 runs on the CPU" in note for note in meant.notes)


@pytest.mark.parametrize("name", ["resnet", "Resnet34", "resnet34"])
def test_the_papers_names_of_resnet_are_understood(name: str) -> None:
    task = _training(f"{TRAIN_ORIGINAL} --model_name {name}")
    assert task.model == "resnet34"
    assert task.out.name == "resnet34_train_original_cifar10.safetensors"


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", "stl10", "svhn", "mnist"])
def test_every_dataset_is_the_one_that_was_named(dataset: str) -> None:
    assert _training(f"{TRAIN_ORIGINAL} --dataset_type {dataset}").data.dataset == dataset


def test_extensions_reach_the_training() -> None:
    task = _training(
        f"{TRAIN_ORIGINAL} --epochs 2 --width 0.5 --batch_size 32 --data_root d --threads 3 "
        "--npz own.npz --seed 9"
    )
    assert (task.epochs, task.width, task.batch_size, task.seed) == (2, 0.5, 32, 9)
    assert task.data == DataConfig(dataset="npz:own.npz", data_root=Path("d"))
    assert task.device.threads == 3


def test_flags_of_cores_and_clocks_reach_the_evaluation() -> None:
    task = _evaluation(f"{EVALUATE} --core_num 2 --cpu_freq_level 8 --gpu_freq_level 5")
    asked = task.circumstances
    assert asked.wanted == {"cores": 2, "cpu": 8, "gpu": 5}
    assert (asked.clocks, asked.hardware, asked.scene) == ("device", "auto", CONTINUOUS)
    assert task.device.threads == 2  # one thread per core that stays online
    assert task.batch_size == 64
    task = _evaluation(
        f"{EVALUATE} --core_num 2 --threads 1 --clocks simulated --hardware jetson-tx2 --limit 9"
    )
    assert (task.circumstances.clocks, task.circumstances.hardware) == ("simulated", "jetson-tx2")
    assert (task.device.threads, task.limit) == (1, 9)


def test_without_these_flags_nothing_acts() -> None:
    assert not _evaluation(EVALUATE).circumstances.acts
    assert not _evaluation(f"{EVALUATE} --baseline 0 --scene continuous").circumstances.acts


def test_the_baseline_is_all_at_the_top_and_awake() -> None:
    meant = translate(_parse(f"{EVALUATE} --baseline 1 --core_num 2 --scene periodical"))
    assert isinstance(meant.task, EvaluationArguments)
    asked = meant.task.circumstances
    assert (asked.top, asked.wanted, asked.scene.awake) == (True, {}, True)
    assert meant.task.device.threads == 0
    assert any("--core_num: without effect beside --baseline 1" in note for note in meant.notes)


@pytest.mark.parametrize(
    ("flags", "period_s"),
    [
        ("--baseline_time 2 --sleep_time 0.5", 2.5),
        ("--baseline_time 2", 32.0),
        ("--sleep_time 0", 30.0),
        ("", 60.0),
    ],
)
def test_the_period_is_baseline_time_and_sleep_time(flags: str, period_s: float) -> None:
    meant = translate(_parse(f"{EVALUATE} --scene periodical {flags}"))
    assert isinstance(meant.task, EvaluationArguments)
    assert meant.task.circumstances.scene.period_s == period_s
    assert meant.task.batch_size == 1
    said = [note for note in meant.notes if "30 s each, as in the paper's program" in note]
    assert bool(said) == (flags.count("time") < 2)


def test_a_continuous_scene_is_one_image_after_another() -> None:
    task = _evaluation(f"{EVALUATE} --scene continuous")
    assert (task.batch_size, task.circumstances.scene) == (1, CONTINUOUS)
    assert _evaluation(f"{EVALUATE} --scene continuous --batch_size 8").batch_size == 8
    notes = translate(_parse(f"{EVALUATE} --scene continuous --sleep_time 3")).notes
    assert "--sleep_time: without effect; they belong to --scene periodical" in notes


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--batch_size 8", "--batch_size is 8; in --scene periodical images come one by one"),
        ("--baseline_time 0 --sleep_time 0", "add up to a period of 0 s"),
    ],
)
def test_a_period_without_sense_is_refused(flags: str, words: str) -> None:
    with pytest.raises(ExitbenchError, match=re.escape(words)):
        translate(_parse(f"{EVALUATE} --scene periodical {flags}"))


def test_wrong_values_of_these_flags_are_refused() -> None:
    for flags in ("--core_num 0", "--cpu_freq_level 0", "--sleep_time -1", "--baseline_time nan"):
        with pytest.raises(ExitbenchError, match=flags.split()[0][2:]):
            _parse(f"{EVALUATE} {flags}")


@pytest.mark.parametrize("flag", [*CLOCK_FLAGS, *SCENE_FLAGS])
def test_these_flags_act_on_timed_evaluations_only(flag: str) -> None:
    value = {"scene": "periodical", "baseline": "1"}.get(flag, "4")
    notes = translate(_parse(f"{TRAIN_ORIGINAL} --{flag} {value}")).notes
    assert notes == (f"--{flag}: without effect in training; they act on --task evaluate",)
    line = f"{EVALUATE} --forward_mode accuracy_forward --{flag} {value}"
    (note,) = translate(_parse(line)).notes
    assert f"--{flag}: without effect with --forward_mode accuracy_forward" in note


def test_the_confusion_table_names_its_jumps() -> None:
    table = [[4, 0, 0], [0, 0, 0], [12, 0, 345678]]
    assert confusion_lines(table)[1:] == [
        "            1      3",
        "     1      4      0",
        "     3     12 345678",
    ]
    assert confusion_lines([[0, 0]]) == ["no forecast was made from this start layer"]


def test_training_over_its_own_start_is_refused() -> None:
    with pytest.raises(ExitbenchError, match="would overwrite"):
        translate(
            _parse(f"{TRAIN_ORIGINAL} --pretrained_file models_new/vgg19_train_original_cifar10.pt")
        )


def test_the_help_says_why_other_criteria_are_sounder(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["paper", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "signed mean that can come close to zero" in text


@pytest.fixture
def own_images(tmp_path: Path) -> Path:
    """Ten classes of 32x32 images that differ in their colours."""
    random = np.random.default_rng(0)
    labels = np.tile(np.arange(10), 12)
    colours = random.integers(0, 200, size=(10, 1, 1, 3))
    images = (colours[labels] + random.integers(0, 56, size=(120, 32, 32, 3))).astype(np.uint8)
    file = tmp_path / "own.npz"
    np.savez(
        file,
        x_train=images[:80],
        y_train=labels[:80],
        x_test=images[80:],
        y_test=labels[80:],
    )
    return file


def test_the_three_commands_of_the_papers_guide_work(
    tmp_path: Path,
    own_images: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    small = f"--npz {own_images} --device cpu --threads 1 --width 0.125 --epochs 1 --batch_size 20"
    folder = Path("models_new")

    assert cli.main(["paper", *f"{TRAIN_ORIGINAL} {small}".split()]) == 0, capsys.readouterr().err
    assert sorted(folder.glob("*.safetensors")) == [
        folder / "vgg19_train_original_cifar10.safetensors"
    ]

    assert cli.main(["paper", *f"{TRAIN_EXITS} {small}".split()]) == 0, capsys.readouterr().err
    exits = folder / "vgg19_train_exits_cifar10.safetensors"
    assert exits.is_file()

    capsys.readouterr()
    assert cli.main(["paper", *f"{EVALUATE} {small}".split()]) == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    assert "on 40 test images" in shown
    assert "15" in shown

    measure = f"{EVALUATE} {small} --forward_mode accuracy_forward --stat_each_layer 1"
    assert cli.main(["paper", *measure.split()]) == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    assert "forecast jump (row)" in shown or "no forecast was made" in shown
    assert "mean_true_jump" in shown

    wrong = f"{EVALUATE} {small} --model_name resnet"
    assert cli.main(["paper", *wrong.split()]) == 2
    assert "holds the model vgg19, but --model_name means resnet34" in capsys.readouterr().err


def test_without_save_nothing_is_kept(
    tmp_path: Path, own_images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = (
        f"{TRAIN_ORIGINAL} --save 0 --npz {own_images} --device cpu --threads 1 --width 0.125 "
        "--epochs 1 --batch_size 20"
    )
    assert cli.main(["paper", *line.split()]) == 0
    assert sorted(tmp_path.iterdir()) == [own_images]

"""What ``exitbench paper`` can be told: the flags of the paper's own program."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .configs import Clocks
from .configs_machine import Ranges, Runtime


@dataclass(frozen=True)
class PaperConfig:
    """Take the flags of the paper's own program; docs/paper.md maps each to its command here."""

    model_name: str = "vgg19"
    """vgg19, or resnet, which may be written Resnet34."""
    pretrained_file: Path | None = None
    """Checkpoint to start from or to evaluate; NAME.pt is understood as NAME.safetensors."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """Optimiser of the training."""
    train_mode: Literal["normal", "original", "exits"] = "exits"
    (
        "normal: plain network; original: backbone inside the network with exits; exits: heads "
        "only, on the frozen backbone of --pretrained_file."
    )
    stat_each_layer: Literal[0, 1] = 0
    """1: print per exit what was checked, left, correct and forecast."""
    evaluate_mode: Literal["normal", "exits"] = "exits"
    """normal: full network; exits: with early exits."""
    task: Literal["train", "evaluate"] = "evaluate"
    """What to do."""
    device: str = "cuda"
    """cpu, cuda, cuda:N or auto."""
    trained_file_suffix: str = "update_2"
    """SUFFIX of the file that training writes."""
    beta: float = 6.0
    (
        "A sample may leave when its confidence reaches beta times the threshold, both under the "
        "criterion 'reference' of the paper's program. Its threshold is a signed mean that can "
        "come close to zero, and a strongly negative logit counts as confidence; the criteria of "
        "'exitbench sweep' (softmax, activation, margin, entropy) have neither fault."
    )
    save: int = 0
    (
        "0: train and show the accuracies, keep no file; else write "
        "MODEL_train_MODE_SUFFIX.safetensors beside --pretrained_file, or in models_new."
    )
    dataset_type: Literal["cifar10", "cifar100", "stl10", "svhn", "mnist"] = "cifar10"
    """Dataset."""
    jump: int = 1
    """Accepted; without effect, as in the paper's program: the predictor computes the jump."""
    quantization: Literal[0, 1] = 0
    """0: fp32; 1: int8, on the CPU."""
    forward_mode: Literal["normal_forward", "accuracy_forward"] = "normal_forward"
    """normal_forward: run with the prediction engine; accuracy_forward: measure its forecasts."""
    start_layer: int = 1
    """First exit to check, counted from 1."""
    core_num: int | None = None
    """CPU cores that stay online."""
    cpu_freq_level: int | None = None
    """CPU clock, as a number in the device's list of levels, counted from 1, the slowest."""
    gpu_freq_level: int | None = None
    """GPU clock, as a number in the device's list of levels, counted from 1, the slowest."""
    scene: Literal["continuous", "periodical"] | None = None
    """continuous: one image after another; periodical: one per period, asleep between."""
    baseline_time: float | None = None
    """Seconds. The period of the scene periodical is --baseline_time plus --sleep_time."""
    sleep_time: float | None = None
    """Seconds. The period of the scene periodical is --baseline_time plus --sleep_time."""
    baseline: Literal[0, 1] | None = None
    """1: the baseline: all cores at their top clocks, and busy instead of asleep between images."""
    clocks: Clocks = "device"
    """Extension: device sets the clocks, as root; simulated changes none, priced by the profile."""
    limit: int | None = None
    """Extension: evaluate at most this many test images. None: all."""
    hardware: str = "auto"
    """Extension: hardware profile that prices energy and simulated clocks."""
    epochs: int | None = None
    """Extension: passes over the training split. None: as 'exitbench train'."""
    width: float = 1.0
    """Extension: factor on the number of channels of a network that is trained anew."""
    batch_size: int | None = None
    """Extension: images per batch. None: 128 to train, 64 to evaluate."""
    data_root: Path = Path("data")
    """Extension: folder of the downloaded datasets."""
    npz: Path | None = None
    """Extension: images from this npz file (x_train, y_train, x_test, y_test) instead."""
    threads: int = 0
    """Extension: CPU threads; 0 takes the number of physical cores this process may use."""
    runtime: Runtime = "auto"
    """Extension: what runs the network that is evaluated. auto: the fastest here."""
    ranges: Ranges | None = None
    """Extension: how int8 takes the ranges of activations. None: min-max."""
    seed: int = 0
    """Extension: seed of the weights, the order of the images and the augmentation."""

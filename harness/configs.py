"""What every command can be told: one frozen dataclass per command.

The strings under the fields are their help texts, with units (longer ones in brackets, because a
line break would stand in the help); the values are the defaults. This file imports nothing heavy,
so that ``exitbench --help`` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from .configs_machine import DeviceConfig, MeteringConfig

Criterion = Literal["softmax", "activation", "margin", "entropy", "reference"]
Policy = Literal["full", "every-exit", "predictive", "fixed", "oracle"]
Predictor = Literal["convolution", "table", "constant", "perfect"]
Precision = Literal["fp32", "tf32", "bf16", "fp16", "int8"]
Model = Literal["vgg19", "resnet34"]
TrainMode = Literal["normal", "original", "exits", "joint"]
Scene = Literal["continuous", "periodic"]
Governor = Literal["fixed", "race-to-idle", "proportional", "deadline", "deadline-safe"]
Clocks = Literal["simulated", "device"]


@dataclass(frozen=True)
class DataConfig:
    """Which images, and how they are split."""

    dataset: str | None = None
    (
        "cifar10, cifar100, svhn, stl10, mnist, fashion-mnist, digits, folder:DIR or npz:FILE. "
        "None: the one that the checkpoint was trained on, digits without a checkpoint."
    )
    data_root: Path = Path("data")
    """Folder of the downloaded datasets."""
    download: bool = True
    """Fetch a dataset that is not in --data-root yet."""
    calibration_samples: int | None = None
    (
        "Images of the calibration split, taken from train. None: as many as the checkpoint was "
        "trained with, else a tenth of train, at most 5000."
    )
    split_seed: int | None = None
    (
        "Seed of the split of train into train and calibration. None: the one that the checkpoint "
        "was trained with, else 0."
    )
    subset: Path | None = None
    (
        "List of samples written by 'exitbench subset', to which the test split is cut down. None: "
        "the whole split."
    )


@dataclass(frozen=True)
class TrainConfig:
    """Train a network: the backbone, its heads, or both together."""

    out: Path
    """The checkpoint to write (.safetensors)."""
    mode: TrainMode = "original"
    (
        "normal: plain network without exits; original: backbone inside the network with exits; "
        "exits: heads only, on the frozen backbone of --init; joint: backbone and heads together."
    )
    init: Path | None = None
    """Checkpoint to start from; needed for mode exits. None: fresh weights."""
    model: Model = "vgg19"
    """Architecture; with --init that of the checkpoint."""
    width: float = 1.0
    """Factor on the number of channels; 1 is the full network."""
    side: int | None = None
    """Height and width of the images in pixels, such as 32, 64, 96. None: the dataset's own."""
    exits: tuple[int, ...] | None = None
    """Exit points that get a head, as rising numbers from 1. None: all."""
    share_heads: bool = False
    """Share bag-of-features within a stage and the linear layers across exits."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """adam, or sgd with Nesterov momentum; both under a one-cycle schedule."""
    epochs: int = 14
    """Passes over the training split."""
    batch_size: int = 128
    """Images per step."""
    learning_rate: float | None = None
    """Peak of the one-cycle schedule. None: 0.1 for sgd, 0.001 for adam, 0.02 in mode exits."""
    weight_decay: float = 5e-4
    """Weight decay of the convolution and linear weights."""
    patience: int | None = None
    """Stop after this many epochs without a better validation accuracy. None: never."""
    validation_share: float = 0.05
    """Share of train held out to watch the training (0 to 0.5); never the test split."""
    seed: int = 0
    """Seed of the weights, the order of the images and the augmentation."""
    mixed_precision: bool = True
    """bf16 autocast where the device has it."""
    resume: bool = True
    """Go on from the last complete epoch of an interrupted training of the same settings."""
    data: DataConfig = field(default_factory=DataConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)


@dataclass(frozen=True)
class TraceConfig:
    """Record the evidence at every exit, once, for the calibration and the test split."""

    run: Path
    """Run directory to write to."""
    checkpoint: Path | None = None
    """Network with exits; this or --logits is needed."""
    logits: Path | None = None
    """Instead of a network: npz with logits (N, exits + 1, classes) and labels (N,)."""
    calibration_logits: Path | None = None
    """With --logits: the same for the calibration split. None: the logits are split in halves."""
    cost: Path | None = None
    """With --logits, which needs it: a cost table (CSV), by hand or from another tool."""
    precisions: tuple[Precision, ...] = ("fp32",)
    """Precisions to trace."""
    horizon: int = 8
    """R: rounds of the convolution predictor that are recorded."""
    kernel: tuple[float, ...] = (1.0, 1.0, 1.0)
    """w: kernel of the convolution predictor, an odd number of weights."""
    batch_size: int = 256
    """Images per forward pass; bounds the memory, changes no result."""
    keep_logits: bool = False
    """Store the raw logits too (large)."""
    limit: int | None = None
    """Trace at most this many images of each split. None: all."""
    data: DataConfig = field(default_factory=DataConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)


@dataclass(frozen=True)
class ProfileConfig:
    """Measure what every segment, head, forecast and the classifier cost on this device."""

    run: Path
    """Run directory to write to."""
    checkpoint: Path | None = None
    """Network to profile. None: the one that the run directory was traced with."""
    precisions: tuple[Precision, ...] = ("fp32",)
    """Precisions to profile."""
    batch_sizes: tuple[int, ...] = (1, 64)
    """Batch sizes to profile."""
    seconds: float = 25.0
    """Time limit for the latency of one precision and batch size, in seconds."""
    interval: float = 0.02
    """Stop when the 95% interval of every median is within this share of it; 0.02 is 2%."""
    energy: bool = True
    """Measure energy, or model it where no meter can be read; else only latency."""
    energy_seconds: float | None = None
    """Time limit for an energy counter, per precision and batch size. None: what --tier needs."""
    hardware: str = "auto"
    """Hardware profile: auto, a shipped name, or a TOML file."""
    horizon: int = 8
    """R: rounds of the convolution predictor whose forecast is timed."""
    operating_points: tuple[str, ...] = ()
    (
        "Operating points of the hardware profile to set and profile at, one after another, on top "
        "of the clocks as they are; needs the permission to set clocks. None given: none."
    )
    metering: MeteringConfig = field(default_factory=MeteringConfig)
    data: DataConfig = field(default_factory=DataConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)


@dataclass(frozen=True)
class SweepConfig:
    """Replay policies over the trace and price them with the cost table; no network is run."""

    run: Path
    """Run directory with traces and a cost table."""
    policies: tuple[Policy, ...] = ("full", "every-exit", "predictive", "fixed", "oracle")
    """Policies to replay."""
    criteria: tuple[Criterion, ...] = ("softmax", "activation", "margin", "entropy")
    """Confidence criteria."""
    beta: tuple[str, ...] = ("auto",)
    """Factors on the threshold at which samples may leave, or auto for a grid of useful ones."""
    beta_count: int = 25
    """Number of values that auto chooses."""
    start_layers: tuple[int, ...] | None = None
    """First exits to check. None: every exit in turn."""
    predictors: tuple[Predictor, ...] = ("convolution", "table", "perfect")
    """Predictors of the predictive policy; perfect knows the truth and is a bound."""
    precisions: tuple[Precision, ...] | None = None
    """Precisions. None: all that were traced."""
    batch_size: int | None = None
    """Batch size of the cost table's rows to price with. None: the smallest."""
    accuracy_loss: float = 1.0
    """Accuracy that may be lost against the full network, in percentage points."""
    periods_ms: tuple[float, ...] = (100.0, 1000.0)
    """Periods of the periodic scene, one request each, in ms; energy per request and hour."""


@dataclass(frozen=True)
class GovernConfig:
    """Set the clocks for what is left after each forecast: replayed energy at equal latency."""

    run: Path
    """Run directory with traces and a cost table."""
    hardware: str = "auto"
    (
        "Whose clocks: auto is the hardware profile of the cost table; another name or TOML file "
        "stands for another device, whose costs are then modelled from the peaks in its profile."
    )
    governors: tuple[Governor, ...] = (
        "fixed", "race-to-idle", "proportional", "deadline", "deadline-safe",
    )  # fmt: skip
    """Governors to compare; every setting is also shown at the top clock without one."""
    deadline_ms: float | None = None
    """Time allowed per request in ms. None: what the full network takes at the top clock."""
    operating_point: str | None = None
    """Operating point of the governor fixed. None: chosen with the setting, as that is."""
    precisions: tuple[Precision, ...] | None = None
    """Precisions. None: all that were traced."""
    criteria: tuple[Criterion, ...] = ("softmax", "margin")
    """Confidence criteria among which settings are chosen."""
    beta_count: int = 25
    """Number of values of beta that are tried."""
    accuracy_loss: float = 1.0
    """Accuracy that may be lost against the full network, in percentage points."""


@dataclass(frozen=True)
class RunConfig:
    """Really run chosen settings, measured, and set them beside their replay."""

    run: Path
    """Run directory with a sweep."""
    settings: tuple[str, ...] = ()
    (
        "Roles of the comparison to run (full, every-exit, predictive, ...) or rows of sweep.csv. "
        "None given: full, every-exit, predictive, recommended and two points of the front."
    )
    checkpoint: Path | None = None
    """Network to run. None: the one that the run directory was traced with."""
    forward_mode: Literal["normal", "accuracy"] = "normal"
    """normal: run with the prediction engine; accuracy: measure how well it predicts."""
    start_layer: int | None = None
    """With forward mode accuracy: the first exit that forecasts. None: every one in turn."""
    stat_each_layer: bool = True
    """Collect per exit: checked, left, correct, mean confidence, forecast and true jump."""
    repeats: int = 3
    """Passes over the samples; the median is reported with its range."""
    limit: int | None = None
    """Run at most this many test images. None: all."""
    batch_size: int | None = None
    """Images per batch. None: the batch size that the sweep was priced with."""
    rebatch_wait: int | None = None
    (
        "Throughput mode: what is left of several batches runs on together, and an answer comes at "
        "most so many further batches later. Latency is then time per sample, not until the "
        "answer. None: each batch by itself."
    )
    hardware: str = "auto"
    """Hardware profile. auto: the one of the cost table; another one is refused."""
    scene: Scene = "continuous"
    """continuous: one batch after another; periodic: a request every --period-ms, idle between."""
    period_ms: float | None = None
    """Period of the periodic scene in ms."""
    governor: Governor | None = None
    """Governor that sets the clocks for each request after its forecasts; batch size 1."""
    operating_point: str | None = None
    """Operating point of the governor fixed. None: the slowest that keeps the deadline."""
    deadline_ms: float | None = None
    """Time allowed per request in ms. None: what the full network takes at the top clock."""
    clocks: Clocks = "simulated"
    (
        "simulated: change no clock, price by the hardware profile; device: really set them, which "
        "needs permission, and put them back at the end."
    )
    metering: MeteringConfig = field(default_factory=MeteringConfig)
    data: DataConfig = field(default_factory=DataConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)


@dataclass(frozen=True)
class ReportConfig:
    """Draw the figures and the page of a run directory."""

    run: Path
    """Run directory."""
    out: Path | None = None
    """Folder to write to. None: RUN/report."""


@dataclass(frozen=True)
class StudyConfig:
    """Trace, profile, sweep, run and report in one; an interrupted study goes on where it was."""

    checkpoint: Path
    """Network with exits."""
    run: Path
    """Run directory to write to."""
    precisions: tuple[Precision, ...] = ("fp32", "bf16", "int8")
    """Precisions; those that the device cannot run are left out with a note."""
    batch_sizes: tuple[int, ...] = (1, 64)
    """Batch sizes to profile."""
    batch_size: int = 1
    """Batch size that settings are priced, chosen and run with."""
    seconds: float = 25.0
    """Time limit for profiling one precision and batch size, in seconds."""
    energy: bool = True
    """Measure energy, or model it where no meter can be read; else only latency."""
    energy_seconds: float | None = None
    """Time limit for an energy counter, per precision and batch size. None: what --tier needs."""
    hardware: str = "auto"
    """Hardware profile: auto, a shipped name, or a TOML file."""
    criteria: tuple[Criterion, ...] = ("softmax", "activation", "margin", "entropy")
    """Confidence criteria."""
    beta: tuple[str, ...] = ("auto",)
    """Values of beta, or auto for a grid that spans the useful range of each criterion."""
    beta_count: int = 25
    """Number of values that auto chooses."""
    predictors: tuple[Predictor, ...] = ("convolution", "table", "perfect")
    """Predictors of the predictive policy; perfect knows the truth and is a bound."""
    horizon: int = 8
    """R: rounds of the convolution predictor, hence its longest jump."""
    accuracy_loss: float = 1.0
    """Accuracy that may be lost against the full network, in percentage points."""
    limit: int | None = None
    """Use at most this many images of each split. None: all."""
    run_limit: int | None = 1000
    """Really run at most this many test images, evenly spread, per setting and pass."""
    repeats: int = 3
    """Measured passes per setting; the median is reported with its range."""
    periods_ms: tuple[float, ...] = (100.0, 1000.0)
    """Periods of the periodic scene, one request each, in ms; energy per request and hour."""
    govern: tuple[str, ...] = ("auto",)
    """Hardware profiles whose clocks are governed in replay; auto is this machine's."""
    metering: MeteringConfig = field(default_factory=MeteringConfig)
    data: DataConfig = field(default_factory=DataConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)


@dataclass(frozen=True)
class DemoConfig:
    """Train a small network on the embedded digits and study it: the whole path in minutes."""

    run: Path = Path("runs/demo")
    """Run directory to write to."""
    device: DeviceConfig = field(default_factory=lambda: DeviceConfig(threads=1))


@dataclass(frozen=True)
class SubsetConfig:
    """Write the list of test samples that are easy (leave at the first exits) or hard (do not)."""

    run: Path
    """Run directory with a trace."""
    out: Path
    """File to write; other commands take it as --subset."""
    difficulty: Literal["easy", "hard"] = "easy"
    """easy: leave at or before --exit; hard: reach the classifier."""
    exit: int | None = None
    """With easy: the last exit that counts as early. None: a quarter of the exits."""
    criterion: Criterion = "softmax"
    """Confidence criterion by which samples leave."""
    beta: float | None = None
    """Beta (times the threshold of an exit). None: the calibration median over all exits."""
    precision: Precision = "fp32"
    """Precision of the trace."""

"""``exitbench paper``: the flags of the paper's own program, translated and carried out.

The program is that of Li et al., "Predictive Exit: Prediction of Fine-Grained Early Exits for
Computation- and Energy-Efficient Inference", AAAI 2023; docs/paper.md maps every flag.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

from .circumstances import NONE, THIS_MACHINE, Circumstances, ClockFiles
from .configs import DataConfig, DeviceConfig, Model, Precision, TrainConfig
from .configs_paper import PaperConfig
from .errors import ExitbenchError
from .scenes import Scene

CRITERION: Literal["reference"] = "reference"
DEFAULT_FOLDER = Path("models_new")
CLOCK_FLAGS = ("core_num", "cpu_freq_level", "gpu_freq_level", "baseline")
SCENE_FLAGS = ("scene", "baseline_time", "sleep_time")
DEFAULT_TIME_S = 30.0  # of --baseline_time and of --sleep_time, in the paper's program
_MODELS: dict[str, Model] = {
    "vgg19": "vgg19",
    "resnet": "resnet34",
    "resnet34": "resnet34",
}
_PICKLED = (".pt", ".pth")


@dataclass(frozen=True)
class EvaluationArguments:
    """What ``evaluate_checkpoint`` is told, by the names of its parameters."""

    checkpoint: Path
    policy: Literal["full", "predictive"]
    criterion: Literal["reference"]
    beta: float | None
    start_layer: int
    predictor: Literal["convolution"]
    precision: Precision
    data: DataConfig
    device: DeviceConfig
    batch_size: int
    forward_mode: Literal["normal", "accuracy"]
    stat_each_layer: bool
    limit: int | None = None
    circumstances: Circumstances = NONE


@dataclass(frozen=True)
class Translation:
    """The paper's flags in the words of exitbench: either a training or an evaluation.

    Attributes:
        model: the architecture that the flags name; a given checkpoint must hold it.
        task: what is to be done.
        keep: the file that a training writes is kept.
        notes: what the user should know, one line each.
    """

    model: Model
    task: TrainConfig | EvaluationArguments
    keep: bool
    notes: tuple[str, ...]


def translate(config: PaperConfig) -> Translation:
    """What the paper's flags mean here.

    Raises:
        ExitbenchError: an unknown model, or a task without the file that it needs.
    """
    model = _MODELS.get(config.model_name.lower())
    if model is None:
        raise ExitbenchError(
            f"--model_name is {config.model_name!r}; allowed: vgg19, or resnet (also Resnet34)"
        )
    training = config.task == "train"
    notes = [*_acting_notes(config), *_training_notes(config)]
    if not training and config.quantization == 1 and config.device != "cpu":
        notes.append(f"--quantization 1: int8 runs on the CPU, not on {config.device}")
    return Translation(
        model=model,
        task=_train(config, model) if training else _evaluate(config, model),
        keep=config.save != 0,
        notes=tuple(notes),
    )


def written_file(config: PaperConfig, model: Model, mode: str | None = None) -> Path:
    """``MODEL_train_MODE_SUFFIX.safetensors`` in the folder of the given file or ``models_new``."""
    folder = config.pretrained_file.parent if config.pretrained_file else DEFAULT_FOLDER
    suffix = config.trained_file_suffix
    return folder / f"{model}_train_{mode or config.train_mode}_{suffix}.safetensors"


def run_paper(
    config: PaperConfig, say: Callable[[str], None], *, files: ClockFiles = THIS_MACHINE
) -> None:
    """Train or evaluate as the paper's program would with these flags.

    Args:
        config: the flags.
        say: takes one line.
        files: where clocks are set, if they are.

    Raises:
        ExitbenchError: flags that do not fit together, or a file that is missing or not theirs.
    """
    translation = translate(config)
    for note in translation.notes:
        say(f"note: {note}")
    if isinstance(translation.task, TrainConfig):
        _run_training(translation.task, translation, say)
    else:
        task = translation.task
        circumstances = replace(task.circumstances, files=files)
        _run_evaluation(replace(task, circumstances=circumstances), translation, say)


def _train(config: PaperConfig, model: Model) -> TrainConfig:
    init = _understood(config.pretrained_file)
    out = written_file(config, model)
    if config.train_mode == "exits" and init is None:
        raise ExitbenchError(
            "--train_mode exits trains heads on a frozen backbone and needs --pretrained_file "
            "FILE; train it first with --train_mode original --save 1, which writes "
            f"{written_file(config, model, 'original')}"
        )
    if init is not None and init == out and config.save != 0:
        raise ExitbenchError(
            f"training would overwrite {out}, the file it starts from; choose another "
            "--trained_file_suffix"
        )
    chosen = TrainConfig(
        out=out,
        mode=config.train_mode,
        init=init,
        model=model,
        width=config.width,
        optimizer=config.optimizer,
        seed=config.seed,
        data=_data(config),
        device=DeviceConfig(device=config.device, threads=config.threads),
    )
    if config.epochs is not None:
        chosen = replace(chosen, epochs=config.epochs)
    if config.batch_size is not None:
        chosen = replace(chosen, batch_size=config.batch_size)
    return chosen


def _evaluate(config: PaperConfig, model: Model) -> EvaluationArguments:
    checkpoint = _understood(config.pretrained_file)
    if checkpoint is None:
        raise ExitbenchError(
            "--task evaluate needs --pretrained_file FILE; training with --save 1 writes "
            f"{written_file(config, model)}"
        )
    with_exits = config.evaluate_mode == "exits"
    return EvaluationArguments(
        checkpoint=checkpoint,
        policy="predictive" if with_exits else "full",
        criterion=CRITERION,
        beta=config.beta if with_exits else None,
        start_layer=config.start_layer,
        predictor="convolution",
        precision="int8" if config.quantization == 1 else "fp32",
        data=_data(config),
        device=DeviceConfig(
            device="cpu" if config.quantization == 1 else config.device,
            threads=_threads(config),
            runtime=config.runtime,
            ranges=config.ranges,
        ),
        batch_size=_batch_size(config),
        forward_mode="accuracy" if config.forward_mode == "accuracy_forward" else "normal",
        stat_each_layer=config.stat_each_layer == 1,
        limit=config.limit,
        circumstances=_circumstances(config),
    )


def _circumstances(config: PaperConfig) -> Circumstances:
    """Cores, clocks and scene of an evaluation."""
    top = config.baseline == 1
    return Circumstances(
        scene=Scene(_period_s(config), awake=top),
        cores=None if top else config.core_num,
        cpu_level=None if top else config.cpu_freq_level,
        gpu_level=None if top else config.gpu_freq_level,
        top=top,
        clocks=config.clocks,
        hardware=config.hardware,
    )


def _period_s(config: PaperConfig) -> float | None:
    """The period of the scene periodical.

    Raises:
        ExitbenchError: it is no time at all.
    """
    if config.scene != "periodical":
        return None
    times = (config.baseline_time, config.sleep_time)
    period_s = sum(DEFAULT_TIME_S if time is None else time for time in times)
    if period_s <= 0:
        raise ExitbenchError(
            "--baseline_time and --sleep_time add up to a period of 0 s; --scene periodical needs "
            "more"
        )
    return period_s


def _threads(config: PaperConfig) -> int:
    """CPU threads: those asked for, else one per core that stays online."""
    if config.threads or config.core_num is None or config.baseline == 1:
        return config.threads
    return config.core_num


def _batch_size(config: PaperConfig) -> int:
    """Images per batch; in a scene they come one by one.

    Raises:
        ExitbenchError: batches in the scene periodical.
    """
    if config.scene == "periodical" and config.batch_size not in (None, 1):
        raise ExitbenchError(
            f"--batch_size is {config.batch_size}; in --scene periodical images come one by one, "
            "so it must be 1 or left out"
        )
    if config.batch_size is not None:
        return config.batch_size
    return 64 if config.scene is None else 1


def _data(config: PaperConfig) -> DataConfig:
    dataset = config.dataset_type if config.npz is None else f"npz:{config.npz}"
    return DataConfig(dataset=dataset, data_root=config.data_root)


def _understood(file: Path | None) -> Path | None:
    """The safetensors file that is meant by a name of the paper's program."""
    return file.with_suffix(".safetensors") if file and file.suffix in _PICKLED else file


def _acting_notes(config: PaperConfig) -> Iterator[str]:
    """What the flags for cores, clocks and scenes do not do, or do by default."""
    given = [name for name in (*CLOCK_FLAGS, *SCENE_FLAGS) if getattr(config, name) is not None]
    flags = ", ".join(f"--{name}" for name in given)
    if config.task == "train":
        if given:
            yield f"{flags}: without effect in training; they act on --task evaluate"
        return
    if given and config.forward_mode == "accuracy_forward":
        yield f"{flags}: without effect with --forward_mode accuracy_forward, which times nothing"
        return
    yield from _scene_notes(config)
    levels = [f"--{name}" for name in CLOCK_FLAGS[:3] if getattr(config, name) is not None]
    if config.baseline == 1 and levels:
        yield f"{', '.join(levels)}: without effect beside --baseline 1, which takes the top"


def _scene_notes(config: PaperConfig) -> Iterator[str]:
    times = {name: getattr(config, name) for name in SCENE_FLAGS[1:]}
    if config.scene == "periodical":
        left = [f"--{name}" for name, value in times.items() if value is None]
        if left:
            yield (
                f"{' and '.join(left)} not given: {DEFAULT_TIME_S:g} s each, as in the paper's "
                "program"
            )
        return
    given = [f"--{name}" for name, value in times.items() if value is not None]
    if given:
        yield f"{', '.join(given)}: without effect; they belong to --scene periodical"


def _training_notes(config: PaperConfig) -> Iterator[str]:
    if config.task == "train" and config.quantization == 1:
        yield "--quantization 1: without effect in training; evaluate with it"
    if config.task == "train" and (config.runtime != "auto" or config.ranges is not None):
        yield "--runtime, --ranges: without effect in training; evaluate with them"
    if config.task == "train" and config.save == 0:
        yield "--save 0: the file that training writes is temporary; --save 1 keeps it"


def _run_training(config: TrainConfig, meant: Translation, say: Callable[[str], None]) -> None:
    if config.init is not None:
        _check_file(config.init, meant.model)
    from .training import run_train

    with _destination(config.out, meant.keep) as out:
        run_train(replace(config, out=out), say)


@contextmanager
def _destination(out: Path, keep: bool) -> Iterator[Path]:
    """Where training writes: ``out``, or a folder that vanishes."""
    if keep:
        yield out
        return
    with tempfile.TemporaryDirectory(prefix="exitbench-") as folder:
        yield Path(folder) / out.name


def _run_evaluation(
    arguments: EvaluationArguments, meant: Translation, say: Callable[[str], None]
) -> None:
    _check_file(arguments.checkpoint, meant.model)
    from .evaluation import evaluate_checkpoint

    given = {item.name: getattr(arguments, item.name) for item in fields(arguments)}
    evaluation = evaluate_checkpoint(**given, say=say)
    for line in evaluation.lines():
        say(line)
    if arguments.forward_mode == "accuracy" and evaluation.confusion is not None:
        for line in confusion_lines(evaluation.confusion):
            say(line)


def confusion_lines(confusion: list[list[int]]) -> list[str]:
    """The table of forecast jumps (rows) against true jumps (columns), both counted from 1.

    Jumps that never occur are left out.
    """
    rows = [number for number, row in enumerate(confusion) if any(row)]
    columns = [number for number, column in enumerate(zip(*confusion, strict=True)) if any(column)]
    if not rows:
        return ["no forecast was made from this start layer"]
    table: list[list[int | str]] = [["", *(column + 1 for column in columns)]]
    table += [[row + 1, *(confusion[row][column] for column in columns)] for row in rows]
    width = max(5, *(len(str(cell)) for line in table for cell in line))
    return [
        "forecast jump (row) against true jump (column)",
        *(" ".join(f"{cell:>{width}}" for cell in line) for line in table),
    ]


def _check_file(file: Path, model: Model) -> None:
    """Say at once, and in the paper's words, what is wrong with a given file."""
    for suffix in _PICKLED:
        if not file.exists() and file.with_suffix(suffix).exists():
            raise ExitbenchError(
                f"{file.with_suffix(suffix)} is a pickled file, which is never loaded here, "
                f"because it can run code; {file} does not exist: train it with 'exitbench paper "
                "--task train --save 1'"
            )
    from ..models.checkpoint import read_header

    held = read_header(file).model
    if held != model:
        raise ExitbenchError(
            f"--pretrained_file {file} holds the model {held}, but --model_name means {model}; "
            f"give --model_name {held}"
        )

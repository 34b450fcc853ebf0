"""Accuracy that int8 costs on a trained network, and the speed of a GPU where there is one."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import torch
from exitbench.harness.compaction import ALWAYS
from exitbench.harness.configs import DataConfig, DeviceConfig, TrainConfig
from exitbench.harness.errors import ExitbenchError
from exitbench.harness.runtime import RUNTIMES, Prepared, availability, prepare
from exitbench.harness.subject import Subject, load_subject
from goal_network import interleaved, ratio
from goal_rows import Row
from goal_subject import make_subject
from goal_walks import SAMPLES, Walks, Work, make_script, scripted

BATCH = 256


def measure_accuracy(
    folder: Path, threads: int, quick: bool, checkpoint: Path | None = None, data: str | None = None
) -> list[Row]:
    """Points of accuracy between fp32 and int8 on the whole test split of a trained network."""
    what = "accuracy that int8 costs the full network"
    if (reason := availability("int8")) is not None:
        return [Row("accuracy", what, 0.5, None, "points", note=reason)]
    if checkpoint is None:
        checkpoint, data = _trained(folder, threads), "digits"
    device = DeviceConfig("cpu", threads)
    subject = load_subject(
        checkpoint, DataConfig(dataset=data), device, lambda line: None, needs_exits=False
    )
    truth = torch.from_numpy(subject.parts["test"].labels)
    answers = {name: _answers(subject, name) for name in ("fp32", "int8")}
    right = {name: float((found == truth).double().mean()) for name, found in answers.items()}
    lost = (right["fp32"] - right["int8"]) * 100
    arguments = subject.checkpoint.arguments
    name = Path(subject.dataset.partition(":")[2] or subject.dataset).name
    note = (
        f"{subject.checkpoint.model} x{arguments.width:g} trained on {name}, "
        f"{len(truth):,} test images: {right['fp32']:.2%} in fp32, {right['int8']:.2%} in int8"
    )
    return [Row("accuracy", what, 0.5, lost, "points", note=note, detail=right)]


def _answers(subject: Subject, precision: str) -> torch.Tensor:
    prepared = subject.prepare(precision)
    last = prepared.num_exits + 1
    return torch.cat(
        [
            prepared.run_classifier(prepared.run_stretch(1, last, images)).argmax(-1).cpu()
            for images in subject.batches("test", BATCH)
        ]
    )


def _trained(folder: Path, threads: int) -> Path:
    """The backbone that ``exitbench demo`` trains on the embedded digits."""
    from exitbench.harness.training import run_train

    path = folder / "digits.safetensors"
    if not path.exists():
        config = TrainConfig(
            path, mode="original", width=0.25, optimizer="adam", epochs=12, batch_size=64,
            learning_rate=2e-3, data=DataConfig(dataset="digits", calibration_samples=360),
            device=DeviceConfig("cpu", threads),
        )  # fmt: skip
        run_train(config, lambda line: None)
    return path


def measure_gpu(folder: Path, threads: int, quick: bool) -> list[Row]:
    """A predictive run at batch 1 by graphs against the same run by eager, on the GPU."""
    what = "GPU, predictive run, graphs times faster than eager: vgg19, batch 1"
    if not torch.cuda.is_available():
        return [_gpu_row(what, None, "no GPU")]
    if "cudagraph" not in RUNTIMES:
        return [_gpu_row(what, None, "this version has no runtime cudagraph")]
    subject = make_subject(folder, "vgg19", max(SAMPLES.values()), threads)
    try:
        peers = {
            name: _walks_on_gpu(subject, prepare(subject.network, "fp32", "cuda", runtime=name))
            for name in ("eager", "cudagraph")
        }
    except ExitbenchError as error:
        return [_gpu_row(what, None, str(error))]
    times = interleaved(peers, 5 if quick else 30)
    took = {name: median(each) / SAMPLES[1] * 1e3 for name, each in times.items()}
    note = ", ".join(f"{name} {each:.3g} ms per image" for name, each in took.items())
    card = torch.cuda.get_device_name()
    detail = {"ms_per_image": took, "device": card}
    return [_gpu_row(what, ratio(times["eager"], times["cudagraph"]), f"{card}: {note}", detail)]


def _gpu_row(
    what: str, measured: float | None, note: str, detail: dict[str, Any] | None = None
) -> Row:
    return Row("gpu", what, 3.0, measured, least=True, note=note, detail=detail or {})


def _walks_on_gpu(subject: Subject, prepared: Prepared) -> Any:
    """A call that walks the samples one by one; ends when the card has finished."""
    walks = Walks(subject, prepared)
    walks.images, walks.stack = walks.images.cuda(), walks.stack.cuda()
    script = make_script(walks.exits, SAMPLES[1], 8.0, 0)
    work = Work("predictive", 8.0, 1, scripted("predictive", walks.exits, script), script)

    def call() -> None:
        walks.run(work, prepared, ALWAYS)
        prepared.synchronise()

    return call

"""``exitbench profile``: the cost table of a network on this device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..models.counting import forecast_counts
from .calibration import limits
from .configs import ProfileConfig
from .costs import CostTable
from .environment import environment
from .errors import ExitbenchError
from .files import replacing
from .hardware import hardware_profile
from .meters.base import Unavailable
from .meters.choose import ChosenMeter, choose_meter
from .options import to_plain
from .predictors import DEFAULT_KERNEL, ConvolutionPredictor, convolution_stack
from .profiler import Profile, profile
from .rundir import RunDirectory
from .runtime.base import Prepared
from .sources import LiveEvidence
from .subject import Subject, load_subject, usable_precisions
from .timing import Limits
from .tracing import note_subject, traced_subject

Say = Callable[[str], None]


@dataclass(frozen=True)
class Checked:
    """A prepared network whose heads are read as a scheduler reads them.

    What a check costs is the head and bringing its answer and confidence to the host, so that is
    what stands in the cost table under ``head``.
    """

    inner: Prepared

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def run_head(self, number: int, state: Any) -> Tensor:
        """The logits of a head, after its label and confidence have been read."""
        logits = self.inner.run_head(number, state)
        evidence = LiveEvidence(np.arange(len(logits)), logits, "softmax", None)
        _ = evidence.label, evidence.confidence
        return logits


def run_profile(config: ProfileConfig, say: Say) -> None:
    """Measure segments, heads, forecasts and the classifier, per precision and batch size.

    Raises:
        ExitbenchError: the network, the data, the device or the hardware profile cannot be used.
    """
    check_profile(config)
    path = config.checkpoint
    data = config.data
    if (config.run / "manifest.json").is_file():
        known = RunDirectory(config.run, create=False)
        path, data, _ = traced_subject(known, path, data)
    if path is None:
        raise ExitbenchError(
            f"{config.run} names no network to profile; give one with --checkpoint"
        )
    subject = load_subject(path, data, config.device, say)
    directory = RunDirectory(config.run)
    directory.begin(
        "profile", to_plain(config), environment(str(subject.device), subject.threads)
    )
    note_subject(directory, subject, traced=False)
    precisions, _ = usable_precisions(config.precisions, subject.device, True, say)
    prepared = {precision: subject.prepare(precision) for precision in precisions}
    profile_subject(directory, subject, prepared, config, say, resume=False)
    directory.finish("profile")


def check_profile(config: ProfileConfig) -> None:
    """Refuse a configuration that nothing can be measured with."""
    faults = []
    if not config.batch_sizes or min(config.batch_sizes) < 1:
        faults.append(f"batch sizes are {list(config.batch_sizes)}; each must be at least 1")
    if config.seconds <= 0:
        faults.append(f"seconds is {config.seconds}; it must be above 0")
    if not 0 < config.interval < 1:
        faults.append(f"interval is {config.interval}; it must lie between 0 and 1, such as 0.02")
    if config.horizon < 1:
        faults.append(f"horizon is {config.horizon}; it must be at least 1")
    if faults:
        raise ExitbenchError("cannot profile: " + "; ".join(faults))


def choose_energy(
    directory: RunDirectory, subject: Subject, hardware: str, say: Say, wanted: bool = True
) -> ChosenMeter:
    """The meter of a run, said aloud and noted in the manifest.

    Args:
        wanted: else it is one whose readings are all unavailable.
    """
    chosen = hardware_profile(hardware, str(subject.device))
    if wanted:
        meter = choose_meter(str(subject.device), chosen.profile)
    else:
        domain = {"cuda": "gpu"}.get(subject.device.type, "cpu")
        missing = Unavailable("no meter", (domain,), "energy was not asked for")
        meter = ChosenMeter((), (missing,), domain, "not measured, because it was not asked for.")
    say(f"energy: {meter.words}")
    directory.update(
        hardware={
            "profile": chosen.profile.name if chosen.profile else None,
            "description": chosen.profile.description if chosen.profile else None,
            "why": chosen.why,
            "energy": meter.words,
            "meter": meter.name,
            "source": meter.source,
        }
    )
    return meter


def profile_subject(
    directory: RunDirectory,
    subject: Subject,
    prepared: dict[str, Any],
    config: ProfileConfig,
    say: Say,
    resume: bool,
) -> None:
    """Profile every precision and batch size, and write the cost table after each.

    Args:
        resume: leave out what the table holds already, measured in the same way.
    """
    meter = choose_energy(directory, subject, config.hardware, say) if config.energy else None
    done = dict(directory.manifest.get("profile", {}))
    priced = CostTable.read(directory.cost).settings() if directory.cost.is_file() else []
    for precision, network in prepared.items():
        for batch_size in config.batch_sizes:
            key = f"{precision}, batch {batch_size}"
            how = _how(config, meter, network)
            there = (precision, batch_size, "default") in priced
            if resume and there and done.get(key, {}).get("how") == how:
                say(f"profile {key}: already there")
                continue
            say(f"profile {key}: at most {config.seconds:g} s")
            result = _profile(subject, network, batch_size, config, meter)
            _write(directory, precision, batch_size, result)
            directory.update(
                profile={key: {"how": how, "whole": result.whole, "notes": list(result.notes)}}
            )
            whole = result.whole
            say(
                f"profile {key}: whole network {whole['latency_ms']:.4g} ms per sample, sum of "
                f"its parts {whole['parts_latency_ms']:.4g} ms"
            )
            for note in result.notes:
                say(f"profile {key}: {note}")


def _how(config: ProfileConfig, meter: ChosenMeter | None, network: Any) -> dict[str, Any]:
    return {
        "seconds": config.seconds,
        "interval": config.interval,
        "horizon": config.horizon,
        "runtime": network.name,
        "energy": meter.words if meter else None,
    }


def _profile(
    subject: Subject,
    network: Any,
    batch_size: int,
    config: ProfileConfig,
    meter: ChosenMeter | None,
) -> Profile:
    exits, classes = subject.network.num_exits, subject.network.classes
    images = subject.images("calibration", 0, batch_size)
    if len(images) < batch_size:
        # Small datasets: images may repeat, their content does not change what they cost.
        images = images[torch.arange(batch_size, device=images.device) % len(images)]
    stack = convolution_stack(classes, DEFAULT_KERNEL, config.horizon).to(subject.device)
    predictor = ConvolutionPredictor(limits(np.ones(exits), 0.9))
    rows = np.arange(batch_size)

    def forecast(logits: Tensor) -> object:
        return predictor.jump(1, LiveEvidence(rows, logits, "softmax", stack), rows)

    return profile(
        Checked(network),
        subject.network.counts(),
        images,
        forecast,
        Limits(seconds=config.seconds, interval=config.interval),
        meter,
        forecast_counts=forecast_counts(classes, config.horizon),
    )


def _write(directory: RunDirectory, precision: str, batch_size: int, result: Profile) -> None:
    if directory.cost.is_file():
        table = CostTable.read(directory.cost).with_rows(result.rows)
    else:
        table = CostTable.from_rows(result.rows, str(directory.cost))
    table.write(directory.cost)
    samples = directory.path / f"cost-samples-{precision}-{batch_size}.npz"
    with replacing(samples) as temporary, temporary.open("wb") as handle:
        arrays: dict[str, Any] = {k: np.array(v) for k, v in result.samples_ms.items()}
        np.savez_compressed(handle, **arrays)



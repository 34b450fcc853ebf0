"""What a network is profiled with: a sound configuration, images, a forecast, limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from .answers import LogitAnswers, Question
from .calibration import limits
from .configs import ProfileConfig
from .errors import ExitbenchError
from .predictors import DEFAULT_KERNEL, ConvolutionPredictor, convolution_stack
from .sources import LiveEvidence
from .subject import Subject
from .timing import Limits


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


def profile_images(subject: Subject, batch_size: int) -> Tensor:
    """A batch of the calibration split."""
    images = subject.images("calibration", 0, batch_size)
    if len(images) < batch_size:
        # Small datasets: images may repeat, their content does not change what they cost.
        images = images[torch.arange(batch_size, device=images.device) % len(images)]
    return images


def timed_forecast(subject: Subject, horizon: int, batch_size: int) -> Callable[[Tensor], object]:
    """What the convolution predictor computes from the logits of a head."""
    exits, classes = subject.network.num_exits, subject.network.classes
    stack = convolution_stack(classes, DEFAULT_KERNEL, horizon).to(subject.device)
    predictor = ConvolutionPredictor(limits(np.ones(exits), 0.9))
    rows, question = np.arange(batch_size), Question("softmax", stack)

    def forecast(logits: Tensor) -> object:
        return predictor.jump(1, LiveEvidence(rows, LogitAnswers(logits, question)), rows)

    return forecast


def profile_limits(config: ProfileConfig, subject: Subject) -> Limits:
    """When measuring stops."""
    limits = Limits(
        seconds=config.seconds, interval=config.interval, energy_seconds=config.energy_seconds
    )
    # A unit repeated on the CPU finds its weights in the caches, a run does not. On a GPU single
    # calls would each be waited for, which a run does not do either.
    return replace(limits, min_sample_s=0.0) if subject.device.type == "cpu" else limits

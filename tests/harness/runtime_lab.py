"""What the behaviour tests of the runtimes share: cases, trained networks, traces, policies."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exitbench.harness.calibration import thresholds
from exitbench.harness.evidence import IntArray
from exitbench.harness.policies import Policy
from exitbench.harness.predictors import convolution_stack
from exitbench.harness.runtime import RUNTIMES, Prepared, prepare
from exitbench.harness.scheduler import Outcome, merge, walk
from exitbench.harness.settings import Setting, make_policy
from exitbench.harness.sources import LiveSource, TraceSource
from exitbench.harness.trace import Trace, TraceMeta, trace_logits
from exitbench.models.blocks import State
from exitbench.models.network import ExitNetwork
from exitbench.models.registry import ModelArguments, build
from torch import Tensor
from torch.nn import functional

CLASSES = 4
HORIZON = 4
EXITS = {
    # In every stage; after a pool (3), before one (5, 10).
    "vgg19": (1, 3, 5, 8, 10, 14, 17, 20),
    # In every stage; middles of blocks (odd; before a projection 7 and 15) and ends.
    "resnet34": (1, 2, 3, 7, 8, 15, 22, 31),
}
WIDE = {"vgg19": (5, 9, 13), "resnet34": (7, 20, 26)}
WIDTHS = {"vgg19": 0.125, "resnet34": 0.0625}
MODELS = tuple(EXITS)
SIZES = (64, 1, 64, 8, 64, 3)  # batches in turn
SAMPLES = 5 * sum(SIZES) + 19
CALIBRATION = 256
SETTINGS = {
    # ``beta`` is a quantile here: the share of checks that are not confident enough.
    "every-exit": Setting("every-exit", "entropy", 0.6, 1),
    "convolution": Setting("predictive", "activation", 0.7, 2, "convolution"),
    "table": Setting("predictive", "margin", 0.7, 1, "table"),
    "full": Setting("full"),
    "fixed": Setting("fixed", start_layer=4),
}


@dataclass(frozen=True)
class Bounds:
    """How far a precision may be from another computation of the same.

    Attributes:
        decisions: least share of samples whose exit and answer are those of eager in fp32.
        agree: least share of samples to which the whole network gives the answer of fp32.
        error: of logits against fp32, relative (L2 norm).
        again: the same for the same precision in another batch size, or cut elsewhere.
    """

    decisions: float
    agree: float
    error: float
    again: float


BOUNDS = {
    # Products of float32 in another order, through up to 35 layers: 1e-6 each, at most.
    "fp32": Bounds(0.999, 0.999, 1e-4, 1e-4),
    # 11 bits of each factor, sums in float32.
    "tf32": Bounds(0.98, 0.98, 1e-2, 1e-2),
    "fp16": Bounds(0.98, 0.98, 1e-2, 1e-2),
    # 8 bits: 0.4% in every rounding.
    "bf16": Bounds(0.97, 0.98, 0.05, 0.03),
    # One scale per tensor; integers are exact, whatever the batch; heads are in float32.
    "int8": Bounds(0.95, 0.97, 0.15, 1e-5),
}


@dataclass(frozen=True)
class Case:
    """A runtime in a precision on a device."""

    runtime: str
    precision: str
    device: str

    def reason(self) -> str | None:
        """Why it cannot run here."""
        entry = RUNTIMES[self.runtime]
        return entry.unavailable(self.precision, torch.device(self.device))

    @property
    def bounds(self) -> Bounds:
        return BOUNDS[self.precision]


def cases() -> list[Any]:
    """Every case of the registry that can run here; those on a GPU are marked."""
    return [_param(case) for case in _all_cases() if case.reason() is None]


def missing() -> list[Any]:
    """The cases that cannot run here."""
    return [_param(case) for case in _all_cases() if case.reason() is not None]


def _all_cases() -> list[Case]:
    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return [
        Case(name, precision, device)
        for device in ("cpu", *gpus)
        for name, entry in RUNTIMES.items()
        for precision in entry.precisions
    ]


def _param(case: Case) -> Any:
    name = f"{case.runtime}-{case.precision}-{case.device.replace(':', '')}"
    return pytest.param(case, id=name, marks=[] if case.device == "cpu" else [pytest.mark.cuda])


def pictures(
    count: int, seed: int, noise: tuple[float, float] = (0.3, 4.0)
) -> tuple[Tensor, Tensor]:
    """Images (count, 3, 32, 32) of CLASSES blurred patterns, from clear to noisy; their labels."""
    generator = torch.Generator().manual_seed(7)
    patterns = functional.interpolate(
        torch.randn(CLASSES, 3, 4, 4, generator=generator), 32, mode="bilinear"
    )
    generator.manual_seed(seed)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    strength = torch.empty(count, 1, 1, 1).uniform_(*noise, generator=generator)
    images = patterns[labels] + strength * torch.randn(count, 3, 32, 32, generator=generator)
    return images, labels


def train(model: str) -> ExitNetwork:
    """A small network that tells the patterns apart, better with every stage; in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        arguments = ModelArguments(classes=CLASSES, width=WIDTHS[model], exits=EXITS[model])
        network = build(model, arguments)
        optimiser = torch.optim.Adam(network.parameters(), 1e-3)
        for step in range(40):
            images, labels = pictures(16, seed=step, noise=(0.3, 2.0))
            losses = [functional.cross_entropy(z, labels) for z in network(images)]
            optimiser.zero_grad()
            torch.stack(losses).sum().backward()
            optimiser.step()
        _settle(network)
    return network.eval().requires_grad_(False)


def widen(model: str) -> ExitNetwork:
    """A network with random weights, wide enough for kernels that pay from 128 channels on."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = build(model, ModelArguments(classes=CLASSES, width=0.5, exits=WIDE[model]))
        _settle(network, 1)
    return network.eval().requires_grad_(False)


def _settle(network: ExitNetwork, batches: int = 4) -> None:
    """Let the batch norms know what comes now; the running mean forgets the first steps slowly."""
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    with torch.no_grad():
        network.train()
        for step in range(batches):
            network(pictures(64, seed=100 + step)[0])


def everything(prepared: Prepared, images: Tensor) -> tuple[list[State], list[Tensor]]:
    """The states after every segment, and the logits of every head and of the classifier."""
    states: list[State] = []
    state: State = images
    for number in range(1, prepared.num_exits + 2):
        state = prepared.run_segment(number, state)
        states.append(state)
    heads = [prepared.run_head(i, state) for i, state in enumerate(states[:-1], start=1)]
    return states, [*heads, prepared.run_classifier(states[-1])]


def onward(prepared: Prepared, number: int, state: State) -> Tensor:
    """All that can be seen of a state after segment ``number``: logits here and from here on.

    States are opaque, so this is how two of them are compared: (n, exits left + 1, classes).
    """
    seen = []
    while number <= prepared.num_exits:
        seen.append(prepared.run_head(number, state))
        number += 1
        state = prepared.run_segment(number, state)
    return torch.stack([*seen, prepared.run_classifier(state)], 1)


def close(found: Tensor, wanted: Tensor, bound: float) -> None:
    """Require of logits the relative error ``bound``; 0: the same bits."""
    assert found.shape == wanted.shape
    assert found.dtype == torch.float32
    found, wanted = found.cpu(), wanted.cpu()
    if bound == 0:
        assert torch.equal(found, wanted)
    else:
        error = ((found - wanted).norm() / wanted.norm()).item()
        assert error <= bound, f"{error:.2g} off, allowed {bound:g}"


def batches(count: int, sizes: tuple[int, ...]) -> list[IntArray]:
    """Positions 0..count - 1 in batches of these sizes in turn; the last may be a remainder."""
    found, start = [], 0
    while start < count:
        stop = min(count, start + sizes[len(found) % len(sizes)])
        found.append(np.arange(start, stop))
        start = stop
    return found


class Lab:
    """Networks, prepared ones, and traces; each made once, when first asked for.

    Args:
        folder: where traces are written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kept: dict[Hashable, Any] = {}
        self.images, self.truth = pictures(SAMPLES, seed=1)
        self._calibration, self._calibration_truth = pictures(CALIBRATION, seed=2)

    def network(self, model: str) -> ExitNetwork:
        """A trained network; to be changed by nobody."""
        return self._once(("network", model), lambda: train(model))

    def clear(self, model: str) -> tuple[Tensor, Tensor, Tensor]:
        """Images of classes that lie apart, their labels, and the plain network's logits."""
        images, truth = pictures(120, seed=4, noise=(0.2, 0.5))
        with torch.inference_mode():
            make = lambda: torch.stack(list(self.network(model)(images)), 1)  # noqa: E731
            return images, truth, self._once(("clear", model), make)

    def wide(self, model: str) -> ExitNetwork:
        """A wide network; to be changed by nobody."""
        return self._once(("wide", model), lambda: widen(model))

    def make(self, case: Case, network: ExitNetwork) -> Prepared:
        """A network prepared as ``case`` says."""
        return prepare(
            network, case.precision, case.device, self._calibration, runtime=case.runtime
        )

    def prepared(self, case: Case, model: str) -> Prepared:
        """The trained network, prepared."""
        return self._once((case, model), lambda: self.make(case, self.network(model)))

    def other(self, case: Case, model: str) -> Prepared:
        """A network of the same form with other weights, prepared."""
        network = copy.deepcopy(self.network(model))
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(0.9)
        return self.make(case, network)

    def trace(self, case: Case, model: str) -> Trace:
        """What every head says of every sample, in batches of 64."""
        return self._once(
            ("test", case, model),
            lambda: self._trace(case, model, "test", self.images, self.truth),
        )

    def calibration(self, model: str) -> Trace:
        """The same of other samples, by eager in fp32."""
        images, truth = self._calibration, self._calibration_truth
        return self._once(
            ("calibration", model),
            lambda: self._trace(EAGER, model, "calibration", images, truth),
        )

    def policy(self, setting: Setting, model: str) -> Policy:
        """The policy of a setting, fitted to what eager says in fp32, whatever the case."""
        trace = self.calibration(model)
        scales = thresholds(trace)
        if setting.beta is not None and setting.criterion is not None:
            ratios = trace.confidence(setting.criterion) / scales[setting.criterion][:, None]
            setting = replace(setting, beta=float(np.quantile(ratios, setting.beta)))
        return make_policy(setting, len(EXITS[model]), scales, trace)

    def replay(self, trace: Trace, setting: Setting, model: str) -> Outcome:
        """The setting on a trace."""
        source = TraceSource(trace, setting.criterion or "softmax")
        return walk(self.policy(setting, model), source)

    def run(
        self, case: Case, setting: Setting, model: str, count: int, sizes: tuple[int, ...]
    ) -> Outcome:
        """The setting on the first ``count`` samples, really run, in batches of ``sizes``."""
        prepared, policy = self.prepared(case, model), self.policy(setting, model)
        stack = convolution_stack(CLASSES, horizon=HORIZON).to(case.device)
        outcomes = []
        for positions in batches(count, sizes):
            images = self.images[torch.from_numpy(positions)].to(case.device)
            source = LiveSource(
                prepared,
                prepared.num_exits,
                images,
                positions,
                setting.criterion or "softmax",
                stack,
            )
            outcomes.append(walk(policy, source))
        return merge(outcomes)

    def _once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def _trace(self, case: Case, model: str, split: str, images: Tensor, truth: Tensor) -> Trace:
        prepared = self.prepared(case, model)
        logits = [
            torch.stack(everything(prepared, part.to(case.device))[1], 1).cpu()
            for part in images.split(64)
        ]
        exits = prepared.num_exits
        meta = TraceMeta(
            split, case.precision, len(images), exits, CLASSES, (1.0, 1.0, 1.0), HORIZON,
            "patterns", model, tuple(f"exit {number}" for number in range(1, exits + 2)),
        )  # fmt: skip
        name = f"{model}-{split}-{case.runtime}-{case.precision}-{case.device}.npz"
        path = self._folder / name.replace(":", "")
        positions = np.arange(len(images))
        trace_logits(path, torch.cat(logits).numpy(), truth.numpy(), positions, meta)
        return Trace(path)


EAGER = Case("eager", "fp32", "cpu")


def differing(one: Outcome, other: Outcome, count: int | None = None) -> int:
    """How many of the first ``count`` samples left elsewhere or got another answer."""
    same = (one.exit_at[:count] == other.exit_at[:count]) & (
        one.label[:count] == other.label[:count]
    )
    return int(np.count_nonzero(~same))

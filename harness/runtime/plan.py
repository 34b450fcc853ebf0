"""How a backbone becomes a list of a runtime's own operators.

A runtime gives a *kit* of operators; the walk over the backbone's units is the same for all. Every
tensor that an operator makes has a *site*, the name under which calibration knows its range: the
unit's name, ``NAME.project`` for a projected shortcut, ``input`` for the images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ...models.blocks import ConvBlock, ResidualEnd, ResidualStart, State
from ...models.network import ExitNetwork
from ..errors import ExitbenchError
from ..memory import release

INPUT = "input"

LARGE = 2**18
"""Weights in a segment from which on its leftovers are given back; a test network has fewer."""

Unary = Callable[[Tensor], Tensor]


class Binary(Protocol):
    """f(x, y) as a new tensor; or in the memory of y, where that is ``spent`` (needed no more)."""

    def __call__(self, x: Tensor, y: Tensor, spent: bool = False, /) -> Tensor: ...


class Step(Protocol):
    """The state after a unit; the one before it stays as it is, unless it is ``spent``."""

    def __call__(self, state: State, spent: bool = False, /) -> State: ...


@dataclass(frozen=True)
class Convolution:
    """A convolution with its batch norm folded in.

    Attributes:
        weight: float32 (K, C, h, w).
        bias: float32 (K,).
        side: height and width of the map that it reads.
    """

    weight: Tensor
    bias: Tensor
    stride: tuple[int, int]
    padding: tuple[int, int]
    side: int


@dataclass(frozen=True)
class Site:
    """A tensor between units: its name, and the height and width of its map."""

    name: str
    side: int


class Kit(Protocol):
    """A runtime's operators. ``site`` names the output, ``source`` the input of an operator."""

    def enter(self) -> Unary:
        """Normalised float32 images to the tensor at site ``input``."""

    def conv(self, conv: Convolution, site: str, source: str, relu: bool) -> Unary:
        """conv(x), or relu(conv(x))."""

    def conv_add(self, conv: Convolution, site: str, source: str, shortcut: str) -> Binary:
        """relu(conv(x) + y), with y the tensor at site ``shortcut``."""

    def max_pool(self, side: int) -> Unary:
        """Largest value of each ``side`` x ``side`` window, windows not overlapping."""

    def features(self, site: str) -> Unary:
        """The tensor at ``site`` in float32, as a head reads it."""


@dataclass(frozen=True)
class Plan:
    """Operators in the order in which they run.

    Attributes:
        enter: images to the first state.
        segments: E + 1 lists of steps, one step per backbone unit.
        features: per segment, its last state's main path in float32.
        names: the unit's name of each step, as ``segments``.
    """

    enter: Unary
    segments: tuple[tuple[Step, ...], ...]
    features: tuple[Unary, ...]
    names: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Part:
    """One segment of a plan; see ``Plan``."""

    steps: tuple[Step, ...]
    features: Unary
    names: tuple[str, ...]


def make_plan(network: ExitNetwork, kit: Kit) -> Plan:
    """The network's backbone in the operators of ``kit``.

    Raises:
        ExitbenchError: a unit that no runtime knows how to fold.
    """
    parts = list(plan_parts(network, kit))
    return Plan(
        kit.enter(),
        tuple(part.steps for part in parts),
        tuple(part.features for part in parts),
        tuple(part.names for part in parts),
    )


def plan_parts(network: ExitNetwork, kit: Kit) -> Iterator[Part]:
    """The segments of a plan one by one, for who needs each once and not their weights together.

    Raises:
        ExitbenchError: a unit that no runtime knows how to fold.
    """
    sites: tuple[Site, ...] = (Site(INPUT, network.input_side),)
    for number in range(1, network.num_exits + 2):
        units = network.segment_units(number)
        part, sites = _part(units, sites, kit)
        yield part
        del part
        if sum(weight.numel() for _, unit in units for weight in unit.parameters()) > LARGE:
            release()


def _part(
    units: list[tuple[str, nn.Module]], sites: tuple[Site, ...], kit: Kit
) -> tuple[Part, tuple[Site, ...]]:
    steps = []
    for name, unit in units:
        step, sites = _step(unit, name, sites, kit)
        steps.append(step)
    return Part(tuple(steps), kit.features(sites[0].name), tuple(n for n, _ in units)), sites


@torch.inference_mode()
def run_plan(plan: Plan, images: Tensor) -> Tensor:
    """The last state's features (N, C, H, W), in float32, after all segments."""
    state: State = plan.enter(images)
    for steps in plan.segments:
        for step in steps:
            state = step(state)
    assert isinstance(state, Tensor)
    return plan.features[-1](state)


def fold(conv: nn.Conv2d, norm: nn.Module, side: int) -> Convolution:
    """One convolution that equals ``norm(conv(x))`` in evaluation mode, on maps of ``side``.

    Raises:
        ExitbenchError: the pair is not a plain convolution and its batch norm.
    """
    if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None or conv.groups != 1:
        raise ExitbenchError(
            f"cannot prepare {conv} followed by {norm}: runtimes fold an ungrouped convolution "
            "with a BatchNorm2d that keeps running statistics"
        )
    with torch.no_grad():
        weight, bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps,  # type: ignore[arg-type]
            norm.weight, norm.bias,
        )  # fmt: skip
    stride, padding = conv.stride, conv.padding
    assert isinstance(padding, tuple)
    return Convolution(
        weight.detach().float(), bias.detach().float(),
        (stride[0], stride[1]), (padding[0], padding[1]), side,
    )  # fmt: skip


def _step(
    unit: nn.Module, name: str, sites: tuple[Site, ...], kit: Kit
) -> tuple[Step, tuple[Site, ...]]:
    for kind, make in _STEPS.items():
        if isinstance(unit, kind):
            return make(unit, name, sites, kit)
    raise ExitbenchError(
        f"cannot prepare unit {name!r}: runtimes know {', '.join(k.__name__ for k in _STEPS)}, "
        f"not {type(unit).__name__}. Build the backbone from the blocks of models/blocks.py."
    )


def _conv_block(
    unit: ConvBlock, name: str, sites: tuple[Site, ...], kit: Kit
) -> tuple[Step, tuple[Site, ...]]:
    run, site = _conv(unit.conv, unit.bn, name, sites[0], kit)
    return _alone(run), (site,)


def _max_pool(
    unit: nn.MaxPool2d, name: str, sites: tuple[Site, ...], kit: Kit
) -> tuple[Step, tuple[Site, ...]]:
    window = unit.kernel_size
    if not isinstance(window, int) or unit.stride != window or unit.padding or unit.ceil_mode:
        raise ExitbenchError(f"cannot prepare unit {name!r}: {unit} has overlapping windows")
    (site,) = sites
    return _alone(kit.max_pool(window)), (replace(site, side=site.side // window),)


def _residual_start(
    unit: ResidualStart, name: str, sites: tuple[Site, ...], kit: Kit
) -> tuple[Step, tuple[Site, ...]]:
    first, site = _conv(unit.first.conv, unit.first.bn, name, sites[0], kit)

    def step(state: State, spent: bool = False) -> State:
        assert not isinstance(state, tuple)
        return first(state), state

    return step, (site, sites[0])


def _residual_end(
    unit: ResidualEnd, name: str, sites: tuple[Site, ...], kit: Kit
) -> tuple[Step, tuple[Site, ...]]:
    main_site, shortcut_site = sites
    project: Unary | None = None
    if unit.project is not None:
        conv, norm = unit.project
        assert isinstance(conv, nn.Conv2d)
        project, shortcut_site = _conv(
            conv, norm, f"{name}.project", shortcut_site, kit, relu=False
        )
    folded = fold(unit.conv, unit.bn, main_site.side)
    add = kit.conv_add(folded, name, main_site.name, shortcut_site.name)

    def step(state: State, spent: bool = False) -> State:
        main, shortcut = state
        if project is None:
            return add(main, shortcut, spent)
        return add(main, project(shortcut), True)

    return step, (replace(main_site, name=name),)


def _conv(
    conv: nn.Conv2d, norm: nn.Module, name: str, source: Site, kit: Kit, relu: bool = True
) -> tuple[Unary, Site]:
    """The operator, and the site of what it makes."""
    folded = fold(conv, norm, source.side)
    (window, _), (stride, _), (padding, _) = conv.kernel_size, folded.stride, folded.padding
    side = (source.side + 2 * padding - window) // stride + 1
    return kit.conv(folded, name, source.name, relu), Site(name, side)


def _alone(run: Unary) -> Step:
    def step(state: State, spent: bool = False) -> State:
        assert not isinstance(state, tuple)
        return run(state)

    return step


_STEPS: dict[type[nn.Module], Callable[..., tuple[Step, tuple[Site, ...]]]] = {
    ConvBlock: _conv_block,
    nn.MaxPool2d: _max_pool,
    ResidualStart: _residual_start,
    ResidualEnd: _residual_end,
}

"""fp32, bf16 and int8 on the CPU by OpenVINO: a deployment target, and the strongest peer here.

An optional extra: ``pip install 'exitbench[openvino]'``. Graphs are built from the plan that every
other runtime's operators come from, so that folding, sites and int8 grids are the same. A stretch
between two checked exits runs as one model, heads and the classifier by torch on the states.

It is never chosen automatically: what runs should not depend on whether an optional package happens
to be there, and by single segments, which is how exits that are all checked run it, it is no faster
than `onednn`.

Threads: models run on as many as torch had when the network was prepared. A later change of torch's
number does not reach them; prepare again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...models.blocks import State, main_path
from ...models.network import ExitNetwork
from ..errors import ExitbenchError
from ..quantization import CALIBRATION_IMAGES, PERCENTILE, sample_images
from . import eager
from .base import Lent, PlannedNetwork, exit_modules
from .calibrate import calibrate
from .eager import DTYPES, EagerKit
from .openvino_kit import FloatKit, Int8Kit, find
from .openvino_models import DEVICE, Graphs, Stretches, core
from .plan import Kit, Plan, Step, plan_parts
from .reference import TOLERANCE_STEPS, ReferenceKit, compare_with_fp32

NAME = "openvino"
PRECISIONS = ("fp32", "bf16", "int8")

RARE = 1e-3
"""Share of a unit's values that may be off by more than TOLERANCE_STEPS."""

TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
"""Of one unit's output, relative to torch's from the same input (L2 norm), as in `onednn`."""


@dataclass(frozen=True)
class OpenVinoNetwork(PlannedNetwork):
    """A network whose stretches are OpenVINO models. ``owned`` is of no use: states are new."""

    stretches: Stretches

    @torch.inference_mode()
    def run_stretch(self, first: int, last: int, state: State, *, owned: bool = False) -> State:
        """The state after segments ``first`` to ``last``; see ``Prepared``."""
        after = self.stretches.run(first, last, state)
        if isinstance(after, Tensor):
            return after
        lent = not owned or isinstance(state, Lent)
        given = {id(tensor) for tensor in (state if isinstance(state, tuple) else (state,))}
        return Lent(after) if lent and any(id(tensor) in given for tensor in after) else after


def unavailable(precision: str, device: torch.device) -> str | None:
    """Why OpenVINO cannot run ``precision`` on ``device``, None if it can."""
    if precision not in PRECISIONS:
        return f"OpenVINO runs {', '.join(PRECISIONS)} here, not {precision}"
    if device.type != "cpu":
        return f"OpenVINO runs on the CPU here, not on {device}"
    try:
        if DEVICE not in core().available_devices:
            return "this build of OpenVINO has no CPU plugin"
        able = core().get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")
    except ExitbenchError as error:
        return str(error)
    except RuntimeError as error:
        return f"OpenVINO fails on this machine ({_first_line(error)})"
    if precision == "bf16":
        return eager.unavailable(precision, device) or (
            None if "BF16" in able else "OpenVINO does not compute in bf16 on this CPU"
        )
    if precision == "int8" and "INT8" not in able:
        return "OpenVINO does not compute in int8 on this CPU"
    return None


def prepare_openvino(
    network: ExitNetwork, precision: str, device: torch.device, images: Tensor | None, ranges: str
) -> OpenVinoNetwork:
    """The network as OpenVINO models, each unit compared with torch on ``images`` or on noise.

    Raises:
        ExitbenchError: OpenVINO is missing or fails, int8 has no calibration images, or the
            self-test fails.
    """
    if precision == "int8" and images is None:
        raise ExitbenchError(
            "int8 needs calibration images to find the range of every activation; give images of "
            "the calibration split"
        )
    try:
        return _prepare(network, precision, device, images, ranges)
    except (RuntimeError, TypeError, AttributeError) as error:
        # The last two: a version that has other operators.
        raise ExitbenchError(f"OpenVINO fails ({_first_line(error)})") from error


def _prepare(
    network: ExitNetwork, precision: str, device: torch.device, images: Tensor | None, ranges: str
) -> OpenVinoNetwork:
    kit: FloatKit
    reference: Kit
    if precision == "int8":
        assert images is not None
        grids = calibrate(network, images, ranges)
        kit, reference = Int8Kit(grids), ReferenceKit(grids)
    else:
        kit, reference = FloatKit(precision), EagerKit(DTYPES[precision], device)
    if images is None:
        images = torch.randn(2, *network.input_shape, generator=torch.Generator().manual_seed(0))
    graphs = Graphs(network, kit)
    stretches = Stretches(graphs, _settings(precision, torch.get_num_threads()))
    compare(stretches, network, reference, sample_images(images, 2))
    threads = stretches.segment(1, 1).compiled.get_property("INFERENCE_NUM_THREADS")
    words = [
        f"{precision} by OpenVINO {find('openvino').__version__.split('-')[0]}",
        f"{threads} thread{'s' if threads > 1 else ''}",
        "a stretch between two checks is one model",
    ]
    if precision == "int8":
        _require_integers(stretches, network.num_exits + 1)
        words += _int8_words(stretches, graphs, network, images, ranges)
    plan = _as_plan(stretches, graphs)
    heads, classifier = exit_modules(network, device, plan)
    return OpenVinoNetwork(
        NAME, ", ".join(words), precision, device, plan, heads, classifier, stretches=stretches
    )


def _settings(precision: str, threads: int) -> dict[str, Any]:
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        # Cores are the caller's business: pinned threads would share theirs with torch's.
        "ENABLE_CPU_PINNING": False,
        # Else the number of threads that was asked for might be cut down in silence.
        "ENABLE_HYPER_THREADING": True,
    }


def _as_plan(stretches: Stretches, graphs: Graphs) -> Plan:
    """Each segment as one step on tensors, and what turns its state into float32."""

    def segment(number: int) -> Step:
        return lambda state, spent=False: stretches.run(number, number, state)

    numbers = range(1, len(graphs.plan.segments) + 1)
    return Plan(
        enter=lambda images: images,
        segments=tuple((segment(number),) for number in numbers),
        features=graphs.plan.features,
        names=tuple((f"segment {number}",) for number in numbers),
    )


@torch.inference_mode()
def compare(stretches: Stretches, network: ExitNetwork, reference: Kit, images: Tensor) -> None:
    """Require of each unit, given the same input, what the reference computes.

    Images go one by one, so that only models of single images are compiled; where a segment is one
    unit, as in a network with all its exits, they are those that will run.

    Raises:
        ExitbenchError: naming the unit that differs.
    """
    states: list[State] = list(images.split(1))
    unit = 0
    for number, part in enumerate(plan_parts(network, reference), start=1):
        for name, step in zip(part.names, part.steps, strict=True):
            unit += 1
            for place, state in enumerate(states):
                wanted = step(reference.enter()(main_path(state)) if unit == 1 else state)
                if len(part.steps) == 1:
                    states[place] = stretches.run(number, number, state)
                else:
                    states[place] = stretches.run_unit(unit, state)
                if not _close(main_path(states[place]), main_path(wanted)):
                    raise ExitbenchError(
                        f"unit {name!r} differs from what torch computes: OpenVINO "
                        f"{find('openvino').__version__} computes it wrongly on this CPU. Use "
                        "another runtime, or another version of OpenVINO."
                    )


def _close(found: Tensor, wanted: Tensor) -> bool:
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return False
    if found.dtype == torch.uint8:
        off = (found.int() - wanted.int()).abs()
        # A projected shortcut is rounded before it is added: where that lay in the middle, one step
        # of its grid is more than one of the sum's.
        rare = (off > TOLERANCE_STEPS).float().mean().item() <= RARE
        return rare and off.max().item() <= 3 * TOLERANCE_STEPS
    tolerance = TOLERANCES[found.dtype]
    found, wanted = found.float(), wanted.float()
    return (found - wanted).norm().item() <= tolerance * wanted.norm().item() + 1e-6


def _require_integers(stretches: Stretches, segments: int) -> None:
    """Require that convolutions run on integers, which is left to OpenVINO."""
    kinds = [
        _text(node, "runtimePrecision")
        for number in range(1, segments + 1)
        if (model := stretches.segment(number, 1).compiled) is not None
        for node in model.get_runtime_model().get_ordered_ops()
        if _text(node, "layerType") == "Convolution"
    ]
    if other := [kind for kind in kinds if kind not in ("u8", "i8")]:
        raise ExitbenchError(
            f"OpenVINO would run {len(other)} of {len(kinds)} int8 convolutions in {other[0]} on "
            "this CPU; use fp32, or another runtime"
        )


def _text(node: Any, key: str) -> str:
    info = node.get_rt_info()
    return str(info[key].astype(str)) if key in info else ""


def _int8_words(
    stretches: Stretches, graphs: Graphs, network: ExitNetwork, images: Tensor, ranges: str
) -> list[str]:
    """What int8 is here, tested on the whole network.

    Raises:
        ExitbenchError: it is too far from fp32.
    """

    def whole(state: State, spent: bool = False) -> State:
        parts = main_path(state).split(1)  # for the model of single images, as in ``compare``
        found = [stretches.run(1, network.num_exits + 1, part) for part in parts]
        return torch.cat([main_path(each) for each in found])

    features = graphs.plan.features
    plan = Plan(lambda images: images, ((whole,),), features[-1:], (("all segments",),))
    error = compare_with_fp32(plan, network, sample_images(images, 32))
    taken = f"{PERCENTILE} percentiles" if ranges == "percentile" else "extremes"
    return [
        "weights per channel, activations uint8",
        f"ranges from the {taken} of {min(len(images), CALIBRATION_IMAGES)} calibration images",
        "heads and classifier in fp32",
        f"the last features {error:.1%} off fp32 (median image)",
    ]


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    # OpenVINO begins with where in its sources it was; what is wrong comes last.
    return lines[-1].strip() if lines else type(error).__name__

"""Which runtime serves a precision on a device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...models.network import ExitNetwork
from ..devices import resolve_device
from ..errors import ExitbenchError
from ..quantization import DEFAULT_RANGES
from . import cudagraph, eager, onednn_float, onednn_int8, openvino_graph
from .base import PlannedNetwork, Prepared
from .cudagraph_network import GraphNetwork
from .pages import LEAST_WEIGHTS, use_large_pages

PRECISIONS = ("fp32", "tf32", "bf16", "fp16", "int8")

Unavailable = Callable[[str, torch.device], str | None]
Prepare = Callable[
    [ExitNetwork, str, torch.device, Tensor | None, str], PlannedNetwork | GraphNetwork
]


@dataclass(frozen=True)
class Runtime:
    """One way to run networks.

    Attributes:
        precisions: those that it is tried for.
        devices: the types of device that it is tried on, where others can run the precision.
        unavailable: why it cannot run a precision on a device; None if it can.
        prepare: a network made ready; may still fail in its self-test.
        by_name: it runs only where it is asked for.
    """

    precisions: tuple[str, ...]
    devices: tuple[str, ...]
    unavailable: Unavailable
    prepare: Prepare
    by_name: bool = False


RUNTIMES: dict[str, Runtime] = {
    cudagraph.NAME: Runtime(
        ("fp32", "tf32", "bf16", "fp16"),
        ("cuda",),
        cudagraph.unavailable,
        cudagraph.prepare_graphs,
    ),
    onednn_float.NAME: Runtime(
        ("fp32", "bf16"), ("cpu",), onednn_float.unavailable, onednn_float.prepare_packed
    ),
    onednn_int8.NAME: Runtime(
        ("int8",), ("cpu",), onednn_int8.unavailable, onednn_int8.prepare_int8
    ),
    eager.NAME: Runtime(
        ("fp32", "tf32", "bf16", "fp16"), ("cpu", "cuda"), eager.unavailable, eager.prepare_eager
    ),
    # An optional package, whose being installed must not decide what runs.
    openvino_graph.NAME: Runtime(
        openvino_graph.PRECISIONS,
        ("cpu",),
        openvino_graph.unavailable,
        openvino_graph.prepare_openvino,
        by_name=True,
    ),
}
"""By name, the fastest first: the first one that can serves, but for those that run by name."""


def availability(
    precision: str, device: str | torch.device = "cpu", runtime: str | None = None
) -> str | None:
    """None if ``precision`` can run on ``device`` of this machine, else the reason in words.

    Args:
        runtime: as in ``prepare``.
    """
    try:
        where = _device(device)
        candidates = _candidates(precision, runtime, where)
    except ExitbenchError as error:
        return str(error)
    reasons = [RUNTIMES[name].unavailable(precision, where) for name in candidates]
    return None if None in reasons else "; ".join(dict.fromkeys(filter(None, reasons)))


def prepare(
    network: ExitNetwork,
    precision: str = "fp32",
    device: str | torch.device = "cpu",
    calibration_images: Tensor | None = None,
    *,
    runtime: str | None = None,
    ranges: str = DEFAULT_RANGES,
) -> Prepared:
    """The network ready to run; a copy, so that later changes to ``network`` do not reach it.

    Runs the fastest runtime that serves; ``words`` of the result says which, and why a faster one
    was passed over. Precisions are never exchanged for one another.

    Args:
        network: in any mode; batch norm uses its running statistics.
        precision: one of PRECISIONS.
        device: ``cpu``, ``cuda``, ``cuda:N``, or ``auto``.
        calibration_images: (N, 3, side, side), float32, normalised; int8 needs them.
        runtime: a name in RUNTIMES, see ``named``; None chooses.
        ranges: how int8 finds ranges, a name in ``quantization.RANGES``.

    Raises:
        ExitbenchError: nothing here runs this precision, with the reasons.
    """
    where = _device(device)
    reasons: list[str] = []
    for name in _candidates(precision, runtime, where):
        reason = RUNTIMES[name].unavailable(precision, where)
        if reason is None:
            try:
                prepared = RUNTIMES[name].prepare(
                    network, precision, where, calibration_images, ranges
                )
            except ExitbenchError as error:
                reason = str(error)
            except RuntimeError as error:
                # An operator that fails while weights are packed, or in a unit's self-test.
                reason = f"fails here ({(str(error).splitlines() or [repr(error)])[0]})"
            else:
                passed_over = f" (not {'; not '.join(reasons)})" if reasons else ""
                paged = _in_large_pages(network, where)
                return replace(prepared, words=prepared.words + paged + passed_over)
        reasons.append(f"{name}: {reason}")
    raise ExitbenchError(f"cannot prepare {precision} on {where}. {' '.join(reasons)}")


def _in_large_pages(network: ExitNetwork, device: torch.device) -> str:
    """Put weights into large pages where that can pay; what there is to say of it."""
    size = sum(weight.numel() * weight.element_size() for weight in network.parameters())
    if device.type != "cpu" or size < LEAST_WEIGHTS or not use_large_pages():
        return ""
    return ", memory in large pages"


def named(runtime: str, precision: str) -> str:
    """The name in RUNTIMES that ``runtime`` stands for: ``onednn`` for ``onednn-int8`` in int8.

    Raises:
        ExitbenchError: there is no such runtime.
    """
    if runtime not in RUNTIMES:
        raise ExitbenchError(f"runtime is {runtime!r}; known are {', '.join(RUNTIMES)}")
    own = f"{runtime}-{precision}"
    return own if own in RUNTIMES else runtime


def _device(device: str | torch.device) -> torch.device:
    return resolve_device(str(device))


def _candidates(precision: str, runtime: str | None, device: torch.device) -> list[str]:
    if precision not in PRECISIONS:
        raise ExitbenchError(f"precision is {precision!r}; it must be {', '.join(PRECISIONS)}")
    if runtime is not None:
        return [named(runtime, precision)]
    known = [
        name
        for name, entry in RUNTIMES.items()
        if precision in entry.precisions and not entry.by_name
    ]
    here = [name for name in known if device.type in RUNTIMES[name].devices]
    return here or known  # one of another device says what the precision needs

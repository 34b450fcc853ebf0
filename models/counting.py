"""Multiply-accumulates, FLOPs, parameters and bytes of a network, counted from shapes.

The modules run once on torch's meta device, where tensors have shapes but no values, while a
dispatch mode sees every aten operator and adds what its formula says. ``docs/counting.md`` gives
each formula with its source. An operator is counted (``FORMULAS``), ignored because it computes
nothing (``IGNORED``), or listed in ``Counts.uncounted``; there is no fourth case.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .blocks import State

if TYPE_CHECKING:
    from .network import ExitNetwork

FLOAT_BYTES = 4

_Module = TypeVar("_Module", bound=nn.Module)


@dataclass(frozen=True)
class Counts:
    """What one call costs, whatever the device.

    Attributes:
        macs: multiply-accumulates of convolutions and matrix products.
        flops: floating-point operations: 2 x macs, plus all other operators by their formula.
        params: trainable values, each once.
        bytes: lower bound of the memory traffic of the call.
        weight_bytes: the part of ``bytes`` that reads weights; a batch reads them once.
        uncounted: name of every executed operator without a formula, once per call of it.
    """

    macs: int = 0
    flops: int = 0
    params: int = 0
    bytes: int = 0
    weight_bytes: int = 0
    uncounted: tuple[str, ...] = ()

    def __add__(self, other: Counts) -> Counts:
        """The sum; parameters are added too, so the two must not share any."""
        return Counts(
            self.macs + other.macs,
            self.flops + other.flops,
            self.params + other.params,
            self.bytes + other.bytes,
            self.weight_bytes + other.weight_bytes,
            self.uncounted + other.uncounted,
        )

    def bytes_per_sample(self, batch_size: int = 1, element_bytes: float = FLOAT_BYTES) -> float:
        """Bytes per sample when a batch shares one reading of the weights.

        Holds for counts of one sample at 4 bytes per element; ``element_bytes`` is the new size.
        """
        activations = self.bytes - self.weight_bytes
        return (activations + self.weight_bytes / batch_size) * element_bytes / FLOAT_BYTES

    def uncounted_text(self) -> str:
        """The uncounted operators with their numbers: ``aten.cos x2; aten.sin x1``, or empty."""
        return "; ".join(f"{name} x{n}" for name, n in sorted(Counter(self.uncounted).items()))


@dataclass(frozen=True)
class NetworkCounts:
    """Counts of a network's parts for one sample.

    Attributes:
        exit_names: names of the E exits.
        segments: E + 1 of them; segment i lies between exits i - 1 and i.
        heads: E of them; a parameter that heads share is in each head's ``params``.
        classifier: the backbone's own classifier.
        params: parameters of the whole network, each once.
    """

    exit_names: tuple[str, ...]
    segments: tuple[Counts, ...]
    heads: tuple[Counts, ...]
    classifier: Counts
    params: int

    @property
    def full(self) -> Counts:
        """The network without its exits: all segments and the classifier."""
        return sum(self.segments, Counts()) + self.classifier

    @property
    def uncounted(self) -> tuple[str, ...]:
        """Operators without a formula in any part, once per call."""
        return sum((part.uncounted for part in (*self.heads, self.full)), ())


def count(
    call: Callable[..., Any], *inputs: Any, element_bytes: int = FLOAT_BYTES
) -> tuple[Counts, Any]:
    """The counts of ``call(*inputs)`` and its output.

    A module runs as a copy on the meta device and so do its inputs; its output has no values, and
    the module itself is not touched. Any other callable runs as it is, on the inputs as they are,
    and has no parameters. The counts are those of the whole call: give a batch of one for the
    counts of a sample.

    Args:
        call: a module or another callable that computes with torch.
        inputs: tensors, tuples of tensors or anything else it takes.
        element_bytes: bytes of one element, for ``Counts.bytes``.
    """
    params = 0
    if isinstance(call, nn.Module):
        params = _parameters(call)
        call, inputs = _on_meta(call), tuple(_to_meta(value) for value in inputs)
    with torch.no_grad(), _Tally() as tally:
        output = call(*inputs)
    return tally.counts(params, element_bytes), output


def network_counts(network: ExitNetwork) -> NetworkCounts:
    """The counts of every segment, head and the classifier, for one sample in eval mode.

    The network is not touched: a copy without values runs on the meta device.
    """
    meta = _on_meta(network).eval()
    state: State = torch.empty(1, *network.input_shape, device="meta")
    segments, heads = [], []
    for number in range(1, network.num_exits + 2):
        units = nn.ModuleList([unit for _, unit in meta.segment_units(number)])
        counts, state = count(lambda s, n=number: meta.run_segment(n, s), state)
        segments.append(counts + Counts(params=_parameters(units)))
        if number <= network.num_exits:
            counts, _ = count(lambda s, n=number: meta.run_head(n, s), state)
            heads.append(counts + Counts(params=_parameters(meta.head(number))))
    classifier, _ = count(meta.run_classifier, state)
    return NetworkCounts(
        exit_names=tuple(point.name for point in network.exit_points),
        segments=tuple(segments),
        heads=tuple(heads),
        classifier=classifier + Counts(params=_parameters(meta.classifier)),
        params=_parameters(network),
    )


def forecast_counts(classes: int, horizon: int) -> Counts:
    """The counts of one forecast of the convolution predictor under the softmax criterion.

    Its ``horizon`` rounds are one product of the logits with a (horizon, classes, classes) stack;
    each round then takes a softmax, its maximum and one comparison. A criterion without a softmax
    costs fewer FLOPs, and as many MACs.
    """
    macs = horizon * classes * classes
    flops = 2 * macs + horizon * (_softmax_flops(1, classes) + (classes - 1) + 1)
    weights = macs * FLOAT_BYTES
    return Counts(macs, flops, 0, weights + (classes + 1) * FLOAT_BYTES, weights)


class Work(NamedTuple):
    """What one operator adds: operations, and elements moved that cannot be fused away."""

    macs: int = 0
    flops: int = 0  # beyond 2 x macs
    moved: int = 0
    weights: int = 0


Formula = Callable[[tuple[Any, ...], Mapping[str, Any], Any], Work | None]


def _convolution(args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Tensor) -> Work:
    image, weight, bias = args[0], args[1], args[2]
    transposed = len(args) > 6 and bool(args[6])
    # A transposed convolution spreads each input element, so it counts from the input's side.
    sites = image if transposed else out
    biases = 0 if bias is None else bias.numel()
    return Work(
        macs=sites.numel() * prod(weight.shape[1:]),
        moved=image.numel() + out.numel(),
        weights=weight.numel() + biases,
    )


def _product(rows: Tensor, columns: Tensor, out: Tensor, biases: int) -> Work:
    return Work(
        macs=out.numel() * rows.shape[-1],
        moved=rows.numel() + out.numel(),
        weights=columns.numel() + biases,
    )


def _matmul(args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Tensor) -> Work:
    return _product(args[0], args[1], out, 0)


def _biased_matmul(args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Tensor) -> Work:
    return _product(args[1], args[2], out, args[0].numel())


def _batched_matmul(args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Tensor) -> Work:
    rows, columns = args[0], args[1]
    moved = rows.numel() + columns.numel() + out.numel()
    return Work(macs=out.numel() * rows.shape[-1], moved=moved)


def _batch_norm(args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> Work | None:
    # In training it also takes the statistics of the batch; only inference is priced here.
    training = len(args) > 5 and args[5] is True
    return None if training else Work(flops=2 * args[0].numel())


def _frozen_batch_norm(args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> Work:
    return Work(flops=2 * args[0].numel())


def _elementwise(args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Tensor) -> Work:
    return Work(flops=out.numel())


def _binary(args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Tensor) -> Work:
    whole = [a for a in args[:2] if isinstance(a, Tensor) and a.numel() == out.numel()]
    # One operand comes from the operator before; a second map of full size must be read.
    second = out.numel() if len(whole) == 2 else 0
    scale = out.numel() if kwargs.get("alpha", 1) != 1 else 0
    return Work(flops=out.numel() + scale, moved=second)


def _sum(args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Tensor) -> Work:
    return Work(flops=args[0].numel() - out.numel())


def _mean(args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Tensor) -> Work:
    return Work(flops=args[0].numel(), moved=args[0].numel() + out.numel())


def _max_pool(args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> Work:
    pooled: Tensor = out[0] if isinstance(out, tuple) else out
    comparisons = pooled.numel() * (_window(args[1]) - 1)
    return Work(flops=comparisons, moved=args[0].numel() + pooled.numel())


def _avg_pool(args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Tensor) -> Work:
    return Work(flops=out.numel() * _window(args[1]), moved=args[0].numel() + out.numel())


def _softmax(args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Tensor) -> Work:
    length = out.shape[args[1]]
    return Work(flops=_softmax_flops(out.numel() // length, length))


def _softmax_flops(rows: int, length: int) -> int:
    """Maximum, subtraction, exponential, sum and division for ``rows`` rows."""
    return rows * (5 * length - 2)


def _window(kernel: int | list[int]) -> int:
    sides = [kernel] if isinstance(kernel, int) else list(kernel)
    return sides[0] ** 2 if len(sides) == 1 else prod(sides)


_UNARY = ("relu", "tanh", "sigmoid", "exp", "log", "neg", "abs", "sqrt", "clamp", "hardtanh")
_BINARY = ("add", "sub", "mul", "div", "maximum", "minimum")

FORMULAS: dict[str, Formula] = {
    "aten.convolution": _convolution,
    "aten.cudnn_convolution": lambda args, kwargs, out: _convolution(
        (args[0], args[1], None), kwargs, out
    ),
    "aten.mm": _matmul,
    "aten.addmm": _biased_matmul,
    "aten.bmm": _batched_matmul,
    "aten.native_batch_norm": _batch_norm,
    "aten.cudnn_batch_norm": _batch_norm,
    "aten._native_batch_norm_legit": _batch_norm,
    "aten._native_batch_norm_legit_no_training": _frozen_batch_norm,
    "aten._batch_norm_no_update": _frozen_batch_norm,
    "aten.sum": _sum,
    "aten.mean": _mean,
    "aten.max_pool2d_with_indices": _max_pool,
    "aten.avg_pool2d": _avg_pool,
    "aten._softmax": _softmax,
    **{f"aten.{name}": _elementwise for name in _UNARY},
    **{f"aten.{name}": _binary for name in _BINARY},
}
"""Formula by operator; an in-place variant (``relu_``) goes under the name without underscore."""

IGNORED = frozenset(
    f"aten.{name}"
    for name in (
        *("view", "_unsafe_view", "_reshape_alias", "reshape", "t", "transpose", "permute"),
        *("expand", "squeeze", "unsqueeze", "slice", "select", "split", "unbind", "unfold"),
        *("detach", "alias", "as_strided", "lift_fresh", "diagonal", "narrow"),
        *("clone", "copy", "_to_copy", "cat", "stack", "contiguous", "constant_pad_nd"),
        *("empty", "empty_like", "empty_strided", "new_empty", "zeros", "zeros_like", "ones"),
        *("ones_like", "full", "full_like", "arange", "scalar_tensor", "fill", "zero"),
    )
)
"""Operators that compute nothing: views, copies and fresh tensors."""


class _Tally(TorchDispatchMode):
    """Adds up the work of every operator that runs inside the ``with`` block."""

    def __init__(self) -> None:
        super().__init__()
        self._works: list[Work] = []
        self._uncounted: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = str(func.overloadpacket)
        known = name if name in FORMULAS or name in IGNORED else name.removesuffix("_")
        if known not in FORMULAS and known not in IGNORED:
            # Composite operators (linear, matmul under inference mode) are made of known ones.
            with self:
                output = func.decompose(*args, **kwargs)
            if output is not NotImplemented:
                return output
        output = func(*args, **kwargs)
        if known not in IGNORED:
            work = FORMULAS[known](args, kwargs, output) if known in FORMULAS else None
            if work is None:
                self._uncounted.append(name)
            else:
                self._works.append(work)
        return output

    def counts(self, params: int, element_bytes: int) -> Counts:
        macs, flops, moved, weights = (
            sum(column) for column in zip(Work(), *self._works, strict=True)
        )
        return Counts(
            macs=macs,
            flops=2 * macs + flops,
            params=params,
            bytes=(moved + weights) * element_bytes,
            weight_bytes=weights * element_bytes,
            uncounted=tuple(self._uncounted),
        )


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _on_meta(module: _Module) -> _Module:
    """A copy of the module on the meta device; the values are not copied, sharing is kept."""
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
    for buffer in module.buffers():
        memo[id(buffer)] = buffer.detach().to("meta")
    return deepcopy(module, memo)


def _to_meta(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("meta")
    if isinstance(value, tuple | list):
        return type(value)(_to_meta(item) for item in value)
    return value

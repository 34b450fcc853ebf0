"""Checkpoints: one safetensors file whose metadata holds a JSON header.

Nothing is ever unpickled. History of the header's schema:

1   model, arguments, dataset, normalisation, calibration, training.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, replace
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..harness.errors import ExitbenchError
from ..harness.files import replacing
from .network import ExitNetwork
from .registry import MODELS, ModelArguments, build

SCHEMA = 1
_KEY = "exitbench"


@dataclass(frozen=True)
class Checkpoint:
    """What the header says of a stored network.

    Attributes:
        model: architecture, a key of ``MODELS``.
        arguments: what it is built with.
        dataset: the specification of the data it was trained on, such as ``cifar10``.
        class_names: names of the classes in the order of the logits; may be empty.
        normalisation: per-channel ``mean`` and ``std`` of images scaled to 0..1.
        calibration: thresholds per criterion and exit, once they have been taken.
        training: the training record: mode, epochs, optimiser, seed, accuracies, ...
    """

    model: str
    arguments: ModelArguments
    dataset: str
    class_names: tuple[str, ...] = ()
    normalisation: dict[str, list[float]] = field(
        default_factory=lambda: {"mean": [0.0] * 3, "std": [1.0] * 3}
    )
    calibration: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(path: Path, network: ExitNetwork, checkpoint: Checkpoint) -> None:
    """Write the network and its header to ``path``, whole or not at all.

    Weights shared between heads are stored once; loading restores the sharing.
    """
    header = {"schema": SCHEMA, **asdict(checkpoint)}
    tensors = {name: value.contiguous() for name, value in _unique(network).items()}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={_KEY: json.dumps(header)})


def load_checkpoint(
    path: Path, *, model: str | None = None, exits: tuple[int, ...] | None = None
) -> tuple[ExitNetwork, Checkpoint]:
    """The network stored in ``path``, on the CPU and in eval mode, and its header.

    Args:
        path: a file written by ``save_checkpoint``.
        model: the architecture that is expected; any if None.
        exits: another choice of exit points than the file's; heads that the file does not hold
            are freshly initialised.

    Raises:
        ExitbenchError: the file is missing, truncated, no safetensors file, of another program,
            schema or model, or its tensors do not fit its header.
    """
    path = Path(path)
    header, tensors = _read(path)
    checkpoint = _checkpoint(path, header)
    if model is not None and checkpoint.model != model:
        raise ExitbenchError(
            f"{path} holds the model {checkpoint.model!r}, but {model!r} was asked for"
        )
    try:
        network = build(checkpoint.model, checkpoint.arguments)
    except ExitbenchError as error:
        raise ExitbenchError(f"{path}: {error}") from error
    _fill(path, network, tensors)
    if exits is not None:
        checkpoint = replace(checkpoint, arguments=replace(checkpoint.arguments, exits=exits))
        chosen = build(checkpoint.model, checkpoint.arguments)
        known = {k: v for k, v in network.state_dict().items() if k in chosen.state_dict()}
        chosen.load_state_dict(known, strict=False)
        network = chosen
    return network.eval(), checkpoint


def read_header(path: Path) -> Checkpoint:
    """What the header of ``path`` says, without loading the weights.

    Raises:
        ExitbenchError: as ``load_checkpoint``.
    """
    return _checkpoint(Path(path), _open(Path(path), tensors=False)[0])


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    return _open(path, tensors=True)


def _open(path: Path, tensors: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise ExitbenchError(
            f"no checkpoint at {path}. Train one with 'exitbench train', or correct the path."
        )
    try:
        with safe_open(path, framework="pt", device="cpu") as handle:
            metadata = handle.metadata() or {}
            names = list(handle.keys()) if tensors else []
            values = {name: handle.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise ExitbenchError(
            f"{path} is not a complete safetensors file ({error}). It may be truncated, or of "
            "another format such as .pt, which is never unpickled here; train or copy it again."
        ) from error
    except OSError as error:
        raise ExitbenchError(f"cannot read {path}: {error.strerror}") from error
    if _KEY not in metadata:
        raise ExitbenchError(
            f"{path} is a safetensors file without an exitbench header, so the model it belongs "
            "to is not known; checkpoints are written by 'exitbench train'"
        )
    try:
        header = json.loads(metadata[_KEY])
    except ValueError as error:
        raise ExitbenchError(f"{path}: the exitbench header is no JSON: {error}") from error
    if not isinstance(header, dict):
        raise ExitbenchError(f"{path}: the exitbench header is no JSON object; train it again")
    return header, values


def _checkpoint(path: Path, header: dict[str, Any]) -> Checkpoint:
    schema = header.get("schema")
    if schema != SCHEMA:
        raise ExitbenchError(
            f"{path}: header schema {schema!r}, this version of exitbench reads {SCHEMA}; "
            "use the version that wrote the file, or train again"
        )
    if faults := _faults(header):
        raise ExitbenchError(
            f"{path}: the exitbench header is wrong: {'; '.join(faults)}. The file is damaged or "
            "was changed by hand; train or copy it again."
        )
    arguments = dict(header["arguments"])
    if arguments.get("exits") is not None:
        arguments["exits"] = tuple(arguments["exits"])
    fields = {key: value for key, value in header.items() if key != "schema"}
    fields["arguments"] = ModelArguments(**arguments)
    fields["class_names"] = tuple(fields.get("class_names", ()))
    return Checkpoint(**fields)


def _faults(header: dict[str, Any]) -> list[str]:
    """What of a header of this schema is missing, unknown or of a wrong type."""
    known = {item.name for item in fields_of(Checkpoint)}
    faults = [f"unknown key {key!r}" for key in header if key not in {*known, "schema"}]
    model, arguments = header.get("model"), header.get("arguments")
    if not isinstance(model, str) or model not in MODELS:
        faults.append(f"unknown model {model!r}, known are {', '.join(sorted(MODELS))}")
    if not isinstance(header.get("dataset"), str):
        faults.append(f"dataset is {header.get('dataset')!r}, expected text")
    for key in ("calibration", "training"):
        if not isinstance(header.get(key, {}), dict):
            faults.append(f"{key} is {header[key]!r}, expected an object")
    names = header.get("class_names", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        faults.append(f"class_names is {names!r}, expected a list of texts")
    if "normalisation" in header and not _is_normalisation(header["normalisation"]):
        faults.append("normalisation must hold mean and std, three numbers each, std above 0")
    return faults + _argument_faults(arguments)


def _is_normalisation(value: Any) -> bool:
    if not isinstance(value, dict) or set(value) != {"mean", "std"}:
        return False
    for numbers in value.values():
        if not isinstance(numbers, list) or len(numbers) != 3:
            return False
        if not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
            return False
    return all(n > 0 for n in value["std"])


def _argument_faults(arguments: Any) -> list[str]:
    if not isinstance(arguments, dict):
        return [f"arguments is {arguments!r}, expected an object"]
    types: dict[str, tuple[type, ...]] = {
        "classes": (int,),
        "input_side": (int,),
        "width": (int, float),
        "exits": (list, type(None)),
        "share_heads": (bool,),
    }
    faults = [f"unknown argument {key!r}" for key in arguments if key not in types]
    for key, value in arguments.items():
        if key in types and type(value) not in types[key]:
            faults.append(f"argument {key} is {value!r}")
    exits = arguments.get("exits")
    if isinstance(exits, list) and any(type(number) is not int for number in exits):
        faults.append(f"argument exits is {exits!r}, expected whole numbers")
    return faults


def _unique(network: nn.Module) -> dict[str, Tensor]:
    """The state dict with every shared tensor under its first name only."""
    seen: set[int] = set()
    unique: dict[str, Tensor] = {}
    for name, value in network.state_dict(keep_vars=True).items():
        if id(value) not in seen:
            seen.add(id(value))
            unique[name] = value.detach()
    return unique


def _alike(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and first.dtype == second.dtype


def _fill(path: Path, network: ExitNetwork, tensors: dict[str, Tensor]) -> None:
    wanted = _unique(network)
    missing = [name for name in wanted if name not in tensors]
    extra = [name for name in tensors if name not in wanted]
    wrong = [n for n in wanted if n in tensors and not _alike(wanted[n], tensors[n])]
    for what, names in (
        ("lacks", missing),
        ("has unknown", extra),
        ("has misshapen or mistyped", wrong),
    ):
        if names:
            raise ExitbenchError(
                f"{path} {what} tensors for its own header, first {names[0]!r} of {len(names)}; "
                "the file is damaged or was changed by hand"
            )
    with torch.no_grad():
        for name, value in wanted.items():
            value.copy_(tensors[name])

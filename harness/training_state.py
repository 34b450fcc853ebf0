"""The file that an interrupted training goes on from: safetensors with a JSON header.

History of the header's schema:

1   settings, history, best_accuracy, best_epoch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .errors import ExitbenchError
from .files import replacing

SCHEMA = 1
_KEY = "exitbench-training"


@dataclass
class TrainingState:
    """What a training has reached after a whole number of epochs.

    The position of the schedule and the seed of the next epoch follow from the length of
    ``history``; weights and optimiser tensors live in the network and the optimiser.

    Attributes:
        history: one record per epoch done.
        best_accuracy: the best validation accuracy (0..1) so far; None if none was taken.
        best_epoch: the epoch it was reached in, counted from 1; 0 if none.
        best_weights: parameters and buffers of that epoch, on the CPU; empty if not kept.
    """

    history: list[dict[str, Any]] = field(default_factory=list)
    best_accuracy: float | None = None
    best_epoch: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)


def state_path(out: Path) -> Path:
    """Where the state of the training that writes ``out`` is kept until it is done."""
    return out.with_name(f"{out.name}.resume")


def network_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by name; shared ones once, under their first name."""
    named = chain(network.named_parameters(), network.named_buffers())
    return {name: value.detach() for name, value in named}


def copy_tensors(network: nn.Module) -> dict[str, Tensor]:
    """A copy of every parameter and buffer on the CPU, as ``network_tensors`` names them."""
    return {name: _stored(value) for name, value in network_tensors(network).items()}


def restore_tensors(network: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Set every parameter and buffer of ``network`` to a copy made by ``copy_tensors``."""
    for name, value in network_tensors(network).items():
        value.copy_(tensors[name])


def save_state(
    path: Path,
    settings: dict[str, Any],
    state: TrainingState,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write all that the training needs to go on to ``path``, whole or not at all."""
    tensors = {f"network.{name}": value for name, value in copy_tensors(network).items()}
    tensors |= {f"best.{name}": value for name, value in state.best_weights.items()}
    for index, parameter in enumerate(_parameters(optimizer)):
        for key, value in optimizer.state[parameter].items():
            if value is not None:
                tensors[f"optimizer.{index}.{key}"] = _stored(value)
    header = {
        "schema": SCHEMA,
        "settings": settings,
        "history": state.history,
        "best_accuracy": state.best_accuracy,
        "best_epoch": state.best_epoch,
    }
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={_KEY: json.dumps(header)})


def load_state(
    path: Path,
    settings: dict[str, Any],
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> TrainingState:
    """Fill ``network`` and ``optimizer`` from ``path`` and give the rest of the state.

    Raises:
        ExitbenchError: the file is damaged, or belongs to a training with other settings.
    """
    header, tensors = _read(path)
    _check_settings(path, header["settings"], settings)
    parts: dict[str, dict[str, Tensor]] = {"network": {}, "best": {}, "optimizer": {}}
    for name, value in tensors.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = value
    try:
        restore_tensors(network, parts["network"])
        _restore_optimizer(optimizer, parts["optimizer"])
        return TrainingState(
            history=header["history"],
            best_accuracy=header["best_accuracy"],
            best_epoch=header["best_epoch"],
            best_weights=parts["best"],
        )
    except (KeyError, RuntimeError) as error:
        raise _damaged(path, f"its tensors do not fit the network: {error}") from error


def differing(stored: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    """``key (stored value, now asked value)`` for every setting that is not the same in both."""
    return [
        f"{key} ({stored.get(key)!r}, now {asked.get(key)!r})"
        for key in sorted(stored.keys() | asked.keys())
        if stored.get(key) != asked.get(key)
    ]


def _stored(value: Tensor) -> Tensor:
    return value.detach().to("cpu", copy=True).contiguous()


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = _parameters(optimizer)
    for name, value in tensors.items():
        index, _, key = name.partition(".")
        parameter = parameters[int(index)]
        if value.shape == parameter.shape:
            # Optimisers read a moment and its parameter in step, so both need one memory layout.
            value = torch.empty_like(parameter).copy_(value)
        optimizer.state[parameter][key] = value.detach()


def _check_settings(path: Path, stored: dict[str, Any], asked: dict[str, Any]) -> None:
    differences = differing(stored, asked)
    if differences:
        raise ExitbenchError(
            f"{path} belongs to an interrupted training with other settings: "
            f"{'; '.join(differences)}. Go on with those settings, start afresh with --no-resume, "
            "or write to another --out."
        )


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as handle:
            metadata = handle.metadata() or {}
            tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118
        header = json.loads(metadata[_KEY])
        schema = header["schema"]
    except (SafetensorError, KeyError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    except OSError as error:
        raise ExitbenchError(f"cannot read {path}: {error.strerror}") from error
    if schema != SCHEMA:
        raise _damaged(path, f"schema {schema!r}, this version of exitbench reads {SCHEMA}")
    return header, tensors


def _damaged(path: Path, reason: str) -> ExitbenchError:
    return ExitbenchError(
        f"{path} cannot be gone on from ({reason}). Delete it, or start afresh with --no-resume."
    )

"""Networks with exits, their heads and their checkpoints. No policy lives here."""

from __future__ import annotations

from .checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from .network import ExitNetwork, ExitPoint
from .registry import MODELS, ModelArguments, build

__all__ = [
    "MODELS",
    "Checkpoint",
    "ExitNetwork",
    "ExitPoint",
    "ModelArguments",
    "build",
    "load_checkpoint",
    "save_checkpoint",
]

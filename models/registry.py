"""The architectures by name, and how to build one from plain values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..harness.errors import ExitbenchError
from .network import ExitNetwork
from .resnet import resnet34
from .vgg import vgg19

MODELS: dict[str, Callable[..., ExitNetwork]] = {"vgg19": vgg19, "resnet34": resnet34}


@dataclass(frozen=True)
class ModelArguments:
    """What an architecture is built with; the part of a checkpoint's header that shapes it.

    Attributes:
        classes: number of classes.
        input_side: height and width of the images in pixels.
        width: factor on the number of channels.
        exits: 1-based numbers of the chosen exit points; all if None, none if empty.
        share_heads: weights shared between heads.
    """

    classes: int = 10
    input_side: int = 32
    width: float = 1.0
    exits: tuple[int, ...] | None = None
    share_heads: bool = False


def build(model: str, arguments: ModelArguments) -> ExitNetwork:
    """A freshly initialised network.

    Raises:
        ExitbenchError: no such model, or an argument is out of range.
    """
    if model not in MODELS:
        raise ExitbenchError(f"model is {model!r}; known models are {', '.join(sorted(MODELS))}")
    return MODELS[model](
        classes=arguments.classes,
        input_side=arguments.input_side,
        width=arguments.width,
        exits=arguments.exits,
        share_heads=arguments.share_heads,
    )

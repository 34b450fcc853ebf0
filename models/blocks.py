"""The pieces that backbones are made of.

The vocabulary is small on purpose: a runtime that knows these blocks (and ``MaxPool2d``) can
prepare any backbone of this package. A state between blocks is a tensor, or inside a residual
block the tuple (main path, shortcut).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

State = Tensor | tuple[Tensor, ...]


def main_path(state: State) -> Tensor:
    """The tensor that a head looks at: the state itself, or its first item."""
    return state[0] if isinstance(state, tuple) else state


class ConvBlock(nn.Module):
    """Convolution, batch norm, ReLU: (N, C_in, H, W) to (N, C_out, H / stride, W / stride)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.conv(x)))


class ResidualStart(nn.Module):
    """First half of a basic residual block: x to (relu(bn1(conv1(x))), x).

    The shortcut is handed on untouched; its projection belongs to the second half, so that a
    sample that leaves between the halves has not paid for it.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.first = ConvBlock(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.first(x), x


class ResidualEnd(nn.Module):
    """Second half of a basic residual block: (main, shortcut) to relu(bn2(conv2(main)) + shortcut).

    Where the block changes the shape, the shortcut goes through a strided 1x1 convolution with
    batch norm (He et al., "Deep Residual Learning for Image Recognition", 2016, option B).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)
        self.project: nn.Sequential | None = None
        if stride != 1 or in_channels != out_channels:
            self.project = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, state: tuple[Tensor, Tensor]) -> Tensor:
        main, shortcut = state
        if self.project is not None:
            shortcut = self.project(shortcut)
        return torch.relu(self.bn(self.conv(main)) + shortcut)


class Classifier(nn.Module):
    """The backbone's own classifier: global average pooling, then one linear layer.

    (N, C, H, W) to logits (N, classes). On a 1x1 map the pooling does nothing.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.mean((2, 3)))

"""ResNet-34 for small images, with up to 32 exits.

Source: He et al., "Deep Residual Learning for Image Recognition", 2016; a 3x3 stem without pooling
takes the place of the 7x7 one, as usual for small images.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from .blocks import Classifier, ConvBlock, ResidualEnd, ResidualStart
from .network import ExitNetwork, ExitPoint, check_arguments, scaled

STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))  # (channels, blocks)


def resnet34(
    classes: int = 10,
    input_side: int = 32,
    width: float = 1.0,
    exits: Sequence[int] | None = None,
    share_heads: bool = False,
) -> ExitNetwork:
    """ResNet-34 with two exits in each of its 16 blocks: between the convolutions and at the end.

    A cut inside a block carries (main path, shortcut) as the state.

    Args:
        classes: number of classes, at least 2.
        input_side: height and width of the images in pixels, a multiple of 32.
        width: factor on the number of channels.
        exits: 1-based numbers of the exit points that get a head; all 32 if None.
        share_heads: share the heads' weights, see ``ExitNetwork``.

    Raises:
        ExitbenchError: an argument is out of range.
    """
    check_arguments(classes, input_side, width)
    channels, side = scaled(64, width), input_side
    units: dict[str, nn.Module] = {"stem": ConvBlock(3, channels)}
    points: list[ExitPoint] = []
    for stage, (full, blocks) in enumerate(STAGES, start=1):
        out = scaled(full, width)
        for block in range(1, blocks + 1):
            stride = 2 if block == 1 and stage > 1 else 1
            side //= stride
            for half, unit in (("mid", ResidualStart), ("end", ResidualEnd)):
                name = f"stage{stage}_block{block}_{half}"
                units[name] = unit(channels, out, stride)
                points.append(ExitPoint(name, stage, out, side, max(2, side // 2)))
            channels = out
    classifier = Classifier(channels, classes)
    return ExitNetwork(units, points, classifier, classes, input_side, exits, share_heads)

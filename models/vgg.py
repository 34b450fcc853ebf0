"""VGG-19 with batch norm for small images, with up to 20 exits.

Source: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image
Recognition", 2015, configuration E; the fully connected layers are replaced by one linear layer,
as usual for small images.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from .blocks import Classifier, ConvBlock
from .network import ExitNetwork, ExitPoint, check_arguments, scaled

STAGES = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))  # (channels, convolutions)


def vgg19(
    classes: int = 10,
    input_side: int = 32,
    width: float = 1.0,
    exits: Sequence[int] | None = None,
    share_heads: bool = False,
) -> ExitNetwork:
    """VGG-19 with exits after each of its 16 convolution blocks and its first four poolings.

    Args:
        classes: number of classes, at least 2.
        input_side: height and width of the images in pixels, a multiple of 32.
        width: factor on the number of channels.
        exits: 1-based numbers of the exit points that get a head; all 20 if None.
        share_heads: share the heads' weights, see ``ExitNetwork``.

    Raises:
        ExitbenchError: an argument is out of range.
    """
    check_arguments(classes, input_side, width)
    units: dict[str, nn.Module] = {}
    points: list[ExitPoint] = []
    channels, side = 3, input_side
    for stage, (full, convolutions) in enumerate(STAGES, start=1):
        out = scaled(full, width)
        window = max(2, side // 2)
        for number in range(1, convolutions + 1):
            name = f"conv{stage}_{number}"
            units[name] = ConvBlock(channels, out)
            points.append(ExitPoint(name, stage, out, side, window))
            channels = out
        side //= 2
        units[f"pool{stage}"] = nn.MaxPool2d(2)
        if stage < len(STAGES):
            points.append(ExitPoint(f"pool{stage}", stage, out, side, window))
    classifier = Classifier(channels, classes)
    return ExitNetwork(units, points, classifier, classes, input_side, exits, share_heads)

"""The range of every activation of a network, seen by running it in fp32 on calibration images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...models.network import ExitNetwork
from ..errors import ExitbenchError
from ..quantization import DEFAULT_RANGES, RANGES, Affine, Observer, min_max, sample_images
from .eager import EagerKit
from .plan import INPUT, Binary, Convolution, Unary, make_plan, run_plan

BATCH = 64


def calibrate(
    network: ExitNetwork, images: Tensor, ranges: str = DEFAULT_RANGES
) -> dict[str, Affine]:
    """The grid of every site of the network, from running it in fp32 on ``images``.

    Args:
        network: runs with its batch norm's running statistics, whatever mode it is in.
        images: (N, 3, side, side), normalised; at most CALIBRATION_IMAGES, evenly taken, are used.
        ranges: a name in RANGES. The input always keeps its whole range: pixels have no outliers.

    Raises:
        ExitbenchError: no images, images that are not finite, or no such name.
    """
    if ranges not in RANGES:
        raise ExitbenchError(f"ranges is {ranges!r}; known are {', '.join(RANGES)}")
    images = sample_images(images)
    seen: dict[str, Observer] = {}
    passes: tuple[Callable[[Observer, Tensor], None], ...] = (Observer.widen, Observer.count)
    for look in passes if ranges != "min-max" else passes[:1]:
        plan = make_plan(network, _ObservingKit(seen, look))
        for batch in images.split(BATCH):
            run_plan(plan, batch)
    return {
        site: min_max(found) if site == INPUT else RANGES[ranges](found)
        for site, found in seen.items()
    }


class _ObservingKit:
    """The fp32 operators, each of whose outputs is shown to its site's observer."""

    def __init__(self, seen: dict[str, Observer], look: Callable[[Observer, Tensor], None]) -> None:
        self._seen = seen
        self._look = look
        self._kit = EagerKit(torch.float32, torch.device("cpu"))
        self.max_pool = self._kit.max_pool
        self.features = self._kit.features

    def enter(self) -> Unary:
        """Images as they are."""
        return self._show(self._kit.enter(), INPUT)

    def conv(self, conv: Convolution, site: str, source: str, relu: bool) -> Unary:
        """conv(x), or relu(conv(x))."""
        return self._show(self._kit.conv(conv, site, source, relu), site)

    def conv_add(self, conv: Convolution, site: str, source: str, shortcut: str) -> Binary:
        """relu(conv(x) + y)."""
        return self._show(self._kit.conv_add(conv, site, source, shortcut), site)

    def _show(self, run: Callable[..., Tensor], site: str) -> Callable[..., Tensor]:
        observer = self._seen.setdefault(site, Observer())

        def shown(*inputs: Tensor | bool) -> Tensor:
            y = run(*inputs)
            self._look(observer, y)
            return y

        return shown

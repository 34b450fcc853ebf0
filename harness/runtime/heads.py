"""Exit heads and the classifier folded for inference: the same logits in fewer passes.

(tanh(a y + c) + 1) / 2 = sigmoid(2 a y + 2 c), so 2 a and 2 c move into the 1x1 convolution, which
on a channels-last map is a matrix product. Dividing by the sum over the codewords and averaging
over a window are one more product: of a matrix that holds 1 / sum where a place lies in the window,
and the similarities. What follows the histogram h, 64 h - 1, moves into the next linear layer.

At batch 1 a head is small enough for the calls around its arithmetic to count. So there are no
modules here, and as few operators as the formula allows, all of them torch's public ones.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from ...models.blocks import Classifier
from ...models.heads import CODEWORDS, ExitHead
from ..quantization import Affine

TINY = 1.2e-38  # as in the plain head: keeps 0 / 0 out

CHUNK_ROWS = 4096
"""Places of the map that go through a head at a time on the CPU. Their similarities, 1 MiB, stay in
the cache between one operator and the next; those of a batch of 64 large maps would not."""


class FoldedHead:
    """Logits (N, classes) from features (N, C, H, W); equal to the plain head but for rounding.

    The features may be of any floating-point type, or uint8 on a known grid. Reading them costs
    nothing beside the product where they are float32 and channels_last.

    Args:
        head: the plain head; its weights are copied.
        side: height and width of the map at its exit.
        device: where it will run.
        grid: what the uint8 features stand for, None if they are real numbers already.
    """

    def __init__(
        self,
        head: ExitHead,
        side: int,
        device: torch.device | str = "cpu",
        grid: Affine | None = None,
    ) -> None:
        bag = head.bag
        self.places = side * side
        self.windows = (side // bag.window) ** 2
        bias = bag.codebook.bias
        assert bias is not None
        weight, bias = bag.a * bag.codebook.weight.flatten(1).double(), bag.a * bias + bag.c
        if grid is not None:
            weight = grid.scale * weight
            bias = bias - grid.zero_point * weight.sum(1)
        self.weight, self.bias = _kept(2 * weight.t(), device), _kept(2 * bias, device)
        linear = head.classify if head.reduce is None else head.reduce
        # The plain head flattens (codeword, row, column); here windows come first.
        ordered = linear.weight.double().reshape(-1, CODEWORDS, self.windows).transpose(1, 2)
        share = CODEWORDS / bag.window**2
        self.first = _kept(share * ordered.flatten(1).t(), device)
        self.first_bias = _kept(linear.bias - linear.weight.double().sum(1), device)
        self.last: tuple[Tensor, Tensor] | None = None
        if head.reduce is not None:
            last = head.classify
            self.last = _kept(last.weight.t(), device), _kept(last.bias, device)
        self._inside, self._ones, self._tiny = _constants(side, bag.window, torch.device(device))
        # On a GPU nothing is gained by parts.
        rows = CHUNK_ROWS if self.weight.device.type == "cpu" else 1 << 62
        self._step = max(1, rows // self.places)
        self._alone = self._for_one()

    def __call__(self, x: Tensor) -> Tensor:
        """Float32 logits (N, classes) from features (N, C, side, side)."""
        if len(x) == 1:
            return self._alone(x)
        if len(x) == 0:  # which addmv does not know
            bias = self.first_bias if self.last is None else self.last[1]
            return bias.new_empty(0, len(bias))
        if len(x) <= self._step:
            histogram = self._histogram(x)
        else:
            histogram = torch.cat([self._histogram(part) for part in x.split(self._step)])
        logits = torch.addmm(self.first_bias, histogram, self.first)
        if self.last is not None:
            weight, bias = self.last
            logits = torch.addmm(bias, logits.relu_(), weight)
        return logits

    def _for_one(self) -> Callable[[Tensor], Tensor]:
        """The same for a batch of one, as a function that has all it needs at hand.

        Between two segments a head is found in no cache, and what Python looks up adds to it. The
        plain product has less to set up than the batched one.
        """
        weight, bias, first, first_bias = self.weight, self.bias, self.first, self.first_bias
        ones, tiny, inside, real = self._ones, self._tiny, self._inside, torch.float32
        addmm, addmv, mm, div = torch.addmm, torch.addmv, torch.mm, torch.div
        shape = (len(weight), self.places)

        def similar(x: Tensor) -> Tensor:
            rows = x.view(shape).t()  # no copy, whether channels come first or last
            return addmm(bias, rows if rows.dtype is real else rows.to(real), weight).sigmoid_()

        def one_window(x: Tensor) -> Tensor:
            similarity = similar(x)
            share = addmv(tiny, similarity, ones).reciprocal_()
            return mm(share[None], similarity)

        def windows(x: Tensor) -> Tensor:
            similarity = similar(x)
            return mm(div(inside, addmv(tiny, similarity, ones)), similarity).view(1, -1)

        histogram = one_window if self.windows == 1 else windows
        if self.last is None:
            return lambda x: addmm(first_bias, histogram(x), first)
        last, last_bias = self.last
        return lambda x: addmm(last_bias, addmm(first_bias, histogram(x), first).relu_(), last)

    def _histogram(self, x: Tensor) -> Tensor:
        """Sums over each window of similarity / sum of similarities: (N, windows * codewords)."""
        count = len(x)
        rows = x.permute(0, 2, 3, 1).reshape(-1, len(self.weight)).float()
        similarity = torch.addmm(self.bias, rows, self.weight).sigmoid_()
        total = torch.addmv(self._tiny, similarity, self._ones).view(count, 1, self.places)
        share = total.reciprocal_() if self.windows == 1 else self._inside / total
        similarity = similarity.view(count, self.places, CODEWORDS)
        return torch.bmm(share, similarity).view(count, -1)


class FoldedClassifier:
    """Logits (N, classes) from features (N, C, H, W); equal to the plain one but for rounding.

    The average over the map is a sum along rows of a channels-last map, which is how maps lie; the
    plain operator goes through them place by place.

    Args:
        classifier: the plain classifier; its weights are copied.
        device: where it will run.
    """

    def __init__(self, classifier: Classifier, device: torch.device | str = "cpu") -> None:
        linear = classifier.linear
        self.weight, self.bias = _kept(linear.weight.t(), device), _kept(linear.bias, device)

    def __call__(self, x: Tensor) -> Tensor:
        """Float32 logits (N, classes) from float32 features (N, C, H, W)."""
        count, channels, height, width = x.shape
        rows = x.permute(0, 2, 3, 1).reshape(count, height * width, channels)
        features = rows[:, 0] if height * width == 1 else rows.mean(1)
        return torch.addmm(self.bias, features, self.weight)


@functools.cache
def _constants(side: int, window: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """What heads share, and so find in the caches: 1 where a place (column) lies in a window (row)
    of a map, else 0, shape (windows, places); a vector of ones; TINY.
    """
    of_side = torch.arange(side) // window
    number = of_side[:, None] * (side // window) + of_side
    windows = torch.arange((side // window) ** 2)
    inside = (windows[:, None] == number.flatten()).float()
    return inside.to(device), torch.ones(CODEWORDS, device=device), torch.tensor([TINY]).to(device)


def _kept(values: Tensor, device: torch.device | str) -> Tensor:
    """A float32 copy, contiguous, that needs no gradient."""
    return values.detach().to(device, torch.float32, copy=True).contiguous()

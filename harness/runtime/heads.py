"""Exit heads folded for inference: the same logits from fewer passes over the map.

(tanh(a y + c) + 1) / 2 = sigmoid(2 a y + 2 c), so 2 a and 2 c move into the 1x1 convolution, which
on a channels-last map is a matrix product. Dividing by the sum over the codewords and averaging
over a window are one more product: the window's rows, weighted by 1 / sum and 1 / window area.
What follows the histogram h, 64 h - 1, moves into the next linear layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...models.heads import CODEWORDS, ExitHead

TINY = 1.2e-38  # as in the plain head: keeps 0 / 0 out


class FoldedHead(nn.Module):
    """Logits (N, classes) from features (N, C, H, W); equal to the plain head but for rounding.

    Args:
        head: the plain head; its weights are copied.
        side: height and width of the map at its exit.
    """

    def __init__(self, head: ExitHead, side: int) -> None:
        super().__init__()
        bag = head.bag
        self.window = bag.window
        self.grid = side // bag.window
        bias = bag.codebook.bias
        assert bias is not None
        self.weight = nn.Parameter((2 * bag.a * bag.codebook.weight.flatten(1)).detach().clone())
        self.bias = nn.Parameter((2 * (bag.a * bias + bag.c)).detach().clone())
        self.first = self._after_histogram(head.classify if head.reduce is None else head.reduce)
        self.last: nn.Linear | None = None
        if head.reduce is not None:
            self.last = _copy(head.classify, head.classify.weight, head.classify.bias)

    def _after_histogram(self, linear: nn.Linear) -> nn.Linear:
        # The plain head flattens (codeword, row, column); here windows come first.
        places = self.grid * self.grid
        weight = linear.weight.reshape(len(linear.weight), CODEWORDS, places)
        ordered = weight.transpose(1, 2).reshape(len(weight), -1)
        area = self.window * self.window
        return _copy(linear, CODEWORDS / area * ordered, linear.bias - linear.weight.sum(1))

    def forward(self, x: Tensor) -> Tensor:
        count, grid, window = len(x), self.grid, self.window
        similarity = torch.sigmoid(functional.linear(x.permute(0, 2, 3, 1), self.weight, self.bias))
        if grid > 1:
            similarity = similarity.reshape(count, grid, window, grid, window, CODEWORDS)
            similarity = similarity.transpose(2, 3)
        rows = similarity.reshape(count, grid * grid, window * window, CODEWORDS)
        share = 1 / (rows.sum(3) + TINY)
        histogram = torch.matmul(share[:, :, None], rows).reshape(count, -1)
        features: Tensor = self.first(histogram)
        if self.last is not None:
            features = self.last(torch.relu(features))
        return features


def _copy(like: nn.Linear, weight: Tensor, bias: Tensor) -> nn.Linear:
    linear = nn.Linear(like.in_features, like.out_features)
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)
    return linear

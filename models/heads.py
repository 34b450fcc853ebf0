"""The small classifiers at the exit points: bag-of-features pooling, then linear layers.

Source: Passalis, Raitoharju, Tefas, Gabbouj, "Efficient adaptive inference for deep convolutional
neural networks using hierarchical early exits", Pattern Recognition 105, 2020.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

CODEWORDS = 64
HIDDEN = 64


class BagOfFeatures(nn.Module):
    """Histogram of soft assignments to learned codewords, averaged over windows.

    (N, C, H, W) to (N, codewords, H // window, W // window). With y the 1x1 convolution of the
    input, the similarity is (tanh(a y + c) + 1) / 2, normalised to sum to one over the codewords.
    """

    def __init__(self, channels: int, window: int, codewords: int = CODEWORDS) -> None:
        super().__init__()
        self.window = window
        self.codebook = nn.Conv2d(channels, codewords, 1)
        self.a = nn.Parameter(torch.ones(1))
        self.c = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        similarity = (torch.tanh(self.a * self.codebook(x) + self.c) + 1) / 2
        # The smallest normal float32 keeps 0 / 0 out; it never changes a sum that is not zero.
        membership = similarity / (similarity.sum(1, keepdim=True) + 1.2e-38)
        return functional.avg_pool2d(membership, self.window)


class ExitHead(nn.Module):
    """Logits (N, classes) from the features (N, C, side, side) at one exit point.

    A 2x2 grid of windows gives 4 x 64 features, reduced to 64 before the last linear layer; a
    single window gives 64 features that go straight to it. The linear layers see how far the
    histogram is from uniform, 64 h - 1. That is the same family of functions (the next layer's
    weights and bias absorb it), but h itself stays near 1/64, which makes heads learn many times
    more slowly.
    """

    def __init__(
        self, bag: BagOfFeatures, reduce: nn.Linear | None, classify: nn.Linear
    ) -> None:
        super().__init__()
        self.bag = bag
        self.reduce = reduce
        self.classify = classify

    def forward(self, x: Tensor) -> Tensor:
        features = CODEWORDS * self.bag(x).flatten(1) - 1
        if self.reduce is not None:
            features = torch.relu(self.reduce(features))
        return self.classify(features)


def make_head(channels: int, side: int, window: int, classes: int) -> ExitHead:
    """A head for a map of ``side`` x ``side`` pooled in windows of ``window``."""
    grid = side // window
    reduce = nn.Linear(CODEWORDS * grid * grid, HIDDEN) if grid > 1 else None
    return ExitHead(BagOfFeatures(channels, window), reduce, nn.Linear(HIDDEN, classes))

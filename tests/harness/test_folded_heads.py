"""Folded heads give the logits of the plain ones."""

from __future__ import annotations

import pytest
import torch
from exitbench.harness.runtime.heads import FoldedHead
from exitbench.models.heads import make_head


@pytest.mark.parametrize(
    ("channels", "side", "window"), [(16, 32, 16), (8, 16, 16), (24, 8, 4), (64, 2, 2), (8, 6, 3)]
)
@pytest.mark.parametrize("channels_last", [True, False])
def test_a_folded_head_equals_the_plain_one(channels, side, window, channels_last):
    torch.manual_seed(0)
    head = make_head(channels, side, window, classes=10).eval()
    with torch.no_grad():
        head.bag.a.fill_(1.7)
        head.bag.c.fill_(-0.3)
        features = 3 * torch.randn(5, channels, side, side)
        if channels_last:
            features = features.contiguous(memory_format=torch.channels_last)
        plain, folded = head(features), FoldedHead(head, side)(features)
    # The bound on folding; float32 rounding of logits near 1 stays well below it.
    torch.testing.assert_close(folded, plain, atol=1e-5, rtol=1e-5)


def test_a_dead_map_gives_finite_logits():
    """Every similarity 0: the histogram is 0 / 0 but for the smallest normal number."""
    head = make_head(4, 4, 2, classes=3).eval()
    with torch.no_grad():
        head.bag.codebook.weight.zero_()
        head.bag.codebook.bias.fill_(-1e4)
        logits = FoldedHead(head, 4)(torch.zeros(1, 4, 4, 4))
    assert torch.isfinite(logits).all()

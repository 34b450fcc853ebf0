"""Heads: their grids and layers by the design, and what they compute, worked by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from exitbench.models import MODELS, ExitNetwork
from exitbench.models.heads import BagOfFeatures, make_head
from torch import nn

NetworkFactory = Callable[..., ExitNetwork]


def grid(network: ExitNetwork, number: int) -> int:
    """Windows per side of the head's pooling at exit ``number``."""
    point = network.exit_points[number - 1]
    return point.side // point.window


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_vgg19_heads_pool_a_2x2_grid_in_a_stage_and_1x1_after_its_pooling_and_in_the_last_stage(
    tiny_vgg: ExitNetwork,
) -> None:
    expected = [1 if p.name.startswith(("pool", "conv5")) else 2 for p in tiny_vgg.exit_points]

    assert [grid(tiny_vgg, number) for number in range(1, 21)] == expected


def test_resnet34_heads_pool_a_2x2_grid_everywhere(make_network: NetworkFactory) -> None:
    network = make_network("resnet34")

    assert {grid(network, number) for number in range(1, 33)} == {2}


def test_a_2x2_grid_has_a_layer_from_256_to_64_and_a_single_window_none(
    make_network: NetworkFactory,
) -> None:
    network = make_network("vgg19", classes=7, exits=(1, 3))
    inside, after_pooling = network.head(1), network.head(2)

    assert inside.reduce is not None
    assert (inside.reduce.in_features, inside.reduce.out_features) == (256, 64)
    assert (inside.classify.in_features, inside.classify.out_features) == (64, 7)
    assert after_pooling.reduce is None
    assert (after_pooling.classify.in_features, after_pooling.classify.out_features) == (64, 7)
    assert inside.bag.codebook.out_channels == after_pooling.bag.codebook.out_channels == 64


@pytest.mark.parametrize("model", sorted(MODELS))
@pytest.mark.parametrize("side", [32, 64, 96])
def test_every_pooling_window_divides_its_map_and_sees_all_of_it(
    make_network: NetworkFactory, model: str, side: int
) -> None:
    network = make_network(model, input_side=side)

    assert all(point.side % point.window == 0 for point in network.exit_points)


def test_bag_of_features_equals_a_hand_worked_example() -> None:
    """Two codewords y1 = x and y2 = -x, a = 2, c = 0.5, on one 2x2 window.

    similarity_k = (tanh(2 y_k + 0.5) + 1) / 2 = sigmoid(4 y_k + 1), so with s(t) = sigmoid(t) the
    membership of codeword 1 at x is s(4x + 1) / (s(4x + 1) + s(-4x + 1)); at x = 0 it is 1/2.
    With e^4x = 3, 1 and 1/3, and e = exp(1): s(4x + 1) = 3e / (1 + 3e) and so on.
    """
    e = math.e
    high, middle, low = 3 * e / (1 + 3 * e), e / (1 + e), (e / 3) / (1 + e / 3)
    x = math.log(3) / 4
    bag = BagOfFeatures(channels=1, window=2, codewords=2)
    with torch.no_grad():
        bag.codebook.weight.copy_(torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1))
        bag.codebook.bias.zero_()  # type: ignore[union-attr]
        bag.a.fill_(2.0)
        bag.c.fill_(0.5)
        pooled = bag(torch.tensor([[[[x, 0.0], [-x, x]]]]))

    first = [high / (high + low), middle / (2 * middle), low / (low + high), high / (high + low)]
    expected = torch.tensor([sum(first) / 4, 1 - sum(first) / 4])
    # A dozen float32 operations on values near 1, each off by at most 6e-8.
    torch.testing.assert_close(pooled.flatten(), expected, atol=1e-6, rtol=0)


def test_bag_of_features_sums_to_one_in_every_window() -> None:
    bag = BagOfFeatures(channels=4, window=3)
    with torch.no_grad():
        pooled = bag(torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0)))

    assert pooled.shape == (2, 64, 2, 2)
    # 64 float32 terms that sum to 1: rounding stays below 64 x 6e-8.
    torch.testing.assert_close(pooled.sum(1), torch.ones(2, 2, 2), atol=4e-6, rtol=0)


def test_bag_of_features_stays_finite_where_no_codeword_is_similar() -> None:
    bag = BagOfFeatures(channels=1, window=2)
    with torch.no_grad():
        bag.codebook.weight.fill_(1.0)
        pooled = bag(torch.full((1, 1, 2, 2), -100.0))

    assert torch.isfinite(pooled).all()


def test_a_head_puts_its_grid_through_a_hidden_layer_with_relu() -> None:
    """A map that is constant in each quadrant: the pooled features are those of the quadrants."""
    torch.manual_seed(0)
    head = make_head(channels=3, side=4, window=2, classes=5)
    quadrants = torch.randn(2, 3, 2, 2)
    with torch.no_grad():
        logits = head(quadrants.repeat_interleave(2, 2).repeat_interleave(2, 3))
        y = torch.einsum("kc,ncij->nkij", head.bag.codebook.weight[:, :, 0, 0], quadrants)
        y = y + head.bag.codebook.bias.reshape(1, -1, 1, 1)  # type: ignore[union-attr]
        similarity = (torch.tanh(y) + 1) / 2
        histogram = similarity / similarity.sum(1, keepdim=True)
        features = (64 * histogram - 1).reshape(2, 256)
        assert head.reduce is not None
        hidden = (features @ head.reduce.weight.T + head.reduce.bias).clamp(min=0)
        expected = hidden @ head.classify.weight.T + head.classify.bias

    # The same float32 sums of at most 256 terms of size 0.02 in another order.
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_a_head_has_the_parameters_counted_by_hand(make_network: NetworkFactory) -> None:
    head = make_network("vgg19", exits=(1,), classes=10).head(1)

    # Codebook 8 x 64 + 64, a and c, 256 x 64 + 64, 64 x 10 + 10.
    assert parameters(head) == 512 + 64 + 2 + 16384 + 64 + 640 + 10

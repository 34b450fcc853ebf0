"""Folded heads give the logits of the plain ones."""

from __future__ import annotations

import pytest
import torch
from exitbench.harness.quantization import Affine, dequantise
from exitbench.harness.runtime.heads import CHUNK_ROWS, FoldedClassifier, FoldedHead
from exitbench.harness.runtime.registry import RUNTIMES, availability, prepare
from exitbench.models.blocks import Classifier, main_path
from exitbench.models.heads import make_head
from torch import Tensor

# The bound on folding; float32 rounding of logits near 1 stays well below it.
NEAR = {"atol": 1e-5, "rtol": 1e-5}
SHAPES = [(16, 32, 16), (8, 16, 16), (24, 8, 4), (64, 2, 2), (8, 6, 3), (8, 9, 3)]


def a_head(channels: int, side: int, window: int) -> torch.nn.Module:
    torch.manual_seed(0)
    head = make_head(channels, side, window, classes=10).eval()
    with torch.no_grad():
        head.bag.a.fill_(1.7)
        head.bag.c.fill_(-0.3)
    return head


@pytest.mark.parametrize(("channels", "side", "window"), SHAPES)
@pytest.mark.parametrize("channels_last", [True, False])
# Alone, together, and more than go through at a time (4096 places are 4 maps of side 32).
@pytest.mark.parametrize("count", [0, 1, 2, 5, 70])
def test_a_folded_head_equals_the_plain_one(channels, side, window, channels_last, count):
    head = a_head(channels, side, window)
    features = 3 * torch.randn(count, channels, side, side)
    if channels_last:
        features = features.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        plain, folded = head(features), FoldedHead(head, side)(features)
    assert folded.dtype == torch.float32
    torch.testing.assert_close(folded, plain, **NEAR)


@pytest.mark.parametrize(("channels", "side", "window"), SHAPES)
@pytest.mark.parametrize("count", [1, 6])
@pytest.mark.parametrize("grid", [Affine(0.02, 0), Affine(0.013, 131)])
def test_a_grid_of_uint8_is_folded_too(channels, side, window, count, grid):
    head = a_head(channels, side, window)
    whole = torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8)
    whole = whole.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        plain = head(dequantise(whole, grid))
        torch.testing.assert_close(FoldedHead(head, side, grid=grid)(whole), plain, **NEAR)


@pytest.mark.parametrize("side", [1, 2, 3])
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_a_folded_classifier_equals_the_plain_one(side, channels_last, count):
    torch.manual_seed(1)
    classifier, features = Classifier(24, 10).eval(), torch.randn(count, 24, side, side)
    if channels_last:
        features = features.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        torch.testing.assert_close(
            FoldedClassifier(classifier)(features), classifier(features), **NEAR
        )


@pytest.mark.parametrize("count", [1, 3])
def test_features_in_bf16_are_read_as_they_are(count):
    head = a_head(16, 8, 4)
    features = torch.randn(count, 16, 8, 8).bfloat16()
    with torch.no_grad():
        torch.testing.assert_close(FoldedHead(head, 8)(features), head(features.float()), **NEAR)


def test_a_row_of_a_batch_gets_what_it_gets_alone_across_the_parts_a_batch_is_cut_into():
    head = a_head(16, 32, 16)
    folded = FoldedHead(head, 32)
    count = 2 * CHUNK_ROWS // 32**2 + 1
    features = torch.randn(count, 16, 32, 32).contiguous(memory_format=torch.channels_last)
    alone = torch.cat([folded(features[row : row + 1]) for row in range(count)])
    torch.testing.assert_close(folded(features), alone, **NEAR)


def test_features_are_left_as_they_were():
    folded = FoldedHead(a_head(16, 8, 4), 8)
    for count in (1, 3):
        features = torch.randn(count, 16, 8, 8).contiguous(memory_format=torch.channels_last)
        before = features.clone()
        folded(features)
        assert torch.equal(features, before)


def test_a_dead_map_gives_finite_logits():
    """Every similarity 0: the histogram is 0 / 0 but for the smallest normal number."""
    head = make_head(4, 4, 2, classes=3).eval()
    with torch.no_grad():
        head.bag.codebook.weight.zero_()
        head.bag.codebook.bias.fill_(-1e4)
        for count in (1, 2):
            assert torch.isfinite(FoldedHead(head, 4)(torch.zeros(count, 4, 4, 4))).all()


@pytest.mark.parametrize("model", ["vgg19", "resnet34"])
@pytest.mark.parametrize("share_heads", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_each_runtime_of_the_cpu_gives_the_plain_heads_logits_on_its_own_states(
    make_network, model, share_heads, precision
):
    if (reason := availability(precision)) is not None:
        pytest.skip(reason)
    network = make_network(
        model, width=0.125, exits=None, classes=5, share_heads=share_heads
    ).eval()
    images = torch.randn(5, *network.input_shape)
    served = [name for name in ("eager", "onednn", "onednn-int8") if name in RUNTIMES]
    ran = 0
    for name in served:
        if precision not in RUNTIMES[name].precisions:
            continue
        prepared = prepare(network, precision, calibration_images=images, runtime=name)
        for count in (1, 5):
            check_heads(network, prepared, images[:count])
        ran += 1
    assert ran


@torch.inference_mode()
def check_heads(network, prepared, images: Tensor) -> None:
    state = images
    for number in range(1, network.num_exits + 1):
        state = prepared.run_segment(number, state)
        features = prepared.plan.features[number - 1](main_path(state))
        plain = network.head(number)(features)
        torch.testing.assert_close(prepared.run_head(number, state), plain, **NEAR)

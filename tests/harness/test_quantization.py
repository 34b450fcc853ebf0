"""The arithmetic of 8 bits: grids, rounding, weights, ranges."""

from __future__ import annotations

import pytest
import torch
from exitbench.harness.errors import ExitbenchError
from exitbench.harness.quantization import (
    RANGES,
    Affine,
    Observer,
    affine,
    dequantise,
    min_max,
    percentile,
    quantise,
    quantise_weight,
    sample_images,
)
from exitbench.harness.runtime.calibrate import calibrate
from exitbench.models.vgg import vgg19


def seen(*tensors: torch.Tensor) -> Observer:
    observer = Observer()
    for look in (Observer.widen, Observer.count):
        for tensor in tensors:
            look(observer, tensor)
    return observer


def test_a_grid_after_relu_has_zero_point_zero_and_reaches_the_largest_value() -> None:
    assert affine(0.0, 51.0) == Affine(0.2, 0)
    assert affine(0.5, 51.0) == Affine(0.2, 0), "zero is always on the grid"


def test_a_signed_grid_holds_zero_exactly() -> None:
    grid = affine(-1.0, 2.0)
    zero = dequantise(quantise(torch.zeros(1), grid), grid)
    assert grid == Affine(3 / 255, 85)
    assert zero.item() == 0.0


def test_a_tensor_that_is_always_zero_stays_zero() -> None:
    grid = affine(0.0, 0.0)
    assert dequantise(quantise(torch.zeros(3), grid), grid).tolist() == [0.0, 0.0, 0.0]


def test_values_are_rounded_to_nearest_and_clamped() -> None:
    grid = Affine(0.5, 10)
    x = torch.tensor([0.0, 0.24, 0.26, -5.0, -6.0, 1000.0])
    assert quantise(x, grid).tolist() == [10, 10, 11, 0, 0, 255]


def test_what_is_quantised_comes_back_within_half_a_step() -> None:
    x = torch.linspace(-3, 5, 1001)
    grid = affine(-3, 5)
    error = (dequantise(quantise(x, grid), grid) - x).abs().max().item()
    # One step more than half: the zero point is rounded too, which may cost half a step at the end.
    assert error <= 1.0001 * grid.scale


def test_weights_are_symmetric_with_one_scale_per_output_channel() -> None:
    weight = torch.tensor([1.0, -2.0, 0.01, 0.0]).reshape(2, 2, 1, 1)
    integers, scales = quantise_weight(weight)
    assert integers.flatten().tolist() == [64, -127, 127, 0]
    torch.testing.assert_close(scales, torch.tensor([2 / 127, 0.01 / 127]))


def test_a_channel_of_zero_weights_has_a_usable_scale() -> None:
    integers, scales = quantise_weight(torch.zeros(1, 2, 3, 3))
    assert integers.abs().sum().item() == 0
    assert scales.tolist() == [1.0]


def test_min_max_takes_all_that_was_seen_in_any_batch() -> None:
    assert min_max(seen(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 51.0]))) == Affine(0.2, 0)


def test_percentile_leaves_a_lone_outlier_out_and_keeps_the_rest() -> None:
    x = torch.linspace(0, 1, 100_000)
    grid = percentile(seen(x, torch.tensor([100.0])))
    # 100 / 4096 is the width of a bin, the finest that the observer tells apart.
    assert 1.0 <= grid.scale * 255 <= 1.0 + 100 / 4096 + 1e-6
    assert grid.zero_point == 0


def test_percentile_of_a_constant_is_its_range() -> None:
    assert percentile(seen(torch.full((10,), 2.0))).scale == pytest.approx(2 / 255)


@pytest.mark.parametrize("ranges", sorted(RANGES))
def test_calibration_gives_every_site_a_grid(ranges: str) -> None:
    torch.manual_seed(0)
    network = vgg19(width=0.125, exits=[1])
    grids = calibrate(network, torch.randn(8, 3, 32, 32), ranges)
    convolutions = {name for name in network.backbone if name.startswith("conv")}
    assert set(grids) == {"input"} | convolutions
    assert all(grids[name].zero_point == 0 for name in convolutions)
    assert grids["input"].zero_point > 0


def test_calibration_changes_nothing_in_the_network() -> None:
    network = vgg19(width=0.125).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    calibrate(network, torch.randn(4, 3, 32, 32))
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert network.training


def test_calibration_images_are_taken_evenly() -> None:
    images = torch.arange(11.0).reshape(11, 1, 1, 1).expand(11, 3, 32, 32)
    assert sample_images(images, 3)[:, 0, 0, 0].tolist() == [0.0, 5.0, 10.0]


@pytest.mark.parametrize(
    ("images", "ranges", "message"),
    [
        (torch.zeros(0, 3, 32, 32), "min-max", "at least one image"),
        (torch.zeros(3, 32, 32), "min-max", r"\(N, 3, side, side\)"),
        (torch.full((1, 3, 32, 32), float("nan")), "min-max", "not finite"),
        (torch.zeros(1, 3, 32, 32), "median", "known are min-max, percentile"),
    ],
)
def test_bad_calibration_says_what_is_wrong(
    images: torch.Tensor, ranges: str, message: str
) -> None:
    with pytest.raises(ExitbenchError, match=message):
        calibrate(vgg19(width=0.125), images, ranges)

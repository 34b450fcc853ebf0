"""Counts against numbers derived by hand and against torch's own counter."""

from __future__ import annotations

import pytest
import torch
from exitbench.models.counting import Counts, count, forecast_counts
from exitbench.models.network import ExitNetwork
from exitbench.models.resnet import resnet34
from exitbench.models.vgg import vgg19
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

META = {"vgg19": vgg19, "resnet34": resnet34}


def on_meta(model: str, **arguments: object) -> ExitNetwork:
    with torch.device("meta"):
        return META[model](**arguments).eval()  # type: ignore[arg-type]


def test_macs_of_vgg19_equal_those_by_hand() -> None:
    # output side ** 2 * channels in * channels out * 3 * 3, for each of the 16 convolutions
    convolutions = {
        "conv1_1": 32 * 32 * 3 * 64 * 9,
        "conv1_2": 32 * 32 * 64 * 64 * 9,
        "conv2_1": 16 * 16 * 64 * 128 * 9,
        "conv2_2": 16 * 16 * 128 * 128 * 9,
        "conv3_1": 8 * 8 * 128 * 256 * 9,
        **{f"conv3_{n}": 8 * 8 * 256 * 256 * 9 for n in (2, 3, 4)},
        "conv4_1": 4 * 4 * 256 * 512 * 9,
        **{f"conv4_{n}": 4 * 4 * 512 * 512 * 9 for n in (2, 3, 4)},
        **{f"conv5_{n}": 2 * 2 * 512 * 512 * 9 for n in (1, 2, 3, 4)},
    }
    counts = on_meta("vgg19").counts()
    for name, segment in zip(counts.exit_names, counts.segments, strict=False):
        assert segment.macs == convolutions.get(name, 0), name
    assert counts.segments[-1].macs == 0  # the last pooling
    assert counts.classifier.macs == 512 * 10
    assert counts.full.macs == 398_131_200 + 5_120
    # All 20 M values of the plain network: 9 * in * out per convolution, 2 per batch norm channel.
    assert counts.full.params == 20_035_018


def test_macs_of_resnet34_equal_those_by_hand() -> None:
    stem = 32 * 32 * 3 * 64 * 9
    stages = (
        6 * (32 * 32 * 64 * 64 * 9)
        + (16 * 16 * 64 * 128 * 9 + 7 * (16 * 16 * 128 * 128 * 9) + 16 * 16 * 64 * 128)
        + (8 * 8 * 128 * 256 * 9 + 11 * (8 * 8 * 256 * 256 * 9) + 8 * 8 * 128 * 256)
        + (4 * 4 * 256 * 512 * 9 + 5 * (4 * 4 * 512 * 512 * 9) + 4 * 4 * 256 * 512)
    )
    counts = on_meta("resnet34").counts()
    assert counts.full.macs == stem + stages + 512 * 10 == 1_159_402_496
    # The first half of a block has the first convolution, the second half the projection.
    by_name = dict(zip(counts.exit_names, counts.segments, strict=False))
    assert by_name["stage2_block1_mid"].macs == 16 * 16 * 64 * 128 * 9
    assert by_name["stage2_block1_end"].macs == 16 * 16 * 128 * 128 * 9 + 16 * 16 * 64 * 128
    assert counts.segments[-1] == Counts()


def test_a_head_with_four_windows_equals_the_count_by_hand() -> None:
    head = on_meta("vgg19").counts().heads[0]  # 64 channels, 32x32, windows of 16
    places = 64 * 32 * 32  # codewords x positions
    assert head.macs == 64 * places + 256 * 64 + 64 * 10
    rest = (
        places * 3  # times a, plus c, tanh
        + places * 2  # + 1, / 2
        + (places - 32 * 32)  # sum over the codewords
        + 32 * 32  # + smallest float
        + places  # divided by the sum
        + 256 * 16 * 16  # average over each window
        + 256 * 2  # times 64, - 1
        + 64  # relu
    )
    assert head.flops == 2 * head.macs + rest
    # codebook with bias, a, c, 256 -> 64, 64 -> 10
    assert head.params == (64 * 64 + 64) + 2 + (256 * 64 + 64) + (64 * 10 + 10)


def test_a_head_with_one_window_equals_the_count_by_hand() -> None:
    counts = on_meta("vgg19").counts()
    head = counts.heads[counts.exit_names.index("pool4")]  # 512 channels, 2x2, one window of 2
    assert head.macs == 2 * 2 * 512 * 64 + 64 * 10
    assert head.params == (512 * 64 + 64) + 2 + (64 * 10 + 10)


def test_a_pooling_segment_has_comparisons_and_no_macs() -> None:
    counts = on_meta("vgg19").counts()
    pool = counts.segments[counts.exit_names.index("pool1")]
    assert pool == Counts(flops=64 * 16 * 16 * 3, bytes=4 * (64 * 32 * 32 + 64 * 16 * 16))


@pytest.mark.parametrize("model", META)
@pytest.mark.parametrize("side", [32, 64])
def test_macs_equal_those_of_torchs_counter(model: str, side: int) -> None:
    network = on_meta(model, width=0.25, input_side=side, classes=100)
    with torch.no_grad(), FlopCounterMode(display=False) as torch_counter:
        network(torch.empty(1, 3, side, side, device="meta"))
    counts = network.counts()
    macs = counts.full.macs + sum(head.macs for head in counts.heads)
    assert 2 * macs == torch_counter.get_total_flops()


@pytest.mark.parametrize("model", META)
def test_nothing_in_our_networks_is_uncounted(model: str) -> None:
    assert on_meta(model, width=0.125).counts().uncounted == ()


@pytest.mark.parametrize("model", META)
def test_parts_add_up_to_the_network_run_at_once(model: str) -> None:
    network = on_meta(model, width=0.125, exits=(2, 7, 9))
    counts = network.counts()
    assert len(counts.segments) == 4
    assert len(counts.heads) == 3
    whole, logits = count(network, torch.empty(1, 3, 32, 32, device="meta"))
    assert [tuple(z.shape) for z in logits] == [(1, 10)] * 4
    assert sum(counts.heads, counts.full) == whole
    assert counts.params == whole.params == sum(p.numel() for p in network.parameters())


def test_a_shared_parameter_is_counted_once_in_the_network_and_in_every_head() -> None:
    counts = on_meta("vgg19", width=0.125, share_heads=True).counts()
    separate = on_meta("vgg19", width=0.125).counts()
    assert [h.params for h in counts.heads] == [h.params for h in separate.heads]
    assert counts.params < counts.full.params + sum(h.params for h in counts.heads)


def test_counting_leaves_the_network_as_it_was() -> None:
    network = vgg19(width=0.125).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.counts()
    assert network.training
    assert all(p.device.type == "cpu" and p.requires_grad for p in network.parameters())
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_the_counts_do_not_depend_on_device_or_inference_mode(guard: type) -> None:
    network = resnet34(width=0.125, exits=(3,)).eval()
    image = torch.zeros(1, 3, 32, 32)
    on_meta_device, _ = count(network, image)
    with guard():
        real, _ = count(lambda x: network(x), image)  # a plain callable runs where it is
    assert real.macs == on_meta_device.macs
    assert real.flops == on_meta_device.flops
    assert real.uncounted == ()


@pytest.mark.parametrize(
    ("call", "shape", "macs", "flops"),
    [
        (torch.relu, (2, 3), 0, 6),
        (torch.Tensor.relu_, (2, 3), 0, 6),
        (torch.tanh, (2, 3), 0, 6),
        (lambda x: x + 1, (2, 3), 0, 6),
        (lambda x: torch.add(x, x, alpha=2), (2, 3), 0, 12),
        (lambda x: x / x.sum(1, keepdim=True), (2, 3), 0, 6 + 4),
        (lambda x: x.mean(1), (2, 3), 0, 6),
        (lambda x: x.view(6).clone(), (2, 3), 0, 0),
        (lambda x: functional.max_pool2d(x, 2), (1, 1, 4, 4), 0, 4 * 3),
        (lambda x: functional.avg_pool2d(x, 2), (1, 1, 4, 4), 0, 4 * 4),
        (lambda x: functional.avg_pool2d(x, (1, 2)), (1, 1, 4, 4), 0, 8 * 2),
        (lambda x: x.softmax(1), (2, 3), 0, 2 * (2 + 3 + 3 + 2 + 3)),
        (lambda x: x @ torch.ones(3, 5), (2, 3), 30, 60),
        (lambda x: x @ torch.ones(4, 3, 5), (4, 2, 3), 120, 240),
    ],
)
def test_each_formula_on_a_shape_small_enough_to_count(
    call: object, shape: tuple[int, ...], macs: int, flops: int
) -> None:
    counts, _ = count(call, torch.ones(shape))  # type: ignore[arg-type]
    assert (counts.macs, counts.flops, counts.uncounted) == (macs, flops, ())


def test_batch_norm_is_a_scale_and_a_shift_at_inference_and_uncounted_in_training() -> None:
    norm = nn.BatchNorm2d(3)
    image = torch.ones(1, 3, 4, 4)
    assert count(norm.eval(), image)[0].flops == 2 * 48
    training, _ = count(norm.train(), image)
    assert "aten.native_batch_norm" in training.uncounted


@pytest.mark.parametrize(
    ("layer", "macs"),
    [
        (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), 6 * 4 * 4 * 2 * 9),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), 4 * 8 * 8 * 6 * 4),
        (nn.Conv2d(4, 4, 3, groups=4, padding=1), 4 * 8 * 8 * 9),
    ],
)
def test_unusual_convolutions_equal_the_hand_and_torchs_counter(
    layer: nn.Module, macs: int
) -> None:
    image = torch.ones(1, 4, 8, 8)
    with FlopCounterMode(display=False) as torch_counter:
        layer(image)
    assert count(layer, image)[0].macs == macs
    assert torch_counter.get_total_flops() == 2 * macs


def test_what_has_no_formula_is_listed_with_its_number() -> None:
    counts, _ = count(lambda x: torch.relu(x.sin().sin().erf()), torch.ones(4))
    assert counts.flops == 4
    assert counts.uncounted_text() == "aten.erf x1; aten.sin x2"


def test_bytes_read_input_and_weights_and_write_the_output_once() -> None:
    counts, _ = count(nn.Sequential(nn.Linear(10, 4), nn.ReLU()), torch.ones(1, 10))
    assert counts.weight_bytes == 4 * (40 + 4)
    assert counts.bytes == counts.weight_bytes + 4 * (10 + 4)
    assert counts.bytes_per_sample(batch_size=11) == 4 * (4 + 10 + 4)
    assert counts.bytes_per_sample(element_bytes=1) == 44 + 14


def test_a_residual_addition_reads_its_shortcut() -> None:
    def add(x: Tensor, y: Tensor) -> Tensor:
        return torch.relu(x + y)

    assert count(add, torch.ones(5), torch.ones(5))[0].bytes == 4 * 5
    assert count(add, torch.ones(5), torch.ones(1))[0].bytes == 0


def test_a_forecast_is_one_product_with_the_stack_and_a_softmax_per_round() -> None:
    stack, logits = torch.zeros(8, 10, 10), torch.zeros(1, 10)
    ran, _ = count(lambda z: torch.einsum("rck,nk->nrc", stack, z).softmax(2), logits)
    counts = forecast_counts(classes=10, horizon=8)
    assert counts.macs == ran.macs == 800
    assert counts.flops == ran.flops + 8 * (9 + 1)  # the maximum and the comparison

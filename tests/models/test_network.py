"""ExitNetwork: where it is cut, what flows through the cuts, and what its exits share."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from exitbench.harness.errors import ExitbenchError
from exitbench.models import MODELS, ExitNetwork, ModelArguments, build
from exitbench.models.blocks import ResidualEnd, ResidualStart
from torch import Tensor, nn

NetworkFactory = Callable[..., ExitNetwork]


def images(count: int = 3, side: int = 32, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


# Exit points


def test_vgg19_has_an_exit_after_every_block_and_the_first_four_poolings(
    tiny_vgg: ExitNetwork,
) -> None:
    names = [point.name for point in tiny_vgg.exit_points]

    assert tiny_vgg.num_exits == 20
    assert names == [
        *("conv1_1", "conv1_2", "pool1"),
        *("conv2_1", "conv2_2", "pool2"),
        *("conv3_1", "conv3_2", "conv3_3", "conv3_4", "pool3"),
        *("conv4_1", "conv4_2", "conv4_3", "conv4_4", "pool4"),
        *("conv5_1", "conv5_2", "conv5_3", "conv5_4"),
    ]


def test_resnet34_has_two_exits_in_each_of_its_sixteen_blocks(
    make_network: NetworkFactory,
) -> None:
    network = make_network("resnet34")
    blocks = [(s, b) for s, count in enumerate((3, 4, 6, 3), 1) for b in range(1, count + 1)]

    assert network.num_exits == 32
    assert [point.name for point in network.exit_points] == [
        f"stage{s}_block{b}_{half}" for s, b in blocks for half in ("mid", "end")
    ]


@pytest.mark.parametrize(
    ("model", "convolutions"),
    [
        # 16 of configuration E; a stem, 2 in each of 16 blocks, 3 projections to a new shape.
        ("vgg19", 16),
        ("resnet34", 1 + 2 * 16 + 3),
    ],
)
def test_the_backbone_has_the_convolutions_of_its_architecture(
    make_network: NetworkFactory, model: str, convolutions: int
) -> None:
    backbone = make_network(model, exits=()).backbone

    assert sum(isinstance(module, nn.Conv2d) for module in backbone.modules()) == convolutions


def test_full_width_channels_are_those_of_the_papers() -> None:
    vgg = build("vgg19", ModelArguments())
    resnet = build("resnet34", ModelArguments())

    assert [vgg.exit_points[i].channels for i in (0, 3, 6, 11, 16)] == [64, 128, 256, 512, 512]
    assert [resnet.exit_points[i].channels for i in (0, 6, 14, 26)] == [64, 128, 256, 512]


@pytest.mark.parametrize(("width", "channels"), [(0.125, 8), (0.25, 16), (0.5, 32), (0.01, 8)])
def test_width_scales_channels_to_a_multiple_of_eight_and_at_least_eight(
    width: float, channels: int
) -> None:
    network = build("vgg19", ModelArguments(width=width))

    assert network.exit_points[0].channels == channels


# Cutting into segments


@pytest.mark.parametrize(
    ("model", "exits"),
    [("vgg19", None), ("vgg19", (3, 10)), ("resnet34", None), ("resnet34", (7, 8, 31)),
     ("resnet34", ())],
)  # fmt: skip
def test_segments_one_by_one_equal_the_whole(
    make_network: NetworkFactory, model: str, exits: tuple[int, ...] | None
) -> None:
    network = make_network(model, exits=exits)
    x = images()
    with torch.no_grad():
        whole = network(x)
        state: object = x
        for number in range(1, network.num_exits + 1):
            state = network.run_segment(number, state)  # type: ignore[arg-type]
            assert torch.equal(network.run_head(number, state), whole[number - 1])  # type: ignore[arg-type]
        state = network.run_segment(network.num_exits + 1, state)  # type: ignore[arg-type]
        last = network.run_classifier(state)  # type: ignore[arg-type]

        assert len(whole) == network.num_exits + 1
        assert torch.equal(last, whole[-1])
        assert torch.equal(last, network.run_backbone(x))


@pytest.mark.parametrize("model", sorted(MODELS))
@pytest.mark.parametrize("exits", [None, (), (2,), (4, 5, 20)])
def test_every_backbone_unit_is_in_exactly_one_segment_in_order(
    make_network: NetworkFactory, model: str, exits: tuple[int, ...] | None
) -> None:
    network = make_network(model, exits=exits)
    units = [
        name
        for number in range(1, network.num_exits + 2)
        for name, _ in network.segment_units(number)
    ]

    assert units == list(network.backbone)


def test_a_segment_ends_with_the_unit_of_its_exit_point(tiny_resnet: ExitNetwork) -> None:
    ends = [tiny_resnet.segment_units(number)[-1][0] for number in range(1, 5)]

    assert ends == [point.name for point in tiny_resnet.exit_points]


def test_a_cut_inside_a_residual_block_carries_the_main_path_and_the_shortcut(
    make_network: NetworkFactory,
) -> None:
    # Exit 7 lies inside the first block of stage 2, which halves the resolution.
    network = make_network("resnet34", exits=(7,))
    point = network.exit_points[0]
    with torch.no_grad():
        state = network.run_segment(1, images())

    assert isinstance(state, tuple)
    main, shortcut = state
    assert main.shape == (3, point.channels, point.side, point.side) == (3, 16, 16, 16)
    assert shortcut.shape == (3, 8, 32, 32)


def test_a_head_inside_a_residual_block_looks_at_the_main_path_only(
    make_network: NetworkFactory,
) -> None:
    network = make_network("resnet34", exits=(7,))
    with torch.no_grad():
        state = network.run_segment(1, images())
        assert isinstance(state, tuple)
        main, shortcut = state

        same = network.run_head(1, (main, torch.zeros_like(shortcut)))
        assert torch.equal(network.run_head(1, state), same)


def test_a_residual_block_adds_the_projected_shortcut_before_its_last_relu() -> None:
    torch.manual_seed(0)
    start, end = ResidualStart(4, 8, 2).eval(), ResidualEnd(4, 8, 2).eval()
    x = torch.randn(2, 4, 6, 6)
    assert end.project is not None
    with torch.no_grad():
        main = torch.relu(start.first.bn(start.first.conv(x)))
        expected = torch.relu(end.bn(end.conv(main)) + end.project(x))

        assert torch.equal(end(start(x)), expected)


def test_a_residual_block_that_keeps_the_shape_adds_the_shortcut_itself() -> None:
    assert ResidualEnd(8, 8, 1).project is None


def test_the_state_at_a_blocks_end_is_a_tensor(tiny_resnet: ExitNetwork) -> None:
    with torch.no_grad():
        state = tiny_resnet.run_segment(2, tiny_resnet.run_segment(1, images()))

    assert isinstance(state, Tensor)


def test_a_sample_gets_the_same_logits_alone_and_in_a_batch(tiny_resnet: ExitNetwork) -> None:
    x = images(4)
    with torch.no_grad():
        together = tiny_resnet(x)
        alone = tiny_resnet(x[2:3])

    for whole, single in zip(together, alone, strict=True):
        # Other batch sizes may sum in another order: float32 rounding over 34 layers.
        torch.testing.assert_close(whole[2:3], single, atol=1e-4, rtol=1e-4)


# Choosing exits


@pytest.mark.parametrize("model", sorted(MODELS))
def test_a_subset_of_exits_keeps_names_so_that_weights_fit(
    make_network: NetworkFactory, model: str
) -> None:
    whole = make_network(model)
    part = make_network(model, exits=(2, 9, 14), seed=5)
    weights = whole.state_dict()

    assert set(part.state_dict()) < set(weights)
    part.load_state_dict({name: weights[name] for name in part.state_dict()})
    x = images()
    with torch.no_grad():
        everywhere, chosen = whole(x), part(x)
    assert len(chosen) == 4
    for number, logits in zip((2, 9, 14, whole.num_exits + 1), chosen, strict=True):
        assert torch.equal(logits, everywhere[number - 1])


def test_candidates_stay_known_when_few_exits_are_chosen(make_network: NetworkFactory) -> None:
    network = make_network("vgg19", exits=(2, 9))

    assert len(network.candidates) == 20
    assert network.exit_points == (network.candidates[1], network.candidates[8])


def test_a_network_without_exits_has_one_segment_and_no_head_parameters(
    make_network: NetworkFactory,
) -> None:
    network = make_network("vgg19", exits=())

    assert network.num_exits == 0
    assert list(network.head_parameters()) == []
    assert len(network(images())) == 1


# Sharing


def test_heads_are_separate_unless_shared(tiny_vgg: ExitNetwork) -> None:
    heads = [tiny_vgg.head(number) for number in range(1, 21)]

    assert len({id(head.bag) for head in heads}) == 20
    assert len({id(head.classify) for head in heads}) == 20


def test_shared_heads_share_bags_within_a_stage_and_linear_layers_everywhere(
    make_network: NetworkFactory,
) -> None:
    network = make_network("vgg19", share_heads=True)
    heads = [network.head(number) for number in range(1, 21)]
    bags: dict[int, set[int]] = {}
    for point, head in zip(network.exit_points, heads, strict=True):
        bags.setdefault(point.stage, set()).add(id(head.bag))

    assert [len(ids) for ids in bags.values()] == [1] * 5
    assert len(set.union(*bags.values())) == 5
    assert len({id(head.classify) for head in heads}) == 1
    assert len({id(head.reduce) for head in heads if head.reduce is not None}) == 1


def test_shared_parameters_are_listed_once(make_network: NetworkFactory) -> None:
    network = make_network("resnet34", share_heads=True, classes=10)
    listed = list(network.head_parameters())
    # Four bags (8, 16, 32, 64 channels to 64 codewords, bias, a and c), 256 to 64, 64 to 10.
    by_hand = sum(c * 64 + 64 + 2 for c in (8, 16, 32, 64)) + (256 * 64 + 64) + (64 * 10 + 10)

    assert len({id(parameter) for parameter in listed}) == len(listed)
    assert sum(parameter.numel() for parameter in listed) == by_hand


def test_a_shared_weight_changes_every_head_that_uses_it(make_network: NetworkFactory) -> None:
    network = make_network("vgg19", share_heads=True, exits=(1, 3, 20))
    x = images()
    with torch.no_grad():
        before = network(x)
        network.head(1).classify.bias.add_(1.0)
        after = network(x)

    for old, new in zip(before[:3], after[:3], strict=True):
        # Adding 1 to a float32 of size below 8 is exact to 5e-7.
        torch.testing.assert_close(new, old + 1, atol=1e-6, rtol=0)
    assert torch.equal(before[3], after[3])


# Parameters


@pytest.mark.parametrize("model", sorted(MODELS))
def test_parameters_belong_to_the_backbone_or_to_the_heads(
    make_network: NetworkFactory, model: str
) -> None:
    network = make_network(model)
    backbone = {id(parameter) for parameter in network.backbone_parameters()}
    heads = {id(parameter) for parameter in network.head_parameters()}

    assert backbone & heads == set()
    assert backbone | heads == {id(parameter) for parameter in network.parameters()}


# Sizes and classes


@pytest.mark.parametrize("model", sorted(MODELS))
@pytest.mark.parametrize(("side", "classes"), [(32, 10), (64, 100), (96, 10), (32, 2)])
def test_inputs_and_classes_of_many_sizes_are_understood(
    make_network: NetworkFactory, model: str, side: int, classes: int
) -> None:
    network = make_network(model, exits=(1, 10, 20), input_side=side, classes=classes)
    with torch.no_grad():
        logits = network(images(2, side))

    assert network.input_shape == (3, side, side)
    assert [tuple(values.shape) for values in logits] == [(2, classes)] * 4


@pytest.mark.parametrize("model", sorted(MODELS))
def test_exit_points_say_the_shape_of_the_map_there(
    make_network: NetworkFactory, model: str
) -> None:
    network = make_network(model, input_side=64)
    shapes = []
    state: object = images(1, 64)
    with torch.no_grad():
        for number in range(1, network.num_exits + 1):
            state = network.run_segment(number, state)  # type: ignore[arg-type]
            main = state[0] if isinstance(state, tuple) else state
            shapes.append(tuple(main.shape))  # type: ignore[attr-defined]

    assert shapes == [(1, p.channels, p.side, p.side) for p in network.exit_points]


# Arguments that are refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": 1}, r"classes is 1; a classifier needs at least 2"),
        ({"input_side": 28}, r"input side is 28; it must be a multiple of 32"),
        ({"input_side": 0}, r"input side is 0; it must be a multiple of 32"),
        ({"width": 0.0}, r"width is 0\.0; it must be above 0"),
        ({"width": -1.0}, r"width is -1\.0"),
        ({"width": math.nan}, r"width is nan"),
        ({"exits": (0,)}, r"exits are \[0\]; they must be rising numbers from 1 to"),
        ({"exits": (33,)}, r"exits are \[33\]; they must be rising numbers from 1 to"),
        ({"exits": (3, 2)}, r"exits are \[3, 2\]"),
        ({"exits": (2, 2)}, r"exits are \[2, 2\].*without repeats"),
    ],
)
@pytest.mark.parametrize("model", sorted(MODELS))
def test_bad_arguments_are_refused_with_their_value_and_what_is_allowed(
    model: str, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(ExitbenchError, match=message):
        build(model, ModelArguments(**arguments))  # type: ignore[arg-type]


def test_an_unknown_model_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ExitbenchError, match=r"'vgg16'; known models are resnet34, vgg19"):
        build("vgg16", ModelArguments())

"""Runtimes: the same network, in any precision, piece by piece."""

from __future__ import annotations

import pytest
import torch
from exitbench.harness.errors import ExitbenchError
from exitbench.harness.runtime import (
    RUNTIMES,
    Prepared,
    availability,
    eager,
    onednn_int8,
    prepare,
)
from exitbench.harness.runtime.onednn_int8 import Int8Kit, find_operators
from exitbench.models.blocks import State, main_path
from exitbench.models.network import ExitNetwork
from exitbench.models.registry import ModelArguments, build
from torch import Tensor, nn
from torch.nn import functional

pytestmark = pytest.mark.usefixtures("one_thread")
MODELS = ("vgg19", "resnet34")
EXITS = {"vgg19": (1, 3, 8, 20), "resnet34": (1, 6, 7, 31)}
CLASSES = 4
CASES = [
    (model, precision, name)
    for model in MODELS
    for name, entry in RUNTIMES.items()
    for precision in entry.precisions
]


def pictures(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy images of CLASSES fixed blurred patterns, and their labels."""
    generator = torch.Generator().manual_seed(7)
    patterns = functional.interpolate(
        torch.randn(CLASSES, 3, 4, 4, generator=generator), 32, mode="bilinear"
    )
    generator.manual_seed(seed)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    noise = 0.3 * torch.randn(count, 3, 32, 32, generator=generator)
    return patterns[labels] + noise, labels


@pytest.fixture(scope="module")
def trained() -> dict[str, ExitNetwork]:
    """Both networks after enough steps that weights and batch norm are no longer random."""
    networks = {}
    for model in MODELS:
        torch.manual_seed(0)
        arguments = ModelArguments(classes=CLASSES, width=0.125, exits=EXITS[model])
        network = build(model, arguments)
        optimiser = torch.optim.Adam(network.parameters(), 3e-3)
        for step in range(30):
            images, labels = pictures(16, seed=step)
            losses = [functional.cross_entropy(z, labels) for z in network(images)]
            optimiser.zero_grad()
            torch.stack(losses).sum().backward()
            optimiser.step()
        network.train()
        with torch.no_grad():
            # The running mean forgets slowly; what it holds from the first steps is let go.
            for step in range(8):
                network(pictures(32, seed=100 + step)[0])
        networks[model] = network.eval()
    return networks


def ready(network: ExitNetwork, precision: str, runtime: str | None = None) -> Prepared:
    reason = availability(precision, "cpu")
    if runtime is not None:
        reason = RUNTIMES[runtime].unavailable(precision, torch.device("cpu"))
    if reason is not None:
        pytest.skip(reason)
    return prepare(network, precision, "cpu", pictures(64, seed=500)[0], runtime=runtime)


def all_states(prepared: Prepared, images: Tensor) -> list[State]:
    states: list[State] = []
    state: State = images
    for number in range(1, prepared.num_exits + 2):
        state = prepared.run_segment(number, state)
        states.append(state)
    return states


def all_logits(prepared: Prepared, images: Tensor) -> list[Tensor]:
    *states, last = all_states(prepared, images)
    heads = [prepared.run_head(i, state) for i, state in enumerate(states, start=1)]
    return [*heads, prepared.run_classifier(last)]


def tensors(state: State) -> tuple[Tensor, ...]:
    return state if isinstance(state, tuple) else (state,)


def relative_error(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).norm() / wanted.norm()).item()


def agreement(found: Tensor, wanted: Tensor) -> float:
    return (found.argmax(1) == wanted.argmax(1)).float().mean().item()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("runtime", [n for n, r in RUNTIMES.items() if "fp32" in r.precisions])
def test_fp32_is_the_network_itself(
    trained: dict[str, ExitNetwork], model: str, runtime: str
) -> None:
    network = trained[model]
    images = pictures(16, seed=1)[0]
    with torch.inference_mode():
        wanted = network(images)
    for found, expected in zip(
        all_logits(ready(network, "fp32", runtime), images), wanted, strict=True
    ):
        # Folding batch norm reorders float32 products over up to 35 layers: 1e-6 each, at most.
        assert relative_error(found, expected) < 1e-4


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("precision", "error", "agree"),
    # bf16 keeps 8 bits (0.4% per rounding), int8 up to 8 with one scale per tensor; over up to 35
    # layers both stay far below the distance between these classes, and a wrong scale does not.
    [("bf16", 0.05, 0.98), ("int8", 0.15, 0.95)],
)
def test_a_lower_precision_is_close_to_fp32(
    trained: dict[str, ExitNetwork], model: str, precision: str, error: float, agree: float
) -> None:
    images, labels = pictures(96, seed=2)
    wanted = all_logits(ready(trained[model], "fp32"), images)
    found = all_logits(ready(trained[model], precision), images)
    assert (wanted[-1].argmax(1) == labels).float().mean() > 0.9, "the test's network has learned"
    for mine, exact in zip(found, wanted, strict=True):
        assert mine.dtype == torch.float32
        assert relative_error(mine, exact) < error
    correlation = torch.corrcoef(torch.stack([found[-1].flatten(), wanted[-1].flatten()]))[0, 1]
    assert correlation > 0.99
    assert agreement(found[-1], wanted[-1]) >= agree


@pytest.mark.parametrize(("model", "precision", "runtime"), CASES)
def test_results_do_not_depend_on_the_batch_size(
    trained: dict[str, ExitNetwork], model: str, precision: str, runtime: str
) -> None:
    prepared = ready(trained[model], precision, runtime)
    images = pictures(9, seed=3)[0]
    whole = all_states(prepared, images)
    for size in (1, 4):
        parts = [all_states(prepared, part) for part in images.split(size)]
        for number, state in enumerate(whole):
            for index, tensor in enumerate(tensors(state)):
                joined = torch.cat([tensors(part[number])[index] for part in parts])
                if precision == "int8":
                    assert torch.equal(joined, tensor)
                else:
                    # Another batch size may sum in another order: float rounding through 35 layers.
                    bound = 1e-4 if precision == "fp32" else 3e-2
                    assert relative_error(joined.float(), tensor.float()) < bound


@pytest.mark.parametrize(("model", "precision", "runtime"), CASES)
def test_rows_can_be_taken_out_of_every_state(
    trained: dict[str, ExitNetwork], model: str, precision: str, runtime: str
) -> None:
    prepared = ready(trained[model], precision, runtime)
    images = pictures(6, seed=4)[0]
    rows = torch.tensor([4, 0, 5])
    whole, part = all_states(prepared, images), all_states(prepared, images[rows])
    for number in range(1, prepared.num_exits + 2):
        chosen = prepared.select(whole[number - 1], rows)
        for mine, source, direct in zip(
            tensors(chosen), tensors(whole[number - 1]), tensors(part[number - 1]), strict=True
        ):
            assert torch.equal(mine, source[rows])
            assert mine.is_contiguous(memory_format=torch.channels_last)
            if precision == "int8":
                assert torch.equal(mine, direct)
        if number <= prepared.num_exits:
            after = tensors(prepared.run_segment(number + 1, chosen))[0]
            wanted = tensors(whole[number])[0][rows]
            bound = {"fp32": 1e-4, "bf16": 3e-2, "int8": 0.0}[precision]  # as for batch sizes
            assert relative_error(after.float(), wanted.float()) <= bound


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_no_rows_can_be_taken_too(trained: dict[str, ExitNetwork], precision: str) -> None:
    prepared = ready(trained["resnet34"], precision)
    state = prepared.run_segment(1, pictures(2, seed=4)[0])
    nothing = prepared.select(state, torch.empty(0, dtype=torch.int64))
    assert all(len(tensor) == 0 for tensor in tensors(nothing))


@pytest.mark.parametrize(("model", "precision", "runtime"), CASES)
def test_a_segment_leaves_the_given_state_as_it_was(
    trained: dict[str, ExitNetwork], model: str, precision: str, runtime: str
) -> None:
    prepared = ready(trained[model], precision, runtime)
    state: State = pictures(3, seed=5)[0]
    for number in range(1, prepared.num_exits + 2):
        before = [tensor.clone() for tensor in tensors(state)]
        after = prepared.run_segment(number, state)
        assert all(torch.equal(a, b) for a, b in zip(before, tensors(state), strict=True))
        state = after


@pytest.mark.parametrize(("model", "precision", "runtime"), CASES)
def test_a_stretch_gives_what_its_segments_give(
    trained: dict[str, ExitNetwork], model: str, precision: str, runtime: str
) -> None:
    prepared = ready(trained[model], precision, runtime)
    images = pictures(3, seed=5)[0]
    wanted = all_states(prepared, images)
    assert images.equal(pictures(3, seed=5)[0])
    last = prepared.num_exits + 1
    for middle in range(1, last):
        # Given away, so that operators may write into what they are given.
        state = prepared.run_stretch(1, middle, images)
        state = prepared.run_stretch(middle + 1, last, state, owned=True)
        assert all(
            torch.equal(a, b) for a, b in zip(tensors(state), tensors(wanted[-1]), strict=True)
        )
    assert images.equal(pictures(3, seed=5)[0])


@pytest.mark.parametrize(("precision", "runtime"), [c[1:] for c in CASES if c[0] == "resnet34"])
def test_giving_a_pair_away_does_not_give_away_the_state_that_it_came_from(
    trained: dict[str, ExitNetwork], precision: str, runtime: str
) -> None:
    network = build("resnet34", ModelArguments(classes=CLASSES, width=0.125))
    network.load_state_dict(trained["resnet34"].state_dict(), strict=False)
    prepared = ready(network.eval(), precision, runtime)
    images = pictures(3, seed=5)[0]
    before = prepared.run_stretch(1, 2, images)  # the end of the first block
    kept = main_path(before).clone()
    between = prepared.run_segment(3, before)
    assert tensors(between)[1].data_ptr() == main_path(before).data_ptr(), "no copy is made"
    after = prepared.run_stretch(4, 4, between, owned=True)
    assert torch.equal(main_path(before), kept)
    rows = prepared.select(between, torch.arange(3))
    assert torch.equal(main_path(prepared.run_segment(4, rows)), main_path(after))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_where_the_network_is_cut_changes_nothing(
    trained: dict[str, ExitNetwork], model: str, precision: str
) -> None:
    cut = trained[model]
    whole = build(model, ModelArguments(classes=CLASSES, width=0.125, exits=()))
    whole.load_state_dict(cut.state_dict(), strict=False)
    images = pictures(8, seed=6)[0]
    wanted = all_logits(ready(whole, precision), images)
    assert len(wanted) == 1
    torch.testing.assert_close(
        all_logits(ready(cut, precision), images)[-1], wanted[0], rtol=0, atol=0
    )


def test_int8_states_stay_8_bits_wide(trained: dict[str, ExitNetwork]) -> None:
    for model in MODELS:
        for state in all_states(ready(trained[model], "int8"), pictures(2, seed=7)[0]):
            assert all(tensor.dtype == torch.uint8 for tensor in tensors(state))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_prepared_network_is_a_copy(precision: str) -> None:
    torch.manual_seed(1)
    network = build("vgg19", ModelArguments(classes=CLASSES, width=0.125, exits=(2,)))
    prepared = ready(network, precision)
    images = pictures(2, seed=8)[0]
    before = all_logits(prepared, images)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    for mine, old in zip(all_logits(prepared, images), before, strict=True):
        assert torch.equal(mine, old)


def test_a_network_in_training_mode_is_prepared_with_its_running_statistics(
    trained: dict[str, ExitNetwork],
) -> None:
    network = trained["vgg19"]
    images = pictures(4, seed=9)[0]
    wanted = all_logits(ready(network, "fp32"), images)
    found = all_logits(ready(network.train(), "fp32"), images)
    assert network.training
    network.eval()
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_what_serves_is_said(trained: dict[str, ExitNetwork]) -> None:
    prepared = ready(trained["vgg19"], "int8")
    assert (prepared.name, prepared.precision) == ("onednn-int8", "int8")
    assert prepared.device == torch.device("cpu")
    assert "64 calibration images" in prepared.words
    assert "heads and classifier in fp32" in prepared.words
    prepared.synchronise()


@pytest.mark.parametrize(
    ("precision", "device", "words"),
    [
        ("int4", "cpu", "precision is 'int4'; it must be fp32, tf32, bf16, fp16, int8"),
        ("fp32", "toaster", "device is 'toaster'"),
        ("fp32", "cuda:99", "cuda:99"),
    ],
)
def test_what_cannot_run_says_why(
    trained: dict[str, ExitNetwork], precision: str, device: str, words: str
) -> None:
    assert words in (availability(precision, device) or "")
    with pytest.raises(ExitbenchError, match=words.split(";")[0]):
        prepare(trained["vgg19"], precision, device)


def test_what_runs_has_no_reason_against_it() -> None:
    assert availability("fp32", "cpu") is None


def test_int8_is_refused_on_a_gpu() -> None:
    reason = onednn_int8.unavailable("int8", torch.device("cuda", 0))
    assert reason is not None
    assert "int8 runs on the CPU only" in reason


def test_bf16_is_refused_where_it_would_be_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eager, "has_fast_bf16", lambda device: False)
    reason = eager.unavailable("bf16", torch.device("cpu"))
    assert reason is not None
    assert "no bf16 arithmetic" in reason


def test_int8_without_calibration_images_says_so(trained: dict[str, ExitNetwork]) -> None:
    if availability("int8"):
        pytest.skip("no int8 here")
    with pytest.raises(ExitbenchError, match="calibration images"):
        prepare(trained["vgg19"], "int8")


def test_a_runtime_that_does_not_exist_is_named(trained: dict[str, ExitNetwork]) -> None:
    with pytest.raises(ExitbenchError, match="runtime is 'turbo'; known are"):
        prepare(trained["vgg19"], runtime="turbo")


def test_a_unit_that_no_runtime_knows_is_named(trained: dict[str, ExitNetwork]) -> None:
    network = build("vgg19", ModelArguments(width=0.125))
    network.backbone["conv1_2"] = nn.GELU()
    with pytest.raises(ExitbenchError, match=r"unit 'conv1_2'.*not GELU"):
        prepare(network)


@pytest.mark.parametrize(
    ("channels", "side", "left", "moved"),
    [(64, 32, 2, True), (64, 32, 20, True), (64, 32, 30, False),  # large rows
     (512, 4, 8, True), (512, 4, 20, False), (512, 1, 0, True), (512, 1, 2, False)],  # smaller
)  # fmt: skip
def test_few_large_rows_of_a_state_that_is_given_away_move_within_it(
    trained: dict[str, ExitNetwork], channels: int, side: int, left: int, moved: bool
) -> None:
    """Many small ones are faster copied all together."""
    prepared = ready(trained["vgg19"], "fp32")
    state = torch.arange(64.0)[:, None, None, None].expand(64, channels, side, side)
    state = state.contiguous(memory_format=torch.channels_last)
    rows = torch.arange(64 - left)
    rows[:left] = torch.arange(64 - left, 64)
    kept = prepared.select(state, rows, owned=True)
    assert isinstance(kept, Tensor)
    assert kept[:, 0, 0, 0].tolist() == rows.tolist()
    assert (kept.data_ptr() == state.data_ptr()) == moved


@pytest.mark.parametrize("side", [2, 4, 8, 10, 12, 14, 16])
@pytest.mark.parametrize("count", [1, 3])
def test_int8_pools_maps_of_any_size(side: int, count: int) -> None:
    """torch's own pooling refuses some of them."""
    pool = Int8Kit({}, find_operators()).max_pool(2)
    generator = torch.Generator().manual_seed(side)
    x = torch.randint(0, 256, (count, 5, side, side), dtype=torch.uint8, generator=generator)
    y = pool(x.contiguous(memory_format=torch.channels_last))
    assert y.dtype == torch.uint8
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(y.float(), functional.max_pool2d(x.float(), 2))

"""Every runtime behaves alike: what eager decides in fp32, in any batch, over any stretch.

Parametrised over all that ``registry.RUNTIMES`` holds; a new entry needs no test of its own here,
only bounds for a new precision (``runtime_lab.BOUNDS``).
"""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from exitbench.harness.answers import LogitAnswers, Question
from exitbench.harness.criteria import CRITERIA
from exitbench.harness.predictors import convolution_stack
from exitbench.harness.runtime import Prepared
from exitbench.models.blocks import State
from runtime_lab import (
    BOUNDS,
    CLASSES,
    EAGER,
    EXITS,
    HORIZON,
    MODELS,
    SAMPLES,
    SETTINGS,
    SIZES,
    Case,
    Lab,
    cases,
    close,
    differing,
    everything,
    missing,
    onward,
    pictures,
)
from torch import Tensor

everywhere = pytest.mark.parametrize("case", cases())
in_fp32 = pytest.mark.parametrize("case", [p for p in cases() if p.values[0].precision == "fp32"])
both = pytest.mark.parametrize("model", MODELS)


@pytest.fixture
def prepared(lab: Lab, case: Case, model: str) -> Prepared:
    return lab.prepared(case, model)


@pytest.fixture
def images(case: Case, prepared: Prepared) -> Tensor:
    """Five images on the device of the case."""
    return pictures(5, seed=3)[0].to(case.device)


def brought(prepared: Prepared, number: int, images: Tensor) -> State:
    """The state after segment ``number``; 0: the images."""
    return images if number == 0 else prepared.run_stretch(1, number, images)


def places(prepared: Prepared) -> list[int]:
    """Exits whose states are looked at: of ResNet-34 in a block, after it, in the next."""
    return [1, 2, 3, prepared.num_exits]


@both
@everywhere
@pytest.mark.parametrize("setting", SETTINGS)
def test_decisions_are_those_of_eager_in_fp32_and_of_the_own_trace(
    lab: Lab, case: Case, model: str, setting: str
) -> None:
    # Batches of several sizes in turn, so that a runtime cannot settle on one.
    run = lab.run(case, SETTINGS[setting], model, SAMPLES, SIZES)
    own = lab.replay(lab.trace(case, model), SETTINGS[setting], model)
    wanted = lab.replay(lab.trace(EAGER, model), SETTINGS[setting], model)
    if setting not in ("full", "fixed"):
        assert np.count_nonzero(wanted.histogram() > 0.02 * SAMPLES) >= 3, "exits differ"
    assert differing(run, wanted) <= (1 - case.bounds.decisions) * SAMPLES
    assert differing(run, own) <= 0.001 * SAMPLES
    assert run.checks.sum() == pytest.approx(own.checks.sum(), rel=0.001)
    assert run.forecasts.sum() == pytest.approx(own.forecasts.sum(), rel=0.001)


@both
@everywhere
@pytest.mark.parametrize("size", [1, 3, 8, 64])
def test_decisions_do_not_depend_on_the_batch_size(
    lab: Lab, case: Case, model: str, size: int
) -> None:
    count = 67  # a remainder of 1 or 3, but for batches of 1
    run = lab.run(case, SETTINGS["convolution"], model, count, (size,))
    own = lab.replay(lab.trace(case, model), SETTINGS["convolution"], model)
    assert differing(run, own, count) == 0


@both
@everywhere
def test_classes_that_lie_apart_are_told_apart(lab: Lab, case: Case, model: str) -> None:
    clear, truth, wanted = lab.clear(model)
    found = torch.stack(everything(lab.prepared(case, model), clear.to(case.device))[1], 1).cpu()
    assert (wanted[:, -1].argmax(1) == truth).float().mean() > 0.9, "the network has learned"
    same = found[:, -1].argmax(1) == wanted[:, -1].argmax(1)
    assert same.float().mean() >= case.bounds.agree
    for exit in range(wanted.shape[1]):
        close(found[:, exit], wanted[:, exit], case.bounds.error)


@both
@in_fp32
def test_wide_layers_give_the_same_in_any_batch(lab: Lab, case: Case, model: str) -> None:
    network, (images, _) = lab.wide(model), pictures(19, seed=9)
    with torch.inference_mode():
        exact = torch.stack(list(network(images)), 1)
    prepared = lab.make(case, network)
    states, logits = everything(prepared, images.to(case.device))
    wanted = torch.stack(logits, 1)
    close(wanted, exact, case.bounds.error)
    everything(prepared, pictures(19, seed=10)[0].to(case.device))
    # From the last on: what comes after a state would be made good again by looking at it.
    for number in range(prepared.num_exits, 0, -1):
        close(onward(prepared, number, states[number - 1]), wanted[:, number - 1 :], 0)
    for size in (1, 8):
        for start in range(0, len(images), 9):
            part = images[start : start + size].to(case.device)
            state = prepared.run_stretch(1, 1, part)
            close(onward(prepared, 1, state), wanted[start : start + size], case.bounds.again)
            state = prepared.run_stretch(1, prepared.num_exits + 1, part)
            close(
                prepared.run_classifier(state),
                wanted[start : start + size, -1],
                case.bounds.again,
            )


@both
@everywhere
def test_a_stretch_equals_the_chain_of_its_segments(
    case: Case, prepared: Prepared, images: Tensor
) -> None:
    ends = [*places(prepared), prepared.num_exits + 1]
    for batch in (images, images[:1]):
        chain = [batch, *everything(prepared, batch)[0]]
        for first, last in itertools.product([1, 2, 3, prepared.num_exits], ends):
            if first <= last:
                state = prepared.run_stretch(first, last, chain[first - 1])
                wanted = onward(prepared, last, chain[last])
                close(onward(prepared, last, state), wanted, case.bounds.again)


@both
@everywhere
@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_check_equals_a_stretch_and_its_head(
    case: Case, prepared: Prepared, images: Tensor, criterion: str
) -> None:
    question = Question(criterion, convolution_stack(CLASSES, horizon=HORIZON).to(case.device))
    # Logits are at most about 20; what rounding makes of them is multiplied by the rounds.
    bound = max(1e-4, 20 * case.bounds.again)
    rows = np.array([2, 0])
    for first, last in [(1, 1), (1, 3), (3, prepared.num_exits)]:
        before = brought(prepared, first - 1, images)
        state, answers = prepared.run_check(first, last, before, question)
        wanted = prepared.run_stretch(first, last, before)
        close(onward(prepared, last, state), onward(prepared, last, wanted), case.bounds.again)
        plain = LogitAnswers(prepared.run_head(last, wanted), question)
        assert answers.label.dtype == np.int64
        assert answers.label.tolist() == plain.label.tolist()
        assert answers.confidence.dtype == np.float32
        np.testing.assert_allclose(answers.confidence, plain.confidence, bound, bound)
        np.testing.assert_allclose(answers.rounds(rows), plain.rounds(rows), 30 * bound, bound)
        # Of some, and of all in another order, as when a batch has closed up.
        for order in (np.array([4, 1, 3]), np.array([0, 4, 2, 1, 3]), np.array([3])):
            some = answers.of(order)
            assert some.label.tolist() == plain.label[order].tolist()
            np.testing.assert_allclose(some.confidence, plain.confidence[order], bound, bound)
            for chosen in (np.array([0]), np.arange(len(order))[::-1].copy()):
                wanted_rounds = plain.rounds(order[chosen])
                np.testing.assert_allclose(some.rounds(chosen), wanted_rounds, 30 * bound, bound)


@both
@everywhere
def test_a_given_state_is_left_as_it_was(case: Case, prepared: Prepared, images: Tensor) -> None:
    for start in places(prepared):
        state = brought(prepared, start, images)
        before = onward(prepared, start, state)
        prepared.run_segment(start + 1, state)
        prepared.run_stretch(start + 1, prepared.num_exits + 1, state, owned=False)
        if start < prepared.num_exits:
            prepared.run_check(start + 1, prepared.num_exits, state, Question())
        prepared.run_head(start, state)
        close(onward(prepared, start, state), before, 0)


@both
@everywhere
def test_a_state_that_is_given_away_gives_the_same_and_its_copies_stay(
    case: Case, prepared: Prepared, images: Tensor
) -> None:
    everyone = torch.arange(len(images))
    for start in places(prepared):
        state = brought(prepared, start, images)
        before = onward(prepared, start, state)
        for last in {start + 1, min(start + 3, prepared.num_exits + 1), prepared.num_exits + 1}:
            wanted = onward(prepared, last, prepared.run_stretch(start + 1, last, state))
            for spare in (prepared.select(state, everyone), prepared.join([state])):
                after = prepared.run_stretch(start + 1, last, spare, owned=True)
                close(onward(prepared, last, after), wanted, case.bounds.again)
            if last <= prepared.num_exits:
                spare = prepared.select(state, everyone)
                after, answers = prepared.run_check(start + 1, last, spare, Question(), owned=True)
                close(onward(prepared, last, after), wanted, case.bounds.again)
                assert answers.label.tolist() == wanted[:, 0].argmax(1).tolist()
        close(onward(prepared, start, state), before, 0)


@both
@everywhere
def test_select_and_join_undo_each_other(case: Case, prepared: Prepared, images: Tensor) -> None:
    parts = [torch.tensor(rows) for rows in ([3, 1], [4], [], [0, 2])]
    order = torch.cat(parts).to(torch.int64)
    for number in places(prepared):
        state = brought(prepared, number, images)
        whole = onward(prepared, number, state)
        taken = [prepared.select(state, rows.to(torch.int64)) for rows in parts]
        for rows, part in zip(parts, taken, strict=True):
            if len(rows):
                close(onward(prepared, number, part), whole[rows.long()], case.bounds.again)
        joined = prepared.join(taken)
        close(onward(prepared, number, joined), whole[order], case.bounds.again)
        back = prepared.select(joined, order.argsort())
        close(onward(prepared, number, back), whole, case.bounds.again)
        # A row may be asked for twice.
        twice = prepared.select(state, torch.tensor([1, 1, 0]))
        close(onward(prepared, number, twice), whole[[1, 1, 0]], case.bounds.again)


@both
@everywhere
def test_a_state_that_was_only_lent_is_not_given_away(
    case: Case, prepared: Prepared, images: Tensor
) -> None:
    exits, kept = prepared.num_exits, torch.tensor([0, 4, 2, 3])
    # In a block the shortcut may be the very state that was before it, which is still needed.
    for start in [*places(prepared)[:-1], exits - 1]:
        state = brought(prepared, start, images)
        before = onward(prepared, start, state)
        for first in (start + 1, start + 2):
            middle = prepared.run_stretch(start + 1, first, state)
            prepared.run_stretch(first + 1, exits + 1, middle, owned=True)
            middle, _ = prepared.run_check(start + 1, min(first, exits), state, Question())
            prepared.run_stretch(min(first, exits) + 1, exits + 1, middle, owned=True)
            middle = prepared.run_stretch(start + 1, first, state)
            some = prepared.select(middle, kept, owned=True)
            prepared.run_stretch(first + 1, exits + 1, some, owned=True)
            close(onward(prepared, start, state), before, 0)


@both
@everywhere
def test_rows_that_are_kept_of_a_state_that_is_given_away_are_the_same(
    case: Case, prepared: Prepared, images: Tensor
) -> None:
    everyone = torch.arange(len(images))
    # Nobody moves, one moves into a gap, two do, order is changed, one row.
    for kept in ([0, 1, 2, 3], [0, 4, 2, 3], [3, 4, 2], [4, 0, 3, 1, 2], [2]):
        rows = torch.tensor(kept)
        for number in places(prepared):
            state = brought(prepared, number, images)
            wanted = onward(prepared, number, state)
            spare = prepared.select(state, everyone)
            taken = prepared.select(spare, rows, owned=True)
            close(onward(prepared, number, taken), wanted[rows], case.bounds.again)
            after = prepared.run_stretch(number + 1, prepared.num_exits + 1, taken, owned=True)
            close(prepared.run_classifier(after), wanted[rows, -1], case.bounds.again)
            close(onward(prepared, number, state), wanted, 0)


@both
@everywhere
def test_states_of_different_batches_join(case: Case, prepared: Prepared, images: Tensor) -> None:
    for number in (1, 2, prepared.num_exits):
        states = [brought(prepared, number, part) for part in images.split([1, 3, 1])]
        whole = onward(prepared, number, brought(prepared, number, images))
        close(onward(prepared, number, prepared.join(states)), whole, case.bounds.again)


@both
@everywhere
def test_what_earlier_calls_gave_stays_valid_after_later_ones(
    lab: Lab, case: Case, prepared: Prepared, images: Tensor
) -> None:
    question = Question("softmax", convolution_stack(CLASSES, horizon=HORIZON).to(case.device))
    other = pictures(5, seed=5)[0].to(case.device)

    def fresh() -> tuple[list[State], list[Tensor], Tensor]:
        states, logits = everything(prepared, images)
        return states, logits, torch.stack(logits, 1)

    states, logits, copied = fresh()
    _, answers = prepared.run_check(1, 3, images, question)
    wanted = LogitAnswers(prepared.run_head(3, states[2]), question)
    labels, confidence = wanted.label.copy(), wanted.confidence.copy()
    for batch in (other, other[:2], other[:1]):
        everything(prepared, batch)
        prepared.run_stretch(1, prepared.num_exits + 1, batch)
        later = prepared.run_check(1, 3, batch, question)[1]
        if len(batch) > 1:
            # Its answers are not those of before, or this would show nothing.
            assert not np.allclose(later.confidence, confidence[: len(batch)], atol=1e-3)
    close(torch.stack(logits, 1), copied, 0)
    assert answers.label.tolist() == labels.tolist()
    np.testing.assert_allclose(answers.confidence, confidence, atol=20 * case.bounds.again)
    # From the last on: what comes after a state would be made good again by looking at it.
    for number in range(prepared.num_exits, 0, -1):
        again = onward(prepared, number, states[number - 1])
        close(again, copied[:, number - 1 :], case.bounds.again)


@both
@everywhere
def test_images_of_any_layout_are_read_and_left_alone(
    case: Case, prepared: Prepared, images: Tensor
) -> None:
    wanted = onward(prepared, 1, prepared.run_segment(1, images))
    wide = torch.zeros(10, 3, 32, 40, device=images.device)
    wide[::2, :, :, 3:35] = images
    layouts = {
        "every other, cut out": wide[::2, :, :, 3:35],
        "channels last": images.contiguous(memory_format=torch.channels_last),
        "columns first": images.transpose(2, 3).contiguous().transpose(2, 3),
        "images last": images.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    }
    for given in [images, *layouts.values()]:
        before = given.clone()
        close(onward(prepared, 1, prepared.run_segment(1, given)), wanted, case.bounds.again)
        state = prepared.run_stretch(1, prepared.num_exits + 1, given)
        close(prepared.run_classifier(state), wanted[:, -1], case.bounds.again)
        state, _ = prepared.run_check(1, 2, given, Question())
        close(onward(prepared, 2, state), wanted[:, 1:], case.bounds.again)
        assert torch.equal(given, before)
        assert given.stride() == before.stride() or given.numel() == wide[::2, :, :, 3:35].numel()


@both
@everywhere
def test_it_runs_inside_and_outside_of_inference_mode(
    case: Case, prepared: Prepared, images: Tensor
) -> None:
    rows = torch.tensor([1, 0])
    with torch.enable_grad():
        outside = brought(prepared, 2, images)
        wanted = onward(prepared, 2, outside)
        chosen = onward(prepared, 2, prepared.select(outside, rows))
    assert not wanted.requires_grad
    with torch.inference_mode():
        close(onward(prepared, 2, outside), wanted, 0)
        inside = brought(prepared, 2, images.clone())
        inside_rows = prepared.join([prepared.select(inside, rows)])
        logits = prepared.run_head(2, inside)
    with torch.no_grad():
        close(logits, wanted[:, 0], case.bounds.again)
        close(onward(prepared, 2, inside), wanted, case.bounds.again)
    close(onward(prepared, 2, inside_rows), chosen, case.bounds.again)
    answers = prepared.run_check(3, 4, inside, Question(), owned=True)[1]
    assert answers.label.tolist() == wanted[:, 2].argmax(1).tolist()


@both
@everywhere
def test_networks_side_by_side_do_not_disturb_each_other(
    lab: Lab, case: Case, model: str, prepared: Prepared, images: Tensor
) -> None:
    other = lab.other(case, model)
    alone, mine = onward(prepared, 1, prepared.run_segment(1, images)), images
    others_alone, its = onward(other, 1, other.run_segment(1, images)), images
    assert (alone - others_alone).norm() > 0.01 * alone.norm(), "the networks differ"
    for number in range(1, prepared.num_exits + 1):
        mine = prepared.run_segment(number, mine)
        its = other.run_segment(number, its)
        close(prepared.run_head(number, mine), alone[:, number - 1], case.bounds.again)
        close(other.run_head(number, its), others_alone[:, number - 1], case.bounds.again)


@both
@everywhere
def test_a_prepared_network_depends_on_the_values_that_were_given_alone(
    lab: Lab, case: Case, model: str, prepared: Prepared, images: Tensor
) -> None:
    wanted = torch.stack(everything(prepared, images)[1], 1)
    network = copy.deepcopy(lab.network(model)).train().requires_grad_(True)
    values = {name: value.clone() for name, value in network.state_dict().items()}
    again = lab.make(case, network)
    # Preparing changed nothing in the network, and its mode made no difference; ...
    assert network.training
    assert all(torch.equal(value, values[name]) for name, value in network.state_dict().items())
    close(torch.stack(everything(again, images)[1], 1), wanted, 0)
    # ... and what becomes of the network afterwards makes none either.
    with torch.no_grad():
        for value in network.state_dict().values():
            value.zero_()
    close(torch.stack(everything(again, images)[1], 1), wanted, 0)


@both
@everywhere
def test_it_says_what_it_is(lab: Lab, case: Case, model: str, prepared: Prepared) -> None:
    assert (prepared.name, prepared.precision) == (case.runtime, case.precision)
    assert prepared.device == torch.device(case.device)
    assert prepared.num_exits == len(EXITS[model])
    assert case.precision in prepared.words or prepared.precision in prepared.words
    assert " (not " not in prepared.words, "nothing was passed over: it was asked for by name"
    prepared.synchronise()


@everywhere
def test_every_precision_has_bounds(case: Case) -> None:
    assert case.precision in BOUNDS


@pytest.mark.parametrize("case", missing())
def test_what_cannot_run_here_says_why(case: Case) -> None:
    reason = case.reason()
    assert reason is not None
    assert len(reason.split()) > 4
    pytest.skip(reason)

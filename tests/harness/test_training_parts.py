"""The parts of a training by themselves: accuracy, validation images, schedule, optimisers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from exitbench.harness.data import Split
from exitbench.harness.errors import ExitbenchError
from exitbench.harness.training import Recipe, evaluate, hold_out
from exitbench.harness.training_modes import make_optimizer, one_cycle, steps_per_epoch
from exitbench.models import ModelArguments, build

PLAIN = {"mean": [0.0] * 3, "std": [1.0] * 3}


# Accuracy


def test_accuracy_counts_right_answers_at_every_exit() -> None:
    network = build("vgg19", ModelArguments(classes=3, width=0.125, exits=(2,))).eval()
    images = np.random.default_rng(0).integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)
    with torch.no_grad():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
        answers = [logits.argmax(1).numpy() for logits in network(pixels)]
    labels = answers[0].copy()
    labels[:2] = (labels[:2] + 1) % 3
    split = Split("test", images, labels, np.arange(7))
    measured = evaluate(network, split, PLAIN, "cpu", 4)
    assert measured == [5 / 7, float((answers[1] == labels).mean())]
    assert evaluate(network, split, PLAIN, "cpu", 4, heads=False) == measured[1:]


def test_accuracy_of_unusable_weights_is_refused() -> None:
    network = build("vgg19", ModelArguments(classes=3, width=0.125, exits=()))
    torch.nn.init.constant_(network.classifier.linear.weight, float("nan"))
    split = Split("test", np.zeros((2, 32, 32, 3), np.uint8), np.zeros(2, np.int64), np.arange(2))
    with pytest.raises(ExitbenchError, match="not finite on the split 'test'"):
        evaluate(network, split, PLAIN)


def test_a_split_without_images_has_no_accuracy() -> None:
    network = build("vgg19", ModelArguments(classes=3, width=0.125, exits=()))
    split = Split("test", np.zeros((0, 32, 32, 3), np.uint8), np.zeros(0, np.int64), np.arange(0))
    with pytest.raises(ExitbenchError, match="no images"):
        evaluate(network, split, PLAIN)


# Validation images


def test_validation_images_are_of_every_class_and_not_trained_on() -> None:
    labels = np.repeat(np.arange(3), (10, 5, 2))
    split = Split("train", np.zeros((17, 32, 32, 3), np.uint8), labels, np.arange(17) + 100)
    rest, held = hold_out(split, 0.2, seed=3)
    assert held is not None
    assert held.name == "validation"
    assert np.bincount(held.labels).tolist() == [2, 1, 1]
    assert sorted([*rest.indices, *held.indices]) == list(range(100, 117))
    again = hold_out(split, 0.2, seed=3)[1]
    assert again is not None
    assert np.array_equal(held.indices, again.indices)
    assert hold_out(split, 0.0, seed=3) == (split, None)


# Schedule and optimisers


def test_the_learning_rate_rises_to_its_peak_and_falls_to_almost_nothing() -> None:
    rates = [one_cycle(step, 100, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1 / 25)
    assert max(rates) == rates[25] == pytest.approx(0.1)
    assert rates[-1] == pytest.approx(0.1 * 1e-4)
    assert rates[:26] == sorted(rates[:26])
    assert rates[25:] == sorted(rates[25:], reverse=True)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_shortest_schedules_have_a_positive_rate_throughout(steps: int) -> None:
    assert all(0 < one_cycle(step, steps, 0.1) <= 0.1 for step in range(steps))


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_biases_and_batch_norm_do_not_decay(name: str) -> None:
    network = build("vgg19", ModelArguments(width=0.125, exits=(1,)))
    recipe = Recipe("joint", name, 1, 16, 0.1, weight_decay=0.01)
    decays = {
        id(parameter): group["weight_decay"]
        for group in make_optimizer(recipe, network.parameters()).param_groups
        for parameter in group["params"]
    }
    block = network.backbone["conv1_1"]
    assert decays[id(block.conv.weight)] == 0.01
    assert decays[id(network.classifier.linear.weight)] == 0.01
    assert decays[id(network.classifier.linear.bias)] == 0
    assert decays[id(block.bn.weight)] == decays[id(block.bn.bias)] == 0
    assert len(decays) == len(list(network.parameters()))


def test_a_last_batch_of_one_image_is_left_out() -> None:
    assert steps_per_epoch(32, 16) == 2
    assert steps_per_epoch(33, 16) == 2
    assert steps_per_epoch(34, 16) == 3
    assert steps_per_epoch(1, 16) == 0

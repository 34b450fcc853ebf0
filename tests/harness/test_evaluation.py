"""One setting of one checkpoint evaluated live, as ``exitbench paper`` does it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exitbench.harness.configs import DataConfig
from exitbench.harness.evaluation import Evaluation, evaluate_checkpoint
from exitbench.harness.judging import judge
from exitbench.harness.replay import replay
from exitbench.harness.rundir import RunDirectory
from exitbench.harness.settings import make_policy
from exitbench.harness.subject import load_subject
from exitbench.harness.sweep import Traces
from exitbench.harness.sweeping import load_traces
from pipeline_fixtures import CPU, Inputs, Said, refused, silent


def evaluate(checkpoint: Path, **changes: Any) -> Evaluation:
    """The paper's setting on the whole test split unless changed."""
    values: dict[str, Any] = {
        "policy": "predictive", "criterion": "reference", "beta": 8.0, "start_layer": 1,
        "predictor": "convolution", "precision": "fp32", "data": DataConfig(), "device": CPU,
        "say": silent,
    }  # fmt: skip
    return evaluate_checkpoint(checkpoint, **values | changes)


@pytest.fixture
def traces(finished: Path) -> Traces:
    return load_traces(RunDirectory(finished, create=False), "fp32")


def replayed(found: Evaluation, traces: Traces) -> Any:
    policy = make_policy(found.setting, 5, traces.scales, traces.calibration)
    return replay(found.setting, policy, traces.test)


def test_a_plain_network_is_evaluated_whole(inputs: Inputs) -> None:
    found = evaluate(inputs.plain, policy="full")
    subject = load_subject(inputs.plain, DataConfig(), CPU, silent, needs_exits=False)
    with torch.no_grad():
        answers = subject.network(subject.images("test"))[-1].argmax(-1).numpy()
    assert found.accuracy == (answers == subject.parts["test"].labels).mean()
    assert (found.samples, found.histogram, found.mean_exit) == (60, (60,), 1.0)
    assert found.exit_names == ("classifier",)
    assert found.prediction_accuracy is None
    assert found.confusion is None
    assert found.setting.criterion is None
    assert found.lines()[0] == "full, fp32"


def test_full_ignores_the_exits_of_a_network(inputs: Inputs, traces: Traces) -> None:
    found = evaluate(inputs.vgg, policy="full", stat_each_layer=True)
    assert found.accuracy == traces.test.correct()[-1].mean()
    assert found.histogram == (0, 0, 0, 0, 0, 60)
    assert [row["checked"] for row in found.stat_each_layer] == [0] * 5


@pytest.mark.parametrize(
    "setting",
    [
        {},
        {"beta": 15.0, "start_layer": 2},
        {"criterion": "softmax", "beta": 0.33, "predictor": "table"},
        {"criterion": "activation", "beta": 0.9, "policy": "every-exit"},
        {"policy": "fixed", "start_layer": 3},
    ],
)
def test_an_evaluation_decides_as_the_replay_does(
    inputs: Inputs, traces: Traces, setting: dict[str, Any]
) -> None:
    found = evaluate(inputs.vgg, **setting)
    expected = replayed(found, traces)
    assert found.histogram == tuple(expected.histogram)
    assert found.accuracy == expected.accuracy
    mean_exit = (expected.histogram * np.arange(1, 7)).sum() / 60
    assert found.mean_exit == pytest.approx(mean_exit)
    assert found.cost is not None
    assert found.cost.seconds > 0
    assert (found.cost.images, found.cost.latency_source) == (60, "measured")


def test_the_batch_size_changes_no_result(inputs: Inputs) -> None:
    one, many = (evaluate(inputs.vgg, batch_size=size) for size in (1, 64))
    assert (one.histogram, one.accuracy) == (many.histogram, many.accuracy)


def test_forward_mode_accuracy_judges_the_forecasts_of_one_exit(
    inputs: Inputs, traces: Traces
) -> None:
    found = evaluate(
        inputs.vgg, forward_mode="accuracy", start_layer=2, criterion="softmax", beta=0.45
    )
    (expected,) = judge(found.setting, traces.test, traces.scales, traces.calibration, [2])
    assert found.confusion == expected.confusion.tolist()
    assert found.prediction_accuracy == expected.accuracy
    stays = (traces.test.confidence("softmax")[1] < np.float32(0.45)).sum()
    assert np.sum(found.confusion) == stays > 0
    assert found.cost is None  # every exit was run: no time to compare
    assert f"prediction accuracy {expected.accuracy:.2%}" in found.lines()


def test_what_happened_at_every_exit_is_told_on_request(inputs: Inputs) -> None:
    setting = {"criterion": "softmax", "beta": 0.35}
    found = evaluate(inputs.vgg, stat_each_layer=True, **setting)
    rows = found.stat_each_layer
    assert tuple(row["left"] for row in rows) == found.histogram[:-1]
    assert rows[0]["checked"] == 60
    hits, forecasts = (sum(r[n] for r in rows) for n in ("prediction_hits", "forecasts"))
    assert found.prediction_accuracy == hits / forecasts
    assert np.trace(found.confusion) == hits
    text = "\n".join(found.lines())
    assert "mean_confidence" in text
    assert len(found.lines()) == 2 + 1 + 1 + 5  # words, forecasts, header, exits
    assert evaluate(inputs.vgg, **setting).stat_each_layer == []


def test_every_exit_makes_no_forecasts_to_judge(inputs: Inputs) -> None:
    found = evaluate(inputs.vgg, policy="every-exit", stat_each_layer=True, criterion="margin")
    assert found.prediction_accuracy is None
    assert found.confusion is None
    assert found.stat_each_layer[0]["mean_true_jump"] is None


def test_a_limit_thins_out_the_test_split_and_no_other(inputs: Inputs) -> None:
    assert evaluate(inputs.vgg, policy="full", limit=6).samples == 6
    said = Said()
    evaluate(inputs.vgg, criterion="activation", beta=0.9, limit=6, say=said)
    assert said.starting("calibration: 12 images")  # thresholds do not hang on the limit


def test_exits_are_needed_for_all_policies_but_full(inputs: Inputs) -> None:
    message = refused(evaluate, inputs.plain)
    assert f"{inputs.plain} holds a plain network without exits" in message
    assert "exitbench train --mode exits" in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"start_layer": 6}, "start layer is 6; this network has exits 1 to 5"),
        ({"start_layer": 0}, "start layer is 0; this network has exits 1 to 5"),
        ({"beta": None}, "policy predictive needs a criterion and a beta"),
        ({"policy": "oracle"}, "'oracle' knows the labels and can only be replayed"),
        ({"predictor": "perfect"}, "can only be replayed"),
        ({"predictor": "guess"}, "predictor is 'guess'; known are convolution"),
        ({"batch_size": 0}, "batch size is 0; it must be at least 1"),
        ({"limit": 0}, "limit is 0; it must be at least 1"),
        ({"data": DataConfig(dataset="digits")}, "tells 4 classes apart, but the dataset digits"),
    ],
)
def test_a_wrong_value_is_named(inputs: Inputs, change: dict[str, Any], words: str) -> None:
    assert words in refused(evaluate, inputs.vgg, **change)

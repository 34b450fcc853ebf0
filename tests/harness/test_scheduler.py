"""The one loop: nobody is lost, batches do not matter, live and replayed decisions agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from exitbench.harness.answers import LogitAnswers
from exitbench.harness.calibration import limits, thresholds
from exitbench.harness.criteria import CRITERIA
from exitbench.harness.policies import EveryExit, Full, Oracle, Policy, Predictive
from exitbench.harness.predictors import (
    ConstantPredictor,
    ConvolutionPredictor,
    convolution_stack,
    first_later_leave,
)
from exitbench.harness.replay import replay, replay_starts
from exitbench.harness.runtime.registry import prepare
from exitbench.harness.scheduler import LayerStatistics, Outcome, merge, walk
from exitbench.harness.settings import Setting, make_policy, may_leave
from exitbench.harness.sources import LiveSource, TraceSource
from exitbench.harness.trace import Trace, TraceMeta, record, trace_logits, writing
from hypothesis import given, settings
from hypothesis import strategies as st

EXITS, CLASSES = 5, 4


def make_trace(folder: Path, seed: int, samples: int = 40, split: str = "calibration") -> Trace:
    """A trace of made-up logits that grow surer with depth."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, CLASSES, samples)
    logits = generator.normal(size=(samples, EXITS + 1, CLASSES)).astype(np.float32)
    logits[np.arange(samples), :, truth] += np.linspace(0, 4, EXITS + 1, dtype=np.float32)
    names = (*(f"e{i}" for i in range(EXITS)), "classifier")
    meta = TraceMeta(
        split, "fp32", samples, EXITS, CLASSES, (1.0, 1.0, 1.0), 4, "made up", str(seed), names
    )
    path = folder / f"{split}-{seed}-{samples}.npz"
    trace_logits(path, logits, truth, np.arange(samples), meta)
    return Trace(path)


@pytest.fixture(scope="module")
def trace(tmp_path_factory) -> Trace:
    return make_trace(tmp_path_factory.mktemp("trace"), 0, 200)


settings_of_policies = st.builds(
    Setting,
    policy=st.sampled_from(["every-exit", "predictive"]),
    criterion=st.sampled_from(sorted(CRITERIA)),
    beta=st.floats(0.01, 3.0),
    start_layer=st.integers(1, EXITS),
    predictor=st.sampled_from(["convolution", "table", "constant", "perfect"]),
)


@given(setting=settings_of_policies)
@settings(max_examples=60, deadline=None)
def test_every_sample_leaves_once_and_none_is_lost(trace, setting):
    policy = make_policy(setting, EXITS, thresholds(trace), trace, truth_of=trace)
    outcome = walk(policy, TraceSource(trace, setting.criterion))
    assert outcome.histogram().sum() == trace.meta.samples
    assert ((outcome.exit_at >= 1) & (outcome.exit_at <= EXITS + 1)).all()
    assert (outcome.label == trace.label[outcome.exit_at - 1, np.arange(200)]).all()
    # Whoever leaves at an exit was checked there, and checks are of samples still inside.
    inside = 200 - np.concatenate([[0], outcome.histogram()[:-1].cumsum()[:-1]])
    assert (outcome.checks >= outcome.histogram()[:-1]).all()
    assert (outcome.checks <= inside).all()
    assert (outcome.checks[: setting.start_layer - 1] == 0).all()


@given(
    criterion=st.sampled_from(["softmax", "activation", "margin", "entropy", "reference"]),
    betas=st.tuples(st.floats(0.01, 3.0), st.floats(0.01, 3.0)),
    start=st.integers(1, EXITS),
)
@settings(max_examples=60, deadline=None)
def test_every_exit_never_leaves_earlier_when_beta_rises(trace, criterion, betas, start):
    scale = thresholds(trace)[criterion]
    low, high = (
        walk(EveryExit(limits(scale, beta), start), TraceSource(trace, criterion)).exit_at
        for beta in sorted(betas)
    )
    assert (high >= low).all()


@given(
    criterion=st.sampled_from(sorted(CRITERIA)),
    beta=st.floats(0.01, 3.0),
    start=st.integers(1, EXITS),
)
@settings(max_examples=60, deadline=None)
def test_every_exit_is_predictive_exit_whose_jump_is_always_one(trace, criterion, beta, start):
    limit = limits(thresholds(trace)[criterion], beta)
    classic = walk(EveryExit(limit, start), TraceSource(trace, criterion))
    stepwise = Predictive(limit, start, ConstantPredictor(1))
    predictive = walk(stepwise, TraceSource(trace, criterion))
    assert (classic.exit_at == predictive.exit_at).all()
    assert (classic.checks == predictive.checks).all()


@given(beta=st.floats(0.01, 1.0), start=st.integers(1, EXITS))
@settings(max_examples=40, deadline=None)
def test_a_perfect_predictor_leaves_where_every_exit_does_with_at_most_two_checks(
    trace, beta, start
):
    scales = thresholds(trace)
    perfect = Setting("predictive", "softmax", beta, start, "perfect")
    classic = Setting("every-exit", "softmax", beta, start)
    a, b = (
        walk(make_policy(s, EXITS, scales, trace, trace), TraceSource(trace, "softmax"))
        for s in (perfect, classic)
    )
    assert (a.exit_at == b.exit_at).all()
    assert a.checks.sum() <= 2 * trace.meta.samples


@given(cuts=st.lists(st.integers(1, 199), max_size=6, unique=True), beta=st.floats(0.1, 1.0))
@settings(max_examples=40, deadline=None)
def test_results_do_not_depend_on_how_samples_are_batched(trace, cuts, beta):
    limit = limits(thresholds(trace)["softmax"], beta)
    policy = Predictive(limit, 2, ConvolutionPredictor(limit))
    whole = walk(policy, TraceSource(trace, "softmax"))
    parts = np.split(np.arange(200), sorted(cuts))
    merged = merge([walk(policy, TraceSource(trace, "softmax", part)) for part in parts])
    assert (whole.exit_at == merged.exit_at).all()
    assert (whole.label == merged.label).all()
    assert (whole.checks == merged.checks).all()
    assert (whole.forecasts == merged.forecasts).all()


@pytest.mark.parametrize("predictor", ["convolution", "table", "perfect"])
def test_the_shared_decision_table_gives_what_each_start_layer_gives_alone(trace, predictor):
    scales = thresholds(trace)
    setting = Setting("predictive", "margin", 0.6, None, predictor)
    for row in replay_starts(setting, range(1, EXITS + 1), scales, trace, trace):
        alone = replay(
            row.setting, make_policy(row.setting, EXITS, scales, trace, truth_of=trace), trace
        )
        assert row.accuracy == alone.accuracy
        assert (row.histogram == alone.histogram).all()
        assert (row.checks == alone.checks).all()
        assert (row.forecasts == alone.forecasts).all()


def test_the_statistics_of_a_walk_by_hand(tmp_path):
    """Two exits, three samples: one leaves at 1, one at 2, one at the classifier."""
    sure, unsure = [8.0, 0.0], [0.1, 0.0]
    logits = np.array(
        [[sure, sure, sure], [unsure, sure, sure], [unsure, unsure, [0.0, 8.0]]], np.float32
    )
    truth = np.array([0, 1, 1])  # the second sample is answered wrongly at exit 2
    meta = TraceMeta(
        "calibration", "fp32", 3, 2, 2, (1.0,), 1, "by hand", "", ("a", "b", "classifier")
    )
    trace_logits(tmp_path / "t.npz", logits, truth, np.arange(3), meta)
    trace = Trace(tmp_path / "t.npz")
    limit = np.full(2, 0.9, np.float32)
    leaves = first_later_leave(may_leave(trace, "softmax", limit))
    statistics = LayerStatistics(2, truth, leaves)
    policy = Predictive(limit, 1, ConstantPredictor(1), forecasts=True)
    outcome = walk(policy, TraceSource(trace, "softmax"), statistics)
    assert outcome.exit_at.tolist() == [1, 2, 3]
    assert outcome.label.tolist() == [0, 0, 1]
    # Who leaves pays for the head, but for no forecast.
    assert outcome.checks.tolist() == [3, 2]
    assert outcome.forecasts.tolist() == [2, 1]
    first, second = statistics.rows()
    assert (first["checked"], first["left"], first["correct"]) == (3, 1, 1)
    assert (second["checked"], second["left"], second["correct"]) == (2, 1, 0)
    # At exit 1 two stay: one leaves at 2 (jump 1, a hit), one at the classifier (jump 2, a miss).
    assert (first["forecasts"], first["prediction_hits"]) == (2, 1)
    assert (first["mean_forecast"], first["mean_true_jump"]) == (1.0, 1.5)
    # At exit 2 one stays, for the classifier: jump 1, a hit.
    assert (second["forecasts"], second["prediction_hits"]) == (1, 1)
    assert statistics.prediction_accuracy() == pytest.approx(2 / 3)
    assert statistics.confusion.tolist() == [[2, 1], [0, 0]]


def test_statistics_without_a_forecast_say_none_not_zero(trace):
    statistics = LayerStatistics(EXITS, trace.truth)
    walk(Full(EXITS), TraceSource(trace), statistics)
    assert statistics.prediction_accuracy() is None
    assert statistics.rows()[0]["mean_confidence"] is None


class Told:
    """A steer that notes what it is told."""

    def __init__(self) -> None:
        self.words: list[tuple[str, int, int]] = []

    def begin(self, first: int) -> None:
        self.words.append(("begin", 0, first))

    def forecast(self, exit: int, following: int) -> None:
        self.words.append(("forecast", exit, following))

    def end(self, exit: int) -> None:
        self.words.append(("end", exit, 0))


def test_a_steer_is_told_where_a_sample_is_bound_for_and_where_it_leaves(tmp_path):
    """Exits 1 and 2 of three; the second sample is sent past them to the classifier."""
    sure, unsure = [8.0, 0.0], [0.1, 0.0]
    logits = np.array([[unsure, sure, sure, sure], [unsure, unsure, unsure, sure]], np.float32)
    meta = TraceMeta(
        "calibration", "fp32", 2, 3, 2, (1.0,), 1, "by hand", "", ("a", "b", "c", "classifier")
    )
    trace_logits(tmp_path / "t.npz", logits, np.zeros(2, np.int64), np.arange(2), meta)
    trace = Trace(tmp_path / "t.npz")
    limit = np.full(3, 0.9, np.float32)
    classic, jumping = EveryExit(limit, 1), Predictive(limit, 2, ConstantPredictor(7))

    def told(policy: Policy, samples: list[int]) -> list[tuple[str, int, int]]:
        steer = Told()
        walk(policy, TraceSource(trace, "softmax", np.array(samples, np.int64)), steer=steer)
        return steer.words

    assert told(classic, [0]) == [("begin", 0, 1), ("forecast", 1, 2), ("end", 2, 0)]
    assert told(jumping, [1]) == [("begin", 0, 2), ("forecast", 2, 4), ("end", 4, 0)]
    assert told(Full(3), [0]) == [("begin", 0, 4), ("end", 4, 0)]
    # Of several samples the one that goes farthest counts, and the last one ends it.
    assert told(classic, [0, 1]) == [
        ("begin", 0, 1), ("forecast", 1, 2), ("forecast", 2, 3), ("forecast", 3, 4), ("end", 4, 0),
    ]  # fmt: skip
    assert told(Oracle(np.array([1, 4])), [0, 1]) == [
        ("begin", 0, 4), ("forecast", 1, 4), ("end", 4, 0),
    ]  # fmt: skip
    assert told(classic, []) == []


@given(setting=settings_of_policies)
@settings(max_examples=30, deadline=None)
def test_no_decision_depends_on_a_steer(trace, setting):
    policy = make_policy(setting, EXITS, thresholds(trace), trace, truth_of=trace)
    free = walk(policy, TraceSource(trace, setting.criterion))
    steered = walk(policy, TraceSource(trace, setting.criterion), steer=Told())
    for name in ("exit_at", "label", "checks", "forecasts"):
        assert (getattr(free, name) == getattr(steered, name)).all()


# --- the live network -------------------------------------------------------------------------


def live(network_fixture, policy: Policy, criterion: str, batch_size: int) -> Outcome:
    prepared, images, exits, stack = network_fixture
    outcomes = []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        samples = np.arange(start, start + len(batch))
        source = LiveSource(prepared, exits, batch, samples, criterion, stack)
        outcomes.append(walk(policy, source))
    return merge(outcomes)


@pytest.fixture(scope="module", params=["vgg19", "resnet34"])
def subject(request, make_network, tmp_path_factory):
    """A small network with all its exits, images, and the trace of both."""
    network = make_network(request.param, width=0.125, exits=None, classes=CLASSES)
    torch.manual_seed(1)
    images = torch.randn(30, 3, 32, 32)
    network.train()
    with torch.no_grad():
        for _ in range(5):
            network(images)
        # Untrained heads are all equally unsure; larger weights spread their confidence.
        for exit in range(1, network.num_exits + 1):
            network.head(exit).classify.weight.mul_(4)
    network.eval()
    prepared = prepare(network, "fp32", "cpu")
    exits = network.num_exits
    meta = TraceMeta(
        "calibration", "fp32", 30, exits, CLASSES, (1.0, 1.0, 1.0), 8, "random", "",
        tuple(map(str, range(exits + 1))),
    )  # fmt: skip
    path = tmp_path_factory.mktemp("live") / "trace.npz"
    truth = np.arange(30) % CLASSES
    with writing(path, meta, truth, np.arange(30)) as writer:
        record(writer, [images[:16], images[16:]], prepared)
    return (prepared, images, exits, convolution_stack(CLASSES)), Trace(path)


@pytest.mark.parametrize("criterion", sorted(CRITERIA))
@pytest.mark.parametrize("policy", ["every-exit", "predictive"])
def test_live_and_replayed_decisions_are_identical(subject, criterion, policy):
    network, trace = subject
    scales = thresholds(trace)
    exits = trace.meta.exits
    ratios = trace.confidence(criterion) / scales[criterion][:, None]
    spread = 0
    for beta in np.quantile(ratios[2:], (0.5, 0.8, 0.95)).tolist():
        predictor = "convolution" if policy == "predictive" else None
        setting = Setting(policy, criterion, beta, 3, predictor)
        made = make_policy(setting, exits, scales, trace)
        replayed = walk(made, TraceSource(trace, criterion))
        run = live(network, made, criterion, batch_size=16)
        assert (run.exit_at == replayed.exit_at).all()
        assert (run.label == replayed.label).all()
        assert (run.checks == replayed.checks).all()
        assert (run.forecasts == replayed.forecasts).all()
        spread = max(spread, len(np.unique(run.exit_at)))
    assert spread > 1, "a test in which all samples leave together shows nothing"


@pytest.mark.parametrize("batch_size", [1, 7, 30])
def test_live_results_do_not_depend_on_the_batch_size(subject, batch_size):
    network, trace = subject
    limit = limits(thresholds(trace)["softmax"], float(np.median(trace.confidence("softmax"))))
    policy = Predictive(limit, 2, ConvolutionPredictor(limit))
    reference = walk(policy, TraceSource(trace, "softmax"))
    outcome = live(network, policy, "softmax", batch_size)
    assert (outcome.exit_at == reference.exit_at).all()
    assert (outcome.label == reference.label).all()


class Counting:
    """A prepared network that notes how many samples each segment and head ran on."""

    def __init__(self, inner) -> None:
        self.inner, self.segments, self.heads = inner, {}, {}

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def run_stretch(self, first, last, state, *, owned=False):
        rows = len(state[0] if isinstance(state, tuple) else state)
        for number in range(first, last + 1):
            self.segments[number] = self.segments.get(number, 0) + rows
        return self.inner.run_stretch(first, last, state, owned=owned)

    def run_check(self, first, last, state, question, *, owned=False):
        state = self.run_stretch(first, last, state, owned=owned)
        return state, LogitAnswers(self.run_head(last, state), question)

    def run_head(self, number, state):
        rows = len(state[0] if isinstance(state, tuple) else state)
        self.heads[number] = self.heads.get(number, 0) + rows
        return self.inner.run_head(number, state)


def test_samples_that_left_cost_nothing_further(subject):
    """Later segments run on fewer samples, and heads only on those that are due."""
    (prepared, images, exits, stack), trace = subject
    limit = limits(thresholds(trace)["softmax"], float(np.median(trace.confidence("softmax"))))
    counting = Counting(prepared)
    policy = Predictive(limit, 1, ConvolutionPredictor(limit))
    outcome = walk(
        policy, LiveSource(counting, exits, images, np.arange(30), "softmax", stack)
    )
    inside = outcome.histogram()[::-1].cumsum()[::-1]
    ran = [counting.segments.get(number, 0) for number in range(1, exits + 2)]
    assert ran == inside.tolist()
    assert [counting.heads.get(n, 0) for n in range(1, exits + 1)] == outcome.checks.tolist()

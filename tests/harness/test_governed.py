"""Governed requests in replay: worked out by hand, and the same as those that run live."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from exitbench.harness.calibration import limits
from exitbench.harness.errors import ExitbenchError
from exitbench.harness.governed import Ways, find_ways, govern_ways, points_text, steer_along
from exitbench.harness.governors import GOVERNORS, LiveSteer, make_governor, outlook_of
from exitbench.harness.policies import EveryExit, Fixed, Full, Policy, Predictive
from exitbench.harness.predictors import (
    ConstantPredictor,
    ConvolutionPredictor,
    convolution_stack,
)
from exitbench.harness.runtime.registry import prepare
from exitbench.harness.scheduler import walk
from exitbench.harness.sources import LiveSource
from exitbench.harness.trace import Trace, TraceMeta, record, writing
from operating_fixtures import point, table_of, two_points
from pipeline_fixtures import sure, trace_of

LIMIT = np.full(3, 0.9, np.float32)
SURE, UNSURE = sure(0.99), sure(0.6)


@pytest.fixture
def trace(tmp_path) -> Trace:
    """Four samples of three exits: two are sure at exit 1, one at 3, one never."""
    late, never = [UNSURE, UNSURE, SURE, SURE], [UNSURE] * 4
    early = [SURE] * 4
    return trace_of(tmp_path, "test", [early, late, early, never], [0, 0, 0, 1])


def test_ways_are_the_exits_that_are_asked_and_where_each_sample_leaves(trace):
    ways = find_ways(EveryExit(LIMIT, 1), trace, "softmax")
    assert [ways.ways[way] for way in ways.way_of] == [(1,), (1, 2, 3), (1,), (1, 2, 3, 4)]
    assert len(ways.ways) == 3
    assert ways.accuracy == 0.75
    jumping = find_ways(Predictive(LIMIT, 1, ConstantPredictor(2)), trace, "softmax")
    assert [jumping.ways[way] for way in jumping.way_of] == [(1,), (1, 3), (1,), (1, 3, 4)]
    assert find_ways(Full(3), trace, None).ways == ((4,),)
    assert find_ways(Fixed(2), trace, None).ways == ((2,),)


def test_a_network_of_more_exits_than_bits_is_refused(trace):
    trace.meta = replace(trace.meta, exits=64)
    with pytest.raises(ExitbenchError, match="64 exits"):
        find_ways(Full(64), trace, None)


def test_the_costs_of_a_split_by_hand(trace):
    """Requests take 1.1 s twice, 3.3 s and 4.5 s at the top clock: the last misses 4.2 s."""
    policy = EveryExit(LIMIT, 1)
    ways, table = find_ways(policy, trace, "softmax"), two_points()
    found = govern_ways(ways, make_governor(None, table, outlook=outlook_of(policy)), table)
    busy_s = (1.1 + 1.1 + 3.3 + 4.5) / 4
    assert found.latency_s == pytest.approx(busy_s)
    assert found.latency_p99_s == pytest.approx(4.5)
    assert found.missed == 0.25
    assert found.busy_j == pytest.approx(busy_s * 6)
    # At 1 W until 4.2 s have passed; after the request that took longer there is no idle.
    assert found.energy_j == pytest.approx(busy_s * 6 + (3.1 + 3.1 + 0.9 + 0) / 4)
    assert found.points == {"1000 MHz": pytest.approx(1.0)}
    assert found.switches == 0


def test_99_of_100_are_counted_over_requests_not_over_kinds_of_them():
    policy, table = EveryExit(LIMIT, 1), two_points()
    for late, expected in ((1, 1.1), (2, 4.5)):
        way_of = np.repeat([0, 1], [150 - late, late])
        ways = Ways(3, ((1,), (1, 2, 3, 4)), way_of, 1.0, outlook_of(policy))
        found = govern_ways(ways, make_governor(None, table, outlook=outlook_of(policy)), table)
        assert found.latency_p99_s == pytest.approx(expected)


def test_the_share_of_the_points_is_of_the_busy_time(trace):
    policy = Predictive(LIMIT, 1, ConstantPredictor(2))
    ways, table = find_ways(policy, trace, "softmax"), two_points()
    governor = make_governor("deadline", table, 100.0, outlook=outlook_of(policy))
    found = govern_ways(ways, governor, table)
    # With all the time in the world everything runs at half the clock, chosen before the start.
    assert found.points == {"500 MHz": pytest.approx(1.0)}
    assert found.switches == 0
    tight = make_governor("deadline", table, 5.85, outlook=outlook_of(policy))
    both = govern_ways(ways, tight, table)
    # The two that go on slow down for exit 3: 4.7 s with the switch. One then races on: 0.1 s for
    # the slow forecast, another switch, 1.2 s; it misses.
    slow_s, top_s = (2 * 4.7 + 0.1) / 4, (4 * 1.1 + 2 * 0.05 + 0.5 + 1.2) / 4
    assert both.points["500 MHz"] == pytest.approx(slow_s / (slow_s + top_s))
    assert both.latency_s == pytest.approx(slow_s + top_s)
    assert both.switches == (0 + 0 + 2 + 2) / 4
    assert both.missed == 0.25


def test_a_source_is_the_weakest_of_what_is_in_the_number(trace):
    policy = Full(3)
    measured = replace(point(1.0, 6.0), energy_source="measured", latency_source="measured")
    table = table_of(point(0.5, 2.0), measured)
    ways, outlook = find_ways(policy, trace, None), outlook_of(policy)
    top = govern_ways(ways, make_governor(None, table, outlook=outlook), table)
    assert (top.energy_source, top.latency_source) == ("measured", "measured")
    # The idle power until a later deadline is modelled.
    idle = govern_ways(ways, make_governor(None, table, 5.0, outlook=outlook), table)
    assert (idle.energy_source, idle.latency_source) == ("modelled", "measured")
    slow = govern_ways(ways, make_governor("deadline", table, 9.0, outlook=outlook), table)
    assert (slow.energy_source, slow.latency_source) == ("modelled", "modelled")


def test_what_has_no_price_is_unknown_and_not_free(trace):
    unpriced = point(1.0, 6.0)
    unpriced = replace(unpriced, forecasts_s=unpriced.forecasts_s * np.nan)
    policy = Predictive(LIMIT, 1, ConstantPredictor(2))
    table = table_of(unpriced)
    governor = make_governor(None, table, outlook=outlook_of(policy))
    assert np.isnan(govern_ways(find_ways(policy, trace, "softmax"), governor, table).latency_s)


def test_shares_in_a_cell():
    assert points_text({"510 MHz": 0.25, "1020 MHz": 0.75}) == "510 MHz:0.25 1020 MHz:0.75"


# --- the live network -------------------------------------------------------------------------

CLASSES, SAMPLES = 4, 24


@pytest.fixture(scope="module")
def network(make_network, tmp_path_factory):
    """A small VGG-19 with 5 exits, images, and the trace of both."""
    network = make_network("vgg19", exits=(1, 4, 8, 13, 20), classes=CLASSES)
    torch.manual_seed(1)
    images = torch.randn(SAMPLES, 3, 32, 32)
    network.train()
    with torch.no_grad():
        for _ in range(5):
            network(images)
        # Untrained heads are all equally unsure; larger weights spread their confidence.
        for exit in range(1, network.num_exits + 1):
            network.head(exit).classify.weight.mul_(4)
    prepared = prepare(network.eval(), "fp32", "cpu")
    exits = network.num_exits
    meta = TraceMeta(
        "test", "fp32", SAMPLES, exits, CLASSES, (1.0, 1.0, 1.0), 8, "random", "",
        tuple(map(str, range(exits + 1))),
    )  # fmt: skip
    path = tmp_path_factory.mktemp("governed") / "trace.npz"
    with writing(path, meta, np.arange(SAMPLES) % CLASSES, np.arange(SAMPLES)) as writer:
        record(writer, [images], prepared)
    return prepared, images, Trace(path)


def policies(trace: Trace) -> list[Policy]:
    exits = trace.meta.exits
    beta = float(np.quantile(trace.confidence("softmax")[1:], 0.8))
    limit = limits(np.ones(exits), beta)
    predictive = Predictive(limit, 1, ConvolutionPredictor(limit))
    return [Full(exits), Fixed(3), EveryExit(limit, 1), predictive]


@pytest.mark.parametrize("name", [None, *GOVERNORS])
def test_live_requests_are_steered_and_priced_as_in_replay(network, name):
    prepared, images, trace = network
    exits = trace.meta.exits
    levels = (point(ratio, 1 + 5 * ratio**3, exits=exits) for ratio in (0.4, 0.7, 1.0))
    table = table_of(*levels, switch_s=0.05)
    stack = convolution_stack(CLASSES)
    switches = set()
    for policy in policies(trace):
        governor = make_governor(
            name, table, 1.4 * table.full_s, outlook=outlook_of(policy), operating_point=None
        )
        steer = LiveSteer(governor, table)
        for sample in range(SAMPLES):
            row = slice(sample, sample + 1)
            source = LiveSource(
                prepared, exits, images[row], np.arange(sample, sample + 1), "softmax", stack
            )
            walk(policy, source, steer=steer)
        ways = find_ways(policy, trace, "softmax")
        replayed = govern_ways(ways, governor, table)
        requests = steer.requests
        assert len(requests) == SAMPLES
        # Only the order of the sums differs.
        assert np.mean([r.joules for r in requests]) == pytest.approx(replayed.busy_j, rel=1e-12)
        assert np.mean([r.seconds for r in requests]) == pytest.approx(replayed.latency_s)
        assert np.mean([r.missed for r in requests]) == pytest.approx(replayed.missed)
        assert np.mean([r.switches for r in requests]) == pytest.approx(replayed.switches)
        again = LiveSteer(governor, table)
        for way in (ways.ways[each] for each in ways.way_of):
            steer_along(way, again)
        assert again.requests == requests
        switches.update(request.switches for request in requests)
    if name in ("proportional", "deadline", "deadline-safe"):
        assert len(switches) > 1, "a test in which no clock is ever changed shows nothing"

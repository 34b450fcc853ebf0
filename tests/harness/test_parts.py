"""What is timed for the cost table is what the scheduler's loop does."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from exitbench.harness.answers import LogitAnswers
from exitbench.harness.parts import WHOLE, leads, walk_parts
from exitbench.harness.policies import EveryExit, Fixed
from exitbench.harness.runtime.eager import prepare_eager
from exitbench.harness.scheduler import Outcome, walk
from exitbench.harness.sources import LiveEvidence, LiveSource
from exitbench.models.network import ExitNetwork


@dataclass
class Watched:
    """A prepared network that notes what is asked of it."""

    inner: Any
    asked: list[Any] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def run_head(self, number: int, state: Any) -> Any:
        self.asked.append(("head", number, len(state)))
        return self.inner.run_head(number, state)

    def run_check(
        self, first: int, last: int, state: Any, question: Any, *, owned: bool = False
    ) -> Any:
        state = self.inner.run_stretch(first, last, state, owned=owned)
        return state, LogitAnswers(self.run_head(last, state), question)

    def select(self, state: Any, indices: Any, *, owned: bool = False) -> Any:
        self.asked.append(("select", len(indices), owned))
        return self.inner.select(state, indices, owned=owned)


@pytest.fixture
def watched(tiny_vgg: ExitNetwork) -> Watched:
    torch.set_num_threads(1)
    return Watched(prepare_eager(tiny_vgg, "fp32", torch.device("cpu"), None, ""))


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_a_check_of_one_sample_is_evidence_and_decision_and_it_stays(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    units, decided = walk_parts(watched, images(1), None), []
    decide = EveryExit.decide

    def noted(policy: EveryExit, exit: int, evidence: Any) -> Any:
        decided.append((exit, float(evidence.confidence[0])))
        return decide(policy, exit, evidence)

    monkeypatch.setattr(EveryExit, "decide", noted)
    watched.asked.clear()
    for _ in range(3):
        units["head", 7]()
    assert watched.asked == [("head", 7, 1)] * 3
    assert [exit for exit, _ in decided] == [7] * 3


def test_in_a_check_of_a_batch_one_sample_leaves_and_nothing_is_gathered(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    units, read = walk_parts(watched, images(5), None), []
    label = LiveEvidence.label.fget
    monkeypatch.setattr(
        LiveEvidence, "label", property(lambda self: (read.append(1), label(self))[1])
    )
    watched.asked.clear()
    for _ in range(2):
        units["head", 3]()
    assert watched.asked == [("head", 3, 5)] * 2
    assert len(read) == 2


def test_a_gather_copies_the_whole_batch_as_it_is_at_the_exit(watched: Watched) -> None:
    units = walk_parts(watched, images(5), None)
    assert [part for part in units if part[0] == "gather"] == [("gather", i) for i in range(1, 21)]
    watched.asked.clear()
    for _ in range(2):
        units["gather", 3]()
    assert watched.asked == [("select", 5, False)] * 2  # were it owned, nothing would be moved


def test_the_classifier_and_the_whole_network_end_with_answers_on_the_host(
    watched: Watched, tiny_vgg: ExitNetwork
) -> None:
    units = walk_parts(watched, images(4), None)
    with torch.inference_mode():
        expected = tiny_vgg.run_backbone(images(4)).argmax(1).numpy()
    for part in (("classifier", 21), WHOLE):
        outcome = units[part]()
        assert isinstance(outcome, Outcome)
        assert np.array_equal(outcome.label, expected)


def test_nothing_is_gathered_when_all_leave(watched: Watched) -> None:
    source = LiveSource(watched, 20, images(3), np.arange(3))
    assert walk(Fixed(2), source).exit_at.tolist() == [2, 2, 2]
    assert watched.asked == [("head", 2, 3)]


def test_what_leads_up_to_a_part_is_what_runs_before_it_in_a_walk(watched: Watched) -> None:
    assert leads(("segment", 5)) == [("segment", 3), ("segment", 4)]
    assert leads(("head", 5)) == [("segment", 4), ("segment", 5)]
    assert leads(("forecast", 5))[-1] == ("head", 5)
    assert leads(("gather", 5)) == [("segment", 5)]
    units = walk_parts(watched, images(1), lambda logits: logits)
    assert {lead for part in units for lead in leads(part)} <= set(units)

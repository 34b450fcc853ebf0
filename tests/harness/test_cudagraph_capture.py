"""What ``CudaCapture`` asks of torch.cuda, and in which order, told to a stand-in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from exitbench.harness.runtime.cudagraph_capture import WARM_UPS, CudaCapture

CARD = torch.device("cuda", 1)


class Stream:
    def __init__(self, log: list[str], name: str) -> None:
        self.log, self.name = log, name

    def wait_stream(self, other: Stream) -> None:
        self.log.append(f"{self.name} waits for {other.name}")


class Card:
    """Stands in for torch.cuda, and notes what is asked of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.main, self.side = Stream(self.log, "main"), Stream(self.log, "side")
        self.current = self.main
        self.fails: str | None = None
        self.pools = 0
        for name in ("device", "stream", "graph"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: self.current)
        monkeypatch.setattr(torch.cuda, "Stream", lambda: self.side)
        monkeypatch.setattr(torch.cuda, "Event", lambda: self)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: "graph")
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", self.graph_pool_handle)
        empty = torch.empty

        def pinned(*shape: int, pin_memory: bool = False, **rest: Any) -> torch.Tensor:
            self.log.append(f"pin {shape[0]}")
            assert pin_memory
            return empty(*shape, **rest)

        monkeypatch.setattr(torch, "empty", pinned)

    def graph_pool_handle(self) -> str:
        self.pools += 1
        return f"pool {self.pools}"

    @contextmanager
    def device(self, which: torch.device) -> Iterator[None]:
        assert which == CARD
        yield

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(
        self, graph: str, pool: str, stream: Stream, capture_error_mode: str
    ) -> Iterator[None]:
        assert (graph, stream, capture_error_mode) == ("graph", self.side, "thread_local")
        self.log.append(f"capture into {pool}")
        yield
        if self.fails:
            # As torch's own: the stream stays the capture's where its end fails.
            self.current = self.side
            raise RuntimeError(self.fails)
        self.log.append("captured")

    def record(self) -> None:
        self.log.append(f"event on {self.current.name}")

    def synchronize(self) -> None:
        self.log.append("event is waited for")


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    return Card(monkeypatch)


def settings() -> tuple[object, ...]:
    backends = torch.backends
    found = backends.cudnn.conv.fp32_precision, backends.cuda.matmul.fp32_precision
    return (backends.cudnn.benchmark, *("ieee" if name == "none" else name for name in found))


def test_work_is_warmed_up_and_captured_on_the_side(card: Card) -> None:
    capture, before = CudaCapture(CARD), settings()

    def work() -> None:
        card.log.append(f"work on {card.current.name}")
        # cuDNN searches in the warm-up and finds in the capture; fp32 is fp32 unless told.
        assert settings() == (True, "ieee", "ieee")

    with capture.running():
        assert capture.record(work) == "graph"  # type: ignore[comparison-overlap]
    assert card.log == [
        "side waits for main", *["work on side"] * WARM_UPS, "capture into pool 1",
        "work on side", "captured", "main waits for side",
    ]  # fmt: skip
    assert settings() == before
    assert card.current is card.main


def test_after_a_failure_all_is_as_before_but_the_pool(card: Card) -> None:
    capture, before = CudaCapture(CARD), settings()
    card.fails = "operation failed due to a previous error during capture"
    with capture.running(), pytest.raises(RuntimeError, match="previous error"):
        capture.record(lambda: None)
    assert settings() == before
    assert card.current is card.main
    assert card.log[-1] == "main waits for side"
    card.fails = None
    with capture.running():
        capture.record(lambda: None)
    assert "capture into pool 2" in card.log


def test_a_transfer_is_one_copy_and_one_wait(card: Card) -> None:
    capture = CudaCapture(CARD)
    values = torch.arange(12, dtype=torch.float32).view(4, 3)
    with capture.running():
        wait = capture.send(values[:2])
        assert card.log == ["pin 6", "event on main"], "nobody has waited yet"
        assert np.array_equal(wait(), values[:2].numpy())
        assert card.log[2:] == ["event is waited for"]
        del card.log[:]
        assert np.array_equal(capture.send(values[:1])(), values[:1].numpy())
        assert "pin" not in card.log[0], "pinned memory is used again"
        capture.send(values)()
        assert "pin 12" in card.log


def test_another_stream_waits_for_the_one_before(card: Card) -> None:
    capture = CudaCapture(CARD)
    for stream in (card.main, card.main, Stream(card.log, "other"), card.main):
        with card.stream(stream), capture.running():
            pass
    assert card.log == ["other waits for main", "main waits for other"]


def test_rows_are_put_first(card: Card) -> None:
    target = torch.zeros(4, 2)
    CudaCapture(CARD).place(target, torch.ones(3, 2))
    assert target[:, 0].tolist() == [1, 1, 1, 0]

"""One pass of a setting over the samples: decisions, time, energy, and what befell the requests.

    window  |................................................|
    work     batch batch batch ...                              continuous
             batch batch rest of both batch ...                 continuous, rebatched
             request...idle...request...idle...                 periodic

With simulated clocks nothing is timed: the decisions are real, their price is that of the operating
points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from .answers import Question
from .bench import Bench, Live
from .evidence import IntArray
from .governors import LiveSteer, OperatingTable, Request
from .meters.base import Reading, minimum_window_s
from .passes import Pass, Requests
from .policies import Policy, Predictive
from .predictors import ConvolutionPredictor, convolution_stack
from .rebatching import Rebatching, Waiting
from .scenes import Paced, Scene, pace, paced_by_prices
from .scheduler import LayerStatistics, Outcome, merge, walk
from .sources import LiveSource
from .stretches import run_stretch, together
from .subject import Subject

CHUNK_BYTES = 256 * 2**20  # normalised images held at once: few stretches, each of many batches
Counting = Callable[[int], None]


def run_pass(
    bench: Bench,
    live: Live,
    observe: LayerStatistics | None = None,
    progress: Counting | None = None,
    floor_s: float = 0.0,
) -> tuple[Outcome, Pass]:
    """One pass of a setting over the samples: what was decided, and time and energy.

    Args:
        observe: collects what happens at every exit; such a pass is in no scene and not for its
            numbers, unless they are simulated.
        progress: told of every batch, but not of repetitions for the meter's sake.
        floor_s: repeat the samples until the windows of the pass last so long together, and each
            as long as the counter needs.
    """
    scene = None if observe or bench.manner.simulated else bench.manner.scene
    # The counter resolves no narrower window, in however many stretches the samples come.
    narrowest_s = min(minimum_window_s(bench.meter), floor_s)
    going = _Going(bench, live, observe, progress, scene)
    chunks = math.ceil(len(bench.positions) / chunk_size(bench.subject, bench.batch_size))
    outcomes: list[Outcome] = []
    readings: list[Reading] = []
    window_s = 0.0
    for positions, images in chunks_of(bench.subject, bench.positions, bench.batch_size):
        going.take(positions, images)
        stretch = run_stretch(
            going.once,
            bench.meter,
            max(narrowest_s, floor_s / chunks),
            bench.prepared.synchronise,
            bench.manner.scene.clock,
        )
        outcomes += stretch.found
        readings.append(going.modelled(stretch.reading, stretch.times))
        window_s += stretch.window_s
    made = Pass(together(readings), window_s, going.requests())
    return merge(outcomes), going.priced() if bench.manner.simulated else made


class _Going:
    """A pass under way: serves batches, one after another or in a scene, and keeps their times."""

    def __init__(
        self,
        bench: Bench,
        live: Live,
        observe: LayerStatistics | None,
        progress: Counting | None,
        scene: Scene | None,
    ) -> None:
        self._bench, self._live, self._observe, self._progress = bench, live, observe, progress
        self._scene = scene if scene is not None and scene.period_s is not None else None
        governing = bench.manner.governing
        self._steer: LiveSteer | None = governing.steer(live.policy) if governing else None
        self._paced: list[Paced] = []
        self._waited: list[tuple[int, Waiting]] = []
        self._stack = _stack(bench, live.policy)

    def take(self, positions: IntArray, images: Tensor) -> None:
        """Serve these from now on."""
        self._positions, self._images = positions, images
        self._waited.append((len(images), Waiting()))
        self._paced_before = len(self._paced)
        self._requests_before = len(self._steer.requests) if self._steer is not None else 0

    def once(self, times: int) -> list[Outcome]:
        """Serve every batch once; the answers."""
        if self._bench.manner.rebatch_wait is not None:
            return [self._together(self._bench.manner.rebatch_wait, times)]
        size = self._bench.batch_size
        found: list[Outcome] = []

        def serve(number: int) -> None:
            rows = slice(number * size, (number + 1) * size)
            found.append(self._walk(self._images[rows], self._positions[rows]))
            if self._progress is not None and times == 0:
                self._progress(len(self._images[rows]))

        batches = math.ceil(len(self._images) / size)
        if self._scene is None:
            for number in range(batches):
                serve(number)
        else:
            self._paced.append(pace(self._scene, batches, self._until_done(serve)))
        return found

    def _walk(self, images: Tensor, positions: IntArray) -> Outcome:
        exits = self._bench.subject.network.num_exits
        criterion = self._live.setting.criterion or "softmax"
        source = LiveSource(
            self._bench.prepared, exits, images, positions, criterion, self._stack,
            self._bench.prices.compaction,
        )  # fmt: skip
        return walk(self._live.policy, source, self._observe, self._steer)

    def _together(self, wait: int, times: int) -> Outcome:
        """The batches one after another, what is left of several put together."""
        bench, size = self._bench, self._bench.batch_size
        question = Question(self._live.setting.criterion or "softmax", self._stack)
        driver = Rebatching(
            bench.prepared, self._live.policy, question, size, wait,
            compaction=bench.prices.compaction, observe=self._observe,
        )  # fmt: skip

        def batches() -> Iterator[tuple[Tensor, IntArray]]:
            for start in range(0, len(self._images), size):
                rows = slice(start, start + size)
                yield self._images[rows], self._positions[rows]
                if self._progress is not None and times == 0:
                    self._progress(len(self._images[rows]))

        outcome, waiting = driver.run(batches())
        self._waited[-1] = (len(self._images), waiting)
        return outcome

    def _until_done(self, serve: Callable[[int], None]) -> Callable[[int], None]:
        def done(number: int) -> None:
            serve(number)
            self._bench.prepared.synchronise()

        return done

    def modelled(self, reading: Reading, times: int) -> Reading:
        """A modelled reading with the watts of idle and of the operating points in it."""
        paced = self._paced[self._paced_before :]
        busy_s = sum(sum(each.busy_s) for each in paced) / times if paced else None
        governing, work_j = self._bench.manner.governing, None
        if governing is not None and governing.session is not None and self._steer is not None:
            spent = _by_point(self._steer.requests[self._requests_before :])
            power_w = {point.name: point.power_w for point in governing.table.points}
            work_j = sum(seconds * power_w[name] for name, seconds in spent.items()) / times
            busy_s = sum(spent.values()) / times
        if busy_s is None:
            return reading
        return with_idle(reading, self._bench.meter, busy_s, work_j)

    def requests(self) -> Requests:
        """What befell the requests of this pass."""
        found = _in_scene(self._paced) if self._paced else Requests()
        if self._bench.manner.rebatch_wait is not None:
            return _rebatched(self._waited)
        governing = self._bench.manner.governing
        if self._steer is None or governing is None:
            return found
        return _governed(found, self._steer, governing.table)

    def priced(self) -> Pass:
        """The pass as the operating points price it."""
        governing, scene = self._bench.manner.governing, self._bench.manner.scene
        assert self._steer is not None
        assert governing is not None
        seconds = [request.seconds for request in self._steer.requests]
        joules = [request.joules for request in self._steer.requests]
        known = [value for value in joules if value is not None and not math.isnan(value)]
        total_j = sum(known) if len(known) == len(joules) else None
        span_s, found = sum(seconds), Requests()
        if scene.period_s is not None:
            paced = paced_by_prices(scene.period_s, seconds)
            idle_s, span_s = max(0.0, paced.span_s - sum(seconds)), paced.span_s
            total_j = None if total_j is None else total_j + governing.table.idle_w * idle_s
            found = _in_scene([paced])
        domain = {"cuda": "gpu"}.get(self._bench.subject.device.type, "cpu")
        note = "" if total_j is not None else "the operating points have no energy"
        reading = Reading(span_s, {domain: total_j}, "modelled", note)
        return Pass(reading, span_s, _governed(found, self._steer, governing.table))


def with_idle(
    reading: Reading, meter: Any, busy_s: float, work_j: float | None = None
) -> Reading:
    """A modelled reading of ``busy_s`` of work and idle for the rest; a measured one as it is.

    Args:
        meter: knows its watts at work (``power_w``) and idle (``idle_w``) if all is modelled.
        work_j: joules of the work; those of the meter's watts if None.
    """
    power_w, idle_w = getattr(meter, "power_w", None), getattr(meter, "idle_w", None)
    if power_w is None or not reading.total_j:
        return reading
    if idle_w is None:
        unknown: dict[str, float | None] = dict.fromkeys(reading.joules)
        note = "the hardware profile does not state the idle power, so idle time has no energy"
        return replace(reading, joules=unknown, note=reading.note or note)
    wanted_j = power_w * busy_s if work_j is None else work_j
    wanted_j += idle_w * max(0.0, reading.seconds - busy_s)
    factor = wanted_j / reading.total_j
    joules = {name: None if j is None else j * factor for name, j in reading.joules.items()}
    return replace(reading, joules=joules)


def _in_scene(paced: Sequence[Paced]) -> Requests:
    count = sum(len(each.busy_s) for each in paced)
    busy_s = sum(sum(each.busy_s) for each in paced)
    return Requests(
        response_s=sum(sum(each.response_s) for each in paced) / count,
        busy_share=min(1.0, busy_s / sum(each.span_s for each in paced)),
        late=sum(each.late for each in paced) / count,
        keeps_up=busy_s <= paced[0].period_s * count,
    )


def _rebatched(waited: Sequence[tuple[int, Waiting]]) -> Requests:
    count = sum(samples for samples, _ in waited)
    return Requests(
        waited_batches=sum(samples * each.mean for samples, each in waited) / count,
        longest_wait_batches=max(each.longest for _, each in waited),
        rows_per_segment=sum(samples * each.rows for samples, each in waited) / count,
    )


def _governed(found: Requests, steer: LiveSteer, table: OperatingTable) -> Requests:
    requests = steer.requests
    spent = _by_point(requests)
    total_s = sum(spent.values())
    return replace(
        found,
        missed=sum(request.missed for request in requests) / len(requests),
        switches=sum(request.switches for request in requests) / len(requests),
        points={
            point.name: spent[point.name] / total_s
            for point in table.points
            if spent.get(point.name, 0.0) > 0
        },
    )


def _by_point(requests: Sequence[Request]) -> dict[str, float]:
    """Seconds at each operating point."""
    spent: dict[str, float] = {}
    for request in requests:
        for name, seconds in request.points.items():
            spent[name] = spent.get(name, 0.0) + seconds
    return spent


def _stack(bench: Bench, policy: Policy) -> Tensor | None:
    if isinstance(policy, Predictive) and isinstance(policy.predictor, ConvolutionPredictor):
        meta = bench.traces.calibration.meta
        stack = convolution_stack(meta.classes, meta.kernel, meta.horizon)
        return stack.to(bench.subject.device)
    return None


def chunk_size(subject: Subject, batch_size: int) -> int:
    """How many images are normalised and held at once: whole batches."""
    held = CHUNK_BYTES // (4 * subject.parts["test"].images[0].size)
    return max(batch_size, held - held % batch_size)


def chunks_of(
    subject: Subject, positions: IntArray, batch_size: int
) -> Iterator[tuple[IntArray, Tensor]]:
    """The test images at these positions, normalised, with their positions."""
    size = chunk_size(subject, batch_size)
    for start in range(0, len(positions), size):
        some = positions[start : start + size]
        yield some, subject.at("test", some)

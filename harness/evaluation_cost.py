"""What an evaluation takes: time and energy, at set or simulated clocks, in a scene."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .circumstances import SetClocks
from .evidence import IntArray
from .meters.base import Meter, Reading, Source, minimum_window_s
from .onepass import chunks_of, with_idle
from .scenarios import HOUR_S
from .scenes import Paced, Scene, pace, paced_by_prices
from .scheduler import Outcome, merge
from .stretches import run_stretch, together
from .subject import Subject

Walk = Callable[[Any, IntArray], Outcome]


@dataclass(frozen=True)
class Cost:
    """Time and energy of an evaluation.

    Attributes:
        images: how many.
        scene: when they came.
        seconds: of all of them; in a periodic scene with the idle between.
        response_s: mean seconds from an image's slot to its answer, in a periodic scene.
        late: images that had to wait for an earlier one, in a periodic scene.
        keeps_up: whether images are served as fast as they come.
        joules: of all of them, as ``seconds``; None is unknown.
        energy_source, latency_source: where they come from.
        note: why the energy is unknown.
        clocks: the clocks in words; empty where they were left as they are.
    """

    images: int
    scene: Scene
    seconds: float
    joules: float | None
    energy_source: Source
    latency_source: Source
    response_s: float | None = None
    late: int = 0
    keeps_up: bool = True
    note: str = ""
    clocks: str = ""

    def lines(self) -> list[str]:
        """The cost in lines for people."""
        lines = [self.clocks] if self.clocks else []
        modelled = ", modelled" if self.latency_source == "modelled" else ""
        if self.response_s is None:
            lines.append(
                f"time {self.seconds:.3f} s, batch by batch, images ready in memory{modelled}"
            )
        else:
            waits = "awake" if self.scene.awake else "asleep"
            lines.append(
                f"one image every {self.scene.period_s:g} s, {waits} between: answered after "
                f"{self.response_s * 1e3:.4g} ms{modelled}; {self.late} of {self.images} had to "
                "wait for an earlier one"
            )
        if not self.keeps_up:
            lines.append("the device cannot keep up: images take longer than the period")
        return [*lines, *self._energy_lines()]

    def _energy_lines(self) -> list[str]:
        if self.joules is None:
            return [f"energy unavailable: {self.note}"]
        energy_mj = _digits(self.joules * 1e3 / self.images)
        each = f"energy {energy_mj} mJ per image ({self.energy_source})"
        if self.response_s is None:
            return [each]
        hour_j = _digits(self.joules / self.seconds * HOUR_S)
        return [f"{each}, with what follows until the next one; {hour_j} J per hour"]


def run_timed(
    subject: Subject,
    prepared: Any,
    walk: Walk,
    batch_size: int,
    meter: Meter,
    scene: Scene,
    clocks: SetClocks,
) -> tuple[Outcome, Cost]:
    """The test split run once, timed and metered; the first batch warms up before.

    Args:
        walk: decides a batch of images, given their positions.
        meter: reads the energy; where all of it is modelled, clocks that are set have their part.
        scene: when images come; waited for unless clocks are simulated.
        clocks: set while it runs, or simulated.

    Raises:
        ClockError: clocks cannot be set, or could not be put back.
    """
    with clocks.in_force():
        positions = np.arange(len(subject.parts["test"]))
        waits = scene.period_s is not None and clocks.source != "simulated"
        going = _Going(prepared, walk, batch_size, scene, waits)
        outcomes: list[Outcome] = []
        readings: list[Reading] = []
        for some, images in chunks_of(subject, positions, batch_size):
            if not outcomes:
                walk(images[:batch_size], some[:batch_size])
            going.take(images, some)
            stretch = run_stretch(
                going.once, meter, minimum_window_s(meter), prepared.synchronise, scene.clock
            )
            outcomes += stretch.found
            readings.append(stretch.reading)
            going.keep(stretch.times)
    if clocks.source == "simulated":
        return merge(outcomes), _simulated(going.busy_s, len(positions), scene, clocks)
    reading = _with_watts(together(readings), going, meter, scene, clocks)
    return merge(outcomes), _measured(reading, going, len(positions), scene, clocks)


class _Going:
    """An evaluation under way: serves batches, paced where it has to wait."""

    def __init__(
        self, prepared: Any, walk: Walk, batch_size: int, scene: Scene, waits: bool
    ) -> None:
        self._prepared, self._walk, self._size = prepared, walk, batch_size
        self._scene, self._waits = scene, waits
        self._fresh: list[Paced] = []
        self._fresh_busy_s: list[float] = []
        self.paced: list[Paced] = []
        self.busy_s: list[float] = []

    def take(self, images: Any, positions: IntArray) -> None:
        """Serve these from now on."""
        self._images, self._positions = images, positions

    def keep(self, times: int) -> None:
        """Of a stretch that ran several times, the last is as good as any."""
        self.paced += self._fresh[-1:]
        batches = len(self._fresh_busy_s) // times
        self.busy_s += self._fresh_busy_s[-batches:]
        self._fresh, self._fresh_busy_s = [], []

    def once(self, times: int) -> list[Outcome]:
        """Serve every batch once; the answers."""
        found: list[Outcome] = []

        def serve(number: int) -> None:
            rows = slice(number * self._size, (number + 1) * self._size)
            begun_s = self._scene.clock()
            found.append(self._walk(self._images[rows], self._positions[rows]))
            self._prepared.synchronise()
            self._fresh_busy_s.append(self._scene.clock() - begun_s)

        batches = math.ceil(len(self._images) / self._size)
        if self._waits:
            self._fresh.append(pace(self._scene, batches, serve))
        else:
            for number in range(batches):
                serve(number)
        return found


@dataclass(frozen=True)
class _Watts:
    power_w: float
    idle_w: float


def _with_watts(
    reading: Reading, going: _Going, meter: Any, scene: Scene, clocks: SetClocks
) -> Reading:
    """A modelled reading with the watts of idle, and of clocks that are set, in it."""
    watts = meter
    if clocks.model is not None and getattr(meter, "power_w", None) is not None:
        watts = _Watts(clocks.model.power_w(clocks.point), clocks.model.idle_w)
    if scene.period_s is not None:
        # A CPU that waits awake is at work, which the meter has seen.
        awake = scene.awake and clocks.device_class == "cpu"
        return reading if awake else with_idle(reading, watts, sum(going.busy_s))
    return with_idle(reading, watts, reading.seconds) if watts is not meter else reading


def _measured(
    reading: Reading, going: _Going, images: int, scene: Scene, clocks: SetClocks
) -> Cost:
    return Cost(
        images=images,
        scene=scene,
        seconds=reading.seconds,
        joules=reading.total_j,
        energy_source=reading.total_source,
        latency_source="measured",
        response_s=_mean([each for paced in going.paced for each in paced.response_s]),
        late=sum(paced.late for paced in going.paced),
        keeps_up=scene.period_s is None or sum(going.busy_s) <= scene.period_s * images,
        note=reading.note,
        clocks=clocks.words,
    )


def _simulated(
    busy_s: Sequence[float], images: int, scene: Scene, clocks: SetClocks
) -> Cost:
    """The cost at the operating point; the time as measured is taken for that at the top clock."""
    assert clocks.model is not None
    factor = clocks.model.time_factor(clocks.point)
    service_s = [seconds * factor for seconds in busy_s]
    work_s = sum(service_s)
    cost = Cost(
        images=images,
        scene=scene,
        seconds=work_s,
        joules=work_s * clocks.model.power_w(clocks.point),
        energy_source="modelled",
        latency_source="modelled",
        clocks=clocks.words,
    )
    if scene.period_s is None:
        return cost
    paced = paced_by_prices(scene.period_s, service_s)
    rest_w = clocks.waiting_w if scene.awake else clocks.model.idle_w
    assert cost.joules is not None
    return replace(
        cost,
        seconds=paced.span_s,
        joules=cost.joules + rest_w * (paced.span_s - work_s),
        response_s=_mean(paced.response_s),
        late=paced.late,
        keeps_up=paced.keeps_up,
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _digits(value: float) -> str:
    """Four digits that mean something, without a power of ten up to six."""
    return f"{float(f'{value:.4g}'):g}"

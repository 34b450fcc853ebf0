"""Latency of small pieces of code: samples, their median and its confidence interval.

    warm-up rounds until a round's time is stable
    rounds:  [ unit c | unit a | unit b ]  [ unit a | unit c | unit b ]  ...   until done
    sample:  (lead,) synchronise, open, call x repeats, synchronise, close; seconds per call

Every round runs each unit once in a fresh random order, so that a drift of the clock or of the
temperature meets all units alike. A unit that leads up to another stands before it where it can,
since what has just run need not run again. Raw samples are kept; all statistics derive from them.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

CONFIDENCE = 0.95
_WARM_ROUNDS = 3  # rounds in each of the two windows that are compared
_WARM_CHANGE = 0.05
_RESOLUTIONS = 100  # timer steps in a sample: an error of at most 1 %, random, hence averaged

Clock = Callable[[], int]


@dataclass(frozen=True)
class Limits:
    """When a measurement may stop, and how it samples.

    Attributes:
        seconds: time limit of the whole measurement, warm-up included; no round begins that
            would end later, but every unit is sampled at least once, however long that takes.
        interval: stop when the 95% interval of every median lies within this share of it.
        warmup_share: share of ``seconds`` that the warm-up may take.
        min_sample_s: a sample repeats a short unit until it lasts about this long, or 100 steps
            of the clock; 0 where a repeated unit would find in the caches what is cold in a run.
        max_samples: samples per unit that are enough, whatever the interval.
        energy_seconds: time limit for the windows of an energy counter, on top of ``seconds``;
            None: as long as their tier needs.
        seed: seed of the order of the units.
    """

    seconds: float = 30.0
    interval: float = 0.02
    warmup_share: float = 0.25
    min_sample_s: float = 50e-6
    max_samples: int = 10_000
    energy_seconds: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class Timing:
    """The measured latency of one unit.

    Attributes:
        samples_s: seconds per call, one value per sample, in the order they were taken.
        calls: calls of the unit in each sample; above 1 the unit found its data in the caches.
        target_reached: the 95% interval lies within the target share of the median.
        warm: the warm-up ended because times were stable, not because of its time limit.
        median_s: median of the samples.
        interval_s: 95% confidence interval of the median; None with fewer than 6 samples.
    """

    samples_s: np.ndarray
    calls: int
    target_reached: bool
    warm: bool
    median_s: float = field(init=False)
    interval_s: tuple[float, float] | None = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "median_s", float(np.median(self.samples_s)))
        object.__setattr__(self, "interval_s", median_interval(self.samples_s))

    @property
    def repeats(self) -> int:
        """Number of samples."""
        return len(self.samples_s)


def measure(
    units: Mapping[str, Callable[[], object]],
    limits: Limits,
    *,
    leads: Mapping[str, Sequence[str]] | None = None,
    synchronise: Callable[[], None] = lambda: None,
    clock: Clock = time.perf_counter_ns,
) -> dict[str, Timing]:
    """The latency of every unit, by name.

    Args:
        units: what to time; each is called without arguments and its result is dropped.
        leads: for each unit those that are called, untimed, before a sample of one call, so that
            it meets the caches as in a run; a unit that is repeated would not notice, and in the
            warm-up it does not matter.
        limits: when to stop. Whether the target was reached stands in each ``Timing``.
        synchronise: waits until the device has finished; called before a window opens and before
            it closes. On a device that works asynchronously a window holds one such wait.
        clock: a monotonic clock in nanoseconds.
    """
    if not units:
        return {}
    begin = clock()
    names = list(units)
    order = np.random.default_rng(limits.seed)

    def elapsed_s() -> float:
        return (clock() - begin) * 1e-9

    chains = _chains(names, leads or {})
    sample = _Sampler(units, leads or {}, synchronise, clock)
    with _no_garbage_collection():
        single_s, warm = _warm_up(names, sample.bare, order, elapsed_s, limits)
        floor_s = max(limits.min_sample_s, _RESOLUTIONS * resolution_s(clock))
        calls = {name: max(1, math.ceil(floor_s / max(single_s[name], 1e-9))) for name in names}
        samples: dict[str, list[float]] = {name: [] for name in names}
        check = 1
        for count in range(1, limits.max_samples + 1):
            began_s = elapsed_s()
            for position in order.permutation(len(chains)):
                for name in chains[position]:
                    samples[name].append(sample(name, calls[name]))
            if 2 * elapsed_s() - began_s > limits.seconds:  # another round would end too late
                break
            if count >= check:
                if all(_within(values, limits.interval) for values in samples.values()):
                    break
                check = count + max(1, count // 10)
    return {
        name: Timing(np.array(values), calls[name], _within(values, limits.interval), warm)
        for name, values in samples.items()
    }


def median_interval(samples: np.ndarray | list[float]) -> tuple[float, float] | None:
    """The distribution-free 95% confidence interval of the median; None below 6 samples.

    It runs from the l-th smallest to the l-th largest sample, with l the largest number for which
    P(B < l) <= 2.5%, B binomial(n, 1/2). Source: Conover, "Practical Nonparametric Statistics",
    3rd edition, 1999, section 3.2; Hahn and Meeker, "Statistical Intervals", 1991, section 5.2.
    It takes the samples as independent.
    """
    rank = median_rank(len(samples))
    if rank == 0:
        return None
    ordered = np.sort(np.asarray(samples, dtype=np.float64))
    return float(ordered[rank - 1]), float(ordered[-rank])


@lru_cache(maxsize=4096)
def median_rank(count: int) -> int:
    """The rank l of ``median_interval`` for ``count`` samples; 0 where there is none."""
    tail, rank = 0.0, 0
    while rank < count:
        # Logarithms, since 0.5 ** count is 0 in double precision from 1075 samples on.
        tail += math.exp(
            math.lgamma(count + 1)
            - math.lgamma(rank + 1)
            - math.lgamma(count - rank + 1)
            - count * math.log(2.0)
        )
        if tail > (1 - CONFIDENCE) / 2:
            break
        rank += 1
    return rank


def resolution_s(clock: Clock = time.perf_counter_ns) -> float:
    """The smallest step in seconds that the clock was seen to make."""
    steps: list[int] = []
    while len(steps) < 100:
        before = after = clock()
        for _ in range(100_000):
            after = clock()
            if after != before:
                break
        else:
            break
        steps.append(after - before)
    return min(steps, default=1) * 1e-9


def _chains(names: list[str], leads: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """The units, each after the one that leads right up to it if no other stands there."""
    after: dict[str, str] = {}
    for name in names:
        before = leads.get(name, ())
        if before and before[-1] != name:
            after.setdefault(before[-1], name)
    followers = set(after.values())
    chains = []
    for name in names:
        if name not in followers:
            chain = [name]
            while chain[-1] in after:
                chain.append(after[chain[-1]])
            chains.append(chain)
    return chains


class _Sampler:
    """Takes samples, and knows what ran last."""

    def __init__(
        self,
        units: Mapping[str, Callable[[], object]],
        leads: Mapping[str, Sequence[str]],
        synchronise: Callable[[], None],
        clock: Clock,
    ) -> None:
        self._units, self._leads = units, leads
        self._synchronise, self._clock = synchronise, clock
        self._ran: list[str] = []  # the last of them, as many as ever lead up to a unit
        self._longest = max(map(len, leads.values()), default=0)

    def __call__(self, name: str, calls: int) -> float:
        """Seconds per call of a unit, after what leads up to it if it is called only once."""
        leads = list(self._leads.get(name, ())) if calls == 1 else []
        if leads and self._ran[-len(leads) :] != leads:
            for before in leads:
                self._units[before]()
            self._ran = leads
        seconds = self.bare(name, calls)
        self._ran = [*self._ran, name][-self._longest :] if self._longest else []
        return seconds

    def bare(self, name: str, calls: int) -> float:
        """Seconds per call of a unit, whatever ran before it."""
        return _window(self._units[name], calls, self._synchronise, self._clock)


def _window(
    unit: Callable[[], object], calls: int, synchronise: Callable[[], None], clock: Clock
) -> float:
    synchronise()
    begin = clock()
    for _ in range(calls):
        unit()
    synchronise()
    return (clock() - begin) * 1e-9 / calls


def _warm_up(
    names: list[str],
    sample: Callable[[str, int], float],
    order: np.random.Generator,
    elapsed_s: Callable[[], float],
    limits: Limits,
) -> tuple[dict[str, float], bool]:
    """Seconds of one warm call per unit, and whether the time of a round became stable.

    Stable: the median of the last three rounds differs by at most 5% from that of the three
    before. Rounds are compared, not units, since a unit of microseconds never settles alone.
    """
    rounds: list[dict[str, float]] = []
    warm = False
    while not warm and (not rounds or elapsed_s() < limits.warmup_share * limits.seconds):
        shuffled = [names[position] for position in order.permutation(len(names))]
        rounds.append({name: sample(name, 1) for name in shuffled})
        totals = [sum(times.values()) for times in rounds[-2 * _WARM_ROUNDS :]]
        if len(totals) == 2 * _WARM_ROUNDS:
            before = float(np.median(totals[:_WARM_ROUNDS]))
            after = float(np.median(totals[_WARM_ROUNDS:]))
            warm = abs(after - before) <= _WARM_CHANGE * before
    last = rounds[-_WARM_ROUNDS:]
    return {name: float(np.median([r[name] for r in last])) for name in names}, warm


def _within(samples: list[float], share: float) -> bool:
    interval = median_interval(samples)
    if interval is None:
        return False
    median = float(np.median(samples))
    return max(interval[1] - median, median - interval[0]) <= share * median


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Keeps the collector from pausing a window; as ``timeit`` does."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()

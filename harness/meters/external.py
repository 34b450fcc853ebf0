"""A meter of one's own: a command that prints one number, or a file that holds one.

So a wall meter, a lab's instrument or a board's own tool can be plugged in. The number is joules
counted up, and then read at the edges like any counter, or watts of now, and then sampled. A
command is started without a shell and must answer within a few seconds.
"""

from __future__ import annotations

import math
import shlex
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from .base import Clock, Reading, Source, Unavailable, too_short
from .counters import Counter, Sleep, Unreadable, find_period
from .edges import EdgeWindow
from .sampled import Sampler, Watch

Unit = Literal["joules", "watts"]
Covers = Literal["cpu", "gpu", "module", "board"]

FILE = "file:"
LIMIT_S = 5.0
"""Longest time that a command may take."""

_UNIT_J = 1e-6  # what is printed is counted in microjoules, so that steps are whole numbers
_OWN_S = 1.0  # update period of watts that do not change while they are watched: as of wall meters
_WATCH_S, _FILE_PAUSE_S = 2.5, 0.02
_LEAST_PERIOD_S = 0.1
_MOST_SHARE = 0.25  # of the time that a command may run, one after another


class ExternalMeter:
    """An instrument that prints joules or watts.

    Args:
        label: the command or file, in words.
        covers: the domain that it measures.
        update_period_s: time between two updates of its counter, or between two samples.
        instrument: what opens its windows.
    """

    def __init__(
        self,
        label: str,
        covers: str,
        update_period_s: float,
        instrument: Callable[[], EdgeWindow] | Sampler,
        counter: Counter | None = None,
    ) -> None:
        self.name = label
        self.domains = (covers,)
        self.update_period_s = update_period_s
        self.counter = counter
        self._instrument = instrument

    @property
    def source(self) -> Source:
        """Always ``measured``."""
        return "measured"

    def open(self) -> ExternalWindow:
        """Start a window."""
        if isinstance(self._instrument, Sampler):
            return ExternalWindow(self, self._instrument.watch())
        return ExternalWindow(self, self._instrument())


class ExternalWindow:
    """An open window of an instrument."""

    def __init__(self, meter: ExternalMeter, stretch: EdgeWindow | Watch) -> None:
        self.meter, self.stretch = meter, stretch

    def stop(self) -> None:
        """Set the closing moment."""
        self.stretch.stop()

    def close(self) -> Reading:
        """The energy since the window was opened."""
        if isinstance(self.stretch, EdgeWindow):
            (share,) = self.stretch.shares()
            known = share.joules, share.uncertainty_j, share.note
            seconds = self.stretch.seconds
        else:
            known, seconds = self._sampled(self.stretch)
        joules, uncertainty_j, note = known
        (domain,) = self.meter.domains
        return Reading(
            seconds,
            {domain: joules},
            "measured",
            note,
            uncertainty_j={} if joules is None else {domain: uncertainty_j},
            overhead_s=self.stretch.overhead_s,
        )

    def _sampled(self, watch: Watch) -> tuple[tuple[float | None, float, str], float]:
        watched = watch.close()
        note = too_short(watched.seconds, self.meter.update_period_s)
        if not note and watched.gap:
            note = f"{self.meter.name}: {watched.gap}"
        if note:
            return (None, 0.0, note), watched.seconds
        # A value may be as old as the instrument's own period when it is read.
        joules, uncertainty_j = watched.joules("watts", delay_s=self.meter.update_period_s)
        return (joules, uncertainty_j, ""), watched.seconds


def find_external(
    command_or_file: str,
    unit: Unit = "watts",
    covers: Covers = "board",
    *,
    clock: Clock = time.perf_counter,
    sleep: Sleep = time.sleep,
    limit_s: float = LIMIT_S,
    threaded: bool = True,
) -> ExternalMeter | Unavailable:
    """The instrument, proven by reading it, or why it cannot be used.

    Args:
        command_or_file: a command with its arguments, or ``file:PATH``.
        unit: ``joules`` counted up, or ``watts`` of now.
        covers: the domain that it measures.
        clock: a monotonic clock in seconds.
        sleep: waits so many seconds of that clock.
        limit_s: longest time that the command may take.
        threaded: sample in a thread; else only at the edges and when asked.
    """
    # Unit and domain belong to the name: runs are told apart by those of their meters.
    label = f"external meter '{command_or_file}' ({unit} of the {covers})"
    try:
        read = _reader(command_or_file, limit_s)
        read()
        if unit == "joules":
            return _counting(label, covers, read, clock, sleep)
        return _sampling(label, covers, read, clock, sleep, threaded)
    except Unreadable as error:
        return Unavailable(label, (covers,), str(error), _remedy(command_or_file, unit))


def _counting(
    label: str, covers: str, read: Callable[[], float], clock: Clock, sleep: Sleep
) -> ExternalMeter | Unavailable:
    counter = Counter(label, lambda: round(read() / _UNIT_J), _UNIT_J, clock)
    period = find_period(counter, clock, sleep)
    if counter.faults:
        return Unavailable(
            label,
            (covers,),
            f"{counter.faults[0]}; joules must be counted up",
            "use --external-unit watts if it prints the power of now",
        )
    if period is None:
        return Unavailable(label, (covers,), f"{label} does not move")
    counter.period = period
    return ExternalMeter(
        label, covers, period.seconds, lambda: EdgeWindow([counter], clock, sleep), counter
    )


def _sampling(
    label: str,
    covers: str,
    read: Callable[[], float],
    clock: Clock,
    sleep: Sleep,
    threaded: bool,
) -> ExternalMeter:
    def watts() -> float:
        found = read()
        if found < 0:
            raise Unreadable(f"{label} shows {found:g} W; watts must be 0 or more")
        return found

    own_s, took_s = _pace(watts, clock, sleep)
    period_s = max(own_s, _LEAST_PERIOD_S, took_s / _MOST_SHARE)
    sampler = Sampler(lambda: ({"watts": watts()}, {}), period_s, clock, threaded=threaded)
    return ExternalMeter(label, covers, period_s, sampler)


def _pace(watts: Callable[[], float], clock: Clock, sleep: Sleep) -> tuple[float, float]:
    """How often the watts change, and how long one read takes, in seconds."""
    begin_s = changed_s = clock()
    last = watts()
    took_s = clock() - begin_s
    gaps = []
    while clock() - begin_s < _WATCH_S:
        sleep(max(_FILE_PAUSE_S, took_s))
        latest, now_s = watts(), clock()
        if latest != last:
            gaps.append(now_s - changed_s)
            last, changed_s = latest, now_s
    # The first gap began before anybody looked.
    own = gaps[1:]
    return (sum(own) / len(own) if own else _OWN_S), took_s


def _reader(command_or_file: str, limit_s: float) -> Callable[[], float]:
    if command_or_file.startswith(FILE):
        path = Path(command_or_file.removeprefix(FILE))
        return lambda: _from_file(path)
    try:
        command = shlex.split(command_or_file)
    except ValueError as error:
        raise Unreadable(f"the command {command_or_file!r} cannot be split: {error}") from error
    if not command:
        raise Unreadable("the command is empty")
    return lambda: _from_command(command, limit_s)


def _from_file(path: Path) -> float:
    try:
        # A pipe or a serial port has no end: reading it whole would wait forever.
        if path.exists() and not path.is_file():
            raise Unreadable(
                f"{path} is no plain file; give a command that reads one number from it"
            )
        return _number(path.read_text(encoding="utf-8", errors="replace"), str(path))
    except OSError as error:
        raise Unreadable(f"{path} cannot be read: {error.strerror}") from error


def _from_command(command: list[str], limit_s: float) -> float:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise Unreadable(f"{command[0]} did not answer within {limit_s:g} s") from error
    except OSError as error:
        raise Unreadable(f"{command[0]} cannot be started: {error.strerror}") from error
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        why = f": {said[-1]}" if said else ""
        raise Unreadable(f"{command[0]} ended with exit status {done.returncode}{why}")
    return _number(done.stdout, command[0])


def _number(text: str, whose: str) -> float:
    shown = text.strip()
    try:
        found = float(shown)
    except ValueError:
        short = shown if len(shown) <= 40 else f"{shown[:40]}..."
        raise Unreadable(f"{whose} gives {short!r}, which is not one number") from None
    if not math.isfinite(found):
        raise Unreadable(f"{whose} gives {shown!r}, which is no finite number")
    return found


def _remedy(command_or_file: str, unit: str) -> str:
    if not command_or_file.strip():
        return f"give a command that prints one number in {unit}, or file:PATH"
    if command_or_file.startswith(FILE):
        return f"the file must hold one number in {unit} and nothing else"
    return (
        f"run it in a terminal: {command_or_file} must print one number in {unit} and nothing else"
    )

"""Clocks changed for a while: all or nothing, and put back however the while ends.

with ClockSession(find_actuators(...)) as session:
    session.apply({"gpu": 854.25, "cpu": 1267.2})
    ...work...

end of the block, exception, SIGINT    put back, then it goes on as ever
SIGTERM, SIGHUP                        put back, then the process ends by the signal (128 + 15)
SIGKILL, loss of power                 ``exitbench hardware restore``, from the journal
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import ExitbenchError
from .base import Actuator, ClockError, Domain, LeftChanged
from .journal import (
    Entry,
    Lock,
    journal_path,
    read_journal,
    remove_journal,
    restore_command,
    write_journal,
)
from .signals import Signals
from .sysfs import exact

# Cores first: the clock of a core that is offline can neither be set nor put back.
_ORDER = ("cores", "cpu", "gpu", "memory")


class ClockSession:
    """Sets clocks through actuators, and puts back what it found. Usable once, as a block.

    Where every actuator is simulated there is no journal, no lock and no signal handler.
    """

    def __init__(
        self,
        actuators: Mapping[str, Actuator] | Mapping[Domain, Actuator],
        *,
        journal: Path | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """A session that has changed nothing so far.

        Args:
            actuators: by domain, as ``find_actuators`` gives them.
            journal: where to keep what the clocks were; this user's place if None.
            clock: a monotonic clock in seconds.
        """
        given: dict[str, Actuator] = dict(actuators.items())
        order = sorted(given, key=lambda domain: (*_ORDER, domain).index(domain))
        self._actuators = {domain: given[domain] for domain in order}
        self._journal = journal_path() if journal is None else Path(journal)
        self._clock = clock
        self._lock = Lock(self._journal)
        self._state = "new"
        self._owner = os.getpid()
        self._levels: dict[str, tuple[float, ...]] = {}
        self._before: dict[str, Mapping[str, Any]] = {}
        self._touched: list[str] = []
        self._applied: dict[str, float] = {}
        self._signals = Signals(self._end)

    @property
    def simulated(self) -> bool:
        """Whether nothing that it does changes a clock."""
        return all(actuator.simulated for actuator in self._actuators.values())

    def __enter__(self) -> ClockSession:
        """Become the one process that governs clocks.

        Raises:
            ClockError: another process governs them, or a killed one has left them changed.
        """
        if self._state != "new":
            raise RuntimeError("a ClockSession is used once")
        if not self.simulated:
            self._lock.take()
            try:
                self._check_journal()
            except ClockError:
                self._lock.give_back()
                raise
        # Before the handlers: a signal that comes right after them has to find something to end.
        self._state = "open"
        if not self.simulated:
            self._signals.install()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Put everything back.

        Raises:
            ClockError: some of it could not be put back; the rest was.
        """
        try:
            self._end()
        except ClockError as failure:
            first = f"{error} Besides, " if isinstance(error, ExitbenchError) else ""
            raise type(failure)(f"{first}{failure}") from error

    def apply(self, values: Mapping[str, float] | Mapping[Domain, float]) -> float:
        """Set these clocks, all or none, and return the seconds that it took.

        What is set so already costs nothing.

        Args:
            values: by domain: MHz, or a number of cores.

        Raises:
            ClockError: a domain that nothing sets, an unknown level, or an actuator that failed;
                the clocks are as they were before the call, or the message says what is not.
        """
        if self._state == "new":
            raise RuntimeError("a ClockSession sets clocks inside its with block only")
        if self._state == "ended":
            raise ClockError("the clocks were put back by a signal; this session has ended")
        start = self._clock()
        wanted = self._to_change(dict(values.items()))
        if not wanted:
            return 0.0
        with self._signals.held():
            touched = list(self._touched)
            self._remember(wanted)
            try:
                self._set_all(wanted)
            except LeftChanged:
                raise
            except ClockError:
                self._forget(touched)
                raise
        return self._clock() - start

    def current(self) -> Mapping[str, float | None]:
        """What is set now, by domain, as the device tells it; None where it does not."""
        return {domain: actuator.current() for domain, actuator in self._actuators.items()}

    def _to_change(self, values: Mapping[str, float]) -> dict[str, float]:
        unknown = [domain for domain in values if domain not in self._actuators]
        if unknown:
            raise ClockError(
                f"nothing here sets the clock of: {', '.join(unknown)}. What can be set: "
                f"{', '.join(self._actuators) or 'nothing'}"
            )
        wanted = {}
        for domain in self._actuators:
            if domain in values:
                value = self._level(domain, values[domain])
                if self._applied.get(domain) != value:
                    wanted[domain] = value
        if "cores" in wanted and "cpu" in self._applied and "cpu" not in wanted:
            # Cores that come back have the clock that they went with.
            wanted["cpu"] = self._applied["cpu"]
        return wanted

    def _level(self, domain: str, value: float) -> float:
        actuator = self._actuators[domain]
        if domain not in self._levels:
            self._levels[domain] = actuator.levels()
        unit = "" if domain == "cores" else " MHz"
        return exact(self._levels[domain], value, lambda: actuator.name, unit)

    def _remember(self, wanted: Mapping[str, float]) -> None:
        """Have on disk what these clocks are, before the first change of each."""
        if not self._before:
            # All of them, also those that are changed later: switching cores hides clocks.
            self._before = {
                domain: actuator.snapshot() for domain, actuator in self._actuators.items()
            }
        touched = [*self._touched, *(domain for domain in wanted if domain not in self._touched)]
        if touched != self._touched:
            self._write_journal(touched)
            self._touched = touched

    def _forget(self, touched: list[str]) -> None:
        """Take from the journal what a failed call has put back."""
        self._touched = touched
        # A journal with more in it than was changed does no harm, so the first error goes on.
        with suppress(ClockError):
            self._write_journal(touched)

    def _write_journal(self, touched: list[str]) -> None:
        real = [domain for domain in touched if not self._actuators[domain].simulated]
        entries = [Entry(self._actuators[domain].name, self._before[domain]) for domain in real]
        if entries:
            write_journal(self._journal, entries)
        elif not self.simulated:
            remove_journal(self._journal)

    def _set_all(self, wanted: Mapping[str, float]) -> None:
        done: list[str] = []
        for domain, value in wanted.items():
            try:
                self._actuators[domain].set(value)
            except LeftChanged:
                raise
            except ClockError as error:
                failures = self._take_back(domain, done)
                if failures:
                    raise LeftChanged(
                        f"{error}. Not put back: {'; '.join(failures)}. Run: "
                        f"{restore_command(self._journal)}"
                    ) from error
                raise
            done.append(domain)
        self._applied.update(wanted)

    def _take_back(self, failed: str, done: list[str]) -> list[str]:
        """Undo a call that failed at one domain, the last first; what could not be undone."""
        failures = []
        for domain in (failed, *reversed(done)):
            actuator = self._actuators[domain]
            try:
                if domain in self._applied:
                    actuator.set(self._applied[domain])
                elif domain != failed:
                    # An actuator that fails has put itself back.
                    actuator.restore(self._before[domain])
            except ClockError as failure:
                self._applied.pop(domain, None)
                failures.append(f"{actuator.name}: {failure}")
        return failures

    def _end(self) -> None:
        """Put everything back, once, and let go of journal, lock and signals."""
        # A process that was forked off has the session, but its parent still needs the clocks.
        if self._state != "open" or os.getpid() != self._owner:
            return
        with self._signals.held():
            self._state = "ended"
            try:
                failures = self._put_back()
                if not failures and not self.simulated:
                    remove_journal(self._journal)
            finally:
                self._signals.uninstall()
                self._lock.give_back()
            if failures:
                raise LeftChanged(
                    f"not all clocks could be put back: {'; '.join(failures)}. The journal "
                    f"{self._journal} has what they were; run: {restore_command(self._journal)}"
                )

    def _put_back(self) -> list[str]:
        failures = []
        for domain in [each for each in self._actuators if each in self._touched]:
            actuator = self._actuators[domain]
            try:
                actuator.restore(self._before[domain])
            except ClockError as failure:
                failures.append(f"{actuator.name}: {failure}")
        return failures

    def _check_journal(self) -> None:
        record = read_journal(self._journal)
        if record is None:
            return
        if not record.of_this_boot():
            # The reboot has put the clocks back.
            remove_journal(self._journal)
            return
        raise ClockError(
            f"an exitbench that was killed (process {record.pid}, {record.time}) has left clocks "
            f"changed. Put them back first: {restore_command(self._journal)}"
        )

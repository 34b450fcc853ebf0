"""Signals that end a process, made to wait until clocks are back."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# SIGHUP is what a process gets when the terminal or the connection to it is lost.
_CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Signals:
    """Calls ``end`` before SIGINT, SIGTERM or SIGHUP takes its usual course.

    A signal in the middle of a change waits until the change is done. The usual course is that of
    the handler that was there before: KeyboardInterrupt for SIGINT, the death of the process by
    the signal for the others, or what the program has installed. Signals that were ignored stay so.
    Outside the main thread Python lets nobody install handlers, and nothing is done. A process
    that is forked off inherits the handlers, but the clocks are not its own: it puts nothing back.
    """

    def __init__(self, end: Callable[[], None]) -> None:
        self._end = end
        self._before: dict[int, Any] = {}
        self._held = False
        self._pending: int | None = None
        self._owner = os.getpid()

    def install(self) -> None:
        """Catch signals from now on."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _CAUGHT:
            before = signal.getsignal(number)
            # None is a handler that was not installed from Python and cannot be put back.
            if before not in (signal.SIG_IGN, None):
                # Noted first: the signal can come as soon as it is caught.
                self._before[number] = before
                signal.signal(number, self._caught)

    def uninstall(self) -> None:
        """Put the handlers back that were there before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lets a signal that comes within the block wait for its end."""
        self._held = True
        failed = True
        try:
            yield
            failed = False
        finally:
            self._held = False
            number, self._pending = self._pending, None
            # Where the end itself has failed, its message is worth more than the signal.
            if number is not None and (self._before or not failed):
                self._take(number)

    def _caught(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._held:
            self._pending = number
        else:
            self._take(number)

    def _take(self, number: int) -> None:
        if self._before:
            try:
                if os.getpid() == self._owner:
                    self._end()
            finally:
                # Also where there was nothing to end: what is raised must not come here again.
                self.uninstall()
        signal.raise_signal(number)

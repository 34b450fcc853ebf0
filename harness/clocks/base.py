"""What everything that sets a clock answers to, and how it fails: clearly, with nothing changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

from ..errors import ExitbenchError

Domain = Literal["cpu", "gpu", "memory", "cores"]
"""What is set. ``cores`` counts CPU cores that are online, the others are clocks in MHz."""


class ClockError(ExitbenchError):
    """A clock cannot be set as asked; nothing was changed, or all of it was put back."""


class LeftChanged(ClockError):
    """A clock could neither be set as asked nor be put back; the message says which."""


class Actuator(Protocol):
    """One thing that can be set: a clock domain of one device, or the number of CPU cores."""

    @property
    def name(self) -> str:
        """The actuator in the user's words, such as ``cpufreq policy0``; unique on a machine."""
        ...

    @property
    def domain(self) -> Domain:
        """What it sets."""
        ...

    @property
    def simulated(self) -> bool:
        """Whether it changes nothing and only prices."""
        ...

    def levels(self) -> tuple[float, ...]:
        """The device's own levels, rising, read now: MHz, or numbers of cores."""
        ...

    def current(self) -> float | None:
        """What is set now; None where the device does not tell."""
        ...

    def snapshot(self) -> Mapping[str, Any]:
        """What ``restore`` needs to put everything back, as plain JSON values."""
        ...

    def set(self, value: float) -> None:
        """Set one of ``levels()`` and read it back.

        Raises:
            ClockError: no permission, an unknown level, or the driver refused or ignored it; what
                was set before is set again, or it is LeftChanged.
        """
        ...

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Put back what ``snapshot`` found; may be called again.

        Raises:
            ClockError: it could not be put back.
        """
        ...

"""The one root of every error that is meant for the user."""

from __future__ import annotations


class ExitbenchError(Exception):
    """Bad input or a machine that cannot do what was asked.

    The message says what is wrong, where (file, key, value), what would be right and what to do.
    The command line prints it without a traceback and ends with ``exit_status``.
    """

    exit_status = 2


class CheckFailed(ExitbenchError):
    """A check that the user asked for did not hold; nothing was wrong with the input."""

    exit_status = 1

"""Memory that was freed, given back to the system."""

from __future__ import annotations

import ctypes
import sys


def release() -> None:
    """Give back what this process has freed and its C library keeps for later.

    glibc keeps freed blocks of some megabytes, such as weights on their way into another layout, in
    pieces between those in use; a process that prepares a network would stay larger by them. Does
    nothing where the C library has no such call.
    """
    if not sys.platform.startswith("linux"):
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)

"""Large pages under weights: one entry of the processor's address cache for 2 MiB, not for 4 KiB.

At batch 1 a network's weights are read once per image. With small pages each 4 KiB of them costs a
look-up of where they are, and throws out what heads and Python find by the same cache. Linux gives
large pages to memory that asks for them; packed weights are nothing that a program can ask for by
itself, so the whole process is gone through once they are there.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path

PIECE = 2 << 20
"""Bytes of a large page on x86-64, and on arm64 with pages of 4 KiB."""

LEAST_WEIGHTS = 16 << 20
"""Bytes of weights from which on it is done: smaller networks stay in the caches as they are."""

FILLED = 0.75
"""Share of a piece that must be in use, so that the process grows by a third of it at most."""

_COLLAPSE = 25  # MADV_COLLAPSE of Linux 6.1 and later
_PRESENT = 1 << 63  # of a page's entry in the page map
_MAPS = Path("/proc/self/maps")
_PAGE_MAP = Path("/proc/self/pagemap")
_POLICY = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def use_large_pages() -> int:
    """Put the memory that this process has written to into large pages, where the system can.

    Takes about 2 ms per MiB, less where pages are large already. Nothing is changed but the time
    that reading takes. Left alone are pieces that are used by less than FILLED.

    Returns:
        Bytes that are now in large pages; 0 where the system has none, or is set to give none.
    """
    if not sys.platform.startswith("linux"):
        return 0
    try:
        if "[never]" in _POLICY.read_text(encoding="ascii"):
            return 0
        advise = ctypes.CDLL(None).madvise
        maps = _MAPS.read_text(encoding="utf-8", errors="replace")
        advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        pieces = [at for line in maps.splitlines() for at in _in_use(_pieces(line))]
    except (AttributeError, OSError):
        return 0
    return PIECE * sum(advise(at, PIECE, _COLLAPSE) == 0 for at in pieces)


def _pieces(line: str) -> range:
    """Addresses of the whole pieces in a line of the process's map, if it is memory of its own."""
    addresses, rights, _, _, _, *name = line.split()
    if rights != "rw-p" or name not in ([], ["[heap]"]):
        return range(0)
    first, last = (int(address, 16) for address in addresses.split("-"))
    return range(-(-first // PIECE) * PIECE, last // PIECE * PIECE, PIECE)


def _in_use(pieces: range) -> Iterator[int]:
    """Those of neighbouring pieces of which at least FILLED is in memory."""
    each = PIECE // mmap.PAGESIZE
    if not pieces:
        return
    with _PAGE_MAP.open("rb") as file:
        file.seek(pieces[0] // mmap.PAGESIZE * 8)
        for at in pieces:
            entries = array("Q", file.read(each * 8))
            if sum(entry >= _PRESENT for entry in entries) >= FILLED * each:
                yield at

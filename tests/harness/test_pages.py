"""Memory is put into large pages where the system can, and nothing else changes."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest
from exitbench.harness.runtime import pages, registry
from exitbench.harness.runtime.pages import PIECE, use_large_pages
from exitbench.models.network import ExitNetwork


def test_what_memory_holds_stays_the_same() -> None:
    values = np.arange(4 * PIECE, dtype=np.uint8)
    gained = use_large_pages()
    assert gained >= 0
    assert gained % PIECE == 0
    assert np.array_equal(values, np.arange(4 * PIECE, dtype=np.uint8))


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("7f0000000000-7f0000400000 rw-p 00000000 00:00 0", 2),
        ("7f00001ff000-7f0000401000 rw-p 00000000 00:00 0", 1),
        ("7f0000000000-7f0000400000 rw-p 00000000 00:00 0 [heap]", 2),
        ("7f0000000000-7f0000400000 r-xp 00000000 08:01 7 /lib/libtorch.so", 0),
        ("7f0000000000-7f0000400000 rw-p 00000000 08:01 7 /lib/libtorch.so", 0),
        ("7f0000000000-7f0000400000 rw-p 00000000 00:00 0 [stack]", 0),
        ("7f0000001000-7f0000002000 rw-p 00000000 00:00 0", 0),
    ],
)
def test_whole_pieces_of_the_process_s_own_memory_are_found(line: str, count: int) -> None:
    found = pages._pieces(line)
    assert len(found) == count
    assert all(at % PIECE == 0 for at in found)


def test_a_piece_that_is_hardly_used_is_left_alone() -> None:
    area = mmap.mmap(-1, 3 * PIECE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    area.madvise(mmap.MADV_NOHUGEPAGE)
    at = np.frombuffer(area, dtype=np.uint8).ctypes.data
    first = -(-at // PIECE) * PIECE
    pages_of_it = PIECE // mmap.PAGESIZE

    def fill(share: float) -> None:
        for number in range(int(share * pages_of_it)):
            area[first - at + number * mmap.PAGESIZE] = 1

    piece = range(first, first + PIECE, PIECE)
    assert list(pages._in_use(piece)) == []
    fill(pages.FILLED - 0.05)
    assert list(pages._in_use(piece)) == []
    fill(1.0)
    assert list(pages._in_use(piece)) == [first]


@pytest.mark.parametrize("missing", ["_MAPS", "_PAGE_MAP", "_POLICY"])
def test_a_system_that_does_not_tell_is_left_alone(
    missing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pages, missing, tmp_path / "missing")
    assert use_large_pages() == 0


def test_who_wants_none_gets_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    policy = tmp_path / "enabled"
    policy.write_text("always madvise [never]\n", encoding="ascii")
    monkeypatch.setattr(pages, "_POLICY", policy)
    assert use_large_pages() == 0


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages.sys, "platform", "win32")
    assert use_large_pages() == 0


@pytest.mark.parametrize(
    ("least", "gained", "said"), [(0, 0, False), (0, 1, True), (10**12, 1, False)]
)
def test_a_prepared_network_of_some_size_says_that_it_was_done(
    least: int, gained: int, said: bool, monkeypatch: pytest.MonkeyPatch, tiny_vgg: ExitNetwork
) -> None:
    monkeypatch.setattr(registry, "LEAST_WEIGHTS", least)
    monkeypatch.setattr(registry, "use_large_pages", lambda: gained)
    words = registry.prepare(tiny_vgg, runtime="eager").words
    assert ("large pages" in words) == said

"""The journal of clocks: where it is, what is in it, and when it is written."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from exitbench.harness.cli import main
from exitbench.harness.clocks.base import ClockError
from exitbench.harness.clocks.journal import boot_id, journal_path
from exitbench.harness.clocks.session import ClockSession
from fake_clocks import (
    CPUFREQ,
    Kernel,
    small_board,
)  # fmt: skip


def test_the_journal_is_on_disk_before_the_first_change_of_each_clock(
    tmp_path: Path, kernel: Kernel, journal: Path
) -> None:
    known: list[set[str]] = []
    kernel.before_write = lambda count: known.append(
        {each["snapshot"]["kind"] for each in json.loads(journal.read_text())["actuators"]}
    )

    with ClockSession(small_board(tmp_path), journal=journal) as session:
        session.apply({"cpu": 960.0})
        cpu_writes = len(known)
        session.apply({"gpu": 854.25})

    assert known[:cpu_writes] == [{"cpufreq"}] * cpu_writes
    assert known[cpu_writes] == {"cpufreq", "devfreq"}


def test_the_journal_is_synced_with_its_folder_before_the_first_change(
    tmp_path: Path, kernel: Kernel, journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        events.append("folder" if Path(f"/proc/self/fd/{handle}").readlink().is_dir() else "file")
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    kernel.before_write = lambda count: events.append("change")

    with ClockSession(small_board(tmp_path), journal=journal) as session:
        session.apply({"cpu": 960.0})

    assert events[:3] == ["file", "folder", "change"]


def test_the_journal_says_who_when_and_what(tmp_path: Path, kernel: Kernel, journal: Path) -> None:
    with ClockSession(small_board(tmp_path), journal=journal) as session:
        session.apply({"cpu": 960.0})
        content: dict[str, Any] = json.loads(journal.read_text())

    folder = str(tmp_path / CPUFREQ / "policy0")
    was = {"min": 345600, "max": 2035200, "governor": "schedutil"}
    assert content["pid"] == os.getpid()
    assert content["boot_id"] == boot_id()
    assert content["actuators"] == [
        {
            "name": "cpufreq policy0",
            "snapshot": {"kind": "cpufreq", "policies": {folder: was}},
        }
    ]


@pytest.mark.parametrize(
    ("environ", "root", "path"),
    [
        ({"HOME": "/home/x"}, False, "/home/x/.local/state/exitbench/clocks.json"),
        ({"HOME": "/home/x", "XDG_STATE_HOME": "/s"}, False, "/s/exitbench/clocks.json"),
        ({"HOME": "/home/x", "XDG_STATE_HOME": "relative"}, False,
         "/home/x/.local/state/exitbench/clocks.json"),
        ({"HOME": "/root", "XDG_STATE_HOME": "/s"}, True, "/var/lib/exitbench/clocks.json"),
    ],
)  # fmt: skip
def test_the_journal_has_its_place_per_user(
    environ: dict[str, str], root: bool, path: str
) -> None:
    assert journal_path(environ, root=root) == Path(path)


def test_a_journal_of_a_killed_process_is_to_be_restored_first(
    tmp_path: Path, kernel: Kernel, journal: Path
) -> None:
    left = {"schema": 1, "pid": 7, "boot_id": boot_id(), "time": "then", "actuators": []}
    journal.parent.mkdir()
    journal.write_text(json.dumps(left))

    with pytest.raises(ClockError, match=r"process 7, then.*Put them back first: exitbench hard"):
        ClockSession(small_board(tmp_path), journal=journal).__enter__()
    # The lock is free again.
    journal.unlink()
    with ClockSession(small_board(tmp_path / "again"), journal=journal):
        pass


def test_a_journal_from_before_a_reboot_stands_in_nobodys_way(
    tmp_path: Path, kernel: Kernel, journal: Path
) -> None:
    left = {"schema": 1, "pid": 7, "boot_id": "another", "time": "then", "actuators": []}
    journal.parent.mkdir()
    journal.write_text(json.dumps(left))

    with ClockSession(small_board(tmp_path), journal=journal):
        assert not journal.exists()


def test_a_disk_too_full_for_the_lock_changes_nothing_and_leaves_no_lock(
    tmp_path: Path, kernel: Kernel, journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    actuators = small_board(tmp_path)

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(ClockError, match=r"clocks\.lock cannot be written \(No space left"):
        ClockSession(actuators, journal=journal).__enter__()
    monkeypatch.undo()

    assert kernel.writes == []
    with ClockSession(actuators, journal=journal):
        pass


def test_a_journal_in_a_folder_that_is_closed_to_the_user_is_nobodys(
    monkeypatch: pytest.MonkeyPatch, journal: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    looked_at = Path.stat

    def closed(path: Path, **options: Any) -> Any:
        if path.name == journal.name:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return looked_at(path, **options)

    # As a folder of root's reads to others; the tests may be root, who may look anywhere.
    monkeypatch.setattr(Path, "stat", closed)

    assert main(["hardware", "restore", "--journal", str(journal)]) == 0
    assert "nothing to put back" in capsys.readouterr().out

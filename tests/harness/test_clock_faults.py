"""What may go wrong while clocks are changed, each with its outcome.

After every fault what is set equals what was set before, or the message says exactly what is not.
``test_clock_kills.py`` ends real processes in the middle of their work.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from exitbench.harness.cli import main
from exitbench.harness.clocks.base import Actuator, ClockError
from exitbench.harness.clocks.cores import find_cores
from exitbench.harness.clocks.cpufreq import find_cpufreq
from exitbench.harness.clocks.devfreq import find_devfreq, find_emc
from exitbench.harness.clocks.journal import boot_id
from exitbench.harness.clocks.nvml import find_nvml
from exitbench.harness.clocks.restore import run_hardware_restore
from exitbench.harness.clocks.session import ClockSession
from exitbench.harness.configs_device import HardwareRestoreConfig
from fake_clocks import (
    EMC,
    ClockCard,
    CodedNVMLError,
    Kernel,
    Rule,
    add_cores,
    add_devfreq,
    add_emc,
    add_policy,
    content,
    ignore,
    lockable_nvml,
    refuse,
    refuse_above,
)  # fmt: skip

NODE = "17000000.gp10b"


def board(root: Path) -> dict[str, Actuator]:
    """Two CPU clusters, a GPU, memory and four cores."""
    add_policy(root, 0)
    add_policy(root, 2)
    add_devfreq(root, NODE)
    add_emc(root)
    add_cores(root, 4)
    return {
        "cpu": find_cpufreq(root),
        "gpu": find_devfreq(root, "gpu", (NODE,)),
        "memory": find_emc(root),
        "cores": find_cores(root),
    }


def to_806400(path: Path, value: str) -> str:
    """A driver that has no 960 MHz and takes the level below."""
    return "806400" if value == "960000" else value


@dataclass(frozen=True)
class Fault:
    """A driver that does not do as asked, and the words that must tell of it."""

    name: str
    rules: Mapping[str, Rule]
    asked: Mapping[str, float]
    words: str


FAULTS = (
    Fault(
        "permission denied at the first file",
        {"policy0/scaling_min_freq": refuse(errno.EACCES)},
        {"cpu": 960.0},
        r"no permission to write .*policy0/scaling_min_freq: run the command as root: sudo",
    ),
    Fault(
        "permission denied at the second cluster",
        {"policy2/scaling_min_freq": refuse(errno.EPERM)},
        {"cpu": 960.0},
        r"no permission to write .*policy2/scaling_min_freq",
    ),
    Fault(
        "one limit refused",
        {"policy0/scaling_max_freq": refuse(errno.EACCES)},
        {"cpu": 960.0},
        r"no permission to write .*policy0/scaling_max_freq: .* exitbench \.\.\.$",
    ),
    Fault("unknown level", {}, {"gpu": 900.0, "cpu": 960.0}, "devfreq 17000000.gp10b has no level"),
    Fault(
        "level refused by the driver",
        {"gp10b/min_freq": refuse_above(10**9)},
        {"gpu": 1122.0},
        r"the driver refused 1122000000 for .*min_freq: Invalid argument",
    ),
    Fault(
        "silently ignored",
        {"gp10b/min_freq": ignore, "gp10b/max_freq": ignore},
        {"gpu": 854.25},
        r"the driver ignored it: they read 114750000 and 1300500000",
    ),
    Fault(
        "one of two limits ignored",
        {"gp10b/max_freq": ignore},
        {"gpu": 854.25},
        r"did not take it as it is: they read 854250000 and 1300500000",
    ),
    Fault(
        "rounded to another level",
        {"policy0/scaling_min_freq": to_806400, "policy0/scaling_max_freq": to_806400},
        {"cpu": 960.0},
        r"asked for scaling_min_freq 960000 .* they read 806400 and 806400",
    ),
    Fault(
        "half applied over two clusters",
        {"policy2/scaling_min_freq": refuse_above(800000)},
        {"cpu": 960.0},
        r"the driver refused 960000 for .*policy2",
    ),
    Fault(
        "half applied over two devices",
        {f"{EMC}/rate": ignore},
        {"cpu": 960.0, "gpu": 854.25, "memory": 2133.0},
        r"asked for 2133000000, the firmware set 665600000",
    ),
    Fault(
        "read-only file system",
        {"online": refuse(errno.EROFS)},
        {"cores": 2.0},
        r"read-only file system: in a container, start it with --privileged",
    ),
    Fault("cores beyond those present", {}, {"cores": 5.0, "cpu": 960.0}, "has no level 5"),
    Fault("no core at all", {}, {"cores": 0.0}, "has no level 0; it has 1, 2, 3, 4"),
    Fault("a core that is needed", {"cpu2/online": refuse(errno.EBUSY)}, {"cores": 1.0}, "busy"),
    Fault("a clock that is not there", {}, {"npu": 1.0}, "nothing here sets the clock of: npu"),
)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_refused_change_leaves_everything_as_it_was(
    fault: Fault, tmp_path: Path, kernel: Kernel, journal: Path
) -> None:
    actuators = board(tmp_path)
    before = content(tmp_path)
    kernel.rules = dict(fault.rules)

    with ClockSession(actuators, journal=journal) as session:
        with pytest.raises(ClockError, match=fault.words):
            session.apply(fault.asked)

        assert content(tmp_path) == before
        assert not journal.exists()
    assert content(tmp_path) == before


CARD_FAULTS = {
    "NVML lock refused": (
        ClockCard(lock_error={"gpu": CodedNVMLError(4, "Insufficient Permissions")}),
        r"needs root, or CAP_SYS_ADMIN",
    ),
    "NVML lock not supported": (
        ClockCard(lock_error={"gpu": CodedNVMLError(3, "Not Supported")}),
        "does not support locking",
    ),
    "NVML lock without effect": (ClockCard(obeys=False), "the lock has no effect"),
    "NVML card is lost": (
        ClockCard(lock_error={"gpu": CodedNVMLError(15, "GPU is lost")}),
        "the driver refused: GPU is lost",
    ),
}


@pytest.mark.parametrize("name", CARD_FAULTS)
def test_a_card_that_does_not_lock_has_no_lock_and_the_cpu_is_back(
    name: str, tmp_path: Path, kernel: Kernel, journal: Path
) -> None:
    card, words = CARD_FAULTS[name]
    add_policy(tmp_path, 0)
    before = content(tmp_path)
    gpu = find_nvml("gpu", 0, {}, nvml=lockable_nvml(card))
    actuators: dict[str, Actuator] = {"cpu": find_cpufreq(tmp_path), "gpu": gpu}

    with (
        ClockSession(actuators, journal=journal) as session,
        pytest.raises(ClockError, match=words),
    ):
        session.apply({"cpu": 960.0, "gpu": 705.0})

    assert card.locks == {}
    assert content(tmp_path) == before
    assert not journal.exists()


def test_what_can_neither_be_set_nor_put_back_is_named_and_stays_in_the_journal(
    tmp_path: Path, kernel: Kernel, journal: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first cluster is set, the second refuses, and then the first refuses to go back."""
    actuators = board(tmp_path)
    before = content(tmp_path)

    def refuse_all(path: Path, value: str) -> str:
        kernel.rules["scaling_max_freq"] = refuse(errno.EIO)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    kernel.rules["policy2/scaling_min_freq"] = refuse_all
    expected = r"policy2.*could not be put back: .*policy0/scaling_max_freq.*hardware restore"

    def leave() -> None:
        with ClockSession(actuators, journal=journal) as session:
            session.apply({"cpu": 960.0})

    with pytest.raises(ClockError, match=expected):
        leave()
    changed = {name for name, text in content(tmp_path).items() if before[name] != text}
    assert changed == {"sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq"}

    kernel.rules = {}
    assert main(["hardware", "restore", "--journal", str(journal)]) == 0
    assert content(tmp_path) == before
    assert "cpufreq policy0, policy2: put back" in capsys.readouterr().out


def test_an_exception_inside_the_session_puts_clocks_back(
    tmp_path: Path, kernel: Kernel, journal: Path
) -> None:
    actuators = board(tmp_path)
    before = content(tmp_path)

    def run() -> None:
        with ClockSession(actuators, journal=journal) as session:
            session.apply({"cpu": 960.0, "cores": 1.0})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run()

    assert content(tmp_path) == before
    assert not journal.exists()


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_under_the_journal_changes_nothing(
    call: str, tmp_path: Path, kernel: Kernel, journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    actuators = board(tmp_path)
    before = content(tmp_path)

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)

    with ClockSession(actuators, journal=journal) as session:
        with pytest.raises(ClockError, match=r"journal .* cannot be written \(No space left"):
            session.apply({"cpu": 960.0})
        monkeypatch.undo()

    assert kernel.writes == []
    assert content(tmp_path) == before
    assert not journal.exists()


def test_a_journal_that_cannot_be_made_changes_nothing(
    tmp_path: Path, kernel: Kernel, journal: Path
) -> None:
    actuators = board(tmp_path)
    journal.parent.write_text("a file where the folder would be")

    with pytest.raises(ClockError, match=r"cannot be made .* no clock is changed"):
        ClockSession(actuators, journal=journal).__enter__()

    assert kernel.writes == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"schema": 1}',
        '{"schema": 2, "pid": 1, "boot_id": null, "time": "", "actuators": []}',
        '{"schema": 1, "pid": "x", "boot_id": null, "time": "", "actuators": []}',
        '{"schema": 1, "pid": 1, "boot_id": null, "time": "", "actuators": [{"name": "x"}]}',
        '{"schema": 1, "pid": 1, "boot_id": null, "time": "", "actuators": 3}',
        '{"schema": 1, "pid": 1, "boot_id": null, "time": "", "actuators": [{"name": "x", '
        '"snapshot": {"kind": "warp"}}]}',
        '{"schema": 1, "pid": 1, "boot_id": null, "time": "", "actuators": [{"name": "x", '
        '"snapshot": {"kind": "cpufreq", "policies": {"p": {"min": "low"}}}}]}',
        '{"schema": 1, "pid": 1, "boot_id": null, "time": "", "actuators": [{"name": "x", '
        '"snapshot": {"kind": "cores", "folder": 3}}]}',
    ],
)
def test_a_damaged_journal_is_told_and_kept(
    text: str, journal: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal.parent.mkdir()
    journal.write_text(text)

    assert main(["hardware", "restore", "--journal", str(journal)]) == 2
    said = capsys.readouterr().err

    assert str(journal) in said
    assert "reboot" in said or "version that wrote it" in said
    assert journal.read_text() == text


def test_a_journal_from_before_a_reboot_has_nothing_to_put_back(
    tmp_path: Path, kernel: Kernel, journal: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    board(tmp_path)
    leave_journal(tmp_path, journal, boot="an earlier one")

    assert main(["hardware", "restore", "--journal", str(journal)]) == 0

    assert "the machine was started anew" in capsys.readouterr().out
    assert kernel.writes == []
    assert not journal.exists()


def test_restored_twice_is_harmless(
    tmp_path: Path, kernel: Kernel, journal: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    board(tmp_path)
    before = content(tmp_path)
    leave_journal(tmp_path, journal, boot=boot_id())
    text = journal.read_text()

    for _ in range(2):
        journal.write_text(text)
        assert main(["hardware", "restore", "--journal", str(journal)]) == 0
    assert main(["hardware", "restore", "--journal", str(journal)]) == 0

    assert "nothing to put back" in capsys.readouterr().out.splitlines()[-1]
    assert content(tmp_path) == before


def test_a_card_is_found_again_by_its_uuid_and_freed(journal: Path) -> None:
    card = ClockCard(uuid="GPU-b", locks={"gpu": (705, 705)})
    snapshot = {"kind": "nvml", "domain": "gpu", "uuid": "GPU-b"}
    write_record(journal, "NVML", snapshot, boot_id())
    said: list[str] = []
    library = lockable_nvml(ClockCard(uuid="GPU-a"), card)
    run_hardware_restore(HardwareRestoreConfig(journal), said.append, nvml=library)

    assert card.locks == {}
    assert said[-1] == "  NVML: put back"


def test_clocks_that_cannot_be_restored_keep_their_journal(
    tmp_path: Path, kernel: Kernel, journal: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    board(tmp_path)
    leave_journal(tmp_path, journal, boot=boot_id())
    (tmp_path / "sys/devices/system/cpu/cpufreq/policy2/scaling_min_freq").unlink()

    assert main(["hardware", "restore", "--journal", str(journal)]) == 2

    assert "policy2/scaling_min_freq" in capsys.readouterr().err
    assert journal.exists()


def leave_journal(root: Path, journal: Path, *, boot: str | None) -> None:
    """A journal as a killed process leaves it."""
    write_record(journal, "cpufreq", dict(find_cpufreq(root).snapshot()), boot)


def write_record(
    journal: Path, name: str, snapshot: Mapping[str, object], boot: str | None
) -> None:
    record = {
        "schema": 1,
        "pid": 4711,
        "boot_id": boot,
        "time": "2026-01-01T00:00:00+00:00",
        "actuators": [{"name": name, "snapshot": snapshot}],
    }
    journal.parent.mkdir(exist_ok=True)
    journal.write_text(json.dumps(record))

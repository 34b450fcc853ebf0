"""Real processes that are ended while they have changed clocks, and processes that compete."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from exitbench.harness.cli import main
from exitbench.harness.clocks.base import ClockError
from exitbench.harness.clocks.cpufreq import find_cpufreq
from exitbench.harness.clocks.session import ClockSession
from fake_clocks import Kernel, add_cores, add_policy, content

PROGRAM = """
import signal, sys, time
from pathlib import Path
from fake_clocks import Kernel, install
from exitbench.harness.clocks.cores import find_cores
from exitbench.harness.clocks.cpufreq import find_cpufreq
from exitbench.harness.clocks.session import ClockSession

# A shell ignores SIGINT in what it puts in the background, nohup SIGHUP, and children inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
root, journal = Path(sys.argv[1]), Path(sys.argv[2])
kernel = install(Kernel())
actuators = {"cpu": find_cpufreq(root), "cores": find_cores(root)}
%s
with ClockSession(actuators, journal=journal) as session:
    session.apply({"cpu": 960.0, "cores": 2.0})
    print("set", flush=True)
    time.sleep(60)
"""


@contextmanager
def process(root: Path, journal: Path, extra: str = "") -> Iterator[subprocess.Popen[str]]:
    """A process that changes the clocks of the tree; ended with the block."""
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM % extra, str(root), str(journal)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def wait_until_set(child: subprocess.Popen[str]) -> None:
    assert child.stdout is not None
    assert child.stdout.readline() == "set\n"


def two_clusters(root: Path) -> dict[str, str]:
    add_policy(root, 0)
    add_policy(root, 2)
    add_cores(root, 4)
    return content(root)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_puts_clocks_back_and_then_ends_the_process(
    number: signal.Signals, tmp_path: Path, journal: Path
) -> None:
    before = two_clusters(tmp_path)

    with process(tmp_path, journal) as child:
        wait_until_set(child)
        assert content(tmp_path) != before
        child.send_signal(number)
        status = child.wait(timeout=60)

    # What a shell shows as 128 + the number.
    assert status == -number
    assert content(tmp_path) == before
    assert not journal.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_between_two_changes_waits_for_the_second(
    number: signal.Signals, tmp_path: Path, journal: Path
) -> None:
    before = two_clusters(tmp_path)
    at_the_second = f"kernel.before_write = lambda n: n == 1 and signal.raise_signal({int(number)})"

    with process(tmp_path, journal, at_the_second) as child:
        status = child.wait(timeout=60)

    assert status == -number
    assert content(tmp_path) == before
    assert not journal.exists()


def test_a_signal_while_clocks_are_put_back_waits_for_the_end(
    tmp_path: Path, journal: Path
) -> None:
    before = two_clusters(tmp_path)
    # The sixth write is the first after those of the two clusters and the two cores.
    extra = "kernel.before_write = lambda n: n >= 6 and signal.raise_signal(signal.SIGINT)"

    with process(tmp_path, journal, extra) as child:
        wait_until_set(child)
        child.send_signal(signal.SIGTERM)
        status = child.wait(timeout=60)

    assert status == -signal.SIGINT
    assert content(tmp_path) == before
    assert not journal.exists()


def test_a_handler_of_the_program_is_called_after_clocks_are_back(
    tmp_path: Path, journal: Path
) -> None:
    before = two_clusters(tmp_path)
    extra = """
def own(number, frame):
    limits = (root / "sys/devices/system/cpu/cpufreq/policy0/scaling_min_freq").read_text()
    sys.exit(7 if limits == "345600\\n" else 8)
signal.signal(signal.SIGTERM, own)
"""

    with process(tmp_path, journal, extra) as child:
        wait_until_set(child)
        child.send_signal(signal.SIGTERM)
        status = child.wait(timeout=60)

    assert status == 7
    assert content(tmp_path) == before


def test_an_ignored_signal_stays_ignored(tmp_path: Path, journal: Path) -> None:
    before = two_clusters(tmp_path)

    with process(tmp_path, journal, "signal.signal(signal.SIGINT, signal.SIG_IGN)") as child:
        wait_until_set(child)
        child.send_signal(signal.SIGINT)
        child.send_signal(signal.SIGTERM)
        status = child.wait(timeout=60)

    assert status == -signal.SIGTERM
    assert content(tmp_path) == before


def test_a_signal_right_after_handlers_are_there_ends_the_process_with_nothing_changed(
    tmp_path: Path, journal: Path
) -> None:
    before = two_clusters(tmp_path)
    extra = """
from exitbench.harness.clocks.signals import Signals
install = Signals.install
def then_a_signal(self):
    install(self)
    signal.raise_signal(signal.SIGTERM)
Signals.install = then_a_signal
"""

    with process(tmp_path, journal, extra) as child:
        status = child.wait(timeout=60)

    assert status == -signal.SIGTERM
    assert content(tmp_path) == before
    assert not journal.exists()


@pytest.mark.parametrize("end", ["signal.raise_signal(signal.SIGTERM)", "sys.exit(0)"])
def test_a_process_that_was_forked_off_leaves_its_parents_clocks_alone(
    end: str, tmp_path: Path, journal: Path
) -> None:
    before = two_clusters(tmp_path)
    # Instead of its sleep the program forks, and tells what the end of its child has left.
    extra = f"""
import os
def fork(seconds):
    child = os.fork()
    if child == 0:
        {end}
    os.waitpid(child, 0)
    low = root / "sys/devices/system/cpu/cpufreq/policy0/scaling_min_freq"
    print(low.read_text().strip(), journal.exists(), flush=True)
time.sleep = fork
"""

    with process(tmp_path, journal, extra) as child:
        wait_until_set(child)
        assert child.stdout is not None
        assert child.stdout.readline() == "960000 True\n"
        assert child.wait(timeout=60) == 0

    assert content(tmp_path) == before
    assert not journal.exists()


def test_a_process_that_was_forked_off_keeps_nobody_from_the_clocks(
    tmp_path: Path, journal: Path, kernel: Kernel
) -> None:
    two_clusters(tmp_path)
    # The child of the program outlives it, with all that it has inherited.
    extra = """
import os
sleep = time.sleep
def fork(seconds):
    child = os.fork()
    if child == 0:
        sleep(60)
        os._exit(0)
    print(child, flush=True)
time.sleep = fork
"""

    with process(tmp_path, journal, extra) as child:
        wait_until_set(child)
        assert child.stdout is not None
        grandchild = int(child.stdout.readline())
        assert child.wait(timeout=60) == 0
        try:
            with ClockSession({"cpu": find_cpufreq(tmp_path)}, journal=journal) as session:
                assert session.apply({"cpu": 960.0}) > 0
        finally:
            os.kill(grandchild, signal.SIGKILL)


def test_clocks_killed_between_two_changes_are_restored_by_the_command(
    tmp_path: Path, journal: Path, kernel: Kernel, capsys: pytest.CaptureFixture[str]
) -> None:
    before = two_clusters(tmp_path)
    between = "kernel.before_write = lambda n: n == 4 and signal.raise_signal(signal.SIGKILL)"

    with process(tmp_path, journal, between) as child:
        assert child.wait(timeout=60) == -signal.SIGKILL
    half = content(tmp_path)
    changed = {name for name, text in half.items() if before[name] != text}
    assert any("policy0" in name for name in changed)
    assert not any("policy2/scaling_max" in name for name in changed)

    assert main(["hardware", "restore", "--journal", str(journal)]) == 0
    assert content(tmp_path) == before
    assert f"process {child.pid} has left clocks changed" in capsys.readouterr().out
    assert main(["hardware", "restore", "--journal", str(journal)]) == 0
    assert content(tmp_path) == before


def test_a_killed_process_keeps_the_next_from_taking_its_clocks_for_the_users(
    tmp_path: Path, journal: Path, kernel: Kernel
) -> None:
    two_clusters(tmp_path)

    with process(tmp_path, journal) as child:
        wait_until_set(child)
        child.kill()
        child.wait(timeout=60)
    actuators = {"cpu": find_cpufreq(tmp_path)}

    with pytest.raises(ClockError, match=rf"process {child.pid}, .*Put them back first"):
        ClockSession(actuators, journal=journal).__enter__()


def test_two_processes_cannot_govern_at_once(
    tmp_path: Path, journal: Path, kernel: Kernel, capsys: pytest.CaptureFixture[str]
) -> None:
    before = two_clusters(tmp_path)

    with process(tmp_path, journal) as child:
        wait_until_set(child)
        during = content(tmp_path)
        with pytest.raises(ClockError, match=rf"another exitbench \(process {child.pid}\)"):
            ClockSession({"cpu": find_cpufreq(tmp_path)}, journal=journal).__enter__()
        assert main(["hardware", "restore", "--journal", str(journal)]) == 2
        assert f"(process {child.pid})" in capsys.readouterr().err
        assert content(tmp_path) == during
        child.send_signal(signal.SIGTERM)
        child.wait(timeout=60)

    assert content(tmp_path) == before


"""Sessions: clocks changed for a while, all or nothing, and the journal behind them."""

from __future__ import annotations

import errno
import os
import threading
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from exitbench.harness.cli import main
from exitbench.harness.clocks import sysfs
from exitbench.harness.clocks.base import ClockError, LeftChanged
from exitbench.harness.clocks.cores import find_cores
from exitbench.harness.clocks.cpufreq import find_cpufreq
from exitbench.harness.clocks.nvml import find_nvml
from exitbench.harness.clocks.session import ClockSession
from exitbench.harness.clocks.simulated import SimulatedActuator
from fake_clocks import (
    CPUFREQ,
    ClockCard,
    CodedNVMLError,
    Kernel,
    add_cores,
    add_policy,
    content,
    lockable_nvml,
    refuse_above,
    small_board,
)  # fmt: skip
from hypothesis import given, settings
from hypothesis import strategies as st


def test_clocks_are_set_within_the_block_and_back_after_it(
    tmp_path: Path, kernel: Kernel, journal: Path
) -> None:
    actuators = small_board(tmp_path)
    before = content(tmp_path)

    with ClockSession(actuators, journal=journal) as session:
        seconds = session.apply({"cpu": 960.0, "gpu": 854.25, "cores": 2.0})
        during = session.current()

    assert seconds > 0
    assert during == {"cores": 2.0, "cpu": 960.0, "gpu": 854.25}
    assert content(tmp_path) == before
    assert not journal.exists()


def test_what_is_set_already_costs_nothing(tmp_path: Path, kernel: Kernel, journal: Path) -> None:
    with ClockSession(small_board(tmp_path), journal=journal) as session:
        session.apply({"cpu": 960.0})
        written = len(kernel.writes)

        assert session.apply({"cpu": 960.0}) == 0.0
        assert len(kernel.writes) == written


def test_a_failing_clock_undoes_those_that_were_set_before_it(
    tmp_path: Path, kernel: Kernel, journal: Path
) -> None:
    actuators = small_board(tmp_path)
    before = content(tmp_path)
    kernel.rules["17000000.gp10b/max_freq"] = refuse_above(10**9)
    kernel.rules["17000000.gp10b/min_freq"] = refuse_above(10**9)

    with ClockSession(actuators, journal=journal) as session:
        with pytest.raises(ClockError, match="the driver refused 1122000000"):
            session.apply({"cpu": 960.0, "gpu": 1122.0})

        assert content(tmp_path) == before
        assert not journal.exists()


def test_a_failing_clock_leads_back_to_what_the_session_had_set(
    tmp_path: Path, kernel: Kernel, journal: Path
) -> None:
    kernel.rules["17000000.gp10b/min_freq"] = refuse_above(10**9)

    with ClockSession(small_board(tmp_path), journal=journal) as session:
        session.apply({"cpu": 960.0, "gpu": 854.25})
        with pytest.raises(ClockError, match="refused"):
            session.apply({"cpu": 2035.2, "gpu": 1122.0})

        assert session.current() == {"cores": 4.0, "cpu": 960.0, "gpu": 854.25}
        assert journal.exists()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"memory": 1600.0}, "nothing here sets the clock of: memory. What can be set: cores, cpu"),
        ({"cpu": 961.0}, "has no level 961 MHz"),
        ({"cpu": 960.0, "cores": 5.0}, "has no level 5; it has 1, 2, 3, 4"),
    ],
)
def test_what_cannot_be_set_is_refused_before_anything_is_changed(
    tmp_path: Path, kernel: Kernel, journal: Path, values: dict[str, float], words: str
) -> None:
    with (
        ClockSession(small_board(tmp_path), journal=journal) as session,
        pytest.raises(ClockError, match=words),
    ):
        session.apply(values)

    assert kernel.writes == []
    assert not journal.exists()


def test_clocks_of_cores_that_went_offline_while_changed_come_back_as_they_were(
    tmp_path: Path, kernel: Kernel, journal: Path
) -> None:
    """Four cores with a policy each, whose files vanish with the core, as those of Linux do."""
    folders = [add_policy(tmp_path, number) for number in range(4)]
    add_cores(tmp_path, 4)
    actuators = {"cpu": find_cpufreq(tmp_path), "cores": find_cores(tmp_path)}
    before = content(tmp_path)

    def hide(path: Path, value: str) -> str:
        number = int(path.parent.name[3:])
        file, hidden = (folders[number] / name for name in ("scaling_min_freq", "hidden"))
        if value == "0" and file.exists():
            file.rename(hidden)
        elif value == "1" and hidden.exists():
            hidden.rename(file)
        return value

    kernel.rules["/online"] = hide

    with ClockSession(actuators, journal=journal) as session:
        session.apply({"cpu": 960.0})
        session.apply({"cores": 2.0})
        session.apply({"cpu": 499.2})
        session.apply({"cores": 4.0})
        limits = {(folder / "scaling_min_freq").read_text() for folder in folders}
        session.apply({"cores": 1.0})

    assert limits == {"499200\n"}
    assert content(tmp_path) == before


def test_one_clock_that_will_not_come_back_does_not_keep_the_others(
    tmp_path: Path, kernel: Kernel, journal: Path
) -> None:
    actuators = small_board(tmp_path)
    before = content(tmp_path)

    def leave() -> None:
        with ClockSession(actuators, journal=journal) as session:
            session.apply({"cpu": 960.0, "gpu": 854.25})
            kernel.rules["policy0/scaling_max_freq"] = refuse_above(1000000)

    with pytest.raises(ClockError, match=r"cpufreq policy0: .* run: exitbench hardware restore"):
        leave()
    changed = {name for name, text in content(tmp_path).items() if before[name] != text}

    assert changed == {f"{CPUFREQ}/policy0/scaling_max_freq"}
    assert journal.exists()


def test_an_error_of_the_run_is_told_beside_that_of_the_clocks(
    tmp_path: Path, kernel: Kernel, journal: Path
) -> None:
    def leave() -> None:
        with ClockSession(small_board(tmp_path), journal=journal) as session:
            session.apply({"cpu": 960.0})
            kernel.rules["policy0/scaling_max_freq"] = refuse_above(1000000)
            raise ClockError("the run has failed.")

    with pytest.raises(ClockError, match=r"^the run has failed\. Besides, not all clocks"):
        leave()


def test_a_lock_that_was_refused_is_not_taken_off_at_the_end(journal: Path) -> None:
    card = ClockCard(lock_error={"gpu": CodedNVMLError(4, "Insufficient Permissions")})
    actuators = {"gpu": find_nvml("gpu", 0, {}, nvml=lockable_nvml(card))}

    with (
        ClockSession(actuators, journal=journal) as session,
        pytest.raises(ClockError, match="no permission to lock clocks"),
    ):
        session.apply({"gpu": 705.0})

    assert card.calls == [("lock", "gpu", 705, 705)]
    assert not journal.exists()


def test_simulated_clocks_need_no_journal_and_no_lock(journal: Path) -> None:
    actuators = {"cpu": SimulatedActuator("board", "cpu", (1000.0, 2000.0), 2000.0)}

    with ClockSession(actuators, journal=journal) as session:
        session.apply({"cpu": 1000.0})
        assert session.current() == {"cpu": 1000.0}

    assert session.simulated
    assert actuators["cpu"].current() == 2000.0
    assert not journal.parent.exists()


def test_a_session_in_another_thread_works_without_signal_handlers(
    tmp_path: Path, kernel: Kernel, journal: Path
) -> None:
    actuators = small_board(tmp_path)
    before = content(tmp_path)
    found: list[float | None] = []

    def work() -> None:
        with ClockSession(actuators, journal=journal) as session:
            session.apply({"cpu": 960.0})
            found.append(session.current()["cpu"])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

    assert found == [960.0]
    assert content(tmp_path) == before


def test_a_session_that_changes_nothing_writes_no_journal(
    tmp_path: Path, kernel: Kernel, journal: Path
) -> None:
    with ClockSession(small_board(tmp_path), journal=journal):
        pass

    assert not journal.exists()
    assert kernel.writes == []


def test_a_session_is_used_once_and_inside_its_block(tmp_path: Path, journal: Path) -> None:
    session = ClockSession(small_board(tmp_path), journal=journal)

    with pytest.raises(RuntimeError, match="inside its with block"):
        session.apply({"cpu": 960.0})
    with session:
        pass
    with pytest.raises(RuntimeError, match="used once"):
        session.__enter__()


@settings(max_examples=25)
@given(
    asked=st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "cpu": st.sampled_from((345.6, 960.0, 2035.2)),
                "gpu": st.sampled_from((114.75, 854.25, 1300.5)),
                "cores": st.sampled_from((1.0, 2.0, 4.0)),
            },
        ),
        max_size=6,
    ),
    refused=st.sets(st.integers(0, 40), max_size=3),
)
def test_whatever_is_asked_and_refused_everything_is_back_in_the_end(
    asked: list[dict[str, float]], refused: set[int]
) -> None:
    """Single writes are refused, so putting back is only kept from working once at a time."""
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        root = Path(folder)
        journal = root / "state/clocks.json"
        kernel = Kernel()
        patch.setattr(sysfs, "put_text", kernel.put_text)
        actuators = small_board(root)
        before = content(root)

        def refuse_some(count: int) -> None:
            if count in refused and journal.exists():
                raise OSError(errno.EIO, os.strerror(errno.EIO))

        kernel.before_write = refuse_some
        with suppress(ClockError), ClockSession(actuators, journal=journal) as session:
            for values in asked:
                held = session.current()
                try:
                    session.apply(values)
                except LeftChanged:
                    break
                except ClockError:
                    assert session.current() == held
                else:
                    assert session.current() == {**held, **values}
        if journal.exists():
            kernel.before_write = lambda count: None
            assert main(["hardware", "restore", "--journal", str(journal)]) == 0

        assert content(root) == before

"""Energy windows that outlive a kill: kept as they are taken, gone on with, and never mixed up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from exitbench.harness.energy import Energies, measure_energy
from exitbench.harness.idle import UNKNOWN, Idle
from exitbench.harness.linelog import LineLog
from exitbench.harness.meters.base import Reading
from exitbench.harness.tiers import TIERS
from exitbench.harness.timing import Limits
from exitbench.harness.windowlog import WindowFile, WindowLog, settled
from exitbench.harness.windows import Taken
from fake_counter import Bench, CounterMeter, CounterWindow, timing
from pipeline_fixtures import Killed

PLACE = ("fp32", 1, "default")
UNITS = {"a": 0.5, "b": 0.25, "c": 1.0}


class Mortal(CounterMeter):
    """A counter whose process is killed when a window is opened after so many."""

    lives: int | None = None

    def open(self) -> CounterWindow:
        if self.lives is not None and len(self.bench.windows) >= self.lives:
            raise Killed
        return super().open()


class Machine:
    """Units that draw more the more often they have run.

    Times are sums of powers of two, updates fall together with the ends of calls: its energies are
    exact, and the same only if every call has happened once and was counted once.
    """

    def __init__(self, timed: dict[str, float] | None = None) -> None:
        self.bench = Bench(power_w=64.0, update_period_s=2**-7, idle_w=16.0)
        self.meter = Mortal(self.bench)
        self.order: list[str] = []
        self.timed = timed or UNITS
        self.ran = dict.fromkeys(UNITS, 0)

    def unit(self, name: str) -> Callable[[], None]:
        def call() -> None:
            self.ran[name] += 1
            if not self.order or self.order[-1] != name:
                self.order.append(name)
            self.bench.unit(UNITS[name], 64.0 + self.ran[name] / 1024)()

        return call

    def measured(
        self,
        log: WindowLog | None,
        *,
        tier: str = "standard",
        idle: Idle | None = None,
        limits: Limits | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> Energies:
        return measure_energy(
            {name: self.unit(name) for name in UNITS},
            {name: timing(seconds) for name, seconds in self.timed.items()},
            self.meter, limits or Limits(), tier=TIERS[tier], idle=idle, log=log, say=say,
            sleep=self.bench.sleep, clock=self.bench,
        )  # fmt: skip

    def killed_after(self, windows: int, log: WindowLog, **more: Any) -> None:
        self.meter.lives = windows
        with pytest.raises(Killed):
            self.measured(log, **more)
        self.meter.lives = None


def log_in(folder: Path, **manner: Any) -> WindowLog:
    return WindowFile(folder / "windows.jsonl").of(PLACE, manner)


def windows_of(log: WindowLog) -> dict[str, int]:
    return {name: len(windows) for name, windows in log.windows(UNITS).items()}


# 6 windows of idle power, then rounds of three.
@pytest.mark.parametrize("kills", [(6,), (7,), (8, 13), (9,), (20, 21, 22), (23,)])
@pytest.mark.parametrize("tier", ["standard", "publish"])
def test_a_measurement_that_was_killed_ends_as_if_it_had_not_been(
    tmp_path: Path, tier: str, kills: tuple[int, ...]
) -> None:
    whole, killed = Machine(), Machine()
    expected = whole.measured(None, tier=tier)
    log = log_in(tmp_path)
    for windows in kills:
        killed.killed_after(windows, log, tier=tier)
    found = killed.measured(log, tier=tier)
    assert found.units == expected.units
    assert found.idle == expected.idle
    assert found.summary == {**expected.summary, "kept_windows": kills[-1] - 6}
    # Nothing was measured twice.
    assert len(killed.bench.windows) == len(whole.bench.windows)
    assert killed.ran == whole.ran


def test_what_was_kept_is_said_before_and_noted_after(tmp_path: Path) -> None:
    machine, log, said = Machine(), log_in(tmp_path), []
    machine.killed_after(10, log)
    found = machine.measured(log, say=said.append)
    assert said[0].endswith("; 4 windows (23 s) are there already")
    assert found.notes == ["energy: 4 of 18 windows were taken before an interruption"]
    assert Machine().measured(None).notes == []


def test_a_round_that_was_cut_short_is_ended_before_the_next_begins(tmp_path: Path) -> None:
    machine, log = Machine(), log_in(tmp_path)
    machine.killed_after(6 + 3 + 2, log)
    counts = windows_of(log)
    assert sorted(counts.values()) == [1, 2, 2]
    machine.order.clear()
    machine.measured(log)
    (late,) = [name for name, count in counts.items() if count == 1]
    assert machine.order[0] == late
    assert windows_of(log) == dict.fromkeys(UNITS, 6)


def test_windows_keep_their_own_number_of_calls(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    machine = Machine(timed={name: 4 * seconds for name, seconds in UNITS.items()})
    machine.bench.update_period_s = 2**-9  # so that short windows are resolved too
    machine.killed_after(9, log)
    machine.timed = UNITS
    # Before the kill units were timed too slow, so that windows held too few calls.
    found = machine.measured(log)
    for name, windows in log.windows(UNITS).items():
        assert len({window.calls for window in windows}) == 2
        # Every call draws a little more than the one before; each is counted, in its own window.
        calls = sum(window.calls for window in windows)
        joules = sum(window.energy_j * window.calls for window in windows if window.energy_j)
        assert calls == machine.ran[name]
        assert joules == sum(UNITS[name] * (64.0 + call / 1024) for call in range(1, calls + 1))
        per_call = [window.energy_j for window in windows if window.energy_j is not None]
        total_j = found.units[name].total_j
        assert total_j is not None
        assert min(per_call) < total_j < max(per_call)


def test_the_time_allowed_is_that_of_all_attempts_together(tmp_path: Path) -> None:
    limits = Limits(energy_seconds=30.0)
    whole, killed = Machine(), Machine()
    # Each unit is timed at half of what it takes, so that the time does not suffice.
    whole.timed = killed.timed = {name: seconds / 2 for name, seconds in UNITS.items()}
    expected = whole.measured(None, tier="quick", limits=limits)
    log = log_in(tmp_path)
    killed.killed_after(12, log, tier="quick", limits=limits)
    found = killed.measured(log, tier="quick", limits=limits)
    assert expected.summary["tier"] == found.summary["tier"] == "below quick"
    assert found.units == expected.units
    assert killed.bench.now_s == whole.bench.now_s


def test_idle_power_that_is_known_before_is_kept_with_the_windows(tmp_path: Path) -> None:
    machine, log = Machine(), log_in(tmp_path)
    machine.killed_after(3, log, idle=Idle(10.0, "measured", (9.0, 11.0), "a note"))
    found = machine.measured(log)  # another process, which does not know it
    assert found.idle == Idle(10.0, "measured", (9.0, 11.0), "a note")
    assert len(machine.bench.windows) == 18


def test_idle_power_that_could_not_be_read_is_measured_again(tmp_path: Path) -> None:
    machine, log = Machine(), log_in(tmp_path)
    machine.killed_after(3, log, idle=UNKNOWN)
    assert log.idle() is None
    # Idle windows are 5 s of 16 W.
    assert machine.measured(log).idle.power_w == 16.0


@pytest.mark.parametrize("other", [{"tier": "publish"}, {"tier": "quick", "meter": "another"}])
def test_what_was_measured_in_another_manner_is_not_gone_on_with(
    tmp_path: Path, other: dict[str, Any]
) -> None:
    machine = Machine()
    machine.killed_after(9, log_in(tmp_path, tier="quick"), tier="quick")
    assert windows_of(log_in(tmp_path, tier="quick")) == dict.fromkeys(UNITS, 1)
    log = log_in(tmp_path, **other)
    assert log.idle() is None
    assert log.others() == 3
    before = len(machine.bench.windows)
    assert machine.measured(log, tier="quick").summary["kept_windows"] == 0
    assert len(machine.bench.windows) == before + 6 + 15


def test_lines_that_are_damaged_or_of_another_schema_are_left_out(tmp_path: Path) -> None:
    machine, log = Machine(), log_in(tmp_path)
    machine.killed_after(10, log)
    path = log.file.path
    lines = path.read_text().splitlines()
    assert len(lines) == 1 + 4  # idle power, then windows
    changed = json.loads(lines[-2])
    strange = [changed | {"schema": 2}, changed | {"calls": 0}, changed | {"reading": {}}]
    text = [*lines[:-1], *map(json.dumps, strange), "[]", lines[-1][:-40]]
    path.write_text("\n".join(text))
    assert sum(windows_of(log).values()) == 3
    found = machine.measured(log)
    assert found.summary["kept_windows"] == 3
    assert found.summary["windows"] == 6
    assert windows_of(log) == dict.fromkeys(UNITS, 6)


def test_windows_are_read_as_they_were_written(tmp_path: Path) -> None:
    reading = Reading(
        1.5, {"gpu": 2.0, "cpu": None}, "modelled", "why", {"gpu": "measured"},
        uncertainty_j={"gpu": 0.1}, flags=("the card was throttled",),
        conditions={"gpu_throttle": ["heat"]}, checks={"power x time": 2.1}, overhead_s=0.01,
    )  # fmt: skip
    log = log_in(tmp_path)
    assert log.windows(["a"]) == {"a": []}
    log.add("a", Taken(3, reading, 1.6))
    log.add("elsewhere", Taken(3, reading, 1.6))
    assert log.windows(["a", "b"]) == {"a": [Taken(3, reading, 1.6)], "b": []}


def test_windows_of_a_place_are_forgotten_together_and_others_stay(tmp_path: Path) -> None:
    file = WindowFile(tmp_path / "windows.jsonl")
    one, same, other = (
        file.of(place, {"tier": tier})
        for place, tier in ((PLACE, "quick"), (PLACE, "publish"), (("bf16", 1, "default"), "quick"))
    )
    window = Taken(1, Reading(1.0, {"cpu": 1.0}, "measured"), 1.0)
    for log in (one, same, other):
        log.add("a", window)
    one.forget()
    assert [len(log.windows(["a"])["a"]) for log in (one, same, other)] == [0, 1, 1]
    one.forget(others=True)
    assert [len(log.windows(["a"])["a"]) for log in (one, same, other)] == [0, 0, 1]
    other.forget()
    assert not file.path.exists()
    other.forget()


def test_only_the_last_command_and_the_very_same_can_be_gone_on_with(tmp_path: Path) -> None:
    file = WindowFile(tmp_path / "windows.jsonl")
    assert file.begin({"seconds": 1, "sizes": (1, 2)}, "monday") == "monday"
    assert file.begin({"seconds": 1, "sizes": (1, 2)}, "tuesday") == "monday"
    assert file.begin({"seconds": 2, "sizes": (1, 2)}, "tuesday") == "tuesday"
    assert file.begin({"seconds": 1, "sizes": (1, 2)}, "wednesday") == "wednesday"
    file.end()
    assert not file.path.exists()
    assert file.begin({"seconds": 1, "sizes": (1, 2)}, "thursday") == "thursday"


def test_settings_are_alike_whatever_the_load_and_the_clock_of_the_moment() -> None:
    def machine(governor: str, now_mhz: float, load: float) -> dict[str, Any]:
        policy = {"name": "policy0", "governor": governor, "now_mhz": now_mhz}
        return {"clock_policies": [policy], "load_1min": load, "boost": "1"}

    calm = settled(machine("performance", 3000.0, 0.1))
    assert settled(machine("performance", 800.0, 3.0)) == calm
    assert settled(machine("powersave", 3000.0, 0.1)) != calm


def test_a_line_is_on_its_own_after_one_that_was_cut_short(tmp_path: Path) -> None:
    log = LineLog(tmp_path / "lines.jsonl")
    log.add(("a", 1), {"value": 1})
    with log.path.open("a") as handle:
        handle.write('{"key": ["a", 1], "val')
    log.add(("a", 1), {"value": 2})
    assert [line["value"] for line in log.lines(("a", 1))] == [1, 2]
    assert log.lines(("a", 2)) == []

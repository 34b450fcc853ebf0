"""Runs under a governor: decisions of the live network, clocks simulated or really set."""

from __future__ import annotations

import errno
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from exitbench.harness.circumstances import ClockFiles
from exitbench.harness.clocks import sysfs
from exitbench.harness.clocks.base import ClockError
from exitbench.harness.configs import RunConfig, SweepConfig
from exitbench.harness.costs import CostTable
from exitbench.harness.environment import cpu_model
from exitbench.harness.limits import faults
from exitbench.harness.live import run_run
from exitbench.harness.measured import measured_key
from exitbench.harness.rundir import RunDirectory
from exitbench.harness.sweepfile import read_sweep
from exitbench.harness.sweeping import run_sweep
from fake_clocks import Kernel, add_cpuinfo, add_policy, content, refuse
from pipeline_fixtures import CPU, Killed, Said, refused, silent

KHZ = (800_000, 1_600_000, 2_400_000)


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished study without its measurements."""
    copied = shutil.copytree(finished, tmp_path / "run")
    (copied / "measurements.jsonl").unlink()
    return copied


def config(run: Path, **changes: Any) -> RunConfig:
    values: dict[str, Any] = {
        "settings": ("full", "predictive"), "repeats": 2, "governor": "deadline", "device": CPU,
    }  # fmt: skip
    return RunConfig(run, **{**values, **changes})


def measured(run: Path) -> list[dict[str, Any]]:
    return RunDirectory(run, create=False).read_measurements()


def shares(points: str) -> dict[str, float]:
    """``NAME:share NAME:share``, where a name may hold blanks."""
    return {name: float(share) for name, share in re.findall(r"(.+?):([\d.e-]+)(?: |$)", points)}


def test_simulated_clocks_price_decisions_that_are_really_made(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = Kernel()
    monkeypatch.setattr(sysfs, "put_text", kernel.put_text)
    run_run(config(run), silent)
    assert kernel.writes == []
    for row in measured(run):
        assert (row["governor"], row["clocks"]) == ("deadline", "simulated")
        assert (row["latency_source"], row["energy_source"]) == ("modelled", "modelled")
        assert (row["same_decisions"], row["accuracy"]) == (1.0, row["replay_accuracy"])
        # The same decisions at the same prices: only sums of another order may differ.
        assert row["latency_ms"] == pytest.approx(row["replay_latency_ms"], rel=1e-9)
        assert row["energy_mj"] == pytest.approx(row["replay_energy_mj"], rel=1e-9)
        assert row["power_w"] == pytest.approx(row["energy_mj"] / row["latency_ms"])
        assert row["tier"] is None
        assert sum(shares(row["points"]).values()) == pytest.approx(1, abs=1e-3)  # 4 digits each


def test_the_deadline_is_that_of_the_full_network_at_the_top_clock(run: Path) -> None:
    run_run(config(run, governor="race-to-idle"), silent)
    full, predictive = measured(run)
    prices = CostTable.read(run / "cost.csv").select("fp32", 1)
    assert full["deadline_ms"] == pytest.approx(prices.full()["latency_ms"])
    assert full["latency_ms"] == pytest.approx(full["deadline_ms"])
    assert (full["missed"], full["switches"]) == (0.0, 0.0)
    assert predictive["deadline_ms"] == full["deadline_ms"]


def test_a_longer_deadline_lets_a_governor_save_energy(run: Path) -> None:
    run_run(config(run, settings=("full",), governor="race-to-idle"), silent)
    (fast,) = measured(run)
    deadline_ms = 3 * fast["latency_ms"]
    run_run(config(run, settings=("full",), deadline_ms=deadline_ms), silent)
    slow = measured(run)[-1]
    assert slow["deadline_ms"] == pytest.approx(deadline_ms)
    assert fast["latency_ms"] < slow["latency_ms"] <= deadline_ms
    assert slow["energy_mj"] < fast["energy_mj"]
    assert slow["missed"] == 0.0


def test_the_governor_fixed_names_its_point(run: Path) -> None:
    run_run(config(run, settings=("full",), governor="fixed"), silent)
    (row,) = measured(run)
    top = row["operating_point"]
    assert row["points"] == f"{top}:1"
    run_run(config(run, settings=("full",), governor="fixed", operating_point=top), silent)
    assert len(measured(run)) == 1  # it is the same run
    message = refused(
        run_run, config(run, governor="fixed", operating_point="5 THz"), silent
    )
    assert "operating point is '5 THz'; this device has" in message
    assert top in message
    assert RunDirectory(run).manifest["commands"]["run"]["config"]["operating_point"] == top


def test_every_governor_is_a_measurement_of_its_own(run: Path) -> None:
    names = ("fixed", "race-to-idle", "proportional", "deadline", "deadline-safe")
    for name in names:
        run_run(config(run, settings=("predictive",), governor=name), silent)
    run_run(config(run, settings=("predictive",), governor=None), silent)
    rows = measured(run)
    assert [row["governor"] for row in rows] == [*names, None]
    assert len({measured_key(row) for row in rows}) == 6
    assert len({row["exit_histogram"] for row in rows}) == 1  # no decision depends on the clock
    assert rows[-1]["latency_source"] == "measured"
    assert (rows[-1]["missed"], rows[-1]["points"]) == (None, None)
    said = Said()
    run_run(config(run, settings=("predictive",), governor="deadline"), said)
    assert said.starting("run fp32: already measured")


def test_a_governed_scene_pays_for_its_idle_and_needs_no_waiting(run: Path) -> None:
    scene = {"scene": "periodic", "period_ms": 60_000.0}
    run_run(config(run, settings=("full",)), silent)
    run_run(config(run, settings=("full",), **scene), silent)  # 60 requests: an hour, if waited
    continuous, periodic = measured(run)
    assert periodic["samples"] == 60
    idle_mj = periodic["idle_w"] * (60_000.0 - continuous["latency_ms"])
    assert periodic["energy_mj"] == pytest.approx(continuous["energy_mj"] + idle_mj, rel=1e-9)
    assert periodic["energy_mj"] == pytest.approx(periodic["replay_energy_mj"], rel=1e-9)
    assert periodic["latency_ms"] == pytest.approx(continuous["latency_ms"])
    assert (periodic["keeps_up"], periodic["late"]) == (True, 0.0)
    assert periodic["idle_source"] == "modelled"


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Kernel]:
    """A machine with a CPU clock of three levels."""
    root, kernel = tmp_path / "machine", Kernel()
    add_policy(root, 0, KHZ)
    monkeypatch.setattr(sysfs, "put_text", kernel.put_text)
    return root, kernel


def at(root: Path) -> ClockFiles:
    return ClockFiles(root, root.parent / "journal.json")


def test_clocks_of_the_device_are_set_and_put_back(
    run: Path, tree: tuple[Path, Kernel]
) -> None:
    root, kernel = tree
    before = content(root)
    swept = read_sweep(RunDirectory(run, create=False))
    # From each exit on to the next: the clock goes down as the paper's governor has it.
    everywhere = swept[(swept.policy == "every-exit") & (swept.start_layer == 1)]
    number = str(everywhere.mean_exit.idxmax())
    governed = config(run, governor="proportional", clocks="device", settings=(number,))
    run_run(governed, silent, clocks=at(root))
    (row,) = measured(run)
    assert (row["clocks"], row["latency_source"]) == ("device", "measured")
    set_khz = {int(value) for path, value in kernel.writes if path.name == "scaling_max_freq"}
    assert set_khz <= set(KHZ)
    assert len(set_khz) > 1
    assert row["switches"] > 0
    assert set(shares(row["points"])) <= {"800 MHz", "1600 MHz", "2400 MHz"}
    assert row["same_decisions"] == 1.0
    assert content(root) == before
    assert not (root.parent / "journal.json").exists()


def test_simulated_clocks_are_those_that_the_device_shows(
    run: Path, tree: tuple[Path, Kernel]
) -> None:
    root, kernel = tree
    add_cpuinfo(root, cpu_model())
    said = Said()
    governed = config(run, governor="fixed", operating_point="1600 MHz", settings=("full",))
    run_run(governed, said, clocks=at(root))
    (row,) = measured(run)
    assert row["points"] == "1600 MHz:1"
    assert "all 3 of cpufreq policy0" in said.starting("run: 3 operating points (")[0]
    assert kernel.writes == []
    message = refused(run_run, config(run, governor="fixed", operating_point="2 GHz"), silent,
                      clocks=at(root))  # fmt: skip
    assert "this device has '800 MHz', '1600 MHz', '2400 MHz'" in message


def test_clocks_are_put_back_when_a_run_is_stopped(run: Path, tree: tuple[Path, Kernel]) -> None:
    root, kernel = tree
    before = content(root)
    governed = config(run, clocks="device")
    with pytest.raises(Killed):
        run_run(governed, Said(stop_at="run: timed pass 2"), clocks=at(root))
    assert kernel.writes
    assert content(root) == before


def test_no_permission_changes_nothing_and_says_so(run: Path, tree: tuple[Path, Kernel]) -> None:
    root, kernel = tree
    kernel.rules["scaling_max_freq"] = refuse(errno.EACCES)
    before = content(root)
    with pytest.raises(ClockError, match=r"no permission to write.*--clocks simulated"):
        run_run(config(run, clocks="device"), silent, clocks=at(root))
    assert content(root) == before
    assert not (run / "measurements.jsonl").exists()
    assert "run" not in RunDirectory(run).manifest["commands"]  # refused before it began


def test_a_machine_without_a_clock_to_set_is_refused(run: Path, tmp_path: Path) -> None:
    root = tmp_path / "bare"
    root.mkdir()
    with pytest.raises(ClockError, match="the clock of cpu cannot be set"):
        run_run(config(run, clocks="device"), silent, clocks=at(root))


def test_passes_of_a_killed_governed_run_keep_what_befell_the_requests(
    run: Path, tree: tuple[Path, Kernel]
) -> None:
    root, _ = tree
    governed = config(run, clocks="device", settings=("predictive",), repeats=2)
    with pytest.raises(Killed):
        run_run(governed, Said(stop_at="run: timed pass 2"), clocks=at(root))
    (line,) = (run / "passes.jsonl").read_text().splitlines()
    kept = json.loads(line)
    kept["requests"]["switches"] = 1e6  # told from all others
    (run / "passes.jsonl").write_text(json.dumps(kept) + "\n")
    run_run(governed, silent, clocks=at(root))
    (row,) = measured(run)
    assert row["repeats"] == 2
    assert row["switches"] > 1e5


def test_batches_cannot_be_governed(run: Path) -> None:
    (fault,) = faults(config(run, batch_size=8))
    assert "batch_size is 8; requests come one by one, so it must be 1" in fault
    assert faults(config(run)) == []


def test_clocks_of_the_device_belong_to_a_governor(run: Path) -> None:
    (fault,) = faults(config(run, governor=None, clocks="device"))
    assert "clocks is device without a governor" in fault


def test_a_governed_run_of_a_sweep_of_batches_takes_single_requests(run: Path) -> None:
    run_sweep(SweepConfig(run, criteria=("softmax",), beta=("0.3",), batch_size=8), silent)
    run_run(config(run, settings=("full",)), silent)
    run_run(config(run, settings=("full",), governor=None), silent)
    assert [row["batch_size"] for row in measured(run)] == [1, 8]


def test_other_costs_of_the_operating_points_are_measured_again(run: Path) -> None:
    run_run(config(run, settings=("full",)), silent)
    (row,) = measured(run)
    assert measured_key(replace_in(row, "operating_costs")) != measured_key(row)
    assert measured_key(replace_in(row, "deadline_ms")) != measured_key(row)


def replace_in(row: dict[str, Any], name: str) -> dict[str, Any]:
    return {**row, name: "another"}

"""What the paper's flags for cores, clocks and scenes do to an evaluation."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from exitbench.harness import cli, evaluation
from exitbench.harness.circumstances import (
    Circumstances,
    ClockFiles,
    SetClocks,
    find_clocks,
    usable_cpus,
)
from exitbench.harness.clocks import sysfs
from exitbench.harness.clocks.base import ClockError
from exitbench.harness.configs import DataConfig, DeviceConfig
from exitbench.harness.configs_paper import PaperConfig
from exitbench.harness.dvfs import Point, dvfs_of
from exitbench.harness.errors import ExitbenchError
from exitbench.harness.evaluation import Evaluation, evaluate_checkpoint
from exitbench.harness.paper import run_paper
from exitbench.harness.scenes import Scene
from exitbench.profiles.loading import load_profile
from fake_clocks import TX2_CPU_KHZ, Kernel, add_cores, add_devfreq, add_policy, content, refuse
from pipeline_fixtures import CPU, Inputs, Said, silent

TX2 = load_profile("jetson-tx2")
TX2_GPU = "17000000.gp10b"


def evaluate(inputs: Inputs, circumstances: Circumstances, **changes: Any) -> Evaluation:
    values: dict[str, Any] = {
        "policy": "full", "criterion": "softmax", "beta": None, "start_layer": 1,
        "predictor": "convolution", "precision": "fp32", "data": DataConfig(), "device": CPU,
        "batch_size": 1, "limit": 4, "say": silent,
    }  # fmt: skip
    return evaluate_checkpoint(inputs.vgg, **{**values, **changes}, circumstances=circumstances)


@dataclass
class Nap:
    """Sleeps that are noted, and take no time on a clock that they move."""

    now_s: float = 10.0
    slept: list[float] = field(default_factory=list)

    def clock(self) -> float:
        self.now_s += 1e-6  # a look at the clock takes time, so that nothing waits forever
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds


def test_periodical_serves_one_image_per_period_asleep_between(inputs: Inputs) -> None:
    nap, said = Nap(), Said()
    scene = Scene(60.0, clock=nap.clock, sleep=nap.sleep)
    found = evaluate(inputs, Circumstances(scene=scene), say=said)
    assert len(nap.slept) == 4
    assert min(nap.slept) > 59.0
    assert said.starting("one image every 60 s: 4 images take 240 s")
    assert found.cost is not None
    assert found.cost.seconds == pytest.approx(240.0, abs=0.01)  # looks at the clock
    assert (found.cost.images, found.cost.late, found.cost.keeps_up) == (4, 0, True)
    (line,) = [line for line in found.lines() if line.startswith("one image every 60 s, asleep")]
    assert "0 of 4 had to wait" in line
    assert any("J per hour" in line or "energy unavailable" in line for line in found.lines())


def test_the_baseline_waits_awake(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "find_clocks", lambda *_: as_they_are())
    nap = Nap()
    scene = Scene(0.01, awake=True, clock=nap.clock, sleep=nap.sleep)
    found = evaluate(inputs, Circumstances(scene=scene, top=True))
    assert nap.slept == []
    assert any("awake between" in line for line in found.lines())


def as_they_are() -> SetClocks:
    return find_clocks(Circumstances(), None, "cpu", 1)


def simulated(**asked: Any) -> Circumstances:
    return Circumstances(clocks="simulated", hardware="jetson-tx2", **asked)


@pytest.mark.parametrize(("number", "mhz"), [(1, 345.6), (8, 1420.8), (12, 2035.2)])
def test_a_simulated_level_is_priced_by_the_profile(number: int, mhz: float) -> None:
    clocks = find_clocks(simulated(cpu_level=number), TX2, "cpu", 1)
    assert dict(clocks.values) == {"cpu": mhz}
    assert clocks.model == dvfs_of(TX2, "cpu", busy=1 / 6)  # one thread on its six cores
    assert clocks.point.f_ratio == pytest.approx(mhz / 2035.2)
    top = find_clocks(simulated(top=True), TX2, "cpu", 1)
    assert clocks.model.power_w(clocks.point) <= top.model.power_w(top.point)
    assert clocks.model.time_factor(clocks.point) >= top.model.time_factor(top.point) == 1.0


def test_simulated_clocks_change_nothing_wait_for_nothing_and_say_modelled(
    inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel, nap = Kernel(), Nap()
    monkeypatch.setattr(sysfs, "put_text", kernel.put_text)
    scene = Scene(60.0, clock=nap.clock, sleep=nap.sleep)
    slow, fast = (
        evaluate(inputs, simulated(cpu_level=number, scene=scene)).cost for number in (1, 12)
    )
    assert kernel.writes == []
    assert nap.slept == []
    for cost in (slow, fast):
        assert (cost.latency_source, cost.energy_source) == ("modelled", "modelled")
        assert cost.seconds == 240.0
        text = "\n".join(cost.lines())
        assert "clocks simulated: no clock is changed, time and energy are modelled" in text
        assert "(modelled)" in text
    # The fake clock gives every image the same time, so that only the level tells them apart.
    assert slow.response_s == pytest.approx(
        fast.response_s * find_clocks(simulated(cpu_level=1), TX2, "cpu", 1).model.time_factor(
            find_clocks(simulated(cpu_level=1), TX2, "cpu", 1).point
        )
    )


def test_a_simulated_baseline_pays_for_waiting_awake(inputs: Inputs) -> None:
    nap = Nap()
    scene = Scene(60.0, clock=nap.clock, sleep=nap.sleep)
    asleep = evaluate(inputs, simulated(scene=scene)).cost
    awake = evaluate(inputs, simulated(scene=replace(scene, awake=True), top=True)).cost
    model = dvfs_of(TX2, "cpu", busy=1 / 6)
    watts = model.power_w(Point("top", {}, 1.0))
    # Images take next to no time.
    assert asleep.joules == pytest.approx(model.idle_w * 240.0, rel=1e-3)
    assert awake.joules == pytest.approx(watts * 240.0, rel=1e-3)


def test_simulated_power_is_that_of_the_devices_own_cores_not_of_this_machines() -> None:
    watts = {
        cores: clocks.model.power_w(clocks.point)
        for cores in (1, 2, 4, 6)
        for clocks in [find_clocks(simulated(cores=cores), TX2, "cpu", cores)]
    }
    assert watts[6] == pytest.approx(TX2.power["cpu"].active_w.value)
    assert watts[4] - watts[2] == pytest.approx(2 * (watts[2] - watts[1]))
    assert watts[1] < watts[2]


def test_a_level_that_there_is_not_is_refused_with_those_there_are() -> None:
    with pytest.raises(ClockError, match=r"no level 99: its levels are 1 to 1[0-9]"):
        find_clocks(simulated(gpu_level=99), TX2, "cuda:0", 1)
    with pytest.raises(ClockError, match="--core_num is 7; simulated cores of jetson-tx2"):
        find_clocks(simulated(cores=7), TX2, "cpu", 1)
    with pytest.raises(ClockError, match="--gpu_freq_level: the hardware profile has no such"):
        find_clocks(
            Circumstances(clocks="simulated", gpu_level=1), load_profile("generic-x86"), "cpu", 1
        )
    with pytest.raises(ExitbenchError, match="name one with --hardware"):
        find_clocks(Circumstances(clocks="simulated", cpu_level=1), None, "cpu", 1)


def test_what_a_simulation_does_not_price_is_said() -> None:
    (note,) = find_clocks(simulated(cpu_level=1, gpu_level=1), TX2, "cpu", 1).notes
    assert note.startswith("--gpu_freq_level: without effect on what is simulated")
    (note,) = find_clocks(simulated(cores=2, gpu_level=1), TX2, "cuda:0", 1).notes
    assert note.startswith("--core_num: without effect on what is simulated")
    few = min(2, usable_cpus())
    assert find_clocks(simulated(cores=few, cpu_level=1), TX2, "cpu", 1).notes == ()


def test_simulated_cores_are_threads_also_where_a_profile_knows_none() -> None:
    generic, many = load_profile("generic-x86"), usable_cpus() + 1
    asked = Circumstances(clocks="simulated", cores=many)
    clocks = find_clocks(asked, generic, "cpu", many)
    assert f"{many} cores" in clocks.words
    assert clocks.model.busy == 1.0
    (note,) = clocks.notes
    assert f"this process may use {usable_cpus()} CPUs" in note


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[ClockFiles, Kernel]:
    """A board with four cores, a CPU clock and a GPU clock."""
    root, kernel = tmp_path / "board", Kernel()
    add_policy(root, 0)
    add_devfreq(root, TX2_GPU)
    add_cores(root, 4)
    monkeypatch.setattr(sysfs, "put_text", kernel.put_text)
    monkeypatch.setattr("exitbench.harness.circumstances.SETTLE_S", 0.0)
    return ClockFiles(root, tmp_path / "journal.json"), kernel


def written(kernel: Kernel) -> dict[str, list[str]]:
    """What was written, by the last two parts of the path."""
    found: dict[str, list[str]] = {}
    for path, value in kernel.writes:
        found.setdefault("/".join(path.parts[-2:]), []).append(value)
    return found


def test_cores_and_levels_are_set_on_the_device_and_put_back(
    inputs: Inputs, board: tuple[ClockFiles, Kernel]
) -> None:
    files, kernel = board
    before = content(files.root)
    asked = Circumstances(
        cores=2, cpu_level=3, gpu_level=2, hardware="jetson-tx2", files=files
    )
    found = evaluate(inputs, asked)
    wrote = written(kernel)
    assert str(TX2_CPU_KHZ[2]) in wrote["policy0/scaling_max_freq"]
    assert "854250000" in wrote[f"{TX2_GPU}/max_freq"]
    assert "0" in wrote["cpu3/online"]
    assert content(files.root) == before
    assert found.cost is not None
    assert found.cost.latency_source == "measured"
    (line,) = [line for line in found.lines() if line.startswith("clocks set on the device")]
    assert "2 cores, 652.8 MHz CPU, 854.25 MHz GPU" in line


def test_the_baseline_sets_all_to_the_top(
    inputs: Inputs, board: tuple[ClockFiles, Kernel]
) -> None:
    files, kernel = board
    (files.root / "sys/devices/system/cpu/cpu3/online").write_text("0\n")
    before = content(files.root)
    evaluate(inputs, Circumstances(top=True, hardware="jetson-tx2", files=files))
    wrote = written(kernel)
    assert wrote["cpu3/online"][0] == "1"
    assert set(wrote["policy0/scaling_min_freq"]) >= {str(TX2_CPU_KHZ[-1])}
    assert "1300500000" in wrote[f"{TX2_GPU}/min_freq"]
    assert content(files.root) == before


def test_no_permission_ends_before_any_work_with_nothing_changed(
    inputs: Inputs,
    board: tuple[ClockFiles, Kernel],
) -> None:
    files, kernel = board
    kernel.rules["scaling_max_freq"] = refuse(errno.EACCES)
    before, said = content(files.root), Said()
    config = PaperConfig(
        pretrained_file=inputs.vgg, device="cpu", npz=inputs.npz, cpu_freq_level=2,
        hardware="jetson-tx2", limit=4, evaluate_mode="normal",
    )  # fmt: skip
    with pytest.raises(ClockError, match="no permission to write") as caught:
        run_paper(config, said, files=files)
    assert "With --clocks simulated none is changed" in str(caught.value)
    assert caught.value.exit_status == 2
    assert content(files.root) == before
    assert not said.starting("full")


def test_cores_alone_can_be_set_where_no_clock_can(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, kernel = tmp_path / "cores", Kernel()
    add_cores(root, 4)
    monkeypatch.setattr(sysfs, "put_text", kernel.put_text)
    files = ClockFiles(root, tmp_path / "journal.json")
    evaluate(inputs, Circumstances(cores=2, hardware="jetson-tx2", files=files))
    assert set(written(kernel)) == {"cpu2/online", "cpu3/online"}
    with pytest.raises(ClockError, match="nothing here sets the CPU clock"):
        evaluate(inputs, Circumstances(cores=2, cpu_level=1, hardware="jetson-tx2", files=files))


def test_modelled_energy_follows_a_clock_that_is_set(
    inputs: Inputs, board: tuple[ClockFiles, Kernel]
) -> None:
    files, _ = board
    watts = []
    for number in (1, len(TX2_CPU_KHZ)):
        asked = Circumstances(cpu_level=number, hardware="jetson-tx2", files=files)
        cost = evaluate(inputs, asked).cost
        if cost.energy_source != "modelled":
            pytest.skip("this machine has a counter")
        watts.append(cost.joules / cost.seconds)
    model = dvfs_of(TX2, "cpu", busy=1 / usable_cpus())
    clocks = find_clocks(simulated(top=True), TX2, "cpu", 1)
    assert watts[0] < watts[1] == pytest.approx(model.power_w(clocks.point))


def test_what_happened_at_every_exit_is_told_beside_the_times(inputs: Inputs) -> None:
    found = evaluate(
        inputs, simulated(cpu_level=1), policy="predictive", beta=0.35, stat_each_layer=True
    )
    assert found.stat_each_layer
    assert found.cost is not None


def test_the_command_acts_with_simulated_clocks(
    inputs: Inputs, capsys: pytest.CaptureFixture[str]
) -> None:
    line = (
        f"paper --pretrained_file {inputs.vgg} --npz {inputs.npz} --device cpu --threads 1 "
        "--evaluate_mode normal --core_num 2 --cpu_freq_level 4 --scene periodical "
        "--baseline_time 2 --sleep_time 3 --clocks simulated --hardware jetson-tx2 --limit 3"
    )
    status = cli.main(line.split())
    shown = capsys.readouterr()
    assert status == 0, shown.err
    assert "on 3 test images" in shown.out
    assert "clocks simulated: no clock is changed" in shown.out
    assert "2 cores, 806.4 MHz CPU" in shown.out
    assert "one image every 5 s, asleep between" in shown.out
    assert "J per hour" in shown.out


def test_threads_of_a_device_config_are_those_of_the_evaluation(inputs: Inputs) -> None:
    found = evaluate(inputs, Circumstances(), device=DeviceConfig("cpu", 1))
    assert found.cost is not None
    assert found.cost.response_s is None
    assert found.cost.clocks == ""

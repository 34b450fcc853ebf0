"""Bad input to the commands: what is wrong, where, what to do; and nothing half-written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exitbench.harness import cli
from exitbench.harness.configs import (
    DataConfig,
    DeviceConfig,
    ProfileConfig,
    ReportConfig,
    RunConfig,
    SubsetConfig,
    SweepConfig,
    TraceConfig,
)
from exitbench.harness.live import run_run
from exitbench.harness.pipeline import run_report, run_subset, study
from exitbench.harness.profiling import run_profile
from exitbench.harness.subject import usable_precisions
from exitbench.harness.sweeping import run_sweep
from exitbench.harness.tracing import run_trace
from pipeline_fixtures import (
    CPU,
    Inputs,
    Said,
    cost_rows,
    refused,
    silent,
    study_config,
    write_cost,
)

CPU_DEVICE = torch.device("cpu")


@dataclass(frozen=True)
class Place:
    """What a case of bad input is made from.

    Attributes:
        inputs: a dataset and networks.
        new: a path at which nothing is.
        run: a copy of a finished study, which a case may damage.
        before: what the files of the run held when the command started.
    """

    inputs: Inputs
    new: Path
    run: Path
    before: dict[str, bytes] = field(default_factory=dict)

    def ready(self) -> Path:
        """The run, once its files are remembered as they are now."""
        self.before.update(contents(self.run))
        return self.run


def contents(run: Path) -> dict[str, bytes]:
    """Every file of a folder, the hidden ones too."""
    return {str(p.relative_to(run)): p.read_bytes() for p in run.rglob("*") if p.is_file()}


@pytest.fixture
def place(inputs: Inputs, finished: Path, tmp_path: Path) -> Place:
    return Place(inputs, tmp_path / "new", shutil.copytree(finished, tmp_path / "run"))


Case = Callable[[Place], Any]


def trace(p: Place, **changes: Any) -> None:
    run_trace(replace(TraceConfig(p.new, p.inputs.vgg, device=CPU), **changes), silent)


def profile(p: Place, **changes: Any) -> None:
    run_profile(replace(ProfileConfig(p.new, p.inputs.vgg, device=CPU), **changes), silent)


def start_study(p: Place, **changes: Any) -> None:
    study(replace(study_config(p.inputs.vgg, p.new), **changes), silent)


def cut(path: Path, target: Path) -> Path:
    target.write_bytes(path.read_bytes()[:5000])
    return target


NEW: dict[str, tuple[Case, list[str]]] = {
    "even kernel": (lambda p: trace(p, kernel=(1.0, 1.0)), ["kernel [1.0, 1.0]", "must be odd"]),
    "horizon": (lambda p: trace(p, horizon=0), ["horizon is 0", "at least 1"]),
    "batch size": (lambda p: trace(p, batch_size=0), ["batch size is 0", "at least 1"]),
    "limit": (lambda p: trace(p, limit=0), ["limit is 0", "at least 1"]),
    "no checkpoint file": (
        lambda p: trace(p, checkpoint=p.new / "no.safetensors"),
        ["no checkpoint at", "no.safetensors", "'exitbench train'"],
    ),
    "truncated checkpoint": (
        lambda p: trace(p, checkpoint=cut(p.inputs.vgg, p.new.parent / "cut.safetensors")),
        ["cut.safetensors is not a complete safetensors file", "copy it again"],
    ),
    "plain network": (
        lambda p: trace(p, checkpoint=p.inputs.plain),
        ["plain.st holds a plain network without exits", "--mode exits --init"],
    ),
    "dataset of other classes": (
        lambda p: trace(p, data=DataConfig(dataset="digits")),
        ["vgg.st tells 4 classes apart", "digits has 10", "images.npz"],
    ),
    "no such dataset": (
        lambda p: trace(p, data=DataConfig(dataset="npz:nowhere.npz")),
        ["there is no file nowhere.npz", "numpy.savez"],
    ),
    "calibration too large": (
        lambda p: trace(p, data=DataConfig(calibration_samples=120)),
        ["calibration samples is 120", "must be 1 to 116"],
    ),
    "no such subset": (
        lambda p: trace(p, data=DataConfig(subset=Path("none.json"))),
        ["cannot read none.json"],
    ),
    "device": (
        lambda p: trace(p, device=DeviceConfig("tpu")),
        ["device is 'tpu'", "auto, cpu, cuda or cuda:N"],
    ),
    "threads": (
        lambda p: trace(p, device=DeviceConfig("cpu", -1)),
        ["threads is -1", "0 (all physical cores) or a positive number"],
    ),
    "profile of nothing": (
        lambda p: profile(p, checkpoint=None),
        ["names no network to profile", "--checkpoint"],
    ),
    "profile of no file": (
        lambda p: profile(p, checkpoint=Path("none.safetensors")),
        ["no checkpoint at none.safetensors"],
    ),
    "profile with four faults": (
        lambda p: profile(p, batch_sizes=(0,), seconds=0.0, interval=2.0, horizon=0),
        ["batch sizes are [0]", "seconds is 0.0", "interval is 2.0", "horizon is 0"],
    ),
    "study without the price of its batch size": (
        lambda p: start_study(p, batch_size=2),
        ["batch size 2 is not among the batch sizes to profile (1, 8)"],
    ),
    "study with a wrong beta": (
        lambda p: start_study(p, beta=("0.5", "lots")),
        ["beta is 0.5 lots", "numbers above 0, or the single word auto"],
    ),
    "study of a plain network": (
        lambda p: start_study(p, checkpoint=p.inputs.plain),
        ["plain network without exits"],
    ),
}


@pytest.mark.parametrize("name", NEW)
def test_bad_input_is_refused_before_anything_is_made(place: Place, name: str) -> None:
    case, words = NEW[name]
    message = refused(case, place)
    for part in words:
        assert part in message
    assert not place.new.exists()


def without(p: Place, *names: str) -> Place:
    for name in names:
        (p.run / name).unlink()
    return p


def sweep(p: Place, **changes: Any) -> None:
    config = SweepConfig(p.ready(), criteria=("softmax",), beta=("0.3",))
    run_sweep(replace(config, **changes), silent)


def live(p: Place, *settings: str, **changes: Any) -> None:
    config = RunConfig(p.ready(), settings=settings, repeats=1, device=CPU)
    run_run(replace(config, **changes), silent)


def other_costs(p: Place) -> Place:
    write_cost(p.run / "cost.csv", cost_rows([1, 2, 3], [1, 1]))
    return p


def other_trace(p: Place) -> Place:
    with np.load(p.run / "trace-test-fp32.npz") as file:
        arrays = dict(file)
    meta = json.loads(str(arrays["meta"])) | {"network": "0" * 64}
    np.savez(p.run / "trace-test-fp32.npz", **arrays | {"meta": np.array(json.dumps(meta))})
    return p


def row_of(p: Place, policy: str) -> str:
    lines = (p.run / "sweep.csv").read_text().splitlines()
    return str(next(n for n, line in enumerate(lines[1:]) if line.split(",")[1] == policy))


def damaged(p: Place, name: str, old: str | None, new: str) -> Place:
    """A file of the run with some text replaced, or all of it."""
    path = p.run / name
    text = path.read_text()
    path.write_text(new if old is None else text.replace(old, new, 1))
    assert path.read_text() != text
    return p


def cut_before_the_test_split(p: Place) -> Place:
    """A sweep.csv that ends with the calibration rows, as a copy that broke off does."""
    path = p.run / "sweep.csv"
    lines = path.read_text().splitlines()
    kept = [line for line in lines if not line.startswith("test,")]
    assert 1 < len(kept) < len(lines)
    path.write_text("\n".join(kept) + "\n")
    return p


def again(p: Place, **changes: Any) -> None:
    """Trace into the directory of the finished study."""
    run_trace(replace(TraceConfig(p.ready(), p.inputs.vgg, device=CPU), **changes), silent)


def profile_again(p: Place, **changes: Any) -> None:
    run_profile(replace(ProfileConfig(p.ready(), device=CPU), **changes), silent)


OLD: dict[str, tuple[Case, list[str]]] = {
    "no trace": (
        lambda p: sweep(without(p, "trace-test-fp32.npz")),
        ["holds no trace of any precision", "record it with 'exitbench trace'"],
    ),
    "half of the traces": (
        lambda p: sweep(without(p, "trace-calibration-fp32.npz")),
        ["no trace at", "trace-calibration-fp32.npz", "'exitbench trace'"],
    ),
    "untraced precision": (
        lambda p: sweep(p, precisions=("int8",)),
        ["holds no trace of int8", "'exitbench trace'"],
    ),
    "traces of two networks": (
        lambda p: sweep(other_trace(p)), ["differ in network", "record them again together"],
    ),
    "no costs": (
        lambda p: sweep(without(p, "cost.csv")),
        ["cannot read the cost table", "cost.csv", "'exitbench profile'"],
    ),
    "costs of another network": (
        lambda p: sweep(other_costs(p)),
        ["cost.csv prices 2 exits, but the traces have 5", "profile the network that was traced"],
    ),
    "batch size without a price": (
        lambda p: sweep(p, batch_size=3),
        ["no rows for fp32, batch 3", "fp32, batch 1", "fp32, batch 8", "'exitbench profile'"],
    ),
    "beta count": (lambda p: sweep(p, beta_count=1), ["beta count is 1", "at least 2"]),
    "accuracy loss": (
        lambda p: sweep(p, accuracy_loss=-1.0),
        ["accuracy loss is -1.0", "percentage points, from 0 to 100"],
    ),
    "no full network to compare with": (
        lambda p: sweep(p, policies=("every-exit",)),
        ["policy full must be in the sweep", "savings are compared with"],
    ),
    "start layers": (
        lambda p: sweep(p, start_layers=(1, 6)),
        ["start layers [6] do not exist", "this network has 1 to 5"],
    ),
    "criterion": (
        lambda p: sweep(p, criteria=("sofmax",)),
        ["criteria ['sofmax'] do not exist", "known are softmax"],
    ),
    "run without a sweep": (
        lambda p: live(without(p, "sweep.csv")),
        ["holds no sweep to choose settings from", "run 'exitbench sweep'"],
    ),
    "role": (
        lambda p: live(p, "best"),
        ["no setting plays the role 'best'", "every-exit", "or give a row number"],
    ),
    "row": (lambda p: live(p, "9999"), ["setting 9999 is no row of sweep.csv", "rows 0 to"]),
    "bound": (
        lambda p: live(p, row_of(p, "oracle")),
        ["oracle", "knows the truth and can only be replayed", "leave out"],
    ),
    "run limit": (lambda p: live(p, "full", limit=0), ["limit is 0", "at least 1"]),
    "hardware": (
        lambda p: live(p, "full", hardware="jetson"), ["jetson", "jetson-tx2"],
    ),
    "another network": (
        lambda p: live(p, "full", checkpoint=p.inputs.resnet),
        ["was made with another network", "choose another run directory"],
    ),
    "trace of another network": (
        lambda p: again(p, checkpoint=p.inputs.resnet),
        ["was made with another network", "choose another run directory"],
    ),
    "trace of other splits": (
        lambda p: again(p, limit=5), ["was made with other splits", "now {'calibration': 5"],
    ),
    "trace of another split seed": (
        lambda p: again(p, data=DataConfig(split_seed=5)),
        ["was made with other splits (split seed 0, now 5)"],
    ),
    "run of another split seed": (
        lambda p: live(p, "full", data=DataConfig(split_seed=5)),
        ["was made with other splits (split seed 0, now 5)"],
    ),
    "trace of no precision": (
        lambda p: again(p, precisions=("fp8",)), ["precision fp8 cannot be run"],
    ),
    "study of another network": (
        lambda p: study(study_config(p.inputs.resnet, p.ready()), silent),
        ["was made with another network"],
    ),
    "profile of another network": (
        lambda p: profile_again(p, checkpoint=p.inputs.resnet), ["was made with another network"],
    ),
    "profile with a wrong hardware profile": (
        lambda p: profile_again(p, hardware="jetson"), ["jetson", "jetson-tx2"],
    ),
    "run with a batch size without a price": (
        lambda p: live(p, "full", batch_size=3), ["no rows for fp32, batch 3"],
    ),
    "no forecast to judge": (
        lambda p: live(p, "full", forward_mode="accuracy"), ["no predictive setting was chosen"],
    ),
    "empty sweep": (
        lambda p: live(damaged(p, "sweep.csv", None, "")), ["sweep.csv is no CSV table"],
    ),
    "sweep without roles": (
        lambda p: live(damaged(p, "sweep.csv", "chosen_as", "chosen")),
        ["sweep.csv lacks the column(s) chosen_as", "'exitbench sweep'"],
    ),
    "sweep cut short": (
        lambda p: live(cut_before_the_test_split(p), "full"),
        ["sweep.csv has no test row with a role", "'exitbench sweep'"],
    ),
    "sweep with a word for beta": (
        lambda p: live(damaged(p, "sweep.csv", "softmax,0.", "softmax,abc0.")),
        ["column beta: 'abc0.", "right is a finite number"],
    ),
    "sweep with an unknown policy": (
        lambda p: live(damaged(p, "sweep.csv", "every-exit", "some-exit")),
        ["column policy: 'some-exit' is wrong"],
    ),
    "other threads": (
        lambda p: live(p, "full", device=DeviceConfig("cpu", 2)),
        ["holds numbers of another environment", "threads (1 and 2)"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OLD)
def test_bad_input_leaves_a_run_directory_as_it_was(place: Place, name: str) -> None:
    case, words = OLD[name]
    message = refused(case, place)
    for part in words:
        assert part in message
    assert place.before
    assert contents(place.run) == place.before


@pytest.mark.parametrize(
    "command",
    [
        lambda run: run_sweep(SweepConfig(run), silent),
        lambda run: run_run(RunConfig(run), silent),
        lambda run: run_report(ReportConfig(run), silent),
        lambda run: run_subset(SubsetConfig(run, run / "list.json"), silent),
    ],
)
def test_a_folder_that_is_no_run_directory_says_how_to_make_one(
    tmp_path: Path, command: Callable[[Path], None]
) -> None:
    message = refused(command, tmp_path)
    assert f"{tmp_path} is no run directory (it has no manifest.json)" in message
    assert "'exitbench study' or 'exitbench trace'" in message
    assert list(tmp_path.iterdir()) == []


def test_a_precision_that_the_device_cannot_run_says_why() -> None:
    # fp8 stands for any that is not there: which of the others are depends on the machine.
    message = refused(usable_precisions, ("fp32", "fp8"), CPU_DEVICE, True, silent)
    assert "precision fp8 cannot be run: " in message
    assert "it must be fp32, tf32, bf16, fp16, int8" in message
    assert message == refused(usable_precisions, ("fp8",), CPU_DEVICE, False, silent)


def test_a_study_leaves_such_a_precision_out_and_says_so() -> None:
    said = Said()
    usable, missing = usable_precisions(("fp32", "fp8"), CPU_DEVICE, False, said)
    assert usable == ["fp32"]
    assert said.lines == [f"leaving out fp8: {missing['fp8']}"]


def test_the_command_line_prints_the_message_and_ends_with_2(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["sweep", "--run", str(place.run), "--start-layers", "9"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("exitbench: start layers [9] do not exist")
    assert "Traceback" not in captured.err

"""A runtime and int8's ranges by name: who is asked, what is noted, and what is not mixed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import pytest
from exitbench.harness import cli
from exitbench.harness.configs import (
    DeviceConfig,
    GovernConfig,
    ProfileConfig,
    RunConfig,
    SweepConfig,
    TraceConfig,
)
from exitbench.harness.configs_machine import Ranges, Runtime
from exitbench.harness.governing import run_govern
from exitbench.harness.live import run_run
from exitbench.harness.pipeline import study
from exitbench.harness.profiling import run_profile
from exitbench.harness.quantization import RANGES
from exitbench.harness.runtime import RUNTIMES, openvino_kit, openvino_models
from exitbench.harness.runtime.registry import availability, named
from exitbench.harness.sweeping import run_sweep
from exitbench.harness.tracing import run_trace
from pipeline_fixtures import CPU, Inputs, Said, refused, silent, study_config

EAGER = replace(CPU, runtime="eager")
LIMIT = 24


def trace(inputs: Inputs, run: Path, device: DeviceConfig = CPU, **more: Any) -> list[str]:
    said = Said()
    run_trace(TraceConfig(run, inputs.vgg, limit=LIMIT, device=device, **more), said)
    return said.lines


def profile(run: Path, device: DeviceConfig = CPU, **more: Any) -> None:
    values = {"batch_sizes": (1,), "seconds": 0.1, "energy": False, "device": device}
    run_profile(ProfileConfig(run, **(values | more)), silent)


def noted(run: Path, precision: str = "fp32") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "manifest.json").read_text())["precisions"][precision]
    return found


def priced(run: Path) -> set[str]:
    return set(pd.read_csv(run / "cost.csv")["runtime"])


@pytest.fixture(scope="module")
def traced(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory traced and profiled with eager."""
    run = tmp_path_factory.mktemp("choice") / "run"
    trace(inputs, run, EAGER)
    profile(run)
    return run


@pytest.fixture
def run(traced: Path, tmp_path: Path) -> Path:
    return shutil.copytree(traced, tmp_path / "run")


def test_the_command_line_knows_the_runtimes_and_the_ranges() -> None:
    assert set(get_args(Runtime)) == {"auto", *RUNTIMES}
    assert set(get_args(Ranges)) == set(RANGES)


def test_onednn_stands_for_its_own_int8() -> None:
    assert [named("onednn", p) for p in ("fp32", "bf16", "int8")] == ["onednn"] * 2 + [
        "onednn-int8"
    ]
    assert named("openvino", "int8") == "openvino"
    assert "known are" in refused(named, "tensorrt", "fp32")


def test_the_runtime_that_was_asked_for_is_noted_and_costs_follow_the_traces(
    traced: Path,
) -> None:
    assert noted(traced)["runtime"] == "eager"
    assert "torch's own convolutions" in noted(traced)["words"]
    assert priced(traced) == {"eager"}


def test_a_profile_of_another_runtime_than_the_traces_is_refused(run: Path) -> None:
    before = (run / "cost.csv").read_bytes(), (run / "manifest.json").read_bytes()
    message = refused(profile, run, replace(CPU, runtime="onednn"))
    assert f"{run} was traced in fp32 with runtime eager, this would be onednn" in message
    assert "leave out --runtime" in message
    assert before == ((run / "cost.csv").read_bytes(), (run / "manifest.json").read_bytes())


def test_a_trace_with_another_runtime_is_recorded_anew_and_prices_are_then_refused(
    inputs: Inputs, run: Path
) -> None:
    assert any(line.endswith("already there") for line in trace(inputs, run, EAGER))
    said = trace(inputs, run, replace(CPU, runtime="onednn"))
    assert "trace fp32: the one that is there is of eager, now onednn: recorded anew" in said
    assert not any(line.endswith("already there") for line in said)
    assert noted(run)["runtime"] == "onednn"
    message = refused(run_sweep, SweepConfig(run, beta_count=3), silent)
    assert "prices fp32, batch size 1, with runtime eager, but the traces are of onednn" in message
    profile(run)
    assert priced(run) == {"onednn"}
    run_sweep(SweepConfig(run, beta_count=3), silent)


def test_prices_of_another_runtime_are_governed_as_little_as_swept(
    inputs: Inputs, run: Path
) -> None:
    profile(run, energy=True, hardware="generic-x86")
    govern = GovernConfig(run, beta_count=3)
    run_govern(govern, silent)
    trace(inputs, run, replace(CPU, runtime="onednn"))
    message = refused(run_govern, govern, silent)
    assert "with runtime eager, but the traces are of onednn" in message


def test_a_kill_between_two_runtimes_leaves_no_trace_under_a_wrong_name(
    inputs: Inputs, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("exitbench.harness.tracing.record", killed)
    with pytest.raises(KeyboardInterrupt):
        trace(inputs, run, replace(CPU, runtime="onednn"))
    assert list(run.glob("trace-*-fp32.npz")) == []


def test_a_run_takes_the_runtime_of_the_traces_and_says_when_another_is_asked_for(
    run: Path,
) -> None:
    run_sweep(SweepConfig(run, beta_count=3, criteria=("softmax",)), silent)
    config = RunConfig(run, ("full",), repeats=1, limit=4, device=CPU)
    said = Said()
    run_run(config, said)
    run_run(replace(config, device=replace(CPU, runtime="onednn")), said)
    rows = [json.loads(line) for line in (run / "measurements.jsonl").read_text().splitlines()]
    assert [row["runtime"] for row in rows] == ["eager", "onednn"], "each keeps its place"
    note = f"note: {run} was traced in fp32 with runtime eager; what follows is run with onednn"
    assert said.lines.count(note) == 1
    assert noted(run)["runtime"] == "eager", "of the traces"


def test_a_run_beside_prices_of_another_runtime_is_refused(inputs: Inputs, run: Path) -> None:
    run_sweep(SweepConfig(run, beta_count=3, criteria=("softmax",)), silent)
    trace(inputs, run, replace(CPU, runtime="onednn"))
    message = refused(run_run, RunConfig(run, ("full",), repeats=1, limit=4, device=CPU), silent)
    assert "prices fp32, batch size 1, with runtime eager, but the traces are of onednn" in message
    assert not (run / "measurements.jsonl").exists()


def test_other_ranges_are_other_traces(inputs: Inputs, tmp_path: Path) -> None:
    if reason := availability("int8"):
        pytest.skip(reason)
    run, percentile = tmp_path / "run", replace(CPU, ranges="percentile")
    trace(inputs, run, percentile, precisions=("int8",))
    assert noted(run, "int8")["ranges"] == "percentile"
    assert "99.99 percentiles" in noted(run, "int8")["words"]
    message = refused(
        profile, run, replace(CPU, ranges="min-max"), precisions=("int8",)
    )
    assert "traced in int8 with ranges percentile, this would be min-max" in message
    said = trace(inputs, run, precisions=("int8",))
    assert any("with ranges percentile, now onednn-int8 with ranges min-max" in x for x in said)
    assert noted(run, "int8")["ranges"] == "min-max"


def test_ranges_are_of_int8_alone(inputs: Inputs, run: Path) -> None:
    said = trace(inputs, run, replace(EAGER, ranges="percentile"))
    assert any(line.endswith("already there") for line in said)
    assert noted(run)["ranges"] is None


def test_a_precision_that_the_runtime_cannot_run_is_one_clear_error(
    inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["trace", "--run", str(tmp_path / "run"), "--checkpoint", str(inputs.vgg),
                 "--device", "cpu", "--threads", "1"]  # fmt: skip
    assert cli.main([*arguments, "--runtime", "eager", "--precisions", "int8"]) == 2
    assert "precision int8 cannot be run: eager runs fp32" in capsys.readouterr().err
    assert cli.main([*arguments, "--runtime", "tensorrt"]) == 2
    assert not (tmp_path / "run").exists()


def test_a_study_leaves_out_what_the_runtime_cannot_run(
    inputs: Inputs, tmp_path: Path
) -> None:
    config = study_config(inputs.vgg, tmp_path / "run", precisions=("fp32", "int8"), device=EAGER)
    said = Said()
    study(replace(config, limit=LIMIT, energy=False, run_limit=2), said)
    assert said.starting("leaving out int8: eager runs fp32")
    assert noted(config.run)["runtime"] == "eager"
    assert noted(config.run, "int8")["available"] is False


def test_openvino_that_is_missing_says_how_to_install_it(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> Any:
        raise ImportError("No module named 'openvino'")

    monkeypatch.setattr(openvino_kit.importlib, "import_module", missing)
    openvino_models.core.cache_clear()
    message = refused(trace, inputs, tmp_path / "run", replace(CPU, runtime="openvino"))
    assert "precision fp32 cannot be run: OpenVINO cannot be loaded" in message
    assert "pip install 'exitbench[openvino]'" in message
    assert availability("fp32") is None, "others serve"


def test_options_come_from_a_file_and_from_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "options.toml"
    file.write_text('checkpoint = "a"\nrun = "b"\n[device]\nruntime = "openvino"\n')
    config = cli.parse(["study", "--config", str(file), "--ranges", "percentile"])
    assert (config.device.runtime, config.device.ranges) == ("openvino", "percentile")


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--out", "a.st", "--runtime", "eager"],
        ["doctor", "--ranges", "percentile"],
        ["trace", "--run", "a", "--logits", "a.npz", "--cost", "a.csv", "--runtime", "eager"],
        ["hardware", "calibrate", "--write", "a.toml", "--runtime", "onednn"],
    ],
)
def test_commands_that_run_no_prepared_network_refuse_both(arguments: list[str]) -> None:
    assert "this command runs no prepared network" in refused(cli.parse, arguments)

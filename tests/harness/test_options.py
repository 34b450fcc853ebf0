"""Options as plain values: files of options, manifests, and what is said of faulty ones."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from exitbench.harness import configs, configs_paper
from exitbench.harness.configs import (
    DataConfig,
    DeviceConfig,
    GovernConfig,
    RunConfig,
    SubsetConfig,
    SweepConfig,
    TraceConfig,
    TrainConfig,
)
from exitbench.harness.errors import ExitbenchError
from exitbench.harness.limits import faults
from exitbench.harness.options import from_plain, read_options, to_plain

CONFIGS = [
    configs.DemoConfig(),
    TrainConfig(out=Path("a.safetensors"), exits=(2, 5), data=DataConfig(subset=Path("s.json"))),
    TraceConfig(run=Path("runs/a"), kernel=(0.5, 1.0, 0.5), device=DeviceConfig("cuda:1", 3)),
    configs.ProfileConfig(run=Path("runs/a"), batch_sizes=(1, 8)),
    SweepConfig(run=Path("runs/a"), beta=("0.5", "1.25")),
    configs.RunConfig(run=Path("runs/a"), settings=("full", "17")),
    configs.ReportConfig(run=Path("runs/a")),
    configs.StudyConfig(checkpoint=Path("a.safetensors"), run=Path("runs/a")),
    SubsetConfig(run=Path("runs/a"), out=Path("easy.json"), exit=4),
    configs_paper.PaperConfig(pretrained_file=Path("models_new/a.pt"), scene="periodical"),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_a_configuration_survives_json_and_comes_back_equal(config: Any) -> None:
    stored = json.loads(json.dumps(to_plain(config)))
    assert from_plain(type(config), stored) == config


def test_plain_values_are_texts_lists_and_tables() -> None:
    plain = to_plain(TrainConfig(out=Path("runs/a.safetensors"), exits=(1, 2)))
    assert plain["out"] == "runs/a.safetensors"
    assert plain["exits"] == [1, 2]
    assert plain["data"]["data_root"] == "data"
    assert plain["init"] is None


def test_toml_fills_nested_tables_and_leaves_the_rest_at_its_default() -> None:
    text = """
        out = "vgg.safetensors"
        learning-rate = 1
        exits = [3, 7]
        [data]
        dataset = "cifar10"
        [device]
        threads = 2
    """
    config = from_plain(TrainConfig, tomllib.loads(text))
    assert config == TrainConfig(
        out=Path("vgg.safetensors"),
        learning_rate=1.0,
        exits=(3, 7),
        data=DataConfig(dataset="cifar10"),
        device=DeviceConfig(threads=2),
    )
    assert isinstance(config.learning_rate, float)


def test_numbers_and_single_values_are_understood_as_lists_of_texts() -> None:
    config = from_plain(SweepConfig, {"run": "runs/a", "beta": [0.5, 1], "criteria": "softmax"})
    assert config.beta == ("0.5", "1")
    assert config.criteria == ("softmax",)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"epoch": 3}, "unknown key 'epoch'; did you mean 'epochs'?"),
        ({"dataset": "digits"}, "unknown key 'dataset'; it belongs in the table [data]"),
        ({"zzz": 1}, "unknown key 'zzz'; allowed: out, mode, init"),
        ({"data": {"datset": "x"}}, "unknown key 'data.datset'; did you mean 'data.dataset'?"),
        ({"epochs": "3"}, "epochs is '3'; allowed: a whole number"),
        ({"epochs": True}, "epochs is True; allowed: a whole number"),
        ({"epochs": 2.5}, "epochs is 2.5; allowed: a whole number"),
        ({"epochs": None}, "epochs is None; allowed: a whole number"),
        ({"width": float("nan")}, "width is nan; allowed: a finite number"),
        ({"width": 10**400}, "allowed: a finite number"),
        ({"resume": 1}, "resume is 1; allowed: true or false"),
        ({"init": ""}, "init is ''; allowed: a path in quotes"),
        ({"mode": "heads"}, "mode is 'heads'; allowed: normal, original, exits, joint"),
        ({"exits": [1, "b"]}, "exits is 'b'; allowed: a whole number"),
        ({"data": {"dataset": 3}}, "data.dataset is 3; allowed: text in quotes"),
        ({"device": "cpu"}, "device is 'cpu'; allowed: a table, such as [device] with device, "),
    ],
)
def test_a_faulty_value_is_named_with_file_key_value_and_what_is_allowed(
    values: dict[str, Any], said: str
) -> None:
    with pytest.raises(ExitbenchError) as caught:
        from_plain(TrainConfig, {"out": "a.safetensors", **values}, "my.toml")
    assert str(caught.value).startswith("my.toml: ")
    assert said in str(caught.value)


def test_all_faults_are_named_at_once() -> None:
    with pytest.raises(ExitbenchError) as caught:
        from_plain(TrainConfig, {"epochs": "x", "modus": 1, "data": {"download": 0}}, "my.toml")
    lines = str(caught.value).splitlines()
    assert lines[0] == "my.toml: 4 faults"
    assert [line.split()[1] for line in lines[1:]] == ["unknown", "the", "epochs", "data.download"]
    assert "the key 'out' is missing" in str(caught.value)


def _manifest(folder: Path, **changes: Any) -> Path:
    manifest = {
        "schema": 1,
        "command": "sweep",
        "config": to_plain(SweepConfig(run=Path("runs/a"), beta_count=7)),
        **changes,
    }
    file = folder / "manifest.json"
    file.write_text(json.dumps({k: v for k, v in manifest.items() if v is not None}))
    return file


def test_a_run_is_repeated_from_its_manifest(tmp_path: Path) -> None:
    config = read_options(_manifest(tmp_path), SweepConfig, "sweep")
    assert config == SweepConfig(run=Path("runs/a"), beta_count=7)


def test_the_latest_options_of_every_command_on_a_run_directory_can_be_repeated(
    tmp_path: Path,
) -> None:
    later = to_plain(SweepConfig(run=Path("runs/a"), beta_count=9))
    trace = TraceConfig(run=Path("runs/a"), checkpoint=Path("a.safetensors"))
    file = _manifest(
        tmp_path, commands={"sweep": {"config": later}, "trace": {"config": to_plain(trace)}}
    )
    assert read_options(file, SweepConfig, "sweep").beta_count == 9
    assert read_options(file, TraceConfig, "trace") == trace


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"command": "study"}, "records no 'exitbench sweep', but 'exitbench study'; repeat"),
        ({"schema": 99}, "has schema 99, this version of exitbench reads 1"),
        ({"config": None}, "is no manifest of a run"),
        ({"config": {"run": "a", "betas": 3}}, "unknown key 'betas'"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ExitbenchError, match=said):
        read_options(_manifest(tmp_path, **changes), SweepConfig, "sweep")


def test_unreadable_files_of_options_are_named(tmp_path: Path) -> None:
    with pytest.raises(ExitbenchError, match=r"cannot read .*none\.toml: No such file"):
        read_options(tmp_path / "none.toml", SweepConfig, "sweep")
    broken = tmp_path / "broken.toml"
    broken.write_text("beta = = 3")
    with pytest.raises(ExitbenchError, match=r"broken\.toml is not valid TOML: .*line 1"):
        read_options(broken, SweepConfig, "sweep")
    broken.write_bytes(b"\xff\xfe")
    with pytest.raises(ExitbenchError, match="is not valid TOML"):
        read_options(broken, SweepConfig, "sweep")


RUN = Path("runs/a")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (TrainConfig(out=RUN, epochs=0), "epochs is 0; allowed: a whole number from 1"),
        (TrainConfig(out=RUN, width=0.0), "width is 0.0; allowed: a finite number above 0"),
        (TrainConfig(out=RUN, exits=(3, 2)), "exits is 3 2; allowed: rising numbers from 1"),
        (TrainConfig(out=RUN, exits=(0, 2)), "exits is 0 2; allowed: rising numbers from 1"),
        (TrainConfig(out=RUN, seed=-1), "seed is -1; allowed: a whole number from 0"),
        (TrainConfig(out=RUN, mode="exits"), "needs --init CHECKPOINT"),
        (TrainConfig(out=RUN, device=DeviceConfig("gpu")), "device is 'gpu'; allowed: auto, cpu"),
        (SweepConfig(run=RUN, beta=("auto", "1")), "beta is auto 1; allowed: auto alone"),
        (SweepConfig(run=RUN, beta=("x",)), "beta is x; allowed: auto alone, or finite numbers"),
        (SweepConfig(run=RUN, beta=("nan",)), "beta is nan; allowed"),
        (SweepConfig(run=RUN, beta=("-1",)), "beta is -1; allowed"),
        (SweepConfig(run=RUN, criteria=()), "criteria is empty; allowed: at least one choice"),
        (SweepConfig(run=RUN, start_layers=(0,)), "start_layers is 0; allowed"),
        (TraceConfig(run=RUN), "neither given, exactly one is needed"),
        (TraceConfig(run=RUN, checkpoint=RUN, logits=RUN), "both given, exactly one is needed"),
        (TraceConfig(run=RUN, checkpoint=RUN, cost=RUN), "cost is given without logits"),
        (TraceConfig(run=RUN, checkpoint=RUN, kernel=(1.0, 1.0)), "an odd number of finite"),
        (
            TraceConfig(run=RUN, logits=RUN, data=DataConfig(dataset="digits")),
            "dataset is given beside logits, which have no use for it",
        ),
        (SubsetConfig(run=RUN, out=RUN, difficulty="hard", exit=3), "exit is given with difficul"),
        (
            RunConfig(run=RUN, governor="deadline", operating_point="800 MHz"),
            "operating_point is given beside governor deadline; it belongs to fixed",
        ),
        (RunConfig(run=RUN, operating_point="800 MHz"), "operating_point is given without a gov"),
        (RunConfig(run=RUN, deadline_ms=3.0), "deadline_ms is given without a governor"),
        (GovernConfig(run=RUN, deadline_ms=1e308), "deadline_ms is 1e+308; allowed: a number abov"),
        (GovernConfig(run=RUN, deadline_ms=float("nan")), "deadline_ms is nan; allowed"),
        (
            GovernConfig(run=RUN, governors=("deadline",), operating_point="800 MHz"),
            "operating_point is given, but not the governor fixed, to which it belongs",
        ),
    ],
)
def test_values_out_of_their_limits_are_named_with_what_is_allowed(config: Any, said: str) -> None:
    assert len(faults(config)) == 1
    assert said in faults(config)[0]


@pytest.mark.parametrize("config", CONFIGS[3:], ids=lambda config: type(config).__name__)
def test_sound_configurations_have_no_fault(config: Any) -> None:
    assert faults(config) == []

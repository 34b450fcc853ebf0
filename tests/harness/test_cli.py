"""The command line as its user meets it: help, options, messages and exit statuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from exitbench.harness import cli
from exitbench.harness.configs import ReportConfig, SweepConfig, TrainConfig
from exitbench.harness.errors import CheckFailed, ExitbenchError
from exitbench.harness.options import to_plain

HEAVY = ("torch", "torchvision", "numpy", "pandas", "matplotlib", "sklearn")


def _flags(config: type[Any]) -> list[str]:
    """Every option of a command, nested ones by their own name."""
    hints = get_type_hints(config)
    names: list[str] = []
    for item in fields(config):
        hint = hints[item.name]
        names += _flags(hint) if isinstance(hint, type) and is_dataclass(hint) else [item.name]
    return names


def _text(captured: str) -> str:
    """What stands in tyro's boxes, without the boxes and line breaks."""
    return " ".join(captured.replace("│", " ").split())


def _parse(line: str) -> Any:
    return cli.parse(line.split())


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., None]], None]:
    """Puts a function in the place of the runner of 'exitbench report'."""

    def put(function: Callable[..., None]) -> None:
        module = types.ModuleType("exitbench.harness.pipeline")
        module.run_report = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "exitbench.harness.pipeline", module)

    return put


def test_help_of_every_command_imports_nothing_heavy() -> None:
    script = f"""
import sys
from exitbench.harness import cli
asked = [[], *([name] for name in cli.COMMANDS), ["hardware"]]
asked += [["hardware", name] for name in cli.HARDWARE]
assert [cli.main([*words, "--help"]) for words in asked] == [0] * len(asked)
assert cli.main(["--version"]) == 0
loaded = [name for name in {HEAVY!r} if name in sys.modules]
assert not loaded, loaded
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_names_every_command_with_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    text = _text(capsys.readouterr().out)
    for name, command in cli.COMMANDS.items():
        assert f"• {name} {_text(command.config.__doc__ or '')}" in text
    assert "• hardware" in text


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_of_a_command_shows_every_option_with_its_default(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([name, "--help"]) == 0
    text = _text(capsys.readouterr().out)
    flags = _flags(cli.COMMANDS[name].config)
    for flag in flags:
        shown = flag if name == "paper" else flag.replace("_", "-")
        assert f"--{shown}" in text
    # --config has a default of its own.
    assert text.count("(default: ") + text.count("(required)") == len(flags) + 1


@pytest.mark.parametrize("name", [*cli.COMMANDS, *cli.HARDWARE])
def test_the_short_names_of_nested_options_do_not_clash(name: str) -> None:
    names = _flags({**cli.COMMANDS, **cli.HARDWARE}[name].config)
    assert len(names) == len(set(names))
    assert "config" not in names


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("exitbench ")


def test_nested_options_have_short_names() -> None:
    config = _parse(
        "train --out a.safetensors --dataset cifar10 --device cpu --threads 2 --exits 3 7"
    )
    assert isinstance(config, TrainConfig)
    assert (config.data.dataset, config.device.device, config.device.threads) == (
        "cifar10",
        "cpu",
        2,
    )
    assert config.exits == (3, 7)


def test_underscores_and_dashes_are_the_same() -> None:
    dashes = _parse("train --out a --batch-size 7 --share-heads --data-root d")
    lines = _parse("train --out a --batch_size 7 --share_heads --data_root d")
    assert dashes == lines
    paper = _parse("paper --train_mode original --start-layer 8")
    assert (paper.train_mode, paper.start_layer) == ("original", 8)


@pytest.mark.parametrize(
    ("words", "config"),
    [
        (["hardware", "list"], "HardwareListConfig()"),
        (["hardware", "show", "jetson-tx2"], "HardwareShowConfig(name='jetson-tx2')"),
        (["hardware", "detect"], "HardwareDetectConfig()"),
    ],
)
def test_hardware_has_commands_of_its_own(words: list[str], config: str) -> None:
    assert repr(cli.parse(words)) == config


def test_the_command_line_wins_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "train.toml"
    file.write_text(
        'out = "file.safetensors"\nepochs = 3\nexits = [1, 2]\n[data]\ndataset = "svhn"\n'
    )
    config = cli.parse(["train", "--config", str(file), "--epochs", "5", "--exits", "4"])
    assert config.out == Path("file.safetensors")
    assert config.epochs == 5
    assert config.exits == (4,)
    assert config.data.dataset == "svhn"
    assert config.batch_size == TrainConfig(out=Path()).batch_size
    assert cli.parse(["train", f"--config={file}"]).epochs == 3


def test_a_run_is_repeated_from_its_manifest(tmp_path: Path) -> None:
    file = tmp_path / "manifest.json"
    first = SweepConfig(run=Path("runs/a"), beta=("0.5", "2"), criteria=("margin",))
    file.write_text(json.dumps({"schema": 1, "command": "sweep", "config": to_plain(first)}))
    assert cli.parse(["sweep", "--config", str(file)]) == first
    again = cli.parse(["sweep", "--config", str(file), "--run", "runs/b"])
    assert again.run == Path("runs/b")
    assert again.beta == first.beta


def test_a_command_hands_its_configuration_to_its_runner_and_shows_what_it_says(
    stand_in: Callable[[Callable[..., None]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[ReportConfig] = []

    def run_report(config: ReportConfig, say: Callable[[str], None]) -> None:
        seen.append(config)
        say("drawn")

    stand_in(run_report)
    assert cli.main(["report", "--run", "runs/a"]) == 0
    assert seen == [ReportConfig(run=Path("runs/a"))]
    assert capsys.readouterr().out == "drawn\n"


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ExitbenchError("sweep.csv: no column 'beta'"), 2, "exitbench: sweep.csv: no column"),
        (CheckFailed("decisions differ"), 1, "exitbench: decisions differ"),
        (KeyboardInterrupt(), 130, "interrupted; run the same command again to go on\n"),
        (OSError(28, "No space left on device", "a.csv"), 2, "a.csv: No space left on device\n"),
    ],
)
def test_what_stops_a_command_is_said_in_one_line_without_a_traceback(
    error: BaseException,
    status: int,
    said: str,
    stand_in: Callable[[Callable[..., None]], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run_report(config: ReportConfig, say: Callable[[str], None]) -> None:
        raise error

    stand_in(run_report)
    assert cli.main(["report", "--run", "runs/a"]) == status
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_reader_that_goes_away_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    script = "import sys; from exitbench.harness.cli import main; sys.exit(main(['--help']))"
    done = subprocess.run(
        [sys.executable, "-c", script], stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    assert done.stderr == ""
    assert done.returncode == cli.BROKEN_PIPE


BAD_INPUT = [
    ("", "Expected one of {demo, train, trace"),
    ("trian", "Unrecognized options: trian"),
    ("hardware", "Expected one of {list, show, detect, calibrate, restore}"),
    ("hardware show", "Missing from exitbench hardware show: STR Name of a shipped profile"),
    ("train", "Missing from exitbench train: --out PATH"),
    ("train --out a --epoch 3", "Unrecognized options: --epoch"),
    ("train --out a --epochs three", "Error parsing --epochs"),
    ("train --out a --mode heads", "invalid choice 'heads'"),
    ("train --out a --epochs", "--epochs"),
    ("train --out a --epochs 0", "exitbench train: epochs is 0; allowed: a whole number from 1"),
    ("train --out a --mode exits", "needs --init CHECKPOINT"),
    ("train --out a --device gpu", "device is 'gpu'; allowed: auto, cpu, cuda or cuda:N"),
    ("train --out a --validation-share 0.9", "validation_share is 0.9; allowed: a share from 0"),
    ("train --out a --config none.toml", "cannot read none.toml: No such file"),
    ("train --out a --config bad.toml", "bad.toml: 2 faults - unknown key 'epoch'"),
    ("train --out a --config broken.toml", "broken.toml is not valid TOML"),
    ("sweep --config manifest.json", "records no 'exitbench sweep', but 'exitbench study'"),
    ("sweep --run a --config none.json", "cannot read none.json"),
    ("sweep --run a --beta high", "beta is high; allowed: auto alone, or finite numbers"),
    ("trace --run a", "checkpoint and logits: neither given"),
    ("trace --run a --checkpoint c --kernel 1 1", "kernel is 1.0 1.0; allowed: an odd number"),
    ("paper --task test", "invalid choice 'test'"),
    ("paper --model_name alexnet", "--model_name is 'alexnet'; allowed: vgg19, or resnet"),
    ("paper --task evaluate", "--task evaluate needs --pretrained_file FILE"),
    ("paper --task train", "--train_mode exits trains heads on a frozen backbone and needs"),
    ("paper --pretrained_file none.pt", "no checkpoint at none.safetensors"),
    ("paper --pretrained_file old.pt", "old.pt is a pickled file, which is never loaded here"),
    ("paper --start_layer 0", "start_layer is 0; allowed: a whole number from 1"),
]


@pytest.mark.parametrize(("line", "said"), BAD_INPUT)
def test_bad_input_is_told_what_is_wrong_and_ends_with_status_2(
    line: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.toml").write_text("epoch = 3\nepochs = 'three'\n")
    Path("broken.toml").write_text("epochs = = 3\n")
    Path("manifest.json").write_text('{"schema": 1, "command": "study", "config": {}}')
    Path("old.pt").write_bytes(b"pickled")
    before = sorted(tmp_path.iterdir())
    assert cli.main(line.split()) == 2
    captured = capsys.readouterr()
    assert said in _text(captured.err)
    assert "Traceback" not in captured.err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "runner", [command.runner for command in (*cli.COMMANDS.values(), *cli.HARDWARE.values())]
)
def test_every_command_has_a_runner(runner: str) -> None:
    module, _, function = runner.partition(":")
    assert callable(getattr(import_module(f"exitbench.harness.{module}"), function))

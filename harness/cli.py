"""The command line: reads the options of a command, checks them, and starts its runner.

Runners are named as text and imported when they are started, so that the help needs no torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar, Union

import tyro

from . import configs
from . import configs_device as devices
from .configs_paper import PaperConfig
from .errors import ExitbenchError
from .limits import faults
from .options import from_plain, listed, read_options

INTERRUPTED = 130
BROKEN_PIPE = 141

_DESCRIPTION = (
    "What an early exit really saves: accuracy against energy, latency and MACs of networks with "
    "early exits, measured on your device. 'exitbench COMMAND --help' shows the options of a "
    "command with their defaults; --version shows the version."
)

# How torch, its libraries and drivers say it; their errors are plain RuntimeErrors.
_MEMORY_WORDS = (
    "out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory",
    "bad_alloc", "could not create a memory", "storage size calculation overflowed",
    "cublas_status_alloc_failed",
)  # fmt: skip

_C = TypeVar("_C")


@dataclass(frozen=True)
class Command:
    """A command: what it can be told, and who does it (``module:function`` in this folder)."""

    config: type[Any]
    runner: str


COMMANDS: dict[str, Command] = {
    "demo": Command(configs.DemoConfig, "pipeline:run_demo"),
    "train": Command(configs.TrainConfig, "training:run_train"),
    "trace": Command(configs.TraceConfig, "tracing:run_trace"),
    "profile": Command(configs.ProfileConfig, "profiling:run_profile"),
    "sweep": Command(configs.SweepConfig, "sweeping:run_sweep"),
    "govern": Command(configs.GovernConfig, "governing:run_govern"),
    "run": Command(configs.RunConfig, "live:run_run"),
    "report": Command(configs.ReportConfig, "pipeline:run_report"),
    "study": Command(configs.StudyConfig, "pipeline:run_study"),
    "subset": Command(configs.SubsetConfig, "pipeline:run_subset"),
    "doctor": Command(devices.DoctorConfig, "doctor:run_doctor"),
    "paper": Command(PaperConfig, "paper:run_paper"),
}
HARDWARE: dict[str, Command] = {
    "list": Command(devices.HardwareListConfig, "hardware:run_hardware_list"),
    "show": Command(devices.HardwareShowConfig, "hardware:run_hardware_show"),
    "detect": Command(devices.HardwareDetectConfig, "hardware:run_hardware_detect"),
    "calibrate": Command(devices.HardwareCalibrateConfig, "calibrate:run_hardware_calibrate"),
    "restore": Command(devices.HardwareRestoreConfig, "clocks.restore:run_hardware_restore"),
}


@dataclass(frozen=True)
class _Invocation(Generic[_C]):
    """A command's options, and the file they may come from."""

    options: Annotated[_C, tyro.conf.arg(name="")]
    config: Path | None = None
    """TOML file of options, or the manifest.json of a run to repeat; the command line wins."""


def _about(config: type[Any]) -> str:
    return (config.__doc__ or "").strip()


def _named(name: str, config: type[Any]) -> Any:
    return tyro.conf.subcommand(name, description=_about(config))


_Action = (
    Annotated[devices.HardwareListConfig, _named("list", devices.HardwareListConfig)]
    | Annotated[
        tyro.conf.PositionalRequiredArgs[devices.HardwareShowConfig],
        _named("show", devices.HardwareShowConfig),
    ]
    | Annotated[devices.HardwareDetectConfig, _named("detect", devices.HardwareDetectConfig)]
    | Annotated[
        devices.HardwareCalibrateConfig, _named("calibrate", devices.HardwareCalibrateConfig)
    ]
    | Annotated[devices.HardwareRestoreConfig, _named("restore", devices.HardwareRestoreConfig)]
)


@dataclass(frozen=True)
class _Hardware:
    """Show hardware profiles and this machine, measure it, and put changed clocks back."""

    action: _Action


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status: 0 done, 1 a check failed, 2 bad input.

    130 says that it was interrupted, 141 that the reader of its output has gone.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        status = _run(arguments)
        sys.stdout.flush()
        return status
    except ExitbenchError as error:
        print(f"exitbench: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes stdout once more when it ends and would complain then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except OSError as error:
        print(f"exitbench: {_what_failed(error)}", file=sys.stderr)
        return ExitbenchError.exit_status
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        print(f"exitbench: {_what_was_too_large(error)}", file=sys.stderr)
        return ExitbenchError.exit_status


def _run(arguments: list[str]) -> int:
    if arguments == ["--version"]:
        print(f"exitbench {version('exitbench')}")
        return 0
    try:
        config = parse(arguments)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else ExitbenchError.exit_status
    _runner(config)(config, say)
    return 0


def say(line: str) -> None:
    """Print one line of progress at once."""
    print(line, flush=True)


def parse(arguments: Sequence[str]) -> Any:
    """The checked configuration of the command that ``arguments`` name.

    Raises:
        ExitbenchError: the file of --config is faulty, or a value is out of its limits.
        SystemExit: help was asked for (0), or the arguments cannot be read (2).
    """
    name = arguments[0] if arguments else ""
    parsed = tyro.cli(
        _program(name, _config_file(arguments)),
        prog="exitbench",
        description=_DESCRIPTION,
        args=list(arguments),
        # The paper's flags are known by their underscores; both are accepted everywhere.
        use_underscores=name == "paper",
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
    )
    config = parsed.action if isinstance(parsed, _Hardware) else parsed.options
    wrong = faults(config)
    if wrong:
        raise ExitbenchError(listed(f"exitbench {name}", wrong))
    return config


def _config_file(arguments: Sequence[str]) -> Path | None:
    """The file of --config, which holds the defaults that the other arguments replace."""
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == "--config" and equals:
            return Path(value)
        if name == "--config" and position + 1 < len(arguments):
            return Path(arguments[position + 1])
    return None


def _program(name: str, file: Path | None) -> Any:
    """The type of which tyro makes the parser: one subcommand per command."""
    commands = [
        _subcommand(each, command, file if each == name else None)
        for each, command in COMMANDS.items()
    ]
    return Union[(*commands, Annotated[_Hardware, _named("hardware", _Hardware)])]


def _subcommand(name: str, command: Command, file: Path | None) -> Any:
    absent = tyro.MISSING
    default: Any = (
        from_plain(command.config, {}, absent=absent)
        if file is None
        else read_options(file, command.config, name, absent)
    )
    return Annotated[
        _Invocation[command.config],  # type: ignore[name-defined]
        tyro.conf.subcommand(
            name, default=_Invocation(default, file), description=_about(command.config)
        ),
    ]


def _runner(config: Any) -> Callable[[Any, Callable[[str], None]], None]:
    for command in (*COMMANDS.values(), *HARDWARE.values()):
        if command.config is type(config):
            module, _, function = command.runner.partition(":")
            runner: Callable[[Any, Callable[[str], None]], None] = getattr(
                import_module(f".{module}", __package__), function
            )
            return runner
    raise AssertionError(f"no command takes {type(config).__name__}")


def _out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError):
        return True
    said = str(error).lower()
    return any(words in said for words in _MEMORY_WORDS)


def _what_was_too_large(error: Exception) -> str:
    first = next(iter(str(error).splitlines()), "") or type(error).__name__
    return (
        f"the memory does not suffice ({first}). Take a smaller --batch-size or --batch-sizes, "
        "fewer images (--limit), or a device with more memory."
    )


def _what_failed(error: OSError) -> str:
    what = error.strerror or str(error)
    return f"{error.filename}: {what}" if error.filename else what

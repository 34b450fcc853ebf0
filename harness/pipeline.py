"""The commands that join others: study, demo, report and subset."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from .configs import (
    DataConfig,
    DemoConfig,
    DeviceConfig,
    GovernConfig,
    ProfileConfig,
    ReportConfig,
    RunConfig,
    StudyConfig,
    SubsetConfig,
    SweepConfig,
    TraceConfig,
    TrainConfig,
)
from .difficulty import easy_positions, first_exits, hard_positions, sample_list, write_samples
from .errors import ExitbenchError
from .hardware import hardware_profile
from .live import chosen_settings, measure_chosen
from .options import to_plain
from .profileinputs import check_profile
from .profiling import choose_energy, profile_subject
from .rundir import RunDirectory
from .scheduler import walk
from .settings import Setting, make_policy
from .sources import TraceSource
from .subject import load_subject, usable_precisions
from .sweep import median_beta
from .sweepfile import read_sweep
from .sweeping import load_traces, make_grid, run_sweep
from .tracing import begin, trace_subject

Say = Callable[[str], None]
DEMO_ENERGY_S = 8.0
"""For the energy of one precision and batch size in the demo, of which there are up to six: it ends
in minutes also where there is a counter. The tier is then not reached, and it says so."""


def run_report(config: ReportConfig, say: Say) -> None:
    """Draw the figures and the page of a run directory, from its files alone."""
    from ..reports import write_report

    RunDirectory(config.run, create=False)
    page = write_report(config.run, config.out, say)
    say(f"report: {page}")


def run_study(config: StudyConfig, say: Say) -> None:
    """Trace, profile, sweep, run and report; an interrupted study goes on where it was.

    Raises:
        ExitbenchError: a value is wrong, or the network, data or device cannot be used.
    """
    study(config, say)
    run_report(ReportConfig(config.run), say)


def study(config: StudyConfig, say: Say) -> None:
    """All of a study but its page.

    Traces, profiles and measurements that are there already are kept; the sweep, which follows
    from them, is computed anew.

    Raises:
        ExitbenchError: a value is wrong, or the network, data or device cannot be used.
    """
    sweeping = _sweep_config(config, None)
    make_grid(sweeping)
    profiling = _profile_config(config)
    check_profile(profiling)
    if config.batch_size not in config.batch_sizes:
        raise ExitbenchError(
            f"batch size {config.batch_size} is not among the batch sizes to profile "
            f"({', '.join(map(str, config.batch_sizes))}); settings could not be priced"
        )
    subject = load_subject(config.checkpoint, config.data, config.device, say, config.limit)
    usable, missing = usable_precisions(
        config.precisions, subject.device, False, say, subject.runtime_of
    )
    for name in (config.hardware, *config.govern):
        hardware_profile(name, str(subject.device))  # refuses a wrong one early
    directory = RunDirectory(config.run)
    begin(directory, "study", to_plain(config), subject)
    directory.update(
        precisions={
            name: {"runtime": None, "available": False, "reason": why}
            for name, why in missing.items()
        }
    )
    tracing = TraceConfig(config.run, config.checkpoint, horizon=config.horizon)
    prepared = trace_subject(directory, subject, usable, tracing, say)
    profile_subject(directory, subject, prepared, profiling, say)
    run_sweep(_sweep_config(config, tuple(usable)), say)
    directory = RunDirectory(config.run)
    _govern(directory, config, usable, say)
    meter = choose_energy(
        directory, subject, config.hardware, say, config.energy, metering=config.metering
    )
    chosen = chosen_settings(read_sweep(directory), ())
    running = RunConfig(
        config.run,
        repeats=config.repeats,
        limit=config.run_limit,
        batch_size=config.batch_size,
        hardware=config.hardware,
        metering=config.metering,
    )
    measure_chosen(directory, subject, prepared, chosen, running, meter, say)
    directory.finish("study")


def _govern(
    directory: RunDirectory, config: StudyConfig, precisions: Sequence[str], say: Say
) -> None:
    """Replay the chosen settings under governors, on the clocks of every hardware asked for."""
    from .governing import govern
    from .operating import NothingToGovern

    # Of the criteria of the study, those that a governor is worth trying with.
    few = tuple(name for name in GovernConfig.criteria if name in config.criteria)
    for name in config.govern:
        governing = GovernConfig(
            config.run,
            hardware=config.hardware if name == "auto" else name,
            precisions=tuple(precisions),  # type: ignore[arg-type]
            criteria=few or config.criteria,
            beta_count=config.beta_count,
            accuracy_loss=config.accuracy_loss,
        )
        try:
            govern(directory, governing, say)
        except NothingToGovern as error:
            say(f"govern {name}: left out: {error}")


def _profile_config(config: StudyConfig) -> ProfileConfig:
    return ProfileConfig(
        config.run,
        batch_sizes=config.batch_sizes,
        seconds=config.seconds,
        energy=config.energy,
        energy_seconds=config.energy_seconds,
        hardware=config.hardware,
        horizon=config.horizon,
        metering=config.metering,
    )


def _sweep_config(config: StudyConfig, precisions: tuple[str, ...] | None) -> SweepConfig:
    return SweepConfig(
        config.run,
        criteria=config.criteria,
        beta=config.beta,
        beta_count=config.beta_count,
        predictors=config.predictors,
        precisions=precisions,  # type: ignore[arg-type]
        batch_size=config.batch_size,
        accuracy_loss=config.accuracy_loss,
        periods_ms=config.periods_ms,
    )


def run_demo(config: DemoConfig, say: Say) -> None:
    """Train a small VGG-19 with 20 exits on the embedded digits and study it.

    Takes up again where an interrupted demo stopped.
    """
    from .training import run_train

    folder = Path(config.run)
    # More than the default tenth: with fewer images one point of accuracy is one image.
    data = DataConfig(dataset="digits", calibration_samples=360)
    backbone, network = folder / "backbone.safetensors", folder / "network.safetensors"
    device = DeviceConfig(config.device.device, config.device.threads)
    say("demo, step 1 of 3: train the backbone on the digits")
    run_train(
        TrainConfig(
            backbone, mode="original", width=0.25, optimizer="adam", epochs=12, batch_size=64,
            learning_rate=2e-3, data=data, device=device,
        ),
        say,
    )  # fmt: skip
    say("demo, step 2 of 3: train the 20 exits on the frozen backbone")
    run_train(
        TrainConfig(
            network, mode="exits", init=backbone, optimizer="adam", epochs=8, batch_size=64,
            data=data, device=device,
        ),
        say,
    )  # fmt: skip
    say("demo, step 3 of 3: trace, profile, sweep, run and report")
    run_study(
        StudyConfig(
            network, folder, seconds=6.0, energy_seconds=DEMO_ENERGY_S, beta_count=15, data=data,
            device=config.device, repeats=3, govern=("auto", "jetson-tx2"),
        ),
        say,
    )


def run_subset(config: SubsetConfig, say: Say) -> None:
    """Write the list of easy or hard samples, as ``every-exit`` from exit 1 tells them apart.

    Raises:
        ExitbenchError: the trace is missing, or no sample is that easy or hard.
    """
    directory = RunDirectory(config.run, create=False)
    traces = load_traces(directory, config.precision)
    trace = traces.test
    exits = trace.meta.exits
    scale = traces.scales[config.criterion]
    beta = config.beta
    if beta is None:
        beta = median_beta(traces.calibration, config.criterion, scale)
    setting = Setting("every-exit", config.criterion, beta, 1, None, config.precision)
    policy = make_policy(setting, exits, traces.scales, traces.calibration)
    outcome = walk(policy, TraceSource(trace, config.criterion))
    last = first_exits(exits) if config.exit is None else config.exit
    if config.difficulty == "easy":
        positions = easy_positions(outcome.exit_at, exits, last)
    else:
        positions = hard_positions(outcome.exit_at, exits)
    # The traced split may itself be a part: the list speaks of the whole one.
    positions = trace.indices[positions]
    sizes = directory.manifest.get("checkpoint", {}).get("sizes", {})
    samples = sample_list(
        trace.meta.dataset, "test", sizes.get("test", trace.meta.samples), positions,
        difficulty=config.difficulty, setting=setting.words(), last_exit=last,
    )  # fmt: skip
    write_samples(config.out, samples)
    say(
        f"{len(positions)} of {trace.meta.samples} test samples are "
        f"{config.difficulty} ({setting.words()}); wrote {config.out}"
    )

"""``exitbench govern``: energy when the clocks follow the forecasts, at equal accuracy and latency.

On this machine from its own cost table, for another device from the peaks in its profile.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd

from ..profiles.loading import load_profile
from ..profiles.schema import Profile
from .configs import GovernConfig
from .contest import Arena, Winner, candidates, contest
from .costs import CostTable, Prices
from .dvfs_errors import model_error_share, model_error_words
from .environment import working_share
from .governed import points_text
from .governors import OperatingTable
from .levels import LevelList, elsewhere, run_profile
from .meters.base import Source, weakest
from .operating import DEFAULT, NothingToGovern, levels_of_run, levels_told, operating_table
from .options import to_plain
from .roofline import device_class_of, price_elsewhere
from .rundir import RunDirectory, time_now
from .serving import check_costs
from .sweep import Traces, check_criteria
from .sweeping import load_traces, prices_for, traced_precisions, write_table

Say = Callable[[str], None]
# "Predictive Exit", abstract: energy saved against the full network, and against early exit.
CLAIM_VS_FULL, CLAIM_VS_EVERY_EXIT = 1 - 0.729, 1 - 0.376
CLAIMS = (
    "the paper claims 72.9% less energy than the full network and 37.6% less than early exit, of "
    "its own networks on its own devices"
)
PREDICTIVE_ROLES = ("predictive", "predictive-table")


@dataclass(frozen=True)
class Device:
    """The device whose clocks are governed, and what the parts of the network cost on it.

    Attributes:
        own: it is the one that the run's cost table was measured on.
        busy: share of its cores at work.
        idle_w: watts of the waiting device; None: those of its profile.
        table: costs at batch size 1.
        levels: its profile with the clock levels in force, and where they come from.
        notes: what was assumed, as sentences.
        left_out: which precisions were left out and why.
    """

    device_class: str
    own: bool
    busy: float
    idle_w: float | None
    idle_source: Source
    table: CostTable
    levels: LevelList
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def profile(self) -> Profile:
        """Its hardware profile."""
        return self.levels.profile


@dataclass(frozen=True)
class Priced:
    """One precision: its traces, its costs at the top clock and at every operating point."""

    traces: Traces
    prices: Prices
    points: OperatingTable
    deadline_s: float


def run_govern(
    config: GovernConfig, say: Say, *, root: Path = Path("/"), nvml: ModuleType | None = None
) -> None:
    """Compare policies under governors, and write governed-HARDWARE.csv.

    Args:
        config: what to compare, and on which device.
        say: takes one line.
        root: where ``proc`` and ``sys`` are found.
        nvml: what answers as ``pynvml``; the installed one if None.

    Raises:
        ExitbenchError: traces or costs are missing, nothing is known of the device's clocks, or a
            value is wrong.
    """
    directory = RunDirectory(config.run, create=False)
    where, started = directory.environment, time_now()
    device, priced = _prepare(directory, config, root, nvml)
    rows = _compare(device, priced, config, say)
    # Only now: what is refused must not look like what made the table.
    directory.begin("govern", to_plain(config), where, started)
    _keep(directory, device, priced, rows, say)
    directory.finish("govern")


def govern(
    directory: RunDirectory,
    config: GovernConfig,
    say: Say,
    *,
    root: Path = Path("/"),
    nvml: ModuleType | None = None,
) -> None:
    """The same as a part of another command, which has begun on the directory already.

    Raises:
        NothingToGovern: nothing is known of the device's clocks, or of single samples on it.
        ExitbenchError: as ``run_govern``.
    """
    device, priced = _prepare(directory, config, root, nvml)
    _keep(directory, device, priced, _compare(device, priced, config, say), say)


def _prepare(
    directory: RunDirectory, config: GovernConfig, root: Path, nvml: ModuleType | None
) -> tuple[Device, dict[str, Priced]]:
    check_criteria(config.criteria)
    precisions = traced_precisions(directory, config.precisions)
    point = config.operating_point
    device = device_of(directory, config.hardware, precisions, point, root=root, nvml=nvml)
    have = [name for name, size, point in device.table.settings() if (size, point) == (1, DEFAULT)]
    if missing := [name for name in precisions if name not in have and device.own]:
        raise NothingToGovern(
            f"{device.table.where} has no rows at batch size 1 for {', '.join(missing)}, and a "
            "governor follows single requests; profile with --batch-sizes 1"
        )
    priced = {}
    for name in (each for each in precisions if each in have):
        traces = load_traces(directory, name)
        prices = prices_for(device.table, traces, 1)
        if device.own:
            check_costs(directory, device.table, prices)
        points = operating_table(
            device.table, prices, device.profile, device.device_class,
            busy=device.busy, points=device.levels.points(device.device_class),
            idle_w=device.idle_w, idle_source=device.idle_source,
        )  # fmt: skip
        if point is not None:
            points.index(point)  # refuses an unknown one early
        allowed = config.deadline_ms
        deadline_s = points.full_s if allowed is None else allowed * 1e-3
        priced[name] = Priced(traces, prices, points, deadline_s)
    return device, priced


def device_of(
    directory: RunDirectory,
    asked: str,
    precisions: Sequence[str],
    point: str | None = None,
    *,
    root: Path = Path("/"),
    nvml: ModuleType | None = None,
) -> Device:
    """The device that ``asked`` names, with the costs of the network on it.

    Args:
        asked: ``auto`` for the one of the cost table, a shipped profile's name, or a TOML file.
        point: name of an operating point that is wanted in any case.
        root: where ``proc`` and ``sys`` are found.
        nvml: what answers as ``pynvml``; the installed one if None.

    Raises:
        NothingToGovern: no hardware profile is known of the run.
        ExitbenchError: there is no such profile, or it lacks what prices a network.
    """
    table = CostTable.read(directory.cost)
    known = directory.manifest.get("hardware", {})
    where = directory.environment
    profile = run_profile(known, str(where.get("device", "cpu")))
    if asked != "auto":
        wanted = load_profile(asked)
        if profile is None or wanted.name != profile.name:
            device_class = device_class_of(wanted)
            priced = price_elsewhere(table, wanted, device_class, precisions)
            return Device(
                device_class, False, 1.0, None, "modelled", priced.table, elsewhere(wanted),
                priced.notes, priced.left_out,
            )  # fmt: skip
        profile = wanted
    if profile is None:
        raise NothingToGovern(
            f"no hardware profile is known of {directory.path}, whose costs were given and not "
            "profiled here; name the device with --hardware, and its peaks price the network"
        )
    device_class = "gpu" if str(where.get("device")).startswith("cuda") else "cpu"
    busy = 1.0
    if device_class == "cpu" and where.get("threads"):
        # An older manifest has no "processors"; "cores" are those that its process could use.
        busy = working_share(where["threads"], where.get("processors") or where.get("cores"))
    levels = levels_of_run(profile, directory, table, point, root=root, nvml=nvml)
    return Device(
        device_class, True, busy, known.get("idle_w"), known.get("idle_source") or "modelled",
        table, levels,
    )  # fmt: skip


def _compare(
    device: Device, priced: Mapping[str, Priced], config: GovernConfig, say: Say
) -> pd.DataFrame:
    """The rows of governed-HARDWARE.csv."""
    frames = []
    for precision, each in priced.items():
        found = candidates(
            each.traces, each.prices, precision, config.criteria, config.beta_count,
            config.accuracy_loss, say,
        )  # fmt: skip
        arena = Arena(each.traces, each.points, each.deadline_s, config.operating_point)
        winners = contest(arena, found, config.governors)
        frames.append(_with_shares([_row(winner, device, each.deadline_s) for winner in winners]))
    return pd.concat(frames, ignore_index=True)


def _row(winner: Winner, device: Device, deadline_s: float) -> dict[str, Any]:
    costs = winner.costs
    return {
        "role": winner.role,
        **asdict(winner.setting),
        "hardware": device.profile.name,
        "device_class": device.device_class,
        "governor": winner.governor,
        "operating_point": winner.operating_point,
        "deadline_ms": deadline_s * 1e3,
        "accuracy": winner.accuracy,
        "calibration_accuracy": winner.calibration_accuracy,
        "latency_ms": costs.latency_s * 1e3,
        "latency_p99_ms": costs.latency_p99_s * 1e3,
        "missed": costs.missed,
        "switches": costs.switches,
        "points": points_text(costs.points),
        "busy_energy_mj": costs.busy_j * 1e3,
        "energy_mj": costs.energy_j * 1e3,
        "energy_source": costs.energy_source,
        "latency_source": costs.latency_source,
    }


def _with_shares(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """One precision's rows with their energy as a share of the baselines', and the paper's."""
    frame = pd.DataFrame(rows)
    claimed = frame["role"].isin(PREDICTIVE_ROLES) & frame["governor"].notna()
    baselines = (("full", CLAIM_VS_FULL), ("every-exit", CLAIM_VS_EVERY_EXIT))
    for role, _ in baselines:
        base = frame.loc[(frame["role"] == role) & frame["governor"].isna(), "energy_mj"]
        share = frame["energy_mj"] / base.iloc[0] if len(base) else float("nan")
        frame[f"energy_vs_{role.replace('-', '_')}"] = share
    for role, claim in baselines:
        frame[f"claim_vs_{role.replace('-', '_')}"] = claimed.map({True: claim, False: None})
    return frame


def _keep(
    directory: RunDirectory,
    device: Device,
    priced: Mapping[str, Priced],
    rows: pd.DataFrame,
    say: Say,
) -> None:
    """Write the table and the manifest's entry, and say what came out."""
    name = device.profile.name
    safe = re.sub(r"[^\w.-]+", "-", name)  # a profile's own name may hold anything
    write_table(directory.path / f"governed-{safe}.csv", rows)
    old = directory.manifest.get("govern", {})
    entry = _entry(device, priced)
    directory.update(govern={**old, name: entry})
    for note in device.left_out:
        say(f"govern {name}: {note}")
    for precision, each in priced.items():
        _, levels = levels_told(device.levels, each.points)
        say(
            f"govern {name} {precision}: {len(each.points.points)} operating points ({levels}), "
            f"deadline {each.deadline_s * 1e3:.4g} ms, times at the top clock {entry['costs']}"
        )
        if each.points.switch_s >= each.deadline_s:
            say(
                f"govern {name} {precision}: changing the clock takes "
                f"{each.points.switch_s * 1e3:.4g} ms, all that a request may take or more: no "
                "governor can change it within one in time"
            )
        for line in _said(rows[rows["precision"] == precision]):
            say(f"govern {name} {precision}: {line}")
    say(f"govern {name}: {CLAIMS}")
    if entry["model_error"]:
        say(f"govern {name}: {entry['model_error']}")


def _entry(device: Device, priced: Mapping[str, Priced]) -> dict[str, Any]:
    """What the manifest keeps beside the table."""
    first = next(iter(priced.values())).points
    levels, levels_words = levels_told(device.levels, first)
    why = device.levels.notes if levels != "measured" else ()
    notes = [*why, *device.notes, *device.left_out]
    notes += [note for each in priced.values() for note in each.points.notes]
    modelled = [p.name for p in first.points if p.latency_source != "measured"]
    words = [f"{len(modelled)} of {len(first.points)} operating points are modelled", *notes]
    return {
        "profile": device.profile.name,
        "description": device.profile.description,
        "device_class": device.device_class,
        "costs": weakest(each.prices.latency_source for each in priced.values()),
        "levels": levels,
        "levels_words": levels_words,
        "points": [
            {
                "name": point.name,
                "clock_mhz": dict(point.clock_mhz),
                "power_w": point.power_w,
                "time_factor": point.full_s / first.full_s,
                "source": point.energy_source,
            }
            for point in first.points
        ],
        "deadline_ms": {name: each.deadline_s * 1e3 for name, each in priced.items()},
        "switch_ms": first.switch_s * 1e3,
        "idle_w": first.idle_w,
        "idle_source": first.idle_source,
        "model": "; ".join(dict.fromkeys(words)),
        "model_error": model_error_words() if modelled else "",
        "model_error_share": model_error_share() if modelled else None,
        "claims": CLAIMS,
    }


def _said(rows: pd.DataFrame) -> Iterator[str]:
    """The paper's comparison: full, every-exit and predictive, the last with each governor too."""
    compared = rows["role"].isin(("full", "every-exit")) & rows["governor"].isna()
    for _, row in rows[compared | (rows["role"] == "predictive")].iterrows():
        what = row["role"] if pd.isna(row["governor"]) else f"{row['role']}, {row['governor']}"
        line = f"{what}: {row['energy_mj']:.4g} mJ until the deadline ({row['energy_source']})"
        for name in ("full", "every_exit"):
            share, claim = row[f"energy_vs_{name}"], row[f"claim_vs_{name}"]
            if row["role"] != name.replace("_", "-") and not pd.isna(share):
                line += f", {share:.1%} of {name.replace('_', '-')}"
                line += "" if pd.isna(claim) else f" (the paper: {claim:.1%})"
        yield f"{line}; misses {row['missed']:.1%} of the deadlines"

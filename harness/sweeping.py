"""``exitbench sweep``: from the traces and costs of a run directory to sweep.csv and choices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pandas as pd

from ..models.counting import forecast_counts
from .choose import comparison, cost_column, mark, ranking_words
from .configs import Precision, SweepConfig
from .costs import CostTable, Prices
from .errors import ExitbenchError
from .files import write_text
from .judging import judge, tables
from .meters.base import Source
from .options import to_plain
from .rundir import RunDirectory, time_now
from .scenarios import scenario_rows
from .serving import check_costs
from .sweep import Grid, Traces, parse_betas, sweep
from .sweepfile import setting_of
from .trace import Trace

Say = Callable[[str], None]
FLOAT_FORMAT = "%.9g"  # more digits than any of the values means
JUDGED_ROLES = ("predictive", "predictive-table")


def run_sweep(config: SweepConfig, say: Say) -> None:
    """Replay the grid over the traces, price it, choose, and write the tables.

    Raises:
        ExitbenchError: traces or costs are missing, or a value of the grid is wrong.
    """
    grid = make_grid(config)
    directory = RunDirectory(config.run, create=False)
    precisions = traced_precisions(directory, config.precisions)
    traces = {precision: load_traces(directory, precision) for precision in precisions}
    table = CostTable.read(directory.cost)
    prices = {name: prices_for(table, pair, config.batch_size) for name, pair in traces.items()}
    for found in prices.values():
        check_costs(directory, table, found)
    devices = {name: priced_device(table, found) for name, found in prices.items()}
    where, started = directory.environment, time_now()
    rows = sweep(grid, traces, prices, say)
    rows["batch_size"] = [prices[name].batch_size for name in rows.precision]
    rows["operating_point"] = [prices[name].operating_point for name in rows.precision]
    rows["device"] = [devices[name] for name in rows.precision]
    rows = mark(rows, config.accuracy_loss)
    chosen = comparison(rows)
    # Only now: a grid that is refused must not look like the one that made the tables.
    directory.begin("sweep", to_plain(config), where, started)
    write_table(directory.sweep, rows)
    write_table(directory.comparison, chosen)
    _write_predictions(directory, chosen, traces)
    _write_scenarios(directory, chosen, config.periods_ms, say)
    directory.update(
        accuracy_loss=config.accuracy_loss,
        priced_batch_size=config.batch_size,
        ranked_by=cost_column(rows),
    )
    directory.finish("sweep")
    say(f"sweep: {len(rows) // 2} settings on two splits; {ranking_words(rows)}")
    for _, row in chosen[chosen.role == "recommended"].iterrows():
        say(f"recommended: {setting_of(row).words()}; test accuracy {row.accuracy:.2%}")


def make_grid(config: SweepConfig) -> Grid:
    """The axes of the sweep that a configuration asks for.

    Raises:
        ExitbenchError: a value is out of range.
    """
    if config.beta_count < 2:
        raise ExitbenchError(f"beta count is {config.beta_count}; it must be at least 2")
    if not 0 <= config.accuracy_loss < 100:
        raise ExitbenchError(
            f"accuracy loss is {config.accuracy_loss}; it is in percentage points, from 0 to 100"
        )
    if "full" not in config.policies:
        raise ExitbenchError(
            "the policy full must be in the sweep: it is what savings are compared with"
        )
    return Grid(
        policies=config.policies,
        criteria=config.criteria,
        betas=parse_betas(config.beta),
        beta_count=config.beta_count,
        start_layers=config.start_layers,
        predictors=config.predictors,
    )


def traced_precisions(directory: RunDirectory, wanted: tuple[str, ...] | None) -> list[str]:
    """The precisions whose traces a run directory holds, fp32 first."""
    known = [p for p in get_args(Precision) if directory.trace("test", p).is_file()]
    missing = [p for p in wanted or () if p not in known]
    if missing or not known:
        raise ExitbenchError(
            f"{directory.path} holds no trace of {', '.join(missing) or 'any precision'}; record "
            "it with 'exitbench trace'"
        )
    return [p for p in known if wanted is None or p in wanted]


def load_traces(directory: RunDirectory, precision: str) -> Traces:
    """The two traces of a precision."""
    return Traces(
        Trace(directory.trace("calibration", precision)), Trace(directory.trace("test", precision))
    )


def prices_for(table: CostTable, traces: Traces, batch_size: int | None) -> Prices:
    """The prices of the network and precision that was traced.

    Raises:
        ExitbenchError: the table is of another number of exits, or lacks the precision, or
            its forecasts, where exitbench timed them, were of another horizon.
    """
    meta = traces.test.meta
    macs = forecast_counts(meta.classes, meta.horizon).macs
    prices = table.select(meta.precision, batch_size, forecast_macs=macs)
    if prices.exits != meta.exits:
        raise ExitbenchError(
            f"{table.where} prices {prices.exits} exits, but the traces have {meta.exits}; "
            "profile the network that was traced"
        )
    timed = table.frame[(table.frame["kind"] == "forecast") & table.frame["runtime"].notna()]
    if len(timed) and (prices.forecasts["macs"] != macs).any():
        raise ExitbenchError(
            f"{table.where} prices a forecast with {prices.forecasts['macs'][0]:g} MACs, but those "
            f"of the traces (horizon {meta.horizon}, {meta.classes} classes) have {macs}; profile "
            f"again with --horizon {meta.horizon}, or trace again"
        )
    return prices


def priced_device(table: CostTable, prices: Prices) -> str | None:
    """The device that the cost rows of these prices name; None where they name none.

    It is not the device of this machine: a table may come from another.
    """
    frame = table.frame
    own = (
        (frame["precision"] == prices.precision)
        & (frame["batch_size"] == prices.batch_size)
        & (frame["operating_point"] == prices.operating_point)
    )
    named = dict.fromkeys(str(device) for device in frame.loc[own, "device"].dropna())
    return ", ".join(named) or None


def write_table(path: Path, frame: pd.DataFrame) -> None:
    """Write a table as CSV, whole or not at all; unknown cells are empty."""
    write_text(path, frame.to_csv(index=False, float_format=FLOAT_FORMAT, lineterminator="\n"))


def _write_scenarios(
    directory: RunDirectory, chosen: pd.DataFrame, periods_ms: tuple[float, ...], say: Say
) -> None:
    """What the chosen settings cost per request and hour; no file where none can be told."""
    hardware = directory.manifest.get("hardware", {})
    idle_w = hardware.get("idle_w")
    told = hardware.get("idle_source")
    source: Source = told if idle_w is not None and told in get_args(Source) else "unavailable"
    rows = scenario_rows(chosen, periods_ms, idle_w, source)
    if not rows:
        directory.scenarios.unlink(missing_ok=True)
        return
    write_table(directory.scenarios, pd.DataFrame(rows))
    if periods_ms and idle_w is None and chosen.energy_mj.notna().any():
        say(
            "sweep: the idle power of this device is not known, so energies of the periodic scene "
            "are left empty; 'exitbench profile' measures it where there is a meter"
        )


def _write_predictions(
    directory: RunDirectory, chosen: pd.DataFrame, traces: dict[str, Traces]
) -> None:
    """How well the chosen predictive settings forecast, from every start layer."""
    rows: list[pd.DataFrame] = []
    cells: list[pd.DataFrame] = []
    for _, row in chosen[chosen.role.isin(JUDGED_ROLES)].iterrows():
        setting = setting_of(row)
        pair = traces[setting.precision]
        starts = range(1, pair.test.meta.exits + 1)
        judged = judge(setting, pair.test, pair.scales, pair.calibration, starts)
        for found, table in zip(tables(setting, "test", judged), (rows, cells), strict=True):
            table.append(found)
    for name, frames in (("prediction.csv", rows), ("prediction_confusion.csv", cells)):
        path = directory.path / name
        if frames:
            write_table(path, pd.concat(frames, ignore_index=True).drop_duplicates())
        else:
            path.unlink(missing_ok=True)

"""Which runtime serves beside the traces of a run directory, and how int8's ranges were taken.

Traces, costs and runs are compared with each other, so they are to be of one runtime and one kind
of ranges: ``auto`` is what the traces were recorded with, and another is refused or said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pandas as pd

from .costs import CostTable, Prices
from .errors import ExitbenchError
from .quantization import DEFAULT_RANGES
from .rundir import RunDirectory
from .runtime.registry import RUNTIMES, named
from .subject import Subject

SPLITS = ("calibration", "test")


def served(directory: RunDirectory, precision: str) -> tuple[str, str | None] | None:
    """Runtime and ranges (of int8) with which the traces of a precision were recorded.

    None where there is no trace, or none of a network that was run here.
    """
    entry: dict[str, Any] = directory.manifest.get("precisions", {}).get(precision, {})
    traced = any(directory.trace(split, precision).is_file() for split in SPLITS)
    name = entry.get("runtime")
    if not traced or name not in RUNTIMES:
        return None
    return name, ranges_of(precision, entry.get("ranges"))


def ranges_of(precision: str, ranges: str | None) -> str | None:
    """The ranges that are meant; None where the precision has none."""
    return (ranges or DEFAULT_RANGES) if precision == "int8" else None


def beside_traces(
    directory: RunDirectory | None,
    subject: Subject,
    precisions: Iterable[str],
    say: Callable[[str], None] | None = None,
) -> Subject:
    """The subject run as the traces of the directory were recorded, where nothing else was asked.

    Args:
        directory: None if there is none yet.
        say: told where another runtime was asked for; without it that is refused.

    Raises:
        ExitbenchError: another runtime, without ``say``, or other ranges were asked for.
    """
    traced: dict[str, str] = {}
    for precision in precisions:
        found = None if directory is None else served(directory, precision)
        if directory is None or found is None:
            continue
        traced[precision], ranges = found
        asked = subject.runtime
        if asked != "auto" and named(asked, precision) != traced[precision]:
            words = f"{directory.path} was traced in {precision} with runtime {traced[precision]}"
            if say is None:
                raise ExitbenchError(
                    f"{words}, this would be {named(asked, precision)}. Unlike numbers are not "
                    "mixed: leave out --runtime, trace again with it, or choose another run "
                    "directory."
                )
            say(f"note: {words}; what follows is run with {named(asked, precision)}")
        if ranges is not None and subject.ranges not in (None, ranges):
            raise ExitbenchError(
                f"{directory.path} was traced in int8 with ranges {ranges}, this would be "
                f"{subject.ranges}, which decides otherwise: leave out --ranges, trace again with "
                "it, or choose another run directory"
            )
        if ranges is not None:
            subject = replace(subject, ranges=ranges)
    return replace(subject, traced=traced)


def check_costs(directory: RunDirectory, table: CostTable, prices: Prices) -> None:
    """Refuse prices that were measured with another runtime than the traces.

    Prices that name no runtime, as those of a table by hand, fit any.

    Raises:
        ExitbenchError: they are of another one.
    """
    found = served(directory, prices.precision)
    if found is None:
        return
    frame = table.frame
    own = (
        (frame["precision"] == prices.precision)
        & (frame["batch_size"] == prices.batch_size)
        & (frame["operating_point"] == prices.operating_point)
    )
    names: pd.Series[Any] = frame.loc[own, "runtime"].dropna()
    if other := sorted({str(name) for name in names} - {found[0]}):
        raise ExitbenchError(
            f"{table.where} prices {prices.precision}, batch size {prices.batch_size}, with "
            f"runtime {' and '.join(other)}, but the traces are of {found[0]}; run "
            "'exitbench profile' again, which takes that of the traces"
        )

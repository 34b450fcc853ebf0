"""The cost table: what every segment, head, forecast, gather and the classifier cost, per sample.

One row per unit x precision x batch size x operating point; everything is that of one call on
``batch_size`` samples divided by ``batch_size``. A table written by hand needs only ``kind``,
``index`` and ``macs``; an empty cell is unknown, never 0. ``docs/counting.md`` describes the
columns.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .compaction import ALWAYS, Compaction, by_cost, fit
from .costcheck import COLUMNS, KEY, KINDS, parse
from .errors import ExitbenchError
from .files import write_text
from .meters.base import Source, weakest

QUANTITIES = ("macs", "flops", "latency_ms", "energy_mj", "net_energy_mj")


@dataclass(frozen=True)
class Prices:
    """What a sample pays, for one precision, batch size and operating point.

    Every dict has the keys ``QUANTITIES``; a value that is not known is NaN.

    Attributes:
        precision: as in ``configs.Precision``.
        batch_size: samples per call when the costs were measured.
        operating_point: clock setting of the device.
        exits: E.
        segments: arrays (E + 1,).
        heads: arrays (E,).
        forecasts: arrays (E,).
        classifier: single values.
        energy_source: the weakest source among the energies that are known.
        latency_source: the same of the latencies; one without a source was measured.
        compaction: when a live batch is gathered, by these costs; no part of a price.
    """

    precision: str
    batch_size: int
    operating_point: str
    exits: int
    segments: dict[str, np.ndarray]
    heads: dict[str, np.ndarray]
    forecasts: dict[str, np.ndarray]
    classifier: dict[str, float]
    energy_source: Source
    latency_source: Source = "measured"
    compaction: Compaction = ALWAYS

    def price(
        self,
        *,
        segments: np.ndarray,
        heads: np.ndarray,
        forecasts: np.ndarray,
        classifier: np.ndarray | float,
        samples: np.ndarray | int,
    ) -> dict[str, np.ndarray]:
        """Mean cost per sample, by quantity; NaN where something paid for has no known price.

        Leading dimensions (...) hold any number of settings at once.

        Args:
            segments: (..., E + 1), how many samples ran each segment.
            heads: (..., E), how many samples were checked at each exit.
            forecasts: (..., E), how many forecasts were made there.
            classifier: (...), how many samples reached the classifier.
            samples: (...), how many samples there were, at least 1.

        Raises:
            ValueError: an array does not end in the dimension above.
        """
        counts = {
            "segments": (np.asarray(segments), self.exits + 1),
            "heads": (np.asarray(heads), self.exits),
            "forecasts": (np.asarray(forecasts), self.exits),
        }
        for name, (array, length) in counts.items():
            if array.shape[-1:] != (length,):
                raise ValueError(f"{name} has shape {array.shape}, its last must be {length}")
        prices = {"segments": self.segments, "heads": self.heads, "forecasts": self.forecasts}
        ends = np.asarray(classifier, dtype=np.float64)[..., None]
        return {
            quantity: (
                sum(_paid(array, prices[name][quantity]) for name, (array, _) in counts.items())
                + _paid(ends, np.array([self.classifier[quantity]]))
            )
            / np.asarray(samples)
            for quantity in QUANTITIES
        }

    def full(self) -> dict[str, float]:
        """Cost of the network without exits: every segment and the classifier."""
        return {q: float(self.segments[q].sum()) + self.classifier[q] for q in QUANTITIES}

    def source_of(self, energy_mj: float) -> Source:
        """The source of an energy that these prices gave; ``unavailable`` for NaN."""
        return "unavailable" if np.isnan(energy_mj) else self.energy_source

    def latency_source_of(self, latency_ms: float) -> Source:
        """The source of a latency that these prices gave; ``unavailable`` for NaN."""
        return "unavailable" if np.isnan(latency_ms) else self.latency_source


@dataclass(frozen=True)
class CostTable:
    """A checked cost table.

    Attributes:
        frame: one row per unit, with every column of ``COLUMNS``; missing cells are NA.
        where: what messages call it, such as its path.
    """

    frame: pd.DataFrame
    where: str = "the cost table"

    @staticmethod
    def read(path: Path) -> CostTable:
        """The table in a CSV file, written by ``exitbench profile`` or by hand.

        Columns that are absent are unknown, but for ``precision`` (then fp32), ``batch_size``
        (1) and ``operating_point`` (default).

        Raises:
            ExitbenchError: the file cannot be read, or is wrong: all faults at once, each with
                its line in the file.
        """
        header, lines = _read_csv(Path(path))
        return CostTable(_frame(parse(header, lines, str(path))), str(path))

    @staticmethod
    def from_rows(rows: Iterable[Mapping[str, Any]], where: str = "the cost table") -> CostTable:
        """A table of rows as the profiler makes them; None is unknown.

        Raises:
            ExitbenchError: as ``read``; a row's number takes the place of its line.
        """
        cells = [{k: "" if v is None else str(v) for k, v in row.items()} for row in rows]
        header = list(dict.fromkeys(key for row in cells for key in row))
        lines = [
            (number, [row.get(column, "") for column in header])
            for number, row in enumerate(cells, start=1)
        ]
        return CostTable(_frame(parse(header, lines, where)), where)

    def with_rows(self, rows: Iterable[Mapping[str, Any]]) -> CostTable:
        """This table with new rows, which take the place of all rows of their own settings.

        A setting is a precision, batch size and operating point.
        """
        added = CostTable.from_rows(rows, self.where).frame
        settings = set(_keys(added))
        keep = [key not in settings for key in _keys(self.frame)]
        frames = [frame for frame in (self.frame[keep], added) if len(frame)]
        return CostTable(pd.concat(frames, ignore_index=True), self.where)

    def write(self, path: Path) -> None:
        """Write the table as CSV, whole or not at all."""
        write_text(path, self.frame.to_csv(index=False, lineterminator="\n"))

    def settings(self) -> list[tuple[str, int, str]]:
        """Every (precision, batch size, operating point) it has rows for."""
        return list(dict.fromkeys(_keys(self.frame)))

    def select(
        self,
        precision: str = "fp32",
        batch_size: int | None = None,
        operating_point: str = "default",
        *,
        forecast_macs: float | None = None,
    ) -> Prices:
        """The prices of one setting.

        Args:
            precision: a precision of the table.
            batch_size: a batch size of the table; its smallest of that precision if None.
            operating_point: an operating point of the table.
            forecast_macs: MACs of one forecast, taken where the table has no forecast rows
                (by hand); their other costs, and this one if None, are then unknown.

        Raises:
            ExitbenchError: the table has no such rows; says which it has.
        """
        batch_size = self._batch_size(precision, batch_size, operating_point)
        rows, by_kind = self._rows_of(precision, batch_size, operating_point)
        exits = len(by_kind["segment"]) - 1
        forecasts = _columns(by_kind["forecast"])
        if by_kind["forecast"].empty:
            forecasts = {q: np.full(exits, np.nan) for q in QUANTITIES}
            if forecast_macs is not None:
                forecasts["macs"] = np.full(exits, float(forecast_macs))
        return Prices(
            precision=precision,
            batch_size=batch_size,
            operating_point=operating_point,
            exits=exits,
            segments=_columns(by_kind["segment"]),
            heads=_columns(by_kind["head"]),
            forecasts=forecasts,
            classifier={q: float(v[0]) for q, v in _columns(by_kind["classifier"]).items()},
            energy_source=weakest(rows.loc[rows["energy_mj"].notna(), "energy_source"]),
            latency_source=weakest(
                rows.loc[rows["latency_ms"].notna(), "latency_source"].fillna("measured")
            ),
            compaction=self._compaction(precision, batch_size, operating_point),
        )

    def _rows_of(
        self, precision: str, batch_size: int, operating_point: str
    ) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
        """The rows of one setting that a price is made of, and all of its rows by kind."""
        key = (precision, batch_size, operating_point)
        rows = self.frame[[k == key for k in _keys(self.frame)]]
        by_kind = {kind: rows[rows["kind"] == kind].sort_values("index") for kind in KINDS}
        return rows[rows["kind"] != "gather"], by_kind

    def _compaction(self, precision: str, batch_size: int, operating_point: str) -> Compaction:
        """When a batch of this size is gathered; a second batch size tells what a call costs."""
        sizes = self._sizes(precision, operating_point)
        other = min(sizes) if min(sizes) < batch_size else max(sizes)
        tables = [
            self._rows_of(precision, size, operating_point)[1]
            for size in dict.fromkeys((batch_size, other))
        ]
        if tables[0]["gather"].empty:
            return ALWAYS
        tables = [by_kind for by_kind in tables if not by_kind["gather"].empty]
        used = [int(by_kind["gather"]["batch_size"].iloc[0]) for by_kind in tables]
        segments, heads, gathers = (
            fit(used, [_columns(by_kind[kind])["latency_ms"] for by_kind in tables])
            for kind in ("segment", "head", "gather")
        )
        return by_cost(segments, heads, gathers)

    def _sizes(self, precision: str, operating_point: str) -> list[int]:
        return [b for p, b, o in self.settings() if (p, o) == (precision, operating_point)]

    def _batch_size(self, precision: str, wanted: int | None, operating_point: str) -> int:
        sizes = self._sizes(precision, operating_point)
        if wanted is None and sizes:
            return min(sizes)
        if wanted is None or wanted not in sizes:
            known = "; ".join(f"{p}, batch {b}, {o!r}" for p, b, o in self.settings())
            raise ExitbenchError(
                f"{self.where} has no rows for {precision}, "
                f"{'any batch size' if wanted is None else f'batch {wanted}'}, operating point "
                f"{operating_point!r}; it has {known or 'no rows at all'}. "
                "Profile it with 'exitbench profile', or choose one of these."
            )
        return wanted


def _paid(counts: np.ndarray, prices: np.ndarray) -> np.ndarray:
    """Sum over the last axis; what was never paid for may have no price."""
    return np.where(counts > 0, counts * prices, 0.0).sum(-1)


def _columns(rows: pd.DataFrame) -> dict[str, np.ndarray]:
    return {q: rows[q].to_numpy(dtype=np.float64, na_value=np.nan) for q in QUANTITIES}


def _keys(frame: pd.DataFrame) -> list[tuple[str, int, str]]:
    return [(str(p), int(b), str(o)) for p, b, o in zip(*(frame[c] for c in KEY), strict=True)]


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    dtypes = {"text": "object", "whole": "Int64", "number": "float64"}
    data = {
        name: pd.Series([row[name] for row in rows], dtype=dtypes[kind])
        for name, kind in COLUMNS.items()
    }
    return pd.DataFrame(data)


def _read_csv(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header and the other lines that are not blank, with their numbers in the file."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except OSError as error:
        raise ExitbenchError(
            f"cannot read the cost table {path}: {error.strerror}. Make one with "
            "'exitbench profile', or correct the path."
        ) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ExitbenchError(f"{path} is not a CSV file in UTF-8: {error}") from error
    lines = [(number, row) for number, row in lines if any(row)]
    if not lines:
        raise ExitbenchError(f"{path} is empty; a cost table needs the columns kind, index, macs")
    return lines[0][1], lines[1:]

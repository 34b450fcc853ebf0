"""Tables of what was really run: beside its replay, as it was metered, and exit by exit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd

from .columns import SETTING
from .figures_measured import gap, run_label
from .governed import governor_words
from .lines import measured, rebatched, staged
from .measurements import flags_of
from .table import Table, energy_column, filled, interval
from .view import ENERGY, LATENCY, Setting, View, source_note
from .words import NONE, change, count, exit_words, figures, percent


def measured_table(view: View) -> Table | None:
    """Really run settings beside their replay."""
    rows = [*measured(view), *rebatched(view)]
    if not rows:
        return None
    words, energy = energy_column(rows)
    cells = [
        [
            run_label(view, row),
            count(row.get("batch_size")),
            count(row.get("samples")),
            percent(row["accuracy"]),
            percent(row.get("replay_accuracy")),
            percent(row.get("same_decisions"), 2),
            figures(row.get("replay_latency_ms")),
            figures(row.get("latency_ms")),
            interval(row, "latency", "ms"),
            change(gap(row, LATENCY), 1),
            figures(row.get("replay_energy_mj")),
            energy(row),
            change(gap(row, ENERGY), 1),
            *_waited(row),
        ]
        for row in rows
    ]
    head = ["setting", "batch size", "samples", "accuracy", "replayed", "same decisions"]
    head += ["latency replayed (ms)", "measured (ms)", "range of passes", "gap"]
    head += ["energy replayed (mJ)", words.replace("energy", "of the run"), "gap"]
    head, cells, _ = filled([*head, *WAITED_HEAD], cells, len(head))
    flat = [{k: v for k, v in r.items() if not isinstance(v, list | dict)} for r in rows]
    return Table(
        "measured",
        "Replayed against measured",
        head,
        cells,
        pd.DataFrame(flat),
        "The time of a run is always measured; its energy has the source in brackets. "
        "Accuracy, replayed too, is that of the samples of the run."
        + (REBATCHED if rebatched(view) else ""),
    )


WAITED_HEAD = ["waited (batches)", "longest", "samples together"]
REBATCHED = (
    " Rebatched within n: what is left of several batches runs on together, and an answer comes at "
    "most n further batches later; how many on average and at the longest stands on the right, and "
    "on how many samples a segment ran. Such a latency is time per sample, not until the answer."
)


def _waited(row: Setting) -> list[str]:
    """How long samples of a rebatched run waited, and how many ran together."""
    return [
        figures(row.get("waited_batches")),
        count(row.get("longest_wait_batches")),
        figures(row.get("rows_per_segment")),
    ]


def metered_table(view: View) -> Table | None:
    """Every run of the reported batch size and device: its scene, its clocks, and how sure its
    energy is."""
    rows = [*measured(view), *staged(view)]
    keys = ("net_energy_mj", "energy_uncertainty_mj", "scene", "governor", "tier", "energy_flags")
    if not any(row.get(key) for row in rows for key in keys):
        return None
    words, energy = energy_column(rows)
    head = ["setting", "scene", "clocks", "latency (ms)", "late", words, "± mJ"]
    head += ["net (mJ)", "mean power (W)", "per hour (J)", "switches", "reading the meter"]
    cells = [_metered_cells(view, row, energy) for row in rows]
    head, cells, notes = filled([*head, "tier", "marked"], cells, 3)
    return Table(
        "metered",
        "How the runs were metered",
        head,
        cells,
        pd.DataFrame([_flat(row) for row in rows]),
        "Per sample. A request on a schedule includes the idle time until the next one, and its "
        "latency is the time until its answer. With simulated clocks the decisions are real and "
        f"the costs are modelled. {notes} Marked: number of flags, told under Where the energy "
        "comes from.".replace("  ", " "),
        texts=3,
    )


def _metered_cells(view: View, row: Setting, energy: Callable[[Setting], str]) -> list[str]:
    scene, period = str(row.get("scene") or "continuous"), row.get("period_ms")
    return [
        run_label(view, row),
        f"every {period:,g} ms" if scene == "periodic" else _scene_words(row, scene),
        _clock_words(row),
        f"{figures(row.get('latency_ms'))}{source_note(LATENCY, row)}",
        percent(row.get("missed")),
        energy(row),
        figures(row.get("energy_uncertainty_mj")),
        figures(row.get("net_energy_mj")),
        figures(row.get("power_w")),
        figures(row.get("energy_per_hour_j")),
        figures(row.get("switches")),
        percent(row.get("meter_overhead"), 2),
        str(row.get("tier") or NONE),
        count(float(len(flags_of(row.get("energy_flags"))))),
    ]


def _scene_words(row: Setting, scene: str) -> str:
    return scene if row.get("rebatch_wait") is None else f"{scene}, rebatched"


def _clock_words(row: Setting) -> str:
    """Governor and whether its clocks were really set; a dash where none had a say."""
    if not row.get("governor"):
        return NONE
    set_words = {"simulated": "simulated", "device": "really set"}.get(str(row.get("clocks")))
    return f"{governor_words(row)}, {set_words}" if set_words else governor_words(row)


def _flat(row: Setting) -> dict[str, Any]:
    """A run without its lists and objects, but with its flags."""
    flat = {k: v for k, v in row.items() if not isinstance(v, list | dict)}
    return flat | {"energy_flags": "; ".join(flags_of(row.get("energy_flags")))}


LAYER_COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "checked": ("checked", count),
    "left": ("left", count),
    "correct": ("correct", count),
    "mean_confidence": ("mean confidence", figures),
    "mean_forecast": ("mean forecast", figures),
    "mean_true_jump": ("mean true jump", figures),
    "forecasts": ("forecasts", count),
    "prediction_hits": ("right forecasts", count),
}


def _is_recommended(view: View, row: Setting) -> bool:
    best = view.recommended
    return best is not None and all(best[column] == row.get(column) for column in SETTING)


def layer_tables(view: View) -> list[Table]:
    """The statistics of every exit, one table per run, the recommended first."""
    tables: list[Table] = []
    rows = [*measured(view), *rebatched(view)]
    for row in sorted(rows, key=lambda row: not _is_recommended(view, row)):
        layers = row.get("stat_each_layer")
        if not isinstance(layers, list) or not layers:
            continue
        cells = [
            [exit_words(int(layer["exit"]), view.names)]
            + [show(layer.get(column)) for column, (_, show) in LAYER_COLUMNS.items()]
            for layer in layers
            if isinstance(layer, dict) and "exit" in layer
        ]
        tables.append(
            Table(
                f"stat_each_layer_{len(tables) + 1}",
                run_label(view, row),
                ["exit", *(words for words, _ in LAYER_COLUMNS.values())],
                cells,
                pd.DataFrame(layers),
            )
        )
    return tables

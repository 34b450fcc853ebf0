"""The page: everything of a report in one HTML file that needs nothing else."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from .choice import chosen_from
from .figures import names_of
from .findings import findings, headline, limits, verdict
from .findings_energy import other_hardware
from .metering import flagged, hardware, how_measured, modelled_clocks
from .origin import device_words, profiled_here
from .picture import Absent, Picture
from .table import Table
from .view import ENERGY, LATENCY, METRICS, View, energy_source, flatten, source_note
from .words import NONE, change, percent, points

SECTIONS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("tradeoff", "Accuracy against cost", ("accuracy_energy", "accuracy_latency", "accuracy_macs")),
    ("exits", "Where samples leave", ("exit_histogram",)),
    (
        "cost",
        "What layers and heads cost",
        ("cost_energy", "cost_latency", "cost_macs", "roofline"),
    ),
    ("energy", "Where the energy comes from", ()),
    ("clocks", "Governed clocks, at equal latency", ("governed_energy", "accuracy_energy_clocks")),
    ("schedule", "On a schedule", ("scenarios",)),
    ("prediction", "How good the forecasts are", ("prediction_accuracy", "prediction_confusion")),
    ("replay", "Replayed against measured", ("replay_measured",)),
)


@dataclass(frozen=True)
class Tile:
    """One key figure: what, how much, and against what."""

    label: str
    value: str
    detail: str


def page(
    view: View, pictures: dict[str, tuple[Picture | Absent, str]], tables: dict[str, Table]
) -> str:
    """The HTML of the report; figures are embedded, nothing is loaded from elsewhere."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    manifest = view.run.manifest
    shown = {name: _figure(*pair) for name, pair in pictures.items()}
    return environment.get_template("page.html").render(
        title=title(manifest),
        subtitle=_subtitle(view),
        headline=headline(view),
        verdict=verdict(view),
        basis=chosen_from(view),
        tiles=tiles(view),
        findings=findings(view),
        missing=list(view.run.missing.values()),
        sections=[
            {"id": key, "title": words, "figures": _figures(view, shown, names)}
            for key, words, names in SECTIONS
        ],
        tables=tables,
        comparisons=[t for name, t in tables.items() if name.startswith("comparison-")],
        governed_tables=[t for name, t in tables.items() if name.startswith("governed-")],
        metering=how_measured(view),
        flags=flagged(view),
        clock_models=modelled_clocks(view),
        clock_findings=other_hardware(view),
        layer_tables=[t for name, t in tables.items() if name.startswith("stat_each_layer_")],
        source=energy_source(view.test),
        families=_families(view),
        limits=limits(view),
        facts=_facts(view),
        precisions=_precisions(manifest),
    )


def title(manifest: dict[str, Any]) -> str:
    """What was studied: the model and the dataset."""
    checkpoint = manifest.get("checkpoint") or {}
    model, data = checkpoint.get("model"), checkpoint.get("dataset")
    what = f"{model} on {data}" if model and data else str(model or data or "a network with exits")
    return f"Early exit: {what}"


def _subtitle(view: View) -> str:
    manifest = view.run.manifest
    environment = manifest.get("environment") or {}
    gpu = environment.get("gpu")
    if isinstance(gpu, dict):
        gpu = gpu.get("name")
    elif isinstance(gpu, list):
        gpu = ", ".join(str(g.get("name", g) if isinstance(g, dict) else g) for g in gpu)
    device = str(view.place.get("device") or environment.get("device") or "")
    machine = gpu if gpu and device.startswith("cuda") else environment.get("cpu")
    if not profiled_here(view):
        machine = f"costs from a given table, of {device_words(view)}"
    parts = [str(machine) if machine else "", f"run {view.run.path.resolve().name}"]
    parts += [f"made {str(manifest['created'])[:10]}"] if manifest.get("created") else []
    parts += [f"exitbench {manifest['exitbench']}"] if manifest.get("exitbench") else []
    return " · ".join(part for part in parts if part)


def tiles(view: View) -> list[Tile]:
    """The recommended setting's accuracy and costs, against the full network."""
    row, full = view.recommended, view.reference
    if row is None or full is None:
        return []
    against = f"full network, {full['precision']}"
    found = [
        Tile(
            "accuracy",
            percent(row["accuracy"]),
            f"{points(row['accuracy'] - full['accuracy'])} points; {against}: "
            f"{percent(full['accuracy'])}",
        )
    ]
    for metric in METRICS:
        value, base = row[metric.column], full[metric.column]
        if value is None:
            text = "unavailable" if metric is ENERGY else NONE
            found.append(Tile(f"{metric.noun} per sample", text, "not known in this run"))
            continue
        note = source_note(metric, row) or (" (replayed)" if metric is LATENCY else "")
        found.append(
            Tile(
                f"{metric.noun} per sample{note}",
                metric.text(value),
                f"{change(view.ratio(row, metric))}; {against}: {metric.text(base)}",
            )
        )
    return found


def _figures(
    view: View, shown: dict[str, dict[str, Any]], names: tuple[str, ...]
) -> list[dict[str, Any]]:
    """The figures of a section; where it has some per hardware, hardware by hardware."""
    lists = [names_of(view, name) for name in names]
    if len({len(found) for found in lists}) == 1:
        lists = [list(found) for found in zip(*lists, strict=True)]
    return [shown[name] | {"name": name} for found in lists for name in found]


def _figure(picture: Picture | Absent, svg: str) -> dict[str, Any]:
    """What the template needs of a figure; the SVG goes in as a data URI, so that it is one image
    with one description and its inner names meet no others'."""
    if isinstance(picture, Absent):
        return {"title": picture.title, "reason": picture.reason}
    data = base64.b64encode(svg.encode("utf-8")).decode("ascii")
    width, height = (round(inches * 96) for inches in picture.figure.get_size_inches())
    return {
        "title": picture.title,
        "reason": None,
        "alt": picture.alt,
        "caption": picture.caption,
        "data": Markup(f"data:image/svg+xml;base64,{data}"),
        "width": width,
        "height": height,
    }


def _families(view: View) -> str:
    chosen = "the comparison at equal accuracy" if view.roles else "no choice"
    return (
        "A line holds criterion, start layer and predictor and runs over beta. Which family is "
        f"drawn for a policy was decided on the calibration split, by {chosen}; for a policy "
        "without a choice it is the family whose cheapest setting within "
        f"the allowed accuracy loss on the calibration split costs the least {view.metric.noun}. "
        "All other settings that can be run are the faint points. "
        "Values are those of the test split."
    )


def _facts(view: View) -> list[tuple[str, list[tuple[str, str]]]]:
    """Environment, hardware, network and configuration as tables of names and values."""
    manifest = view.run.manifest
    parts: list[tuple[str, Any]] = [
        (
            "Environment" if profiled_here(view) else "Environment of exitbench, not of the costs",
            manifest.get("environment"),
        ),
        # Its meters have a table of their own.
        ("Hardware profile and energy", {k: v for k, v in hardware(view).items() if k != "meters"}),
        ("Network", manifest.get("checkpoint")),
    ]
    commands = manifest.get("commands")
    if isinstance(commands, dict) and commands:
        parts += [
            (f"Configuration of exitbench {name}", value.get("config"))
            for name, value in commands.items()
            if isinstance(value, dict)
        ]
    else:
        name = manifest.get("command") or ""
        parts.append((f"Configuration of exitbench {name}".strip(), manifest.get("config")))
    return [
        (words, [(key, _plain(value)) for key, value in flatten(part)])
        for words, part in parts
        if isinstance(part, dict) and part
    ]


def _plain(value: Any) -> str:
    if value is None or value == {} or value == []:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(_plain(item) for item in value)
    return str(value)


def _precisions(manifest: dict[str, Any]) -> list[list[str]]:
    found = manifest.get("precisions")
    if not isinstance(found, dict):
        return []
    return [
        [
            str(name),
            "yes" if value.get("available") else "no",
            str(value.get("runtime") or NONE),
            str(value.get("reason") or value.get("words") or NONE),
        ]
        for name, value in found.items()
        if isinstance(value, dict)
    ]

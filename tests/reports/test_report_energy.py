"""The page tells how energy was measured, draws the roofs it knows, and says what is modelled."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from exitbench.harness.errors import ExitbenchError
from exitbench.reports.figures_roofline import drawable, roofline
from exitbench.reports.figures_tradeoff import latency_tradeoff
from exitbench.reports.findings import findings, headline, limits
from exitbench.reports.findings_energy import energy_findings
from exitbench.reports.lines import measured, staged
from exitbench.reports.metering import flagged, how_measured
from exitbench.reports.picture import Absent, Picture
from exitbench.reports.reading import read_run
from exitbench.reports.style import styled
from exitbench.reports.tables import cost_table
from exitbench.reports.tables_energy import meters_table, windows_table
from exitbench.reports.tables_measured import measured_table, metered_table
from exitbench.reports.view import View, look

MakeRun = Callable[..., Path]


def view_of(run: Path) -> View:
    return look(read_run(run))


def with_manifest(run: Path, change: Callable[[dict[str, Any]], None]) -> View:
    path = run / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    return view_of(run)


def with_measurement(run: Path, **changes: Any) -> View:
    path = run / "measurements.jsonl"
    first = json.loads(path.read_text().splitlines()[0])
    with path.open("a") as handle:
        handle.write(json.dumps({**first, **changes}) + "\n")
    return view_of(run)


def peaks(run: Path, **found: Any) -> View:
    def change(manifest: dict[str, Any]) -> None:
        manifest["hardware"]["peaks"] = {
            name: {"value": value, "source": "here", "assumption": assumed}
            for name, (value, assumed) in found.items()
        }

    return with_manifest(run, change)


def drawn(view: View) -> Picture:
    with styled():
        picture = roofline(view)
    assert isinstance(picture, Picture)
    return picture


@pytest.fixture
def view(synthetic_run: Path) -> View:
    return view_of(synthetic_run)


def test_points_of_the_roofline_are_work_over_time_and_over_bytes(view: View) -> None:
    cost = pd.read_csv(view.run.path / "cost.csv")
    row = cost[(cost.kind == "segment") & (cost["index"] == 2) & (cost.precision == "int8")].iloc[0]
    rows = view.run.cost
    assert rows is not None
    found = drawable(rows)
    same = (found.kind == "segment") & (found["index"] == 2) & (found.precision == "int8")
    assert found[same].intensity.iloc[0] == pytest.approx(row.flops / row.bytes)
    assert found[same].reached.iloc[0] == pytest.approx(row.flops / row.latency_ms / 1e6)


def test_a_beaten_assumption_is_drawn_and_said(make_run: MakeRun) -> None:
    caption = drawn(peaks(make_run(), fp32_gflops=(1.0, True), bandwidth_gb_s=(1e6, False))).caption
    assert "In fp32 the assumed peak is beaten by 6 of 6 segments" in caption
    caption = drawn(peaks(make_run(), fp32_gflops=(1e6, True), bandwidth_gb_s=(1e6, False))).caption
    assert "beaten" not in caption


def test_a_roof_that_is_an_assumption_is_marked_so(make_run: MakeRun) -> None:
    found = peaks(make_run(), fp32_gflops=(900.0, True), bandwidth_gb_s=(500.0, False))
    axis = drawn(found).figure.axes[0]
    labels = axis.get_legend_handles_labels()[1]
    assert "peak arithmetic (assumption)" in labels
    assert "memory bandwidth" in labels


def test_a_precision_without_a_peak_says_how_to_get_one(make_run: MakeRun) -> None:
    found = drawn(peaks(make_run(), fp32_gflops=(900.0, False), bandwidth_gb_s=(500.0, False)))
    assert "The profile has no peak for int8: 'exitbench hardware calibrate" in found.caption


def test_flop_per_cycle_alone_is_no_roof(make_run: MakeRun) -> None:
    picture = roofline(peaks(make_run(), fp32_flop_per_cycle_per_core=(32.0, True)))
    assert isinstance(picture, Absent)
    assert "without a clock" in picture.reason
    assert "exitbench hardware calibrate --write FILE" in picture.reason


def test_a_table_from_elsewhere_has_no_roofs_of_this_machine(make_run: MakeRun) -> None:
    picture = roofline(with_manifest(make_run(), lambda manifest: manifest.pop("profile")))
    assert isinstance(picture, Absent)
    assert "not measured on the machine" in picture.reason


def test_the_section_tells_meter_idle_own_cost_and_what_lies_outside(make_run: MakeRun) -> None:
    words = " ".join(how_measured(view_of(make_run(energy_source="measured"))))
    assert "Energy per sample is measured." in words
    assert "quick: at least 5 s of every unit in 5 windows" in words
    assert "Idle power is 5.00 W (modelled)" in words
    assert "opening and closing a window takes 0.200 ms" in words
    assert "0.01% of a window, below the 1% allowed" in words
    assert "fp32, batch 1: −4.2% in latency and −4.2% in energy" in words
    assert "Counters inside the device are not wall power" in words


def test_an_own_cost_above_the_limit_is_said_to_be(make_run: MakeRun) -> None:
    view = with_measurement(make_run(), meter_overhead=0.03, period_ms=7.0, scene="periodic")
    assert any("3.00% of a window, ABOVE the 1% allowed" in words for words in how_measured(view))


def test_a_second_reading_is_told_beside_the_counter(make_run: MakeRun) -> None:
    def add(manifest: dict[str, Any]) -> None:
        for place, entry in enumerate(manifest["profile"].values()):
            entry["energy"]["joules"] = {"gpu": 200.0}
            entry["energy"]["checks"] = {"power of GPU 0": 204.0 + 4 * place}

    words = " ".join(how_measured(with_manifest(make_run(), add)))
    assert "power of GPU 0, lies +2.0% to +4.0% off the counter" in words


@pytest.mark.parametrize(("factor", "told"), [(3.0, True), (0.3, True), (1.2, False)])
def test_a_run_that_is_far_off_its_replay_is_called_so(
    make_run: MakeRun, factor: float, told: bool
) -> None:
    def change(run: dict[str, Any]) -> dict[str, Any]:
        return {**run, "latency_ms": factor * run["replay_latency_ms"], "energy_mj": None}

    run = make_run()
    path = run / "measurements.jsonl"
    rows = [change(json.loads(line)) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (words,) = [each for each in findings(view_of(run)) if "was really run (" in each]
    assert ("the replayed costs are no guide" in words) == told


@pytest.mark.parametrize("domains", [3, "gpu", None])
def test_a_meter_whose_domains_are_no_list_is_told_without_them(
    make_run: MakeRun, domains: Any
) -> None:
    def spoil(manifest: dict[str, Any]) -> None:
        manifest["hardware"]["meters"][0]["domains"] = domains

    words = " ".join(how_measured(with_manifest(make_run(), spoil)))
    assert "Not covered" in words


def test_modelled_energy_names_no_windows(view: View) -> None:
    words = " ".join(how_measured(view))
    assert "Modelled energy needs no windows" in words
    assert "quick" not in words
    assert "in energy" not in words


def test_marked_windows_are_told_in_findings_and_section(view: View) -> None:
    assert flagged(view) == [
        "fp32, batch 1: the clock was throttled: segment 2.",
        "Really run, full in fp32: another process used the device for 3% of the window.",
    ]
    assert any("Some energy windows are marked" in words for words in energy_findings(view))


def test_an_old_run_without_any_metering_still_has_its_report(make_run: MakeRun) -> None:
    run = make_run(hardware=())
    (run / "scenarios.csv").unlink()

    def strip(manifest: dict[str, Any]) -> None:
        manifest["hardware"] = {"profile": "generic-x86", "energy": "modelled"}
        for entry in manifest["profile"].values():
            entry.pop("energy")
            entry.pop("whole")
        manifest.pop("govern")

    new = ("latency_source", "energy_uncertainty_mj", "net_energy_mj", "power_w")
    cost = pd.read_csv(run / "cost.csv").drop(columns=list(new))
    cost.to_csv(run / "cost.csv", index=False)
    lines = [json.loads(line) for line in (run / "measurements.jsonl").read_text().splitlines()]
    added = ("scene", "tier", "net_energy_mj", "energy_uncertainty_mj", "meter_overhead")
    old = [{k: v for k, v in line.items() if k not in added} for line in lines[:-2]]
    (run / "measurements.jsonl").write_text("".join(json.dumps(line) + "\n" for line in old))
    view = with_manifest(run, strip)
    assert view.run.governed == ()
    assert meters_table(view) is None
    assert windows_table(view) is None
    table = cost_table(view)
    assert table is not None
    assert "net (mJ)" not in table.head
    assert "Idle power is not known" in " ".join(how_measured(view))
    assert energy_findings(view) == []
    assert metered_table(view) is None


def test_net_energy_below_zero_is_shown_as_it_is(make_run: MakeRun) -> None:
    run = make_run()
    cost = pd.read_csv(run / "cost.csv")
    cost.loc[0, "net_energy_mj"] = -0.25
    cost.to_csv(run / "cost.csv", index=False)
    table = cost_table(view_of(run))
    assert table is not None
    assert table.cells[0][table.head.index("net (mJ)")] == "−0.250"


def test_runs_on_a_schedule_or_governed_are_not_set_against_the_sweep(view: View) -> None:
    apart = staged(view)
    assert {(row.get("scene"), row.get("governor")) for row in apart} == {
        ("periodic", None),
        ("continuous", "deadline"),
    }
    assert not [row for row in measured(view) if row in apart]
    plain, every = measured_table(view), metered_table(view)
    assert plain is not None
    assert every is not None
    assert len(plain.cells) == len(measured(view))
    assert len(every.cells) == len(plain.cells) + 2
    assert not any("left out" in words for words in limits(view))
    clocks = [row[every.head.index("clocks")] for row in every.cells]
    assert clocks[-1] == "deadline, simulated"
    assert every.cells[-1][every.head.index("latency (ms)")].endswith("(modelled)")


def test_the_same_setting_in_two_scenes_is_two_runs(make_run: MakeRun) -> None:
    run = make_run()
    before = len(view_of(run).run.measurements)
    view = with_measurement(run, scene="periodic", period_ms=250.0)
    assert len(view.run.measurements) == before + 1
    view = with_measurement(run, scene="continuous", latency_ms=77.0)
    assert len(view.run.measurements) == before + 1


def test_a_run_with_another_runtime_than_was_priced_is_left_out_and_counted(
    make_run: MakeRun,
) -> None:
    run = make_run()
    plain = view_of(run)
    view = with_measurement(run, runtime="openvino", latency_ms=77.0)
    assert measured(view) == measured(plain)
    said = "operating point or device, or with another runtime, left out"
    assert any(said in words for words in limits(view))
    assert len(measured(with_measurement(run, runtime="eager", beta=0.123))) == len(
        measured(plain)
    ) + 1


def test_a_rebatched_run_stands_beside_the_plain_one_and_says_what_its_latency_is(
    make_run: MakeRun,
) -> None:
    run = make_run()
    plain = view_of(run)
    waited = {"waited_batches": 0.75, "longest_wait_batches": 4, "rows_per_segment": 41.5}
    view = with_measurement(
        run, scene="continuous", rebatch_wait=8, latency_ms=0.5, stat_each_layer=[], **waited
    )
    assert len(view.run.measurements) == len(plain.run.measurements) + 1
    # Nothing that sets runs against the sweep sees it.
    assert measured(view) == measured(plain)
    assert not any("left out" in words for words in limits(view))
    before, table, every = measured_table(plain), measured_table(view), metered_table(view)
    assert before is not None
    assert table is not None
    assert every is not None
    assert len(table.cells) == len(before.cells) + 1
    assert table.cells[-1][0].endswith(", rebatched within 8")
    assert table.head[-3:] == ["waited (batches)", "longest", "samples together"]
    assert table.cells[-1][-3:] == ["0.750", "4", "41.5"]
    assert "time per sample, not until the answer" in table.note
    assert "waited (batches)" not in before.head
    assert "time per sample" not in before.note
    assert "continuous, rebatched" in [row[every.head.index("scene")] for row in every.cells]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rebatch_wait": "long"}, "rebatch_wait is 'long'"),
        ({"scene": "sometimes"}, "scene is 'sometimes'"),
        ({"energy_flags": "throttled"}, "energy_flags must be a list"),
        ({"net_energy_mj": "none"}, "net_energy_mj is 'none'"),
        ({"latency_source": "guessed"}, "latency_source is 'guessed'"),
    ],
)
def test_a_wrong_metering_field_is_named(
    make_run: MakeRun, changes: dict[str, Any], words: str
) -> None:
    run = make_run()
    with pytest.raises(ExitbenchError) as error:
        with_measurement(run, **changes)
    assert words in str(error.value)
    assert "measurements.jsonl, line" in str(error.value)


def test_a_modelled_latency_says_so_wherever_it_is_shown(make_run: MakeRun) -> None:
    run = make_run()
    for name in ("sweep.csv", "comparison.csv", "cost.csv"):
        pd.read_csv(run / name).assign(latency_source="modelled").to_csv(run / name, index=False)
    view = view_of(run)
    assert "less latency (modelled)" in headline(view)
    table = cost_table(view)
    assert table is not None
    assert "latency (ms, modelled)" in table.head
    with styled():
        picture = latency_tradeoff(view)
    assert isinstance(picture, Picture)
    assert "(ms, replayed, modelled)" in picture.figure.axes[0].get_xlabel()

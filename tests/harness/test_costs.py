"""Cost tables: written and read back, priced, and refused with every fault at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exitbench.harness.costs import CostTable
from exitbench.harness.errors import ExitbenchError

HAND = """kind,index,macs,latency_ms,energy_mj,energy_source
segment,1,100,1,10,measured
segment,2,200,2,20,modelled
segment,3,300,3,30,measured
head,1,10,0.5,5,measured
head,2,20,0.25,2.5,measured
forecast,1,1,0.125,1,measured
forecast,2,1,0.125,1,measured
classifier,3,5,0.0625,0.5,measured
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "cost.csv"
    path.write_text(text)
    return path


def refused(tmp_path: Path, text: str) -> str:
    with pytest.raises(ExitbenchError) as caught:
        CostTable.read(write(tmp_path, text))
    message = str(caught.value)
    assert "cost.csv" in message
    return message


def rows(**changes: Any) -> list[dict[str, Any]]:
    """A network with one exit."""
    units = [("segment", 1), ("segment", 2), ("head", 1), ("forecast", 1), ("classifier", 2)]
    base: dict[str, Any] = {"precision": "fp32", "batch_size": 1, "operating_point": "default"}
    return [
        base | {"kind": kind, "index": index, "macs": 7, "latency_ms": 0.1 + index} | changes
        for kind, index in units
    ]


def price_one(path: Path, **runs: Any) -> dict[str, np.ndarray]:
    zero = {"segments": [0, 0, 0], "heads": [0, 0], "forecasts": [0, 0], "classifier": 0}
    return CostTable.read(path).select().price(**(zero | {"samples": 1} | runs))


def test_what_is_written_is_read_back_the_same(tmp_path: Path) -> None:
    table = CostTable.from_rows(
        rows(
            latency_ms=1 / 3,
            macs=1_159_402_496_123,
            energy_mj=0.1,
            energy_source="measured",
            threads=2,
            name='a "quoted", name',
            uncounted="aten.cos x2; aten.sin x1",
            clock_mhz=None,
        )
    )
    table.write(tmp_path / "cost.csv")
    again = CostTable.read(tmp_path / "cost.csv")
    assert again.frame.equals(table.frame)
    assert again.frame["latency_ms"].tolist() == [1 / 3] * 5
    assert again.frame["macs"].tolist() == [1_159_402_496_123] * 5
    assert again.frame["clock_mhz"].isna().all()


def test_unknown_is_an_empty_cell_and_not_zero(tmp_path: Path) -> None:
    table = CostTable.from_rows(rows(latency_ms=None))
    table.write(tmp_path / "cost.csv")
    assert ",0," not in (tmp_path / "cost.csv").read_text()
    assert np.isnan(table.select().segments["latency_ms"]).all()


def test_a_table_by_hand_needs_three_columns(tmp_path: Path) -> None:
    text = "kind,index,macs\nsegment,1,10\nhead,1,3\nsegment,2,1e3\nclassifier,2,0\n"
    prices = CostTable.read(write(tmp_path, text)).select()
    assert prices.exits == 1
    assert prices.segments["macs"].tolist() == [10, 1000]
    assert prices.energy_source == "unavailable"
    assert np.isnan(prices.forecasts["macs"]).all()


def test_blank_lines_spaces_and_a_byte_order_mark_do_no_harm(tmp_path: Path) -> None:
    text = "\ufeffkind, index, macs\n\n segment , 1 , 10\nclassifier,1,2\n,,\n"
    assert CostTable.read(write(tmp_path, text)).select().full()["macs"] == 12


def test_a_sample_pays_what_it_ran(tmp_path: Path) -> None:
    path = write(tmp_path, HAND)
    # checked at exit 1, stays with a forecast to exit 2, leaves there
    left = price_one(path, segments=[1, 1, 0], heads=[1, 1], forecasts=[1, 0])
    assert left["macs"] == 100 + 200 + 10 + 20 + 1
    assert left["latency_ms"] == 1 + 2 + 0.5 + 0.25 + 0.125
    assert left["energy_mj"] == 10 + 20 + 5 + 2.5 + 1
    full = price_one(path, segments=[1, 1, 1], classifier=1)
    assert {q: float(v) for q, v in full.items()} == pytest.approx(
        CostTable.read(path).select().full(), nan_ok=True
    )
    assert np.isnan(full["flops"])


def test_prices_are_means_over_samples_and_many_settings_at_once(tmp_path: Path) -> None:
    prices = CostTable.read(write(tmp_path, HAND)).select()
    paid = prices.price(
        segments=np.array([[4, 4, 4], [4, 1, 0]]),
        heads=np.array([[0, 0], [4, 1]]),
        forecasts=np.zeros((2, 2)),
        classifier=np.array([4, 0]),
        samples=np.array([4, 4]),
    )
    assert paid["macs"].tolist() == [605, (400 + 200 + 40 + 20) / 4]


def test_only_what_is_paid_for_needs_a_price(tmp_path: Path) -> None:
    without = "".join(line for line in HAND.splitlines(True) if not line.startswith("forecast"))
    path = write(tmp_path, without)
    assert price_one(path, segments=[1, 0, 0], heads=[1, 0])["macs"] == 110
    assert np.isnan(price_one(path, segments=[1, 0, 0], forecasts=[1, 0])["macs"])
    prices = CostTable.read(path).select(forecast_macs=800)
    assert prices.forecasts["macs"].tolist() == [800, 800]
    assert np.isnan(prices.forecasts["latency_ms"]).all()


def test_an_energy_is_as_trustworthy_as_its_weakest_row(tmp_path: Path) -> None:
    prices = CostTable.read(write(tmp_path, HAND)).select()
    assert prices.energy_source == "modelled"
    assert prices.source_of(1.0) == "modelled"
    assert prices.source_of(float("nan")) == "unavailable"


def test_counts_of_another_network_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="segments has shape"):
        price_one(write(tmp_path, HAND), segments=[1, 1])


def test_the_smallest_batch_size_is_taken_unless_one_is_named() -> None:
    table = CostTable.from_rows(rows(batch_size=64)).with_rows(rows(batch_size=8))
    assert table.select().batch_size == 8
    assert table.select("fp32", 64).batch_size == 64
    assert table.settings() == [("fp32", 64, "default"), ("fp32", 8, "default")]


def test_new_rows_take_the_place_of_those_of_their_setting() -> None:
    table = CostTable.from_rows(rows(macs=1)).with_rows(rows(batch_size=8, macs=2))
    table = table.with_rows(rows(macs=3))
    assert table.select("fp32", 1).full()["macs"] == 9
    assert table.select("fp32", 8).full()["macs"] == 6
    assert len(table.frame) == 10


@pytest.mark.parametrize("wanted", [("int8", None), ("fp32", 3), ("fp32", None, "low")])
def test_a_setting_that_is_not_there_names_those_that_are(wanted: tuple[Any, ...]) -> None:
    with pytest.raises(ExitbenchError, match="it has fp32, batch 1, 'default'"):
        CostTable.from_rows(rows()).select(*wanted)


def test_a_latency_is_as_trustworthy_as_its_weakest_row_and_measured_unless_it_says_more() -> None:
    assert CostTable.from_rows(rows()).select().latency_source == "measured"
    told = [row | {"latency_source": "measured"} for row in rows()]
    told[1]["latency_source"] = "modelled"
    prices = CostTable.from_rows(told).select()
    assert prices.latency_source == "modelled"
    assert prices.latency_source_of(1.0) == "modelled"
    assert prices.latency_source_of(float("nan")) == "unavailable"
    without = CostTable.from_rows(rows(latency_ms=None)).select()
    assert without.latency_source == "unavailable"


def test_net_energy_is_priced_like_gross_and_may_be_negative(tmp_path: Path) -> None:
    table = CostTable.from_rows(
        rows(energy_mj=2.0, energy_source="measured", net_energy_mj=-0.5, energy_uncertainty_mj=0.1)
    )
    table.write(tmp_path / "cost.csv")
    prices = CostTable.read(tmp_path / "cost.csv").select()
    paid = prices.price(
        segments=np.array([1, 0]), heads=np.array([1]), forecasts=np.array([0]), classifier=0,
        samples=1,
    )  # fmt: skip
    assert (paid["energy_mj"], paid["net_energy_mj"]) == (4.0, -1.0)
    assert np.isnan(CostTable.from_rows(rows()).select().segments["net_energy_mj"]).all()


def test_a_table_may_have_gathers_which_nobody_pays(tmp_path: Path) -> None:
    plain = CostTable.read(write(tmp_path, HAND)).select()
    more = HAND + "gather,1,0,9,,\ngather,2,0,9,,\n"
    table = CostTable.read(write(tmp_path, more))
    table.write(tmp_path / "again.csv")
    prices = CostTable.read(tmp_path / "again.csv").select()
    assert prices.full() == pytest.approx(plain.full(), nan_ok=True)
    assert (prices.energy_source, prices.exits) == (plain.energy_source, plain.exits)


HEADER = "kind,index,macs,latency_ms,energy_mj,energy_source\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is empty"),
        ("kind,index\nsegment,1\n", "missing columns: macs"),
        ("kind,index,macs,latency_s\n", "unknown columns: 'latency_s'"),
        ("kind,index,macs,macs\n", "twice: macs"),
        ("kind;index;macs\nsegment;1;2\n", "separated by commas"),
        ("kind,index,macs\n", "no rows below"),
        ('kind,index,macs\n"segment,1,2\n', "not a CSV file"),
        (HAND + "segment,1\n", "row 10: 2 cells, the header has 6"),
        (HAND + "layer,1,2,,,\n", "row 10: kind is 'layer'; allowed are segment, head"),
        (HAND + "head,0,2,,,\n", "row 10: index is 0; it must be at least 1"),
        (HAND + "head,1.5,2,,,\n", "row 10: index is 1.5; it must be a whole number"),
        (HAND + "head,3,,,,\n", "row 10: macs is empty"),
        (HAND + "head,3,-2,,,\n", "row 10: macs is -2; it must be 0 or more"),
        (HAND + "head,3,2,fast,,\n", "row 10: latency_ms is 'fast', not a number"),
        (HAND + "head,3,2,nan,,\n", "row 10: latency_ms is 'nan'; leave it empty"),
        (HAND + "head,3,2,inf,,\n", "row 10: latency_ms is 'inf'; leave it empty"),
        (HAND + "head,3,2,1,5,guessed\n", "energy_source is 'guessed'; allowed are measured"),
        (HAND + "head,3,2,1,5,\n", "energy_source is empty; say measured or modelled"),
        (HAND + "head,3,2,1,5,unavailable\n", "energy_source is unavailable; say measured"),
        (HAND + "head,3,2,1,,measured\n", "energy_source is 'measured' but energy_mj is empty"),
        (HAND + "head,2,2,,,\n", "row 10: head 2 is already in row 6"),
        (HAND + "head,3,2,,,\n", "row 10: head 3, but 3 segments make 2 exits"),
        (HAND + "classifier,4,2,,,\n", "row 10: classifier 4, but 3 segments"),
        (HAND.replace("segment,2", "segment,4"), "segment 2 missing"),
        (HAND.replace("head,2", "head,3"), "head 2 missing"),
        (HAND.replace("forecast,2,1,0.125,1,measured\n", ""), "forecast 2 missing"),
        (HAND.replace("classifier,3,5,0.0625,0.5,measured\n", ""), "classifier 3 missing"),
        (HAND + "gather,2,0,,,\n", "gather 1 missing"),
        (HAND + "gather,1,0,,,\ngather,2,0,,,\ngather,3,0,,,\n", "gather 3, but 3 segments"),
        (HEADER + "head,1,2,,,\n", "no segments"),
        ("kind,index,macs,precision\nsegment,1,2,fp8\n", "precision is 'fp8'; allowed are fp32"),
        (
            "kind,index,macs,latency_ms,latency_source\nsegment,1,2,,measured\n",
            "latency_source is 'measured' but latency_ms is empty",
        ),
        (
            "kind,index,macs,latency_ms,latency_source\nsegment,1,2,1,unavailable\n",
            "latency_ms is 1 but latency_source is unavailable",
        ),
        (
            "kind,index,macs,net_energy_mj\nsegment,1,2,-1\n",
            "net_energy_mj is -1 but energy_mj is empty",
        ),
        (
            "kind,index,macs,energy_uncertainty_mj\nsegment,1,2,-1\n",
            "energy_uncertainty_mj is -1; it must be 0 or more",
        ),
        (
            "kind,index,macs,latency_ms,latency_low_ms\nsegment,1,2,1,3\n",
            "latency_ms lies outside its interval",
        ),
    ],
)
def test_a_wrong_table_says_what_and_where(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in refused(tmp_path, text)


def test_all_faults_are_told_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = HEADER + "layer,1,x,,,\n" + "\n" + "head,-1,2,,5,\n"
    message = refused(tmp_path, text)
    assert "4 faults" in message
    found = [line.split(":")[0].strip() for line in message.splitlines()[1:]]
    assert found == ["row 2", "row 2", "row 4", "row 4"]


def test_very_many_faults_are_cut_short(tmp_path: Path) -> None:
    assert "and 150 more" in refused(tmp_path, HEADER + "layer,1,1,,,\n" * 200)


def test_a_missing_file_and_a_binary_file_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ExitbenchError, match="cannot read the cost table"):
        CostTable.read(tmp_path / "none.csv")
    path = tmp_path / "cost.csv"
    path.write_bytes(b"\xff\xfe\x00kind")
    with pytest.raises(ExitbenchError, match="not a CSV file in UTF-8"):
        CostTable.read(path)


def test_a_failed_write_leaves_the_old_table(tmp_path: Path) -> None:
    table = CostTable.from_rows(rows())
    table.write(tmp_path / "cost.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["cost.csv"]
    blocked = tmp_path / "cost.csv" / "inside"
    with pytest.raises(ExitbenchError, match="cannot write"):
        table.write(blocked)
    assert CostTable.read(tmp_path / "cost.csv").settings() == [("fp32", 1, "default")]

"""A report is written whole from a run directory, and says what the files say."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from exitbench.reports import write_report
from exitbench.reports.figures import FIGURES, figures_of
from exitbench.reports.page import page as render
from exitbench.reports.picture import Absent
from exitbench.reports.reading import read_run
from exitbench.reports.tables import all_tables
from exitbench.reports.view import look
from exitbench.reports.words import figures, percent
from PIL import Image

VOID = {"meta", "img", "br", "link", "hr", "input"}


class Page(HTMLParser):
    """Checks that elements nest, and keeps what tests ask for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.language: str | None = None
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "img":
            self.images.append(given)
        if tag == "html":
            self.language = given.get("lang")
        self.links += [str(given[name]) for name in ("href", "src", "action") if name in given]
        self.ids += [str(given["id"])] if "id" in given else []
        assert tag not in ("script", "link", "iframe")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def report(synthetic_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(synthetic_run, tmp_path_factory.mktemp("out") / "report")


@pytest.fixture(scope="module")
def page(report: Path) -> Page:
    return Page(report.read_text(encoding="utf-8"))


def digest_of(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_every_figure_is_written_as_svg_and_png(synthetic_run: Path, report: Path) -> None:
    names = figures_of(look(read_run(synthetic_run)))
    assert set(FIGURES) < set(names)
    assert "governed_energy_jetson-tx2" in names
    for name in names:
        svg = (report.parent / "figures" / f"{name}.svg").read_text(encoding="utf-8")
        assert svg.rstrip().endswith("</svg>")
        with Image.open(report.parent / "figures" / f"{name}.png") as image:
            assert image.width > 600
            assert len(image.convert("L").getcolors() or []) > 2


def test_the_page_is_well_formed_and_loads_nothing(page: Page) -> None:
    assert page.open == []
    assert page.language == "en"
    for link in page.links:
        assert link.startswith(("#", "data:image/svg+xml;base64,"))
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))


def test_every_image_has_a_description(synthetic_run: Path, page: Page) -> None:
    assert len(page.images) == len(figures_of(look(read_run(synthetic_run))))
    assert all(len(image["alt"] or "") > 40 for image in page.images)


def test_the_same_files_give_the_same_bytes(
    synthetic_run: Path, report: Path, tmp_path: Path
) -> None:
    again = write_report(synthetic_run, tmp_path / "again")
    assert digest_of(again.parent) == digest_of(report.parent)


def test_the_headline_names_the_recommended_setting(synthetic_run: Path, page: Page) -> None:
    rows = pd.read_csv(synthetic_run / "comparison.csv")
    chosen = rows[rows.role == "recommended"].iloc[0]
    full = rows[(rows.role == "full") & (rows.precision == "fp32")].iloc[0]
    share = round(100 * (1 - chosen.energy_mj / full.energy_mj))
    headline = page.text[page.text.index("Run ") :]
    assert f"in {chosen.precision}, {chosen.criterion}, beta {chosen.beta:.6g}" in headline
    assert f"first check at exit {int(chosen.start_layer)} (conv" in headline
    assert f"{share}% less energy (modelled)" in headline
    assert f"{abs(100 * (chosen.accuracy - full.accuracy)):.1f} points less accuracy" in headline


def test_numbers_on_the_page_are_those_of_the_files(synthetic_run: Path, page: Page) -> None:
    rows = pd.read_csv(synthetic_run / "comparison.csv")
    for row in rows.itertuples():
        assert percent(row.accuracy) in page.text
        assert figures(row.macs / 1e6) in page.text
        assert figures(row.latency_ms) in page.text
        assert figures(row.energy_mj) in page.text
    for row in pd.read_csv(synthetic_run / "cost.csv").itertuples():
        assert figures(row.latency_ms) in page.text


def test_tables_hold_the_values_of_the_files(synthetic_run: Path, report: Path) -> None:
    written = pd.read_csv(report.parent / "tables" / "comparison.csv")
    given = pd.read_csv(synthetic_run / "comparison.csv")
    assert set(written.energy_mj) <= set(given.energy_mj)
    sweep = pd.read_csv(synthetic_run / "sweep.csv")
    front = pd.read_csv(report.parent / "tables" / "pareto.csv")
    assert set(front.latency_ms) <= set(sweep[sweep.split == "test"].latency_ms)
    assert not front.policy.eq("oracle").any()
    assert not front.predictor.eq("perfect").any()


def bare_page(run: Path) -> Page:
    """The page without its figures, which take most of the time."""
    view = look(read_run(run))
    none = {name: (Absent(name, "not drawn in this test"), "") for name in figures_of(view)}
    return Page(render(view, none, all_tables(view)))


def test_every_energy_names_its_source(page: Page, make_run: Callable[..., Path]) -> None:
    # Governed clocks are modelled even where the costs are measured, and say so; not here.
    measured = bare_page(make_run(energy_source="measured", hardware=()))
    for source, other, found in (
        ("modelled", "measured", page),
        ("measured", "modelled", measured),
    ):
        assert f"energy per sample ({source})" in found.text
        assert "latency per sample (replayed)" in found.text
        assert f"energy (mJ, {source})" in found.text
        assert f"energy ({source})" in found.text
        assert f"energy ({other})" not in found.text
        assert f"(mJ, {other})" not in found.text
    energy = [i for i in page.images if "against Energy" in str(i["alt"])]
    assert [("modelled" in str(image["alt"])) for image in energy] == [True]


def test_unknown_energy_is_said_and_never_drawn(make_run: Callable[..., Path]) -> None:
    run = make_run(energy_source="unavailable")
    stale = run / "report" / "figures" / "accuracy_energy.svg"
    stale.parent.mkdir(parents=True)
    stale.write_text("of an earlier report")
    written = write_report(run)
    found = Page(written.read_text(encoding="utf-8"))
    assert written == run / "report" / "index.html"
    assert "Energy is unavailable in this run" in found.text
    assert "less latency than the full network" in found.text
    assert not stale.exists()
    assert " mJ " not in found.text


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cost.csv", "There is no cost table"),
        ("comparison.csv", "There is no comparison at equal accuracy"),
        ("prediction.csv", "there is no prediction.csv"),
        ("prediction_confusion.csv", "there is no prediction_confusion.csv"),
        ("measurements.jsonl", "Nothing was really run"),
    ],
)
def test_a_missing_part_is_said_on_the_page(
    synthetic_run: Path, tmp_path: Path, name: str, words: str
) -> None:
    run = Path(shutil.copytree(synthetic_run, tmp_path / "run"))
    (run / name).unlink()
    assert words in bare_page(run).text


def test_a_sweep_alone_is_enough(synthetic_run: Path, tmp_path: Path) -> None:
    sweep = pd.read_csv(synthetic_run / "sweep.csv").drop(
        columns=["chosen_as", "pareto", "energy_mj", "energy_source", "latency_ms"]
    )
    sweep.to_csv(tmp_path / "sweep.csv", index=False)
    (tmp_path / "manifest.json").write_text('{"schema": 1}')
    said: list[str] = []
    found = Page(write_report(tmp_path, say=said.append).read_text(encoding="utf-8"))
    assert "fewer MACs than the full network in fp32" in found.text
    assert len(found.images) == 2
    assert any("no cost table" in line for line in said)


def test_nothing_is_recommended_without_calibration_rows(
    synthetic_run: Path, tmp_path: Path
) -> None:
    sweep = pd.read_csv(synthetic_run / "sweep.csv")
    sweep[sweep.split == "test"].assign(chosen_as="").to_csv(tmp_path / "sweep.csv", index=False)
    shutil.copy(synthetic_run / "manifest.json", tmp_path)
    found = bare_page(tmp_path)
    assert "No recommendation" in found.text
    assert "picked on the test split would be a wrong result" in found.text


def test_words_of_the_run_cannot_become_markup(synthetic_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(synthetic_run, tmp_path / "run"))
    manifest = run / "manifest.json"
    manifest.write_text(manifest.read_text().replace("Imaginary 3000", "<b>CPU</b>"))
    assert "<b>CPU</b>" in bare_page(run).text

"""Reports: figures, tables and one page, from the files of a run directory alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def _quiet(line: str) -> None:
    """Say nothing."""


def write_report(run: Path, out: Path | None = None, say: Callable[[str], None] = _quiet) -> Path:
    """Write the report of ``run`` to ``out`` (default ``run/report``); the path of its page.

    The same files give the same bytes. A part that the run does not have is named on the page.

    Raises:
        ExitbenchError: ``run`` is no run directory, one of its files is wrong, or ``out`` cannot
            be written.
    """
    from ..harness.files import write_text
    from .figures import draw_figures
    from .page import page
    from .reading import read_run
    from .tables import all_tables, write_tables
    from .view import look

    folder = Path(out) if out is not None else Path(run) / "report"
    view = look(read_run(Path(run)))
    for words in view.run.missing.values():
        say(f"report: {words}")
    pictures = draw_figures(view, folder / "figures", say)
    tables = all_tables(view)
    write_tables(tables, folder / "tables")
    target = folder / "index.html"
    write_text(target, page(view, pictures, tables))
    return target


__all__ = ["write_report"]

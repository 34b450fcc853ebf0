"""The documents stay true: every command in them parses, every link leads somewhere."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest
from exitbench.harness.cli import parse
from exitbench.harness.errors import ExitbenchError

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def documents(checkout: Path) -> list[Path]:
    return [*checkout.glob("*.md"), *checkout.glob("docs/**/*.md")]


def commands(text: str) -> list[str]:
    """The exitbench command lines in the shell blocks of a document."""
    found = []
    for language, block in FENCE.findall(text):
        if language not in ("sh", "shell", "bash", "console"):
            continue
        lines = re.sub(r"\\\n\s*", " ", block).splitlines()
        found += [line.removeprefix("$ ").strip() for line in lines]
    return [line for line in found if line.startswith("exitbench ") and "..." not in line]


def anchor(heading: str) -> str:
    words = re.sub(r"[^\w\- ]", "", heading.strip().lower())
    return words.replace(" ", "-")


def test_every_documented_command_parses(checkout: Path) -> None:
    seen = 0
    for document in documents(checkout):
        for line in commands(document.read_text(encoding="utf-8")):
            arguments = shlex.split(line, comments=True)[1:]
            if arguments and not {"--help", "--version", "--config"} & set(arguments):
                try:
                    parse(arguments)
                except (SystemExit, ExitbenchError) as error:
                    pytest.fail(f"{document.relative_to(checkout)}: {line}\n{error}")
                seen += 1
    assert seen > 20


def test_every_relative_link_leads_somewhere(checkout: Path) -> None:
    broken = []
    for document in documents(checkout):
        for target in LINK.findall(document.read_text(encoding="utf-8")):
            if re.match(r"[a-z]+:", target):
                continue
            path, _, fragment = target.partition("#")
            file = document.parent / path if path else document
            if not file.exists():
                broken.append(f"{document.relative_to(checkout)}: {target}")
            elif fragment and file.suffix == ".md":
                text = file.read_text(encoding="utf-8")
                if fragment not in map(anchor, re.findall(r"^#+ (.*)$", text, re.MULTILINE)):
                    broken.append(f"{document.relative_to(checkout)}: {target}")
    assert not broken, "\n".join(broken)


def rows_of_modules(checkout: Path) -> dict[str, int]:
    """Modules of ``harness/`` by the row of the design's table, from the bottom up."""
    text = (checkout / "docs/design.md").read_text(encoding="utf-8")
    table = text.split("| job | modules |")[1].split("\n\n")[0].splitlines()[2:]
    names = [re.findall(r"`([a-z_0-9]+)/?`", line.split("|")[2]) for line in table]
    known = {path.stem for path in (checkout / "harness").iterdir()}
    # Commands are named in brackets behind their module: `live` (`run`).
    return {name: row for row, found in enumerate(names) for name in found if name in known}


def test_modules_import_from_their_own_row_of_the_design_and_from_rows_above(
    checkout: Path,
) -> None:
    rows = rows_of_modules(checkout)
    folder = checkout / "harness"
    modules = {path.stem for path in folder.iterdir() if not path.name.startswith(("__", "py."))}
    assert modules - set(rows) == set(), "not in docs/design.md"
    wrong = []
    for file in folder.rglob("*.py"):
        parts = file.relative_to(folder).with_suffix("").parts
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level == len(parts):
                names = [node.module] if node.module else [alias.name for alias in node.names]
                tops = {name.split(".")[0] for name in names} & set(rows)
                wrong += [(parts, top) for top in tops if rows[top] > rows.get(parts[0], 99)]
    assert wrong == []

"""What is shipped is what is here, and every folder imports only what it may."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

PACKAGES = ("harness", "models", "profiles", "reports")
LEAVES = {"exitbench.harness.errors", "exitbench.harness.files"}
OWN_FOLDER_ONLY = ("models", "profiles", "reports")
WITHOUT_TORCH = ("profiles", "reports")
UNPICKLING = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


@pytest.fixture(scope="module")
def project(checkout: Path) -> dict[str, Any]:
    """The content of pyproject.toml."""
    return tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))


def sources(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def module_name(checkout: Path, source: Path) -> str:
    return ".".join(("exitbench", *source.relative_to(checkout).with_suffix("").parts))


def imported(checkout: Path, source: Path) -> Iterator[str]:
    """Absolute names of what ``source`` imports, each ``from m import n`` as ``m.n``."""
    package = module_name(checkout, source).rsplit(".", 1)[0].split(".")
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = [*above, *([node.module] if node.module else [])]
            yield from (".".join((*base, alias.name)) for alias in node.names)


def used_names(source: Path) -> set[str]:
    """Every dotted name that occurs in ``source`` as code."""
    tree = ast.parse(source.read_text(encoding="utf-8"))
    return {ast.unparse(n) for n in ast.walk(tree) if isinstance(n, (ast.Attribute, ast.Name))}


def all_imports(checkout: Path, *folders: str) -> list[tuple[str, str]]:
    """(file, imported name) of every import in ``folders``."""
    return [
        (str(source.relative_to(checkout)), name)
        for folder in folders
        for source in sources(checkout / folder)
        for name in imported(checkout, source)
    ]


def test_every_folder_with_code_is_a_listed_package(
    checkout: Path, project: dict[str, Any]
) -> None:
    folders = {source.parent for name in PACKAGES for source in sources(checkout / name)}
    names = {".".join(("exitbench", *folder.relative_to(checkout).parts)) for folder in folders}

    assert names == set(project["tool"]["setuptools"]["packages"])


def test_every_package_folder_has_an_init_file(checkout: Path) -> None:
    folders = {source.parent for name in PACKAGES for source in sources(checkout / name)}

    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_package_dir_maps_every_top_package_to_its_folder(project: dict[str, Any]) -> None:
    expected = {f"exitbench.{name}": name for name in PACKAGES}

    assert project["tool"]["setuptools"]["package-dir"] == expected


def test_every_data_file_is_covered_by_package_data(
    checkout: Path, project: dict[str, Any]
) -> None:
    patterns: dict[str, list[str]] = project["tool"]["setuptools"]["package-data"]
    forgotten = [
        path.relative_to(checkout)
        for name in PACKAGES
        for path in (checkout / name).rglob("*")
        if path.is_file() and path.suffix not in {".py", ".pyc"}
        if not any(
            fnmatch(path.name, pattern)
            for pattern in patterns.get(
                ".".join(("exitbench", *path.parent.relative_to(checkout).parts)), []
            )
        )
    ]

    assert forgotten == []


@pytest.mark.parametrize("name", PACKAGES)
def test_every_top_package_says_that_it_is_typed(checkout: Path, name: str) -> None:
    assert (checkout / name / "py.typed").is_file()


def test_the_installed_wheel_holds_every_file_of_the_checkout(checkout: Path) -> None:
    files = metadata.files("exitbench") or []
    installed = {str(file) for file in files if file.parts[0] == "exitbench"}
    if not installed:
        pytest.skip("exitbench is installed in editable mode")
    expected = {
        f"exitbench/{path.relative_to(checkout).as_posix()}"
        for name in PACKAGES
        for path in (checkout / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }

    assert {name for name in installed if "__pycache__" not in name} == expected


def test_the_command_points_at_an_existing_module(
    checkout: Path, project: dict[str, Any]
) -> None:
    module, _, function = project["project"]["scripts"]["exitbench"].partition(":")
    source = checkout.joinpath(*module.split(".")[1:]).with_suffix(".py")
    tree = ast.parse(source.read_text(encoding="utf-8"))

    assert function in {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}


def test_every_imported_distribution_is_declared(
    checkout: Path, project: dict[str, Any]
) -> None:
    # Extras that the code looks for; those of developers are not for code that is shipped.
    extras = project["project"]["optional-dependencies"]
    wanted = [text for name, texts in extras.items() if name != "dev" for text in texts]
    wanted += project["project"]["dependencies"]
    declared = {requirement_name(text) for text in wanted}
    providers = metadata.packages_distributions()
    undeclared = {
        (where, top)
        for where, name in all_imports(checkout, *PACKAGES)
        if (top := name.split(".")[0]) not in {*sys.stdlib_module_names, "exitbench"}
        if not declared & {normalised(dist) for dist in providers.get(top, [top])}
    }

    assert undeclared == set()


def requirement_name(requirement: str) -> str:
    return normalised(requirement.split(">=")[0].split("[")[0].strip())


def normalised(distribution: str) -> str:
    return distribution.lower().replace("_", "-").replace(".", "-")


@pytest.mark.parametrize("folder", OWN_FOLDER_ONLY)
def test_a_folder_imports_of_ours_only_itself_and_the_leaves(checkout: Path, folder: str) -> None:
    foreign = [
        (where, name)
        for where, name in all_imports(checkout, folder)
        if name.split(".")[0] == "exitbench" and name.split(".")[1] != folder
        if not any(name == leaf or name.startswith(f"{leaf}.") for leaf in LEAVES)
    ]

    assert foreign == []


@pytest.mark.parametrize("leaf", sorted(LEAVES))
def test_a_leaf_module_imports_of_ours_only_leaves(checkout: Path, leaf: str) -> None:
    source = checkout.joinpath(*leaf.split(".")[1:]).with_suffix(".py")
    ours = [name for name in imported(checkout, source) if name.startswith("exitbench.")]

    assert [name for name in ours if name.rsplit(".", 1)[0] not in LEAVES] == []


def test_the_package_that_holds_the_leaves_imports_nothing(checkout: Path) -> None:
    # Importing harness.errors runs harness/__init__.py first.
    names = set(imported(checkout, checkout / "harness" / "__init__.py"))

    assert names <= {"__future__.annotations"}


@pytest.mark.parametrize("folder", WITHOUT_TORCH)
def test_a_folder_does_without_torch(checkout: Path, folder: str) -> None:
    tops = {name.split(".")[0] for _, name in all_imports(checkout, folder)}

    assert tops.isdisjoint({"torch", "torchvision"})


def test_siblings_are_imported_relatively(checkout: Path) -> None:
    absolute = [
        source.relative_to(checkout)
        for folder in PACKAGES
        for source in sources(checkout / folder)
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom)
        if node.level == 0 and (node.module or "").split(".")[0] == "exitbench"
    ]

    assert absolute == []


def test_nothing_can_unpickle(checkout: Path) -> None:
    modules = [
        (where, name)
        for where, name in all_imports(checkout, *PACKAGES)
        if name.split(".")[0] in UNPICKLING or name == "torch.load"
    ]
    calls = [
        source.relative_to(checkout)
        for folder in PACKAGES
        for source in sources(checkout / folder)
        if "torch.load" in used_names(source)
    ]

    assert modules == []
    assert calls == []


def test_arrays_are_never_read_with_pickle_allowed(checkout: Path) -> None:
    allowing = [
        source.relative_to(checkout)
        for folder in PACKAGES
        for source in sources(checkout / folder)
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8")))
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle"
        if not (isinstance(node.value, ast.Constant) and node.value.value is False)
    ]

    assert allowing == []


def test_durations_never_come_from_the_wall_clock(checkout: Path) -> None:
    imports = [(w, n) for w, n in all_imports(checkout, *PACKAGES) if n == "time.time"]
    uses = [
        source.relative_to(checkout)
        for folder in PACKAGES
        for source in sources(checkout / folder)
        if used_names(source) & {"time.time", "time.time_ns"}
    ]

    assert imports == []
    assert uses == []


def test_test_files_have_unique_names(checkout: Path) -> None:
    # Without __init__.py files pytest imports tests by their base name.
    names = [path.name for path in (checkout / "tests").rglob("test_*.py")]

    assert sorted(names) == sorted(set(names))


def test_the_license_is_the_apache_license_with_its_appendix(checkout: Path) -> None:
    text = (checkout / "LICENSE").read_text(encoding="utf-8")

    assert "Version 2.0, January 2004" in text
    assert "APPENDIX: How to apply the Apache License to your work." in text


def test_changelog_and_citation_name_the_version(checkout: Path, project: dict[str, Any]) -> None:
    version = project["project"]["version"]

    assert f"\n## [{version}]" in (checkout / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\nversion: {version}\n" in (checkout / "CITATION.cff").read_text(encoding="utf-8")

"""The tables of the reference are those of the code, and the security model's tests exist."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

import mesh_middleware
from mesh_middleware import cli, errors
from mesh_middleware.config import VARIABLES
from mesh_middleware.server.exits import ExitCode
from tests.docs_runner import blocks

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"

LOGGERS = {"mesh_middleware.decisions"}


def cells(page: str, column: int) -> list[str]:
    """One column of every table row on a page, header and rule left out."""
    rows = [line.strip("| ").split("|") for line in (DOCS / page).read_text().splitlines()
            if line.startswith("|") and not line.startswith("|-")]  # fmt: skip
    return [row[column].strip() for row in rows if len(row) > column]


def codes(texts: list[str]) -> set[str]:
    return {name for text in texts for name in re.findall(r"`([^`]+)`", text)}


def test_every_variable_is_documented_with_its_field() -> None:
    documented = dict(zip(cells("reference/settings.md", 0), cells("reference/settings.md", 1),
                          strict=True))  # fmt: skip
    for variable, (field, _) in VARIABLES.items():
        assert documented[f"`{variable}`"] == f"`{field}`"


def test_every_exit_code_is_documented() -> None:
    documented = set(zip(cells("reference/cli.md", 0), cells("reference/cli.md", 1), strict=True))
    assert {(str(int(code)), code.name) for code in ExitCode} <= documented


def test_every_command_is_documented() -> None:
    assert set(cli.COMMANDS) <= codes(cells("reference/cli.md", 0))


def test_every_error_is_documented() -> None:
    tree = ast.parse(Path(errors.__file__).read_text())
    classes = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    assert codes(cells("reference/errors.md", 0)) == classes - {"MeshError"}


def public() -> set[str]:
    """``module.name`` of everything on the page of public names."""
    page, modules = (DOCS / "reference/api.md").read_text().split("## From its modules")
    rows = (line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| `"))
    found = {f"mesh_middleware.{name}" for row in rows for name in codes(row[:1])}
    for line in modules.splitlines():
        if line.startswith("| `"):
            module, names, _ = line.strip("| ").split(" | ")
            found |= {f"{module.strip('`')}.{name}" for name in codes([names])}
    return found


def test_every_public_name_is_documented() -> None:
    ours = {name for name in public() if name.count(".") == 1}
    assert ours == {f"mesh_middleware.{name}" for name in mesh_middleware.__all__}


def test_every_documented_name_is_there() -> None:
    for path in public():
        module, _, name = path.rpartition(".")
        assert getattr(importlib.import_module(module), name).__doc__, path


def test_whatever_an_example_imports_is_public() -> None:
    known = public()
    for page in [ROOT / "README.md", *DOCS.rglob("*.md")]:
        for block in blocks(page.read_text()):
            if block.language == "python":
                assert imported(block.body) <= known, f"{page.name}:{block.line}"


def imported(code: str) -> set[str]:
    """``module.name`` for each name that `code` imports from us."""
    return {
        f"{node.module}.{alias.name}"
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mesh_middleware")
        for alias in node.names
    }


def test_whatever_a_page_names_with_its_module_is_public() -> None:
    """In prose and in settings of others, such as gunicorn's `worker_class`."""
    known = public()
    modules = {path.rpartition(".")[0] for path in known}
    for page in [ROOT / "README.md", ROOT / "CHANGELOG.md", *DOCS.rglob("*.md")]:
        for path in re.findall(r"\bmesh_middleware(?:\.[a-z_]+)*\.[A-Za-z]\w*", page.read_text()):
            assert path in known | modules | LOGGERS, f"{page.name}: {path}"


@pytest.mark.parametrize(
    ("page", "least"), [("design/security-model.md", 20), ("reference/decisions.md", 10)]
)
def test_the_tests_that_a_page_names_exist(page: str, least: int) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (DOCS / page).read_text())
    assert len(named) >= least
    for file, test in named:
        tree = ast.parse((ROOT / file).read_text())
        functions = {
            node.name
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        assert test in functions, f"{file}::{test}"

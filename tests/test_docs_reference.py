"""The tables of the reference are those of the code, and the security model's tests exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import mesh_middleware
from mesh_middleware import cli, errors
from mesh_middleware.config import VARIABLES
from mesh_middleware.server.exits import ExitCode

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


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


def test_every_public_name_is_documented() -> None:
    documented = codes(cells("reference/api.md", 0))
    assert set(mesh_middleware.__all__) <= documented


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

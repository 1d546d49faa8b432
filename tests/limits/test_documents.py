"""Every guard and every limit that the documents name has the test that they name."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ["docs/design/security-model.md", "docs/reference/limits.md"]
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def rows(page: str) -> list[str]:
    """The rows of the tables that have a column for tests."""
    found, within = [], False
    for line in (ROOT / page).read_text().splitlines():
        if not line.startswith("|"):
            within = False
        elif line.rstrip(" |").endswith("test"):
            within = True
        elif within and not line.startswith("|---"):
            found.append(line)
    return found


@pytest.mark.parametrize("page", PAGES)
def test_every_row_names_a_test_that_exists(page: str) -> None:
    assert len(rows(page)) > 10
    for row in rows(page):
        named = TEST.findall(row)
        assert named, f"{page}: no test in {row}"
        for file, name in named:
            defined = {
                node.name
                for node in ast.walk(ast.parse((ROOT / file).read_text()))
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            }
            assert name in defined, f"{page}: {file} has no {name}"

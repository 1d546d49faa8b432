"""The long command runs every test that takes as many inputs as one likes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FUZZING = ROOT / "tests" / "fuzzing.py"


def files_with(pattern: str) -> list[str]:
    own = Path(__file__).resolve()
    return [
        path.relative_to(ROOT).as_posix()
        for path in sorted(ROOT.joinpath("tests").rglob("*.py"))
        if path not in (own, FUZZING) and re.search(pattern, path.read_text())
    ]


@pytest.mark.parametrize("file", files_with(r"@given\(|from tests\.fuzzing import"))
def test_the_long_command_runs_it(file: str) -> None:
    makefile = ROOT.joinpath("Makefile").read_text().replace("\\\n", " ")
    fuzzed = re.findall(r"^FUZZED := (.*)", makefile, re.MULTILINE)[0].split()
    assert any(file == each or file.startswith(f"{each}/") for each in fuzzed)


def test_nobody_else_says_how_many() -> None:
    assert files_with(r"MESH_FUZZ_EXAMPLES\"|@settings\(|max_examples") == []

"""What ``make floor`` installs."""

from __future__ import annotations

import pytest

from tests.floor import PYPROJECT, floors

TEXT = """
[project]
name = "ours"
dependencies = ["click>=8.1.7", "uvicorn[standard]>=0.50"]
[project.optional-dependencies]
wsgi = ["a2wsgi>=1.10.10", "click>=8.1.7"]
flask = ["flask>=3.0", "ours[wsgi]"]
test = ["pytest"]
"""


def test_each_requirement_of_a_user_at_its_oldest() -> None:
    assert floors(TEXT) == ["a2wsgi==1.10.10", "click==8.1.7", "flask==3.0", "uvicorn==0.50"]


@pytest.mark.parametrize("requirement", ["click", "click>8", "click>=8,<9", "click==8.1"])
def test_a_requirement_without_a_floor_is_named(requirement: str) -> None:
    with pytest.raises(ValueError, match=f"'{requirement}': write name>=version"):
        floors(TEXT.replace("click>=8.1.7", requirement))


def test_every_requirement_of_ours_has_a_floor() -> None:
    assert len(floors(PYPROJECT.read_text())) > 10

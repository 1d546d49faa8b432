"""The oldest versions that pyproject.toml allows, as constraints for pip: see ``make floor``."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"

OURS = frozenset({"test", "dev", "envoy"})
"""Extras for work on the package: no user is promised a version of theirs."""


def floors(text: str) -> list[str]:
    """``name==version`` for each requirement of a user in `text`, the content of a pyproject.toml.

    ValueError names a requirement that has no floor.
    """
    project = tomllib.loads(text)["project"]
    extras = project.get("optional-dependencies", {})
    wanted = [*project["dependencies"]]
    for extra, requirements in extras.items():
        wanted += [] if extra in OURS else requirements
    return sorted({_floor(line) for line in wanted if not line.startswith(f"{project['name']}[")})


def _floor(requirement: str) -> str:
    found = re.fullmatch(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?>=([0-9.]+)", requirement)
    if found is None:
        raise ValueError(f"{requirement!r}: write name>=version")
    return f"{found[1]}=={found[2]}"


if __name__ == "__main__":
    print("\n".join(floors(PYPROJECT.read_text())))

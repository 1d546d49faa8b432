"""The names that `mesh_middleware` promises, and that importing it stays cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mesh_middleware


@pytest.mark.parametrize("name", mesh_middleware.__all__)
def test_every_public_name_is_there(name: str) -> None:
    value = getattr(mesh_middleware, name)
    assert value.__module__.startswith("mesh_middleware.")
    assert value.__doc__
    assert name in dir(mesh_middleware)


def test_type_checkers_and_the_interpreter_see_the_same_names() -> None:
    """Each as an export: ``import x as x``, and from the module that it is in for both."""
    tree = ast.parse(Path(mesh_middleware.__file__).read_text())
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in guarded.body if isinstance(node, ast.ImportFrom)]
    homes: dict[str, list[str]] = {}
    for node in imports:
        assert all(alias.asname == alias.name for alias in node.names)
        home = (node.module or "").removeprefix("mesh_middleware.")
        homes.setdefault(home, []).extend(alias.name for alias in node.names)
    assert len(imports) == len(guarded.body)
    assert {home: sorted(names) for home, names in homes.items()} == {
        home: sorted(names) for home, names in mesh_middleware._HOMES.items()
    }


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        _ = mesh_middleware.no_such_name


def test_importing_the_package_loads_no_library() -> None:
    code = (
        "import sys, mesh_middleware\n"
        "print(sorted({'httpx', 'uvicorn', 'ssl', 'cryptography', 're2'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

"""The import rule, over the syntax tree: imports go down the layers, siblings never meet."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mesh_middleware"

# Layer by module prefix, most specific first. A module may import its own layer's folder and
# every lower layer; two prefixes with the same number are siblings and never meet.
LAYERS: dict[str, int] = {
    "errors": 0,
    "_types": 0,
    "_documents": 1,
    "_fields": 1,
    "_subscribers": 1,
    "_text": 1,
    "policy": 1,
    "tls": 2,
    "state": 3,
    "config": 4,
    "consul": 5,
    "runtime": 6,
    "observe": 7,
    "middleware": 8,
    "upstream": 8,
    "fastapi": 9,
    "flask": 9,
    "_listening": 9,
    "devagent": 10,
    "server": 10,
    "checkfile": 11,
    "testing": 12,
    "commands": 12,
    "cli": 13,
    "__main__": 14,
    "": 14,
}

FORBIDDEN = {
    "policy": {"ssl", "socket", "httpx", "logging", "time", "os", "asyncio", "cryptography"},
    "tls": {"socketserver", "httpx", "urllib.request", "asyncio"},
    "consul": {"starlette", "uvicorn", "fastapi"},
    "config": {"starlette", "uvicorn", "httpx"},
    "middleware": {"uvicorn", "httpx", "mesh_middleware.consul"},
    "observe": {"uvicorn", "httpx"},
}
ONLY_IN = {"re2": {"policy/match.py"}, "uvicorn": {"server", "devagent"}}


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        relative = path.relative_to(PACKAGE)
        name = ".".join(relative.with_suffix("").parts)
        yield name.removesuffix(".__init__").removesuffix("__init__"), path


def layer_name(module: str) -> str:
    """The key of LAYERS that a module of the package belongs to."""
    for prefix in sorted(LAYERS, key=len, reverse=True):
        if module == prefix or module.startswith(f"{prefix}."):
            return prefix
    raise AssertionError(f"{module} belongs to no layer: add it to LAYERS")


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in the file; `from x import y` gives x and x.y."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


ALL = [pytest.param(name, path, id=name or "package") for name, path in modules()]


@pytest.mark.parametrize(("name", "path"), ALL)
def test_imports_go_down(name: str, path: Path) -> None:
    own = layer_name(name)
    for imported in imports(path):
        if not imported.startswith("mesh_middleware."):
            continue
        other = layer_name(imported.removeprefix("mesh_middleware."))
        if other == own:
            continue
        assert LAYERS[other] < LAYERS[own], f"{name} ({own}) imports {imported} ({other})"


@pytest.mark.parametrize(("name", "path"), ALL)
def test_layers_stay_clear_of_what_is_not_theirs(name: str, path: Path) -> None:
    own = layer_name(name)
    relative = path.relative_to(PACKAGE).as_posix()
    for imported in imports(path):
        for banned in FORBIDDEN.get(own, ()):
            assert imported != banned, (name, imported)
            assert not imported.startswith(f"{banned}."), (name, imported)
        for library, places in ONLY_IN.items():
            if imported == library or imported.startswith(f"{library}."):
                assert any(relative == p or relative.startswith(f"{p}/") for p in places), (
                    name,
                    imported,
                )


def test_the_core_never_waits() -> None:
    for path in (PACKAGE / "policy").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            assert not isinstance(node, ast.Await | ast.AsyncFunctionDef | ast.AsyncWith), path


def test_folder_inits_only_export() -> None:
    for path in PACKAGE.rglob("__init__.py"):
        for node in ast.parse(path.read_text()).body:
            docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            exports = isinstance(node, ast.ImportFrom | ast.Assign | ast.AnnAssign)
            lazy = path.parent == PACKAGE and (
                (isinstance(node, ast.FunctionDef) and node.name == "__dir__")
                or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
            )
            assert docstring or exports or lazy, f"{path} has logic: {ast.unparse(node)[:80]}"


@pytest.mark.parametrize(
    ("module", "layer"),
    [("policy.engine", "policy"), ("consul", "consul"), ("", ""), ("state", "state")],
)
def test_a_module_finds_its_layer(module: str, layer: str) -> None:
    assert layer_name(module) == layer

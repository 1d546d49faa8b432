"""No target leads around a rule: adversarial targets, real servers, real routers, in a table.

Each server turns the targets into scopes (`tests.routers.wire`); each scope is given to each
application (`tests.routers.apps`) behind the middleware, under each policy
(`tests.routers.asking`). Redirects are followed.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from mesh_middleware.policy.request import EscapedSlashes, Normalization
from tests.routers.apps import CASES, Case, folder_of_files
from tests.routers.asking import POLICIES, Scope, distinct, walk
from tests.routers.targets import TEMPLATES, targets
from tests.routers.wire import SERVERS, captured, captured_websockets

PREFIXES = ("", "/sub", "/static", "/api")


@pytest.fixture(scope="module")
def http_scopes() -> dict[str, list[Scope]]:
    """What each server made of the targets, by prefix; with and without a root path of its own."""
    found: dict[str, list[Scope]] = {}
    for prefix in PREFIXES:
        every: list[Scope] = []
        for server in SERVERS:
            made = captured(server, targets(prefix))
            assert len(made) > 200, (server, prefix, len(made))
            every += made
        found[prefix] = distinct(every)
    rooted = [
        scope for server in SERVERS for scope in captured(server, targets(""), root_path="/api")
    ]
    found["rooted"] = distinct(rooted)
    return found


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of_files(tmp_path_factory.mktemp("static"))


def scopes_for(case: Case, http_scopes: dict[str, list[Scope]]) -> list[Scope]:
    """Those for the application's prefix; where it has none, those with root paths too."""
    if case.prefix:
        return http_scopes[case.prefix]
    return http_scopes[""] + http_scopes["/api"][::2] + http_scopes["rooted"]


def test_the_table_is_wide() -> None:
    assert len(TEMPLATES) >= 300
    assert len(POLICIES) >= 9
    assert len(CASES) >= 13


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_no_handler_runs_that_its_path_is_refused_for(
    http_scopes: dict[str, list[Scope]], files: Path, case: Case
) -> None:
    met: Counter[str] = Counter()
    found = asyncio.run(walk(case.over(files), scopes_for(case, http_scopes), met))
    print(case.name, dict(met))
    assert not found, "\n".join(found)
    assert met["must not run: refused"] > 1000
    assert met["may run: passed"] > 20


NORMALIZATIONS = [
    Normalization(path=path, merge_slashes=merge, escaped_slashes=escaped)
    for path in (True, False)
    for merge in (True, False)
    for escaped in EscapedSlashes
][1:]


@pytest.mark.parametrize("number", range(len(NORMALIZATIONS)))
def test_no_setting_of_the_mesh_opens_a_way(
    http_scopes: dict[str, list[Scope]], files: Path, number: int
) -> None:
    """RequestNormalization changes what Envoy's reading is; the other readings stay."""
    met: Counter[str] = Counter()
    normalization = NORMALIZATIONS[number]
    for case in CASES[number % 3 :: 3]:
        scopes = scopes_for(case, http_scopes)[number % 5 :: 5]
        walking = walk(case.over(files), scopes, met, normalization=normalization)
        found = asyncio.run(walking)
        assert not found, "\n".join([str(normalization), *found])
    assert met["must not run: refused"] > 500


@pytest.mark.parametrize(
    ("http", "ws"),
    [("h11", "websockets"), ("httptools", "wsproto"), ("zttp", "websockets-sansio")],
)
@pytest.mark.filterwarnings("ignore:remove second argument:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*is deprecated:uvicorn.config.UvicornDeprecationWarning")
def test_no_websocket_handler_runs_that_its_path_is_refused_for(http: str, ws: str) -> None:
    met: Counter[str] = Counter()
    for prefix in ("", "/sub"):
        scopes = distinct(captured_websockets(http, ws, targets(prefix)[::2]))
        assert len(scopes) > 100
        assert {scope["type"] for scope in scopes} == {"websocket"}
        for case in (case for case in CASES if case.prefix == prefix and case.websockets):
            found = asyncio.run(walk(case, scopes, met))
            assert not found, "\n".join(found)
    assert met["must not run: refused"] > 1000
    assert met["may run: passed"] > 20

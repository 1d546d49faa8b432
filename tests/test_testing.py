"""The helpers for users' tests: callers without certificates, rules without an agent."""

from __future__ import annotations

import asyncio
import contextlib
import doctest
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from mesh_middleware import testing
from mesh_middleware.errors import SpiffeIDError
from mesh_middleware.middleware import EXTENSION, MeshMiddleware, peer_identity
from mesh_middleware.policy.intentions import Action, Intention
from mesh_middleware.state import sources
from mesh_middleware.testing import as_service, expectations, mesh_for, rules_of, static_mesh

RULES = [
    Intention("web", "api", Action.ALLOW),
    Intention("web", "api", Action.DENY, source_namespace="stage"),
]


async def whoami(request: Request) -> JSONResponse:
    return JSONResponse(
        {
            "caller": str(peer_identity(request.scope)),
            "state": getattr(request.state, "greeting", None),
            "agent": request.headers["user-agent"],
            "cookie": request.cookies.get("c"),
        }
    )


def make_app(**options: Any) -> Starlette:
    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, str]]:
        yield {"greeting": "hi"}

    app = Starlette(routes=[Route("/", whoami)], lifespan=lifespan)
    app.add_middleware(MeshMiddleware, **(options or {"mesh": static_mesh("api", RULES)}))
    return app


def test_the_examples_of_the_documentation() -> None:
    result = doctest.testmod(testing)
    assert result.attempted
    assert not result.failed


def test_a_client_calls_as_a_service_and_the_given_one_stays_nobody() -> None:
    client = TestClient(make_app())
    assert as_service(client, "web").get("/").json()["caller"].endswith("/svc/web")
    assert as_service(client, "web", namespace="stage").get("/").status_code == 403
    assert client.get("/").json()["reason"] == "no_identity"


def test_the_last_service_counts() -> None:
    client = as_service(as_service(TestClient(make_app()), "web"), "batch")
    assert client.get("/").json()["reason"] == "default_deny"
    assert as_service(client, "web").get("/").status_code == 200


def test_a_foreign_trust_domain_is_refused() -> None:
    client = as_service(TestClient(make_app()), "web", trust_domain="other.consul")
    assert client.get("/").json()["reason"] == "foreign_trust_domain"


def test_the_clients_settings_and_lifespan_are_shared() -> None:
    app = make_app()
    with TestClient(
        app,
        base_url="http://testserver/",
        headers={"user-agent": "mine"},
        cookies={"c": "1"},
        raise_server_exceptions=False,
    ) as client:
        body = as_service(client, "web").get("/").json()
    assert (body["agent"], body["cookie"], body["state"]) == ("mine", "1", "hi")


def test_exceptions_of_the_application_are_treated_as_by_the_given_client() -> None:
    async def broken(request: Request) -> None:
        raise RuntimeError("broken")

    app = Starlette(routes=[Route("/", broken)])
    app.add_middleware(MeshMiddleware, mesh=static_mesh("api", RULES))
    with pytest.raises(RuntimeError):
        as_service(TestClient(app), "web").get("/")
    silent = TestClient(app, raise_server_exceptions=False)
    assert as_service(silent, "web").get("/").status_code == 500


async def _get(app: Any) -> int:
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://api") as client:
        return (await client.get("/")).status_code


def test_an_application_gives_an_application_for_any_client() -> None:
    app = make_app()
    assert asyncio.run(_get(as_service(app, "web"))) == 200
    assert asyncio.run(_get(app)) == 403


def test_the_lifespan_passes_through() -> None:
    with TestClient(as_service(make_app(), "web")) as client:
        assert client.get("/").json()["state"] == "hi"


def test_headers_cannot_do_what_the_helper_does() -> None:
    client = TestClient(make_app())
    for name in (EXTENSION, "mesh_middleware.peer", "x-mesh-service", "x-forwarded-client-cert"):
        assert client.get("/", headers={name: "web"}).status_code == 403


def test_rules_are_found_by_name_for_as_long_as_they_are_wanted() -> None:
    client = as_service(TestClient(make_app(service="api")), "web")
    with mesh_for("api", RULES) as mesh:
        assert sources.get("api") is mesh
        assert client.get("/").status_code == 200
    with mesh_for("api", default_action=Action.ALLOW):
        assert as_service(client, "batch").get("/").status_code == 200
    assert sources.get("api") is None


def test_rules_come_before_a_manager_and_leave_it_in_its_place() -> None:
    with mesh_for("api") as outer:
        with mesh_for("api") as inner:
            assert sources.get("api") is inner
        assert sources.get("api") is outer
    assert sources.get("api") is None


ROW = {"SourceName": "web", "DestinationName": "api", "Action": "allow"}
ENTRY = {
    "Kind": "service-intentions",
    "Name": "api",
    "Sources": [{"Name": "web", "Action": "allow"}],
}


@pytest.mark.parametrize(
    "given",
    [[Intention("web", "api", Action.ALLOW)], [ROW], ROW, ENTRY, [ENTRY], {"intentions": [ROW]}],
)
def test_rules_may_be_values_rows_or_entries(given: Any, tmp_path: Path) -> None:
    assert rules_of(given) == [Intention("web", "api", Action.ALLOW)]
    if not isinstance(given, list) or given[0] in (ROW, ENTRY):
        file = tmp_path / "intentions.json"
        file.write_text(json.dumps(given))
        assert rules_of(str(file)) == rules_of(file) == [Intention("web", "api", Action.ALLOW)]


def test_an_impossible_service_is_refused() -> None:
    with pytest.raises(SpiffeIDError):
        as_service(make_app(), "a/b")


DOCUMENT = """
default: deny
intentions: [{SourceName: web, DestinationName: api, Action: allow}]
requests:
  - {source: web, method: GET, path: /, expect: allow}
  - {source: batch, method: GET, path: /, expect: allow}
  - {source: batch, method: GET, path: /}
"""


def test_expectations_of_a_document_are_tests_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(DOCUMENT)
    held, failed = expectations(tmp_path / "rules.yaml")
    held.verify()
    assert str(held) == "web GET / allow"
    with pytest.raises(AssertionError, match=r"(?s)expected allow.*default_deny"):
        failed.verify()

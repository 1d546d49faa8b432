"""`Caller`: the calling service as a dependency, and what the OpenAPI document says of it."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import Depends, FastAPI, WebSocket
from fastapi.openapi.models import SecuritySchemeType
from fastapi.security import HTTPBearer
from starlette.testclient import TestClient

from mesh_middleware.fastapi import Caller
from mesh_middleware.middleware import MeshMiddleware
from mesh_middleware.policy.intentions import Action, Intention
from mesh_middleware.testing import as_service, static_mesh

RULES = [Intention("web", "api", Action.ALLOW)]


def make_app() -> FastAPI:
    app = FastAPI()

    @app.get("/hello")
    async def hello(caller: Caller) -> dict[str, Any]:
        return {"service": caller.service, "namespace": caller.namespace, "id": str(caller)}

    @app.get("/open")
    async def open_path() -> str:
        return "open"

    @app.websocket("/chat")
    async def chat(websocket: WebSocket, caller: Caller) -> None:
        await websocket.accept()
        await websocket.send_text(caller.service)
        await websocket.close()

    return app


@pytest.fixture
def app() -> FastAPI:
    app = make_app()
    app.add_middleware(MeshMiddleware, mesh=static_mesh("api", RULES), exempt_paths=["/hello"])
    return app


def test_a_route_gets_the_caller() -> None:
    app = make_app()
    app.add_middleware(MeshMiddleware, mesh=static_mesh("api", RULES))
    body = as_service(TestClient(app), "web").get("/hello").json()
    assert (body["service"], body["namespace"]) == ("web", "default")
    assert body["id"].endswith("/ns/default/dc/dc1/svc/web")


def test_a_websocket_gets_the_caller(app: FastAPI) -> None:
    with as_service(TestClient(app), "web").websocket_connect("/chat") as session:
        assert session.receive_text() == "web"


def test_without_a_caller_the_route_is_forbidden(app: FastAPI) -> None:
    exempt = TestClient(app).get("/hello")
    assert (exempt.status_code, exempt.json()) == (403, {"detail": "no mesh caller: no_identity"})
    assert TestClient(make_app()).get("/hello").status_code == 403


def test_the_document_says_mutual_tls(app: FastAPI) -> None:
    app.add_middleware(
        MeshMiddleware, mesh=static_mesh("api", RULES), exempt_paths=["/openapi.json"]
    )
    document = TestClient(app).get("/openapi.json").json()
    scheme = document["components"]["securitySchemes"]["mutualTLS"]
    assert scheme["type"] == "mutualTLS"
    assert set(scheme) == {"type", "description"}
    assert document["paths"]["/hello"]["get"]["security"] == [{"mutualTLS": []}]
    assert "security" not in document["paths"]["/open"]["get"]
    assert "parameters" not in document["paths"]["/hello"]["get"]


def test_the_scheme_stands_beside_others_and_changes_nothing_of_fastapi() -> None:
    app = make_app()

    @app.get("/both", dependencies=[Depends(HTTPBearer())])
    async def both(caller: Caller) -> str:
        return caller.service

    schemes = app.openapi()["components"]["securitySchemes"]
    assert {name: scheme["type"] for name, scheme in schemes.items()} == {
        "mutualTLS": "mutualTLS",
        "HTTPBearer": "http",
    }
    assert "mutualTLS" not in {member.value for member in SecuritySchemeType}

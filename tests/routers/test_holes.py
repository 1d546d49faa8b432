"""Ways around a deny that real routers once opened, each by itself."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from a2wsgi import WSGIMiddleware
from fastapi import FastAPI
from flask import Flask
from flask import request as flask_request
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.types import ASGIApp
from starlette.websockets import WebSocket

from mesh_middleware.middleware import MeshMiddleware
from mesh_middleware.policy.engine import compile_policy
from mesh_middleware.policy.intentions import Action, HTTPMatch, Intention, Permission
from mesh_middleware.policy.request import Normalization, Underscores
from mesh_middleware.state import StaticState
from mesh_middleware.testing import TRUST_DOMAIN, as_service, static_mesh


def guarded(app: ASGIApp, **denied: Any) -> TestClient:
    """`app` as "web" sees it when the mesh allows everything but what is `denied`."""
    rows = [Intention("web", "api", permissions=(Permission(Action.DENY, HTTPMatch(**denied)),))]
    mesh = static_mesh("api", rows, default_action=Action.ALLOW)
    return as_service(TestClient(MeshMiddleware(app, mesh=mesh)), "web")


async def secret(request: Request) -> PlainTextResponse:
    return PlainTextResponse("secret")


async def secret_socket(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.close()


def flask_app() -> Flask:
    app = Flask("routers")
    app.add_url_rule("/admin", "admin", lambda: "secret", methods=["GET", "DELETE"])
    return app


def test_the_dollar_of_a_route_overlooks_a_line_feed() -> None:
    app = Starlette(routes=[Route("/admin", secret), WebSocketRoute("/admin", secret_socket)])
    assert TestClient(app).get("/admin%0a").text == "secret"
    client = guarded(app, path_exact="/admin")
    assert client.get("/admin%0a").json()["reason"] == "malformed_target"
    with pytest.raises(WebSocketDenialResponse):
        client.websocket_connect("/admin%0a").__enter__()


def test_a_mount_that_overlooks_a_line_feed_routes_the_whole_path_again() -> None:
    """Starlette takes too little off: the inner router is asked for /sub/secret, not /secret."""
    app = Starlette(routes=[Mount("/sub", Starlette(routes=[Route("/sub/secret", secret)]))])
    assert TestClient(app).get("/sub/secret%0a").text == "secret"
    client = guarded(app, path_prefix="/sub/sub/")
    assert client.get("/sub/secret%0a").json()["reason"] == "malformed_target"


@pytest.mark.parametrize("method", ["delete", "Delete", "DELETe"])
def test_werkzeug_routes_methods_without_case(method: str) -> None:
    app = WSGIMiddleware(flask_app())
    client = guarded(app, path_prefix="/admin", methods=("DELETE",))
    # httpx writes methods in upper case, so the scope is changed below it.
    bare, client.app = client.app, None
    client = TestClient(lower(bare, method))
    assert client.get("/admin").json()["reason"] == "malformed_target"
    assert TestClient(lower(app, method)).get("/admin").text == "secret"


def lower(app: ASGIApp, method: str) -> ASGIApp:
    async def changed(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "method": method}, receive, send)

    return changed


def test_a2wsgi_takes_a_root_path_off_where_no_slash_follows() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # FastAPI deprecates root_path; applications have it
        app = FastAPI(root_path="/api")
    app.mount("/", WSGIMiddleware(flask_app()))
    assert TestClient(app).get("/apiadmin").text == "secret"
    client = guarded(app, path_prefix="/admin")
    for path in ("/admin", "/api/admin", "/apiadmin", "/api//admin", "/%61pi%61dmin"):
        assert client.get(path).json()["reason"] in {"permission_deny", "ambiguous_path"}, path


@pytest.mark.parametrize(
    ("action", "status", "seen"),
    [
        (Underscores.ALLOW, 200, "other"),  # as a sidecar does; rules look at x-team only
        (Underscores.DROP_HEADER, 200, ""),
        (Underscores.REJECT_REQUEST, 400, None),
    ],
)
def test_wsgi_folds_underscores_and_the_mesh_can_forbid_them(
    action: Underscores, status: int, seen: str | None
) -> None:
    flask = Flask("routers")
    flask.add_url_rule("/", "root", lambda: flask_request.headers.get("x-team", ""))
    policy = compile_policy(
        [Intention("web", "api", Action.ALLOW)],
        trust_domain=TRUST_DOMAIN,
        normalization=Normalization(underscores=action),
    )
    mesh = StaticState.from_policy(policy, service="api")
    client = TestClient(as_service(MeshMiddleware(WSGIMiddleware(flask), mesh=mesh), "web"))
    answer = client.get("/", headers={"x_team": "other"})
    assert answer.status_code == status
    assert seen is None or answer.text == seen

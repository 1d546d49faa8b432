"""The middleware inside of real frameworks: what is routed is what was authorised."""

from __future__ import annotations

import warnings
from typing import Any
from urllib.parse import unquote

import anyio
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from mesh_middleware.middleware import EXTENSION, MeshMiddleware, peer_identity
from mesh_middleware.policy.intentions import Action
from mesh_middleware.testing import as_service, static_mesh
from tests.middleware.calls import WEB_MAY, rule, web_permissions


async def hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"{peer_identity(request.scope).service} {request.url.path}")


async def chat(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text(peer_identity(websocket.scope).service)
    await websocket.close()


def starlette_app() -> Starlette:
    return Starlette(routes=[Route("/hello", hello), WebSocketRoute("/chat", chat)])


def fastapi_app() -> FastAPI:
    app = FastAPI()
    app.add_route("/hello", hello)
    app.websocket("/chat")(chat)
    return app


@pytest.fixture(params=[starlette_app, fastapi_app], ids=["starlette", "fastapi"])
def client(request: pytest.FixtureRequest) -> TestClient:
    app = request.param()
    app.add_middleware(MeshMiddleware, mesh=static_mesh("api", WEB_MAY))
    return TestClient(app)


def test_add_middleware_lets_through_and_refuses(client: TestClient) -> None:
    assert as_service(client, "web").get("/hello").text == "web /hello"
    refused = as_service(client, "batch").get("/hello")
    assert (refused.status_code, refused.headers["x-mesh-refused"]) == (403, "default_deny")
    assert client.get("/hello").json()["reason"] == "no_identity"


def test_an_answer_of_the_application_has_no_marker(client: TestClient) -> None:
    answer = as_service(client, "web").get("/nowhere")
    assert answer.status_code == 404
    assert "x-mesh-refused" not in answer.headers


def test_websockets_are_decided_before_they_are_accepted(client: TestClient) -> None:
    with as_service(client, "web").websocket_connect("/chat") as session:
        assert session.receive_text() == "web"
    with pytest.raises(WebSocketDenialResponse) as refused:
        as_service(client, "batch").websocket_connect("/chat").__enter__()
    assert refused.value.status_code == 403
    assert refused.value.json()["reason"] == "default_deny"


# -- mounts and root paths ---------------------------------------------------------------------

DENY_ADMIN = web_permissions(
    rule(Action.DENY, path_prefix="/admin"), rule(Action.ALLOW, path_prefix="/")
)
DENY_SUB_ADMIN = web_permissions(
    rule(Action.DENY, path_prefix="/sub/admin"), rule(Action.ALLOW, path_prefix="/sub")
)


async def admin(request: Request) -> PlainTextResponse:
    return PlainTextResponse("admin")


async def other(request: Request) -> PlainTextResponse:
    return PlainTextResponse("other")


ROUTES = [Route("/admin", admin), Route("/other", other)]


def answer(app: ASGIApp, path: str, **options: Any) -> str:
    response = TestClient(as_service(app, "web"), **options).get(path)
    return response.headers.get("x-mesh-refused", response.text)


@pytest.mark.parametrize("framework", [Starlette, FastAPI])
def test_in_a_mounted_application_rules_are_about_the_path_that_the_client_sent(
    framework: Any,
) -> None:
    inner = framework(routes=ROUTES)
    inner.add_middleware(MeshMiddleware, mesh=static_mesh("api", DENY_SUB_ADMIN))
    app = framework(routes=[Mount("/sub", app=inner)])
    assert answer(app, "/sub/other") == "other"
    assert answer(app, "/sub/admin") == "permission_deny"
    assert answer(app, "/sub/x/../admin") == "permission_deny"


def test_a_mount_takes_nothing_off_what_rules_see() -> None:
    """A deny on /admin is not about /sub/admin: the prefix is part of what the client sent."""
    inner = MeshMiddleware(Starlette(routes=ROUTES), mesh=static_mesh("api", DENY_ADMIN))
    assert answer(Starlette(routes=[Mount("/sub", app=inner)]), "/sub/admin") == "admin"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/other", "other"),
        ("/api/other", "other"),
        ("/admin", "permission_deny"),
        ("/api/admin", "permission_deny"),
        ("/api/%61dmin", "permission_deny"),
        ("/%61pi/admin", "permission_deny"),
        ("/api/admin?x=1", "permission_deny"),
        ("/apis/admin", "Not Found"),
    ],
)
def test_a_deny_holds_for_a_route_under_a_root_path_with_and_without_it(
    path: str, expected: str
) -> None:
    """Starlette's router takes both /admin and /api/admin to the same route."""
    app = Starlette(routes=ROUTES)
    app.add_middleware(MeshMiddleware, mesh=static_mesh("api", DENY_ADMIN))
    assert answer(app, path, root_path="/api") == expected


def test_a_missing_allow_for_the_rest_behind_a_root_path_refuses_nothing() -> None:
    """Only rules deny what is left; otherwise every rule would have to be written twice."""
    app = Starlette(routes=ROUTES)
    rules = web_permissions(rule(Action.ALLOW, path_prefix="/api/other"))
    app.add_middleware(MeshMiddleware, mesh=static_mesh("api", rules))
    assert answer(app, "/api/other", root_path="/api") == "other"
    assert answer(app, "/api/admin", root_path="/api") == "default_deny"


@pytest.mark.parametrize("inside", [True, False], ids=["inside", "around"])
def test_a_root_path_that_fastapi_sets_itself_is_known(inside: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer versions deprecate the argument
        app: Any = FastAPI(root_path="/api", routes=ROUTES)  # type: ignore[arg-type]
    mesh = static_mesh("api", DENY_ADMIN)
    if inside:
        app.add_middleware(MeshMiddleware, mesh=mesh)
    else:
        app = MeshMiddleware(app, mesh=mesh)
    assert answer(app, "/api/other") == "other"
    assert answer(app, "/admin") == "permission_deny"
    assert answer(app, "/api/admin") == "permission_deny"


@pytest.mark.parametrize(
    ("path", "status"), [("/api/other", 200), ("/api/admin", 403), ("/api%2fadmin", 403)]
)
@pytest.mark.parametrize("outer", [False, True], ids=["alone", "launched"])
def test_a_root_path_that_is_set_below_the_outer_middleware_counts(
    path: str, status: int, outer: bool
) -> None:
    """The launcher's middleware cannot see it through a wrapper; the application's own can."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer versions deprecate the argument
        inner: Any = FastAPI(root_path="/api", routes=ROUTES)  # type: ignore[arg-type]
    mesh = static_mesh("api", DENY_ADMIN)
    inner.add_middleware(MeshMiddleware, mesh=mesh)
    app: Any = GZipMiddleware(inner)
    if outer:
        app = MeshMiddleware(app, mesh=mesh)
    answered = as_service(TestClient(app), "web").get(path)
    assert answered.status_code == status
    if status == 403:
        assert answered.headers["x-mesh-refused"] in ("permission_deny", "ambiguous_path")


def test_what_audit_passes_on_is_not_decided_again_below() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inner: Any = FastAPI(root_path="/api", routes=ROUTES)  # type: ignore[arg-type]
    mesh = static_mesh("api", DENY_ADMIN)
    inner.add_middleware(MeshMiddleware, mesh=mesh)
    app = MeshMiddleware(GZipMiddleware(inner), mesh=mesh, enforcement="audit")
    assert as_service(TestClient(app), "web").get("/admin").status_code == 200


def recording(app: ASGIApp, prefix: str) -> ASGIApp:
    """As the launcher does it under uvicorn's root path: the server adds the prefix, the
    outermost wrapper records what was sent before."""

    async def served(scope: Scope, receive: Receive, send: Send) -> None:
        ours = {**scope["extensions"][EXTENSION], "target": scope["raw_path"]}
        scope["extensions"] = {**scope["extensions"], EXTENSION: ours}
        scope["raw_path"] = prefix.encode() + scope["raw_path"]
        scope["path"] = prefix + scope["path"]
        await app(scope, receive, send)

    return served


def test_a_prefix_that_the_server_adds_is_not_what_rules_see() -> None:
    rules = web_permissions(rule(Action.ALLOW, path_prefix="/other"))
    app = MeshMiddleware(Starlette(routes=ROUTES), mesh=static_mesh("api", rules))
    served = recording(app, "/api")
    assert answer(served, "/other", root_path="/api") == "other"
    assert answer(served, "/admin", root_path="/api") == "default_deny"
    assert answer(served, "/%6fther", root_path="/api") == "other"
    assert answer(served, "/api/other", root_path="/api") == "default_deny"


def test_a_mount_below_a_prefix_that_the_server_adds() -> None:
    inner = Starlette(routes=ROUTES)
    inner.add_middleware(MeshMiddleware, mesh=static_mesh("api", DENY_SUB_ADMIN))
    served = recording(Starlette(routes=[Mount("/sub", app=inner)]), "/api")
    assert answer(served, "/sub/other", root_path="/api") == "other"
    assert answer(served, "/sub/admin", root_path="/api") == "permission_deny"


def test_the_inner_middleware_leaves_the_decision_to_the_outer_one() -> None:
    """The launcher wraps an application that already has the middleware."""
    app = starlette_app()
    app.add_middleware(MeshMiddleware, service="api")
    assert answer(MeshMiddleware(app, mesh=static_mesh("api", WEB_MAY)), "/hello") == "web /hello"


# -- targets that servers, rules and routers could read differently ------------------------------

TARGETS = [
    "/admin",
    "/admin/",
    "/admin/secret",
    "//admin/secret",
    "/./admin/secret",
    "/x/../admin/secret",
    "/x/%2e%2e/admin/secret",
    "/x%2f..%2fadmin/secret",
    "/%61dmin/secret",
    "/admin%2fsecret",
    "/admin%2Fsecret",
    "/admin;x/secret",
    "/admin/%2e/secret",
    "/x\\..\\admin\\secret",
    "/x/..;/admin/secret",
    "/ADMIN/secret",
    "/admin%00/secret",
    "/files/../admin/secret",
    "/files/%2e%2e/admin/secret",
    "/files/..%2fadmin/secret",
    "/%2e/admin/secret",
    "/%252e%252e/admin/secret",
]


async def secret(request: Request) -> PlainTextResponse:
    return PlainTextResponse("secret")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("framework", [Starlette, FastAPI])
def test_no_target_walks_around_a_deny(framework: Any, target: str, tmp_path: Any) -> None:
    (tmp_path / "public").mkdir()
    (tmp_path / "admin").mkdir()
    (tmp_path / "admin" / "secret").write_text("secret")
    sub = framework(routes=[Route("/secret", secret), Route("/", secret)])
    app = framework(
        routes=[
            Route("/admin", secret),
            Mount("/admin", app=sub),
            Mount("/files", app=StaticFiles(directory=tmp_path / "public")),
            Route("/{rest:path}", other),
        ]
    )
    app.add_middleware(MeshMiddleware, mesh=static_mesh("api", DENY_ADMIN))
    sent: list[Any] = []
    scope = _scope(target)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    anyio.run(as_service(app, "web"), scope, receive, send)
    body = b"".join(message.get("body", b"") for message in sent)
    assert body != b"secret"
    assert sent[0]["status"] != 200 or body == b"other"


def _scope(target: str) -> Any:
    return {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": unquote(target),
        "raw_path": target.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"api")],
        "server": ("api", 80),
    }

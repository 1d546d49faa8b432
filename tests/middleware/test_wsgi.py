"""WSGI applications behind the middleware, called as a server would."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from mesh_middleware import ConfigError, peer_identity
from mesh_middleware.errors import PeerIdentityError
from mesh_middleware.middleware import EXTENSION, PEER_KEY, MeshMiddleware, decision_of
from mesh_middleware.middleware.audit import AuditRule
from mesh_middleware.middleware.peer import ENFORCED
from mesh_middleware.middleware.wsgi import MeshWSGIMiddleware
from mesh_middleware.policy.decision import Reason
from mesh_middleware.policy.engine import compile_policy
from mesh_middleware.policy.intentions import Action, HeaderMatch, HTTPMatch, Intention, Permission
from mesh_middleware.policy.peering import PeerBundle
from mesh_middleware.policy.spiffe import SpiffeID, TrustDomain
from mesh_middleware.state import MeshState, StaticState
from mesh_middleware.testing import TRUST_DOMAIN, mesh_for, static_mesh
from tests.middleware.calls import (
    LOOK_ALIKE,
    WEB_MAY,
    http_scope,
    rule,
    verified,
    web_permissions,
)
from tests.middleware.calls import (
    call as call_asgi,
)


@dataclass
class Body:
    """A streamed body that says whether it was closed."""

    chunks: Iterator[bytes]
    closed: bool = False

    def __iter__(self) -> Iterator[bytes]:
        return self.chunks

    def close(self) -> None:
        self.closed = True


@dataclass
class Recorder:
    """An application that remembers the environs it was called with and answers 200."""

    environs: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Body:
        self.environs.append(environ)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return Body(iter([b"hel", b"lo"]))

    @property
    def environ(self) -> dict[str, Any]:
        (environ,) = self.environs
        return environ


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def reason(self) -> str:
        return "allowed" if self.status == 200 else str(json.loads(self.body)["reason"])


def environ_for(path: str = "/", **more: Any) -> dict[str, Any]:
    """An environ without anybody: a plain server, loopback."""
    return {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "QUERY_STRING": "",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_NAME": "api",
        "SERVER_PORT": "80",
        "REMOTE_ADDR": "127.0.0.1",
        "HTTP_HOST": "api",
        "wsgi.url_scheme": "http",
        **more,
    }


def from_web(path: str = "/", **more: Any) -> dict[str, Any]:
    return environ_for(path, **{PEER_KEY: verified(), **more})


def call(app: Callable[..., Iterable[bytes]], environ: dict[str, Any]) -> Answer:
    started: list[tuple[str, list[tuple[str, str]]]] = []
    body = app(environ, lambda status, headers, *_: started.append((status, headers)))
    (status, headers) = started[0]
    return Answer(int(status.split()[0]), dict(headers), b"".join(body))


def guarded(app: Any, *intentions: Intention, **options: Any) -> MeshWSGIMiddleware:
    return MeshWSGIMiddleware(app, mesh=static_mesh("api", intentions or WEB_MAY), **options)


def header_rule(action: Action, **match: Any) -> Permission:
    return Permission(action, HTTPMatch(path_prefix="/", headers=(HeaderMatch(**match),)))


# -- who is let through ---------------------------------------------------------------------------


def test_an_allowed_caller_reaches_the_application() -> None:
    app = Recorder()
    assert call(guarded(app), from_web()).body == b"hello"
    assert peer_identity(app.environ).service == "web"
    decision = decision_of(app.environ)
    assert decision is not None
    assert decision.allowed


def test_a_peered_caller_comes_through_a_gateway() -> None:
    pong, app = "spiffe://east.consul/ns/default/dc/dc9/svc/pong", Recorder()
    policy = compile_policy(
        [Intention("pong", "api", Action.ALLOW, source_peer="east")],
        trust_domain=TRUST_DOMAIN,
        peers=[PeerBundle("east", TrustDomain("east.consul"))],
    )
    mesh = StaticState.from_policy(policy, service="api")
    certificate = verified().certificate
    gateway = replace(
        verified(),
        certificate=replace(
            certificate, identity=SpiffeID(TrustDomain(TRUST_DOMAIN), "/gateway/mesh/dc/dc1")
        ),
    )
    environ = environ_for(**{PEER_KEY: gateway})
    wsgi = MeshWSGIMiddleware(app, mesh=mesh)
    assert call(wsgi, {**environ}).reason == "not_a_service"
    told = {"HTTP_X_FORWARDED_CLIENT_CERT": f"Hash=00;URI={pong}"}
    assert call(wsgi, {**environ, **told}).reason == "allowed"
    assert str(peer_identity(app.environ)) == pong
    assert not told.keys() & app.environ.keys()
    # The first element counts, as it does for Consul; other values of the request are split.
    ping = pong.replace("pong", "ping")
    chain = {"HTTP_X_FORWARDED_CLIENT_CERT": f"Hash=00;URI={pong},Hash=00;URI={ping}"}
    assert call(wsgi, {**environ, **chain, "HTTP_ACCEPT": "a,b"}).reason == "allowed"
    chain = {"HTTP_X_FORWARDED_CLIENT_CERT": f"Hash=00;URI={ping},Hash=00;URI={pong}"}
    assert call(wsgi, {**environ, **chain}).reason == "default_deny"


@pytest.mark.parametrize(
    ("environ", "reason"),
    [
        (environ_for(), "no_identity"),
        (environ_for(**{PEER_KEY: "spiffe://x/ns/default/dc/dc1/svc/web"}), "no_identity"),
        (environ_for(**{PEER_KEY: verified("other")}), "default_deny"),
        (environ_for(**{PEER_KEY: verified(life=-60)}), "certificate_expired"),
        (environ_for(**{PEER_KEY: verified(generation=0)}), "root_not_trusted"),
        (from_web(SSL_CLIENT_CERT="x", SSL_CLIENT_VERIFY="SUCCESS"), "allowed"),
        (environ_for(SSL_CLIENT_CERT="x", SSL_CLIENT_VERIFY="SUCCESS"), "no_identity"),
        (environ_for(HTTP_X_FORWARDED_CLIENT_CERT="URI=spiffe://web"), "no_identity"),
        (environ_for(REMOTE_USER="web"), "no_identity"),
        (from_web("/\xc3\xa9"), "allowed"),
        (from_web("/\xe9"), "malformed_target"),
        (from_web("/a", REQUEST_METHOD="delete"), "malformed_target"),
    ],
)
def test_who_is_refused(environ: dict[str, Any], reason: str) -> None:
    app = Recorder()
    answer = call(guarded(app), environ)
    assert answer.reason == reason
    assert bool(app.environs) is (reason == "allowed")


def test_a_refusal_is_the_one_of_the_asgi_middleware() -> None:
    mesh = static_mesh("api", WEB_MAY)
    environ = environ_for(HTTP_X_REQUEST_ID="one")
    answer = call(MeshWSGIMiddleware(Recorder(), mesh=mesh), environ)
    scope = http_scope(headers=[(b"x-request-id", b"one")])
    other = call_asgi(MeshMiddleware(no_asgi_app, mesh=mesh), scope)
    assert answer.status == other.status
    assert answer.body == other.body
    theirs = {name.decode(): value.decode() for name, value in other.sent[0]["headers"]}
    assert answer.headers == theirs


async def no_asgi_app(*_: Any) -> None:
    raise AssertionError("the application was called")


def test_head_is_refused_without_a_body() -> None:
    answer = call(guarded(Recorder()), environ_for(REQUEST_METHOD="HEAD"))
    assert (answer.status, answer.body) == (403, b"")


def test_without_a_policy_it_says_come_again() -> None:
    app = MeshWSGIMiddleware(Recorder(), mesh=StaticState(MeshState("api")))
    answer = call(app, from_web())
    assert (answer.status, answer.headers["retry-after"]) == (503, "2")
    fault = StaticState(MeshState("api", fault=Reason.POLICY_UNDECODABLE))
    answer = call(MeshWSGIMiddleware(Recorder(), mesh=fault), from_web())
    assert (answer.status, answer.reason) == (503, "policy_undecodable")


def test_the_state_is_found_by_name_with_each_request() -> None:
    app = MeshWSGIMiddleware(Recorder(), service="api")
    with mesh_for("api", WEB_MAY):
        assert call(app, from_web()).reason == "allowed"
    with mesh_for("api"):
        assert call(app, from_web()).reason == "default_deny"


def test_the_manager_is_started_with_the_first_request(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []

    def manager_for(service: str) -> StaticState:
        started.append(service)
        return static_mesh(service, WEB_MAY)

    monkeypatch.setattr("mesh_middleware.runtime.manager_for", manager_for)
    app = MeshWSGIMiddleware(Recorder(), service="api")
    assert not started
    assert call(app, from_web()).reason == "allowed"
    assert started == ["api"]


@pytest.mark.parametrize(
    "arguments", [{}, {"service": ""}, {"service": "api", "mesh": static_mesh("api")}]
)
def test_wrong_arguments(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        MeshWSGIMiddleware(Recorder(), **arguments)


# -- what the application gives back --------------------------------------------------------------


def test_threads_do_not_meet() -> None:
    """Each of many concurrent requests is decided for its own caller and path."""
    barrier = threading.Barrier(8)

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        barrier.wait(10)  # all of them are inside at once
        return [peer_identity(environ).service.encode()]

    names = [f"web{number}" for number in range(8)]
    middleware = guarded(app, *(Intention(name, "api", Action.ALLOW) for name in names))
    bodies: dict[str, bytes] = {}

    def one(name: str) -> None:
        bodies[name] = call(middleware, environ_for(**{PEER_KEY: verified(name)})).body

    threads = [threading.Thread(target=one, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert bodies == {name: name.encode() for name in names}


# -- the target -----------------------------------------------------------------------------------

REST = rule(Action.ALLOW, path_prefix="/")
NO_ADMIN = web_permissions(rule(Action.DENY, path_prefix="/admin"), REST)


@pytest.mark.parametrize(
    ("environ", "reason"),
    [
        ({"PATH_INFO": "/x"}, "allowed"),
        ({"PATH_INFO": "/admin"}, "permission_deny"),
        ({"PATH_INFO": "//admin"}, "ambiguous_path"),
        ({"PATH_INFO": "/x", "RAW_URI": "/admin"}, "ambiguous_path"),
        ({"PATH_INFO": "/x", "REQUEST_URI": "/admin?q"}, "ambiguous_path"),
        ({"PATH_INFO": "/admin", "RAW_URI": "/x"}, "ambiguous_path"),
        ({"PATH_INFO": "/admin", "RAW_URI": "/%61dmin"}, "permission_deny"),
        ({"PATH_INFO": "/x", "RAW_URI": "/%zz"}, "malformed_target"),
        ({"PATH_INFO": "/x", "RAW_URI": "/x#y"}, "malformed_target"),
        ({"PATH_INFO": "*", "RAW_URI": "*"}, "malformed_target"),
        ({"PATH_INFO": "/x", "RAW_URI": "http://api/admin"}, "ambiguous_path"),
        ({"PATH_INFO": "/x", "RAW_URI": "http://api/x"}, "allowed"),
        # root paths: a deny on what was sent holds, and on what is routed
        ({"SCRIPT_NAME": "/api", "PATH_INFO": "/x", "RAW_URI": "/api/x"}, "allowed"),
        (
            {"SCRIPT_NAME": "/api", "PATH_INFO": "/admin", "RAW_URI": "/api/admin"},
            "permission_deny",
        ),
        ({"SCRIPT_NAME": "/api", "PATH_INFO": "/admin"}, "permission_deny"),
        ({"SCRIPT_NAME": "/admin", "PATH_INFO": "/x", "RAW_URI": "/admin/x"}, "permission_deny"),
        ({"SCRIPT_NAME": "/api", "PATH_INFO": "/admin", "RAW_URI": "/admin"}, "permission_deny"),
        ({"SCRIPT_NAME": "/admin", "PATH_INFO": "/x", "RAW_URI": "/x"}, "allowed"),
        ({"SCRIPT_NAME": "/api", "PATH_INFO": "/x", "RAW_URI": "/admin"}, "ambiguous_path"),
    ],
    ids=str,
)
def test_rules_judge_the_wire_and_what_is_routed(environ: dict[str, Any], reason: str) -> None:
    assert call(guarded(Recorder(), *NO_ADMIN), from_web(**environ)).reason == reason


def test_a_root_path_that_the_client_names_moves_nothing() -> None:
    """gunicorn (27) takes SCRIPT_NAME from a header of those it trusts."""
    app = guarded(Recorder(), *web_permissions(rule(Action.ALLOW, path_prefix="/public")))
    moved = {"SCRIPT_NAME": "/public", "PATH_INFO": "/admin", "RAW_URI": "/public/admin"}
    assert call(app, from_web(**moved)).status == 200  # the operator's root path
    assert call(app, from_web(**moved, HTTP_SCRIPT_NAME="/public")).status == 403


def test_the_query_is_the_one_that_the_application_sees() -> None:
    secret = header_rule(Action.DENY, name=":path", suffix="key=1")
    app = guarded(Recorder(), *web_permissions(secret, REST))
    assert call(app, from_web("/x", RAW_URI="/x?a", QUERY_STRING="key=1")).status == 403
    assert call(app, from_web("/x", RAW_URI="/x?key=1", QUERY_STRING="a")).status == 200
    assert call(app, from_web("/x", QUERY_STRING="key=1")).status == 403


def test_exempt_paths_need_no_caller() -> None:
    app = guarded(Recorder(), exempt_paths=["/live"])
    assert call(app, environ_for("/live")).status == 200
    assert call(app, environ_for("/live", RAW_URI="/admin")).status == 403
    assert call(app, environ_for("/live", REQUEST_METHOD="POST")).status == 403
    with pytest.raises(PeerIdentityError):
        peer_identity(environ_for("/live"))


# -- headers --------------------------------------------------------------------------------------


def test_identity_headers_never_reach_the_application() -> None:
    app = Recorder()
    forged = {
        "HTTP_X_FORWARDED_CLIENT_CERT": "URI=spiffe://x",
        "HTTP_CLIENT_CERT": ":x:",
        "HTTP_SSL_CLIENT_CERT": "x",
        "HTTP_X_SPIFFE_ID": "x",
        "HTTP_ACCEPT": "text/plain",
        "CONTENT_TYPE": "text/plain",
        "CONTENT_LENGTH": "0",
    }
    call(guarded(app), from_web(**forged))
    left = {key for key in app.environ if key.startswith(("HTTP_", "CONTENT_"))}
    assert left == {"HTTP_HOST", "HTTP_ACCEPT", "CONTENT_TYPE", "CONTENT_LENGTH"}


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"HTTP_X_ROLE": "user"}, "allowed"),
        ({"HTTP_X_ROLE": "admin"}, "permission_deny"),
        ({"HTTP_X_ROLE": "user, admin"}, "permission_deny"),
        ({"HTTP_X_ROLE": "admin,user"}, "permission_deny"),
        ({"HTTP_X_ROLE": "administrator, user"}, "allowed"),
        ({"CONTENT_TYPE": "admin"}, "allowed"),
    ],
    ids=str,
)
def test_a_deny_holds_for_each_of_the_joined_lines(headers: dict[str, str], reason: str) -> None:
    deny = header_rule(Action.DENY, name="x-role", exact="admin")
    app = guarded(Recorder(), *web_permissions(deny, REST))
    assert call(app, from_web(**headers)).reason == reason


@pytest.mark.parametrize(("value", "status"), [("user", 200), ("user, root", 403)])
def test_an_allow_is_for_the_whole_value(value: str, status: int) -> None:
    """One line ``user, root`` is not the line ``user``, though two lines may look the same."""
    allow = header_rule(Action.ALLOW, name="x-role", exact="user")
    app = guarded(Recorder(), *web_permissions(allow))
    assert call(app, from_web(HTTP_X_ROLE=value)).status == status


def test_content_headers_can_be_named_by_rules() -> None:
    deny = header_rule(Action.DENY, name="content-type", exact="text/x")
    app = guarded(Recorder(), *web_permissions(deny, REST))
    assert call(app, from_web(CONTENT_TYPE="text/x")).status == 403
    assert call(app, from_web(CONTENT_TYPE="", CONTENT_LENGTH="")).status == 200


def test_underscores_behind_a2wsgi_are_dropped_and_never_joined() -> None:
    app = Recorder()
    scope = http_scope(
        headers=[(b"x-role", b"user"), (b"x_role", b"admin"), (b"x_other", b"1")], peer=verified()
    )
    environ = environ_for(
        HTTP_X_ROLE="user,admin", HTTP_X_OTHER="1", **{"asgi.scope": scope, "wsgi.input": b""}
    )
    assert call(guarded(app), environ).status == 200
    assert app.environ["HTTP_X_ROLE"] == "user"
    assert "HTTP_X_OTHER" not in app.environ


# -- around one another ---------------------------------------------------------------------------


def test_the_caller_of_an_asgi_scope_counts() -> None:
    app = Recorder()
    environ = environ_for(**{"asgi.scope": http_scope(peer=verified())})
    assert call(guarded(app), environ).status == 200
    assert peer_identity(app.environ).service == "web"
    forged = http_scope(peer="web")
    assert call(guarded(app), environ_for(**{"asgi.scope": forged})).reason == "no_identity"


def test_the_outer_middleware_decides() -> None:
    refusing = guarded(Recorder(), Intention("web", "api", Action.DENY))
    assert call(guarded(refusing), from_web()).status == 200
    assert call(guarded(refusing), from_web()).status == 200


@pytest.mark.parametrize(
    "environ",
    [
        {PEER_KEY: LOOK_ALIKE},
        {"asgi.scope": {"extensions": {EXTENSION: {ENFORCED: LOOK_ALIKE}}}},
    ],
    ids=["environ", "scope"],
)
def test_only_a_mark_of_our_own_counts_as_a_decision(environ: dict[str, Any]) -> None:
    app = Recorder()
    assert decision_of(environ) is None
    assert call(guarded(app), environ_for(**environ)).reason == "no_identity"
    assert app.environs == []


def test_what_was_changed_in_between_is_decided_again() -> None:
    refusing = guarded(Recorder(), *NO_ADMIN)

    def rewrite(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        environ["PATH_INFO"] = "/admin"
        environ[PEER_KEY + ".was"] = environ[PEER_KEY]
        return refusing(environ, start_response)

    answer = call(guarded(rewrite), from_web("/x"))
    assert answer.status == 403


def test_another_service_inside_is_a_mistake() -> None:
    inner = MeshWSGIMiddleware(Recorder(), mesh=static_mesh("other", WEB_MAY))
    with pytest.raises(ConfigError, match="other"):
        call(guarded(inner), from_web())


def test_a_scope_that_was_decided_about_is_believed_for_the_same_request_only() -> None:
    scopes: list[Any] = []

    async def asgi(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)
        await send({"type": "http.response.start", "status": 200, "headers": []})

    call_asgi(MeshMiddleware(asgi, mesh=static_mesh("api", WEB_MAY)), http_scope(peer=verified()))
    scope = scopes[0]
    del scope["extensions"][EXTENSION]["peer"]  # nothing but the mark speaks for the caller
    inner = guarded(Recorder())
    assert call(inner, environ_for("/", **{"asgi.scope": scope})).status == 200
    other = {"asgi.scope": scope, "REQUEST_METHOD": "POST"}
    assert call(inner, environ_for("/", **other)).reason == "no_identity"
    assert call(inner, environ_for("/y", **{"asgi.scope": scope})).reason == "no_identity"


@pytest.mark.parametrize(
    ("path", "reason"), [("/api/other", "allowed"), ("/api/admin", "permission_deny")]
)
def test_a_prefix_that_was_moved_below_the_outer_middleware_counts(path: str, reason: str) -> None:
    """Layers that take a prefix off the path are common behind reverse proxies."""
    rules = web_permissions(
        rule(Action.DENY, path_prefix="/admin"), rule(Action.ALLOW, path_prefix="/")
    )
    scopes: list[Any] = []

    async def asgi(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)
        await send({"type": "http.response.start", "status": 200, "headers": []})

    outer = MeshMiddleware(asgi, mesh=static_mesh("api", rules))
    call_asgi(outer, http_scope(path, peer=verified()))
    environ = environ_for(path.removeprefix("/api"), SCRIPT_NAME="/api")
    inner = guarded(Recorder(), *rules)
    assert call(inner, {**environ, "asgi.scope": scopes[0]}).reason == reason


# -- audit ----------------------------------------------------------------------------------------


def test_audit_passes_on_what_rules_refuse_and_says_so() -> None:
    app = Recorder()
    deny = Intention("web", "api", Action.DENY)
    audited = guarded(app, deny, enforcement="audit", debug_headers=True)
    answer = call(audited, from_web())
    assert (answer.status, answer.headers["x-mesh-audit"]) == (200, "intention_deny")
    assert call(audited, environ_for()).reason == "no_identity"
    answer = call(guarded(Recorder(), debug_headers=True, enforcement="audit"), from_web())
    assert "x-mesh-audit" not in answer.headers


def test_audit_of_one_route() -> None:
    app = guarded(
        Recorder(), Intention("web", "api", Action.DENY), audit=[AuditRule(paths=("/reports/*",))]
    )
    assert call(app, from_web("/reports/1")).status == 200
    assert call(app, from_web("/x")).status == 403

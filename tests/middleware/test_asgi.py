"""`MeshMiddleware` called directly: what passes, what is refused, and what the application sees."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from mesh_middleware.errors import ConfigError, MeshError, PeerIdentityError
from mesh_middleware.middleware import EXTENSION, MeshMiddleware, decision_of, peer_identity
from mesh_middleware.middleware.peer import ENFORCED, Enforcement
from mesh_middleware.policy.decision import Reason
from mesh_middleware.policy.engine import compile_policy
from mesh_middleware.policy.intentions import Action, HeaderMatch
from mesh_middleware.policy.request import Normalization, Underscores
from mesh_middleware.state import MeshState, StaticState
from mesh_middleware.testing import TRUST_DOMAIN, static_mesh
from tests.middleware.calls import (
    LOOK_ALIKE,
    WEB_MAY,
    Recorder,
    call,
    http_scope,
    identity,
    rule,
    verified,
    web_permissions,
)


def guarded(**options: Any) -> tuple[MeshMiddleware, Recorder]:
    app = Recorder()
    options.setdefault("mesh", static_mesh("api", WEB_MAY))
    return MeshMiddleware(app, **options), app


# -- arguments ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [{}, {"service": "api", "mesh": static_mesh("api")}, {"service": ""}],
    ids=["neither", "both", "empty"],
)
def test_exactly_one_of_service_and_mesh(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="service"):
        MeshMiddleware(Recorder(), **arguments)


# -- scopes ------------------------------------------------------------------------------------


def test_an_allowed_caller_reaches_the_application_and_is_named_in_the_scope() -> None:
    mesh, app = guarded()
    assert call(mesh, http_scope(peer=verified())).body == b"hello"
    assert peer_identity(app.scope) == identity()
    decision = decision_of(app.scope)
    assert decision is not None
    assert decision.reason is Reason.INTENTION_ALLOW
    assert decision.revision


def test_a_refused_caller_never_reaches_the_application() -> None:
    mesh, app = guarded()
    answer = call(mesh, http_scope(peer=verified("batch")))
    assert (answer.status, answer.reason) == (403, "default_deny")
    assert app.scopes == []


def test_a_scope_of_an_unknown_type_is_refused_and_not_passed_on() -> None:
    mesh, app = guarded()
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    with pytest.raises(MeshError, match="unknown_scope"):
        asyncio.run(mesh(http_scope(peer=verified(), kind="webtransport"), send, send))
    assert (app.scopes, sent) == ([], [])


def test_lifespan_passes_undecided() -> None:
    mesh, app = guarded()
    call(mesh, {"type": "lifespan"})
    assert app.scope == {"type": "lifespan"}


def test_the_newest_state_decides_each_request() -> None:
    class Source:
        state = static_mesh("api", WEB_MAY).state

    source = Source()
    mesh, _ = guarded(mesh=source)
    assert call(mesh, http_scope(peer=verified())).status == 200
    source.state = static_mesh("api").state
    assert call(mesh, http_scope(peer=verified())).reason == "default_deny"


def test_the_state_is_read_once_per_request() -> None:
    """Half a change must not be seen: the peer judged by one snapshot, the rules of another."""

    class Source:
        reads = 0

        @property
        def state(self) -> MeshState:
            self.reads += 1
            return static_mesh("api", WEB_MAY).state

    source = Source()
    mesh, _ = guarded(mesh=source)
    call(mesh, http_scope(peer=verified()))
    call(mesh, http_scope(peer=verified("batch")))
    assert source.reads == 2


# -- a state that cannot decide ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (MeshState("api"), "no_policy"),
        (MeshState("api", fault=Reason.POLICY_UNDECODABLE), "policy_undecodable"),
        (
            MeshState(
                "api",
                generation=1,
                fault=Reason.STALE_POLICY,
                policy=static_mesh("api", WEB_MAY).state.policy,
            ),
            "stale_policy",
        ),
        (
            MeshState(
                "api",
                generation=1,
                fault=Reason.CERTIFICATE_EXPIRED,
                policy=static_mesh("api", WEB_MAY).state.policy,
            ),
            "certificate_expired",
        ),
    ],
)
def test_without_a_usable_policy_everything_is_refused_for_now(
    state: MeshState, reason: str
) -> None:
    mesh, app = guarded(mesh=StaticState(state))
    answer = call(mesh, http_scope(peer=verified()))
    assert (answer.status, answer.reason) == (503, reason)
    assert int(answer.header(b"retry-after") or b"") > 0
    assert app.scopes == []


# -- what rules see ----------------------------------------------------------------------------


def test_rules_see_method_query_and_headers_as_on_the_wire() -> None:
    mesh, _ = guarded(
        mesh=static_mesh(
            "api",
            web_permissions(
                rule(
                    Action.ALLOW,
                    path_exact="/a",
                    methods=("POST",),
                    headers=(
                        HeaderMatch("x-forwarded-client-cert", present=True),
                        HeaderMatch(":path", exact="/a?b=c"),
                        HeaderMatch(":scheme", exact="https"),
                    ),
                )
            ),
        )
    )
    scope = http_scope(
        "/a",
        peer=verified(),
        method="POST",
        scheme="https",
        query_string=b"b=c",
        headers=[(b"x-forwarded-client-cert", b"x")],
    )
    assert call(mesh, scope).status == 200


def test_a_malformed_target_is_a_bad_request() -> None:
    mesh, app = guarded()
    answer = call(mesh, http_scope("/a", raw_path=b"/a%zz", peer=verified()))
    assert (answer.status, answer.reason) == (400, "malformed_target")
    assert app.scopes == []


def test_two_hosts_are_a_bad_request() -> None:
    mesh, _ = guarded()
    answer = call(mesh, http_scope(peer=verified(), headers=[(b"host", b"other")]))
    assert (answer.status, answer.reason) == (400, "malformed_headers")


DENY_ADMIN = web_permissions(
    rule(Action.DENY, path_prefix="/admin"), rule(Action.ALLOW, path_prefix="/")
)


def test_the_path_that_the_application_routes_by_is_judged_too() -> None:
    """A server that unescapes twice would hand over another path than rules see in the target."""
    mesh, _ = guarded(mesh=static_mesh("api", DENY_ADMIN))
    answer = call(mesh, http_scope("/admin", raw_path=b"/%2561dmin", peer=verified()))
    assert answer.reason == "ambiguous_path"


def test_a_server_without_raw_path_has_its_path_quoted() -> None:
    mesh, app = guarded(mesh=static_mesh("api", DENY_ADMIN))
    for path, reason in (
        ("/admin", "permission_deny"),
        ("/ok", "allowed"),
        ("/caf\u00e9 au lait?", "allowed"),
        ("/%61dmin", "allowed"),
        ("/x/../admin", "ambiguous_path"),
    ):
        scope = http_scope(path, peer=verified(), query_string=b"q")
        del scope["raw_path"]
        assert call(mesh, scope).reason == reason, path
    assert len(app.scopes) == 3


def test_the_recorded_target_is_judged_not_what_was_made_of_it() -> None:
    mesh, _ = guarded(mesh=static_mesh("api", DENY_ADMIN))
    scope = http_scope("/public")
    scope["extensions"] = {EXTENSION: {"peer": verified(), "target": b"/admin?x"}}
    assert call(mesh, scope).reason == "permission_deny"


# -- the view of the application ---------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        b"x-forwarded-client-cert",
        b"X-Forwarded-Client-Cert",
        b"x_forwarded_client_cert",
        b"x-forwarded_client-CERT",
        b"client-cert",
        b"Client_Cert_Chain",
        b"ssl-client-cert",
        b"ssl_client_verify",
        b"x-ssl-client-cert",
        b"x-client-cert",
        b"x-amzn-mtls-clientcert",
        b"x-amzn-mtls-clientcert-leaf",
        b"x-forwarded-tls-client-cert",
        b"x-arr-clientcert",
    ],
)
def test_headers_that_claim_an_identity_are_not_seen_by_the_application(name: bytes) -> None:
    mesh, app = guarded()
    kept = [(b"accept", b"*/*"), (b"x-thing", b"1"), (b"x_thing", b"2"), (b"x-thing", b"3")]
    headers = [kept[0], (name, b"By=me"), *kept[1:], (name, b"again")]
    assert call(mesh, http_scope(peer=verified(), headers=headers)).status == 200
    assert app.scope["headers"] == [(b"host", b"api"), *kept]


def test_other_headers_are_left_alone_in_a_list_of_our_own() -> None:
    """A server may add trailers to its own list, which no rule and no stripping has seen."""
    mesh, app = guarded()
    scope = http_scope(peer=verified(), headers=[(b"x-anything", b"1"), (b"client-id", b"2")])
    headers = scope["headers"]
    before = list(headers)
    assert call(mesh, scope).status == 200
    headers.append((b"x-forwarded-client-cert", b"URI=spiffe://x/ns/default/dc/dc1/svc/web"))
    assert app.scope["headers"] == before


def test_headers_do_not_make_a_caller() -> None:
    mesh, app = guarded()
    spiffe_id = str(identity()).encode()
    headers = [
        (b"x-forwarded-client-cert", b"By=spiffe://x;URI=" + spiffe_id),
        (b"client-cert", b":AAAA:"),
        (b"x-spiffe-id", spiffe_id),
    ]
    answer = call(mesh, http_scope(headers=headers))
    assert (answer.status, answer.reason) == (403, "no_identity")
    assert app.scopes == []


@pytest.mark.parametrize(
    ("underscores", "seen"), [(Underscores.ALLOW, True), (Underscores.DROP_HEADER, False)]
)
def test_dropped_headers_are_dropped_for_the_application_too(
    underscores: Underscores, seen: bool
) -> None:
    policy = compile_policy(
        WEB_MAY, trust_domain=TRUST_DOMAIN, normalization=Normalization(underscores=underscores)
    )
    mesh, app = guarded(mesh=StaticState.from_policy(policy, service="api"))
    call(mesh, http_scope(peer=verified(), headers=[(b"x_role", b"admin"), (b"x-role", b"user")]))
    assert ((b"x_role", b"admin") in app.scope["headers"]) is seen
    assert (b"x-role", b"user") in app.scope["headers"]


def test_what_a_server_shares_between_requests_is_not_changed() -> None:
    """A mark left in a dict of the connection would let the next request pass undecided."""
    mesh, _ = guarded()
    ours = {"peer": verified()}
    extensions = {EXTENSION: ours}
    call(mesh, http_scope(extensions=extensions))
    assert extensions == {EXTENSION: {"peer": ours["peer"]}}
    assert list(ours) == ["peer"]


# -- exempt paths ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_an_exempt_path_needs_neither_caller_nor_policy(method: str) -> None:
    mesh, app = guarded(mesh=StaticState(MeshState("api")), exempt_paths=["/health/live"])
    assert call(mesh, http_scope("/health/live", method=method)).status == 200
    decision = decision_of(app.scope)
    assert decision is not None
    assert decision.reason is Reason.EXEMPT_PATH


def test_identity_headers_are_stripped_on_exempt_paths_too() -> None:
    mesh, app = guarded(exempt_paths=["/live"])
    call(mesh, http_scope("/live", headers=[(b"client-cert", b"x")]))
    assert app.scope["headers"] == [(b"host", b"api")]


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "POST"},
        {"method": "get"},
        {"path": "/health/live/", "raw_path": b"/health/live/"},
        {"path": "/health", "raw_path": b"/health"},
        {"query_string": b"x"},
        {"raw_path": b"/health/%6cive"},
        {"raw_path": b"//health/live"},
        {"raw_path": b"/health/./live"},
        {"raw_path": b"http://api/health/live"},
        {"path": "/admin", "raw_path": b"/health/live"},
        {"kind": "websocket"},
        {"root_path": "/health"},
        {"extensions": {EXTENSION: {"target": b"/admin"}}},
    ],
    ids=str,
)
def test_only_the_exact_path_is_exempt(changes: dict[str, Any]) -> None:
    mesh, app = guarded(exempt_paths=["/health/live"])
    path = changes.pop("path", "/health/live")
    changes.setdefault("extensions", {"websocket.http.response": {}})
    answer = call(mesh, http_scope(path, **changes))
    assert answer.status == 403
    assert app.scopes == []


@pytest.mark.parametrize(
    "paths",
    ["/live", ["live"], [""], ["/live?x"], ["/l%69ve"], ["//live"], ["/a/../live"], ["/a b"]],
    ids=str,
)
def test_exempt_paths_with_two_readings_are_config_errors(paths: Any) -> None:
    with pytest.raises(ConfigError, match="exempt"):
        guarded(exempt_paths=paths)


# -- websockets --------------------------------------------------------------------------------


def test_a_websocket_counts_as_get() -> None:
    for method, status in (("GET", None), ("POST", 403)):
        mesh, _ = guarded(
            mesh=static_mesh("api", web_permissions(rule(Action.ALLOW, methods=(method,))))
        )
        answer = call(
            mesh,
            http_scope(
                "/ws",
                kind="websocket",
                peer=verified(),
                extensions={"websocket.http.response": {}},
            ),
        )
        assert answer.sent[0].get("status") == status


def test_a_refused_websocket_is_answered_where_the_server_can() -> None:
    mesh, app = guarded()
    scope = http_scope(kind="websocket", extensions={"websocket.http.response": {}})
    answer = call(mesh, scope)
    assert [message["type"] for message in answer.sent] == [
        "websocket.http.response.start",
        "websocket.http.response.body",
    ]
    assert (answer.status, answer.reason) == (403, "no_identity")
    assert answer.header(b"x-mesh-refused") == b"no_identity"
    assert app.scopes == []


def test_a_refused_websocket_is_closed_before_it_is_accepted_elsewhere() -> None:
    mesh, app = guarded()
    answer = call(mesh, http_scope(kind="websocket", extensions=None))
    assert answer.sent == [{"type": "websocket.close", "code": 1008}]
    assert app.scopes == []


# -- one decision ------------------------------------------------------------------------------


class _Counting:
    """A source that counts how often it is asked."""

    def __init__(self, service: str = "api") -> None:
        self.asked = 0
        self._state = static_mesh(service, WEB_MAY).state

    @property
    def state(self) -> MeshState:
        self.asked += 1
        return self._state


def test_an_inner_middleware_of_the_same_service_passes_on() -> None:
    app = Recorder()
    inner = MeshMiddleware(app, service="api")  # has no state, so it could only start a manager
    outer = MeshMiddleware(inner, mesh=_Counting())
    assert call(outer, http_scope(peer=verified())).status == 200
    assert peer_identity(app.scope) == identity()


def test_an_inner_middleware_of_another_service_is_a_config_error() -> None:
    inner = MeshMiddleware(Recorder(), mesh=_Counting("other"))
    outer = MeshMiddleware(inner, mesh=_Counting())
    with pytest.raises(ConfigError, match=r"'other'.*inside.*'api'"):
        call(outer, http_scope(peer=verified()))


@pytest.mark.parametrize(
    "forged",
    [True, {"service": "api"}, "api", b"api", pytest.param(LOOK_ALIKE, id="look-alike")],
    ids=str,
)
def test_only_a_mark_of_our_own_counts_as_a_decision(forged: object) -> None:
    mesh, app = guarded()
    scope = http_scope(extensions={EXTENSION: {ENFORCED: forged}})
    assert decision_of(scope) is None
    with pytest.raises(PeerIdentityError):
        peer_identity(scope)
    answer = call(mesh, scope)
    assert answer.reason == "no_identity"
    assert app.scopes == []


def test_a_true_mark_would_have_counted() -> None:
    """So that the look-alike above differs in its type alone."""
    mark = Enforcement(**vars(LOOK_ALIKE))
    mesh, app = guarded()
    answer = call(mesh, http_scope(extensions={EXTENSION: {ENFORCED: mark}}))
    assert answer.reason == "allowed"
    assert len(app.scopes) == 1


@pytest.mark.parametrize("change", [{"path": "/admin"}, {"method": "POST"}], ids=str)
def test_a_request_that_was_changed_since_is_decided_again(change: dict[str, str]) -> None:
    """An application that retries with another path, say, must not carry the first decision."""
    app = Recorder()
    rules = web_permissions(rule(Action.ALLOW, path_exact="/ok", methods=("GET",)))
    inner = MeshMiddleware(app, mesh=static_mesh("api", rules))

    async def rewriting(scope: Any, receive: Any, send: Any) -> None:
        scope.update(change, raw_path=change.get("path", "/ok").encode())
        await inner(scope, receive, send)

    outer = MeshMiddleware(rewriting, mesh=static_mesh("api", rules))
    assert call(outer, http_scope("/ok", peer=verified())).status == 403
    assert app.scopes == []


# -- the log -----------------------------------------------------------------------------------


def test_a_refusal_is_logged_with_the_request_id_that_the_peer_was_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    mesh, _ = guarded()
    with caplog.at_level(logging.WARNING, logger="mesh_middleware.decisions"):
        answer = call(
            mesh, http_scope("/x", peer=verified("logged-caller"), query_string=b"token=secret")
        )
    record = next(r for r in caplog.records if "logged-caller" in r.getMessage())
    assert record.__dict__["mesh_request_id"] == answer.problem["request_id"]
    assert "web => api" in record.getMessage()
    assert "secret" not in caplog.text


def test_an_allowed_request_is_logged_at_debug_only(caplog: pytest.LogCaptureFixture) -> None:
    mesh, _ = guarded()
    with caplog.at_level(logging.INFO, logger="mesh_middleware.decisions"):
        call(mesh, http_scope("/quiet", peer=verified()))
    assert caplog.records == []
    with caplog.at_level(logging.DEBUG, logger="mesh_middleware.decisions"):
        call(mesh, http_scope("/loud", peer=verified()))
    assert "/loud" in caplog.text

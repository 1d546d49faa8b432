"""Requests with tokens: decided by their claims, shown to the application without them."""

from __future__ import annotations

from typing import Any

import pytest

from mesh_middleware.middleware import MeshMiddleware, decision_of
from mesh_middleware.policy.decision import Reason
from mesh_middleware.policy.engine import compile_policy
from mesh_middleware.policy.intentions import (
    Action,
    ClaimMatch,
    HTTPMatch,
    Intention,
    JWTProviderRequirement,
    JWTRequirement,
    Permission,
)
from mesh_middleware.policy.request import HTTPRequest
from mesh_middleware.state import MeshState, StaticState
from mesh_middleware.testing import TRUST_DOMAIN
from mesh_middleware.tls.jwks import KeySet
from mesh_middleware.tls.providers import Forwarding
from mesh_middleware.tls.tokens import TokenVerifier, VerifiedToken
from tests.middleware.calls import Recorder, call, http_scope, verified
from tests.tls.tokens import NOW, jwk, jwks, provider, token

ADMIN = JWTRequirement((JWTProviderRequirement("okta", (ClaimMatch(("role",), "admin"),)),))

ROWS = (
    Intention(
        "web",
        "api",
        permissions=(
            Permission(Action.ALLOW, HTTPMatch(path_exact="/open")),
            Permission(Action.ALLOW, HTTPMatch(path_prefix="/v1/")),
            Permission(Action.ALLOW, HTTPMatch(path_prefix="/admin"), jwt=ADMIN),
        ),
    ),
)


class Counting(TokenVerifier):
    """Counts verifications."""

    __slots__ = ("verified",)

    def verify(self, name: str, request: HTTPRequest) -> VerifiedToken | Reason | None:
        self.verified = getattr(self, "verified", 0) + 1
        return super().verify(name, request)


def guarded(**settings: Any) -> tuple[MeshMiddleware, Recorder, Counting]:
    exempt = settings.pop("exempt_paths", ())
    keys = KeySet.from_json(jwks(jwk()))
    tokens = Counting([(provider(**settings), keys)], clock=lambda: NOW)
    tokens.verified = 0
    policy = compile_policy(
        ROWS, trust_domain=TRUST_DOMAIN, service="api", jwt_providers=tokens.issuers
    )
    app = Recorder()
    mesh = StaticState(MeshState("api", 1, policy=policy, tokens=tokens))
    return MeshMiddleware(app, mesh=mesh, exempt_paths=exempt), app, tokens


def bearer(text: bytes) -> list[tuple[bytes, bytes]]:
    return [(b"authorization", b"Bearer " + text)]


FORWARDING = Forwarding("x-payload")
FORGED = (b"x-payload", b"Zm9yZ2Vk")


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (token(), Reason.JWT_CLAIMS),
        (b"opaque", Reason.JWT_INVALID),
        (token(role="admin"), Reason.PERMISSION_ALLOW),
    ],
)
def test_the_claims_of_a_token_decide(
    kind: str, text: bytes, reason: Reason, caplog: pytest.LogCaptureFixture
) -> None:
    mesh, app, _ = guarded()
    call(mesh, http_scope("/admin", peer=verified(), headers=bearer(text), kind=kind))
    if reason is Reason.PERMISSION_ALLOW:
        decision = decision_of(app.scope)
        assert decision is not None
        assert decision.reason is reason
    else:
        assert app.scopes == []
        assert str(reason) in caplog.text


def test_a_token_is_verified_once_a_request() -> None:
    mesh, _, tokens = guarded(forwarding=FORWARDING)
    headers = bearer(token(role="admin"))
    scope = http_scope("/v1/admin", peer=verified(), headers=headers, root_path="/v1")
    assert call(mesh, scope).status == 200
    assert tokens.verified == 1


def test_a_token_that_nobody_asks_for_is_not_verified() -> None:
    mesh, app, tokens = guarded()
    call(mesh, http_scope("/open", peer=verified(), headers=bearer(token())))
    assert app.scope["headers"] == [(b"host", b"api")]
    assert tokens.verified == 0


@pytest.mark.parametrize("text", [token(role="admin"), b"opaque"])
def test_the_application_sees_no_token_and_no_forged_payload(text: bytes) -> None:
    mesh, app, _ = guarded(forwarding=FORWARDING)
    headers = [FORGED, *bearer(text), (b"X_Payload", b"Zm9yZ2Vk")]
    call(mesh, http_scope("/open", peer=verified(), headers=headers))
    names = [name for name, _ in app.scope["headers"]]
    assert names == ([b"host", b"x-payload"] if text != b"opaque" else [b"host"])
    assert b"Zm9yZ2Vk" not in dict(app.scope["headers"]).values()


def test_an_exempt_path_hides_tokens_and_forged_payloads_too() -> None:
    mesh, app, _ = guarded(forwarding=FORWARDING, exempt_paths=["/health"])
    headers = [FORGED, *bearer(b"opaque")]
    assert call(mesh, http_scope("/health", headers=headers)).status == 200
    assert app.scope["headers"] == [(b"host", b"api")]


@pytest.mark.parametrize(("role", "status"), [("user", 403), ("admin", 200)])
def test_the_path_without_the_root_path_is_decided_with_the_claims(role: str, status: int) -> None:
    mesh, _, _ = guarded()
    headers = bearer(token(role=role))
    scope = http_scope("/v1/admin", peer=verified(), headers=headers, root_path="/v1")
    assert call(mesh, scope).status == status


def test_without_providers_nothing_is_hidden() -> None:
    policy = compile_policy(ROWS, trust_domain=TRUST_DOMAIN, service="api")
    app = Recorder()
    mesh = MeshMiddleware(app, mesh=StaticState(MeshState("api", 1, policy=policy)))
    headers = bearer(token(role="admin"))
    call(mesh, http_scope("/open", peer=verified(), headers=headers))
    assert app.scope["headers"] == [(b"host", b"api"), *headers]
    answer = call(mesh, http_scope("/admin", peer=verified(), headers=headers))
    assert answer.reason == "jwt_provider_unknown"

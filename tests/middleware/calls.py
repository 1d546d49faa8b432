"""ASGI calls without a server, and rules and callers for them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from mesh_middleware._types import ASGIApp, Message, Receive, Scope, Send
from mesh_middleware.devagent.ca import CertificateAuthority
from mesh_middleware.middleware import EXTENSION
from mesh_middleware.policy.decision import Decision, Reason
from mesh_middleware.policy.intentions import Action, HTTPMatch, Intention, Permission
from mesh_middleware.policy.request import HTTPRequest
from mesh_middleware.policy.spiffe import ServiceIdentity, TrustDomain
from mesh_middleware.testing import TRUST_DOMAIN
from mesh_middleware.tls.certificates import PeerCertificate, TrustBundle
from mesh_middleware.tls.contexts import VerifiedPeer

HOUR = 3600.0
ROOT = b"r" * 32

WEB_MAY = (Intention("web", "api", Action.ALLOW),)


def rule(action: Action, **http: Any) -> Permission:
    return Permission(action, HTTPMatch(**http))


def web_permissions(*permissions: Permission) -> tuple[Intention, ...]:
    return (Intention("web", "api", permissions=permissions),)


def identity(service: str = "web", trust_domain: str = TRUST_DOMAIN) -> ServiceIdentity:
    return ServiceIdentity(TrustDomain(trust_domain), service)


def verified(
    service: str = "web",
    *,
    root: bytes | None = ROOT,
    generation: int = 1,
    life: float = HOUR,
    trust_domain: str = TRUST_DOMAIN,
) -> VerifiedPeer:
    """A peer as the handshake hook leaves it; `life` in seconds from now, negative: expired."""
    now = time.time()
    certificate = PeerCertificate(b"", identity(service, trust_domain), now - HOUR, now + life)
    return VerifiedPeer(certificate, root, generation)


LOOK_ALIKE = SimpleNamespace(
    service="api",
    decision=Decision(allowed=True, reason=Reason.INTENTION_ALLOW),
    caller=verified().certificate.identity,
    request=HTTPRequest("GET", b"/", []),
    claims={},
    path="/",
    roots=frozenset({""}),
)
"""All that a mark says, in another type."""


def bundle_of(ca: CertificateAuthority) -> TrustBundle:
    return TrustBundle.from_pem(ca.trust_domain, [root["RootCert"] for root in ca.roots()])


def http_scope(
    path: str = "/",
    *,
    peer: object = None,
    headers: Iterable[tuple[bytes, bytes]] = (),
    kind: str = "http",
    **more: Any,
) -> Scope:
    scope: Scope = {
        "type": kind,
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"api"), *headers],
        "extensions": {},
        **more,
    }
    if kind == "websocket":
        del scope["method"]
        scope["scheme"] = "ws"
    if peer is not None:
        scope["extensions"] = {**scope["extensions"], EXTENSION: {"peer": peer}}
    return scope


@dataclass
class Recorder:
    """An application that remembers the scopes it was called with and answers 200."""

    scopes: list[Scope] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"hello"})
        elif scope["type"] == "websocket":
            await send({"type": "websocket.accept"})

    @property
    def scope(self) -> Scope:
        (scope,) = self.scopes
        return scope


@dataclass
class Answer:
    sent: list[Message]

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)

    @property
    def problem(self) -> dict[str, Any]:
        return dict(json.loads(self.body))

    @property
    def reason(self) -> str:
        """The refusal's reason code, or ``allowed``."""
        if self.status == 200:
            return "allowed"
        return str(self.problem["reason"])

    def header(self, name: bytes) -> bytes | None:
        return dict(self.sent[0]["headers"]).get(name)


def call(app: ASGIApp, scope: Scope) -> Answer:
    """Call `app` once; nothing can be received, because no refusal may wait for the client."""
    sent: list[Message] = []

    async def receive() -> Message:
        raise AssertionError("the middleware read from the client")

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return Answer(sent)

"""For the tests of applications that use the mesh: callers and rules without certificates.

A test gives the application its rules and then calls it as some service:

>>> from starlette.applications import Starlette
>>> from starlette.responses import PlainTextResponse
>>> from starlette.routing import Route
>>> from starlette.testclient import TestClient
>>> from mesh_middleware.middleware import MeshMiddleware, peer_identity
>>> from mesh_middleware.policy.intentions import Action, Intention
>>> from mesh_middleware.testing import as_service, static_mesh
>>>
>>> async def hello(request):
...     return PlainTextResponse(f"hello {peer_identity(request.scope).service}")
>>>
>>> app = Starlette(routes=[Route("/", hello)])
>>> mesh = static_mesh("api", [Intention("web", "api", Action.ALLOW)])
>>> app.add_middleware(MeshMiddleware, mesh=mesh)
>>>
>>> client = TestClient(app)
>>> as_service(client, "web").get("/").text
'hello web'
>>> as_service(client, "batch").get("/").json()["reason"]
'default_deny'
>>> client.get("/").json()["reason"]
'no_identity'

An application that says ``MeshMiddleware(app, service="api")`` finds the rules by name:

>>> with mesh_for("api", [Intention("web", "api", Action.ALLOW)]):
...     pass  # call it here

*How it works.* `as_service` is an ASGI wrapper that puts a `VerifiedPeer` where the launcher
puts the one that the TLS handshake proved: into the scope, as an object. What comes over a socket
is bytes, so that only code that runs in the process and imports this module can do it.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from mesh_middleware._types import ASGIApp, Receive, Scope, Send
from mesh_middleware.middleware.peer import EXTENSION, PEER_KEY
from mesh_middleware.policy.decision import Reason
from mesh_middleware.policy.engine import compile_policy
from mesh_middleware.policy.intentions import Action, Intention
from mesh_middleware.policy.spiffe import DEFAULT, ServiceIdentity, TrustDomain
from mesh_middleware.state import StaticState, sources
from mesh_middleware.tls.certificates import PeerCertificate, TrustBundle
from mesh_middleware.tls.contexts import VerifiedPeer

if TYPE_CHECKING:
    from starlette.testclient import TestClient

    from mesh_middleware.checkfile import Result

TRUST_DOMAIN: Final = "11111111-2222-3333-4444-555555555555.consul"
"""The trust domain of callers and rules where a test names none."""

Rules = str | PurePath | Mapping[str, Any] | Iterable[Intention | Mapping[str, Any]]
"""Intentions in any form; see `static_mesh`."""

AppOrClient = TypeVar("AppOrClient", bound="ASGIApp | TestClient")


def as_service(
    app_or_client: AppOrClient,
    service: str,
    *,
    namespace: str = DEFAULT,
    partition: str = DEFAULT,
    trust_domain: str = TRUST_DOMAIN,
) -> AppOrClient:
    """What was given, with every request and WebSocket coming from `service`.

    An ASGI application gives an ASGI application, for any test client. A `TestClient` of Starlette
    or FastAPI gives another one with the same base URL, headers, cookies and lifespan; the
    given client stays as it is. SpiffeIDError for a name that cannot be part of a SPIFFE ID.
    """
    identity = ServiceIdentity(TrustDomain(trust_domain), service, namespace, partition)
    testclient = sys.modules.get("starlette.testclient")
    if testclient is None or not isinstance(app_or_client, testclient.TestClient):
        return cast("AppOrClient", _FromService(cast("ASGIApp", app_or_client), identity))
    return cast("AppOrClient", _client_from(cast("TestClient", app_or_client), identity))


def caller_environ(
    service: str,
    *,
    namespace: str = DEFAULT,
    partition: str = DEFAULT,
    trust_domain: str = TRUST_DOMAIN,
) -> dict[str, Any]:
    """What makes a WSGI request come from `service`: `as_service` for Flask's and other clients.

    >>> from mesh_middleware.testing import caller_environ
    >>> overrides = caller_environ("web")  # app.test_client().get("/", environ_overrides=overrides)

    SpiffeIDError for a name that cannot be part of a SPIFFE ID.
    """
    identity = ServiceIdentity(TrustDomain(trust_domain), service, namespace, partition)
    return {PEER_KEY: _test_peer(identity)}


def static_mesh(
    service: str,
    intentions: Rules = (),
    *,
    default_action: Action = Action.DENY,
    trust_domain: str = TRUST_DOMAIN,
) -> StaticState:
    """A mesh state for ``MeshMiddleware(app, mesh=...)`` that knows these rules.

    `intentions`: `Intention` values, or rows of the match API and config entries as JSON has them,
    one or many, or the path of a YAML or JSON file of them. DecodeError for what is none of these.
    """
    policy = compile_policy(
        rules_of(intentions),
        default_action=default_action,
        trust_domain=trust_domain,
        service=service,
    )
    return StaticState.from_policy(policy, service=service)


@contextlib.contextmanager
def mesh_for(
    service: str,
    intentions: Rules = (),
    *,
    default_action: Action = Action.DENY,
    trust_domain: str = TRUST_DOMAIN,
) -> Iterator[StaticState]:
    """`static_mesh`, found by ``MeshMiddleware(app, service=...)`` for as long as this lasts.

    No Consul agent is asked. It comes before whatever else knows the service, such as the manager
    that a request outside of any ``with`` has started.
    """
    mesh = static_mesh(
        service, intentions, default_action=default_action, trust_domain=trust_domain
    )
    before = sources.put(service, mesh)
    try:
        yield mesh
    finally:
        sources.put(service, before)


def rules_of(intentions: Rules) -> list[Intention]:
    """The rows that `intentions` stands for; see `static_mesh`."""
    # Imported here: rules that are values already need neither YAML nor Consul's JSON.
    from mesh_middleware._documents import load_documents  # noqa: PLC0415
    from mesh_middleware.consul.decode import decode_rules  # noqa: PLC0415

    if isinstance(intentions, str | PurePath):
        file = Path(intentions)
        return decode_rules(load_documents(file.read_bytes(), file.name))
    if isinstance(intentions, Mapping):
        return decode_rules([intentions])
    rows: list[Intention] = []
    for item in intentions:
        rows += [item] if isinstance(item, Intention) else decode_rules([item])
    return rows


@dataclass(frozen=True, slots=True)
class Expectation:
    """One request of a `check` document, and whether it is decided as its ``expect`` says."""

    result: Result

    def verify(self) -> None:
        """AssertionError, with the whole trail, when the decision is not the expected one."""
        if self.result.failed:
            request, policy = self.result.request, self.result.document.policy
            why = policy.explain(request.identity, request.http, request.claims)
            raise AssertionError(f"{self}: expected {request.expect}\n{why}")

    def __str__(self) -> str:
        request = self.result.request
        wanted = "" if request.expect is None else f" {request.expect}"
        return f"{request.source} {request.label}{wanted}"


def expectations(*files: str | Path) -> list[Expectation]:
    """The requests of `check` documents, one test each, in a team's own test suite:

    >>> import pytest
    >>>
    >>> def test_intentions(expectation):  # in a test module, with the parameters below
    ...     expectation.verify()
    >>>
    >>> mark = pytest.mark.parametrize  # @mark("expectation", expectations("rules.yaml"), ids=str)

    Requests without ``expect`` are left out. DecodeError for a file that is not a document; OSError
    as from `open`. Source of the format: docs/reference/check.md.
    """
    # Imported here: tests that only stand in for callers need no YAML.
    from mesh_middleware.checkfile import decide_all, read_files  # noqa: PLC0415

    results = decide_all(read_files([str(file) for file in files]))
    return [Expectation(result) for result in results if result.request.expect is not None]


@dataclass(frozen=True, slots=True)
class _TestPeer(VerifiedPeer):
    """A caller that no handshake proved: without a root, and good for every generation."""

    def refusal(self, bundle: TrustBundle, generation: int, now: float) -> Reason | None:  # noqa: ARG002
        return None


def _test_peer(identity: ServiceIdentity) -> VerifiedPeer:
    return _TestPeer(PeerCertificate(b"", identity, -math.inf, math.inf), None, 0)


class _FromService:
    """An ASGI application whose requests come from one service."""

    def __init__(self, app: ASGIApp, identity: ServiceIdentity) -> None:
        self.app = app
        self._peer = _test_peer(identity)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            extensions: dict[str, Any] = scope.get("extensions") or {}
            scope["extensions"] = {**extensions, EXTENSION: {"peer": self._peer}}
        await self.app(scope, receive, send)


def _client_from(client: TestClient, identity: ServiceIdentity) -> TestClient:
    # Not at the top: other test clients work too, and this one needs packages of its own.
    from starlette.testclient import TestClient  # noqa: PLC0415

    app = client.app
    while isinstance(app, _FromService):
        app = app.app
    transport = client._transport  # the client keeps these settings nowhere else
    other = TestClient(
        _FromService(app, identity),
        base_url=str(client.base_url),
        headers=dict(client.headers),
        follow_redirects=client.follow_redirects,
        root_path=getattr(transport, "root_path", ""),
        raise_server_exceptions=getattr(transport, "raise_server_exceptions", True),
    )
    other.cookies = client.cookies
    other.app_state.update(client.app_state)
    other.portal = client.portal
    return other

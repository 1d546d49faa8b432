"""`MeshWSGIMiddleware`: each request of a WSGI application, decided as `MeshMiddleware` does.

The environ becomes a scope (`middleware.environ`), the same code decides about it, and what it took
away or added is done to the environ. What the application returns passes as it comes, while the
request is allowed (`middleware.live_wsgi`).

Who calls, in this order:

1. A `VerifiedPeer` under `PEER_KEY` in the environ, which only code of this process can put there.
2. The ASGI scope that a2wsgi hands on as ``asgi.scope``.
3. The connection itself, where the server gives it: ``gunicorn.socket``, ``werkzeug.socket``.

Nothing else, unless a source is given (`middleware.proxies`). Others give no proof: 403.
"""

from __future__ import annotations

import http
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from mesh_middleware._types import Environ, Scope, StartResponse, WSGIApp
from mesh_middleware.middleware.audit import AUDIT_HEADER, AuditRule
from mesh_middleware.middleware.enforcer import Enforcer
from mesh_middleware.middleware.environ import (
    put_headers,
    scope_of,
    split_lines,
    without_collisions,
)
from mesh_middleware.middleware.live import Question, checked_drain
from mesh_middleware.middleware.live_wsgi import OpenCall, OpenResponse
from mesh_middleware.middleware.peer import (
    EXTENSION,
    PEER_KEY,
    Caller,
    decision_of,
    enforcement,
)
from mesh_middleware.middleware.proxies import IdentitySource
from mesh_middleware.middleware.refusal import Refusal
from mesh_middleware.middleware.sockets import connection_proof
from mesh_middleware.policy.decision import Decision
from mesh_middleware.policy.request import HTTPRequest
from mesh_middleware.state import MeshState, StateSource, sources
from mesh_middleware.tls.contexts import VerifiedPeer

_REASONS: Final = {status.value: f"{status.value} {status.phrase}" for status in http.HTTPStatus}


class MeshWSGIMiddleware:
    """Lets through what the intentions of one service allow.

    With Flask: ``app.wsgi_app = MeshWSGIMiddleware(app.wsgi_app, service="web")``.

    Takes what `MeshMiddleware` takes, with the same meaning; of two middlewares around one another,
    whichever of the two they are, the outer one decides. The manager of `service` is started with
    the first request, thus in the worker process and never in a constructor. Safe from any number
    of threads.

    *Headers.* Rules see what the application sees. Servers make no difference between ``X-Role``
    and ``X_Role``: gunicorn, waitress and mod_wsgi drop the second, and behind a2wsgi it is dropped
    here. Servers join repeated lines by commas: a value with commas is judged joined and as lines
    of its own, and both must be allowed.
    """

    def __init__(
        self,
        app: WSGIApp,
        *,
        service: str | None = None,
        mesh: StateSource | None = None,
        exempt_paths: Iterable[str] = (),
        enforcement: str | None = None,
        audit: Iterable[AuditRule] = (),
        debug_headers: bool = False,
        drain_seconds: float = 0.0,
        identity_from: Iterable[IdentitySource] = (),
    ) -> None:
        self.app = app
        self.arguments: Mapping[str, Any] = {
            "service": service,
            "mesh": mesh,
            "exempt_paths": exempt_paths if isinstance(exempt_paths, str) else tuple(exempt_paths),
            "enforcement": enforcement,
            "audit": tuple(audit),
            "debug_headers": debug_headers,
            "drain_seconds": drain_seconds,
            "identity_from": tuple(identity_from),
        }
        """As `MeshMiddleware.arguments`."""
        self._service = service or ""
        self._mesh = mesh
        self._debug_headers = debug_headers
        self._drain_seconds = checked_drain(drain_seconds)
        self._enforcer = _LineEnforcer(
            service=service,
            mesh=mesh,
            exempt_paths=self.arguments["exempt_paths"],
            enforcement=enforcement,
            audit=self.arguments["audit"],
            identity_from=self.arguments["identity_from"],
        )

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        without_collisions(environ)
        scope = scope_of(environ)
        headers = scope["headers"]
        enforcer, method = self._enforcer, scope["method"]
        mark = enforcement(environ)
        before = None if mark is None else enforcer.mark(mark, scope, method)
        if before is not None and enforcer.covered(before, scope):
            return self.app(environ, start_response)
        extensions, ours = _proofs(scope, environ)
        source = self._source() or self._start()
        state = source.state
        found = enforcer.enforce(
            scope, method, extensions, ours, state, before=before, environ=environ
        )
        if isinstance(found, Refusal):
            return _refuse(environ, start_response, found)
        environ[PEER_KEY] = enforcement(scope)
        put_headers(environ, headers, scope["headers"])
        if found is None:
            return self.app(environ, start_response)
        seen = (source, state.generation)
        call = OpenCall(enforcer, self._source, found, seen, self._drain_seconds)
        response = OpenResponse(call, environ, start_response, _refuse)
        start: StartResponse = response.start
        if self._debug_headers:
            start = _with_audit_header(environ, start)
        return response.of(self.app, start)

    def _source(self) -> StateSource | None:
        return self._mesh or sources.get(self._service)

    def _start(self) -> StateSource:
        # Imported here: who gives a state of their own needs no agent and not its client.
        from mesh_middleware import runtime  # noqa: PLC0415

        return runtime.manager_for(self._service)


class _LineEnforcer(Enforcer):
    """Decides about requests whose repeated header lines a server has joined."""

    def _decide(self, asked: Question, state: MeshState) -> tuple[Caller | None, Decision]:
        """As in the base class; when allowed, for values as lines of their own, too."""
        caller, decision = super()._decide(asked, state)
        request = asked.request
        lines = split_lines(request.headers)
        if not decision.allowed or lines is None:
            return caller, decision
        apart = HTTPRequest(
            request.method,
            request.target,
            lines,
            scheme=request.scheme,
            decoded_path=request.decoded_path,
        )
        _, other = super()._decide(replace(asked, request=apart), state)
        if other.allowed:
            return caller, decision
        return caller, replace(other, detail="so decided for the header values apart")


def _proofs(scope: Scope, environ: Environ) -> tuple[dict[str, Any], dict[str, Any]]:
    """The extensions of `scope`, and ours among them, with who is proven to call."""
    extensions: dict[str, Any] = scope["extensions"]
    ours: dict[str, Any] = extensions.get(EXTENSION) or {}
    given = environ.get(PEER_KEY)
    if isinstance(given, VerifiedPeer):
        return extensions, {**ours, "peer": given}
    if isinstance(ours.get("peer"), VerifiedPeer) or "tls" in extensions:
        return extensions, ours
    peer, tls = connection_proof(environ)
    if peer is not None:
        ours = {**ours, "peer": peer}
    elif tls is not None:
        extensions = {**extensions, "tls": tls}
    return extensions, ours


def _refuse(environ: Environ, start_response: StartResponse, refusal: Refusal) -> Iterable[bytes]:
    """Answer; the request's body is left to the server, which discards it or closes."""
    headers = [(name.decode("ascii"), value.decode("latin-1")) for name, value in refusal.headers]
    start_response(_REASONS[refusal.status], headers)
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [refusal.body]


def _with_audit_header(environ: Environ, start_response: StartResponse) -> StartResponse:
    """`start_response`, adding `AUDIT_HEADER` to the response of a request that rules refuse."""
    decision = decision_of(environ)
    if decision is None or decision.allowed:
        return start_response
    header = (AUDIT_HEADER.decode("ascii"), str(decision.reason))

    def told(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Any:
        return start_response(status, [*headers, header], *exc_info)

    return told

"""`MeshMiddleware`: each request and WebSocket of an ASGI application, decided by intentions.

`middleware.enforcer` decides, from one snapshot of the mesh state. What it refuses is answered
here. What is allowed goes on to the application with the caller in the scope (`peer_identity`) and
without headers by which a client could pretend to be somebody (`middleware.headers`); tokens are
removed too, and verified payloads added, as their providers say (`tls.tokens`).

In audit (`middleware.audit`) what rules refuse goes on too; `decision_of` tells the application.

Only ``lifespan`` passes undecided. A scope of any other kind raises: nothing is answered and the
application is not called.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

from starlette.concurrency import run_in_threadpool

from mesh_middleware._types import ASGIApp, Receive, Scope, Send
from mesh_middleware.errors import MeshError
from mesh_middleware.middleware.audit import AuditRule, with_audit_header
from mesh_middleware.middleware.enforcer import Enforcer
from mesh_middleware.middleware.live import Live, checked_drain
from mesh_middleware.middleware.peer import (
    ENFORCED,
    EXTENSION,
)
from mesh_middleware.middleware.proxies import IdentitySource
from mesh_middleware.middleware.refusal import (
    Refusal,
    is_http1,
    send_refusal,
)
from mesh_middleware.policy.decision import Reason
from mesh_middleware.state import MeshState, StateSource, sources
from mesh_middleware.tls.contexts import VerifiedPeer

_DECIDED: Final = frozenset({"http", "websocket"})


class MeshMiddleware:
    """Lets through what the intentions of one service allow.

    Give exactly one of `service` and `mesh`. `service`: a Consul service name; its manager is
    started from the environment at the application's startup or with the first request, never
    here. `mesh`: where the state comes from, a `MeshManager` or a `StaticState`.

    `exempt_paths`: paths such as ``/health/live`` that anybody may GET or HEAD without a
    certificate; exactly these, without a query. Prefer the launcher's operations listener.

    `enforcement`: ``"audit"`` logs and counts what the rules refuse and passes it on; a caller
    must still be proven. None is what the manager's `MeshConfig` says. `audit`: `AuditRule` values,
    for single routes or sources. `debug_headers`: say the reason in a response header
    (``x-mesh-audit``) of such a request. Of two middlewares around one another the outer one
    decides.

    `drain_seconds`: what is open when intentions, roots or the caller's certificate end it is cut
    at once (`middleware.live`); more than 0 lets HTTP requests finish for so long.

    `identity_from`: whose word about the caller counts where something else ends TLS
    (`middleware.proxies`); nobody's by default.

    ConfigError for wrong arguments; when running, for a manager that cannot be configured, and
    for two middlewares of different services around one another.
    """

    def __init__(
        self,
        app: ASGIApp,
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
        """What it was made with, for a launcher that puts a middleware of its own around it."""
        self._service = service or ""
        self._mesh = mesh
        # FastAPI(root_path=...) sets it in its own scopes, which an outer middleware never sees.
        app_root = getattr(app, "root_path", "")
        self._enforcer = Enforcer(
            service=service,
            mesh=mesh,
            exempt_paths=self.arguments["exempt_paths"],
            enforcement=enforcement,
            audit=self.arguments["audit"],
            identity_from=self.arguments["identity_from"],
            app_root=app_root.rstrip("/") if isinstance(app_root, str) else "",
        )
        self._debug_headers = debug_headers
        self._live = Live(self._enforcer, self._source, checked_drain(drain_seconds))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one scope."""
        # All in one frame: another coroutine costs each request.
        kind, enforcer = scope["type"], self._enforcer
        if kind not in _DECIDED:
            await self._undecided(scope, receive, send)
            return
        method: str = scope["method"] if kind == "http" else "GET"
        extensions: dict[str, Any] = scope.get("extensions") or {}
        ours: dict[str, Any] = extensions.get(EXTENSION) or {}
        before = enforcer.mark(ours[ENFORCED], scope, method) if ENFORCED in ours else None
        if before is not None and enforcer.covered(before, scope):
            await self.app(scope, receive, send)
            return
        source = self._mesh
        if source is None:
            source = sources.get(self._service) or await self._start()
        state = source.state
        found = enforcer.enforce(scope, method, extensions, ours, state, before=before)
        if isinstance(found, Refusal):
            await send_refusal(scope, send, found)
            return
        if self._debug_headers:
            send = with_audit_header(scope, send)
        if found is None:
            await self.app(scope, receive, send)
            return
        entry = self._live.opened(kind, found, state.generation, receive, send)
        entry.leaving = _should_leave(ours.get("peer"), scope, state)
        try:
            await self.app(scope, entry.receive, entry.send)
        except (asyncio.CancelledError, OSError):
            if entry.ending is None:
                raise
        finally:
            entry.home.discard(entry)
        if entry.ending is not None:
            await entry.finish(scope)

    def _source(self) -> StateSource | None:
        return self._mesh or sources.get(self._service)

    async def _start(self) -> StateSource:
        """The manager of our service, started if need be; in a thread, because it may block."""
        # Imported here: who gives a state of their own needs no agent and not its client.
        from mesh_middleware import runtime  # noqa: PLC0415

        return await run_in_threadpool(runtime.manager_for, self._service)

    async def _undecided(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (kind := scope["type"]) != "lifespan":
            raise MeshError(
                f"{Reason.UNKNOWN_SCOPE}: there are no rules for scopes of type {kind!r}"
            )
        source = self._source()
        if source is None:
            try:
                source = await self._start()
            except MeshError as error:
                # A bare exception would mean "no lifespan here" to many servers, which go on.
                await receive()
                await send({"type": "lifespan.startup.failed", "message": str(error)})
                raise
        self._enforcer.say_audit(source.state)
        await self.app(scope, receive, send)


def _should_leave(peer: object, scope: Scope, state: MeshState) -> bool:
    """Whether a caller is to be asked for a new connection, on which it will not be refused."""
    if not isinstance(peer, VerifiedPeer):
        return False
    contexts = state.contexts
    root = None if contexts is None else contexts.root
    return peer.should_leave(root, time.time()) and is_http1(scope)

"""Services that do not speak HTTP: asyncio streams whose peers are proven and authorized.

A server decides once for each connection, after the TLS handshake and before the first byte
reaches its handler, by the intentions of its service. Intentions with L7 permissions refuse, as
they do in a sidecar of a TCP service (Consul, "service intentions": L7 over TCP). Open connections
are decided again with each change of the mesh state, and when the caller's certificate expires.
In audit (`MeshConfig.enforcement`) what rules refuse goes on; callers are proven all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from mesh_middleware import runtime
from mesh_middleware.consul.authorization import ask_agent
from mesh_middleware.consul.manager import MeshManager
from mesh_middleware.errors import ConfigError, MeshError, PeerIdentityError
from mesh_middleware.observe.counts import counts
from mesh_middleware.observe.decisions import allowed, decision_log, log_fields
from mesh_middleware.policy.decision import Decision, Reason
from mesh_middleware.policy.enforcement import AUDITED, EnforcementMode
from mesh_middleware.policy.spiffe import ServiceIdentity, SpiffeID
from mesh_middleware.state import MeshState
from mesh_middleware.tls.contexts import VerifiedPeer, verified_peer

logger = logging.getLogger("mesh_middleware.decisions")

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Authorize = Literal["intentions", "agent"]

AUTHORIZE_SECONDS = 5.0
_HANDSHAKE_SECONDS = 10.0
_TIMER_MAX = 3600.0  # timers of loops take no more than a day or so; looked at again then


def connection_peer(writer: asyncio.StreamWriter) -> ServiceIdentity:
    """The service at the other end of a mesh connection; PeerIdentityError if nobody proved one."""
    peer = verified_peer(writer.get_extra_info("ssl_object"))
    if peer is None or not isinstance(peer.certificate.identity, ServiceIdentity):
        raise PeerIdentityError("this is no mesh connection", reason=Reason.NO_IDENTITY)
    return peer.certificate.identity


@dataclass(slots=True, eq=False)
class _Open:
    """A connection that its handler has."""

    peer: VerifiedPeer
    writer: asyncio.StreamWriter
    task: asyncio.Task[Any]
    refused: bool = False

    def refuse(self) -> None:
        if not self.refused:
            self.refused = True
            self.writer.transport.abort()
            self.task.cancel()


@dataclass(slots=True, eq=False)
class MeshServer:
    """A listening server of `start_mesh_server`; an asynchronous context manager that closes it."""

    _mesh: MeshManager
    _handler: Handler
    _authorize: Authorize
    _server: asyncio.Server = field(init=False)
    _open: set[_Open] = field(init=False, default_factory=set)
    _tasks: set[asyncio.Task[Any]] = field(init=False, default_factory=set)
    _loop: asyncio.AbstractEventLoop = field(init=False)
    _unsubscribe: Callable[[], object] = field(init=False)

    def __repr__(self) -> str:
        where = ", ".join(str(sock.getsockname()) for sock in self.sockets)
        return f"<MeshServer {self._mesh.config.service} {where} {len(self._open)} connections>"

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """The listening sockets; empty when closed."""
        return tuple(self._server.sockets)

    @property
    def port(self) -> int:
        """The port of the first listening socket."""
        port: int = self.sockets[0].getsockname()[1]
        return port

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def serve_forever(self) -> None:
        """Serve until cancelled, then close."""
        try:
            await self._server.serve_forever()
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Stop listening, cancel the handlers and wait for them."""
        self._unsubscribe()
        self._server.close()
        for connection in tuple(self._open):
            connection.task.cancel()
        if self._tasks:
            await asyncio.wait(tuple(self._tasks))

    # -- one connection -----------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task: Any = asyncio.current_task()
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        peer = verified_peer(writer.get_extra_info("ssl_object"))
        connection = None
        try:
            if peer is None or not await self._may_go_on(peer, new=True):
                writer.transport.abort()
                return
            connection = _Open(peer, writer, task)
            self._open.add(connection)
            self._watch_expiry(connection)
            await self._handler(reader, writer)
        except asyncio.CancelledError:
            if connection is None or not connection.refused:
                raise
        except Exception as error:
            # Said here, because asyncio before 3.12 keeps what a handler raises to itself.
            asyncio.get_running_loop().call_exception_handler(
                {
                    "message": "the handler of a mesh connection failed",
                    "exception": error,
                    "transport": writer.transport,
                }
            )
        finally:
            if connection is not None:
                self._open.discard(connection)
            if not writer.transport.is_closing():
                writer.close()

    async def _may_go_on(self, peer: VerifiedPeer, *, new: bool = False) -> bool:
        """Whether `peer` may have a connection, by the newest state; tells of what was decided.

        Decided again when the state changed while the agent was asked. `new`: for the first time.
        """
        source = peer.certificate.identity
        while True:
            state = self._mesh.state
            decision = self._decide(state, peer)
            if decision.allowed and self._authorize == "agent":
                decision = await self._agents_decision(source)
            in_audit = state.enforcement is EnforcementMode.AUDIT and decision.reason in AUDITED
            passes = decision.allowed or in_audit
            if state is self._mesh.state or not passes:
                break
        if new or not passes:
            outcome = "refused" if new else "ended"
            if passes:
                outcome = "allowed" if decision.allowed else "audited"
            _tell(outcome, decision, self._mesh.config.service, source)
        return passes

    def _decide(self, state: MeshState, peer: VerifiedPeer) -> Decision:
        if state.fault is not None:
            return Decision(allowed=False, reason=state.fault)
        if state.policy is None or state.bundle is None:
            return Decision(allowed=False, reason=Reason.NO_POLICY)
        refusal = peer.refusal(state.bundle, state.generation, time.time())
        if refusal is not None:
            return Decision(allowed=False, reason=refusal)
        decision = state.policy.decide_connection(peer.certificate.identity)
        if self._authorize == "agent" and decision.reason in _LEFT_TO_THE_AGENT:
            return Decision(allowed=True, reason=decision.reason, revision=decision.revision)
        return decision

    async def _agents_decision(self, source: ServiceIdentity | SpiffeID) -> Decision:
        if not isinstance(source, ServiceIdentity):
            return Decision(allowed=False, reason=Reason.NOT_A_SERVICE)
        service = self._mesh.config.service
        try:
            async with asyncio.timeout(AUTHORIZE_SECONDS):
                yes, why = await asyncio.wrap_future(
                    self._mesh.run_coroutine(ask_agent(self._mesh.client, service, source))
                )
        except (MeshError, TimeoutError) as error:
            detail = f"the agent was not able to decide: {error}"
            return Decision(allowed=False, reason=Reason.NO_POLICY, detail=detail)
        reason = Reason.INTENTION_ALLOW if yes else Reason.INTENTION_DENY
        return Decision(allowed=yes, reason=reason, detail=f"the agent decided: {why}")

    # -- changes ------------------------------------------------------------------------------

    def _changed(self, _state: MeshState) -> None:
        """In the manager's thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed, and its connections
            self._loop.call_soon_threadsafe(self._look_again_soon)

    def _look_again_soon(self) -> None:
        for connection in tuple(self._open):
            self._start(self._look_again(connection))

    async def _look_again(self, connection: _Open) -> None:
        if not await self._may_go_on(connection.peer) and connection in self._open:
            connection.refuse()

    def _watch_expiry(self, connection: _Open) -> None:
        left = connection.peer.certificate.not_after - time.time()

        def look() -> None:
            if connection not in self._open:
                return
            self._start(self._look_again(connection))
            self._watch_expiry(connection)

        # a second later: a certificate is valid through the whole of its last one
        self._loop.call_later(min(max(left, 0.0) + 1.0, _TIMER_MAX), look)

    def _start(self, coroutine: Any) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _tell(
    outcome: str, decision: Decision, service: str, source: ServiceIdentity | SpiffeID
) -> None:
    """Log and count a decision about a connection, as the middlewares do for theirs."""
    fields = log_fields(decision, service=service, source=source, method="TCP", protocol="tcp")
    if outcome != "allowed":
        decision_log.refused(fields, enforced=outcome != "audited", verb=outcome)
    elif logger.isEnabledFor(logging.DEBUG):
        allowed(fields)
    if counts.on:
        counts.decided(outcome, decision, source)
        if outcome != "allowed":
            counts.remember(outcome, fields)


_LEFT_TO_THE_AGENT = frozenset(
    {
        Reason.INTENTION_ALLOW,
        Reason.INTENTION_DENY,
        Reason.DEFAULT_ALLOW,
        Reason.DEFAULT_DENY,
        Reason.L7_OVER_TCP,
    }
)
"""Our own reasons that count for nothing where the agent decides; who the caller is always does."""


async def start_mesh_server(
    handler: Handler,
    mesh: MeshManager | str,
    host: str | None = None,
    port: int = 0,
    *,
    authorize: Authorize = "intentions",
    alpn: Iterable[str] = (),
    limit: int = 2**16,
    **options: Any,
) -> MeshServer:
    """A TCP server of the service of `mesh`; ``handler(reader, writer)`` gets allowed callers only.

    `mesh`: a started manager, or the name of a service. `host`, `port`, `limit`, `options`: as in
    `asyncio.start_server`. `authorize`: ``"intentions"`` decides by the list that the manager
    keeps, ``"agent"`` asks the agent for each connection, and refuses when it does not answer.

    Who is calling: `connection_peer`. A refused caller's connection is cut, also a running one;
    its handler is cancelled. With ``MeshConfig(enforcement="audit")`` callers that the intentions
    refuse are logged and served; who they are is proven all the same. ConfigError for another
    `authorize`; NotReadyError when the mesh has given no certificate yet: ``await mesh.ready(30)``
    first.
    """
    if authorize not in ("intentions", "agent"):
        raise ConfigError(f'authorize: {authorize!r} is neither "intentions" nor "agent"')
    found: Any = runtime.manager_for(mesh) if isinstance(mesh, str) else mesh
    server = MeshServer(found, handler, authorize)
    server._loop = asyncio.get_running_loop()
    context = found.server_context(alpn)
    found._contexts()  # nobody could connect, and would not learn why
    options.setdefault("ssl_handshake_timeout", _HANDSHAKE_SECONDS)
    server._server = await asyncio.start_server(
        server._serve, host, port, ssl=context, limit=limit, **options
    )
    server._unsubscribe = found.subscribe(server._changed)
    if found.state.enforcement is EnforcementMode.AUDIT:
        logger.warning(
            "%s: AUDIT MODE: connections that intentions refuse are passed on",
            found.config.service,
            extra={"mesh_service": found.config.service},
        )
    return server

"""The service in Consul's catalogue, for as long as the launcher runs.

A thread of its own with its own loop keeps the registration, in the process that owns the port.
It reads from the heartbeat board whether the service can serve, so that it works alike for one
process, for workers and for a worker that is being reloaded, and still speaks to the agent when
the application's event loop hangs: that is when the check must go critical.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Self

from mesh_middleware.config import MeshConfig
from mesh_middleware.consul.client import ConsulClient
from mesh_middleware.consul.failures import FailureKind, explain
from mesh_middleware.consul.registration import Registrar, ServiceRegistration
from mesh_middleware.errors import ConfigError, ConsulError, DecodeError
from mesh_middleware.server.heartbeat import Board, Phase

logger = logging.getLogger("mesh_middleware.server")

LOOK_SECONDS = 0.1
"""How soon the agent hears of a change on the board."""

RETRY_SECONDS = 1.5
WITHDRAW_SECONDS = 2.0
DEREGISTER_SECONDS = 3.0
"""How long a stop may wait for the agent; Consul removes a dead instance by itself later."""


def registration_of(
    config: MeshConfig,
    listener: socket.socket,
    *,
    advertise: str | None = None,
    tags: tuple[str, ...] = (),
    meta: Mapping[str, str] | None = None,
) -> ServiceRegistration:
    """The catalogue's entry for what listens on `listener`.

    The address is `advertise`, else the address bound to when it is a concrete one, else left to
    the agent, which then gives its node's.
    """
    bound = listener.getsockname()
    if not isinstance(bound, tuple):
        raise ConfigError(
            "Consul cannot list a unix socket; serve a port, or leave out to register"
        )
    host, port = str(bound[0]), int(bound[1])
    if advertise is None and not ipaddress.ip_address(host.partition("%")[0]).is_unspecified:
        advertise = host
    return ServiceRegistration(config.service, port, advertise, tags, dict(meta or {}))


class Presence:
    """Registers when the first worker is ready, passes when one serves, deregisters at the end.

    A context manager. `refused` is called once, from its thread, with a message when the agent's
    ACLs do not let the service register.
    """

    def __init__(
        self,
        config: MeshConfig,
        registration: ServiceRegistration,
        board: Board,
        refused: Callable[[str], None],
    ) -> None:
        self._config = config
        self._registration = registration
        self._board = board
        self._refused = refused
        self._told: bool | None = None
        self._registered = False
        self._withdrawn = False
        self._leaving = False
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._keeper: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._main, name="mesh-presence", daemon=True)

    def __repr__(self) -> str:
        return f"<Presence of {self._registration.id}>"

    def __enter__(self) -> Self:
        self._client = ConsulClient(self._config)
        self._registrar = Registrar(
            self._client,
            self._registration,
            sleep=self._pause,
            explain=lambda error: explain(error, "health check", self._config),
        )
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._leave(), DEREGISTER_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEREGISTER_SECONDS)

    def withdraw(self) -> bool:
        """Make the check critical, for good; False when the agent was not told.

        From any thread but the presence's own.
        """
        return bool(self._call(self._withdraw(), WITHDRAW_SECONDS))

    # -- in the thread ------------------------------------------------------------------------

    def _main(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._keeper = self._loop.create_task(self._keep())
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def _call(self, coroutine: asyncio._CoroutineLike[bool], seconds: float) -> bool | None:
        future = asyncio.run_coroutine_threadsafe(asyncio.wait_for(coroutine, seconds), self._loop)
        try:
            return future.result()
        except (ConsulError, DecodeError, TimeoutError) as error:
            logger.warning(
                "%s: the agent could not be told: %s", self._registration.id, error or "no answer"
            )
            return None

    async def _keep(self) -> None:
        while max(self._board.phases()) < Phase.STARTING:  # noqa: ASYNC110 - shared memory
            await asyncio.sleep(LOOK_SECONDS / 2)
        try:
            if await self._register():
                await self._registrar.keep(self._why_not)
        except Exception:  # the thread's edge: the TTL runs out, and somebody has to know why
            logger.exception("the registration of %s is kept no longer", self._registration.id)

    async def _register(self) -> bool:
        """Until it is done; False when the agent says that it will not be."""
        said = False
        while True:
            try:
                await self._registrar.register()
            except (ConsulError, DecodeError) as error:
                failure = explain(error, "registration", self._config)
                if failure.kind is FailureKind.ACL:
                    self._refused(f"the agent does not register the service: {failure}")
                    return False
                if not said:
                    logger.warning("%s is not registered yet: %s", self._registration.id, failure)
                said = True
                await asyncio.sleep(RETRY_SECONDS)
            else:
                self._registered = True
                logger.info("registered as %s", self._registration.id)
                return True

    def _why_not(self) -> str | None:
        """For the registrar: None when the service can serve now."""
        health = self._board.health()
        if health.ready is not self._told:
            if health.ready:
                logger.info("health check passing")
            elif self._told:
                logger.warning("health check critical: %s", health.why)
            self._told = health.ready
        return None if health.ready else health.why

    async def _pause(self, seconds: float) -> None:
        """Sleep, but not longer than the agent knows the truth; end the keeping when told to."""
        deadline = self._loop.time() + seconds
        while self._loop.time() < deadline and self._unchanged():  # noqa: ASYNC110 - shared memory
            await asyncio.sleep(LOOK_SECONDS)
        if self._leaving:
            raise asyncio.CancelledError

    def _unchanged(self) -> bool:
        return not self._leaving and self._board.health().ready is self._told

    async def _withdraw(self) -> bool:
        if self._withdrawn or not self._registered:
            return False
        self._withdrawn = True
        await self._stop_keeping()
        await self._registrar.critical("stopping")
        return True

    async def _leave(self) -> bool:
        await self._stop_keeping()
        try:
            if self._registered:
                await self._registrar.deregister()
                logger.info("deregistered %s", self._registration.id)
            return self._registered
        finally:
            await self._client.aclose()

    async def _stop_keeping(self) -> None:
        """End the keeper between two updates, or soon: an agent may take long to answer."""
        self._leaving = True
        keeper, self._keeper = self._keeper, None
        if keeper is not None and self._registered:
            await asyncio.wait((keeper,), timeout=WITHDRAW_SECONDS / 2)
        if keeper is not None:
            keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await keeper

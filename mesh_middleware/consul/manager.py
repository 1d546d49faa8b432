"""MeshManager: the thread that learns, and the newest `MeshState` for everybody else."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Self, TypeVar

from mesh_middleware._subscribers import Subscribers
from mesh_middleware.config import MeshConfig
from mesh_middleware.consul.client import ConsulClient
from mesh_middleware.consul.failures import Failure, FailureKind, Failures
from mesh_middleware.consul.learner import Learner
from mesh_middleware.consul.peers import peers_of
from mesh_middleware.errors import NotReadyError
from mesh_middleware.policy.enforcement import EnforcementMode
from mesh_middleware.policy.peering import PeerBundle
from mesh_middleware.policy.spiffe import ServiceIdentity
from mesh_middleware.state import MeshState, sources
from mesh_middleware.tls.contexts import MeshContext, TLSContexts

logger = logging.getLogger("mesh_middleware.consul")

T = TypeVar("T")
Subscriber = Callable[[MeshState], object]
ClientFactory = Callable[[MeshConfig], ConsulClient]

_CLOSE_SECONDS = 5.0
_RESTART_SECONDS = 1.5
_LOOK_SECONDS = 0.25  # readiness also comes with time alone: a leaf becomes valid

_managers: weakref.WeakSet[MeshManager] = weakref.WeakSet()
_inherited: list[object] = []  # loops of the parent process; closing one would disturb the parent


class MeshManager:
    """Keeps the mesh state of `config.service` up to date, in a thread of its own.

    A context manager; `start` and `close` may be called again and again. After a fork the child's
    copy knows nothing and must be started anew. `clock`: unix seconds.
    """

    def __init__(
        self,
        config: MeshConfig,
        *,
        client_factory: ClientFactory | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.config = config
        self._client_factory: ClientFactory = client_factory or ConsulClient
        self._peers: tuple[PeerBundle, ...] = ()
        self._clock = clock
        self._generation = 0
        failed = f"{config.service}: a subscriber failed"
        self._subscribers: Subscribers[MeshState] = Subscribers(logger, failed)
        self._reset()
        _managers.add(self)

    def _reset(self) -> None:
        """As before the first start, with locks that nobody holds."""
        self._lifecycle = threading.RLock()
        self._changed = threading.Condition()
        self._failures = Failures(self.config)
        self._state = self._unknown(self._generation)
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._client: ConsulClient | None = None
        self._closing = True

    def _unknown(self, generation: int) -> MeshState:
        mode = EnforcementMode(self.config.enforcement)
        return MeshState(self.config.service, generation, enforcement=mode)

    def __repr__(self) -> str:
        missing = ", ".join(self.state.missing(now=self._clock()))
        condition = "closed" if self._closing else f"missing {missing}" if missing else "ready"
        return f"<MeshManager {self.config.service} at {self.config.address}: {condition}>"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # -- life ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Start to learn, and become the process's source for the service; returns at once.

        ConfigError when a setting cannot be used, or the service has another manager here.
        """
        with self._lifecycle:
            if self._thread is not None and self._thread.is_alive():
                return
            self._peers = peers_of(self.config)
            client = self._client_factory(self.config)
            sources.add(self.config.service, self)
            self._closing = False
            self._client = client
            started = threading.Event()
            self._thread = threading.Thread(
                target=self._main, args=(client, started), name="mesh-manager", daemon=True
            )
            self._thread.start()
            started.wait()

    def close(self) -> None:
        """Stop learning, quickly; `state` knows nothing from then on. Can be called twice."""
        with self._lifecycle:
            sources.remove(self.config.service, self)
            thread, loop = self._thread, self._loop
            self._closing = True
            if thread is None:
                return
            if loop is not None:
                with contextlib.suppress(RuntimeError):  # the loop is closed already
                    loop.call_soon_threadsafe(self._cancel)
            if thread is not threading.current_thread():
                thread.join(_CLOSE_SECONDS)
            self._thread = None
            self._set(self._unknown(self._generation + 1))

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _main(self, client: ConsulClient, started: threading.Event) -> None:
        try:
            with asyncio.Runner() as runner:
                self._loop = runner.get_loop()
                started.set()
                with contextlib.suppress(asyncio.CancelledError):
                    runner.run(self._run(client))
        finally:
            started.set()

    async def _run(self, client: ConsulClient) -> None:
        self._task = asyncio.current_task()
        try:
            while not self._closing:
                await self._learn(client)
        finally:
            await client.aclose()

    async def _learn(self, client: ConsulClient) -> None:
        learner = Learner(
            self.config,
            client,
            self._publish,
            state=self._state,
            failures=self._failures,
            peers=self._peers,
            clock=self._clock,
        )
        try:
            await learner.run()
        except Exception:  # the thread's edge: whatever it was, nobody else would notice
            logger.exception(
                "%s: the mesh manager failed; everything is refused until it has started again",
                self.config.service,
                extra={"mesh_event": "crashed", "mesh_service": self.config.service},
            )
            # The next learner knows nothing: what the last one knew must not count as known.
            unknown = replace(self._state, policy=None, fault=None, updated=MappingProxyType({}))
            self._publish(replace(unknown, generation=self._generation + 1))
            await asyncio.sleep(_RESTART_SECONDS)

    # -- state --------------------------------------------------------------------------------

    @property
    def state(self) -> MeshState:
        """The newest snapshot; cheap, never blocks, safe from any thread."""
        return self._state

    @property
    def ready(self) -> Readiness:
        """Whether requests can be decided now: ``if manager.ready``.

        Called, it waits: ``await manager.ready(timeout)`` is `wait_ready` for coroutines.
        """
        return Readiness(self)

    def _is_ready(self) -> bool:
        state = self._state
        return state.policy is not None and not state.missing(now=self._clock())

    @property
    def last_errors(self) -> Mapping[str, Failure]:
        """What fails now, by part: text with what, why and what to do; `kind` and `status`."""
        return self._failures.current

    @property
    def last_failure_kind(self) -> FailureKind | None:
        """``unreachable``, ``acl`` or ``other``: the worst of `last_errors`; None for none."""
        kinds = {failure.kind for failure in self._failures.current.values()}
        order = (FailureKind.ACL, FailureKind.UNREACHABLE, FailureKind.OTHER)
        return next((kind for kind in order if kind in kinds), None)

    def wait_ready(self, timeout: float | None = None) -> MeshState:
        """The first ready state. `timeout` in seconds; None waits for ever.

        NotReadyError when the time is over or the manager is closed: it names the missing parts,
        the last error of each and what to do.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while not self._is_ready():
                left = _LOOK_SECONDS if deadline is None else deadline - time.monotonic()
                if left <= 0 or self._closing:
                    raise self._not_ready()
                self._changed.wait(min(left, _LOOK_SECONDS))
            return self._state

    async def _wait_ready(self, seconds: float | None) -> MeshState:
        loop, woken = asyncio.get_running_loop(), asyncio.Event()
        unsubscribe = self.subscribe(lambda _: loop.call_soon_threadsafe(woken.set))
        deadline = None if seconds is None else time.monotonic() + seconds
        try:
            while not self._is_ready():
                left = _LOOK_SECONDS if deadline is None else deadline - time.monotonic()
                if left <= 0 or self._closing:
                    raise self._not_ready()
                woken.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(left, _LOOK_SECONDS)):
                        await woken.wait()
            return self._state
        finally:
            unsubscribe()

    def _not_ready(self) -> NotReadyError:
        service = self.config.service
        if self._closing:
            return NotReadyError(f"the mesh manager of {service!r} is not running; start() it")
        missing = self._state.missing(now=self._clock())
        return NotReadyError(
            f"{service!r} cannot serve yet; missing {self._failures.words(missing)}",
            missing=missing,
        )

    def subscribe(self, callback: Subscriber) -> Callable[[], None]:
        """Call `callback` with each new state, in the manager's thread; returns the way out.

        It must be quick and not block; what it raises is logged.
        """
        return self._subscribers.add(callback)

    def _publish(self, state: MeshState) -> None:
        if self._closing:
            return
        news = state.generation != self._state.generation
        self._set(state)
        if news:
            self._subscribers.tell(state)

    def _set(self, state: MeshState) -> None:
        with self._changed:
            self._state = state
            self._generation = state.generation
            self._changed.notify_all()

    # -- services of the thread ---------------------------------------------------------------

    @property
    def client(self) -> ConsulClient:
        """The client of the manager's loop: use it in `run_coroutine` only."""
        if self._client is None:
            raise self._not_ready()
        return self._client

    def run_coroutine(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Run `coroutine` in the manager's loop, from any thread. NotReadyError when closed."""
        loop = self._loop
        if self._closing or loop is None or loop.is_closed():
            coroutine.close()
            raise self._not_ready()
        return asyncio.run_coroutine_threadsafe(coroutine, loop)

    def server_context(self, alpn: Iterable[str] = ()) -> MeshContext:
        """A TLS context for servers, always in the newest generation."""
        return MeshContext.for_server(self._contexts, alpn=alpn)

    def client_context(
        self, expected: ServiceIdentity | str, alpn: Iterable[str] = ()
    ) -> MeshContext:
        """A TLS context for calling `expected`, and nobody else, always in the newest generation.

        `expected`: an identity, or the name of a service next to ours (same datacenter, namespace
        and partition). It goes wherever an `ssl.SSLContext` goes.
        """
        if isinstance(expected, ServiceIdentity):
            return MeshContext.for_client(self._contexts, expected, alpn=alpn)
        return MeshContext.for_client_beside(self._contexts, expected, alpn=alpn)

    def _contexts(self) -> TLSContexts:
        contexts = self._state.contexts
        if contexts is None:
            raise self._not_ready()
        return contexts


def _after_fork_in_child() -> None:
    """A child has no manager thread: copies must not look alive, nor touch the parent's loop."""
    for manager in tuple(_managers):
        _inherited.append((manager._loop, manager._client, manager._thread))
        manager._reset()
        sources.remove(manager.config.service, manager)


@dataclass(frozen=True, slots=True)
class Readiness:
    """True when a manager's state is ready; called, it waits for that."""

    _manager: MeshManager

    def __bool__(self) -> bool:
        return self._manager._is_ready()

    async def __call__(self, timeout: float | None = None) -> MeshState:  # noqa: ASYNC109
        """The first ready state; NotReadyError as from `MeshManager.wait_ready`."""
        return await self._manager._wait_ready(timeout)


os.register_at_fork(after_in_child=_after_fork_in_child)

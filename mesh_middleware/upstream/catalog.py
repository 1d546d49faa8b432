"""Instances as the Consul agent lists them, kept up to date by blocking queries.

Each upstream that was asked for once is watched in the manager's loop, one query for each
datacenter, so that later calls find the list ready. A watch ends when nobody asked for
`IDLE_SECONDS`. While the agent does not answer, the last list stays: who is on it is proven in
each handshake anyhow.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from mesh_middleware._subscribers import Subscribers
from mesh_middleware.consul.client import Answer, ConsulClient
from mesh_middleware.consul.decode_health import Health, Instance, decode_health
from mesh_middleware.consul.manager import MeshManager
from mesh_middleware.consul.watcher import Watcher
from mesh_middleware.errors import ConfigError, ConsulError, DecodeError, NotReadyError
from mesh_middleware.state import StateSource
from mesh_middleware.upstream.endpoints import Endpoint, Endpoints
from mesh_middleware.upstream.names import UpstreamName
from mesh_middleware.upstream.resolver import ResolutionError, Resolver, refuse_peer

logger = logging.getLogger("mesh_middleware.upstream")

IDLE_SECONDS = 600.0
MAX_WATCHES = 150
"""Agents take 200 connections of one client address, unless told otherwise."""

_DESCRIBE_SECONDS = 1.0
_SHOWN = 5

_Query = tuple[str, str, str, str, str]
"""Service, datacenter, namespace, partition, filter; empty: the agent's own, or none."""

Subscriber = Callable[[frozenset[Endpoint]], object]


@dataclass(frozen=True, slots=True)
class _Answer:
    """What the agent said. `others`: in words, who has the name without being in the mesh."""

    rows: tuple[Instance, ...]
    others: str


@dataclass(slots=True, eq=False)
class _Watch:
    """One query and its newest answer; None: there was none yet. `alive`: it is still watched."""

    query: _Query
    used: float
    answer: _Answer | None = None
    error: Exception | None = None
    alive: bool = True

    def end(self, _: object = None) -> None:
        """Nobody watches any more."""
        self.alive = False

    @property
    def endpoints(self) -> frozenset[Endpoint]:
        """The usable instances of the service, whatever their tags."""
        rows = self.answer.rows if self.answer is not None else ()
        return frozenset(usable_endpoints(rows, UpstreamName(self.query[0])))

    @property
    def final(self) -> bool:
        """Whether waiting would be in vain: the agent answered, and it was a refusal."""
        return isinstance(self.error, DecodeError) or (
            isinstance(self.error, ConsulError) and self.error.status is not None
        )


@dataclass(frozen=True, slots=True)
class _Built:
    """The list of an upstream, and the watches and answers that it was made of."""

    watches: tuple[_Watch, ...]
    answers: tuple[_Answer | None, ...]
    endpoints: Endpoints | None

    def holds(self, now: float) -> bool:
        """Whether there is nothing newer. Its watches are in use at `now`, monotonic seconds."""
        for watch, answer in zip(self.watches, self.answers, strict=True):
            if watch.answer is not answer or not watch.alive:
                return False
            watch.used = now
        return True


class CatalogResolver:
    """Asks the agent of `manager`, by ``/v1/health/connect``."""

    def __init__(self, manager: MeshManager) -> None:
        # Weak: resolvers are kept for each manager (`catalog_of`), and must not keep it alive.
        self._manager = weakref.ref(manager)
        self._changed = threading.Condition()
        self._watches: dict[_Query, _Watch] = {}
        self._built: dict[UpstreamName, _Built] = {}
        self._subscribers: Subscribers[frozenset[Endpoint]] = Subscribers(
            logger, "a subscriber of the catalogue failed"
        )

    def known(self, name: UpstreamName) -> Endpoints | None:
        """The passing instances in the mesh; starts to watch when nobody did."""
        built = self._built.get(name)
        if built is None or not built.holds(time.monotonic()):
            watches = self._watch(name)
            answers = tuple(watch.answer for watch in watches)
            built = self._built[name] = _Built(watches, answers, _endpoints(name, answers))
        return built.endpoints

    def wait(self, name: UpstreamName, timeout: float | None) -> Endpoints:
        """As `known`, waiting for the first answer."""
        refuse_peer(name)
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while True:
                found = self.known(name)
                if found is not None:
                    return found
                watches = self._watch(name)
                if all(watch.answer is not None or watch.final for watch in watches):
                    raise ResolutionError(f"{name}: {_errors(watches)}")
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise TimeoutError(f"{name}: {_errors(watches)}")
                self._changed.wait(0.25 if left is None else min(left, 0.25))

    def subscribe(self, callback: Subscriber) -> Callable[[], None]:
        """Call `callback` with instances that left a list; returns the way out.

        Also with all of a list that is watched no longer. Another list may still have some of
        them. In the manager's thread: it must be quick and not block; what it raises is logged.
        """
        return self._subscribers.add(callback)

    # -- watching -----------------------------------------------------------------------------

    def _watch(self, name: UpstreamName) -> tuple[_Watch, ...]:
        where = (name.namespace or "", name.partition or "", name.filter or "")
        datacenters = (name.datacenter or "", *name.failover)
        return tuple(self._one((name.service, datacenter, *where)) for datacenter in datacenters)

    def _one(self, query: _Query) -> _Watch:
        watch = self._watches.get(query)
        now = time.monotonic()
        if watch is not None and watch.alive:
            watch.used = now
            return watch
        with self._changed:
            watch = self._watches.get(query)
            if watch is None or not watch.alive:
                self._make_room()
                watch = _Watch(query, now)
                self._start(watch)
                self._watches[query] = watch
            return watch

    def _make_room(self) -> None:
        """Forget watches that ended; ResolutionError when there are too many that did not."""
        alive = {query: watch for query, watch in self._watches.items() if watch.alive}
        if len(alive) >= MAX_WATCHES:
            raise ResolutionError(
                f"{MAX_WATCHES} upstreams are watched already, each on a connection of its own to "
                "the agent; is a host from outside used as the name of an upstream?"
            )
        self._watches = alive
        self._built.clear()

    def _start(self, watch: _Watch) -> None:
        manager = self._manager()
        if manager is None:
            raise ResolutionError("the mesh manager is gone")
        try:
            running = self._run(watch, manager.client, manager.config.wait_seconds)
            task = manager.run_coroutine(running)
        except NotReadyError as error:
            raise ResolutionError(str(error)) from error
        task.add_done_callback(watch.end)

    async def _run(self, watch: _Watch, client: ConsulClient, wait: float) -> None:
        service, *where = watch.query
        scope = dict(zip(("dc", "ns", "partition", "filter"), where, strict=True))
        given = {key: value for key, value in scope.items() if value}

        async def deliver(answer: Answer) -> None:
            rows = decode_health(answer.json)
            others = "" if any(map(_in_mesh, rows)) else await self._others(service, client, given)
            if answer.headers.get("x-consul-results-filtered-by-acls") == "true":
                others = "; ".join(filter(None, (others, "ACLs of our token hide some")))
            self._publish(watch, _Answer(rows, others))

        watcher = Watcher(
            fetch=lambda index: client.health_connect(service, index, wait, False, given),
            deliver=deliver,
            failed=lambda error: self._failed(watch, error),
            hurry=client.token_watch(),
        )
        while time.monotonic() - watch.used < IDLE_SECONDS:
            await watcher.step()
        watch.end()
        self._tell(watch.endpoints)

    async def _others(self, service: str, client: ConsulClient, given: dict[str, str]) -> str:
        """In words: who has the name without being in the mesh, or meeting the filter."""
        where = {key: value for key, value in given.items() if key != "filter"}
        try:
            async with asyncio.timeout(_DESCRIBE_SECONDS):
                if "filter" in given:
                    answer = await client.health_connect(service, passing=False, where=where)
                    rows = decode_health(answer.json)
                    if rows:
                        return f"{len(rows)} in the mesh, none of them meets {given['filter']}"
                answer = await client.health_service(service, False, where)
                rows = decode_health(answer.json)
        except (ConsulError, DecodeError, TimeoutError):
            return ""
        if not rows:
            return "nothing has that name"
        return (
            f"{len(rows)} with that name, none of them in the mesh (neither connect-native nor "
            "with a sidecar)"
        )

    def _publish(self, watch: _Watch, answer: _Answer) -> None:
        before = watch.endpoints
        with self._changed:
            watch.error = None
            if answer != watch.answer:
                watch.answer = answer
            self._changed.notify_all()
        self._tell(before - watch.endpoints)

    def _tell(self, gone: frozenset[Endpoint]) -> None:
        if gone:
            self._subscribers.tell(gone)

    def _failed(self, watch: _Watch, error: Exception) -> None:
        with self._changed:
            first, watch.error = watch.error is None, error
            self._changed.notify_all()
        if first:
            logger.warning(
                "upstream %r cannot be looked up: %s; the last list stays", watch.query[0], error
            )


def catalog_of(manager: MeshManager) -> CatalogResolver:
    """The resolver of `manager`: one for all its transports, so that each list is watched once."""
    with _lock:
        found = _catalogs.get(manager)
        if found is None:
            found = _catalogs[manager] = CatalogResolver(manager)
        return found


def resolver_for(mesh: StateSource) -> Resolver:
    """The usual resolver for calls as the service of `mesh`; ConfigError when it has no agent."""
    if isinstance(mesh, MeshManager):
        return catalog_of(mesh)
    raise ConfigError(
        f"service {mesh.state.service!r}: only a MeshManager can look up instances; give "
        "resolver=StaticResolver(mesh, {...}), or in a test with mesh_for() another httpx client"
    )


_lock = threading.Lock()
_catalogs: weakref.WeakKeyDictionary[MeshManager, CatalogResolver] = weakref.WeakKeyDictionary()


def _in_mesh(row: Instance) -> bool:
    return bool(row.service)


def _endpoints(name: UpstreamName, answers: Sequence[_Answer | None]) -> Endpoints | None:
    """The usable instances: of the name's own datacenter, then of `failover` in the order written.

    None while nobody has answered. No distance is measured, and a datacenter that does not answer
    keeps nobody from the others.
    """
    known = [answer for answer in answers if answer is not None]
    tiers = [usable_endpoints(each.rows, name) for each in known]
    if not known or (len(known) < len(answers) and not any(tiers)):
        return None
    return Endpoints(tuple(tiers), _described(known))


def usable_endpoints(rows: Iterable[Instance], name: UpstreamName) -> tuple[Endpoint, ...]:
    """Those of `rows` that can be called as `name`, in the order given."""
    return tuple(_endpoint(row) for row in rows if _usable(row, name))


def _usable(row: Instance, name: UpstreamName) -> bool:
    """Passing, with a port and the wanted tag, and really of that service.

    The agent answers with rows of the asked service only; a row that names another one would
    make us expect that other one's certificate.
    """
    return (
        row.health is Health.PASSING
        and row.port > 0
        and row.weight > 0
        and row.service.lower() == name.service.lower()
        and (name.tag is None or name.tag in row.tags)
    )


def _endpoint(row: Instance) -> Endpoint:
    return Endpoint(
        row.host,
        row.port,
        row.service,
        row.namespace,
        row.partition,
        row.datacenter,
        row.weight,
        row.id,
    )


def _described(answers: Sequence[_Answer]) -> str:
    """In words: what is registered, in the mesh or not."""
    rows = [row for answer in answers for row in answer.rows if _in_mesh(row)]
    others = [answer.others for answer in answers if answer.others]
    shown = [
        f"{row.id} ({row.health}, node {row.node}"
        f"{', tags ' + ' '.join(row.tags) if row.tags else ''})"
        for row in rows[:_SHOWN]
    ]
    if len(rows) > _SHOWN:
        shown.append(f"{len(rows) - _SHOWN} more")
    return "; ".join([*filter(None, [", ".join(shown)]), *others]) or "nothing"


def _errors(watches: Sequence[_Watch]) -> str:
    errors = [str(watch.error) for watch in watches if watch.error is not None]
    return "; ".join(errors) or "the Consul agent has not answered yet"

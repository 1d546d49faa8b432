"""Instances by Consul's DNS: for callers that reach a DNS port but no agent's catalogue.

``<service>.connect.consul`` has an SRV record for each passing instance in the mesh. DNS names no
identity: expected is the service of that name, next to the caller where the name does not say
otherwise. Needs ``pip install mesh-middleware[dns]`` (dnspython: SRV records and the additional
section are not in the standard library).

Source: Consul, "DNS: Connect-capable service lookups".
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from mesh_middleware.policy.spiffe import DEFAULT, ServiceIdentity
from mesh_middleware.state import StateSource
from mesh_middleware.upstream.dns_client import DNSClient
from mesh_middleware.upstream.endpoints import Endpoint, Endpoints
from mesh_middleware.upstream.names import DOMAIN, UpstreamName
from mesh_middleware.upstream.resolver import ResolutionError, beside, refuse_choice, refuse_peer

REFRESH_SECONDS = 1.0
"""How old an answer may grow before it is asked for again; Consul's own TTL is 0."""

_LIMIT_SECONDS = 10.0
_REFRESHING_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class _Known:
    at: float
    endpoints: Endpoints


class DNSResolver:
    """Asks the DNS at `server` (``host:port``; an agent's is 8600) for names below `domain`.

    `mesh`: whose calls these are. While the server does not answer, the last answer stays.
    ConfigError for a `server` that is not an IP address with a port. Tags and filters
    are refused, and failover is not followed.
    """

    def __init__(
        self,
        mesh: StateSource,
        server: str = "127.0.0.1:8600",
        *,
        domain: str = DOMAIN,
        refresh_seconds: float = REFRESH_SECONDS,
    ) -> None:
        self._mesh = mesh
        self._domain = domain.strip(".")
        self._refresh = refresh_seconds
        self._client = DNSClient(server)
        self._lock = threading.Lock()
        self._asking: dict[UpstreamName, threading.Event] = {}
        self._known: dict[UpstreamName, _Known] = {}

    def known(self, name: UpstreamName) -> Endpoints | None:
        """The last answer, unless it is too old."""
        known = self._known.get(name)
        if known is None or time.monotonic() - known.at > self._refresh:
            return None
        return known.endpoints

    def wait(self, name: UpstreamName, timeout: float | None) -> Endpoints:
        """Ask, if the last answer is too old; without `timeout` for at most 10 s.

        One call asks for a name, and others of that name wait for it as long as they may, or take
        the last answer when there is one. Names do not wait for each other.
        """
        refuse_peer(name)
        refuse_choice(name, "lookups of the mesh by DNS")
        svid = self._mesh.state.svid
        if svid is None:
            raise ResolutionError("the mesh has given us no certificate yet")
        deadline = time.monotonic() + (_LIMIT_SECONDS if timeout is None else timeout)
        over = threading.Event()
        while (fresh := self.known(name)) is None:
            with self._lock:
                other = self._asking.setdefault(name, over)
            if other is over:
                return self._ask(name, svid.identity, deadline, over)
            last = self._known.get(name)
            if last is not None:
                return last.endpoints
            if not other.wait(deadline - time.monotonic()):
                raise TimeoutError(f"{name}: the DNS has not answered in time")
        return fresh

    def _ask(
        self, name: UpstreamName, ours: ServiceIdentity, deadline: float, over: threading.Event
    ) -> Endpoints:
        """Ask, and remember; the last answer when there is no new one. `over` is set at the end."""
        last = self._known.get(name)
        now = time.monotonic()
        if last is not None:  # leaves time to connect
            deadline = now + min((deadline - now) / 2, _REFRESHING_SECONDS)
        try:
            return self._keep(name, self._tiers(name, ours, deadline))
        except (TimeoutError, ResolutionError) as error:
            if last is None:
                raise type(error)(f"{name}: {error}") from error
            self._known[name] = _Known(time.monotonic(), last.endpoints)
            return last.endpoints
        finally:
            with self._lock:
                del self._asking[name]
            over.set()

    def _keep(self, name: UpstreamName, tiers: tuple[tuple[Endpoint, ...], ...]) -> Endpoints:
        """Remember an answer; the same object as before when it says the same."""
        known = self._known.get(name)
        if known is not None and known.endpoints.tiers == tiers:
            endpoints = known.endpoints
        else:
            endpoints = Endpoints(tiers, f"nothing, as far as DNS tells ({self._query(name)})")
        if any(tiers) or known is not None:  # names that mean nothing come without end
            self._known[name] = _Known(time.monotonic(), endpoints)
        return endpoints

    def _query(self, name: UpstreamName) -> str:
        where = ""
        if name.namespace or name.partition:
            marked = (
                (name.namespace or DEFAULT, "ns"),
                (name.partition, "ap"),
                (name.datacenter, "dc"),
            )
            where = "".join(f".{value}.{mark}" for value, mark in marked if value)
        elif name.datacenter:
            where = f".{name.datacenter}"
        return f"{name.service}.connect{where}.{self._domain}."

    def _tiers(
        self, name: UpstreamName, ours: ServiceIdentity, deadline: float
    ) -> tuple[tuple[Endpoint, ...], ...]:
        """The instances by SRV priority; none for a name that does not exist."""
        tiers: dict[int, list[Endpoint]] = {}
        for place in self._client.places(self._query(name), deadline):
            endpoint = beside(ours, name, place.host, place.port, place.weight)
            tiers.setdefault(place.priority, []).append(endpoint)
        return tuple(tuple(sorted(tiers[key], key=_place)) for key in sorted(tiers))


def _place(endpoint: Endpoint) -> tuple[str, int]:
    return endpoint.host, endpoint.port

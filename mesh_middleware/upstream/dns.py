"""Instances by Consul's DNS: for callers that reach a DNS port but no agent's catalogue.

``<service>.connect.consul`` has an SRV record for each passing instance in the mesh. DNS names no
identity: expected is the service of that name, next to the caller where the name does not say
otherwise. Needs ``pip install mesh-middleware[dns]`` (dnspython: SRV records, the additional
section and TCP after truncation are not in the standard library).

Source: Consul, "DNS: Connect-capable service lookups".
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

try:
    import dns.exception
    import dns.message
    import dns.rdatatype
    import dns.resolver
except ImportError as error:  # another message than "No module named 'dns'"
    raise ImportError("DNSResolver needs dnspython: pip install mesh-middleware[dns]") from error

from mesh_middleware.policy.spiffe import DEFAULT, ServiceIdentity
from mesh_middleware.state import StateSource
from mesh_middleware.upstream.endpoints import Endpoint, Endpoints
from mesh_middleware.upstream.names import DOMAIN, UpstreamName
from mesh_middleware.upstream.resolver import ResolutionError, beside, host_port, refuse_peer

REFRESH_SECONDS = 1.0
"""How old an answer may grow before it is asked for again; Consul's own TTL is 0."""

_LIMIT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class _Known:
    at: float
    endpoints: Endpoints


class DNSResolver:
    """Asks the DNS at `server` (``host:port``; an agent's is 8600) for names below `domain`.

    `mesh`: whose calls these are. While the server does not answer, the last answer stays.
    ConfigError for a `server` without port. Tags are not known here, and failover is not followed.
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
        self._dns = dns.resolver.Resolver(configure=False)
        host, self._dns.port = host_port(server)
        self._dns.nameservers = [host]
        self._lock = threading.Lock()
        self._known: dict[UpstreamName, _Known] = {}

    def known(self, name: UpstreamName) -> Endpoints | None:
        """The last answer, unless it is too old."""
        known = self._known.get(name)
        if known is None or time.monotonic() - known.at > self._refresh:
            return None
        return known.endpoints

    def wait(self, name: UpstreamName, timeout: float | None) -> Endpoints:
        """Ask, if the last answer is too old."""
        refuse_peer(name)
        if name.tag is not None:
            raise ResolutionError(f"{name}: lookups of the mesh by DNS know no tags")
        svid = self._mesh.state.svid
        if svid is None:
            raise ResolutionError("the mesh has given us no certificate yet")
        deadline = time.monotonic() + (_LIMIT_SECONDS if timeout is None else timeout)
        with self._lock:  # one question at a time; who waits finds the answer
            fresh = self.known(name)
            if fresh is not None:
                return fresh
            try:
                tiers = self._ask(name, svid.identity, deadline)
            except dns.exception.DNSException as error:
                return self._old(name, error)
            return self._keep(name, tiers)

    def _old(self, name: UpstreamName, error: dns.exception.DNSException) -> Endpoints:
        known = self._known.get(name)
        if known is not None:
            return known.endpoints
        words = f"{name}: the DNS at {self._dns.nameservers[0]}:{self._dns.port}: {error}"
        if isinstance(error, dns.exception.Timeout):
            raise TimeoutError(words) from error
        raise ResolutionError(words) from error

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

    def _ask(
        self, name: UpstreamName, ours: ServiceIdentity, deadline: float
    ) -> tuple[tuple[Endpoint, ...], ...]:
        """The instances by SRV priority; none for a name that does not exist."""
        try:
            answer = self._dns.resolve(self._query(name), "SRV", lifetime=_left(deadline))
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
            return ()
        tiers: dict[int, list[Endpoint]] = {}
        for record in answer:
            for host in self._addresses(str(record.target), answer.response, deadline):
                endpoint = beside(ours, name, host, record.port, record.weight)
                tiers.setdefault(record.priority, []).append(endpoint)
        return tuple(tuple(sorted(tiers[key], key=_place)) for key in sorted(tiers))

    def _addresses(self, target: str, response: dns.message.Message, deadline: float) -> list[str]:
        """The addresses of a target: Consul puts them into the same answer."""
        kinds = (dns.rdatatype.A, dns.rdatatype.AAAA)
        found = [
            record.address
            for records in response.additional
            if str(records.name) == target and records.rdtype in kinds
            for record in records
        ]
        if found:
            return found
        return [r.address for r in self._dns.resolve(target, "A", lifetime=_left(deadline))]


def _left(deadline: float) -> float:
    return max(0.001, deadline - time.monotonic())


def _place(endpoint: Endpoint) -> tuple[str, int]:
    return endpoint.host, endpoint.port

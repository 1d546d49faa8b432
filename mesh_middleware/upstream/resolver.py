"""From the name of an upstream to its instances: fixed ones, and what every resolver promises.

`catalog.CatalogResolver` asks the Consul agent and is the usual one; `dns.DNSResolver` asks
Consul's DNS.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from mesh_middleware.errors import ConfigError, MeshError
from mesh_middleware.policy.spiffe import ServiceIdentity
from mesh_middleware.state import StateSource
from mesh_middleware.upstream.endpoints import Endpoint, Endpoints
from mesh_middleware.upstream.names import UpstreamName


class ResolutionError(MeshError):
    """It cannot be said where the instances of an upstream are. Transports turn it into theirs."""


class Resolver(Protocol):
    """Finds the instances of upstreams. Safe from any thread.

    One that hears of changes by itself may have ``subscribe(callback)``, as `CatalogResolver` does:
    then idle connections to instances that left are closed at once, else by the next request.
    """

    def known(self, name: UpstreamName) -> Endpoints | None:
        """The newest instances, the same object until they change; None: not known yet.

        Cheap, never blocks.
        """
        ...

    def wait(self, name: UpstreamName, timeout: float | None) -> Endpoints:
        """The instances, waiting until they are known, at most `timeout` seconds (None: no limit).

        ResolutionError says why there is no answer; TimeoutError that there was none in time.
        """
        ...


class StaticResolver:
    """Instances that never change: for tests, and for upstreams that are in no catalogue.

    `instances`: for each service, its addresses (``"10.0.0.5:8443"``, ``"[::1]:8443"``).
    `mesh`: whose calls these are; an upstream is next to the caller (same datacenter, namespace
    and partition) where its name does not say otherwise. ConfigError for an address without port.
    """

    def __init__(self, mesh: StateSource, instances: Mapping[str, Iterable[str]]) -> None:
        self._mesh = mesh
        self._instances = {
            service: [host_port(address) for address in addresses]
            for service, addresses in instances.items()
        }
        self._built: dict[UpstreamName, tuple[ServiceIdentity, Endpoints]] = {}

    def known(self, name: UpstreamName) -> Endpoints | None:
        """The instances given for the service; None while the caller's own identity is unknown.

        ResolutionError for a tag or a filter: nobody says which instance has what.
        """
        refuse_choice(name, "fixed instances")
        svid = self._mesh.state.svid
        if svid is None:
            return None
        built = self._built.get(name)
        if built is None or built[0] != svid.identity:
            addresses = self._instances.get(name.service, [])
            found = tuple(beside(svid.identity, name, *address) for address in addresses)
            described = f"fixed instances are given for: {', '.join(self._instances) or 'nothing'}"
            built = svid.identity, Endpoints((found,), described)
            if found:  # names that mean nothing come without end
                self._built[name] = built
        return built[1]

    def wait(self, name: UpstreamName, timeout: float | None) -> Endpoints:  # noqa: ARG002
        """As `known`; ResolutionError while the caller's own identity is unknown."""
        found = self.known(name)
        if found is None:
            raise ResolutionError("the mesh has given us no certificate yet")
        return found


def beside(
    ours: ServiceIdentity, name: UpstreamName, host: str, port: int, weight: int = 1
) -> Endpoint:
    """An instance of `name` where nobody says whom to expect: what the name says, else as `ours`.

    ResolutionError for an upstream at a peer.
    """
    refuse_peer(name)
    return Endpoint(
        host,
        port,
        name.service,
        name.namespace or ours.namespace,
        name.partition or ours.partition,
        name.datacenter or ours.datacenter,
        max(weight, 1),
    )


def refuse_peer(name: UpstreamName) -> None:
    """ResolutionError for an upstream at a peer: nobody gives us the roots of its certificates."""
    if name.peer:
        raise ResolutionError(
            f"{name}: the agent's API does not hand out the roots of peer {name.peer!r}, so its "
            "services cannot be verified; call them through a mesh gateway's sidecar"
        )


def refuse_choice(name: UpstreamName, who: str) -> None:
    """ResolutionError for a tag or a filter, where `who`, in the plural, cannot tell."""
    for field in ("tag", "filter"):
        if getattr(name, field) is not None:
            raise ResolutionError(f"{name}: {who} know no {field}s; the agent's catalogue does")


def host_port(address: str) -> tuple[str, int]:
    """``host:port`` taken apart; ConfigError otherwise."""
    host, _, port = address.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"{address!r} is no address; write host:port, such as 10.0.0.5:8443")
    return host.removeprefix("[").removesuffix("]"), int(port)

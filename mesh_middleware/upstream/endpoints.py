"""Where an instance of an upstream is, and whom its certificate must name."""

from __future__ import annotations

from dataclasses import dataclass, field

from mesh_middleware.policy.spiffe import DEFAULT, ServiceIdentity, TrustDomain


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One instance.

    `weight`: its share of the requests, 1 or more. `instance`: its ID in Consul, if known.
    """

    host: str
    port: int
    service: str
    namespace: str = DEFAULT
    partition: str = DEFAULT
    datacenter: str = "dc1"
    weight: int = 1
    instance: str = ""

    def identity(self, trust_domain: TrustDomain) -> ServiceIdentity:
        """The identity that its certificate must have."""
        return ServiceIdentity(
            trust_domain, self.service, self.namespace, self.partition, self.datacenter
        )

    def server_name(self, trust_domain: TrustDomain) -> str:
        """The TLS server name by which Consul's gateways route to the service.

        Source: Consul, ``connect.ServiceSNI``. It proves nothing; the identity does.
        """
        if self.partition == DEFAULT:
            head = f"{self.service}.{self.namespace}.{self.datacenter}.internal"
        else:
            head = f"{self.service}.{self.namespace}.{self.partition}.{self.datacenter}.internal-v1"
        return f"{head}.{trust_domain}"

    @property
    def address(self) -> str:
        """Host and port, as in a URL."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.instance} at {self.address}" if self.instance else self.address


@dataclass(frozen=True, slots=True, eq=False)
class Endpoints:
    """The usable instances of an upstream at one moment; compared as an object.

    `tiers`: each is for when those before it have nobody that can be connected to: the datacenters
    of an upstream and its failover, in the order that the user gave, or the priorities of DNS.
    `described`: in words, what is registered; for errors.
    """

    tiers: tuple[tuple[Endpoint, ...], ...]
    described: str = ""
    all: frozenset[Endpoint] = field(init=False)

    def __post_init__(self) -> None:
        found = frozenset(endpoint for tier in self.tiers for endpoint in tier)
        object.__setattr__(self, "all", found)

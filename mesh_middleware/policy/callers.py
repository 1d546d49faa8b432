"""Who is calling, for a policy: a peer's identity turned into the key that rows are looked up by.

Only service identities of our own trust domain have a key, and peered callers for whom there is a
bundle. Everything else is refused with a reason, whatever the default action.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from mesh_middleware.errors import SpiffeIDError
from mesh_middleware.policy.decision import Reason
from mesh_middleware.policy.peering import (
    XFCC,
    PeerBundle,
    PeerIndex,
    forwarded_identity,
    index_peers,
    peered,
)
from mesh_middleware.policy.request import HTTPRequest
from mesh_middleware.policy.spiffe import (
    Kind,
    ServiceIdentity,
    SourceKey,
    SpiffeID,
    TrustDomain,
)

Source = ServiceIdentity | SpiffeID | str
"""The peer of a verified TLS connection; text is parsed as a SPIFFE ID."""


@dataclass(frozen=True, slots=True)
class Stranger:
    """A peer that no row can name: why, and what it is."""

    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class Callers:
    """How the identities that reach us are told apart."""

    trust_domain: TrustDomain
    peers: PeerIndex = field(default_factory=dict)

    @classmethod
    def of(cls, trust_domain: TrustDomain, bundles: Iterable[PeerBundle]) -> Callers:
        """Callers of `trust_domain` and of the peers that `bundles` describe."""
        return cls(trust_domain, index_peers(bundles))

    def of_request(self, source: Source, request: HTTPRequest) -> SourceKey | Stranger:
        """The caller of an HTTP request. A peered one comes through a mesh gateway of ours."""
        identity = _identity(source)
        if isinstance(identity, Stranger):
            return identity
        if identity.trust_domain != self.trust_domain:
            return self._foreign(identity)
        if isinstance(identity, ServiceIdentity):
            return identity.key
        caller = self.forwarded(identity, request)
        return _not_a_service(identity) if caller is None else caller.key

    def forwarded(self, gateway: SpiffeID, request: HTTPRequest) -> ServiceIdentity | None:
        """The peered caller whom `gateway`, of our own trust domain, tells; else None."""
        # Only a gateway of the default partition: Consul's rule knows no other form.
        if gateway.kind is not Kind.MESH_GATEWAY or gateway.path.startswith("/ap/"):
            return None
        caller = forwarded_identity(request.values(XFCC)) if self.peers else None
        return None if caller is None else peered(caller, self.peers)

    def of_connection(self, source: Source) -> SourceKey | Stranger:
        """The caller of a connection that is not HTTP. A peered one shows its own certificate."""
        identity = _identity(source)
        if isinstance(identity, Stranger):
            return identity
        if not isinstance(identity, ServiceIdentity):
            return _not_a_service(identity)
        if identity.trust_domain == self.trust_domain:
            return identity.key
        caller = peered(identity, self.peers)
        return self._foreign(identity) if caller is None else caller.key

    def _foreign(self, identity: ServiceIdentity | SpiffeID) -> Stranger:
        return Stranger(
            Reason.FOREIGN_TRUST_DOMAIN, f"{identity} is not of trust domain {self.trust_domain}"
        )


def _identity(source: Source) -> ServiceIdentity | SpiffeID | Stranger:
    if isinstance(source, ServiceIdentity):
        return source
    try:
        parsed = SpiffeID.from_string(source) if isinstance(source, str) else source
        return ServiceIdentity.from_spiffe_id(parsed) if parsed.kind is Kind.SERVICE else parsed
    except SpiffeIDError as error:
        return Stranger(Reason.INVALID_IDENTITY, str(error))


def _not_a_service(identity: SpiffeID) -> Stranger:
    return Stranger(Reason.NOT_A_SERVICE, f"{identity} is a {identity.kind}")

"""Callers from other clusters: who a verified local mesh gateway says is calling.

Over HTTP a peered request arrives through a mesh gateway of our own trust domain, and the first
element of ``x-forwarded-client-cert`` names the real caller. Over TCP the caller's own certificate
is seen. Either way the caller counts as peered only when a `PeerBundle` says which trust domain
and partition that peer has; no agent endpoint serves bundles, so they come from configuration.

Source: Consul's RBAC for peered intentions; Envoy's XFCC header layout.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from mesh_middleware.errors import SpiffeIDError
from mesh_middleware.policy.spiffe import DEFAULT, ServiceIdentity, TrustDomain

XFCC = b"x-forwarded-client-cert"

PeerIndex = Mapping[tuple[str, str], str]
"""Trust domain and exported partition -> peer name."""


@dataclass(frozen=True, slots=True)
class PeerBundle:
    """What is known of a peer: its trust domain, and the partition of it that exports to us.

    An empty `partition` reads as ``default``.
    """

    peer: str
    trust_domain: TrustDomain
    partition: str = DEFAULT


def index_peers(bundles: Iterable[PeerBundle]) -> PeerIndex:
    """The bundles by what a certificate shows. Two peers that show the same are both left out."""
    found: dict[tuple[str, str], set[str]] = {}
    for bundle in bundles:
        shown = (bundle.trust_domain.name, bundle.partition.lower() or DEFAULT)
        found.setdefault(shown, set()).add(bundle.peer)
    return {shown: peers.pop() for shown, peers in found.items() if len(peers) == 1}


def peered(identity: ServiceIdentity, peers: PeerIndex) -> ServiceIdentity | None:
    """`identity` with the peer that it is of; None when no bundle fits it."""
    peer = peers.get((identity.trust_domain.name, identity.partition.lower()))
    return replace(identity, peer=peer) if peer else None


def forwarded_identity(lines: Sequence[bytes]) -> ServiceIdentity | None:
    """The service that the first XFCC element names, or None.

    `lines` are the header's values; anything but exactly one is refused, since nobody can tell
    which of several a gateway wrote. The element's last field must be its only URI: ``;`` is legal
    in a service's name, so a field behind the URI would pass for a part of the name.
    """
    if len(lines) != 1:
        return None
    before, separator, uri = lines[0].partition(b",")[0].rpartition(b";URI=")
    if not separator or not before or b"URI=" in before or b";" in uri:
        return None
    try:
        return ServiceIdentity.from_string(uri.decode("ascii"))
    except (UnicodeDecodeError, SpiffeIDError):
        return None

"""Certificates, trust and TLS contexts: who we are, and who the peer is."""

from mesh_middleware.tls.certificates import (
    X509SVID,
    PeerCertificate,
    TrustBundle,
    check_peer,
)
from mesh_middleware.tls.contexts import MeshContext, TLSContexts
from mesh_middleware.tls.handshake import PeerRejected, VerifiedPeer, verified_peer

__all__ = [
    "X509SVID",
    "MeshContext",
    "PeerCertificate",
    "PeerRejected",
    "TLSContexts",
    "TrustBundle",
    "VerifiedPeer",
    "check_peer",
    "verified_peer",
]

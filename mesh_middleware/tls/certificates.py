"""X.509 certificates as values: our own, the roots we trust, and what a peer presented.

A leaf of the mesh carries its identity as the one URI in its subject alternative name. The subject
says nothing: it is empty since Consul 1.11 and was a hint before, so nobody looks at it here.
What a peer presents is hostile input: whatever the bytes are, the result is a value or a
`PeerIdentityError`.

Sources: X509-SVID 2 to 5, Consul /v1/agent/connect/ca/leaf and /v1/agent/connect/ca/roots.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from mesh_middleware.errors import DecodeError, PeerIdentityError, SpiffeIDError
from mesh_middleware.policy.decision import Reason
from mesh_middleware.policy.spiffe import Kind, ServiceIdentity, SpiffeID, TrustDomain
from mesh_middleware.tls.chains import find_root

# All that cryptography raises for bytes it cannot read. Warning is among them because it warns
# about odd serial numbers, and some programs turn warnings into errors.
_UNREADABLE = (
    ValueError,
    TypeError,
    KeyError,  # cryptography 45, for a name that is of no type of text
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
    Warning,
)


@dataclass(frozen=True, slots=True)
class X509SVID:
    """Our own certificate and key: the proof of one service identity.

    `certificates`: the leaf first, then the intermediates to present with it. `not_before` and
    `not_after`: unix seconds, both included. Source: X509-SVID; Consul calls it a leaf.
    """

    certificates: tuple[x509.Certificate, ...]
    private_key: PrivateKeyTypes = field(repr=False)
    identity: ServiceIdentity
    not_before: float
    not_after: float

    @classmethod
    def from_pem(cls, cert_pem: str | bytes, key_pem: str | bytes) -> X509SVID:
        """Read a chain, leaf first, and its unencrypted key.

        DecodeError when either cannot be read, when the key does not fit the leaf, or when the
        leaf is a CA or does not carry exactly one URI that names a service.
        """
        try:
            certificates = tuple(x509.load_pem_x509_certificates(_bytes(cert_pem)))
        except _UNREADABLE as error:
            raise DecodeError(f"cannot be read: {error}", field="certificate") from error
        try:
            key = serialization.load_pem_private_key(_bytes(key_pem), None)
        except _UNREADABLE as error:
            # The text of the error is left out: it must never show a part of a key.
            raise DecodeError("cannot be read", field="private key") from error
        try:
            leaf = PeerCertificate.from_certificate(certificates[0])
            fits = certificates[0].public_key() == key.public_key()
        except (PeerIdentityError, *_UNREADABLE) as error:
            raise DecodeError(str(error), field="certificate") from error
        if not fits:
            raise DecodeError("does not fit the certificate", field="private key")
        if not isinstance(leaf.identity, ServiceIdentity):
            raise DecodeError(f"{leaf.identity} does not name a service", field="certificate")
        return cls(certificates, key, leaf.identity, leaf.not_before, leaf.not_after)

    def valid_at(self, now: float) -> bool:
        """Whether the leaf is valid at `now` (unix seconds)."""
        return self.not_before <= now <= self.not_after


@dataclass(frozen=True, slots=True)
class TrustBundle:
    """The roots of one trust domain, all of them trusted, active or not.

    `fingerprints` is derived: SHA-256 of each root's DER. Bundles are replaced, never added to.
    Source: Consul /v1/agent/connect/ca/roots.
    """

    trust_domain: TrustDomain
    roots: tuple[x509.Certificate, ...]
    fingerprints: frozenset[bytes] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.roots:
            raise DecodeError("a trust bundle needs at least one root", field="roots")
        object.__setattr__(self, "fingerprints", frozenset(map(_fingerprint, self.roots)))

    @classmethod
    def from_pem(cls, trust_domain: TrustDomain | str, pems: Iterable[str]) -> TrustBundle:
        """Read roots, one or more in each text; DecodeError names the text that is wrong."""
        if isinstance(trust_domain, str):
            try:
                trust_domain = TrustDomain(trust_domain)
            except SpiffeIDError as error:
                raise DecodeError(str(error), field="trust domain") from error
        roots: dict[x509.Certificate, None] = {}
        for position, pem in enumerate(pems):
            try:
                roots.update(dict.fromkeys(x509.load_pem_x509_certificates(_bytes(pem))))
            except _UNREADABLE as error:
                raise DecodeError(f"cannot be read: {error}", field=f"roots[{position}]") from error
        return cls(trust_domain, tuple(roots))

    def der(self) -> bytes:
        """All roots, as `ssl.SSLContext.load_verify_locations` takes them in ``cadata``."""
        return b"".join(map(_der, self.roots))

    def verify(self, leaf_der: bytes, intermediates: Sequence[bytes], now: float) -> bytes | None:
        """Which root a chain leads to at `now` (unix seconds), as an entry of `fingerprints`.

        None when the chain cannot be read, does not lead to a root of ours, or is not valid then.
        It says nothing about whose certificate it is: see `PeerCertificate` and `check_peer`.
        """
        try:
            chain = [x509.load_der_x509_certificate(der) for der in (leaf_der, *intermediates)]
        except _UNREADABLE:
            return None
        return self.root_of(chain, now)

    def root_of(self, chain: Sequence[x509.Certificate], now: float) -> bytes | None:
        """`verify` for certificates that were parsed already, leaf first."""
        leaf, *intermediates = chain
        try:
            root = find_root(leaf, intermediates, self.roots, now)
        except _UNREADABLE:
            return None
        return None if root is None else _fingerprint(root)


@dataclass(frozen=True, slots=True)
class PeerCertificate:
    """What a peer's leaf says; only a verified chain makes it true.

    `der`: the leaf as it was presented. `not_before` and `not_after`: unix seconds, both included.
    """

    der: bytes = field(repr=False)
    identity: ServiceIdentity | SpiffeID
    not_before: float
    not_after: float

    @classmethod
    def from_der(cls, der: bytes) -> PeerCertificate:
        """Read a leaf; PeerIdentityError (``invalid_identity``) when it cannot be one."""
        try:
            certificate = x509.load_der_x509_certificate(der)
        except _UNREADABLE as error:
            raise _invalid("the certificate cannot be read") from error
        return cls.from_certificate(certificate)

    @classmethod
    def from_certificate(cls, certificate: x509.Certificate) -> PeerCertificate:
        """`from_der` for a certificate that was parsed already."""
        try:
            extensions = certificate.extensions
            not_before = certificate.not_valid_before_utc.timestamp()
            not_after = certificate.not_valid_after_utc.timestamp()
        except _UNREADABLE as error:
            raise _invalid("the certificate cannot be read") from error
        _refuse_authority(extensions)
        return cls(_der(certificate), _identity(extensions), not_before, not_after)

    def valid_at(self, now: float) -> bool:
        """Whether the leaf is valid at `now` (unix seconds)."""
        return self.not_before <= now <= self.not_after


def check_peer(
    peer: PeerCertificate, trust_domain: TrustDomain, now: float, *, gateways: bool = False
) -> Reason | None:
    """Why `peer` cannot be a caller at `now` (unix seconds), or None when it can.

    It must be a service of `trust_domain`, compared byte by byte; with `gateways`, a mesh gateway
    of it will do. `certificate_expired` also stands for a certificate that is not valid yet.
    The chain is not looked at: that is the handshake's or `TrustBundle.verify`'s part.
    """
    identity = peer.identity
    if identity.trust_domain != trust_domain:
        return Reason.FOREIGN_TRUST_DOMAIN
    if isinstance(identity, SpiffeID) and not (gateways and identity.kind is Kind.MESH_GATEWAY):
        return Reason.NOT_A_SERVICE
    if not peer.valid_at(now):
        return Reason.CERTIFICATE_EXPIRED
    return None


def _refuse_authority(extensions: x509.Extensions) -> None:
    """A leaf must not be able to sign others (X509-SVID 4.1 and 4.3)."""
    for extension in extensions:
        value = extension.value
        if isinstance(value, x509.BasicConstraints) and value.ca:
            raise _invalid("the certificate is that of a CA")
        if isinstance(value, x509.KeyUsage) and (value.key_cert_sign or value.crl_sign):
            raise _invalid("the certificate's key may sign certificates")


def _identity(extensions: x509.Extensions) -> ServiceIdentity | SpiffeID:
    """The one URI of the SAN (X509-SVID 2); other kinds of names may stand beside it."""
    uris: list[str] = []
    for extension in extensions:
        if isinstance(extension.value, x509.SubjectAlternativeName):
            uris += extension.value.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise _invalid(f"the certificate has {len(uris)} URI names instead of one")
    try:
        spiffe_id = SpiffeID.from_string(uris[0])
        if spiffe_id.kind is Kind.SERVICE:
            return ServiceIdentity.from_spiffe_id(spiffe_id)
    except SpiffeIDError as error:
        raise _invalid(str(error)) from error
    return spiffe_id


def _invalid(message: str) -> PeerIdentityError:
    return PeerIdentityError(message, reason=Reason.INVALID_IDENTITY)


def _bytes(text: str | bytes) -> bytes:
    return text.encode("utf-8") if isinstance(text, str) else text


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)


def _fingerprint(certificate: x509.Certificate) -> bytes:
    return hashlib.sha256(_der(certificate)).digest()

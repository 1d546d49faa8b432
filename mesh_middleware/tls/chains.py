"""Which trusted root a certificate leads to, outside a handshake.

In a handshake OpenSSL proves the chain. Here it is done for what comes another way: our own new
leaf, a certificate that another server passed on, a resumed session. `cryptography` has a verifier,
but it follows the rules of the web and refuses an empty issuer name, which every leaf signed by one
of Consul's intermediates has since 1.11 (secondary datacenters, Vault). So this is the part of
RFC 5280 (6.1) that such chains need; whatever goes beyond it, such as name constraints, is refused
rather than skipped.

1. Every certificate is valid now, has no critical extension that is not listed here, and where it
   lists purposes, authenticating clients is one.
2. Each is signed by the next, whose subject is its issuer, with no hash older than SHA-256.
3. Every one but the leaf is a CA, may sign certificates, and allows the number of CAs below it.
4. The last is one of the roots, byte for byte.
5. Every key is as strong as a handshake asks for: RSA of `MIN_RSA_BITS` or more, P-256, P-384,
   P-521 or Ed25519. The leaf may make digital signatures, where it says what its key is for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import NoneType

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

MAX_INTERMEDIATES = 8
"""Longest way from a leaf to a root that is looked for; Consul's are one or two."""

MAX_SIGNATURES = 32
"""How many signatures are checked for one chain, however many certificates a peer sends."""

MIN_RSA_BITS = 2048
"""Shorter RSA keys are refused, as OpenSSL does at its security level 2."""

_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)

_UNDERSTOOD = (
    x509.BasicConstraints,
    x509.KeyUsage,
    x509.ExtendedKeyUsage,
    x509.SubjectAlternativeName,
)
_CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH
# None: an algorithm with no hash of its own, such as Ed25519.
_SOUND_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512, NoneType)


def find_root(
    leaf: x509.Certificate,
    intermediates: Sequence[x509.Certificate],
    roots: Sequence[x509.Certificate],
    now: float,
) -> x509.Certificate | None:
    """The root that `leaf` leads to at `now` (unix seconds); None when there is no good chain.

    Roots are tried before intermediates, so that a cross-signed copy of a root is not needed where
    the root itself is trusted. Raises what `cryptography` raises for parts it cannot read.
    """
    if not (_acceptable(leaf, now) and _may_authenticate(leaf)):
        return None
    return _Search(tuple(intermediates), tuple(roots), now).climb(leaf, 0)


@dataclass(slots=True)
class _Search:
    intermediates: tuple[x509.Certificate, ...]
    roots: tuple[x509.Certificate, ...]
    now: float
    signatures: int = 0

    def climb(self, certificate: x509.Certificate, below: int) -> x509.Certificate | None:
        """The root above `certificate`, which has `below` CAs below and counting itself."""
        for root in self._issuers(certificate, self.roots, below):
            return root
        if below < MAX_INTERMEDIATES:
            for issuer in self._issuers(certificate, self.intermediates, below):
                root_above = self.climb(issuer, below + 1)
                if root_above is not None:
                    return root_above
        return None

    def _issuers(
        self, certificate: x509.Certificate, candidates: Sequence[x509.Certificate], below: int
    ) -> Iterator[x509.Certificate]:
        for candidate in candidates:
            if (
                candidate.subject == certificate.issuer
                and _acceptable(candidate, self.now)
                and _may_sign(candidate, below)
                and self._signed(certificate, candidate)
            ):
                yield candidate

    def _signed(self, certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
        self.signatures += 1
        if self.signatures > MAX_SIGNATURES:
            return False
        try:
            if not isinstance(certificate.signature_hash_algorithm, _SOUND_HASHES):
                return False
            certificate.verify_directly_issued_by(issuer)
        except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError):
            return False
        return True


def _acceptable(certificate: x509.Certificate, now: float) -> bool:
    """Rule 1, and the keys of rule 5."""
    if not (
        certificate.not_valid_before_utc.timestamp()
        <= now
        <= certificate.not_valid_after_utc.timestamp()
    ):
        return False
    if not _strong(certificate):
        return False
    for extension in certificate.extensions:
        value = extension.value
        if isinstance(value, x509.NameConstraints):
            return False
        if extension.critical and not isinstance(value, _UNDERSTOOD):
            return False
        if isinstance(value, x509.ExtendedKeyUsage) and _CLIENT not in value:
            return False
    return True


def _strong(certificate: x509.Certificate) -> bool:
    try:
        key = certificate.public_key()
    except (UnsupportedAlgorithm, ValueError):
        return False
    if isinstance(key, rsa.RSAPublicKey):
        return key.key_size >= MIN_RSA_BITS
    if isinstance(key, ec.EllipticCurvePublicKey):
        return isinstance(key.curve, _CURVES)
    return isinstance(key, ed25519.Ed25519PublicKey)


def _may_authenticate(leaf: x509.Certificate) -> bool:
    usages = (each.value for each in leaf.extensions if isinstance(each.value, x509.KeyUsage))
    return all(usage.digital_signature for usage in usages)


def _may_sign(certificate: x509.Certificate, below: int) -> bool:
    """Rule 3; `below`: how many CAs stand between this one and the leaf."""
    authority = False
    for extension in certificate.extensions:
        value = extension.value
        if isinstance(value, x509.BasicConstraints):
            authority = value.ca and (value.path_length is None or below <= value.path_length)
        if isinstance(value, x509.KeyUsage) and not value.key_cert_sign:
            return False
    return authority

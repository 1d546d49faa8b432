"""A certificate authority that issues what Consul's built-in one issues, for development and tests.

Everything lives in memory: a new CA, with new keys, each time. Certificates have the shape that
Consul has made since 1.11: leaves with an empty subject and one URI in a critical SAN, EC P-256
keys, small serial numbers, roots that carry the trust domain as a URI. After `rotate` the new root
comes with a copy of itself signed by the old one, and leaves bring that copy along, so that peers
that know only one of the two roots can check them.

Sources: Consul /v1/agent/connect/ca/roots and /v1/agent/connect/ca/leaf, X509-SVID 3 and 4.
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mesh_middleware.policy.spiffe import DEFAULT, ServiceIdentity, TrustDomain

BACKDATE_SECONDS = 60
"""How far NotBefore lies in the past, so that a peer whose clock is behind accepts the leaf."""

SHORT_LIFE_SECONDS = 600
"""Leaf lives below this count from now, all but a second: else they would be born expired."""

_ROOT_LIFE = timedelta(days=3650)
_CROSS_SIGNED_LIFE = timedelta(days=7)

When = datetime | float | None
"""A moment: aware datetime, unix seconds, or None for what Consul would choose."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """A certificate with its key, as an agent gives it out.

    `cert_pem`: the leaf, then the intermediates of the active root. `key_pem`: SEC1
    (``EC PRIVATE KEY``). `serial`: hex with ``:`` between bytes. `not_before` and `not_after`:
    unix seconds.
    """

    cert_pem: str
    key_pem: str
    serial: str
    service: str
    uri: str
    not_before: int
    not_after: int

    def document(self, *, create_index: int = 1, modify_index: int = 1) -> dict[str, Any]:
        """The body of ``/v1/agent/connect/ca/leaf/<service>``, ready for `json.dumps`."""
        return {
            "SerialNumber": self.serial,
            "CertPEM": self.cert_pem,
            "PrivateKeyPEM": self.key_pem,
            "Service": self.service,
            "ServiceURI": self.uri,
            "ValidAfter": _rfc3339(datetime.fromtimestamp(self.not_before, UTC)),
            "ValidBefore": _rfc3339(datetime.fromtimestamp(self.not_after, UTC)),
            "CreateIndex": create_index,
            "ModifyIndex": modify_index,
        }


@dataclass(frozen=True, slots=True)
class _Root:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    intermediates: tuple[x509.Certificate, ...]
    index: int

    @property
    def id(self) -> str:
        """Consul's root ID: colon-hex SHA-1 of the certificate (a name, not a protection)."""
        der = self.certificate.public_bytes(serialization.Encoding.DER)
        return _colon_hex(hashlib.sha1(der, usedforsecurity=False).digest())


class CertificateAuthority:
    """Issues leaves for services of one trust domain; safe from any thread.

    `trust_domain`: what comes after ``spiffe://``; None makes a new ``<uuid>.consul``.
    `leaf_ttl_seconds`: life of a leaf, at least 1; below `SHORT_LIFE_SECONDS` it counts from now.
    SpiffeIDError when the trust domain or datacenter cannot be part of a SPIFFE ID.
    """

    def __init__(
        self,
        trust_domain: str | None = None,
        *,
        datacenter: str = "dc1",
        leaf_ttl_seconds: float = 259200,
    ) -> None:
        self._trust_domain = TrustDomain(trust_domain or f"{uuid.uuid4()}.consul")
        self.datacenter = datacenter
        self.leaf_ttl_seconds = leaf_ttl_seconds
        self._lock = threading.RLock()
        self._serial = 6  # the first certificate that an observed server signed had number 7
        self._index = 0
        self._roots: tuple[_Root, ...] = (self._new_root(None),)

    def __repr__(self) -> str:
        return f"<CertificateAuthority {self.trust_domain} roots={len(self._roots)}>"

    @property
    def trust_domain(self) -> str:
        """The host part of every SPIFFE ID that this CA issues."""
        return self._trust_domain.name

    @property
    def active_root_id(self) -> str:
        """ID of the root that signs leaves now: colon-hex SHA-1 of its certificate."""
        return self._roots[-1].id

    def roots(self) -> list[dict[str, Any]]:
        """The value of ``Roots`` in Consul's answer: oldest first, the last one active."""
        roots = self._roots
        return [self._root_document(root, active=root is roots[-1]) for root in roots]

    def roots_document(self) -> dict[str, Any]:
        """The whole body of ``/v1/agent/connect/ca/roots``, ready for `json.dumps`."""
        roots = self.roots()
        return {
            "ActiveRootID": roots[-1]["ID"],
            "TrustDomain": self.trust_domain,
            "Roots": roots,
        }

    def rotate(self) -> str:
        """Make a new active root, cross-signed by the one before; returns its ID."""
        with self._lock:
            self._roots = (*self._roots, self._new_root(self._roots[-1]))
            return self.active_root_id

    def remove_inactive_roots(self) -> None:
        """List only the active root from now on, as Consul does two leaf lives after a rotation."""
        with self._lock:
            self._roots = self._roots[-1:]

    def issue(
        self,
        service: str,
        *,
        namespace: str = DEFAULT,
        partition: str = DEFAULT,
        not_before: When = None,
        not_after: When = None,
    ) -> Leaf:
        """A leaf for `service`, signed by the active root; SpiffeIDError for an impossible name."""
        identity = ServiceIdentity(
            self._trust_domain, service, namespace, partition, self.datacenter
        )
        return self.issue_raw(
            [str(identity)], service=service, not_before=not_before, not_after=not_after
        )

    def issue_raw(
        self,
        uris: Iterable[str],
        *,
        ca: bool = False,
        service: str = "",
        common_name: str = "",
        dns_names: Iterable[str] = (),
        not_before: When = None,
        not_after: When = None,
        extensions: Iterable[tuple[x509.ExtensionType, bool]] = (),
    ) -> Leaf:
        """A leaf with exactly these URIs, right or wrong, for tests of refusals.

        No URI and no DNS name: no SAN at all. `ca`: CA:TRUE. `common_name`: a subject, as leaves
        up to Consul 1.10 had. `extensions`: more extensions, each with whether it is critical.
        """
        uris = tuple(uris)
        start, end = self._validity(not_before, not_after)
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.UniformResourceIdentifier(uri) for uri in uris]
        alternatives = [*names, *(x509.DNSName(name) for name in dns_names)]
        with self._lock:
            signer, serial = self._roots[-1], self._next_serial()
        builder = _builder(key, _name(common_name), signer, serial, (start, end))
        builder = builder.add_extension(x509.BasicConstraints(ca, None), critical=True)
        builder = builder.add_extension(_LEAF_USAGE, critical=True)
        builder = builder.add_extension(_BOTH_SIDES, critical=False)
        if alternatives:
            builder = builder.add_extension(
                x509.SubjectAlternativeName(alternatives), critical=not common_name
            )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical=critical)
        leaf = builder.sign(signer.key, hashes.SHA256())
        return Leaf(
            cert_pem="".join(_pem(each) for each in (leaf, *signer.intermediates)),
            key_pem=key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.TraditionalOpenSSL,
                serialization.NoEncryption(),
            ).decode("ascii"),
            serial=_colon_hex(_serial_bytes(serial)),
            service=service,
            uri=uris[0] if uris else "",
            not_before=int(start.timestamp()),
            not_after=int(end.timestamp()),
        )

    def _validity(self, not_before: When, not_after: When) -> tuple[datetime, datetime]:
        now = time.time()
        short = self.leaf_ttl_seconds < SHORT_LIFE_SECONDS
        default_start = math.floor(now) - (1 if short else BACKDATE_SECONDS)
        default_end = math.ceil(now if short else default_start) + math.ceil(self.leaf_ttl_seconds)
        end = _moment(default_end if not_after is None else not_after)
        if not_before is not None:
            return _moment(not_before), end
        # A life that is all in the past still has to begin before it ends.
        start = _moment(default_start)
        return min(start, end - timedelta(seconds=1)), end

    def _new_root(self, previous: _Root | None) -> _Root:
        key = ec.generate_private_key(ec.SECP256R1())
        # Consul names a root after a random number and the cluster; nobody reads it.
        subject = _name(f"pri-{uuid.uuid4().hex[:8]}.consul.ca.{self.trust_domain[:8]}.consul")
        # One second back: OpenSSL reads a coarse clock that may still be in the second before.
        now = datetime.now(UTC).replace(microsecond=0) - timedelta(seconds=1)
        self._index += 1
        certificate = self._sign_root(key, subject, None, (now, now + _ROOT_LIFE))
        if previous is None:
            return _Root(certificate, key, (), self._index)
        start = now - timedelta(seconds=BACKDATE_SECONDS)
        crossed = self._sign_root(key, subject, previous, (start, start + _CROSS_SIGNED_LIFE))
        return _Root(certificate, key, (crossed,), self._index)

    def _sign_root(
        self,
        key: ec.EllipticCurvePrivateKey,
        subject: x509.Name,
        signer: _Root | None,
        validity: tuple[datetime, datetime],
    ) -> x509.Certificate:
        uri = x509.UniformResourceIdentifier(f"spiffe://{self.trust_domain}")
        builder = _builder(key, subject, signer, self._next_serial(), validity)
        builder = builder.add_extension(x509.BasicConstraints(True, None), critical=True)
        builder = builder.add_extension(_ROOT_USAGE, critical=True)
        builder = builder.add_extension(x509.SubjectAlternativeName([uri]), critical=False)
        return builder.sign(signer.key if signer else key, hashes.SHA256())

    def _next_serial(self) -> int:
        self._serial += 1
        return self._serial

    def _root_document(self, root: _Root, *, active: bool) -> dict[str, Any]:
        certificate = root.certificate
        return {
            "ID": root.id,
            "Name": "Consul CA Root Cert",
            "SerialNumber": certificate.serial_number,
            "SigningKeyID": _colon_hex(_key_id(root.key).digest),
            "ExternalTrustDomain": self.trust_domain.removesuffix(".consul"),
            "NotBefore": _rfc3339(certificate.not_valid_before_utc),
            "NotAfter": _rfc3339(certificate.not_valid_after_utc),
            "RootCert": _pem(certificate),
            "IntermediateCerts": [_pem(each) for each in root.intermediates] or None,
            "Active": active,
            "PrivateKeyType": "ec",
            "PrivateKeyBits": 256,
            "CreateIndex": root.index,
            "ModifyIndex": root.index if active else root.index + 1,
        }


_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


def _usage(*wanted: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{name: name in wanted for name in _USAGES})


_LEAF_USAGE = _usage("digital_signature", "key_encipherment", "data_encipherment", "key_agreement")
_ROOT_USAGE = _usage("digital_signature", "key_cert_sign", "crl_sign")
_BOTH_SIDES = x509.ExtendedKeyUsage(
    [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
)


def _builder(
    key: ec.EllipticCurvePrivateKey,
    subject: x509.Name,
    signer: _Root | None,
    serial: int,
    validity: tuple[datetime, datetime],
) -> x509.CertificateBuilder:
    """What leaves and roots share; `signer` None means self-signed."""
    issuer = signer.certificate.subject if signer else subject
    authority = x509.AuthorityKeyIdentifier(
        _key_id(signer.key if signer else key).digest, None, None
    )
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .subject_name(subject)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(validity[0])
        .not_valid_after(validity[1])
        .add_extension(_key_id(key), critical=False)
        .add_extension(authority, critical=False)
    )


def _key_id(key: ec.EllipticCurvePrivateKey) -> x509.SubjectKeyIdentifier:
    """Consul's key ID: SHA-256, not the usual SHA-1, of the public key."""
    public = key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return x509.SubjectKeyIdentifier(hashlib.sha256(public).digest())


def _name(common_name: str) -> x509.Name:
    if not common_name:
        return x509.Name([])
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode("ascii")


def _serial_bytes(serial: int) -> bytes:
    return serial.to_bytes((serial.bit_length() + 7) // 8, "big")


def _colon_hex(data: bytes) -> str:
    return data.hex(":")


def _moment(when: datetime | float) -> datetime:
    if not isinstance(when, datetime):
        when = datetime.fromtimestamp(when, UTC)
    return when.replace(microsecond=0)


def _rfc3339(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")

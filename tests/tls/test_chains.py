"""Chains outside a handshake: each row is asked of our search and of OpenSSL in a handshake."""

from __future__ import annotations

import datetime as dt
import ssl
import time
from dataclasses import dataclass, field

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mesh_middleware.devagent.ca import CertificateAuthority
from mesh_middleware.policy.spiffe import TrustDomain
from mesh_middleware.tls import TrustBundle, chains
from mesh_middleware.tls.chains import find_root
from tests.tls.mesh import Wire, contexts_of

NOW = dt.datetime.now(dt.UTC)
DAY = dt.timedelta(days=1)
USAGES = (
    "digital_signature content_commitment key_encipherment data_encipherment key_agreement "
    "key_cert_sign crl_sign encipher_only decipher_only"
).split()
CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH
UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")


@dataclass
class Made:
    certificate: x509.Certificate
    key: object

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(Encoding.PEM).decode()


@dataclass
class Plan:
    """One certificate of a chain; the defaults are those of a good CA."""

    name: str = ""
    issuer: str | None = None  # None: as the signer calls itself
    ca: bool | None = True
    path_length: int | None = None
    start: dt.datetime = NOW - DAY
    end: dt.datetime = NOW + DAY
    usage: tuple[str, ...] | None = ("key_cert_sign",)
    purposes: tuple[x509.ObjectIdentifier, ...] = ()
    extra: tuple[tuple[x509.ExtensionType, bool], ...] = ()
    key: object = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    algorithm: hashes.HashAlgorithm | None = field(default_factory=hashes.SHA256)

    def signed_by(self, signer: Made | None) -> Made:
        subject = name(self.name)
        issuer = signer.certificate.subject if signer else subject
        if self.issuer is not None:
            issuer = name(self.issuer)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self.start)
            .not_valid_after(self.end)
        )
        # Without key IDs OpenSSL takes a leaf with no names at all for self-signed.
        above = (signer.key if signer else self.key).public_key()
        for key_id in (
            x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()),
            x509.AuthorityKeyIdentifier.from_issuer_public_key(above),
        ):
            builder = builder.add_extension(key_id, critical=False)
        if self.ca is not None:
            basic = x509.BasicConstraints(self.ca, self.path_length)
            builder = builder.add_extension(basic, critical=True)
        if self.usage is not None:
            usage = x509.KeyUsage(**{each: each in self.usage for each in USAGES})
            builder = builder.add_extension(usage, critical=True)
        if self.purposes:
            builder = builder.add_extension(x509.ExtendedKeyUsage(self.purposes), critical=False)
        for extension, critical in self.extra:
            builder = builder.add_extension(extension, critical=critical)
        return Made(builder.sign(signer.key if signer else self.key, self.algorithm), self.key)


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)] if text else [])


URI = x509.UniformResourceIdentifier("spiffe://t.consul/ns/default/dc/dc1/svc/web")


def leaf(**how) -> Plan:
    how = {"ca": False, "usage": ("digital_signature",), "purposes": (CLIENT, SERVER)} | how
    names = (x509.SubjectAlternativeName([URI]), True)
    return Plan(**how | {"extra": (names, *how.get("extra", ()))})


def root(**how) -> Plan:
    return Plan(**{"name": "root"} | how)


PAST = {"start": NOW - 3 * DAY, "end": NOW - 2 * DAY}
FUTURE = {"start": NOW + DAY / 2}
NARROW = x509.NameConstraints([x509.UniformResourceIdentifier("t.consul")], None)


def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


# name: (plans from the root down to the leaf, what we say, what OpenSSL says)
ROWS = {
    "root and leaf": ([root(), leaf()], True, True),
    "an intermediate": ([root(), Plan("ca"), leaf()], True, True),
    "two intermediates": ([root(), Plan("ca"), Plan("cb"), leaf()], True, True),
    "an intermediate without a name": ([root(), Plan(), leaf()], True, True),
    "RSA": ([root(key=rsa_key()), Plan(key=rsa_key()), leaf()], True, True),
    "P-521, SHA-512": (
        [root(key=ec.generate_private_key(ec.SECP521R1())), leaf(algorithm=hashes.SHA512())],
        True,
        True,
    ),
    "leaf without key usage": ([root(), leaf(usage=None)], True, True),
    "leaf without purposes": ([root(), leaf(purposes=())], True, True),
    "CA without key usage": ([root(usage=None), Plan("ca", usage=None), leaf()], True, True),
    "path length as long as needed": (
        [root(path_length=1), Plan("ca", path_length=0), leaf()],
        True,
        True,
    ),
    "unknown extension": ([root(), leaf(extra=((UNKNOWN, False),))], True, True),
    "root signed with SHA-224": ([root(algorithm=hashes.SHA224()), leaf()], True, True),
    "Ed25519 root": (
        [root(key=ed25519.Ed25519PrivateKey.generate(), algorithm=None), leaf(algorithm=None)],
        True,
        True,
    ),
    # refused
    "expired leaf": ([root(), leaf(**PAST)], False, False),
    "future leaf": ([root(), leaf(**FUTURE)], False, False),
    "expired intermediate": ([root(), Plan("ca", **PAST), leaf()], False, False),
    "future intermediate": ([root(), Plan("ca", **FUTURE), leaf()], False, False),
    "expired root": ([root(**PAST), leaf()], False, False),
    "intermediate is no CA": ([root(), Plan("ca", ca=False), leaf()], False, False),
    "intermediate not said to be a CA": (
        [root(), Plan("ca", ca=None), leaf()],
        False,
        False,
    ),
    "intermediate may not sign": (
        [root(), Plan("ca", usage=("digital_signature",)), leaf()],
        False,
        False,
    ),
    "path too long for the root": ([root(path_length=0), Plan("ca"), leaf()], False, False),
    "path too long for an intermediate": (
        [root(), Plan("ca", path_length=0), Plan("cb"), leaf()],
        False,
        False,
    ),
    "another issuer's name": ([root(), leaf(issuer="somebody")], False, False),
    "leaf for servers only": ([root(), leaf(purposes=(SERVER,))], False, False),
    "intermediate for servers only": (
        [root(), Plan("ca", purposes=(SERVER,)), leaf()],
        False,
        False,
    ),
    "unknown critical extension": ([root(), leaf(extra=((UNKNOWN, True),))], False, False),
    "unknown critical extension above": (
        [root(), Plan("ca", extra=((UNKNOWN, True),)), leaf()],
        False,
        False,
    ),
    "RSA root of 1024 bits": ([root(key=rsa_key(1024)), leaf()], False, False),
    "RSA intermediate of 1024 bits": (
        [root(), Plan("ca", key=rsa_key(1024)), leaf()],
        False,
        False,
    ),
    "RSA leaf of 1024 bits": ([root(), leaf(key=rsa_key(1024))], False, False),
    "leaf whose key only enciphers": ([root(), leaf(usage=("key_encipherment",))], False, False),
    # stricter than OpenSSL, which takes P-224 and SHA-224 and checks constrained names
    "P-224 root": ([root(key=ec.generate_private_key(ec.SECP224R1())), leaf()], False, True),
    "P-224 intermediate": (
        [root(), Plan("ca", key=ec.generate_private_key(ec.SECP224R1())), leaf()],
        False,
        True,
    ),
    "leaf whose key only agrees": ([root(), leaf(usage=("key_agreement",))], False, True),
    "SHA-224 leaf": ([root(), leaf(algorithm=hashes.SHA224())], False, True),
    "SHA-224 intermediate": (
        [root(), Plan("ca", algorithm=hashes.SHA224()), leaf()],
        False,
        True,
    ),
    "name constraints": ([root(), Plan("ca", extra=((NARROW, False),)), leaf()], False, True),
}


def build(plans: list[Plan]) -> list[Made]:
    """From the leaf up to the root."""
    made: list[Made] = []
    for plan in plans:
        made.insert(0, plan.signed_by(made[0] if made else None))
    return made


def openssl_says(chain: list[Made], directory) -> bool:
    """Whether a server that trusts the root alone takes the leaf with its intermediates."""
    server_ca = CertificateAuthority("t.consul")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    file = directory / "server.pem"
    api = server_ca.issue("api")
    file.write_text(api.cert_pem + api.key_pem)
    server.load_cert_chain(file)
    server.verify_mode = ssl.CERT_REQUIRED
    server.load_verify_locations(cadata=chain[-1].der)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.load_verify_locations(cadata=server_ca.roots()[0]["RootCert"])
    client.set_ciphers("DEFAULT:@SECLEVEL=0")  # the client may send what the server must refuse
    key = chain[0].key.private_bytes(
        Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_text(key.decode() + "".join(each.pem for each in chain[:-1]))
    client.load_cert_chain(file)
    try:
        Wire.between(client, server).handshake()
    except ssl.SSLCertVerificationError:
        return False
    return True


@pytest.mark.parametrize("row", ROWS)
def test_a_chain_is_judged_as_in_a_handshake(row, tmp_path):
    plans, ours, openssl = ROWS[row]
    chain = build(plans)
    bundle = TrustBundle(TrustDomain("t.consul"), (chain[-1].certificate,))
    found = bundle.verify(chain[0].der, [each.der for each in chain[1:-1]], time.time())
    assert found == (chain[-1].certificate.fingerprint(hashes.SHA256()) if ours else None)
    assert openssl_says(chain, tmp_path) is openssl


def test_a_chain_may_come_in_any_order_with_others_between():
    chain = build([root(), Plan("ca"), Plan("cb"), leaf()])
    others = build([root(name="other"), Plan("ca"), Plan("cb")])
    sent = [others[1], chain[1], others[0], chain[2], chain[0]]
    found = find_root(
        chain[0].certificate,
        [each.certificate for each in sent],
        [others[-1].certificate, chain[-1].certificate],
        time.time(),
    )
    assert found == chain[-1].certificate


def test_a_forged_signature_leads_nowhere():
    real, forged = root().signed_by(None), root().signed_by(None)
    bad = leaf().signed_by(forged)
    assert find_root(bad.certificate, [], [real.certificate], time.time()) is None
    sent = [forged.certificate]
    assert find_root(bad.certificate, sent, [real.certificate], time.time()) is None


def test_intermediates_are_no_roots():
    chain = build([root(), Plan("ca"), leaf()])
    other = root(name="other").signed_by(None).certificate
    sent = [chain[1].certificate, chain[2].certificate]
    assert find_root(chain[0].certificate, sent, [other], time.time()) is None


def test_a_peer_cannot_make_us_check_signatures_for_long(monkeypatch):
    """Cross-signed CAs of one name: the number of ways grows with each step."""
    key = ec.generate_private_key(ec.SECP256R1())
    maker = Plan("loop", key=key).signed_by(None)
    many = [Plan("loop", key=key).signed_by(maker).certificate for _ in range(20)]
    end = leaf().signed_by(maker)
    search = chains._Search(tuple(many), (root().signed_by(None).certificate,), time.time())
    assert search.climb(end.certificate, 0) is None
    assert search.signatures >= chains.MAX_SIGNATURES


def test_the_way_to_a_root_is_bounded():
    plans = [root(), *(Plan(f"c{i}") for i in range(chains.MAX_INTERMEDIATES)), leaf()]
    for extra, fine in (([], True), ([Plan("one more")], False)):
        chain = build([*plans[:-1], *extra, leaf()])
        sent = [each.certificate for each in chain[1:-1]]
        found = find_root(chain[0].certificate, sent, [chain[-1].certificate], time.time())
        assert (found is not None) is fine


def test_contexts_take_intermediates_without_a_name(tmp_path):
    """VERIFY_X509_STRICT would refuse them; it stays off."""
    chain = build([root(), Plan(), leaf()])
    assert openssl_says(chain, tmp_path)
    ours = contexts_of(CertificateAuthority("t.consul"), "api").server()
    assert not ours.verify_flags & ssl.VERIFY_X509_STRICT

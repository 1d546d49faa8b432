"""Certificates as values: what is read, what is refused, and that no bytes do anything else."""

from __future__ import annotations

import datetime as dt
import re
import ssl
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from mesh_middleware.devagent.ca import CertificateAuthority
from mesh_middleware.errors import DecodeError, PeerIdentityError
from mesh_middleware.policy.decision import Reason
from mesh_middleware.policy.spiffe import ServiceIdentity, SpiffeID, TrustDomain
from mesh_middleware.tls import X509SVID, PeerCertificate, TrustBundle, check_peer
from tests.fuzzing import fuzz
from tests.tls.mesh import bundle_of, der_chain, svid_of

CA = CertificateAuthority("t.consul")
HOME = TrustDomain("t.consul")
WEB = "spiffe://t.consul/ns/default/dc/dc1/svc/web"


def peer_of(*uris: str, **how) -> PeerCertificate:
    return PeerCertificate.from_der(der_chain(CA.issue_raw(uris, **how))[0])


# --- our own


def test_an_svid_is_read_from_what_the_agent_gives():
    CA.rotate()
    leaf = CA.issue("web", namespace="shop")
    for encode in (str, str.encode):
        svid = X509SVID.from_pem(encode(leaf.cert_pem), encode(leaf.key_pem))
        assert svid.identity == ServiceIdentity(HOME, "web", "shop")
        assert len(svid.certificates) == 2
        assert (svid.not_before, svid.not_after) == (leaf.not_before, leaf.not_after)


def test_an_svid_lives_from_its_first_second_to_its_last():
    svid = svid_of(CA.issue("web", not_before=1000, not_after=2000))
    moments = (999.9, 1000, 1500, 2000, 2000.1)
    assert [svid.valid_at(now) for now in moments] == [False, True, True, True, False]


def test_the_key_is_not_shown():
    assert "private_key" not in repr(svid_of(CA.issue("web")))


def test_a_subject_as_consul_wrote_it_before_1_11_says_nothing():
    leaf = CA.issue_raw([WEB], common_name="db.svc.default.11111111.consul")
    assert svid_of(leaf).identity.service == "web"


LEAF, OTHER = CA.issue("web"), CA.issue("web")
WRONG_SVIDS = {
    "another key": (LEAF.cert_pem, OTHER.key_pem, "private key: does not fit"),
    "another kind of key": (
        LEAF.cert_pem,
        rsa.generate_private_key(65537, 2048)
        .private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        .decode(),
        "private key: does not fit",
    ),
    "no certificate": ("", LEAF.key_pem, "certificate: cannot be read"),
    "broken certificate": (LEAF.cert_pem[:300], LEAF.key_pem, "certificate: cannot be read"),
    "no key": (LEAF.cert_pem, "", "private key: cannot be read"),
    "not even text": ("\ud800", LEAF.key_pem, "certificate: cannot be read"),
    "encrypted key": (
        LEAF.cert_pem,
        ec.generate_private_key(ec.SECP256R1())
        .private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"x"),
        )
        .decode(),
        "private key: cannot be read",
    ),
}


@pytest.mark.parametrize("row", WRONG_SVIDS)
def test_such_an_svid_is_not_taken(row):
    cert, key, message = WRONG_SVIDS[row]
    with pytest.raises(DecodeError, match=message) as error:
        X509SVID.from_pem(cert, key)
    assert "BEGIN" not in str(error.value)


WRONG_LEAVES = {
    "two URIs": (([WEB, WEB + "2"],), {}, "2 URI names"),
    "no URI": (([],), {}, "0 URI names"),
    "CA": (([WEB],), {"ca": True}, "that of a CA"),
    "agent": ((["spiffe://t.consul/agent/client/dc/dc1/id/n"],), {}, "does not name a service"),
    "no SPIFFE ID": ((["https://t.consul/"],), {}, "not a SPIFFE ID"),
}


@pytest.mark.parametrize("row", WRONG_LEAVES)
def test_such_a_leaf_is_not_an_svid(row):
    args, how, message = WRONG_LEAVES[row]
    with pytest.raises(DecodeError, match=message) as error:
        svid_of(CA.issue_raw(*args, **how))
    assert error.value.field == "certificate"


# --- roots


def test_a_bundle_has_all_roots_each_once():
    ca = CertificateAuthority("t.consul")
    ca.rotate()
    one, two = [root["RootCert"] for root in ca.roots()]
    bundle = TrustBundle.from_pem("t.consul", [one, two, one])
    assert bundle.trust_domain == HOME
    assert bundle == TrustBundle.from_pem(HOME, [one + two])
    assert bundle.fingerprints == {
        x509.load_pem_x509_certificate(pem.encode()).fingerprint(hashes.SHA256())
        for pem in (one, two)
    }
    assert len(bundle.der()) > 800


@pytest.mark.parametrize(
    ("trust_domain", "pems", "field"),
    [
        ("T Consul", [], "trust domain"),
        ("t.consul", [], "roots"),
        ("t.consul", [CA.roots()[0]["RootCert"], "nonsense"], "roots[1]"),
        ("t.consul", ["\ud800"], "roots[0]"),
    ],
)
def test_a_bundle_that_cannot_be_is_refused(trust_domain, pems, field):
    with pytest.raises(DecodeError) as error:
        TrustBundle.from_pem(trust_domain, pems)
    assert error.value.field == field


def test_a_leaf_leads_to_the_root_that_signed_it_and_to_no_other():
    ca = CertificateAuthority("t.consul")
    before, old = ca.issue("web"), bundle_of(ca)
    ca.rotate()
    after, both = ca.issue("web"), bundle_of(ca)
    ca.remove_inactive_roots()
    new, now = bundle_of(ca), time.time()
    (old_root,), (new_root,) = old.fingerprints, new.fingerprints
    first, (second, crossed) = der_chain(before)[0], der_chain(after)
    assert old.verify(first, [], now) == old_root
    assert both.verify(first, [], now) == old_root
    assert new.verify(first, [], now) is None
    assert new.verify(second, [], now) == new_root
    assert both.verify(second, [crossed], now) == new_root
    assert old.verify(second, [crossed], now) == old_root  # through the cross-signed copy
    assert old.verify(second, [], now) is None
    assert bundle_of(CertificateAuthority("t.consul")).verify(second, [crossed], now) is None
    assert new.verify(second, [], after.not_after + 1) is None
    assert new.verify(second, [b"junk"], now) is None
    assert new.verify(b"junk", [], now) is None


# --- peers

WRONG_PEERS = {
    "two URIs": lambda: peer_of(WEB, WEB),
    "no URI": lambda: peer_of(dns_names=["web"]),
    "no SAN": peer_of,
    "CA": lambda: peer_of(WEB, ca=True),
    "no SPIFFE ID": lambda: peer_of("https://t.consul/ns/default/dc/dc1/svc/web"),
    "query": lambda: peer_of(WEB + "?x"),
    "control character": lambda: peer_of(WEB + "\x07"),
    "NUL": lambda: peer_of(WEB + "\x00.example"),
    "too long": lambda: peer_of(WEB + "x" * 2048),
    "upper case trust domain": lambda: peer_of(WEB.replace("t.consul", "T.consul")),
    "needless escape": lambda: peer_of(WEB + "%65"),
    "junk": lambda: PeerCertificate.from_der(b"junk"),
    "nothing": lambda: PeerCertificate.from_der(b""),
}


@pytest.mark.parametrize("row", WRONG_PEERS)
def test_such_a_peer_has_no_identity(row):
    with pytest.raises(PeerIdentityError) as refusal:
        WRONG_PEERS[row]()
    assert refusal.value.reason == Reason.INVALID_IDENTITY
    assert not re.search(r"[\x00-\x1f]", str(refusal.value))  # it goes into the log


def test_a_name_of_another_kind_may_stand_beside_the_uri():
    assert peer_of(WEB, dns_names=["web"]).identity == ServiceIdentity(HOME, "web")


@pytest.mark.parametrize("power", ["key_cert_sign", "crl_sign"])
def test_a_leaf_whose_key_may_sign_certificates_is_refused(power):
    with pytest.raises(PeerIdentityError, match="may sign"):
        PeerCertificate.from_certificate(handmade(usage={power}))


def test_other_identities_are_read_as_they_are():
    agent = "spiffe://t.consul/agent/client/dc/dc1/id/n"
    assert peer_of(agent).identity == SpiffeID.from_string(agent)


CHECKS = [
    (WEB, {}, None),
    ("spiffe://t.consul/ap/p/ns/n/dc/dc2/svc/web", {}, None),
    ("spiffe://other/ns/default/dc/dc1/svc/web", {}, Reason.FOREIGN_TRUST_DOMAIN),
    ("spiffe://x.t.consul/ns/default/dc/dc1/svc/web", {}, Reason.FOREIGN_TRUST_DOMAIN),
    ("spiffe://t.consul/agent/client/dc/dc1/id/n", {}, Reason.NOT_A_SERVICE),
    ("spiffe://t.consul/agent/client/dc/dc1/id/n", {"gateways": True}, Reason.NOT_A_SERVICE),
    ("spiffe://t.consul/gateway/mesh/dc/dc1", {}, Reason.NOT_A_SERVICE),
    ("spiffe://t.consul/gateway/mesh/dc/dc1", {"gateways": True}, None),
    ("spiffe://other/gateway/mesh/dc/dc1", {"gateways": True}, Reason.FOREIGN_TRUST_DOMAIN),
    ("spiffe://t.consul/something/else", {"gateways": True}, Reason.NOT_A_SERVICE),
    ("spiffe://t.consul", {"gateways": True}, Reason.NOT_A_SERVICE),
]


@pytest.mark.parametrize(("uri", "how", "reason"), CHECKS)
def test_who_may_be_a_caller(uri, how, reason):
    assert check_peer(peer_of(uri), HOME, time.time(), **how) is reason


def test_a_caller_needs_a_certificate_that_is_valid_now():
    peer = peer_of(WEB, not_before=1000, not_after=2000)
    rows = [(999.9, False), (1000, True), (2000, True), (2000.1, False)]
    for now, fine in rows:
        assert check_peer(peer, HOME, now) is (None if fine else Reason.CERTIFICATE_EXPIRED)


# --- whatever the bytes are


def handmade(
    *, san: bytes | None = None, usage: set[str] = frozenset(), extensions=()
) -> x509.Certificate:
    """A certificate below no CA; `san`: the DER of its subject alternative name."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = dt.datetime.now(dt.UTC)
    kinds = (
        "digital_signature content_commitment key_encipherment data_encipherment key_agreement "
        "key_cert_sign crl_sign encipher_only decipher_only"
    ).split()
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(WEB)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([]))
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.KeyUsage(**{kind: kind in usage for kind in kinds}), critical=True)
        .add_extension(
            names if san is None else x509.UnrecognizedExtension(names.oid, san), critical=True
        )
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(key, hashes.SHA256())


def patched(old: bytes, new: bytes) -> bytes:
    """A good leaf with one part exchanged for another of the same length."""
    assert GOOD.count(old) == 1
    return GOOD.replace(old, new)


KEY_USAGE, SAN = bytes.fromhex("0603551d0f"), bytes.fromhex("0603551d11")
P256 = bytes.fromhex("06082a8648ce3d030107")
UNREADABLE = {
    "the same extension twice": lambda: patched(KEY_USAGE, SAN),
    "version 8": lambda: patched(bytes.fromhex("a003020102"), bytes.fromhex("a003020107")),
    "a name of an unknown kind": lambda: der_of(handmade(san=bytes.fromhex("3002a300"))),
    "a name that is not ASCII": lambda: der_of(handmade(san=bytes.fromhex("30048602c3bc"))),
    "a month that is none": lambda: patched(NOT_AFTER, NOT_AFTER[:2] + b"13" + NOT_AFTER[4:]),
}


@pytest.mark.parametrize("row", UNREADABLE)
def test_what_cannot_be_read_is_an_invalid_identity_and_proves_nothing(row):
    der = UNREADABLE[row]()
    assert isinstance(outcome(PeerCertificate.from_der, der), PeerIdentityError)
    assert BUNDLE.verify(der, [], time.time()) is None
    assert BUNDLE.verify(GOOD, [der], time.time()) in BUNDLE.fingerprints | {None}
    with pytest.raises(DecodeError):
        X509SVID.from_pem(ssl.DER_cert_to_PEM_cert(der), LEAF.key_pem)


def test_a_leaf_with_a_key_of_an_unknown_kind_is_not_an_svid():
    odd = ssl.DER_cert_to_PEM_cert(patched(P256, P256[:-1] + b"\x63"))
    with pytest.raises(DecodeError, match="certificate"):
        X509SVID.from_pem(odd, LEAF.key_pem)


def test_what_is_only_warned_about_is_refused_where_warnings_are_errors():
    """As they are in these tests: a negative serial number."""
    odd = patched(SERIAL, SERIAL[:-1] + b"\xf0")
    assert isinstance(outcome(PeerCertificate.from_der, odd), PeerIdentityError)


def outcome(read, *args) -> object:
    """A value or a PeerIdentityError; anything else fails the test."""
    try:
        return read(*args)
    except PeerIdentityError as error:
        return Reason(error.reason) and error


GOOD = der_chain(CA.issue("web"))[0]
BUNDLE = bundle_of(CA)
SERIAL = b"\x02\x01" + bytes([x509.load_der_x509_certificate(GOOD).serial_number])
NOT_AFTER = (
    x509.load_der_x509_certificate(GOOD).not_valid_after_utc.strftime("%y%m%d%H%M%SZ").encode()
)


def der_of(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)


@fuzz(300)
@given(st.binary(max_size=600))
def test_random_bytes_are_no_certificate(data):
    assert isinstance(outcome(PeerCertificate.from_der, data), PeerIdentityError)
    assert BUNDLE.verify(data, [data], 1e9) is None


@st.composite
def _damaged(draw: st.DrawFn) -> bytes:
    """A good certificate with some bytes changed, put in, taken out, or cut off."""
    data = bytearray(GOOD)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data) - 1))
        match draw(st.sampled_from(["change", "insert", "remove", "cut"])):
            case "change":
                data[at] = draw(st.integers(0, 255))
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=8))
            case "remove":
                del data[at : at + draw(st.integers(1, 8))]
            case _:
                del data[max(at, 1) :]
        if not data:
            data = bytearray(b"\x30")
    return bytes(data)


@fuzz(300)
@given(_damaged())
def test_a_damaged_certificate_gives_an_identity_or_our_error_and_is_never_proved(data):
    outcome(PeerCertificate.from_der, data)
    proved = BUNDLE.verify(data, [], time.time())
    if proved is not None:  # then nothing that is signed was touched
        body = x509.load_der_x509_certificate(GOOD).tbs_certificate_bytes
        assert x509.load_der_x509_certificate(data).tbs_certificate_bytes == body


def test_a_name_of_no_type_of_text_is_never_proved():
    """Found by the test before, with an old cryptography."""
    at = GOOD.index(b"\x06\x03U\x04\x03") + 5  # behind the common name's identifier
    data = GOOD[:at] + b"\x00" + GOOD[at + 1 :]
    outcome(PeerCertificate.from_der, data)
    assert BUNDLE.verify(data, [], time.time()) is None


@fuzz(300)
@given(st.binary(max_size=80))
def test_random_alternative_names_give_our_error(san):
    result = outcome(PeerCertificate.from_certificate, handmade(san=san))
    assert isinstance(result, PeerIdentityError)


@fuzz(300, cost=3)
@given(st.text(st.characters(max_codepoint=127), max_size=60))
def test_random_uris_give_an_identity_or_our_error(text):
    for uri in (text, f"spiffe://t.consul/{text}", f"{WEB}{text}"):
        result = outcome(peer_of, uri)
        if isinstance(result, PeerCertificate):
            assert str(result.identity) == uri  # one spelling for one identity


@fuzz(300)
@given(st.binary(max_size=80), st.binary(max_size=80))
def test_random_pem_gives_a_decode_error(cert, key):
    with pytest.raises(DecodeError):
        X509SVID.from_pem(cert, key)
    with pytest.raises(DecodeError):
        X509SVID.from_pem(LEAF.cert_pem, key)

"""The development CA issues what Consul's own CA issues."""

from __future__ import annotations

import json
import ssl
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

from mesh_middleware.devagent.ca import CertificateAuthority
from mesh_middleware.errors import SpiffeIDError


@pytest.fixture
def ca() -> CertificateAuthority:
    return CertificateAuthority()


def extension(certificate: x509.Certificate, kind: type):
    return certificate.extensions.get_extension_for_class(kind)


def test_a_new_trust_domain_is_a_cluster_id_under_consul(ca):
    assert ca.trust_domain.endswith(".consul")
    assert ca.trust_domain != CertificateAuthority().trust_domain
    assert CertificateAuthority("t.consul").trust_domain == "t.consul"
    assert "t.consul roots=1" in repr(CertificateAuthority("t.consul"))
    with pytest.raises(SpiffeIDError):
        CertificateAuthority("Not Fine")


def test_roots_have_the_shape_of_consul(ca):
    document = json.loads(json.dumps(ca.roots_document()))
    assert document["TrustDomain"] == ca.trust_domain
    assert document["ActiveRootID"] == ca.active_root_id
    (root,) = document["Roots"]
    assert root == ca.roots()[0]
    certificate = x509.load_pem_x509_certificate(root["RootCert"].encode())
    assert root["ID"] == certificate.fingerprint(hashes.SHA1()).hex(":")
    assert root["Active"] is True
    assert root["IntermediateCerts"] is None
    assert root["SerialNumber"] == certificate.serial_number == 7
    assert root["ExternalTrustDomain"] + ".consul" == ca.trust_domain
    assert (root["PrivateKeyType"], root["PrivateKeyBits"]) == ("ec", 256)
    assert root["NotBefore"].endswith("Z")
    key_id = extension(certificate, x509.SubjectKeyIdentifier).value.digest
    assert root["SigningKeyID"] == key_id.hex(":")
    assert len(key_id) == 32
    constraints = extension(certificate, x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value.ca
    uris = extension(certificate, x509.SubjectAlternativeName).value
    assert uris.get_values_for_type(x509.UniformResourceIdentifier) == [
        f"spiffe://{ca.trust_domain}"
    ]


def test_a_leaf_is_what_consul_makes_since_1_11(ca):
    before = time.time()
    leaf = ca.issue("web", namespace="shop")
    certificate = x509.load_pem_x509_certificate(leaf.cert_pem.encode())
    assert leaf.uri == f"spiffe://{ca.trust_domain}/ns/shop/dc/dc1/svc/web"
    assert certificate.subject == x509.Name([])
    names = extension(certificate, x509.SubjectAlternativeName)
    assert names.critical
    assert [name.value for name in names.value] == [leaf.uri]
    assert set(extension(certificate, x509.ExtendedKeyUsage).value) == {
        ExtendedKeyUsageOID.CLIENT_AUTH,
        ExtendedKeyUsageOID.SERVER_AUTH,
    }
    usage = extension(certificate, x509.KeyUsage)
    assert usage.critical
    assert usage.value.digital_signature
    assert not usage.value.key_cert_sign
    assert not extension(certificate, x509.BasicConstraints).value.ca
    authority = extension(certificate, x509.AuthorityKeyIdentifier).value.key_identifier
    assert authority.hex(":") == ca.roots()[0]["SigningKeyID"]
    assert authority != extension(certificate, x509.SubjectKeyIdentifier).value.digest
    assert -62 < certificate.not_valid_before_utc.timestamp() - before < -58
    assert leaf.not_after - leaf.not_before == 259200
    assert leaf.key_pem.startswith("-----BEGIN EC PRIVATE KEY-----")
    key = serialization.load_pem_private_key(leaf.key_pem.encode(), None)
    assert key.public_key() == certificate.public_key()


def test_the_leaf_document_has_the_shape_of_consul(ca):
    leaf = ca.issue("web")
    document = json.loads(json.dumps(leaf.document(create_index=16, modify_index=17)))
    assert document["SerialNumber"] == "08"
    assert document["Service"] == "web"
    assert document["ServiceURI"] == leaf.uri
    assert document["CertPEM"] == leaf.cert_pem
    assert document["PrivateKeyPEM"] == leaf.key_pem
    assert document["ValidBefore"].endswith("Z")
    assert (document["CreateIndex"], document["ModifyIndex"]) == (16, 17)


def test_short_lives_count_from_now():
    ca = CertificateAuthority(leaf_ttl_seconds=1)
    now = time.time()
    leaf = ca.issue("web")
    assert leaf.not_before < now
    assert now + 1 <= leaf.not_after < now + 3


def test_given_moments_are_used_and_a_past_life_is_possible(ca):
    leaf = ca.issue("web", not_before=1000, not_after=2000)
    assert (leaf.not_before, leaf.not_after) == (1000, 2000)
    gone = ca.issue("web", not_after=2000)
    assert gone.not_before < gone.not_after == 2000
    again = x509.load_pem_x509_certificate(gone.cert_pem.encode())
    same = ca.issue("web", not_after=again.not_valid_after_utc)
    assert same.not_after == 2000


def test_a_rotation_adds_a_root_that_the_old_one_signed(ca):
    old = x509.load_pem_x509_certificate(ca.roots()[0]["RootCert"].encode())
    new_id = ca.rotate()
    first, second = ca.roots()
    assert (first["Active"], second["Active"]) == (False, True)
    assert ca.active_root_id == new_id == second["ID"]
    new = x509.load_pem_x509_certificate(second["RootCert"].encode())
    (pem,) = second["IntermediateCerts"]
    crossed = x509.load_pem_x509_certificate(pem.encode())
    assert crossed.subject == new.subject
    assert crossed.public_key() == new.public_key()
    crossed.verify_directly_issued_by(old)
    leaf = ca.issue("web")
    assert leaf.cert_pem.endswith(pem)
    chain = x509.load_pem_x509_certificates(leaf.cert_pem.encode())
    assert len(chain) == 2
    chain[0].verify_directly_issued_by(new)
    chain[0].verify_directly_issued_by(crossed)
    ca.remove_inactive_roots()
    assert [root["ID"] for root in ca.roots()] == [new_id]


def test_wrong_certificates_can_be_made_on_purpose(ca):
    leaf = ca.issue_raw(["spiffe://a/x", "spiffe://b/y"], ca=True, dns_names=["localhost"])
    certificate = x509.load_pem_x509_certificate(leaf.cert_pem.encode())
    names = extension(certificate, x509.SubjectAlternativeName).value
    assert [name.value for name in names] == ["spiffe://a/x", "spiffe://b/y", "localhost"]
    assert extension(certificate, x509.BasicConstraints).value.ca
    bare = ca.issue_raw(
        [],
        common_name="web.svc",
        extensions=[(x509.TLSFeature([x509.TLSFeatureType.status_request]), False)],
    )
    certificate = x509.load_pem_x509_certificate(bare.cert_pem.encode())
    assert bare.uri == ""
    assert certificate.subject.rfc4514_string() == "CN=web.svc"
    extension(certificate, x509.TLSFeature)
    with pytest.raises(x509.ExtensionNotFound):
        extension(certificate, x509.SubjectAlternativeName)


def test_impossible_names_are_refused(ca):
    with pytest.raises(SpiffeIDError):
        ca.issue("a/b")


def test_openssl_reads_what_is_issued(ca, tmp_path):
    ca.rotate()
    leaf = ca.issue("web")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    chain.write_text(leaf.cert_pem)
    key.write_text(leaf.key_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    context.load_verify_locations(cadata="".join(root["RootCert"] for root in ca.roots()))
    assert len(context.get_ca_certs()) == 2

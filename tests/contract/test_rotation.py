"""A new root, cross-signed; a restart that loses everything."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.contract import shapes
from tests.contract.agents import Agent
from tests.contract.shapes import same_shape
from tests.contract.test_blocking import index_of, waiting
from tests.contract.test_registration import register
from tests.support import wait_for

ROOTS = "/agent/connect/ca/roots"
LEAF = "/agent/connect/ca/leaf/web"


def rotate(agent: Agent) -> None:
    """Give the CA another private key, as an operator would."""
    configuration = agent.get("/connect/ca/configuration").json()
    key = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    config = {**configuration["Config"], "PrivateKey": key.decode(), "RootCert": ""}
    answer = agent.put("/connect/ca/configuration", {"Provider": "consul", "Config": config})
    assert (answer.status_code, answer.text) == (200, "")


def handshake(leaf: dict[str, Any], roots: list[str], folder: Path) -> bool:
    """Whether both sides of a TLS connection accept the leaf when they trust `roots`."""
    certificate, key = folder / "cert.pem", folder / "key.pem"
    certificate.write_text(leaf["CertPEM"])
    key.write_text(leaf["PrivateKeyPEM"])
    sides, pipes = [], [ssl.MemoryBIO(), ssl.MemoryBIO()]
    for number, protocol in enumerate((ssl.PROTOCOL_TLS_CLIENT, ssl.PROTOCOL_TLS_SERVER)):
        context = ssl.SSLContext(protocol)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(certificate, key)
        context.load_verify_locations(cadata="".join(roots))
        reads, writes = pipes[1 - number], pipes[number]
        sides.append(context.wrap_bio(reads, writes, server_side=bool(number)))
    try:
        for _ in range(4):
            for side in sides:
                try:
                    side.do_handshake()
                except ssl.SSLWantReadError:
                    continue
        sides[0].write(b"x")
        return sides[1].read() == b"x"
    except ssl.SSLCertVerificationError:
        return False


def test_a_rotation_wakes_roots_and_leaf_and_both_roots_accept_the_new_leaf(own_agent, tmp_path):
    agent = own_agent
    before, old = agent.get(ROOTS), agent.get(LEAF)
    old_root = before.json()["Roots"][0]["RootCert"]
    leaf_index, root_index = index_of(old), index_of(before)
    with (
        waiting(agent, LEAF, index=leaf_index, wait="40s") as leaf,
        waiting(agent, ROOTS, index=root_index, wait="40s") as roots,
    ):
        rotate(agent)
        _, after = roots.result(5)
        _, new = leaf.result(41)
    assert index_of(after) > root_index
    body = after.json()
    same_shape(agent, body, shapes.ROOTS)
    by_activity = {root["Active"]: root for root in body["Roots"]}
    assert len(body["Roots"]) == 2
    assert by_activity[True]["ID"] == body["ActiveRootID"] != before.json()["ActiveRootID"]
    assert by_activity[False]["RootCert"] == old_root
    assert body["TrustDomain"] == before.json()["TrustDomain"]
    assert len(by_activity[True]["IntermediateCerts"]) == 1
    new_root = by_activity[True]["RootCert"]

    assert index_of(new) > leaf_index
    assert new.headers["x-cache"] == "MISS"
    assert new.json()["CertPEM"] != old.json()["CertPEM"]
    assert new.json()["CertPEM"].count("BEGIN CERTIFICATE") == 2
    assert new.json()["CertPEM"].endswith(by_activity[True]["IntermediateCerts"][0])
    assert handshake(new.json(), [old_root], tmp_path)
    assert handshake(new.json(), [new_root], tmp_path)
    assert handshake(new.json(), [new_root, old_root], tmp_path)
    assert handshake(old.json(), [old_root], tmp_path)
    assert not handshake(old.json(), [new_root], tmp_path)
    wait_for(lambda: agent.get(LEAF).json() == new.json())


def test_a_leaf_read_after_a_rotation_is_new_at_once_since_1_11(own_agent):
    agent = own_agent
    old = agent.get(LEAF).json()
    rotate(agent)
    new = agent.get(LEAF).json()
    if agent.has("leaf follows rotation at once"):
        assert new["CertPEM"] != old["CertPEM"]
    else:
        assert new["Service"] == old["Service"]


def test_a_configuration_without_another_key_rotates_nothing(own_agent):
    agent = own_agent
    configuration = agent.get("/connect/ca/configuration").json()
    same_shape(agent, configuration, shapes.CA_CONFIGURATION)
    assert configuration["Provider"] == "consul"
    config = {**configuration["Config"], "LeafCertTTL": "2h"}
    before = agent.get(ROOTS).json()
    answer = agent.put("/connect/ca/configuration", {"Provider": "consul", "Config": config})
    assert answer.status_code == 200
    assert agent.get(ROOTS).json()["ActiveRootID"] == before["ActiveRootID"]
    leaf = agent.get(LEAF).json()
    assert leaf["ValidBefore"] > leaf["ValidAfter"]
    unknown = agent.put("/connect/ca/configuration", {"Provider": "nonsense", "Config": {}})
    assert unknown.status_code == 500


def test_a_restarted_development_agent_knows_nothing(own_agent):
    agent = own_agent
    agent.intend("web", "api", "allow")
    service_id = register(agent, "web")
    for number in range(5):
        agent.intend("web", f"api-{number}", "deny")
    before, roots = agent.get("/connect/intentions"), agent.get(ROOTS).json()
    agent.restart()
    assert agent.get(f"/agent/service/{service_id}").status_code == 404
    assert agent.get("/agent/services").json() == {}
    assert agent.rows("api") == []
    after = agent.get(ROOTS).json()
    assert after["TrustDomain"] != roots["TrustDomain"]
    assert after["ActiveRootID"] != roots["ActiveRootID"]
    assert index_of(agent.get("/connect/intentions")) < index_of(before)
    register(agent, "web")
    assert len(agent.get("/agent/services").json()) == 1

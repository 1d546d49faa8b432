"""Corners of the API that a contract with a real agent cannot reach, or need not."""

from __future__ import annotations

import httpx
import pytest

from mesh_middleware.devagent import CertificateAuthority, DevAgent


@pytest.fixture
def client():
    with (
        DevAgent(leaf_ttl_seconds=3600) as agent,
        httpx.Client(base_url=f"{agent.address}/v1", trust_env=False) as client,
    ):
        yield client


def configure(client: httpx.Client, **config: object) -> httpx.Response:
    body = {"Provider": "consul", "Config": config}
    return client.put("/connect/ca/configuration", json=body)


@pytest.mark.parametrize(
    ("config", "status", "text"),
    [
        ({"PrivateKey": "nonsense"}, 500, "failed parsing private key"),
        ({"LeafCertTTL": "0s"}, 500, "leaf cert TTL must be greater than 0"),
        ({"LeafCertTTL": "soon"}, 400, "invalid duration"),
    ],
)
def test_a_ca_configuration_that_makes_no_sense_changes_nothing(client, config, status, text):
    before = client.get("/connect/ca/configuration").json(), client.get("/connect/ca/roots").json()
    answer = configure(client, **config)
    assert answer.status_code == status
    assert text in answer.text
    after = client.get("/connect/ca/configuration").json(), client.get("/connect/ca/roots").json()
    assert after == before


def test_the_life_of_later_leaves_follows_the_ca_configuration(client):
    assert configure(client, LeafCertTTL="2h").status_code == 200
    leaf = client.get("/agent/connect/ca/leaf/web").json()
    hours = [int(leaf[key][11:13]) for key in ("ValidAfter", "ValidBefore")]
    assert (hours[1] - hours[0]) % 24 == 2
    shown = client.get("/connect/ca/configuration").json()
    assert shown["Config"]["LeafCertTTL"] == "7200s"


def test_the_same_key_twice_is_one_rotation(client):
    key = CertificateAuthority().issue("web").key_pem
    roots = []
    for _ in range(2):
        assert configure(client, PrivateKey=key).status_code == 200
        roots.append(client.get("/agent/connect/ca/roots").json()["Roots"])
    assert [len(each) for each in roots] == [2, 2]


def test_meta_of_a_single_intention_belongs_into_the_config_entry(client):
    names = {"source": "web", "destination": "api"}
    body = {"Action": "allow", "Meta": {"k": "v"}}
    answer = client.put("/connect/intentions/exact", json=body, params=names)
    assert answer.status_code == 500
    assert "Meta must not be specified" in answer.text


def test_deleting_an_intention_that_is_not_there_is_fine(client):
    names = {"source": "web", "destination": "api"}
    for _ in range(2):
        assert client.delete("/connect/intentions/exact", params=names).json() is True
    index = client.get("/connect/intentions").headers["x-consul-index"]
    client.delete("/connect/intentions/exact", params=names)
    assert client.get("/connect/intentions").headers["x-consul-index"] == index


def test_an_identical_write_counts_as_one(client):
    entry = {"Kind": "mesh", "TransparentProxy": {"MeshDestinationsOnly": True}}
    for _ in range(2):
        assert client.put("/config", json=entry).json() is True
    stored = client.get("/config/mesh/mesh").json()
    assert stored["ModifyIndex"] > stored["CreateIndex"]
    assert stored["TransparentProxy"] == {"MeshDestinationsOnly": True}


def test_a_jwt_provider_is_kept_as_it_is(client):
    entry = {"Kind": "jwt-provider", "Name": "okta", "Issuer": "https://i", "X": [1, {"y": None}]}
    assert client.put("/config", json=entry).json() is True
    assert client.get("/config/jwt-provider/okta").json().items() >= entry.items()


def test_an_address_that_is_a_name_has_no_tagged_addresses_by_family(client):
    client.put("/agent/service/register", json={"Name": "web", "Address": "web.example"})
    assert client.get("/agent/service/web").json()["TaggedAddresses"] == {}


def test_maintenance_is_on_or_off(client):
    client.put("/agent/service/register", json={"Name": "web"})
    answer = client.put("/agent/service/maintenance/web", params={"enable": "maybe"})
    assert (answer.status_code, answer.text) == (400, 'Invalid value for enable: "maybe"')


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"Name": "x", "Tags": "a"}, "cannot unmarshal string into Go struct field .Tags of type"),
        ({"Name": "x", "Connect": []}, "cannot unmarshal array"),
        ({"Name": True}, "cannot unmarshal bool"),
        ({"Name": "x", "Port": True}, "cannot unmarshal bool"),
        ({"Name": "x", "Port": 1.5}, "cannot unmarshal number"),
        ({"Name": "x", "Tags": [1]}, ".Tags[0]"),
    ],
)
def test_a_field_of_another_type_is_400(client, body, text):
    answer = client.put("/agent/service/register", json=body)
    assert answer.status_code == 400
    assert text in answer.text


def test_null_is_the_same_as_nothing(client):
    body = {"Name": "web", "Tags": None, "Meta": None, "Check": None, "Checks": None}
    assert client.put("/agent/service/register", json=body).status_code == 200
    assert client.get("/agent/service/web").json()["Tags"] == []


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ({"Name": "web", "Action": "allow", "LegacyID": "x"}, "LegacyID must be omitted"),
        (
            {
                "Name": "web",
                "Permissions": [
                    {
                        "Action": "allow",
                        "HTTP": {"Header": [{"Name": "x", "Regex": "a", "IgnoreCase": True}]},
                    }
                ],
            },
            "when using IgnoreCase",
        ),
    ],
)
def test_refusals_of_newer_versions(client, source, text):
    entry = {"Kind": "service-intentions", "Name": "api", "Sources": [source]}
    answer = client.put("/config", json=entry)
    assert answer.status_code == 500
    assert text in answer.text


def test_a_caller_of_a_partition_is_nobody_here(client):
    names = {"source": "*", "destination": "api"}
    client.put("/connect/intentions/exact", json={"Action": "allow"}, params=names)
    for prefix, allowed in (("", True), ("/ap/west", False)):
        uri = f"spiffe://t.consul{prefix}/ns/default/dc/dc1/svc/web"
        body = {"Target": "api", "ClientCertURI": uri}
        answer = client.post("/agent/connect/authorize", json=body).json()
        assert answer["Authorized"] is allowed

"""Roots, leaf, authorize, match, check, exact, config: the same answers from both agents."""

from __future__ import annotations

import re

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from tests.contract import shapes
from tests.contract.agents import Agent, fresh_name
from tests.contract.shapes import same_shape

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


def certificate(pem: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem.encode())


def identity(agent: Agent, service: str, namespace: str = "default", extra: str = "") -> str:
    domain = agent.get("/agent/connect/ca/roots").json()["TrustDomain"]
    return f"spiffe://{domain}{extra}/ns/{namespace}/dc/dc1/svc/{service}"


def authorize(agent: Agent, body: object):
    return agent.client.post("/agent/connect/authorize", json=body)


def test_roots_have_every_field_and_one_active_root(agent):
    answer = agent.get("/agent/connect/ca/roots")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert int(answer.headers["x-consul-index"]) >= 1
    assert answer.headers["x-consul-lastcontact"] == "0"
    assert "x-consul-knownleader" in answer.headers
    assert answer.headers["x-cache"] in ("HIT", "MISS")
    body = answer.json()
    same_shape(agent, body, shapes.ROOTS)
    (root,) = body["Roots"]
    assert root["Active"] is True
    assert root["ID"] == body["ActiveRootID"]
    assert body["TrustDomain"] == f"{root['ExternalTrustDomain']}.consul"
    assert root["IntermediateCerts"] is None
    assert TIME.fullmatch(root["NotBefore"])
    assert TIME.fullmatch(root["NotAfter"])
    der = certificate(root["RootCert"])
    assert root["ID"] == der.fingerprint(hashes.SHA1()).hex(":")
    assert root["SerialNumber"] == der.serial_number
    key = der.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    assert root["SigningKeyID"] == key.hex(":")


def test_the_agent_and_the_server_list_the_same_roots(agent):
    body = agent.get("/agent/connect/ca/roots").json()
    answer = agent.get("/connect/ca/roots")
    assert answer.json() == body
    assert int(answer.headers["x-consul-index"]) >= 1
    pem = agent.get("/connect/ca/roots", pem="true")
    assert pem.headers["content-type"] == "application/pem-certificate-chain"
    assert pem.text == body["Roots"][0]["RootCert"]


def test_a_leaf_has_every_field_and_the_documented_certificate(agent):
    service = fresh_name("web")
    answer = agent.get(f"/agent/connect/ca/leaf/{service}")
    assert answer.status_code == 200
    assert int(answer.headers["x-consul-index"]) >= 1
    assert "x-consul-knownleader" not in answer.headers
    assert answer.headers["x-cache"] == "MISS"
    assert "age" not in answer.headers
    body = answer.json()
    same_shape(agent, body, shapes.LEAF)
    assert body["Service"] == service
    assert body["ServiceURI"] == identity(agent, service)
    assert body["ModifyIndex"] == int(answer.headers["x-consul-index"])
    assert re.fullmatch("[0-9a-f]{2}(:[0-9a-f]{2})*", body["SerialNumber"])
    assert TIME.fullmatch(body["ValidAfter"])
    leaf = certificate(body["CertPEM"])
    assert int(body["SerialNumber"].replace(":", ""), 16) == leaf.serial_number
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names] == [body["ServiceURI"]]
    assert len(list(leaf.subject)) == (0 if agent.has("leaf without subject") else 1)
    assert body["PrivateKeyPEM"].startswith("-----BEGIN EC PRIVATE KEY-----")
    key = serialization.load_pem_private_key(body["PrivateKeyPEM"].encode(), None)
    assert key.public_key() == leaf.public_key()
    (root,) = agent.get("/agent/connect/ca/roots").json()["Roots"]
    signer = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    assert signer.key_identifier.hex(":") == root["SigningKeyID"]
    seconds = (leaf.not_valid_after_utc - leaf.not_valid_before_utc).total_seconds()
    assert seconds == 72 * 3600


def test_a_leaf_is_kept_until_it_has_to_be_renewed(agent):
    service = fresh_name("web")
    first = agent.get(f"/agent/connect/ca/leaf/{service}")
    second = agent.get(f"/agent/connect/ca/leaf/{service}")
    assert second.json() == first.json()
    assert second.headers["x-cache"] == "HIT"
    assert int(second.headers["age"]) in (0, 1, 2)


def test_impossible_service_names_have_no_leaf(agent):
    empty = agent.get("/agent/connect/ca/leaf/")
    assert (empty.status_code, empty.text) == (500, "URI must be either service or agent")
    slash = agent.get("/agent/connect/ca/leaf/a/b")
    assert slash.status_code == 500
    assert slash.text.startswith("SPIFFE ID is not in the expected format: spiffe://")


def test_no_intentions_is_null_and_not_an_empty_list(agent):
    service = fresh_name()
    assert agent.match(service).json() == {service: None}
    many = agent.client.get(
        "/connect/intentions/match",
        params=[("by", "destination"), ("name", service), ("name", f"default/{service}")],
    )
    assert many.json() == {service: None, f"default/{service}": None}


def test_match_gives_every_field_in_the_order_of_precedence(agent):
    api = fresh_name("api")
    for source, destination, action in (
        ("*", api, "deny"),
        ("web", "*", "deny"),
        ("*", "*", "allow"),
        ("web", api, "allow"),
        ("cron", api, "deny"),
    ):
        agent.intend(source, destination, action)
    rows = agent.rows(api)
    for row in rows:
        same_shape(agent, row, shapes.ROW)
        assert (row["SourceNS"], row["DestinationNS"]) == ("default", "default")
        assert row["SourceType"] == "consul"
    found = [(r["SourceName"], r["DestinationName"], r["Action"], r["Precedence"]) for r in rows]
    assert found == [
        ("cron", api, "deny", 9),
        ("web", api, "allow", 9),
        ("*", api, "deny", 8),
        ("web", "*", "deny", 6),
        ("*", "*", "allow", 5),
    ]
    answer = agent.get("/connect/intentions/match", by="source", name="cron")
    by_source = [(r["SourceName"], r["DestinationName"]) for r in answer.json()["cron"]]
    assert by_source == [("cron", api), ("*", api), ("*", "*")]
    for source, destination in (("web", "*"), ("*", "*"), ("*", api)):
        agent.forget(source, destination)
    assert len(agent.rows(api)) == 2


def test_index_headers_of_match_exist_since_1_9(agent):
    answer = agent.match(fresh_name())
    names = ("x-consul-index", "x-consul-knownleader", "x-consul-lastcontact")
    assert [name in answer.headers for name in names] == [agent.has("match index")] * 3
    effective = answer.headers.get("x-consul-effective-consistency")
    assert effective == ("leader" if agent.has("match index") else None)
    cached = agent.match(fresh_name(), cached="")
    assert ("x-cache" in cached.headers) is agent.has("match index")


def test_the_list_of_all_intentions_has_an_index(agent):
    api = fresh_name("api")
    before = agent.get("/connect/intentions")
    assert int(before.headers["x-consul-index"]) >= 1
    agent.intend("web", api, "allow")
    after = agent.get("/connect/intentions")
    assert int(after.headers["x-consul-index"]) > int(before.headers["x-consul-index"])
    (row,) = [row for row in after.json() if row["DestinationName"] == api]
    same_shape(agent, row, shapes.ROW)


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"name": "a"}, "required query parameter 'by' not set"),
        ({"by": "destination"}, "required query parameter 'name' not set"),
        ({"by": "x", "name": "a"}, "'by' parameter must be one of 'source' or 'destination'"),
        (
            {"by": "destination", "name": "a/b/c"},
            "name \"a/b/c\" is invalid: input can contain at most one '/'",
        ),
    ],
)
def test_wrong_parameters_of_match_are_500(agent, parameters, text):
    answer = agent.get("/connect/intentions/match", **parameters)
    assert (answer.status_code, answer.text) == (500, text)
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"


def test_a_foreign_namespace_is_refused_since_1_9(agent):
    answer = agent.match("ns1/api")
    if agent.has("namespaces refused"):
        assert answer.status_code == 500
        assert "Namespaces is a Consul Enterprise feature" in answer.text
    else:
        assert answer.json() == {"ns1/api": None}


def test_check_and_authorize_take_the_first_match(agent):
    api = fresh_name("api")
    assert decided(agent, "web", api) == (True, True)
    agent.intend("*", api, "deny")
    assert decided(agent, "web", api) == (False, False)
    agent.intend("web", api, "allow")
    assert decided(agent, "web", api) == (True, True)
    assert decided(agent, "cron", api) == (False, False)
    body = authorize(
        agent, {"Target": api, "ClientCertURI": identity(agent, "web"), "ClientCertSerial": "0c"}
    )
    same_shape(agent, body.json(), shapes.AUTHORIZED)
    reason = f"Matched L4 intention: default/web => default/{api} (Precedence: 9, Action: ALLOW)"
    if agent.has("authorize reasons of 1.9"):
        assert body.json()["Reason"] == reason
    else:
        assert body.json()["Reason"].startswith("Matched intention: ALLOW default/web => default/")
    assert body.headers["x-cache"] in ("HIT", "MISS")
    assert "x-consul-index" not in body.headers


def decided(agent: Agent, source: str, destination: str) -> tuple[bool, bool]:
    check = agent.get("/connect/intentions/check", source=source, destination=destination)
    body = {"Target": destination, "ClientCertURI": identity(agent, source)}
    return check.json()["Allowed"], authorize(agent, body).json()["Authorized"]


def test_the_probe_of_a_namespace_that_cannot_exist_tells_the_default(agent):
    api = fresh_name("api")
    agent.intend("*", api, "deny")
    body = {"Target": api, "ClientCertURI": identity(agent, "x", "zz-probe")}
    answer = authorize(agent, body).json()
    assert answer["Authorized"] is True
    assert not answer["Reason"].startswith("Matched")


@pytest.mark.parametrize("missing", ["source", "destination"])
def test_check_wants_both_names(agent, missing):
    parameters = {"source": "a", "destination": "b"}
    del parameters[missing]
    answer = agent.get("/connect/intentions/check", **parameters)
    assert (answer.status_code, answer.text) == (
        500,
        f"required query parameter '{missing}' not set",
    )


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (
            {"ClientCertURI": "spiffe://x.consul/ns/d/dc/d/svc/w"},
            "Target service must be specified",
        ),
        (
            {"Target": "a", "ClientCertURI": "web"},
            "ClientCertURI not a valid Connect identifier",
        ),
        (
            {"Target": "a", "ClientCertURI": "spiffe://x.consul/agent/client/dc/dc1/id/n"},
            "ClientCertURI not a valid Service identifier",
        ),
        ({"Target": 3}, "Request decode failed: json: cannot unmarshal number into Go struct"),
        ({"Targe": "x"}, 'Request decode failed: json: unknown field "Targe"'),
    ],
)
def test_authorize_refuses_what_is_not_a_service(agent, body, text):
    answer = authorize(agent, body)
    assert answer.status_code == 400
    assert answer.text.removeprefix("Bad request: ").startswith(text)


def test_exact_reads_writes_and_deletes_one_row(agent):
    api = fresh_name("api")
    path, names = "/connect/intentions/exact", {"source": "web", "destination": api}
    if not agent.has("exact"):
        assert agent.get(path, **names).status_code == 400
        assert agent.put(path, {}, **names).status_code == 500
        return
    missing = agent.get(path, **names)
    assert (missing.status_code, missing.text) == (404, "Intention not found")
    body = {"SourceType": "consul", "Action": "deny", "Description": "d"}
    assert agent.put(path, body, **names).json() is True
    row = agent.get(path, **names).json()
    same_shape(agent, row, shapes.ROW)
    assert (row["Action"], row["Description"], row["Precedence"]) == ("deny", "d", 9)
    assert agent.rows(api) == [row]
    agent.intend("cron", api, "allow")
    agent.intend("web", api, "allow")
    assert [(r["SourceName"], r["Action"]) for r in agent.rows(api)] == [
        ("cron", "allow"),
        ("web", "allow"),
    ]
    agent.forget("web", api)
    assert agent.get(path, **names).status_code == 404
    assert [r["SourceName"] for r in agent.rows(api)] == ["cron"]


def test_service_intentions_are_the_same_rows(agent):
    api = fresh_name("api")
    agent.put("/config", {"Kind": "service-defaults", "Name": api, "Protocol": "http"})
    http = {"PathPrefix": "/", "Header": [{"Name": "x-p", "Present": True, "Invert": True}]}
    permissions = [
        {"Action": "deny", "HTTP": {"PathExact": "/admin"}},
        {"Action": "allow", "HTTP": {**http, "Methods": ["GET", "POST"]}},
    ]
    entry = {
        "Kind": "service-intentions",
        "Name": api,
        "Meta": {"k": "v"},
        "Sources": [
            {"Name": "*", "Action": "deny"},
            {"Name": "web", "Permissions": permissions, "Description": "d1"},
            {"name": "cron", "action": "allow"},
        ],
    }
    answer = agent.put("/config", entry)
    if not agent.has("service-intentions"):
        assert answer.status_code == 400
        assert "invalid config entry kind: service-intentions" in answer.text
        refused = agent.client.post("/connect/intentions", json={"Permissions": permissions})
        assert refused.status_code == 500
        assert 'unknown field "Permissions"' in refused.text
        return
    assert (answer.status_code, answer.json()) == (200, True)
    stored = agent.get(f"/config/service-intentions/{api}")
    assert int(stored.headers["x-consul-index"]) >= stored.json()["ModifyIndex"]
    body = stored.json()
    same_shape(agent, body, shapes.SERVICE_INTENTIONS)
    assert [(s["Name"], s["Precedence"], s["Type"]) for s in body["Sources"]] == [
        ("web", 9, "consul"),
        ("cron", 9, "consul"),
        ("*", 8, "consul"),
    ]
    cron, web, wild = agent.rows(api)[:3]
    for row in (cron, web, wild):
        same_shape(agent, row, shapes.ROW)
        assert (row["CreateIndex"], row["ModifyIndex"]) == (
            body["CreateIndex"],
            body["ModifyIndex"],
        )
        assert row["Meta"] == {"k": "v"}
    assert web["Permissions"] == permissions
    assert "Action" not in web
    assert web["Description"] == "d1"
    l7 = authorize(agent, {"Target": api, "ClientCertURI": identity(agent, "web")}).json()
    assert l7["Authorized"] is False
    assert l7["Reason"].startswith("Matched L7 intention")
    check = agent.get("/connect/intentions/check", source="web", destination=api)
    assert check.json() == {"Allowed": False}
    assert agent.put("/config", entry, cas="1").json() is False
    assert agent.client.delete(f"/config/service-intentions/{api}").json() == {}
    assert agent.rows(api) == []


def test_config_entries_are_stored_listed_and_deleted(agent):
    name = fresh_name()
    missing = agent.get(f"/config/service-defaults/{name}")
    text = f'Config entry not found for "service-defaults" / "{name}"'
    assert (missing.status_code, missing.text) == (404, text)
    assert int(missing.headers["x-consul-index"]) >= 1
    entry = {"Kind": "service-defaults", "Name": name, "Protocol": "http2"}
    assert agent.put("/config", entry).json() is True
    found = agent.get(f"/config/service-defaults/{name}").json()
    assert found.items() >= {**entry, "CreateIndex": found["ModifyIndex"]}.items()
    assert found in agent.get("/config/service-defaults").json()
    assert agent.client.delete(f"/config/service-defaults/{name}").json() == {}
    assert agent.client.delete(f"/config/service-defaults/{name}").json() == {}
    assert agent.get(f"/config/service-defaults/{name}").status_code == 404
    unknown = agent.get("/config/nonsense/x")
    assert unknown.status_code == (400 if agent.has("config kind 400") else 500)
    assert unknown.text.removeprefix("Bad request: ") == "invalid config entry kind: nonsense"


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ({"Kind": "nonsense", "Name": "x"}, "invalid config entry kind: nonsense"),
        (
            {"Kind": "service-defaults", "Name": "x", "Protoco": "http"},
            'invalid config key "Protoco"',
        ),
    ],
)
def test_a_config_entry_of_the_wrong_shape_is_400(agent, entry, text):
    answer = agent.put("/config", entry)
    assert answer.status_code == 400
    assert text in answer.text


def test_the_default_policy_header_is_on_answers_since_1_9(agent):
    for answer in (
        agent.get("/agent/connect/ca/roots"),
        agent.match(fresh_name()),
        agent.get("/connect/intentions/match"),
        agent.get("/agent/self"),
    ):
        header = answer.headers.get("x-consul-default-acl-policy")
        assert header == ("allow" if agent.has("default policy header") else None)
    debug = agent.get("/agent/self").json()["DebugConfig"]
    assert debug["ACLDefaultPolicy"] == "allow"
    assert debug["ACLsEnabled"] is False


def test_methods_and_paths_that_do_not_exist(agent):
    answer = agent.client.post("/agent/connect/ca/roots")
    assert (answer.status_code, answer.text) == (405, "method POST not allowed")
    assert answer.headers["allow"] == "OPTIONS,GET"
    unknown = agent.get("/nothing/here")
    assert unknown.status_code == 404
    assert "x-consul-index" not in unknown.headers


def test_the_agent_has_a_leader_and_says_its_version(agent):
    assert ":" in agent.get("/status/leader").json()
    version = agent.get("/agent/self").json()["Config"]["Version"]
    assert tuple(map(int, version.split("-")[0].split("+")[0].split("."))) == agent.version


@pytest.mark.parametrize(
    "path",
    [
        "/connect/intentions",
        "/connect/intentions/match?by=destination&name=x",
        "/connect/intentions/check?source=a&destination=b",
        "/connect/ca/roots",
        "/config/proxy-defaults",
        "/health/connect/x",
        "/health/service/x",
    ],
)
def test_another_datacenter_is_not_reached(agent, path):
    joint = "&" if "?" in path else "?"
    assert agent.get(f"{path}{joint}dc=dc1").status_code == 200
    answer = agent.get(f"{path}{joint}dc=elsewhere")
    assert (answer.status_code, answer.text) == (500, "No path to datacenter")


@pytest.mark.parametrize("path", ["/health/connect/x", "/health/service/x", "/agent/services"])
def test_a_filter_that_cannot_be_evaluated_is_refused(agent, path):
    """The development agent evaluates none, and must not answer as if it did."""
    answer = agent.get(f"{path}?filter=Nope+%3D%3D+1")
    assert answer.status_code in (400, 500)
    assert "filter" in answer.text or "expression" in answer.text
    assert agent.get(f"{path}?filter=").status_code == 200


def test_what_the_agent_knows_itself_has_no_datacenter(agent):
    for path in ("/agent/services", "/agent/checks", "/agent/self"):
        assert agent.get(f"{path}?dc=elsewhere").status_code == 200

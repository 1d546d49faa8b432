"""Registering, TTL checks, discovery, maintenance, deregistering."""

from __future__ import annotations

import pytest

from tests.contract import shapes
from tests.contract.agents import Agent, fresh_name
from tests.contract.shapes import same_shape
from tests.contract.test_blocking import index_of, took, waiting
from tests.support import wait_for


def register(agent: Agent, name: str, **more: object) -> str:
    """Register a native instance with a TTL check; its ID."""
    service_id = fresh_name(f"{name}-id")
    body = {
        "ID": service_id,
        "Name": name,
        "Port": 9443,
        "Address": "127.0.0.2",
        "Tags": ["v1"],
        "Meta": {"a": "b"},
        "Connect": {"Native": True},
        "Checks": [{"CheckID": f"{service_id}-ttl", "Name": "ttl", "TTL": "30s"}],
        **more,
    }
    answer = agent.put("/agent/service/register", body)
    assert (answer.status_code, answer.text) == (200, "")
    return service_id


def check_of(agent: Agent, check_id: str) -> dict[str, object]:
    found = agent.get("/agent/checks").json()
    return found.get(check_id, {})


def health(agent: Agent, kind: str, name: str, **parameters: object) -> list[dict[str, object]]:
    return agent.get(f"/health/{kind}/{name}", **parameters).json()


def in_catalog(agent: Agent, name: str) -> None:
    """The agent writes to the catalog a moment after it answered."""
    wait_for(lambda: health(agent, "service", name))


def test_a_registered_service_is_described_field_by_field(agent):
    name = fresh_name("web")
    service_id = register(agent, name)
    answer = agent.get(f"/agent/service/{service_id}")
    body = answer.json()
    same_shape(agent, body, shapes.AGENT_SERVICE)
    assert answer.headers["x-consul-contenthash"] == body["ContentHash"]
    hidden = body.pop("ContentHash")
    assert hidden
    address = {"Address": "127.0.0.2", "Port": 9443}
    assert (body["ID"], body["Service"], body["Port"]) == (service_id, name, 9443)
    assert (body["Tags"], body["Meta"]) == (["v1"], {"a": "b"})
    assert body["TaggedAddresses"] == {"lan_ipv4": address, "wan_ipv4": address}
    assert body["Connect"] == {"Native": True}
    listed = agent.get("/agent/services").json()[service_id]
    same_shape(agent, listed, shapes.SERVICE)
    assert listed == body


def test_a_plain_service_takes_its_name_as_id_and_is_not_in_the_mesh(agent):
    name = fresh_name("plain")
    assert agent.put("/agent/service/register", {"Name": name}).status_code == 200
    body = agent.get(f"/agent/service/{name}").json()
    same_shape(agent, body, shapes.AGENT_SERVICE)
    assert (body["ID"], body["Port"], body["Address"]) == (name, 0, "")
    in_catalog(agent, name)
    (row,) = health(agent, "service", name, passing="")
    assert row["Service"]["Port"] == 0
    assert health(agent, "connect", name) == []


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"ID": "x"}, "Missing service name"),
        ({"Name": "x", "Port": "80"}, "Request decode failed: json: cannot unmarshal string"),
        ({"Name": "x", "Nonsense": 1}, 'Request decode failed: json: unknown field "Nonsense"'),
        (
            {"Name": "x", "Check": {"TTL": "soon"}},
            'Request decode failed: time: invalid duration "',
        ),
        ({"Name": "x", "Kind": "connect-proxy", "Connect": {"Native": True}}, ""),
    ],
)
def test_a_registration_that_makes_no_sense_is_400(agent, body, text):
    answer = agent.put("/agent/service/register", body)
    assert answer.status_code == 400
    assert answer.text.removeprefix("Bad request: ").startswith(text)


def test_a_native_service_needs_a_port_since_1_13(agent):
    body = {"Name": fresh_name("web"), "Connect": {"Native": True}}
    answer = agent.put("/agent/service/register", body)
    assert answer.status_code == (400 if agent.has("native needs a port") else 200)


def test_a_new_check_is_critical_and_hides_the_instance_until_it_passes(agent):
    name = fresh_name("web")
    service_id = register(agent, name)
    check_id = f"{service_id}-ttl"
    in_catalog(agent, name)
    (row,) = health(agent, "connect", name)
    same_shape(agent, [row], shapes.HEALTH)
    (check,) = [each for each in row["Checks"] if each["CheckID"] == check_id]
    assert check["Status"] == "critical"
    assert check["ServiceTags"] == ["v1"]
    assert check["Type"] == "ttl"
    assert row["Checks"][0]["CheckID"] == "serfHealth"
    assert row["Service"]["Connect"] == {"Native": True}
    answer = agent.get(f"/health/connect/{name}", passing="")
    assert answer.json() == []
    assert answer.headers["x-consul-effective-consistency"] == "leader"
    index = index_of(answer)
    with waiting(agent, f"/health/connect/{name}", passing="", index=index, wait="10s") as future:
        passed = agent.put(f"/agent/check/pass/{check_id}", note="ok")
        assert (passed.status_code, passed.text) == (200, "")
        _, answer = future.result(5)
    assert index_of(answer) > index
    (row,) = answer.json()
    assert row["Service"]["ID"] == service_id
    shown = check_of(agent, check_id)
    same_shape(agent, shown, shapes.CHECK)
    assert (shown["Status"], shown["Output"]) == ("passing", "ok")
    assert (shown["CreateIndex"], shown["ModifyIndex"]) == (0, 0)


def test_a_check_goes_through_all_states(agent):
    service_id = register(agent, fresh_name("web"))
    check_id = f"{service_id}-ttl"
    for verb, status in (("pass", "passing"), ("warn", "warning"), ("fail", "critical")):
        assert agent.put(f"/agent/check/{verb}/{check_id}", note=verb).status_code == 200
        assert check_of(agent, check_id).items() >= {"Status": status, "Output": verb}.items()
    body = {"Status": "passing", "Output": "fine"}
    assert agent.put(f"/agent/check/update/{check_id}", body).status_code == 200
    assert check_of(agent, check_id)["Output"] == "fine"
    bad = agent.put(f"/agent/check/update/{check_id}", {"Status": "bad"})
    assert (bad.status_code, bad.text) == (400, "Invalid check status: 'bad'")
    unknown = agent.put(f"/agent/check/pass/{fresh_name('none')}")
    assert unknown.status_code == (404 if agent.has("unknown ids are 404") else 500)


def test_a_ttl_that_runs_out_makes_the_check_critical_and_says_so(agent):
    name = fresh_name("web")
    check_id = fresh_name("ttl")
    register(agent, name, Checks=[{"CheckID": check_id, "Name": "ttl", "TTL": "500ms"}])
    agent.put(f"/agent/check/pass/{check_id}", note="ok")
    wait_for(lambda: health(agent, "connect", name, passing=""))
    index = index_of(agent.get(f"/health/connect/{name}", passing=""))
    wait = {"index": index, "wait": "10s"}
    seconds, answer = took(lambda: agent.get(f"/health/connect/{name}", passing="", **wait))
    assert seconds < 5
    assert answer.json() == []
    check = check_of(agent, check_id)
    assert check["Status"] == "critical"
    assert check["Output"] == "TTL expired (last output before timeout follows): ok"


def test_a_heartbeat_without_news_wakes_nobody(agent):
    name = fresh_name("web")
    service_id = register(agent, name)
    agent.put(f"/agent/check/pass/{service_id}-ttl", note="one")
    wait_for(lambda: health(agent, "connect", name, passing=""))
    index = index_of(agent.get(f"/health/connect/{name}"))
    with waiting(agent, f"/health/connect/{name}", index=index, wait="800ms") as future:
        agent.put(f"/agent/check/pass/{service_id}-ttl", note="two")
        seconds, answer = future.result(5)
    assert seconds >= 0.8
    assert index_of(answer) == index
    (check,) = [c for c in answer.json()[0]["Checks"] if c["CheckID"] == f"{service_id}-ttl"]
    assert (check["Status"], check["Output"]) == ("passing", "one")
    assert check_of(agent, f"{service_id}-ttl")["Output"] == "two"


def test_check_ids_are_made_from_the_service(agent):
    one, two = fresh_name("one"), fresh_name("two")
    agent.put("/agent/service/register", {"Name": one, "Check": {"TTL": "9s"}})
    assert check_of(agent, f"service:{one}")["Name"] == f"Service '{one}' check"
    checks = [{"TTL": "9s", "CheckID": f"{two}-own"}, {"TTL": "9s"}]
    agent.put("/agent/service/register", {"Name": two, "Checks": checks})
    assert check_of(agent, f"{two}-own")
    assert check_of(agent, f"service:{two}:2")


def test_registering_again_keeps_the_status_of_the_check(agent):
    name = fresh_name("web")
    body = {"Name": name, "Check": {"TTL": "30s"}}
    agent.put("/agent/service/register", body)
    agent.put(f"/agent/check/pass/service:{name}", note="ok")
    agent.put("/agent/service/register", {**body, "Tags": ["new"]})
    assert check_of(agent, f"service:{name}")["Status"] == "passing"
    assert agent.get(f"/agent/service/{name}").json()["Tags"] == ["new"]


def test_the_content_hash_blocks_until_the_service_is_another_one(agent):
    name = fresh_name("web")
    agent.put("/agent/service/register", {"Name": name, "Port": 1})
    known = agent.get(f"/agent/service/{name}").headers["x-consul-contenthash"]
    path = f"/agent/service/{name}"
    seconds, answer = took(lambda: agent.get(path, hash=known, wait="500ms"))
    assert seconds >= 0.5
    assert answer.headers["x-consul-contenthash"] == known
    with waiting(agent, path, hash=known, wait="10s") as future:
        agent.put("/agent/service/register", {"Name": name, "Port": 2})
        _, answer = future.result(5)
    assert answer.json()["Port"] == 2
    assert answer.headers["x-consul-contenthash"] != known
    seconds, _ = took(lambda: agent.get(path, hash="another", wait="5s"))
    assert seconds < 2


def test_maintenance_hides_an_instance_and_ends(agent):
    name = fresh_name("web")
    service_id = register(agent, name)
    agent.put(f"/agent/check/pass/{service_id}-ttl")
    wait_for(lambda: health(agent, "connect", name, passing=""))
    path = f"/agent/service/maintenance/{service_id}"
    assert agent.put(path, enable="true", reason="hi").status_code == 200
    check = check_of(agent, f"_service_maintenance:{service_id}")
    assert (check["Status"], check["Notes"]) == ("critical", "hi")
    wait_for(lambda: not health(agent, "connect", name, passing=""))
    agent.put(path, enable="false")
    wait_for(lambda: health(agent, "connect", name, passing=""))
    missing = agent.put(path)
    assert (missing.status_code, missing.text) == (400, "Missing value for enable")
    unknown = agent.put(f"/agent/service/maintenance/{fresh_name('none')}", enable="true")
    assert unknown.status_code == 404


def test_a_deregistered_service_is_unknown(agent):
    name = fresh_name("web")
    service_id = register(agent, name)
    in_catalog(agent, name)
    assert agent.put(f"/agent/service/deregister/{service_id}").status_code == 200
    unknown = agent.get(f"/agent/service/{service_id}")
    assert (unknown.status_code, unknown.text) == (404, f"unknown service ID: {service_id}")
    wait_for(lambda: not health(agent, "service", name))
    assert check_of(agent, f"{service_id}-ttl") == {}
    again = agent.put(f"/agent/service/deregister/{service_id}")
    assert again.status_code == (404 if agent.has("unknown ids are 404") else 200)


def test_health_of_the_unknown_is_empty_and_of_the_nameless_400(agent):
    answer = agent.get(f"/health/connect/{fresh_name('none')}")
    assert (answer.status_code, answer.json()) == (200, [])
    assert index_of(answer) >= 1
    nameless = agent.get("/health/connect/")
    assert nameless.status_code == 400
    assert nameless.text.endswith("Missing service name")


def test_a_sidecar_is_found_under_the_name_it_stands_for(agent):
    name = fresh_name("legacy")
    body = {
        "Name": f"{name}-sidecar-proxy",
        "Kind": "connect-proxy",
        "Port": 20000,
        "Proxy": {"DestinationServiceName": name},
    }
    assert agent.put("/agent/service/register", body).status_code == 200
    row = wait_for(lambda: health(agent, "connect", name))[0]
    assert row["Service"]["Service"] == f"{name}-sidecar-proxy"
    assert row["Service"]["Proxy"]["DestinationServiceName"] == name
    assert row["Service"].get("Connect", {}).get("Native") is None

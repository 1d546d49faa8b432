"""DevAgent as a library: life cycle, state, and the arguments it refuses."""

from __future__ import annotations

import concurrent.futures
import contextlib
import gc
import socket
import sys
import threading
import time

import httpx
import pytest

from mesh_middleware.devagent import DevAgent
from mesh_middleware.errors import ConfigError
from tests.support import wait_for

ROW = {"SourceName": "web", "DestinationName": "api", "Action": "allow"}


def get(agent: DevAgent, path: str, **parameters: object) -> httpx.Response:
    return httpx.get(f"{agent.address}/v1{path}", params=parameters, trust_env=False, timeout=20)


def put(agent: DevAgent, path: str, body: object = None) -> httpx.Response:
    return httpx.put(f"{agent.address}/v1{path}", json=body, trust_env=False)


def test_it_starts_well_within_a_second_and_says_where_it_is():
    agent = DevAgent()
    assert agent.port == 0
    start = time.monotonic()
    with agent:
        assert time.monotonic() - start < 1
        assert agent.address == f"http://127.0.0.1:{agent.port}"
        assert repr(agent) == f"<DevAgent {agent.address} running 0 services>"
        assert get(agent, "/status/leader").status_code == 200
        agent.start()
    assert "stopped" in repr(agent)
    agent.stop()


def test_stop_does_not_wait_for_blocking_queries():
    with DevAgent() as agent, concurrent.futures.ThreadPoolExecutor() as pool:
        index = get(agent, "/connect/intentions").headers["x-consul-index"]
        query = {"index": index, "wait": "60s"}
        waiting = [
            pool.submit(get, agent, path, **query)
            for path in ("/connect/intentions", "/health/connect/web", "/agent/connect/ca/roots")
        ]
        wait_for(lambda: len(agent._store._waiters) == 3)
        start = time.monotonic()
        agent.stop()
        assert time.monotonic() - start < 1.5
        # As from a real agent that is told to stop: 200, early, with the index of before.
        for future in waiting:
            assert future.result(1).status_code == 200
        assert waiting[0].result().headers["x-consul-index"] == index
        with pytest.raises(httpx.ConnectError):
            get(agent, "/status/leader")


def test_the_port_and_the_state_outlive_a_stop():
    with DevAgent(intentions=[ROW]) as agent:
        address, roots = agent.address, get(agent, "/agent/connect/ca/roots").json()
        put(agent, "/agent/service/register", {"Name": "web", "Port": 1})
        agent.restart()
        assert agent.address == address
        assert agent.services["web"]["Port"] == 1
        assert get(agent, "/agent/connect/ca/roots").json() == roots
        index = get(agent, "/connect/intentions").headers["x-consul-index"]
        start = time.monotonic()
        get(agent, "/connect/intentions", index=index, wait="300ms")
        assert time.monotonic() - start >= 0.3


def test_losing_state_keeps_what_the_constructor_was_told():
    with DevAgent(intentions=[ROW], trust_domain="t.consul") as agent:
        address, root, index = agent.address, agent.ca.active_root_id, agent._store.index
        put(agent, "/agent/service/register", {"Name": "web", "Port": 1})
        agent.put_intentions([{**ROW, "DestinationName": "other"}])
        agent.restart(lose_state=True)
        assert agent.address == address
        assert agent.services == {}
        assert agent.intentions("other") == []
        assert [row["SourceName"] for row in agent.intentions("api")] == ["web"]
        assert agent.ca.trust_domain == "t.consul"
        assert agent.ca.active_root_id != root
        assert agent._store.index == index


def test_intentions_are_replaced_per_destination_and_deleted():
    with DevAgent(intentions=[ROW]) as agent:
        agent.put_intentions({**ROW, "SourceName": "cron", "Action": "deny"})
        (row,) = agent.intentions("api")
        assert (row["SourceName"], row["Action"]) == ("cron", "deny")
        entry = {
            "Kind": "service-intentions",
            "Name": "b",
            "Sources": [{"Name": "*", "Action": "deny"}],
        }
        agent.put_intentions([entry, {**ROW, "SourceName": "*", "DestinationName": "*"}])
        assert [row["Precedence"] for row in agent.intentions("b")] == [8, 5]
        agent.delete_intentions("*")
        agent.delete_intentions("nobody")
        assert len(agent.intentions("b")) == 1
        index = agent._store.index
        agent.put_intentions([entry])
        assert agent._store.index == index, "an unchanged entry is no write"


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([ROW, {**ROW, "Action": "permit"}], "intention 1: Action must be set to 'allow'"),
        ([ROW, ROW], '"web" => "api" is defined more than once'),
        ([{"SourceName": "web"}], "DestinationName must be set"),
        ([{**ROW, "Acton": "x"}], 'unknown field "Acton"'),
        ([ROW, "web"], "cannot unmarshal string"),
        ([{**ROW, "SourceNS": "ns1"}], "Enterprise"),
        ([{**ROW, "DestinationNS": "ns1"}], "Enterprise"),
        ([{**ROW, "SourceSamenessGroup": "g"}], "Enterprise"),
        ([{**ROW, "SourcePeer": "p*"}], "cannot use wildcard '*' in peer"),
        ([{**ROW, "Meta": {"k": 1}}], "Meta"),
        ([{**ROW, "Meta": {"k" * 129: ""}}], "exceeds maximum length 128"),
        ([{**ROW, "Meta": {"k": "v" * 513}}], "exceeds maximum length 512"),
        ([{**ROW, "Meta": {str(n): "" for n in range(65)}}], "maximum element count 64"),
        (
            [ROW, {**ROW, "SourceName": "x", "JWT": {"Providers": [{"Name": "okta"}]}}],
            "different JWT",
        ),
        ([{"Kind": "service-intentions", "Sources": []}], "Name is required"),
        ([{"Kind": "nonsense"}], "invalid config entry kind: nonsense"),
        ([{"Kind": "mesh", "Name": "x"}], 'only "mesh" is supported'),
        ([{"Kind": "jwt-provider"}], "Name is required"),
        ([{"Kind": "jwt-provider", "Name": "x"}] * 2, "is defined more than once"),
    ],
)
def test_rows_that_consul_would_refuse_are_named(rows, text):
    with pytest.raises(ConfigError, match=r"intention \d+: |more than once") as error:
        DevAgent(intentions=rows)
    assert text in str(error.value)
    agent = DevAgent(intentions=[ROW])
    with pytest.raises(ConfigError) as error:
        agent.put_intentions(rows)
    assert text in str(error.value)
    assert len(agent.intentions("api")) == 1


def test_l7_rows_against_a_tcp_service_are_refused_as_a_whole():
    entries = [
        {"Kind": "service-defaults", "Name": "api", "Protocol": "tcp"},
        {**ROW, "Action": "", "Permissions": [{"Action": "allow", "HTTP": {"PathPrefix": "/"}}]},
    ]
    with pytest.raises(ConfigError, match="incompatible with L7"):
        DevAgent(intentions=entries)
    agent = DevAgent()
    with pytest.raises(ConfigError, match="incompatible with L7"):
        agent.put_intentions(entries)
    assert agent.intentions("api") == []


def test_rows_of_the_match_api_can_be_given_back_as_they_came():
    jwt = {"Providers": [{"Name": "okta", "VerifyClaims": [{"Path": ["a"], "Value": "b"}]}]}
    row = {**ROW, "SourcePeer": "east", "JWT": jwt, "Description": "d", "Meta": {"k": "v"}}
    permissions = [{"Action": "deny", "HTTP": {"PathExact": "/a"}, "JWT": jwt}]
    l7 = {**row, "SourceName": "cron", "Action": "", "Permissions": permissions}
    agent = DevAgent(intentions=[row, l7])
    rows = agent.intentions("api")
    assert DevAgent(intentions=rows).intentions("api") == rows
    assert rows[0]["Permissions"] == permissions
    assert rows[1]["JWT"] == jwt
    assert {row["SourcePeer"] for row in rows} == {"east"}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com", ""])
def test_only_loopback_is_listened_on(host):
    with pytest.raises(ConfigError, match="loopback only"):
        DevAgent(host=host)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.2", "::1"])
def test_every_loopback_address_will_do(host):
    with DevAgent(host=host) as agent:
        assert get(agent, "/status/leader").status_code == 200


def test_a_taken_port_is_a_config_error_with_its_cause():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        agent = DevAgent(taken.getsockname()[1])
        with pytest.raises(ConfigError, match="choose another port") as error:
            agent.start()
    assert isinstance(error.value.__cause__, OSError)


def test_the_default_action_is_allow_or_deny():
    with pytest.raises(ConfigError, match="must be 'allow' or 'deny'"):
        DevAgent(default_action="maybe")
    for action in ("allow", "deny"):
        with DevAgent(default_action=action) as agent:
            body = {"Target": "a", "ClientCertURI": "spiffe://t.consul/ns/zz/dc/x/svc/x"}
            url = f"{agent.address}/v1/agent/connect/authorize"
            answer = httpx.post(url, json=body, trust_env=False)
            assert answer.json() == {
                "Authorized": action == "allow",
                "Reason": "Default intention policy",
            }
            assert answer.headers["x-consul-default-acl-policy"] == action
            debug = get(agent, "/agent/self").json()["DebugConfig"]
            assert (debug["ACLDefaultPolicy"], debug["DefaultIntentionPolicy"]) == (action, action)


def test_removing_old_roots_wakes_who_watches_them():
    with DevAgent() as agent, concurrent.futures.ThreadPoolExecutor() as pool:
        agent.rotate_ca()
        answer = get(agent, "/agent/connect/ca/roots")
        assert len(answer.json()["Roots"]) == 2
        index = answer.headers["x-consul-index"]
        future = pool.submit(get, agent, "/agent/connect/ca/roots", index=index, wait="10s")
        wait_for(lambda: agent._store._waiters)
        agent.remove_inactive_roots()
        assert len(future.result(2).json()["Roots"]) == 1


def test_a_rotation_made_at_the_ca_itself_is_noticed():
    with DevAgent() as agent:
        index = get(agent, "/agent/connect/ca/roots").headers["x-consul-index"]
        leaf = get(agent, "/agent/connect/ca/leaf/web").headers["x-consul-index"]
        agent.ca.rotate()
        start = time.monotonic()
        woken = get(agent, "/agent/connect/ca/roots", index=index, wait="15s")
        assert time.monotonic() - start < 5
        assert len(woken.json()["Roots"]) == 2
        renewed = get(agent, "/agent/connect/ca/leaf/web", index=leaf, wait="5s").json()
        assert renewed["CertPEM"].count("BEGIN") == 2


def test_statuses_show_every_check():
    with DevAgent() as agent:
        put(agent, "/agent/service/register", {"Name": "web", "Check": {"TTL": "9s"}})
        assert agent.statuses == {"service:web": "critical"}
        put(agent, "/agent/check/pass/service:web")
        assert agent.statuses == {"service:web": "passing"}


def test_what_connects_while_it_stops_is_closed_too(monkeypatch):
    """One that was accepted in the last moment is open for ever unless somebody looks again."""
    left: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: left.append(str(found.exc_value)))
    for _ in range(8):
        ending, dialled = threading.Event(), []
        with DevAgent() as agent:
            address = ("127.0.0.1", agent.port)

            def dial(address=address, ending=ending, dialled=dialled):
                while not ending.wait(0.0002):
                    with contextlib.suppress(OSError):
                        dialled.append(socket.create_connection(address, 1))

            threads = [threading.Thread(target=dial) for _ in range(2)]
            for thread in threads:
                thread.start()
            wait_for(lambda dialled=dialled: len(dialled) > 20)
        ending.set()
        for thread in threads:
            thread.join()
        for connection in dialled:
            connection.close()
        gc.collect()
    assert left == []

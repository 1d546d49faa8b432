"""The manager and the registrar against a real Consul agent."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mesh_middleware.config import MeshConfig
from mesh_middleware.consul.manager import MeshManager
from mesh_middleware.consul.registration import Registrar, ServiceRegistration
from mesh_middleware.policy.intentions import Action
from mesh_middleware.policy.request import HTTPRequest
from mesh_middleware.policy.spiffe import ServiceIdentity
from tests.consul_agent import ConsulAgent, running_consul
from tests.support import wait_for

pytestmark = pytest.mark.consul

SERVICE = "learner"


@pytest.fixture
def http(consul: ConsulAgent) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=consul.address, trust_env=False) as client:
        yield client


def refuse(client: httpx.Client, version: tuple[int, ...], source: str) -> None:
    """Write a deny; a development agent's default is allow."""
    if version < (1, 9):
        body = {"SourceName": source, "DestinationName": SERVICE, "Action": "deny"}
        client.post("/v1/connect/intentions", json=body).raise_for_status()
        return
    query = {"source": source, "destination": SERVICE}
    body = {"Action": "deny"}
    client.put("/v1/connect/intentions/exact", params=query, json=body).raise_for_status()


def forget(client: httpx.Client, version: tuple[int, ...], source: str) -> None:
    if version < (1, 9):
        for row in client.get("/v1/connect/intentions").json():
            if row["SourceName"] == source:
                client.delete(f"/v1/connect/intentions/{row['ID']}").raise_for_status()
        return
    query = {"source": source, "destination": SERVICE}
    client.delete("/v1/connect/intentions/exact", params=query).raise_for_status()


def allows(manager: MeshManager, source: str) -> bool:
    policy = manager.state.policy
    assert policy is not None
    identity = ServiceIdentity(policy.trust_domain, source)
    return policy.decide(identity, HTTPRequest("GET", b"/", [])).allowed


def test_ready_and_following_changes(consul: ConsulAgent, http: httpx.Client) -> None:
    """Also on 1.8.7, whose match answers carry no index; deletions are seen too."""
    with MeshManager(MeshConfig(SERVICE, address=consul.address)) as manager:
        state = manager.wait_ready(20)
        assert state.policy is not None
        assert state.policy.default_action is Action.ALLOW
        assert state.svid is not None
        assert state.svid.identity.service == SERVICE
        assert allows(manager, "web")
        refuse(http, consul.version, "web")
        wait_for(lambda: not allows(manager, "web"), 5)
        forget(http, consul.version, "web")
        wait_for(lambda: allows(manager, "web"), 5)
        assert manager.last_errors == {}


def test_registration(consul: ConsulAgent, http: httpx.Client) -> None:
    registration = ServiceRegistration(SERVICE, 8443, "127.0.0.2", ("v1",), {"a": "b"})
    with MeshManager(MeshConfig(SERVICE, address=consul.address)) as manager:
        registrar = Registrar(manager.client, registration)
        manager.run_coroutine(registrar.register()).result(10)
        path = f"/v1/health/connect/{SERVICE}"
        assert wait_for(lambda: http.get(path).json())[0]["Service"]["Connect"]["Native"]
        assert http.get(path, params={"passing": ""}).json() == []
        manager.run_coroutine(registrar.update(lambda: None)).result(10)
        wait_for(lambda: http.get(path, params={"passing": ""}).json())
        http.put(f"/v1/agent/service/deregister/{registration.id}").raise_for_status()
        manager.run_coroutine(registrar.update(lambda: None)).result(10)
        wait_for(lambda: http.get(path, params={"passing": ""}).json())
        for _ in range(2):
            manager.run_coroutine(registrar.deregister()).result(10)
        wait_for(lambda: http.get(path).json() == [])


def test_rotation_and_a_restart_that_loses_everything() -> None:
    with running_consul() as agent, MeshManager(MeshConfig(SERVICE, address=agent.address)) as it:
        before = it.wait_ready(20)
        rotate(agent)
        wait_for(lambda: it.state.bundle and len(it.state.bundle.roots) == 2)
        assert it.ready  # the old leaf, or the new one: up to 30 s lie between roots and leaf
        agent.restart()
        old = before.bundle and before.bundle.trust_domain
        wait_for(lambda: it.state.bundle and it.state.bundle.trust_domain != old)
        wait_for(lambda: it.ready and not it.last_errors)


def rotate(agent: ConsulAgent) -> None:
    """Make Consul's built-in CA sign itself a new root, by giving it another key."""
    key = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    with httpx.Client(base_url=agent.address, trust_env=False, timeout=20) as client:
        path = "/v1/connect/ca/configuration"
        config = client.get(path).json()
        config["Config"]["PrivateKey"] = key.decode()
        config["Config"]["RootCert"] = ""
        config.pop("CreateIndex"), config.pop("ModifyIndex")
        client.put(path, json=config).raise_for_status()

"""The two agents that the contract is checked on, behind one small interface.

`Since` and `FEATURES` are the one place that says in which Consul something appeared: a test asks
`agent.has("…")` and, where the answer is no, asserts what the older agent does instead.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import httpx

from mesh_middleware.devagent import DevAgent
from tests.consul_agent import ConsulAgent, running_consul
from tests.support import wait_for

DEV_VERSION = (1, 21, 0)
"""The Consul that the development agent imitates."""

RECORDED = {(1, 8, 7), DEV_VERSION}
"""Versions whose every field is known; others may have more fields, never fewer."""

FEATURES: dict[str, tuple[int, int, int]] = {
    "exact": (1, 9, 0),  # before, an intention's ID: GET 400, PUT 500
    "service-intentions": (1, 9, 0),  # the config entry; before: 400 invalid config entry kind
    "permissions": (1, 9, 0),  # L7; before: unknown field
    "default policy header": (1, 9, 0),
    "match index": (1, 9, 0),  # X-Consul-* on match; before it blocks, but sends none of them
    "intentions without IDs": (1, 9, 0),  # ID, Hash, CreatedAt, DefaultAddr, ... before
    "leaf follows rotation at once": (1, 11, 0),  # before, a read without index gives the old one
    "leaf without subject": (1, 11, 0),
    "absent objects stay quiet": (1, 11, 4),  # before, unrelated writes wake the query
    "native needs a port": (1, 13, 0),
    "unknown ids are 404": (1, 13, 0),  # before: 200 for deregister, 500 for a check
    "config kind 400": (1, 10, 0),  # an unknown kind read by name; before: 500
    "JWT": (1, 16, 0),
    "authorize reasons of 1.9": (1, 9, 0),
    "namespaces refused": (1, 9, 0),  # match name=ns/x on the open edition; before: null
}


class Agent:
    """One agent: where it is, what it can do, and how intentions are written to it."""

    kind = ""

    def __init__(self, address: str, version: tuple[int, int, int]) -> None:
        self.address = address
        self.version = version
        self.client = httpx.Client(base_url=f"{address}/v1", trust_env=False, timeout=60)
        self._ids: dict[tuple[str, str], str] = {}

    def __repr__(self) -> str:
        return f"<{self.kind} agent {self.version}>"

    def has(self, feature: str) -> bool:
        return self.version >= FEATURES[feature]

    def get(self, path: str, **parameters: Any) -> httpx.Response:
        return self.client.get(path, params=parameters or None)

    def put(self, path: str, body: Any = None, **parameters: Any) -> httpx.Response:
        return self.client.put(path, json=body, params=parameters or None)

    def intend(self, source: str, destination: str, action: str) -> None:
        """Write an L4 intention in whichever way this version has."""
        if self.has("exact"):
            path = "/connect/intentions/exact"
            answer = self.put(path, {"Action": action}, source=source, destination=destination)
            assert answer.status_code == 200, answer.text
            assert answer.json() is True
            return
        row = {"SourceName": source, "DestinationName": destination, "SourceType": "consul"}
        known = self._ids.get((source, destination))
        if known:
            body = {**row, "Action": action}
            answer = self.put(f"/connect/intentions/{known}", body)
        else:
            answer = self.client.post("/connect/intentions", json={**row, "Action": action})
        assert answer.status_code == 200, answer.text
        self._ids[source, destination] = known or answer.json()["ID"]

    def forget(self, source: str, destination: str) -> None:
        """Delete the intention that `intend` wrote."""
        if self.has("exact"):
            parameters = {"source": source, "destination": destination}
            answer = self.client.delete("/connect/intentions/exact", params=parameters)
        else:
            answer = self.client.delete(
                f"/connect/intentions/{self._ids.pop((source, destination))}"
            )
        assert answer.status_code == 200, answer.text

    def match(self, service: str, **parameters: Any) -> httpx.Response:
        return self.get("/connect/intentions/match", by="destination", name=service, **parameters)

    def rows(self, service: str) -> list[dict[str, Any]]:
        return self.match(service).json()[service] or []

    def restart(self) -> None:
        """Stop and start on the same port, without any state."""
        raise NotImplementedError


class Dev(Agent):
    kind = "dev"

    def __init__(self, agent: DevAgent) -> None:
        super().__init__(agent.address, DEV_VERSION)
        self._agent = agent

    def restart(self) -> None:
        self._agent.restart(lose_state=True)


class Real(Agent):
    kind = "real"

    def __init__(self, agent: ConsulAgent) -> None:
        super().__init__(agent.address, agent.version)
        self._agent = agent

    def restart(self) -> None:
        self._agent.restart()
        self._ids.clear()


@contextlib.contextmanager
def running(kind: str) -> Iterator[Agent]:
    """A fresh agent of one kind, ``dev`` or ``real``, whose default action is known: allow."""
    if kind == "dev":
        with DevAgent(default_action="allow") as dev:
            agent: Agent = Dev(dev)
            with agent.client:
                yield agent
        return
    with running_consul() as real:
        agent = Real(real)
        with agent.client:
            # The node itself reaches the catalog a moment after the leader is there.
            wait_for(lambda: agent.get("/health/service/consul", passing="").json())
            yield agent


_numbers = itertools.count(1)


def fresh_name(prefix: str = "svc") -> str:
    """A service name that no other test uses."""
    return f"{prefix}-{next(_numbers)}"

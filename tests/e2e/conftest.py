"""One served application for the tests that only ask it, on each kind of agent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.contract.agents import Agent, running
from tests.e2e.launch import Caller, Launched
from tests.support import wait_for

BOTH = ["dev", pytest.param("real", marks=pytest.mark.consul)]


@dataclass
class Site:
    """An agent, and the service `web` that it knows."""

    agent: Agent
    launched: Launched

    @property
    def port(self) -> int:
        return self.launched.port

    def caller(self, service: str) -> Caller:
        return Caller.of(self.agent.address, service)

    def allow(self, service: str) -> Caller:
        """A caller that the intentions allow, once the service knows it."""
        self.agent.intend(service, "web", "allow")
        caller = self.caller(service)
        wait_for(lambda: caller.get(self.port)[0] == 200, message=f"{service} is not allowed")
        return caller


@pytest.fixture(scope="module", params=BOTH)
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    """Shared by a module: use callers of your own, don't stop or rotate anything."""
    with (
        running(request.param) as agent,
        Launched(
            agent.address, "--ops-port", "0", "--tag", "blue", "--meta", "version=3"
        ) as launched,
    ):
        yield Site(agent, launched.serves())


@pytest.fixture(params=BOTH)
def own_site(request: pytest.FixtureRequest) -> Iterator[Site]:
    """A test's own, to break."""
    with running(request.param) as agent, Launched(agent.address) as launched:
        yield Site(agent, launched.serves())

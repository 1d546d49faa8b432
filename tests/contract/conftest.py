"""Every contract test runs on the development agent and on a real one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contract.agents import Agent, running

BOTH = ["dev", pytest.param("real", marks=pytest.mark.consul)]


@pytest.fixture(scope="session", params=BOTH)
def agent(request: pytest.FixtureRequest) -> Iterator[Agent]:
    """A shared agent: write under fresh names, don't rotate, don't restart."""
    with running(request.param) as running_agent:
        yield running_agent


@pytest.fixture(params=BOTH)
def own_agent(request: pytest.FixtureRequest) -> Iterator[Agent]:
    """An agent of the test's own, to rotate and restart."""
    with running(request.param) as running_agent:
        yield running_agent

"""When the default action is asked for."""

from __future__ import annotations

import asyncio
from typing import Any

from mesh_middleware.config import MeshConfig
from mesh_middleware.consul.client import Answer
from mesh_middleware.consul.failures import Failures
from mesh_middleware.consul.prober import DefaultProber
from mesh_middleware.policy.spiffe import TrustDomain
from tests.support import await_for


class Agent:
    """As much of a client as a prober uses."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def authorize(self, _service: str, uri: str) -> Answer:
        self.asked.append(uri.split("/")[2])
        body = b'{"Authorized": false, "Reason": "Default intention policy"}'
        return Answer(200, body, None, {})


def test_new_roots_of_the_same_trust_domain_do_not_ask_again() -> None:
    agent, config = Agent(), MeshConfig("web")
    client: Any = agent

    async def rotations() -> None:
        prober = DefaultProber(config, client, lambda _: None, failures=Failures(config))
        task = asyncio.create_task(prober.run())
        for trust_domain in ("a.consul", "a.consul", "b.consul", "b.consul", "a.consul"):
            known = agent.asked[-1:] == [trust_domain]
            prober.ask_as(TrustDomain(trust_domain))
            prober.ask_as(TrustDomain(trust_domain))
            if known:
                for _ in range(20):  # turns of the loop, in which it would ask
                    await asyncio.sleep(0)
            else:
                await await_for(lambda wanted=trust_domain: agent.asked[-1:] == [wanted])
        task.cancel()

    asyncio.run(rotations())
    assert agent.asked == ["a.consul", "b.consul", "a.consul"]

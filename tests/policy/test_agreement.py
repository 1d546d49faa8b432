"""The engine and the naive evaluator agree about every world that hypothesis can think of."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.policy.naive import Ask, World, allows, allows_connection
from tests.policy.worlds import asks, compiled, identities, request, worlds

EXAMPLES = int(os.environ.get("MESH_FUZZ_EXAMPLES", "0"))

many = settings(
    max_examples=EXAMPLES or 600,
    deadline=None,
    derandomize=not EXAMPLES,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@many
@given(world=worlds, several=st.lists(asks, min_size=1, max_size=6))
def test_requests_are_decided_as_the_naive_evaluator_decides(
    world: World, several: list[Ask]
) -> None:
    policy = compiled(world)
    for ask in several:
        decision = policy.decide(ask.source, request(ask), ask.claims)
        assert decision.allowed is allows(world, ask), (decision, ask)


@many
@given(world=worlds, several=st.lists(identities, min_size=1, max_size=6))
def test_connections_are_decided_as_the_naive_evaluator_decides(
    world: World, several: list[str]
) -> None:
    policy = compiled(world)
    for source in several:
        decision = policy.decide_connection(source)
        assert decision.allowed is allows_connection(world, source), (decision, source)

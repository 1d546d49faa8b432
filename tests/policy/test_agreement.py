"""The engine and the naive evaluator agree about every world that dice and hypothesis make up."""

from __future__ import annotations

import time
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from mesh_middleware.policy.decision import Reason
from tests.fuzzing import examples, first_seed, fuzz
from tests.policy.dice import Dice
from tests.policy.naive import Ask, World, allows, allows_connection
from tests.policy.worlds import asks, compiled, identities, request, worlds


def test_diced_requests_are_decided_as_the_naive_evaluator_decides() -> None:
    """Both outcomes are met often, or the dice would prove nothing."""
    reasons: Counter[Reason] = Counter()
    began = time.monotonic()
    first = first_seed()
    for seed in range(first, first + examples(1500)):
        dice = Dice(seed)
        world = dice.world()
        policy = compiled(world)
        for _ in range(12):
            ask = dice.ask()
            decision = policy.decide(ask.source, request(ask), ask.claims)
            assert decision.allowed is allows(world, ask), (seed, decision, world, ask)
            connection = policy.decide_connection(ask.source)
            assert connection.allowed is allows_connection(world, ask.source), (seed, world, ask)
            reasons[decision.reason] += 1
    total, seconds = reasons.total(), time.monotonic() - began
    print(f"{total} decisions compared, {total / seconds * 60:,.0f} a minute: {dict(reasons)}")
    assert len(reasons) >= 17, reasons
    common = {Reason.PERMISSION_ALLOW, Reason.DEFAULT_ALLOW, Reason.INTENTION_ALLOW}
    assert sum(reasons[reason] for reason in common) > total / 5
    assert all(count > total / 2000 for count in reasons.values()), reasons


@fuzz(150)
@given(world=worlds, several=st.lists(asks, min_size=1, max_size=6))
def test_requests_are_decided_as_the_naive_evaluator_decides(
    world: World, several: list[Ask]
) -> None:
    policy = compiled(world)
    for ask in several:
        decision = policy.decide(ask.source, request(ask), ask.claims)
        assert decision.allowed is allows(world, ask), (decision, ask)


@fuzz(150, cost=2)
@given(world=worlds, several=st.lists(identities, min_size=1, max_size=6))
def test_connections_are_decided_as_the_naive_evaluator_decides(
    world: World, several: list[str]
) -> None:
    policy = compiled(world)
    for source in several:
        decision = policy.decide_connection(source)
        assert decision.allowed is allows_connection(world, source), (decision, source)

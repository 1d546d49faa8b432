"""Which instance gets a request: by load and weight, nearest first, the broken ones left out."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from mesh_middleware.upstream.balance import EJECT_SECONDS, FAILURES, Balancer
from mesh_middleware.upstream.endpoints import Endpoint, Endpoints


def endpoint(name: str, weight: int = 1) -> Endpoint:
    return Endpoint(name, 1, "billing", weight=weight)


A, B, C = endpoint("a"), endpoint("b"), endpoint("c")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def balancer(clock: Clock) -> Balancer:
    return Balancer(clock=clock, chance=random.Random(7))


def picked(balancer: Balancer, endpoints: Endpoints, times: int = 200) -> Counter[str]:
    """How often each is picked by requests that are over at once."""
    found: Counter[str] = Counter()
    for _ in range(times):
        chosen = balancer.pick(endpoints)
        assert chosen is not None
        found[chosen.host] += 1
        balancer.done(chosen)
    return found


def fail(balancer: Balancer, endpoint: Endpoint, times: int = FAILURES) -> None:
    for _ in range(times):
        balancer.failed(endpoint)


def test_nobody_is_picked_from_nothing(balancer: Balancer) -> None:
    assert balancer.pick(Endpoints(())) is None
    assert balancer.pick(Endpoints(((),))) is None
    assert balancer.pick(Endpoints(((A,),)), [A]) is None


def test_the_less_busy_of_two_is_picked(balancer: Balancer) -> None:
    both = Endpoints(((A, B),))
    first = balancer.pick(both)
    second = balancer.pick(both)
    assert {first, second} == {A, B}
    assert first is not None
    balancer.done(first)
    assert balancer.pick(both) == first


def test_requests_spread_evenly(balancer: Balancer) -> None:
    found = picked(balancer, Endpoints(((A, B, C),)), 600)
    assert all(150 < found[name] < 250 for name in "abc")


def test_weights_share_requests_in_flight(balancer: Balancer) -> None:
    heavy = endpoint("heavy", 3)
    found = Counter(balancer.pick(Endpoints(((heavy, B),))) for _ in range(80))
    assert (found[heavy], found[B]) == (60, 20)


def test_weights_share_requests_one_after_the_other(balancer: Balancer) -> None:
    light, middle, heavy = endpoint("l", 1), endpoint("m", 4), endpoint("h", 15)
    found = picked(balancer, Endpoints(((light, middle, heavy),)), 600)
    assert found["h"] > found["m"] > found["l"]


def test_farther_tiers_are_for_when_the_nearer_have_nobody(balancer: Balancer) -> None:
    tiers = Endpoints(((A,), (B,)))
    assert picked(balancer, tiers) == {"a": 200}
    assert balancer.pick(tiers, [A]) == B
    fail(balancer, A)
    assert picked(balancer, tiers) == {"b": 200}


def test_failures_in_a_row_leave_an_instance_out_for_a_while(
    balancer: Balancer, clock: Clock
) -> None:
    both = Endpoints(((A, B),))
    fail(balancer, A, FAILURES - 1)
    assert picked(balancer, both)["a"] > 0
    fail(balancer, A, 1)
    assert picked(balancer, both) == {"b": 200}
    clock.now += EJECT_SECONDS
    assert picked(balancer, both)["a"] > 0
    fail(balancer, A)
    clock.now += EJECT_SECONDS  # the second time is twice as long
    assert picked(balancer, both) == {"b": 200}
    clock.now += EJECT_SECONDS
    assert picked(balancer, both)["a"] > 0


def test_a_connection_in_between_makes_good(balancer: Balancer) -> None:
    both = Endpoints(((A, B),))
    balancer.pick(both)
    fail(balancer, A, FAILURES - 1)
    balancer.connected(A)
    fail(balancer, A, FAILURES - 1)
    assert picked(balancer, both)["a"] > 0


def test_when_all_are_out_none_is(balancer: Balancer) -> None:
    both = Endpoints(((A, B),))
    fail(balancer, A)
    fail(balancer, B)
    found = picked(balancer, both)
    assert found["a"] > 0
    assert found["b"] > 0
    assert balancer.pick(both, [A]) == B


def test_an_instance_that_left_and_came_back_starts_anew(balancer: Balancer) -> None:
    fail(balancer, A)
    balancer.forget([A, C])
    assert picked(balancer, Endpoints(((A, B),)))["a"] > 0


def test_a_busy_instance_is_not_forgotten(balancer: Balancer) -> None:
    assert balancer.pick(Endpoints(((A,),))) == A
    balancer.forget([A])
    assert balancer.pick(Endpoints(((A, B),))) == B
    balancer.done(A)

"""Instances from the agent's catalogue: followed at once, kept while the agent is away."""

from __future__ import annotations

import gc
import json
import time
import weakref
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from mesh_middleware.config import MeshConfig
from mesh_middleware.consul import client as consul_client
from mesh_middleware.consul.answer import Answer
from mesh_middleware.consul.manager import MeshManager
from mesh_middleware.errors import ConsulError
from mesh_middleware.upstream import catalog
from mesh_middleware.upstream.catalog import CatalogResolver, catalog_of
from mesh_middleware.upstream.endpoints import Endpoint
from mesh_middleware.upstream.names import UpstreamName
from mesh_middleware.upstream.resolver import ResolutionError
from mesh_middleware.upstream.transport import MeshTransport
from tests.consul_agent import ConsulAgent
from tests.support import wait_for
from tests.upstream.world import World, new_world

BILLING = UpstreamName("billing")


def ids(world: World, name: UpstreamName = BILLING) -> list[list[str]]:
    found = catalog_of(world.manager).wait(name, 5)
    return [sorted(e.instance for e in tier) for tier in found.tiers]


def test_scale_to_zero_and_back_is_followed_within_a_second(world: World) -> None:
    world.add("billing", "one")
    with httpx.Client(transport=MeshTransport(world.manager)) as client:
        assert client.get("http://billing/").json()["instance"] == "one"
        world.remove("one")
        started = time.monotonic()
        wait_for(lambda: ids(world) == [[]])
        with pytest.raises(httpx.ConnectError, match="nothing has that name"):
            client.get("http://billing/")
        assert time.monotonic() - started < 1
        world.add("billing", "two")
        started = time.monotonic()
        wait_for(lambda: ids(world) == [["two"]])
        assert client.get("http://billing/").json()["instance"] == "two"
        assert time.monotonic() - started < 1


def test_the_same_instances_are_the_same_object(world: World) -> None:
    world.register("billing", 1)
    resolver = catalog_of(world.manager)
    first = resolver.wait(BILLING, 5)
    assert resolver.known(BILLING) is first
    assert catalog_of(world.manager) is resolver
    before = world.manager.state.generation
    world.put("/v1/agent/service/maintenance/billing?enable=true")
    wait_for(lambda: resolver.known(BILLING) is not first)
    assert ids(world) == [[]]
    assert world.manager.state.generation == before


def test_the_list_stays_while_the_agent_is_away(world: World) -> None:
    world.add("billing", "one")
    with httpx.Client(transport=MeshTransport(world.manager)) as client:
        assert client.get("http://billing/").is_success
        world.agent.stop()
        assert client.get("http://billing/").is_success
        world.agent.start()
        world.add("billing", "two")
        wait_for(lambda: ids(world) == [["one", "two"]])


class Answers:
    """What the agent says to ``/v1/health/connect``, by datacenter; an exception is raised."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.by: dict[str, Any] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        answers = self

        async def health_connect(
            self: Any, service: str, index: int, wait: float, passing: bool, where: dict[str, str]
        ) -> Answer:
            assert not passing
            answers.asked.append((service, where))
            said = answers.by[where.get("dc", "")]
            if isinstance(said, Exception):
                raise said
            return said

        monkeypatch.setattr(consul_client.ConsulClient, "health_connect", health_connect)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Answers:
    return Answers(monkeypatch)


def rows(*names: str, service: str = "billing", dc: str = "dc1", **headers: str) -> Answer:
    node = {"Node": "n", "Address": "10.0.0.1", "Datacenter": dc}
    found = [
        {
            "Node": node,
            "Service": {"ID": n, "Service": service, "Port": 1, "Connect": {"Native": True}},
        }
        for n in names
    ]
    return Answer(200, json.dumps(found).encode(), None, headers)


def test_a_row_of_another_service_is_not_used(world: World, answers: Answers) -> None:
    """It would make us expect that other service's certificate."""
    answers.by[""] = rows("evil", service="ledger")
    assert ids(world) == [[]]


def test_datacenters_come_in_the_order_that_is_written(world: World, answers: Answers) -> None:
    """Our own first, wherever the others are; one that does not answer is passed over."""
    by = {dc: rows(f"in-{dc}", dc=dc) for dc in ("dc2", "dc3")}
    answers.by = {"": rows("here"), **by, "dc4": ConsulError("away")}
    for failover in (("dc2", "dc4", "dc3"), ("dc3", "dc2")):
        name = UpstreamName("billing", failover=failover)
        there = [[f"in-{dc}"] for dc in failover if dc != "dc4"]
        wait_for(lambda name=name, there=there: ids(world, name) == [["here"], *there])
    first, second, _ = catalog_of(world.manager).wait(name, 5).tiers
    assert (first[0].datacenter, second[0].datacenter) == ("dc1", "dc3")


def test_a_datacenter_without_anybody_waits_for_the_next(world: World, answers: Answers) -> None:
    answers.by = {"": rows(), "dc2": ConsulError("away")}
    name = UpstreamName("billing", failover=("dc2",))
    with pytest.raises(TimeoutError, match="away"):
        catalog_of(world.manager).wait(name, 0.3)
    answers.by["dc2"] = rows("there", dc="dc2")
    wait_for(lambda: ids(world, name) == [[], ["there"]])


def test_the_name_says_where_to_ask(world: World, answers: Answers) -> None:
    answers.by = {"dc2": rows()}
    ids(world, UpstreamName("billing", datacenter="dc2", namespace="team", partition="part"))
    assert answers.asked == [("billing", {"dc": "dc2", "ns": "team", "partition": "part"})]


V1, V2 = (f'Service.Meta.version == "{version}"' for version in ("v1", "v2"))


def described(world: World, name: UpstreamName) -> str:
    return catalog_of(world.manager).wait(name, 5).described


@pytest.fixture(scope="module")
def real(consul: ConsulAgent) -> Iterator[World]:
    """A manager and servers around a real agent."""
    with new_world("caller", consul) as made:
        yield made


@pytest.mark.consul
def test_a_filter_chooses_instances_and_follows_them(real: World) -> None:
    """The agent's own expressions, in a watch for each."""
    for name, version in (("old", "v1"), ("new", "v2"), ("newer", "v2")):
        real.add("filtered", name, Meta={"version": version})
    names = {"v1": UpstreamName("filtered", filter=V1), "v2": UpstreamName("filtered", filter=V2)}
    with httpx.Client(transport=MeshTransport(real.manager, upstreams=names)) as client:
        assert {client.get("http://v1/").json()["instance"] for _ in range(5)} == {"old"}
        answers = {client.get("http://v2/").json()["instance"] for _ in range(30)}
        assert answers == {"new", "newer"}
    real.register("filtered", real.instances[0].port, "old", Meta={"version": "v2"})
    wait_for(lambda: ids(real, names["v2"]) == [["new", "newer", "old"]])
    wait_for(lambda: ids(real, names["v1"]) == [[]])
    assert described(real, names["v1"]) == f"3 in the mesh, none of them meets {V1}"
    for instance in ("old", "new", "newer"):
        real.remove(instance)
    for name in names.values():
        wait_for(lambda name=name: described(real, name) == "nothing has that name")


@pytest.mark.consul
@pytest.mark.parametrize("expression", ["Service.Meta.version = 2", 'Nope == "x"'])
def test_a_filter_that_is_none_is_said_in_the_agents_words(real: World, expression: str) -> None:
    name = UpstreamName("filtered", filter=expression)
    with pytest.raises(ResolutionError, match="boolean expression") as caught:
        catalog_of(real.manager).wait(name, 10)
    assert expression in str(caught.value)


def test_the_development_agent_refuses_filters(world: World) -> None:
    with pytest.raises(ResolutionError, match="evaluates no filters"):
        catalog_of(world.manager).wait(UpstreamName("billing", filter=V2), 5)


def test_a_refusal_of_the_agent_is_said_at_once(world: World, answers: Answers) -> None:
    answers.by[""] = ConsulError("status 403: ACL not found", status=403)
    started = time.monotonic()
    with pytest.raises(ResolutionError, match="ACL not found"):
        catalog_of(world.manager).wait(BILLING, 5)
    assert time.monotonic() - started < 2


def test_an_answer_of_another_shape_is_said(world: World, answers: Answers) -> None:
    answers.by[""] = Answer(200, b'{"a": 1}', None, {})
    with pytest.raises(ResolutionError, match="must be a list"):
        catalog_of(world.manager).wait(BILLING, 5)


def test_rows_hidden_by_acls_are_mentioned(world: World, answers: Answers) -> None:
    answers.by[""] = rows(**{"x-consul-results-filtered-by-acls": "true"})
    assert "ACLs of our token hide some" in catalog_of(world.manager).wait(BILLING, 5).described


def test_more_than_a_few_are_counted(world: World, answers: Answers) -> None:
    answers.by[""] = rows(*"abcdefgh")
    assert "3 more" in catalog_of(world.manager).wait(BILLING, 5).described


def test_upstreams_that_nobody_asks_for_are_forgotten(
    world: World, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "IDLE_SECONDS", 0.0)
    answers.by[""] = rows("one")
    resolver = catalog_of(world.manager)
    assert resolver.known(BILLING) is None
    (watch,) = resolver._watches.values()
    wait_for(lambda: not watch.alive)
    monkeypatch.setattr(catalog, "IDLE_SECONDS", 600.0)
    assert ids(world) == [["one"]]  # and watched anew


class Told:
    """A subscriber. `gone`: the IDs of instances that left, each time it was called."""

    def __init__(self, resolver: CatalogResolver) -> None:
        self.gone: list[list[str]] = []
        self.unsubscribe = resolver.subscribe(self)

    def __call__(self, endpoints: frozenset[Endpoint]) -> None:
        self.gone.append(sorted(endpoint.instance for endpoint in endpoints))


def test_subscribers_are_told_who_left(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever asked, for whatever tag; one that fails keeps nobody else from hearing."""
    resolver = catalog_of(world.manager)
    for name in ("one", "two", "three"):
        world.register("billing", 1, name, Tags=["v1"])
    assert ids(world, UpstreamName("billing", tag="v1")) == [["one", "three", "two"]]

    def fail(_: object) -> None:
        raise RuntimeError("a broken subscriber")

    resolver.subscribe(fail)
    told, former = Told(resolver), Told(resolver)
    former.unsubscribe()
    ids(world, UpstreamName("other"))  # what is watched beside it makes no difference
    world.register("billing", 1, "four")
    world.remove("two")
    wait_for(lambda: told.gone == [["two"]])
    world.put("/v1/agent/service/maintenance/one?enable=true")
    wait_for(lambda: told.gone == [["two"], ["one"]])
    assert former.gone == []
    assert "a broken subscriber" in caplog.text


def test_whoever_is_not_watched_any_more_counts_as_gone(
    world: World, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody would say when an instance leaves, and an idle connection to it would stay."""
    answers.by[""] = rows("one")
    resolver = catalog_of(world.manager)
    assert ids(world) == [["one"]]
    (watch,) = resolver._watches.values()
    alive: list[bool] = []
    resolver.subscribe(lambda _: alive.append(watch.alive))
    told = Told(resolver)
    monkeypatch.setattr(catalog, "IDLE_SECONDS", 0.0)
    wait_for(lambda: told.gone == [["one"]])
    assert alive == [False]  # who asks now gets a new watch


def test_hosts_from_outside_cannot_use_up_the_agent(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "MAX_WATCHES", 2)
    with httpx.Client(transport=MeshTransport(world.manager)) as client:
        for host in ("a", "b", "c"):
            with pytest.raises(httpx.ConnectError) as caught:
                client.get(f"http://{host}/")
    assert "2 upstreams are watched already" in str(caught.value)


def test_a_manager_that_restarts_is_asked_again(world: World) -> None:
    world.register("billing", 1, "one")
    assert ids(world) == [["one"]]
    world.manager.close()
    with pytest.raises(ResolutionError, match="not running"):
        wait_for(lambda: catalog_of(world.manager).wait(BILLING, 0.1) and None)
    world.manager.start()
    world.manager.wait_ready(15)
    assert ids(world) == [["one"]]


def test_a_resolver_keeps_no_manager_alive(world: World) -> None:
    manager = MeshManager(MeshConfig("api", address=world.agent.address))
    with manager:
        manager.wait_ready(15)
        resolver = catalog_of(manager)
        resolver.wait(BILLING, 5)
    gone = weakref.ref(manager)
    del manager
    gc.collect()
    assert gone() is None
    with pytest.raises(ResolutionError, match="gone"):
        resolver.known(UpstreamName("other"))

"""Time passes: leaves are renewed, checks expire, forgotten instances go away."""

from __future__ import annotations

import asyncio
import time

import pytest

from mesh_middleware.devagent import leaves, registration, schema
from mesh_middleware.devagent.blocking import Query, blocking
from mesh_middleware.devagent.ca import CertificateAuthority
from mesh_middleware.devagent.durations import seconds
from mesh_middleware.devagent.schema import RefusedError
from mesh_middleware.devagent.store import Store
from tests.support import await_for


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock) -> Store:
    return Store(CertificateAuthority(), clock=clock)


def register(store: Store, **body: object) -> None:
    document = schema.read({"Name": "web", "Port": 1, **body}, schema.SERVICE)
    store.catalog.register(registration.service_from(document, store.clock()))


def test_a_leaf_is_renewed_between_60_and_90_percent_of_its_life(store, clock):
    for _ in range(50):
        store.leaves._issued.clear()
        first, known = store.leaves.current("web")
        assert not known
        life = first.leaf.not_after - first.leaf.not_before
        assert 0.6 <= (first.renew - first.leaf.not_before) / life <= 0.9
    clock.now = first.renew - 1
    assert store.leaves.current("web") == (first, True)
    assert not store.leaves.any_due(clock.now)
    clock.now = first.renew
    assert store.leaves.any_due(clock.now)
    second, known = store.leaves.current("web")
    assert not known
    assert second.index > first.index
    assert second.leaf.serial != first.leaf.serial


def test_a_waiting_leaf_query_gets_the_renewed_one(store, clock):
    first, _ = store.leaves.current("web")

    reads = []

    def read():
        issued, _ = store.leaves.current("web")
        reads.append(issued)
        return issued.index, issued

    async def main():
        task = asyncio.create_task(blocking(store, Query(first.index, 20), read))
        await await_for(lambda: reads)
        store.write("config")
        await await_for(lambda: len(reads) > 1)  # looked at, and not what is waited for
        await asyncio.sleep(0)
        assert not task.done()
        clock.now = first.renew
        store.tick()
        return await asyncio.wait_for(task, 5)

    answer = asyncio.run(main())
    assert answer.index > first.index
    assert answer.waited


def test_a_critical_instance_is_removed_after_its_time(store, clock):
    register(store, Check={"TTL": "10s", "DeregisterCriticalServiceAfter": "1m"})
    store.catalog.update_check("service:web", "passing", "ok")
    clock.now = 9.9
    store.tick()
    assert store.catalog.services["web"].status == "passing"
    clock.now = 10
    store.tick()
    assert store.catalog.services["web"].status == "critical"
    clock.now = 69.9
    store.tick()
    assert "web" in store.catalog.services
    clock.now = 70
    store.tick()
    assert store.catalog.services == {}


def test_every_result_begins_the_ttl_anew(store, clock):
    register(store, Check={"TTL": "10s"})
    for now in (0, 8, 16):
        clock.now = now
        store.tick()
        store.catalog.update_check("service:web", "passing", "ok")
    clock.now = 25.9
    store.tick()
    assert store.catalog.services["web"].status == "passing"
    clock.now = 26
    store.tick()
    assert store.catalog.services["web"].status == "critical"


def test_registering_under_another_name_tells_who_watched_the_old_one(store):
    register(store, ID="a")
    before = store.changed("service:web")
    register(store, ID="a", Name="other")
    assert store.changed("service:web") > before
    assert store.catalog.services["a"].create_index < store.catalog.services["a"].modify_index


def test_checks_not_in_the_body_stay_unless_replaced(store):
    register(store, Checks=[{"TTL": "9s", "CheckID": "one"}])
    register(store, Checks=[{"TTL": "9s", "CheckID": "two"}])
    assert set(store.catalog.services["web"].checks) == {"one", "two"}
    document = schema.read({"Name": "web", "Check": {"TTL": "9s"}}, schema.SERVICE)
    service = registration.service_from(document, 0)
    store.catalog.register(service, replace_checks=True)
    assert set(store.catalog.services["web"].checks) == {"service:web"}


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"Port": 70000}, "Invalid port"),
        ({"Check": {"HTTP": "http://127.0.0.1/"}}, "TTL checks only"),
        ({"Check": {"TTL": "-1s"}}, "TTL must be > 0"),
        ({"Check": {"TTL": "9s", "Status": "fine"}}, "Invalid check status: 'fine'"),
    ],
)
def test_registrations_that_the_development_agent_cannot_keep(store, body, text):
    with pytest.raises(RefusedError, match=text) as error:
        register(store, **body)
    assert error.value.status == 400


def test_a_waiter_of_a_closed_loop_disturbs_nobody(store):
    loop = asyncio.new_event_loop()
    store._waiters.add((loop, asyncio.Event()))
    loop.close()
    assert store.write("config") == store.index


def test_what_was_written_before_the_wait_began_is_not_missed(store):
    async def main():
        await asyncio.wait_for(store.wait_past(store.index - 1, wait_seconds=60), 1)

    asyncio.run(main())


def test_a_changed_answer_below_the_asked_index_is_given_when_the_time_is_over(store):
    bodies = iter([(10, "a"), *[(11, "b")] * 9])

    async def main():
        task = asyncio.create_task(blocking(store, Query(50, 0.1), lambda: next(bodies)))
        await asyncio.sleep(0)
        start = time.monotonic()
        store.write("config")
        return await task, time.monotonic() - start

    answer, took = asyncio.run(main())
    assert (answer.index, answer.body) == (11, "b")
    assert took > 0.09


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("300ms", 0.3), ("10s", 10), ("1h30m", 5400), ("1.5s", 1.5), ("0", 0), ("-2s", -2)],
)
def test_durations_are_gos(text, wanted):
    assert seconds(text) == pytest.approx(wanted)


@pytest.mark.parametrize("text", ["", "5", "s", "1 s", "1d", "\uff11s", "1s\n"])
def test_other_durations_are_refused(text):
    with pytest.raises(RefusedError, match="invalid duration"):
        seconds(text)


def test_a_field_given_twice_in_two_spellings_is_refused():
    with pytest.raises(RefusedError, match="given twice"):
        schema.read({"Name": "a", "name": "b"}, schema.SERVICE)


def test_leaves_are_remembered_within_a_bound(store, monkeypatch):
    monkeypatch.setattr(leaves, "MAX_LEAVES", 3)
    first, _ = store.leaves.current("s0")
    for n in range(1, 4):
        store.leaves.current(f"s{n}")
    assert store.leaves.current("s3")[1]
    again, remembered = store.leaves.current("s0")
    assert not remembered
    assert again.index > first.index
    assert store.changed("leaf:s1") == 1  # forgotten

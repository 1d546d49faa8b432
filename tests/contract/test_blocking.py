"""Blocking queries: they wake on a change, sleep through others, and end in time."""

from __future__ import annotations

import concurrent.futures
import contextlib
import time
from collections.abc import Callable, Iterator

import httpx
import pytest

from tests.contract.agents import Agent, fresh_name


def took(call: Callable[[], httpx.Response]) -> tuple[float, httpx.Response]:
    start = time.monotonic()
    answer = call()
    return time.monotonic() - start, answer


@contextlib.contextmanager
def waiting(agent: Agent, path: str, **parameters: object) -> Iterator[concurrent.futures.Future]:
    """A query that waits in a thread while the block runs; the future gives (seconds, answer)."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        future = pool.submit(took, lambda: agent.get(path, **parameters))
        # A query that answers at once would be done well within this.
        with pytest.raises(TimeoutError):
            future.result(0.25)
        yield future


def index_of(answer: httpx.Response) -> int:
    return int(answer.headers["x-consul-index"])


def intentions_of(agent: Agent, service: str) -> tuple[str, dict[str, str]]:
    """Path and parameters that watch a service's intentions in this version."""
    if agent.has("match index"):
        return "/connect/intentions/match", {"by": "destination", "name": service}
    return "/connect/intentions", {}


def test_without_an_index_nothing_waits(agent):
    for path in ("/agent/connect/ca/roots", "/connect/intentions", "/health/service/none"):
        seconds, answer = took(lambda path=path: agent.get(path, wait="5s"))
        assert answer.status_code == 200
        assert seconds < 2
        seconds, _ = took(lambda path=path: agent.get(path, wait="5s", index="0"))
        assert seconds < 2


def test_a_smaller_index_returns_at_once(agent):
    api = fresh_name("api")
    agent.intend("web", api, "allow")
    path, parameters = intentions_of(agent, api)
    index = index_of(agent.get(path, **parameters))
    seconds, answer = took(lambda: agent.get(path, **parameters, index=index - 1, wait="5s"))
    assert seconds < 2
    assert index_of(answer) == index


def test_a_change_wakes_the_query_with_a_higher_index(agent):
    api = fresh_name("api")
    agent.intend("web", api, "allow")
    path, parameters = intentions_of(agent, api)
    index = index_of(agent.get(path, **parameters))
    with waiting(agent, path, **parameters, index=index, wait="10s") as future:
        agent.intend("web", api, "deny")
        seconds, answer = future.result(5)
    assert seconds < 5
    assert index_of(answer) > index
    assert "deny" in answer.text


def test_a_deletion_wakes_the_query_with_a_higher_index(agent):
    api = fresh_name("api")
    agent.intend("web", api, "allow")
    path, parameters = intentions_of(agent, api)
    index = index_of(agent.get(path, **parameters))
    with waiting(agent, path, **parameters, index=index, wait="10s") as future:
        agent.forget("web", api)
        _, answer = future.result(5)
    assert index_of(answer) > index
    assert api not in answer.text or answer.json() == {api: None}


def test_the_first_intention_wakes_who_waits_for_one(agent):
    api = fresh_name("api")
    path, parameters = intentions_of(agent, api)
    index = index_of(agent.get(path, **parameters))
    with waiting(agent, path, **parameters, index=index, wait="10s") as future:
        agent.intend("web", api, "allow")
        _, answer = future.result(5)
    assert index_of(answer) > index


def test_an_unrelated_write_wakes_nobody(agent):
    api = fresh_name("api")
    agent.intend("web", api, "allow")
    path, parameters = intentions_of(agent, api)
    index = index_of(agent.get(path, **parameters))
    if path == "/connect/intentions":
        agent.put("/agent/service/register", {"Name": fresh_name()})
    with waiting(agent, path, **parameters, index=index, wait="1s") as future:
        if agent.has("match index"):
            agent.intend("web", fresh_name("other"), "allow")
        else:
            agent.put("/agent/service/register", {"Name": fresh_name()})
        seconds, answer = future.result(5)
    assert seconds >= 1
    assert index_of(answer) == index


def test_a_timeout_gives_the_same_index_within_the_jitter(agent):
    path, parameters = intentions_of(agent, fresh_name())
    index = index_of(agent.get(path, **parameters))
    seconds, answer = took(lambda: agent.get(path, **parameters, index=index, wait="800ms"))
    assert 0.8 <= seconds < 0.8 * (1 + 1 / 16) + 0.5
    assert index_of(answer) == index
    assert answer.status_code == 200


@pytest.mark.parametrize("path", ["/agent/connect/ca/roots", "/agent/connect/ca/leaf/{}"])
def test_the_agents_own_cache_waits_as_long_as_it_was_told(agent, path):
    path = path.format(fresh_name())
    first = agent.get(path)
    index = index_of(first)
    seconds, answer = took(lambda: agent.get(path, index=index, wait="600ms"))
    assert 0.6 <= seconds < 1.2
    assert index_of(answer) == index
    assert answer.json() == first.json()


def test_an_index_from_the_future_waits_and_then_gives_the_smaller_one(agent):
    path, parameters = intentions_of(agent, fresh_name())
    index = index_of(agent.get(path, **parameters))
    ahead = index + 100_000
    seconds, answer = took(lambda: agent.get(path, **parameters, index=ahead, wait="500ms"))
    assert seconds >= 0.5
    assert 1 <= index_of(answer) < ahead


def test_match_of_1_8_7_blocks_without_telling_an_index(agent):
    api = fresh_name("api")
    agent.intend("web", api, "allow")
    (row,) = agent.rows(api)
    index = agent.get("/connect/intentions").headers["x-consul-index"]
    assert row["ModifyIndex"] <= int(index)
    query = {"by": "destination", "name": api, "index": index, "wait": "10s"}
    with waiting(agent, "/connect/intentions/match", **query) as future:
        agent.intend("web", api, "deny")
        _, answer = future.result(5)
    assert answer.json()[api][0]["Action"] == "deny"
    assert ("x-consul-index" in answer.headers) is agent.has("match index")


@pytest.mark.parametrize("index", ["x", "-1", "1.5", "18446744073709551616"])
def test_a_bad_index_is_400(agent, index):
    for path in ("/agent/connect/ca/roots", "/agent/connect/ca/leaf/web", "/health/service/x"):
        answer = agent.get(path, index=index)
        assert (answer.status_code, answer.text) == (400, "Invalid index")


@pytest.mark.parametrize("wait", ["x", "5", "1 s"])
def test_a_bad_wait_is_400(agent, wait):
    for path in ("/agent/connect/ca/roots", "/agent/connect/ca/leaf/web", "/connect/intentions"):
        answer = agent.get(path, index="1", wait=wait)
        assert (answer.status_code, answer.text) == (400, "Invalid wait time")

"""What a child remembers of its connections, with streams that are no sockets."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from mesh_middleware import MeshConfig, MeshManager
from mesh_middleware.devagent import DevAgent
from mesh_middleware.upstream.children import Child
from mesh_middleware.upstream.endpoints import Endpoint


class Stream:
    """A network stream that knows no peer."""

    def get_extra_info(self, _name: str) -> Any:
        return None


@pytest.fixture(scope="module")
def contexts() -> Any:
    with DevAgent() as agent, MeshManager(MeshConfig("web", address=agent.address)) as manager:
        manager.wait_ready(20)
        return manager.state.contexts


@pytest.fixture
def child(contexts: Any) -> Child:
    return Child(Endpoint("127.0.0.1", 1, "api"), contexts, lambda _: None, httpx.URL)


def answered(child: Child, stream: Stream) -> Any:
    child.waiting += 1
    connection = child.answered(stream, "socket")
    assert connection is not None
    return connection


def test_a_connection_is_idle_once_its_last_response_is_closed(child: Child) -> None:
    stream = Stream()
    first, second = answered(child, stream), answered(child, stream)
    assert first is second
    first.busy -= 1
    assert child.take_idle() == []
    first.busy -= 1
    assert child.take_idle() == [stream]
    assert child.take_idle() == []  # once


def test_while_a_response_is_waited_for_nobody_knows_what_is_idle(child: Child) -> None:
    stream = Stream()
    answered(child, stream).busy -= 1
    child.waiting += 1
    assert child.take_idle() == []
    child.waiting -= 1
    assert child.take_idle() == [stream]


def test_connections_that_ended_are_forgotten(child: Child) -> None:
    for _ in range(100):
        answered(child, Stream()).busy -= 1
    assert len(child._connections) <= 2
    assert child.take_idle() == []


def test_a_new_connection_is_not_taken_for_one_that_ended(child: Child) -> None:
    """Python gives an object's number to another one when it is gone."""
    gone, new = Stream(), Stream()
    old = answered(child, gone)
    child._connections = {id(new): old}
    assert answered(child, new) is not old


def test_a_response_without_a_stream_counts_too(child: Child) -> None:
    child.waiting += 1
    assert child.answered(None, "socket") is None
    assert child.waiting == 0

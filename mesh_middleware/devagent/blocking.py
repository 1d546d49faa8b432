"""Blocking queries: answer at once, or when the answer changes, or when the time is over.

A read gives an index and a body. The query that sent an index waits until the index of a changed
body is greater than that; writes that leave the body as it was wake nobody. When the time is over
the last body comes with its index, which is smaller than the one sent if state was lost.

Source: Consul, "blocking queries"; measured on 1.10.1.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from mesh_middleware.devagent.durations import seconds
from mesh_middleware.devagent.responses import json_response
from mesh_middleware.devagent.schema import RefusedError
from mesh_middleware.devagent.store import Store

_dice = random.SystemRandom()

DEFAULT_WAIT = 300.0
MAX_WAIT = 600.0
JITTER = 1 / 16
"""Servers add up to this share of the wait; the agent's own cache adds nothing."""

_MAX_INDEX = 2**64 - 1

Read = Callable[[], tuple[int, Any]]


@dataclass(frozen=True, slots=True)
class Query:
    """`index`: the last one the caller saw, 0 for none. `wait`: longest wait in seconds."""

    index: int
    wait: float

    @classmethod
    def of(cls, request: Request) -> Query:
        """From ``?index=`` and ``?wait=``; RefusedError (400) in Consul's words."""
        index = request.query_params.get("index", "")
        if index and not (re.fullmatch("[0-9]{1,20}", index) and int(index) <= _MAX_INDEX):
            raise RefusedError(400, "Invalid index")
        try:
            wait = seconds(request.query_params.get("wait") or "0s")
        except RefusedError:
            raise RefusedError(400, "Invalid wait time") from None
        return cls(int(index or 0), min(wait, MAX_WAIT) if wait > 0 else DEFAULT_WAIT)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a read gave, and whether the query had to wait for it."""

    index: int
    body: Any
    waited: bool


async def blocking(store: Store, query: Query, read: Read, *, jitter: bool = True) -> Answer:
    """The answer to `query`, in the time that it allows."""
    seen = store.index  # before the read: what is written in between wakes the wait at once
    index, body = read()
    if not query.index or index > query.index:
        return Answer(index, body, False)
    wait = query.wait * (1 + _dice.uniform(0, JITTER)) if jitter else query.wait
    deadline = time.monotonic() + wait
    while not store.closed and (left := deadline - time.monotonic()) > 0:
        await store.wait_past(seen, wait_seconds=left)
        seen = store.index
        new_index, new_body = read()
        if new_body == body:
            continue
        index, body = new_index, new_body
        if index > query.index:
            break
    return Answer(index, body, True)


async def answer(request: Request, read: Read) -> Response:
    """The response of a blocking endpoint that a server answers."""
    store: Store = request.app.state.store
    result = await blocking(store, Query.of(request), read)
    return json_response(result.body, headers=server_headers(result.index))


async def cached_answer(request: Request, read: Read) -> Response:
    """The response of an endpoint that the agent's own cache answers."""
    store: Store = request.app.state.store
    result = await blocking(store, Query.of(request), read, jitter=False)
    headers = server_headers(result.index, known_leader=False)
    return json_response(result.body, headers=headers | cache_headers(hit=not result.waited))


def server_headers(index: int, *, known_leader: bool = True) -> dict[str, str]:
    """Index, leader and age of a server's answer."""
    return {
        "X-Consul-Index": str(index),
        "X-Consul-Knownleader": "true" if known_leader else "false",
        "X-Consul-Lastcontact": "0",
    }


def cache_headers(*, hit: bool, age: float = 0) -> dict[str, str]:
    """Whether the agent's cache had the answer; the age (seconds) comes with a hit only."""
    return {"X-Cache": "HIT", "Age": str(int(age))} if hit else {"X-Cache": "MISS"}

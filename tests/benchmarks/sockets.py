"""What WebSockets that stay open cost: looked at while nothing changes, decided again, ended.

They go through the middleware in one event loop, without a network: what is measured is ours. A
clock beside them is woken each millisecond, and notes how late.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from mesh_middleware import MeshMiddleware
from mesh_middleware._types import Message, Receive, Scope, Send
from mesh_middleware.middleware.live import LOOK_SECONDS
from mesh_middleware.policy.intentions import Action, Intention
from mesh_middleware.server.protocols import MeshScope
from mesh_middleware.state import MeshState
from tests.benchmarks.decisions import policy
from tests.benchmarks.measure import table
from tests.benchmarks.middleware import proven_peer, scopes

ALLOW = Intention("web7", "api", Action.ALLOW)
DENY = Intention("web7", "api", Action.DENY)
TICK_SECONDS = 0.001


class Source:
    """A source whose state is replaced."""

    def __init__(self, state: MeshState) -> None:
        self.state = state

    def publish(self, intention: Intention) -> None:
        self.state = replace(
            self.state, generation=self.state.generation + 1, policy=policy(intention)
        )


@dataclass
class Took:
    """Seconds on the clock and of CPU, and the longest wait for a turn of the loop."""

    wall: float = 0.0
    cpu: float = 0.0
    longest: float = 0.0


@asynccontextmanager
async def timed() -> AsyncIterator[Took]:
    took = Took()

    async def tick() -> None:
        before = time.perf_counter()
        while True:
            try:
                await asyncio.sleep(TICK_SECONDS)
            finally:  # the last one, too, which is cancelled
                before, last = time.perf_counter(), before
                took.longest = max(took.longest, before - last - TICK_SECONDS)

    ticking = asyncio.create_task(tick())
    await asyncio.sleep(0)
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        yield took
    finally:
        took.wall, took.cpu = time.perf_counter() - wall, time.process_time() - cpu
        ticking.cancel()
        await asyncio.wait([ticking])


async def application(_scope: Scope, receive: Receive, send: Send) -> None:
    """Accepts, and waits for a message that never comes."""
    await send({"type": "websocket.accept"})
    await receive()


async def until(condition: Any) -> None:
    while not condition():  # noqa: ASYNC110 - an event would be set in what is measured
        await asyncio.sleep(0)


async def measured(count: int, idle_seconds: float) -> list[tuple[object, ...]]:
    """The rows: opening, looking, deciding again, ending."""
    bundle, peer = proven_peer()
    source = Source(MeshState(service="api", generation=1, policy=policy(ALLOW), bundle=bundle))
    middleware = MeshMiddleware(application, mesh=source)
    served = MeshScope(middleware)
    again, closed = [0], [0]
    enforcer = middleware._enforcer
    judge = enforcer.judge_again

    def counted(*arguments: Any) -> Any:
        again[0] += 1
        return judge(*arguments)

    enforcer.judge_again = counted  # type: ignore[method-assign]

    async def receive() -> Message:
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

    async def send(message: Message) -> None:
        closed[0] += message["type"] == "websocket.close"

    async with timed() as nothing:
        await asyncio.sleep(idle_seconds)
    async with timed() as opening:
        open_ones = [
            asyncio.create_task(served({**scope, "type": "websocket"}, receive, send))
            for scope in scopes(peer, count)
        ]
        await asyncio.sleep(0)
    await asyncio.sleep(2 * LOOK_SECONDS)  # the first look at each is dearer
    async with timed() as looking:
        await asyncio.sleep(idle_seconds)
    async with timed() as deciding:
        source.publish(ALLOW)
        await until(lambda: again[0] >= count)
    async with timed() as ending:
        source.publish(DENY)
        await until(lambda: closed[0] >= count)
    for each in open_ones:  # a server would tell them that the connection is gone
        each.cancel()
    await asyncio.wait(open_ones)
    looks = idle_seconds / LOOK_SECONDS
    return [
        ("nothing open, each look's time", *_ms(nothing, looks)),
        ("opened", *_ms(opening)),
        ("looked at while nothing changes, each look", *_ms(looking, looks)),
        ("decided again after a change", *_ms(deciding)),
        ("closed after an intention is gone", *_ms(ending)),
    ]


def _ms(took: Took, parts: float = 1.0) -> tuple[float, float, float]:
    return took.wall / parts * 1000, took.cpu / parts * 1000, took.longest * 1000


def report(*, short: bool = False) -> str:
    """The table of this file."""
    count, idle_seconds = (50, 0.5) if short else (5_000, 5.0)
    rows = asyncio.run(measured(count, idle_seconds))
    return table(
        f"{count:,} open WebSockets, milliseconds for all of them",
        ("what", "on the clock", "CPU", "longest wait for the loop"),
        rows,
    )

"""Drives one `BlockingQuery`: ask, hand over, ask again, for ever."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from mesh_middleware.consul.blocking import BlockingQuery
from mesh_middleware.consul.client import Answer
from mesh_middleware.errors import ConsulError, DecodeError

POLL_SECONDS = 2.0
"""How often to ask an agent that gives no index to block on, and nothing else wakes us."""

_LOOK_SECONDS = 0.25  # how often a pause looks whether it may end early

Fetch = Callable[[int], Awaitable[Answer]]
Sleep = Callable[[float], Awaitable[None]]


def is_denied(error: Exception) -> bool:
    """Whether the agent refused the token, or its absence."""
    return isinstance(error, ConsulError) and error.status in {401, 403}


def _never() -> bool:
    return False


@dataclass(slots=True, kw_only=True)
class Watcher:
    """One watch of one thing.

    `fetch`: asks with an index. `deliver`: takes an answer; its DecodeError counts as a failure.
    `failed`: is told of each failure. `wake`: a query that blocks where `fetch` cannot, because
    its answers carry no index; when it returns, `fetch` is asked again. `hurry`: ends a pause
    after a failure early (there is a new token). `poll_seconds`: how often to ask an agent that
    gives no index to block on, where nothing wakes us.
    """

    fetch: Fetch
    deliver: Callable[[Answer], Awaitable[None]]
    failed: Callable[[Exception], None]
    wake: Fetch | None = None
    poll_seconds: float = POLL_SECONDS
    hurry: Callable[[], bool] = _never
    sleep: Sleep = asyncio.sleep
    clock: Callable[[], float] = time.monotonic
    query: BlockingQuery = field(default_factory=BlockingQuery)
    _wake_query: BlockingQuery = field(default_factory=BlockingQuery)

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await self.step()

    async def step(self) -> None:
        """One request, with the pause that comes before it and the poll that comes after it."""
        ask = self.query.next(self.clock())
        await self._pause(ask.delay)
        try:
            answer = await self.fetch(ask.index)
            await self.deliver(answer)
        except (ConsulError, DecodeError) as error:
            self.query.failed(denied=is_denied(error))
            # A restarted agent counts anew: waiting past an index from before would miss changes.
            self._wake_query.index = 0
            self.failed(error)
            return
        self.query.answered(ask.index, answer.index)
        if self.query.polling:
            await self._until_woken()

    async def _pause(self, seconds: float) -> None:
        left = seconds
        while left > 0 and not self.hurry():
            await self.sleep(min(left, _LOOK_SECONDS))
            left -= _LOOK_SECONDS

    async def _until_woken(self) -> None:
        """Wait for a change that only the other query can see; its first answer comes at once."""
        if self.wake is None:
            await self.sleep(self.poll_seconds)
            return
        ask = self._wake_query.next(self.clock())
        await self._pause(ask.delay)
        try:
            answer = await self.wake(ask.index)
        except (ConsulError, DecodeError) as error:
            self._wake_query.failed(denied=is_denied(error))
            await self.sleep(self.poll_seconds)
            return
        self._wake_query.answered(ask.index, answer.index)
        if self._wake_query.polling:
            await self.sleep(self.poll_seconds)

"""Connections that are closing are cut after a while, and no others."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field

import pytest

from mesh_middleware.server import linger
from tests.support import await_for


@dataclass(eq=False)
class Transport:
    """`unsent`: None is asyncio's, closed twice, which has forgotten."""

    closing: bool = True
    unsent: int | None = 0
    aborted: bool = False

    def is_closing(self) -> bool:
        return self.closing

    def get_write_buffer_size(self) -> int:
        if self.unsent is None:
            raise AttributeError("'NoneType' object has no attribute '_get_write_buffer_size'")
        return self.unsent

    def abort(self) -> None:
        self.aborted = True


@dataclass(eq=False)
class Connection:
    transport: Transport | None = field(default_factory=Transport)


def test_what_is_closing_and_has_nothing_to_send_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linger, "LINGER_SECONDS", 0.3)
    silent = Transport()
    twice = Transport(unsent=None)
    busy = Transport(closing=False)
    slow = Transport(unsent=1)

    async def run() -> None:
        connections = {Connection(t) for t in (silent, twice, busy, slow, None)}
        started = asyncio.get_running_loop().time()
        task = asyncio.create_task(linger.cut_lingering(connections))
        await await_for(lambda: silent.aborted and twice.aborted)
        assert asyncio.get_running_loop().time() - started >= 0.3
        assert not busy.aborted
        assert not slow.aborted
        busy.closing, slow.unsent = True, 0
        await await_for(lambda: busy.aborted and slow.aborted)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(run())

"""Waiting with a deadline, and free ports: what every live test needs."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_never = threading.Event()


def wait_for(predicate: Callable[[], T], timeout: float = 30.0, message: str = "") -> T:
    """The first true value of `predicate`; AssertionError after `timeout` seconds without."""
    deadline = time.monotonic() + timeout
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(message or f"{predicate} was not true within {timeout} s")
        _never.wait(0.01)


async def await_for(
    predicate: Callable[[], T],
    timeout: float = 30.0,  # noqa: ASYNC109 - as in `wait_for`
    message: str = "",
) -> T:
    """`wait_for` without blocking the running loop."""
    deadline = time.monotonic() + timeout
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(message or f"{predicate} was not true within {timeout} s")
        await asyncio.sleep(0.01)


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

"""Waiting with a deadline, and free ports: what every live test needs."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import NoReturn, TypeVar

import pytest

SKIPPED = "REAL PART MISSING"
"""How the reason of every skip begins; the summary of the run says it once more."""

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


def unavailable(part: str, why: str, hint: str) -> NoReturn:
    """Skip a test for want of a real `part`, loudly; the only place that may.

    In CI, and with ``MESH_REQUIRE_REAL`` set to anything, it is a failure: a skip would hide
    every guard that the part tests.
    """
    if os.environ.get("CI") or os.environ.get("MESH_REQUIRE_REAL"):
        pytest.fail(f"a real {part} is required here: {why}", pytrace=False)
    pytest.skip(f"{SKIPPED}, {part}: {why}. {hint}")

"""How long a rotation holds an application's event loop up.

A process of its own has a manager, and an event loop in which nothing but a clock runs: it is woken
each millisecond and notes how late. The agent is another process. A new connection has used each
generation's contexts, as an HTTP/2 server's has. Between rotations the same is measured

1. twice with nothing going on: the machine's own noise;
2. while a thread beside the loop and the agent's process have as much to do as in a rotation, but
   without Python's lock: what the want of cores costs. What is left, the lock costs.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import uvloop

from mesh_middleware.config import MeshConfig
from mesh_middleware.consul import blocking
from mesh_middleware.consul.manager import MeshManager
from mesh_middleware.devagent import DevAgent
from tests.benchmarks.measure import table

TICK_SECONDS = 0.001
WINDOW_SECONDS = 0.1
"""Around each rotation; all that a rotation does in the manager's thread is over by then."""

BUSY_SECONDS = 0.01
"""What the manager's thread works for one rotation; its agent does about as much."""

ROOT = Path(__file__).parent.parent.parent


ROWS = {
    "none": "no rotation",
    "again": "no rotation, again",
    "busy": "as much work without Python's lock",
    "rotation": "a new root and a new leaf",
}

_MUCH = bytes(1_000_000)


class Ticker:
    """The largest delay, in milliseconds, since it was last asked."""

    def __init__(self) -> None:
        self._worst = 0.0

    async def run(self) -> None:
        while True:
            due = time.perf_counter() + TICK_SECONDS  # a loop's own clock may count milliseconds
            await asyncio.sleep(TICK_SECONDS)
            self._worst = max(self._worst, (time.perf_counter() - due) * 1000)

    def take(self) -> float:
        worst, self._worst = self._worst, 0.0
        return worst


async def measure(manager: MeshManager, rotations: int) -> dict[str, list[float]]:
    """In the child: the worst delay of each window with a rotation, and of each without."""
    ticker = Ticker()
    found: dict[str, list[float]] = {name: [] for name in ROWS}
    task = asyncio.create_task(ticker.run())
    rotated = asyncio.Event()
    loop = asyncio.get_running_loop()
    manager.subscribe(lambda _: loop.call_soon_threadsafe(rotated.set))
    context = manager.server_context(("h2", "http/1.1"))
    for number in range(rotations):
        await asyncio.sleep(WINDOW_SECONDS)
        for name in ("none", "again", "busy"):
            ticker.take()
            if name == "busy":
                print("busy", flush=True)
                threading.Thread(target=busy).start()
            await asyncio.sleep(WINDOW_SECONDS)
            found[name].append(ticker.take())
        rotated.clear()
        print("rotate", flush=True)
        await asyncio.wait_for(rotated.wait(), 30)
        await asyncio.sleep(WINDOW_SECONDS)
        worst = ticker.take()
        _use(context)
        if number:  # the first one imports and warms up
            found["rotation"].append(worst)
    task.cancel()
    return found


def busy() -> None:
    """Work for `BUSY_SECONDS` of CPU, all but without Python's lock."""
    end = time.thread_time() + BUSY_SECONDS
    while time.thread_time() < end:
        hashlib.sha256(_MUCH)


def _use(context: Any) -> None:
    """As a new connection does, up to its first byte."""
    import ssl  # noqa: PLC0415 - the measured import is the package's

    context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_side=True)


def child(address: str, rotations: int) -> None:
    """Measure, ask for rotations on standard output, end with the figures as JSON."""
    blocking.RATE = blocking.BURST = 200.0
    with MeshManager(MeshConfig("web", address=address)) as manager:
        manager.wait_ready(20)
        found = uvloop.run(measure(manager, rotations))
    print(json.dumps(found), flush=True)


def figures(rotations: int) -> dict[str, list[float]]:
    """What a child measured while this process rotated."""
    with DevAgent() as agent:
        command = [sys.executable, "-m", "tests.benchmarks.rotation", agent.address]
        process = subprocess.Popen(
            [*command, str(rotations)], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ
        )
        assert process.stdout is not None
        found: dict[str, list[float]] = {}
        with process:
            for line in process.stdout:
                if line == "busy\n":
                    busy()
                elif line == "rotate\n":
                    agent.rotate_ca()
                    if len(agent.ca.roots()) > 3:
                        agent.remove_inactive_roots()
                else:
                    found = json.loads(line)
        assert process.returncode == 0
    return found


def quantile(values: list[float], share: float) -> float:
    """The value below which `share` of them lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def report(*, short: bool = False) -> str:
    """The table of this file."""
    found = figures(5 if short else 300)
    rows = [
        (
            text,
            *(quantile(found[name], share) for share in (0.5, 0.9, 0.99)),
            max(found[name]),
            len(found[name]),
        )
        for name, text in ROWS.items()
    ]
    return table(
        f"Longest delay of an idle event loop within {WINDOW_SECONDS * 1000:.0f} ms",
        ("while there is", "p50 ms", "p90 ms", "p99 ms", "max ms", "times"),
        rows,
    )


if __name__ == "__main__":
    child(sys.argv[1], int(sys.argv[2]))

"""The mesh transport beside bare httpx: the same server, mTLS and client, by a fixed address.

Bare httpx is measured twice: how far the two lie apart (A/A) is how far a ratio can be believed.
Slices of all three alternate, so that a busy moment of the machine hits each alike; CPU is that
of this process, the client's.
"""

from __future__ import annotations

import asyncio
import ssl
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import httpx

from mesh_middleware import AsyncMeshTransport, MeshConfig, MeshManager, MeshTransport, UpstreamName
from mesh_middleware.devagent import DevAgent
from mesh_middleware.upstream.catalog import catalog_of
from tests.benchmarks.load import client_context
from tests.benchmarks.measure import table
from tests.benchmarks.servers import Certificates, server
from tests.support import free_port, wait_for

C = TypeVar("C")


def register(agent: DevAgent, port: int, name: str = "api") -> None:
    """An instance of api in the catalogue."""
    body = {"Name": "api", "ID": name, "Address": "127.0.0.1", "Port": port}
    body["Connect"] = {"Native": True}
    url = f"{agent.address}/v1/agent/service/register"
    httpx.put(url, json=body, trust_env=False).raise_for_status()


async def slice_async(client: httpx.AsyncClient, url: str, number: int, width: int) -> None:
    """`number` requests, `width` at a time."""

    async def some() -> None:
        for _ in range(number // width):
            (await client.get(url)).raise_for_status()

    await asyncio.gather(*(some() for _ in range(width)))


def slice_blocking(client: httpx.Client, url: str, number: int, headers: dict[str, str]) -> None:
    """`number` requests, one after the other."""
    for _ in range(number):
        client.get(url, headers=headers).raise_for_status()


class Series:
    """Alternating slices of several ways; `add` runs one and keeps what it took."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.wall: dict[str, list[float]] = {}
        self.cpu: dict[str, list[float]] = {}

    def keep(self, way: str, wall: float, cpu: float) -> None:
        self.wall.setdefault(way, []).append(wall / self.number * 1e6)
        self.cpu.setdefault(way, []).append(cpu / self.number * 1e6)

    def rows(self, title: str) -> list[list[object]]:
        """A row for each way: microseconds, requests a second, ratio to bare."""
        rows: list[list[object]] = []
        bare = statistics.median(self.wall["bare"])
        bare_cpu = statistics.median(self.cpu["bare"])
        for way, found in self.wall.items():
            wall, cpu = statistics.median(found), statistics.median(self.cpu[way])
            rows.append([title, way, 1e6 / wall, wall, cpu, bare / wall, bare_cpu / cpu])
        return rows


async def asynchronous(
    clients: dict[str, tuple[httpx.AsyncClient, str]], number: int, rounds: int, width: int
) -> Series:
    """The asynchronous clients in turn."""
    series = Series(number)
    for client, url in clients.values():
        await slice_async(client, url, 50, width)
    for _ in range(rounds):
        for way, (client, url) in clients.items():
            wall, cpu = time.perf_counter(), time.process_time()
            await slice_async(client, url, number, width)
            series.keep(way, time.perf_counter() - wall, time.process_time() - cpu)
    for client, _ in clients.values():
        await client.aclose()
    return series


def blocking(
    clients: dict[str, tuple[httpx.Client, str]], number: int, rounds: int, headers: dict[str, str]
) -> Series:
    """The blocking clients in turn."""
    series = Series(number)
    for client, url in clients.values():
        slice_blocking(client, url, 20, headers)
    for _ in range(rounds):
        for way, (client, url) in clients.items():
            wall, cpu = time.perf_counter(), time.process_time()
            slice_blocking(client, url, number, headers)
            series.keep(way, time.perf_counter() - wall, time.process_time() - cpu)
    for client, _ in clients.values():
        client.close()
    return series


def follow(agent: DevAgent, manager: MeshManager, times: int) -> list[float]:
    """Milliseconds from a change in the catalogue to the new list, here.

    `times` below 9: after a burst of 10 a watch asks twice a second at most.
    """
    resolver, name = catalog_of(manager), UpstreamName("api")
    found = []
    for number in range(times):
        before = resolver.wait(name, 5)
        started = time.perf_counter()
        register(agent, 1 + number, "passing-by")
        wait_for(lambda before=before: resolver.known(name) is not before)
        found.append((time.perf_counter() - started) * 1000)
    return found


def report(*, short: bool = False) -> str:
    """All tables."""
    number, rounds = (40, 2) if short else (40, 80)
    with (
        DevAgent(default_action="allow") as agent,
        tempfile.TemporaryDirectory() as folder,
        MeshManager(MeshConfig("web", address=agent.address)) as manager,
    ):
        certificates = Certificates(Path(folder), agent)
        port = free_port()
        command = ["tests.benchmarks.app", str(port), *certificates.of("api")]
        with server(command, port, {}):
            register(agent, port)
            manager.wait_ready(20)
            rows = _rows(manager, client_context(*certificates.of("web")), port, number, rounds)
            times = follow(agent, manager, 3 if short else 7)
    header = ["calls", "client", "req/s", "us", "CPU us", "req/s : bare", "CPU bare : it"]
    followed = [[statistics.median(times), max(times)]]
    return "\n".join(
        [
            table("Transport and bare httpx, mTLS, one server", header, rows),
            table(
                "A change in the catalogue until it is known", ["median ms", "worst ms"], followed
            ),
        ]
    )


def _rows(
    manager: MeshManager, context: ssl.SSLContext, port: int, number: int, rounds: int
) -> list[list[object]]:
    fixed = f"https://127.0.0.1:{port}/hello"

    def bare_async() -> tuple[httpx.AsyncClient, str]:
        return httpx.AsyncClient(verify=context, trust_env=False), fixed

    def mesh_async() -> tuple[httpx.AsyncClient, str]:
        client = httpx.AsyncClient(transport=AsyncMeshTransport(manager), trust_env=False)
        return client, "http://api/hello"

    def bare() -> tuple[httpx.Client, str]:
        return httpx.Client(verify=context, trust_env=False), fixed

    def mesh() -> tuple[httpx.Client, str]:
        client = httpx.Client(transport=MeshTransport(manager), trust_env=False)
        return client, "http://api/hello"

    rows: list[list[object]] = []
    for width in (1, 8):
        ways = _ways(bare_async, mesh_async)
        series = asyncio.run(asynchronous(ways, number, rounds, width))
        rows += series.rows(f"asynchronous, {width} at a time")
    rows += blocking(_ways(bare, mesh), number, rounds, {}).rows("blocking")
    close = {"connection": "close"}
    dials = blocking(_ways(bare, mesh), max(number // 8, 5), rounds, close)
    rows += dials.rows("blocking, a connection each")
    return rows


def _ways(bare: Callable[[], C], mesh: Callable[[], C]) -> dict[str, C]:
    return {"bare": bare(), "mesh": mesh(), "bare again": bare()}

"""How long a request waits while a list of intentions is read, decoded and compiled beside it.

The whole product: a service under the launcher, whose manager learns what an agent changes as
often as it is asked, ten times at once and then twice a second. Requests come over mTLS at a fixed
rate all the while; each is timed from when it was due.
"""

from __future__ import annotations

import tempfile

from tests.benchmarks.agent import ChangingAgent
from tests.benchmarks.measure import medians, table
from tests.benchmarks.servers import run_load, server
from tests.support import free_port


def while_learning(rows: int, seconds: float) -> dict[str, float]:
    """What the load generator says, and how many ``lists`` the service read."""
    with tempfile.TemporaryDirectory() as folder, ChangingAgent(rows, folder) as agent:
        port = free_port()
        command = [
            "mesh_middleware", "run", "tests.benchmarks.app:app", "--service", "api",
            "--port", str(port), "--no-register", "--no-access-log", "--log-level", "warning",
        ]  # fmt: skip
        with server(command, port, {"CONSUL_HTTP_ADDR": agent.address}):
            figures = run_load(port, agent.client, seconds, "paced")
    return {**figures, "lists": agent.read}


def report(*, short: bool = False) -> str:
    """The table of this file; without a list that changes twice, for the noise of the machine."""
    counts = (0, 100) if short else (0, 0, 10, 100, 1_000, 10_000)
    runs: list[list[dict[str, float]]] = [[] for _ in counts]
    for _ in range(1 if short else 7):
        for rows, found in zip(counts, runs, strict=True):
            found.append(while_learning(rows, 0.5 if short else 4.0))
    lines = []
    for rows, found in zip(counts, runs, strict=True):
        middle = medians(found)
        said = [middle[name] for name in ("p50_ms", "p99_ms", "longest_ms")]
        best = min(run["p99_ms"] for run in found)
        lines.append((rows or "none", *said, best, int(middle["lists"])))
    return table(
        "A request over mTLS while a list of intentions is learned beside it, milliseconds",
        ("intentions", "p50", "p99", "longest", "p99 of the best run", "lists read"),
        lines,
    )

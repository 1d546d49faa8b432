"""How long a request waits while a list of intentions is read, decoded and compiled beside it.

One thread learns a changed list again and again, as the manager's does; the event loop's thread
serves requests through the middleware and notes how long each took.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time

from mesh_middleware import MeshMiddleware
from mesh_middleware.consul.decode import decode_matches
from mesh_middleware.policy.engine import Policy, compile_policy
from mesh_middleware.policy.intentions import Action, Intention
from mesh_middleware.server.protocols import MeshScope
from mesh_middleware.state import MeshState, StaticState
from tests.benchmarks.decisions import TRUST_DOMAIN, policy
from tests.benchmarks.measure import table
from tests.benchmarks.middleware import nothing, proven_peer, scopes


class Learner(threading.Thread):
    """Decodes and compiles `count` rows over and over until told to stop."""

    def __init__(self, count: int) -> None:
        super().__init__(daemon=True)
        rows = [
            {"SourceName": f"web{n}", "DestinationName": "api", "Action": "allow", "Precedence": 9}
            for n in range(count)
        ]
        self.bodies = [
            json.dumps({"api": [*rows[:-1], {**rows[-1], "Action": action}]}).encode()
            for action in ("allow", "deny")
        ]
        self.rounds = 0
        self.stopping = threading.Event()

    def run(self) -> None:
        previous: Policy | None = None
        while not self.stopping.is_set():
            body = self.bodies[self.rounds % 2]
            previous = compile_policy(
                decode_matches(json.loads(body), "api"),
                trust_domain=TRUST_DOMAIN,
                service="api",
                previous=previous,
            )
            self.rounds += 1


def latencies(seconds: float) -> list[float]:
    """How long each of the requests took that were served for `seconds`, sorted, milliseconds."""
    bundle, peer = proven_peer()
    rules = policy(Intention("web7", "api", Action.ALLOW))
    state = MeshState(service="api", generation=1, policy=rules, bundle=bundle)
    served = MeshScope(MeshMiddleware(nothing, mesh=StaticState(state)))
    took: list[float] = []

    async def ignore(_: object) -> None:
        pass

    async def serve() -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for scope in scopes(peer, 20):
                start = time.perf_counter()
                await served(scope, None, ignore)  # type: ignore[arg-type]
                took.append((time.perf_counter() - start) * 1000)
            await asyncio.sleep(0)

    asyncio.run(serve())
    return sorted(took)


def report(*, short: bool = False) -> str:
    """The table of this file."""
    seconds = 0.2 if short else 5.0
    rows: list[tuple[object, ...]] = []
    for count in (0, 100) if short else (0, 100, 1_000, 10_000):
        learner = Learner(count) if count else None
        if learner is not None:
            learner.start()
        took = latencies(seconds)
        if learner is not None:
            learner.stopping.set()
            learner.join()
        middle, high, most = took[len(took) // 2], took[len(took) * 99 // 100], took[-1]
        rows.append((count or "none", middle, high, most, learner.rounds if learner else 0))
    return table(
        "A request while intentions are compiled beside it, milliseconds",
        ("intentions", "p50", "p99", "longest", "lists compiled"),
        rows,
    )

"""One service, one agent, and the proxy between them: where a fault of the table takes place."""

from __future__ import annotations

import contextlib
import itertools
import logging
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mesh_middleware.config import MeshConfig
from mesh_middleware.consul.manager import MeshManager
from mesh_middleware.devagent import DevAgent
from mesh_middleware.policy.request import HTTPRequest
from mesh_middleware.policy.spiffe import ServiceIdentity
from tests.contract.agents import Agent, Dev
from tests.faults.proxy import FaultProxy

WAIT_SECONDS = 0.5
"""How long blocking queries wait here, so that a fault reaches them soon."""

NAMES: dict[str, str | None] = {}
"""Host names of agents and where they lead; None: not found."""

_numbers = itertools.count(1)
_resolve = socket.getaddrinfo


def resolve(host: Any, *arguments: Any, **options: Any) -> Any:
    """`socket.getaddrinfo` that knows `NAMES`."""
    name = host.decode() if isinstance(host, bytes) else host
    if name in NAMES:
        host = NAMES[name]
        if host is None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    return _resolve(host, *arguments, **options)


class Records(logging.Handler):
    """What was logged about services, in any thread."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def of(self, service: str, event: str) -> list[logging.LogRecord]:
        return [
            record
            for record in tuple(self.records)
            if vars(record).get("mesh_service") == service
            and vars(record).get("mesh_event") == event
        ]


@contextlib.contextmanager
def recording() -> Iterator[Records]:
    logger, records = logging.getLogger("mesh_middleware.consul"), Records()
    level = logger.level
    logger.addHandler(records)
    logger.setLevel(logging.INFO)
    try:
        yield records
    finally:
        logger.removeHandler(records)
        logger.setLevel(level)


@dataclass
class Scene:
    """`skew`: seconds by which the manager's clock is wrong. `name`: a host name of the proxy."""

    service: str
    agent: Agent
    proxy: FaultProxy
    folder: Path
    records: Records
    own: DevAgent | None = None
    skew: float = 0.0
    name: str = ""
    manager: MeshManager = field(init=False)

    @property
    def dev(self) -> DevAgent:
        assert self.own is not None
        return self.own

    @property
    def token_file(self) -> Path:
        return self.folder / "token"

    def clock(self) -> float:
        return time.time() + self.skew

    def decision(self, source: str) -> str:
        """``allow``, ``deny`` or the reason why nobody is let in."""
        state = self.manager.state
        if state.fault is not None:
            return str(state.fault)
        assert state.policy is not None
        caller = ServiceIdentity(state.policy.trust_domain, source)
        decision = state.policy.decide(caller, HTTPRequest("GET", b"/", ()), {})
        return "allow" if decision.allowed else "deny"


@contextlib.contextmanager
def scene(
    records: Records,
    shared: Agent | None = None,
    *,
    host: str = "127.0.0.1",
    unix: bool = False,
    named: bool = False,
    token_file: bool = False,
    **settings: Any,
) -> Iterator[Scene]:
    """A service of its own, ready. `shared`: an agent that others use too; else a fresh one."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mesh-fault-")))
        own = None
        if shared is None:
            own = stack.enter_context(DevAgent(default_action="allow"))
            shared = Dev(own)
            stack.enter_context(shared.client)
        path = folder / "agent.sock" if unix else None
        proxy = stack.enter_context(FaultProxy(shared.address, host=host, path=path))
        made = Scene(f"svc-{next(_numbers)}", shared, proxy, folder, records, own)
        address = proxy.address
        if named:
            made.name = f"{made.service}.agent.test"
            NAMES[made.name] = "127.0.0.1"
            address = f"http://{made.name}:{proxy.port}"
        if token_file:
            made.token_file.write_text("old-token-7c1")
            settings["token_file"] = str(made.token_file)
        config = MeshConfig(
            made.service,
            address=address,
            wait_seconds=WAIT_SECONDS,
            allow_plaintext_agent=named,
            **settings,
        )
        made.manager = stack.enter_context(MeshManager(config, clock=made.clock))
        made.manager.wait_ready(20)
        yield made


def in_parallel(calls: dict[str, Any], threads: int) -> dict[str, Any]:
    """The results of `calls` by name, or the exception of each; some at a time."""
    results: dict[str, Any] = {}
    waiting = list(calls.items())
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                if not waiting:
                    return
                name, call = waiting.pop(0)
            try:
                results[name] = call()
            except BaseException as error:
                results[name] = error

    workers = [threading.Thread(target=work, name=f"faults-{n}") for n in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return results

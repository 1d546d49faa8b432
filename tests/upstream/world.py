"""A small mesh for the calling side: an agent, a manager, and servers that count every byte."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import httpx

from mesh_middleware.config import MeshConfig
from mesh_middleware.consul.manager import MeshManager
from mesh_middleware.devagent import DevAgent
from mesh_middleware.devagent.ca import CertificateAuthority
from mesh_middleware.policy.spiffe import TrustDomain
from mesh_middleware.tls.certificates import X509SVID, TrustBundle
from mesh_middleware.tls.contexts import MeshContext, TLSContexts, verified_peer
from tests.support import wait_for


class Loop:
    """An event loop in a thread, for servers."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(10)

    def close(self) -> None:
        async def cancel_all() -> None:
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for _ in range(5):  # what was aborted is closed in the turns after
                await asyncio.sleep(0)

        self.run(cancel_all())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()


@dataclass
class Instance:
    """A server that proves to be `service` and answers in JSON what it saw.

    `received`: bytes of HTTP that came in, over all connections. `/wait` begins an answer, and
    ends it when `finish` is set. `/drop` closes the connection without an answer, `/hang` when
    `finish` is set.
    """

    loop: Loop
    name: str
    contexts: Callable[[], TLSContexts]
    received: int = 0
    connections: int = 0
    requests: int = 0
    open: set[asyncio.StreamWriter] = field(default_factory=set)
    finish: asyncio.Event = field(default_factory=asyncio.Event)
    port: int = 0
    host: str = "127.0.0.1"
    server: asyncio.Server | None = None
    current: TLSContexts = field(init=False)

    def start(self) -> Instance:
        self.loop.run(self._start())
        return self

    def stop(self) -> None:
        async def stop() -> None:
            assert self.server is not None
            self.server.close()
            for writer in list(self.open):
                writer.transport.abort()

        self.loop.run(stop())

    async def _start(self) -> None:
        self.renew()
        context = MeshContext.for_server(lambda: self.current, alpn=("http/1.1",))
        self.server = await asyncio.start_server(
            self._serve, self.host, self.port, ssl=context, ssl_shutdown_timeout=1
        )
        self.port = self.server.sockets[0].getsockname()[1]

    def renew(self) -> None:
        """Use the newest certificate for new connections."""
        self.current = self.contexts()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open.add(writer)
        connection = self.connections
        peer = verified_peer(writer.get_extra_info("ssl_object"))
        assert peer is not None
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                self.received += len(head)
                self.requests += 1
                method, target, *_ = head.split(b" ", 2)
                headers = dict(
                    line.split(": ", 1) for line in head.decode("latin-1").split("\r\n")[1:-2]
                )
                length = int({k.lower(): v for k, v in headers.items()}.get("content-length", 0))
                body = await reader.readexactly(length)
                self.received += length
                if target == b"/hang":
                    await self.finish.wait()
                if target in (b"/drop", b"/hang"):
                    return
                said = {
                    "instance": self.name,
                    "caller": str(peer.certificate.identity.service),
                    "method": method.decode(),
                    "target": target.decode("latin-1"),
                    "headers": headers,
                    "body": body.decode(),
                    "connection": connection,
                }
                data = json.dumps(said).encode()
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(data))
                if target == b"/wait":
                    writer.write(data[:1])
                    await writer.drain()
                    await self.finish.wait()
                    data = data[1:]
                writer.write(data)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open.discard(writer)
            writer.transport.abort()

    def release(self) -> None:
        """Let `/wait` and `/hang` end."""
        self.loop.loop.call_soon_threadsafe(self.finish.set)


@dataclass
class World:
    """An agent, the manager of the caller `web`, and servers. `agent`: may be a real one."""

    agent: Any
    manager: MeshManager
    loop: Loop
    instances: list[Instance] = field(default_factory=list)

    def contexts(self, service: str, ca: CertificateAuthority | None = None) -> TLSContexts:
        if ca is None and not isinstance(self.agent, DevAgent):
            return contexts_from(self.manager, service)
        return contexts_of(ca or self.agent.ca, service)

    def serve(
        self, service: str, name: str = "", *, port: int = 0, host: str = "127.0.0.1"
    ) -> Instance:
        """A server with a leaf of `service`; not registered."""
        contexts = partial(self.contexts, service)
        instance = Instance(self.loop, name or service, contexts, port=port, host=host)
        self.instances.append(instance.start())
        return instance

    def register(self, service: str, port: int, name: str = "", **more: Any) -> None:
        """Register a passing connect-native instance, or what `more` says."""
        body = {
            "Name": service,
            "ID": name or service,
            "Address": "127.0.0.1",
            "Port": port,
            "Connect": {"Native": True},
            **more,
        }
        self.put("/v1/agent/service/register", body)

    def add(self, service: str, name: str = "", **more: Any) -> Instance:
        """A server of `service` that is registered, too."""
        instance = self.serve(service, name)
        self.register(service, instance.port, name, **more)
        return instance

    def remove(self, service_id: str) -> None:
        self.put(f"/v1/agent/service/deregister/{service_id}")

    def put(self, path: str, body: object = None) -> None:
        answer = httpx.put(self.agent.address + path, json=body, trust_env=False)
        assert answer.status_code == 200, answer.text

    def rotated(self, *, remove_old: bool = False) -> None:
        """A new root, and the manager knows."""
        before = self.manager.state.contexts
        self.agent.rotate_ca()
        wait_for(lambda: self.manager.state.contexts is not before and self._signed_anew())
        if remove_old:
            self.agent.remove_inactive_roots()
            wait_for(lambda: len((self.manager.state.bundle or _NONE).roots) == 1)

    def _signed_anew(self) -> bool:
        bundle, svid = self.manager.state.bundle, self.manager.state.svid
        return bundle is not None and len(bundle.roots) == 2 and len(svid.certificates) == 2


@dataclass
class _Nothing:
    roots: tuple[()] = ()


_NONE = _Nothing()


def contexts_of(ca: CertificateAuthority, service: str) -> TLSContexts:
    """What a server of `service` uses."""
    leaf = ca.issue(service)
    bundle = TrustBundle.from_pem(
        TrustDomain(ca.trust_domain), [root["RootCert"] for root in ca.roots()]
    )
    return TLSContexts(X509SVID.from_pem(leaf.cert_pem, leaf.key_pem), bundle, generation=1)


def contexts_from(manager: MeshManager, service: str) -> TLSContexts:
    """What a server of `service` uses that the agent of `manager` gave a leaf."""
    url = f"{manager.config.address}/v1/agent/connect/ca/leaf/{service}"
    leaf = httpx.get(url, trust_env=False).json()
    svid = X509SVID.from_pem(leaf["CertPEM"], leaf["PrivateKeyPEM"])
    assert manager.state.bundle is not None
    return TLSContexts(svid, manager.state.bundle, generation=1)


@contextlib.contextmanager
def new_world(service: str = "web", agent: Any = None) -> Iterator[World]:
    """A world of its own; around `agent`, if given, or a development agent."""
    with contextlib.ExitStack() as stack:
        agent = agent or stack.enter_context(DevAgent(default_action="allow"))
        manager = stack.enter_context(MeshManager(MeshConfig(service, address=agent.address)))
        loop = Loop()
        stack.callback(loop.close)
        manager.wait_ready(15)
        world = World(agent, manager, loop)
        yield world
        for instance in world.instances:
            instance.stop()

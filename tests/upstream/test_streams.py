"""TCP services: who may connect, who is told, and what a change does to open connections."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from mesh_middleware.config import MeshConfig
from mesh_middleware.consul.manager import MeshManager
from mesh_middleware.errors import ConfigError, NotReadyError, PeerIdentityError
from mesh_middleware.observe.counts import Counts
from mesh_middleware.tls.certificates import X509SVID
from mesh_middleware.tls.contexts import MeshContext, TLSContexts
from mesh_middleware.upstream import streams
from mesh_middleware.upstream.catalog import catalog_of
from mesh_middleware.upstream.connecting import open_mesh_connection
from mesh_middleware.upstream.names import UpstreamName
from mesh_middleware.upstream.resolver import StaticResolver
from mesh_middleware.upstream.streams import MeshServer, connection_peer, start_mesh_server
from tests.consul_agent import ConsulAgent
from tests.support import await_for, wait_for
from tests.upstream.world import World, new_world

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def redis(world: World) -> Iterator[MeshManager]:
    """The manager of a TCP service."""
    with MeshManager(MeshConfig("redis", address=world.agent.address)) as manager:
        manager.wait_ready(15)
        yield manager


class Echo:
    """A line protocol: says who is calling, then gives each line back."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.cancelled = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(f"hello {connection_peer(writer).service}\n".encode())
            async for line in reader:
                self.lines.append(line)
                writer.write(line)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


def intend(world: World, manager: MeshManager, *rows: dict[str, Any]) -> None:
    """Write the intentions of redis, and wait until its manager has them."""
    before = manager.state.generation
    world.agent.put_intentions([{"DestinationName": "redis", **row} for row in rows])
    wait_for(lambda: manager.state.generation > before)


DENY_WEB = {"SourceName": "web", "Action": "deny"}
ALLOW_WEB = {"SourceName": "web", "Action": "allow"}
L7 = {
    "SourceName": "web",
    "Permissions": [{"Action": "allow", "HTTP": {"PathPrefix": "/"}}],
}


@contextlib.asynccontextmanager
async def connected(world: World, server: MeshServer) -> AsyncIterator[Any]:
    world.register("redis", server.port)
    reader, writer = await open_mesh_connection(world.manager, "redis")
    yield reader, writer
    writer.transport.abort()


AUTHORIZE = pytest.mark.parametrize("authorize", ["intentions", "agent"])


@AUTHORIZE
async def test_an_allowed_caller_is_known_and_served(
    world: World, redis: MeshManager, authorize: Any
) -> None:
    async with (
        await start_mesh_server(Echo(), redis, "127.0.0.1", authorize=authorize) as server,
        connected(world, server) as (reader, writer),
    ):
        assert await reader.readline() == b"hello web\n"
        writer.write(b"ping\n")
        assert await reader.readline() == b"ping\n"
        assert connection_peer(writer).service == "redis"
        assert "1 connections" in repr(server)


@AUTHORIZE
@pytest.mark.parametrize("row", [DENY_WEB, L7], ids=["deny", "L7"])
async def test_a_refused_caller_reaches_no_handler(
    world: World, redis: MeshManager, authorize: Any, row: dict[str, Any]
) -> None:
    intend(world, redis, row)
    echo = Echo()
    async with (
        await start_mesh_server(echo, redis, "127.0.0.1", authorize=authorize) as server,
        connected(world, server) as (reader, writer),
    ):
        writer.write(b"secret\n")
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 10) == b""
    assert echo.lines == []


@AUTHORIZE
async def test_an_open_connection_is_cut_when_it_is_not_allowed_any_more(
    world: World, redis: MeshManager, authorize: Any
) -> None:
    echo = Echo()
    async with (
        await start_mesh_server(echo, redis, "127.0.0.1", authorize=authorize) as server,
        connected(world, server) as (reader, _),
    ):
        assert await reader.readline() == b"hello web\n"
        intend(world, redis, {"SourceName": "other", "Action": "deny"})
        assert len(server._open) == 1
        intend(world, redis, DENY_WEB)
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 10) == b""
        await await_for(lambda: echo.cancelled == 1)


async def test_an_agent_that_is_asked_and_does_not_answer_refuses(
    world: World, redis: MeshManager
) -> None:
    echo = Echo()
    async with await start_mesh_server(echo, redis, "127.0.0.1", authorize="agent") as server:
        async with connected(world, server) as (reader, _):
            assert await reader.readline() == b"hello web\n"
        world.agent.stop()
        reader, writer = await open_mesh_connection(
            world.manager,
            "redis",
            resolver=StaticResolver(world.manager, {"redis": [f"127.0.0.1:{server.port}"]}),
        )
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.transport.abort()


@pytest.mark.consul
async def test_a_real_agent_is_asked_for_each_connection(
    consul: ConsulAgent, caplog: pytest.LogCaptureFixture
) -> None:
    echo = Echo()
    with (
        new_world("caller", consul) as real,
        MeshManager(MeshConfig("queue", address=consul.address)) as queue,
    ):
        await queue.ready(20)
        async with await start_mesh_server(echo, queue, "127.0.0.1", authorize="agent") as server:
            real.register("queue", server.port)

            async def answer() -> bytes:
                reader, writer = await open_mesh_connection(real.manager, "queue", timeout=20)
                try:
                    return await asyncio.wait_for(reader.readline(), 10)
                except ConnectionError:
                    return b""
                finally:
                    writer.transport.abort()

            assert await answer() == b"hello caller\n"
            with denied(consul, "caller", "queue"):
                # the agent asks its server, so that it knows a little later
                until = time.monotonic() + 20
                while await answer():
                    assert time.monotonic() < until
            assert "the agent decided: Matched" in caplog.text
        real.remove("queue")
        await await_for(lambda: not catalog_of(real.manager).wait(UpstreamName("queue"), 5).all)


@contextlib.contextmanager
def denied(consul: ConsulAgent, source: str, destination: str) -> Iterator[None]:
    """An intention for the length of the block."""
    url = f"{consul.address}/v1/connect/intentions"
    row = {"SourceType": "consul", "SourceName": source, "DestinationName": destination}
    written = httpx.post(url, json={**row, "Action": "deny"}, trust_env=False).json()
    try:
        yield
    finally:
        assert httpx.delete(f"{url}/{written['ID']}", trust_env=False).is_success


async def test_a_removed_root_cuts_open_connections(world: World, redis: MeshManager) -> None:
    async with (
        await start_mesh_server(Echo(), redis, "127.0.0.1") as server,
        connected(world, server) as (reader, _),
    ):
        assert await reader.readline() == b"hello web\n"
        world.agent.rotate_ca()
        await await_for(lambda: len(redis.state.bundle.roots) == 2)  # type: ignore[union-attr]
        assert len(server._open) == 1
        world.agent.remove_inactive_roots()
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 10) == b""


async def test_an_expired_certificate_ends_its_connection(world: World) -> None:
    """The caller's leaf lives two seconds; nothing else changes."""
    with MeshManager(MeshConfig("redis", address=world.agent.address)) as redis:
        await redis.ready(15)
        async with await start_mesh_server(Echo(), redis, "127.0.0.1") as server:
            short = world.agent.ca.issue("web", not_after=time.time() + 2)
            reader, writer = await _connect_with(short, world, server.port)
            assert await reader.readline() == b"hello web\n"
            with contextlib.suppress(ConnectionError):
                assert await asyncio.wait_for(reader.read(), 10) == b""
            writer.transport.abort()


async def _connect_with(leaf: Any, world: World, port: int) -> Any:
    bundle = world.manager.state.bundle
    assert bundle is not None
    contexts = TLSContexts(X509SVID.from_pem(leaf.cert_pem, leaf.key_pem), bundle, generation=1)
    context = MeshContext.for_client_beside(lambda: contexts, "redis")
    return await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="mesh")


# -- audit ------------------------------------------------------------------------------------


@pytest.fixture
def audited(world: World) -> Iterator[MeshManager]:
    """The manager of the TCP service, whose intentions are not enforced."""
    config = MeshConfig("redis", address=world.agent.address, enforcement="audit")
    with MeshManager(config) as manager:
        manager.wait_ready(15)
        yield manager


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counts:
    counts = Counts()
    counts.start()
    monkeypatch.setattr(streams, "counts", counts)
    return counts


@AUTHORIZE
async def test_in_audit_a_refused_caller_is_told_of_and_served(
    world: World,
    audited: MeshManager,
    authorize: Any,
    counted: Counts,
    caplog: pytest.LogCaptureFixture,
) -> None:
    intend(world, audited, ALLOW_WEB)
    async with (
        await start_mesh_server(Echo(), audited, "127.0.0.1", authorize=authorize) as server,
        connected(world, server) as (reader, writer),
    ):
        assert await reader.readline() == b"hello web\n"
        intend(world, audited, DENY_WEB)
        again, other = await open_mesh_connection(world.manager, "redis")
        assert await again.readline() == b"hello web\n"
        writer.write(b"still here\n")
        assert await reader.readline() == b"still here\n"
        other.transport.abort()
    assert "redis: AUDIT MODE: connections that intentions refuse are passed on" in caplog.text
    assert "audit: would refuse TCP  from spiffe://" in caplog.text
    assert {key[0]: number for key, number in counted.decisions().items()} == {
        "allowed": 1, "audited": 1,
    }  # fmt: skip
    assert [each["outcome"] for each in counted.recent()] == ["audited"]


async def test_without_audit_what_is_refused_and_what_is_cut_is_counted(
    world: World, redis: MeshManager, counted: Counts, caplog: pytest.LogCaptureFixture
) -> None:
    async with await start_mesh_server(Echo(), redis, "127.0.0.1") as server:
        async with connected(world, server) as (reader, _):
            assert await reader.readline() == b"hello web\n"
            intend(world, redis, DENY_WEB)
            with contextlib.suppress(ConnectionError):
                assert await asyncio.wait_for(reader.read(), 10) == b""
        async with connected(world, server) as (reader, _):
            with contextlib.suppress(ConnectionError):
                assert await asyncio.wait_for(reader.read(), 10) == b""
    assert {key[:2]: number for key, number in counted.decisions().items()} == {
        ("allowed", "default_allow"): 1,
        ("ended", "intention_deny"): 1,
        ("refused", "intention_deny"): 1,
    }
    assert "AUDIT MODE" not in caplog.text


async def test_in_audit_a_removed_root_cuts_all_the_same(
    world: World, audited: MeshManager
) -> None:
    intend(world, audited, DENY_WEB)
    async with (
        await start_mesh_server(Echo(), audited, "127.0.0.1") as server,
        connected(world, server) as (reader, _),
    ):
        assert await reader.readline() == b"hello web\n"
        world.agent.rotate_ca()
        await await_for(lambda: len(audited.state.bundle.roots) == 2)  # type: ignore[union-attr]
        world.agent.remove_inactive_roots()
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 10) == b""


async def test_in_audit_nobody_is_served_who_became_unknown_while_the_agent_was_asked(
    world: World, audited: MeshManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent's refusal is passed on, but it was made with a root that is gone since."""
    asked = []

    async def ask(*_: object) -> tuple[bool, str]:
        if not asked:
            asked.append(1)
            world.agent.rotate_ca()
            await await_for(lambda: len(audited.state.bundle.roots) == 2)  # type: ignore[union-attr]
            world.agent.remove_inactive_roots()
            await await_for(lambda: len(audited.state.bundle.roots) == 1)  # type: ignore[union-attr]
        return False, "denied"

    monkeypatch.setattr(streams, "ask_agent", ask)
    echo = Echo()
    async with (
        await start_mesh_server(echo, audited, "127.0.0.1", authorize="agent") as server,
        connected(world, server) as (reader, _),
    ):
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 10) == b""
    assert asked


# -- failures ---------------------------------------------------------------------------------


async def test_a_handler_that_fails_is_reported_and_others_go_on(
    world: World, redis: MeshManager
) -> None:
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda _loop, context: reported.append(context)
    )

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.readline() == b"fail\n":
            raise RuntimeError("broken handler")
        writer.write(b"fine\n")

    async with (
        await start_mesh_server(handler, redis, "127.0.0.1") as server,
        connected(world, server) as (reader, writer),
    ):
        writer.write(b"fail\n")
        assert await asyncio.wait_for(reader.read(), 10) == b""
        again, other = await open_mesh_connection(world.manager, "redis")
        other.write(b"go\n")
        assert await again.readline() == b"fine\n"
        other.transport.abort()
    await await_for(lambda: reported)
    assert str(reported[0]["exception"]) == "broken handler"


async def test_closing_cancels_handlers_and_frees_the_port(
    world: World, redis: MeshManager
) -> None:
    echo = Echo()
    server = await start_mesh_server(echo, redis, "127.0.0.1")
    serving = asyncio.ensure_future(server.serve_forever())
    async with connected(world, server) as (reader, _):
        assert await reader.readline() == b"hello web\n"
        port = server.port
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
    assert echo.cancelled == 1
    with socket.create_server(("127.0.0.1", port)):
        pass


async def test_nobody_is_authorized_in_another_way(redis: MeshManager) -> None:
    with pytest.raises(ConfigError, match="neither"):
        await start_mesh_server(Echo(), redis, authorize="nobody")  # type: ignore[arg-type]


async def test_a_server_needs_a_certificate_to_start(world: World) -> None:
    stopped = MeshManager(MeshConfig("queue", address=world.agent.address))
    with pytest.raises(NotReadyError):
        await start_mesh_server(Echo(), stopped)


# -- connecting -------------------------------------------------------------------------------


async def test_a_wrong_server_receives_no_byte(world: World) -> None:
    wrong = world.serve("other")
    world.register("redis", wrong.port)
    with pytest.raises(ConnectionError, match="/svc/other"):
        await open_mesh_connection(world.manager, "redis")
    assert wrong.received == 0


async def test_connect_failures_go_to_another_instance(world: World, redis: MeshManager) -> None:
    async with await start_mesh_server(Echo(), redis, "127.0.0.1") as server:
        world.register("redis", server.port, "alive")
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            world.register("redis", closed.getsockname()[1], "dead")
            for _ in range(5):
                reader, writer = await open_mesh_connection(world.manager, "redis")
                assert await reader.readline() == b"hello web\n"
                writer.transport.abort()


async def test_the_timeout_bounds_everything(world: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        world.register("redis", silent.getsockname()[1])
        with pytest.raises((TimeoutError, ConnectionError), match="redis"):
            await open_mesh_connection(world.manager, "redis", timeout=0.3)
    world.agent.stop()
    with pytest.raises(TimeoutError, match="queue"):
        await open_mesh_connection(world.manager, "queue", timeout=0.3)


@pytest.mark.parametrize("name", ["nobody", "nobody.service.consul", UpstreamName("nobody")])
async def test_nobody_to_connect_to_says_what_is_registered(world: World, name: Any) -> None:
    with pytest.raises(ConnectionError, match="nothing has that name"):
        await open_mesh_connection(world.manager, name)


async def test_a_name_that_is_none_is_a_config_error(world: World) -> None:
    with pytest.raises(ConfigError, match="does not name"):
        await open_mesh_connection(world.manager, "redis.example.com")


async def test_other_connections_have_no_peer(world: World) -> None:
    async def handler(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    async with server:
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        with pytest.raises(PeerIdentityError):
            connection_peer(writer)
        writer.transport.abort()

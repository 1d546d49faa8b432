"""`mesh.client_context("billing")` in other libraries: the right service, and nobody else."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp
import grpclib.client
import grpclib.const
import grpclib.encoding.base
import grpclib.server
import pytest
import requests
import requests.adapters
import urllib3
import websockets
import websockets.asyncio.client
import websockets.asyncio.server
import websockets.sync.client

from mesh_middleware.tls.contexts import MeshContext, PeerRejected, verified_peer
from tests.upstream.world import Instance, World, new_world

Call = Callable[[ssl.SSLContext, int], str]


@pytest.fixture(scope="module")
def shared() -> Iterator[World]:
    with new_world() as made:
        yield made


@pytest.fixture(scope="module")
def billing(shared: World) -> Instance:
    return shared.serve("billing")


@pytest.fixture
def other(shared: World) -> Instance:
    return shared.serve("other")


def by_aiohttp(context: ssl.SSLContext, port: int) -> str:
    async def call() -> str:
        connector = aiohttp.TCPConnector(ssl=context)
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.post(f"https://127.0.0.1:{port}/", data="secret") as answer,
        ):
            return await answer.text()

    return asyncio.run(call())


def by_urllib3(context: ssl.SSLContext, port: int) -> str:
    with urllib3.PoolManager(ssl_context=context, assert_hostname=False, retries=False) as pool:
        return pool.request("POST", f"https://127.0.0.1:{port}/", body=b"secret").data.decode()


class MeshAdapter(requests.adapters.HTTPAdapter):
    """As in the guide."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        # the certificate's name is a URI, which the context compares, not urllib3
        super().init_poolmanager(*args, ssl_context=self.context, assert_hostname=False, **kwargs)


def by_requests(context: ssl.SSLContext, port: int) -> str:
    with requests.Session() as session:
        session.trust_env = False
        session.mount("https://", MeshAdapter(context))
        return session.post(f"https://127.0.0.1:{port}/", data="secret", timeout=10).text


def by_urllib(context: ssl.SSLContext, port: int) -> str:
    with urllib.request.urlopen(f"https://127.0.0.1:{port}/", b"secret", context=context) as answer:
        return answer.read().decode()


def by_streams(context: ssl.SSLContext, port: int) -> str:
    async def call() -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        body = await reader.readexactly(int(head.split()[-1]))
        writer.transport.abort()
        return body.decode()

    return asyncio.run(call())


CALLS = [by_aiohttp, by_urllib3, by_requests, by_urllib, by_streams]


@pytest.mark.parametrize("call", CALLS)
def test_the_right_service_is_reached(shared: World, billing: Instance, call: Call) -> None:
    said = json.loads(call(shared.manager.client_context("billing"), billing.port))
    assert said["caller"] == "web"


@pytest.mark.parametrize("call", CALLS)
def test_a_wrong_service_receives_no_byte(shared: World, other: Instance, call: Call) -> None:
    with pytest.raises((OSError, aiohttp.ClientError, urllib3.exceptions.HTTPError)) as caught:
        call(shared.manager.client_context("billing"), other.port)
    assert other.received == 0
    assert "invalid_identity" in _everything(caught.value)


def _everything(error: BaseException | None) -> str:
    words = []
    while error is not None:
        words += [str(error), *map(str, error.args), str(getattr(error, "reason", ""))]
        error = error.__cause__ or error.__context__
    return " ".join(words)


@contextlib.asynccontextmanager
async def websocket_server(context: ssl.SSLContext) -> Any:
    async def echo(connection: Any) -> None:
        async for message in connection:
            await connection.send(message)

    async with websockets.asyncio.server.serve(echo, "127.0.0.1", 0, ssl=context) as server:
        yield server.sockets[0].getsockname()[1]


async def _websocket(context: ssl.SSLContext, port: int) -> Any:
    connect = websockets.asyncio.client.connect(f"wss://127.0.0.1:{port}/", ssl=context)
    async with connect as connection:
        await connection.send("ping")
        return await connection.recv()


def _blocking_websocket(context: ssl.SSLContext, port: int) -> Any:
    with websockets.sync.client.connect(f"wss://127.0.0.1:{port}/", ssl=context) as connection:
        connection.send("ping")
        return connection.recv()


@pytest.mark.parametrize("blocking", [False, True])
def test_websockets(shared: World, blocking: bool) -> None:
    async def call(service: str) -> Any:
        contexts = shared.contexts(service)
        server_context = MeshContext.for_server(lambda: contexts)
        context = shared.manager.client_context("billing")
        async with websocket_server(server_context) as port:
            if blocking:
                return await asyncio.to_thread(_blocking_websocket, context, port)
            return await _websocket(context, port)

    assert asyncio.run(call("billing")) == "ping"
    with pytest.raises(PeerRejected, match="expected was"):
        asyncio.run(call("other"))


class Plain(grpclib.encoding.base.CodecBase):
    """Messages as they are, so that no generated code is needed."""

    __content_subtype__ = "plain"

    def encode(self, message: Any, message_type: Any) -> bytes:
        return message

    def decode(self, data: bytes, message_type: Any) -> Any:
        return data


PAY = "/billing.Invoices/Pay"


class Invoices:
    """A gRPC service: says who is calling."""

    async def pay(self, stream: Any) -> None:
        peer = verified_peer(stream.peer._transport.get_extra_info("ssl_object"))
        assert peer is not None
        caller = peer.certificate.identity.service.encode()
        await stream.send_message(await stream.recv_message() + b" from " + caller)

    def __mapping__(self) -> dict[str, Any]:
        unary = grpclib.const.Cardinality.UNARY_UNARY
        return {PAY: grpclib.const.Handler(self.pay, unary, bytes, bytes)}


@contextlib.asynccontextmanager
async def grpc_server(context: ssl.SSLContext) -> Any:
    server = grpclib.server.Server([Invoices()], codec=Plain())
    with socket.create_server(("127.0.0.1", 0)) as listening:
        await server.start(sock=listening, ssl=context)
        try:
            yield listening.getsockname()[1]
        finally:
            server.close()
            await server.wait_closed()


async def _grpc(context: ssl.SSLContext, port: int) -> Any:
    async with grpclib.client.Channel("127.0.0.1", port, codec=Plain(), ssl=context) as channel:
        pay = grpclib.client.UnaryUnaryMethod(channel, PAY, bytes, bytes)
        return await pay(b"7", timeout=10)


def test_grpc(shared: World, other: Instance) -> None:
    """grpclib, as a client and as a server."""

    async def call() -> Any:
        contexts = shared.contexts("billing")
        server_context = MeshContext.for_server(lambda: contexts, alpn=("h2",))
        async with grpc_server(server_context) as port:
            return await _grpc(shared.manager.client_context("billing", ["h2"]), port)

    assert asyncio.run(call()) == b"7 from web"
    with pytest.raises(PeerRejected, match="expected was"):
        asyncio.run(_grpc(shared.manager.client_context("billing", ["h2"]), other.port))
    assert other.received == 0


def test_one_context_follows_a_rotation(shared: World, billing: Instance) -> None:
    context = shared.manager.client_context("billing")
    assert by_urllib3(context, billing.port)
    shared.rotated(remove_old=True)
    with pytest.raises(urllib3.exceptions.SSLError):
        by_urllib3(context, billing.port)  # its certificate leads to the removed root
    billing.renew()
    assert by_urllib3(context, billing.port)

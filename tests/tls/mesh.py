"""Services, attackers and echo servers for the tests of TLS; all on loopback, all short-lived."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import uvloop
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from mesh_middleware.devagent.ca import CertificateAuthority, Leaf
from mesh_middleware.tls import X509SVID, TLSContexts, TrustBundle, VerifiedPeer, verified_peer

V12, V13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


def svid_of(leaf: Leaf) -> X509SVID:
    return X509SVID.from_pem(leaf.cert_pem, leaf.key_pem)


def bundle_of(ca: CertificateAuthority) -> TrustBundle:
    return TrustBundle.from_pem(ca.trust_domain, [root["RootCert"] for root in ca.roots()])


def contexts_of(
    ca: CertificateAuthority, service: str, *, generation: int = 1, gateways: bool = False
) -> TLSContexts:
    return TLSContexts(
        svid_of(ca.issue(service)), bundle_of(ca), generation=generation, gateways=gateways
    )


def der_chain(leaf: Leaf) -> list[bytes]:
    chain = x509.load_pem_x509_certificates(leaf.cert_pem.encode())
    return [each.public_bytes(Encoding.DER) for each in chain]


@dataclass
class Current:
    """What a manager does: one reference that is replaced."""

    contexts: TLSContexts

    def __call__(self) -> TLSContexts:
        return self.contexts


def foreign_context(
    side: int,
    leaf: Leaf | None,
    roots: Iterable[CertificateAuthority],
    directory: Path,
    *,
    version: ssl.TLSVersion | None = None,
) -> ssl.SSLContext:
    """A TLS stack that is not ours: it shows any leaf and trusts what it is told."""
    context = ssl.SSLContext(side)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    if version is not None:
        context.minimum_version = context.maximum_version = version
    if leaf is not None:
        file = directory / f"leaf-{leaf.serial.replace(':', '')}-{id(leaf)}.pem"
        file.write_text(leaf.cert_pem + leaf.key_pem)
        context.load_cert_chain(file)
    for ca in roots:
        context.load_verify_locations(cadata="".join(root["RootCert"] for root in ca.roots()))
    return context


@dataclass
class Echo:
    """A server that answers ``pong``; `peers`: who got so far as to send it something."""

    port: int
    peers: list[VerifiedPeer | None] = field(default_factory=list)


@contextlib.contextmanager
def loop_server(context: ssl.SSLContext, *, uv: bool = False) -> Iterator[Echo]:
    """An asyncio server in its own thread, on asyncio's loop or uvloop's."""
    echo, ready, stop = Echo(0), threading.Event(), []

    async def serve() -> None:
        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while await reader.read(4):
                    ssl_object = writer.get_extra_info("ssl_object")
                    echo.peers.append(verified_peer(ssl_object))
                    writer.write(b"pong")
                    await writer.drain()
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

        loop, stopped = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=context)
        echo.port = server.sockets[0].getsockname()[1]
        stop.append(lambda: loop.call_soon_threadsafe(stopped.set))
        ready.set()
        await stopped.wait()
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if others:
            await asyncio.wait(others, timeout=5)

    factory = uvloop.new_event_loop if uv else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        thread = threading.Thread(target=runner.run, args=(serve(),))
        thread.start()
        assert ready.wait(10)
        try:
            yield echo
        finally:
            stop[0]()
            thread.join(10)


@contextlib.contextmanager
def blocking_server(context: ssl.SSLContext, *, lazy: bool = False) -> Iterator[Echo]:
    """A server that accepts on a wrapped listening socket, one connection at a time."""
    plain = socket.create_server(("127.0.0.1", 0))
    listener = context.wrap_socket(plain, server_side=True, do_handshake_on_connect=not lazy)
    echo, done = Echo(listener.getsockname()[1]), threading.Event()

    def serve() -> None:
        while not done.is_set():
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(5)
                    while connection.recv(4):
                        echo.peers.append(verified_peer(connection))
                        connection.sendall(b"pong")
                    connection.unwrap()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield echo
    finally:
        done.set()
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)
        listener.close()


SERVERS = {
    "asyncio": loop_server,
    "uvloop": lambda context: loop_server(context, uv=True),
    "blocking": blocking_server,
    "lazy": lambda context: blocking_server(context, lazy=True),
}


def connect(
    port: int, context: ssl.SSLContext, *, session: ssl.SSLSession | None = None
) -> ssl.SSLSocket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=10)
    return context.wrap_socket(sock, server_hostname="api", session=session)


def ask(connection: ssl.SSLSocket) -> bytes:
    """``pong`` from a server that accepts us, else nothing."""
    try:
        connection.sendall(b"ping")
        return connection.recv(4)
    except OSError:
        return b""


def ask_once(port: int, context: ssl.SSLContext) -> bytes:
    """`ask` on a new connection. With TLS 1.2 a refusal comes while connecting."""
    try:
        connection = connect(port, context)
    except OSError:
        return b""
    with connection:
        return ask(connection)


def kept_session(connection: ssl.SSLSocket) -> ssl.SSLSession:
    """The session of a connection that ends well: OpenSSL forgets those of broken ones."""
    session = connection.session
    with contextlib.suppress(OSError):
        connection.unwrap()
    return session


@dataclass
class Wire:
    """Both ends of a TLS connection in memory."""

    client: ssl.SSLObject
    server: ssl.SSLObject
    buffers: tuple[ssl.MemoryBIO, ssl.MemoryBIO]

    @classmethod
    def between(cls, client: ssl.SSLContext, server: ssl.SSLContext) -> Wire:
        up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
        return cls(
            client.wrap_bio(down, up, server_hostname="api"),
            server.wrap_bio(up, down, server_side=True),
            (up, down),
        )

    def handshake(self) -> None:
        """Go on until both are through; raises what either raises."""
        waiting = [self.client, self.server]
        for _ in range(10):
            for end in tuple(waiting):
                with contextlib.suppress(ssl.SSLWantReadError):
                    end.do_handshake()
                    waiting.remove(end)
            if not waiting:
                return
        raise AssertionError("the handshake does not end")

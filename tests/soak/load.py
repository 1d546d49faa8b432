"""Callers that keep a service busy in every way that a connection can be used, and count.

Each caller is a thread with blocking sockets. A *session* is what it does on one connection; long
ones go on until everybody is asked to reconnect, or the server says that it is the last response
of the connection. Nothing is sent twice. What fails is kept, with what it was.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Self

import httpx
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.sync.client import connect as websocket_connect

from mesh_middleware.consul.manager import MeshManager
from mesh_middleware.policy.spiffe import ServiceIdentity
from mesh_middleware.tls.contexts import VerifiedPeer, verified_peer
from tests.server.mesh import request, request_last
from tests.soak.app import CHUNK

PAUSE_SECONDS = 0.02
DOWNLOAD_CHUNKS = 15
UPLOAD = b"u" * 300_000
COME_BACK = frozenset({CloseCode.GOING_AWAY, CloseCode.SERVICE_RESTART})
"""Of a WebSocket that a worker closes because it ends: connect again."""


class Callers:
    """A context manager: plain callers on `port`, until the end. A sidecar makes TLS of it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.done: Counter[str] = Counter()
        self.failures: list[str] = []
        self._ending = threading.Event()
        self._epoch = 0
        self._current: dict[str, int] = {}
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        for name, session in self.sessions().items():
            thread = threading.Thread(target=self._call, args=(name, session), name=name)
            self._threads.append(thread)
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive(), thread.name

    def nobody_is_older(self) -> Callable[[], bool]:
        """True once every caller has ended the session that it has now."""
        self._epoch += 1
        wanted = self._epoch
        return lambda: (
            bool(self.failures)
            or all(self._current.get(thread.name, 0) >= wanted for thread in self._threads)
        )

    # -- sessions -------------------------------------------------------------------------------

    def sessions(self) -> dict[str, Callable[[], None]]:
        """What there is a caller for, by name."""
        return {
            "keep-alive": self.keep_alive,
            "new connection": self.new_connection,
            "WebSocket": self.websocket,
            "download": self.download,
            "upload": self.upload,
            "httpx": self.httpx,
        }

    def connect(self) -> socket.socket:
        """A new connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def keep_alive(self) -> None:
        with closing(self.connect()) as sock:
            for _ in self._while_fresh():
                status, body, last = request_last(sock)
                self._count("keep-alive", (status, body) == (200, b"hello"))
                if last:
                    return

    def new_connection(self) -> None:
        with closing(self.connect()) as sock:
            self._count("new connection", request(sock, "/new")[0] == 200)
        self._ending.wait(PAUSE_SECONDS)

    def websocket(self) -> None:
        with (
            closing(self.connect()) as sock,
            websocket_connect("ws://mesh/echo", sock=sock, proxy=None) as connection,
        ):
            for number in self._while_fresh():
                try:
                    connection.send(str(number))
                    echo = connection.recv(20)
                except ConnectionClosed as closed:
                    if closed.rcvd is None or closed.rcvd.code not in COME_BACK:
                        raise
                    return
                self._count("WebSocket", echo == str(number))

    def download(self) -> None:
        with closing(self.connect()) as sock:
            status, body = request(sock, f"/download?chunks={DOWNLOAD_CHUNKS}")
            self._count("download", (status, len(body)) == (200, DOWNLOAD_CHUNKS * len(CHUNK)))

    def upload(self) -> None:
        with closing(self.connect()) as sock:
            head = f"POST /upload HTTP/1.1\r\nhost: mesh\r\ncontent-length: {len(UPLOAD)}\r\n\r\n"
            sock.sendall(head.encode())
            for start in range(0, len(UPLOAD), 50_000):
                sock.sendall(UPLOAD[start : start + 50_000])
                self._ending.wait(PAUSE_SECONDS)
            response = http.client.HTTPResponse(sock, method="POST")
            response.begin()
            self._count("upload", response.read() == str(len(UPLOAD)).encode())

    def httpx(self) -> None:
        with self.httpx_client() as client:
            for _ in self._while_fresh():
                self._count("httpx", client.get("/hello").status_code == 200)

    def httpx_client(self) -> httpx.Client:
        """A new client, as an application has one."""
        url = f"http://127.0.0.1:{self.port}"
        return httpx.Client(base_url=url, trust_env=False, timeout=20)

    # -- counting -------------------------------------------------------------------------------

    def _while_fresh(self) -> Iterator[int]:
        """Numbers, until everybody is asked to reconnect."""
        number = 0
        while True:
            yield number
            number += 1
            if self._ending.wait(PAUSE_SECONDS) or not self._fresh():
                return

    def _fresh(self) -> bool:
        """Whether this thread's session may go on: nobody was asked since before it began."""
        return self._current[threading.current_thread().name] == self._epoch

    def _call(self, name: str, session: Callable[[], None]) -> None:
        while not self._ending.is_set():
            epoch = self._epoch
            self._current[name] = epoch
            try:
                session()
            except Exception as error:
                self._failed(f"{name}: {type(error).__name__}: {error}")
                self._ending.wait(0.2)

    def _count(self, name: str, good: bool) -> None:
        if good:
            self.done[name] += 1
        else:
            self._failed(f"{name}: not the right answer")

    def _failed(self, text: str) -> None:
        with self._lock:
            self.failures.append(text)


class Load(Callers):
    """Callers of `service` on `port`, as `manager`'s service."""

    def __init__(self, manager: MeshManager, service: str, port: int) -> None:
        super().__init__(port)
        self.manager = manager
        svid = manager.state.svid
        assert svid is not None
        ours = svid.identity
        self.expected = ServiceIdentity(
            ours.trust_domain, service, ours.namespace, ours.partition, ours.datacenter
        )
        self.context = manager.client_context(self.expected)

    def connect(self) -> ssl.SSLSocket:
        """A new connection, its server proven."""
        sock = super().connect()
        try:
            return self.context.wrap_socket(sock, server_hostname="mesh")
        except BaseException:
            sock.close()
            raise

    def httpx_client(self) -> httpx.Client:
        """A new client, with a TLS context of its own."""
        context = self.manager.client_context(self.expected)
        url = f"https://127.0.0.1:{self.port}"
        return httpx.Client(base_url=url, verify=context, trust_env=False, timeout=20)

    def server_now(self) -> VerifiedPeer:
        """Who answers a new connection."""
        with closing(self.connect()) as sock:
            assert request(sock)[0] == 200
            peer = verified_peer(sock)
            assert peer is not None
            return peer

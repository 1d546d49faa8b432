"""A load generator with a client certificate, cheap enough not to be the bottleneck.

One thread for each connection, blocking sockets, a prepared request; responses are read by
Content-Length. Run as a process of its own, so that it can have a core of its own:

    python -m tests.benchmarks.load PORT CERT KEY ROOTS SECONDS CONNECTIONS keep|new|paced

As fast as they are answered, on one connection or a new one for each; or at a fixed rate.
"""

from __future__ import annotations

import json
import socket
import ssl
import sys
import threading
import time

PACE_SECONDS = 0.02
"""Between two requests of a connection that keeps a rate."""

REQUEST = b"GET /hello HTTP/1.1\r\nhost: api\r\nuser-agent: bench\r\naccept: */*\r\n\r\n"


def client_context(cert: str, key: str, roots: str) -> ssl.SSLContext:
    """TLS 1.3, our certificate, the server's chain checked and nothing more."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(cert, key)
    context.load_verify_locations(roots)
    return context


def read_response(connection: ssl.SSLSocket) -> bytes:
    """The head of one response, its body read to the end."""
    data = b""
    while b"\r\n\r\n" not in data:
        if not (more := connection.recv(65536)):
            raise ConnectionError("closed in the middle of a response")
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    fields = (line.partition(b":") for line in head.lower().split(b"\r\n"))
    length = next(int(value) for name, _, value in fields if name == b"content-length")
    while len(body) < length:
        body += connection.recv(65536)
    return head


class Load:
    """What all threads count together."""

    def __init__(self, port: int, context: ssl.SSLContext, seconds: float) -> None:
        self.port, self.context = port, context
        self.deadline = time.monotonic() + seconds
        self.latencies: list[float] = []
        self.failures: list[str] = []

    def connect(self) -> ssl.SSLSocket:
        """A new connection, its handshake done."""
        raw = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self.context.wrap_socket(raw)

    def ask(self, connection: ssl.SSLSocket, since: float) -> None:
        """One request, answered 200."""
        connection.sendall(REQUEST)
        head = read_response(connection)
        if b" 200 " not in head[:20]:
            raise ConnectionError(head[:80].decode("latin-1"))
        self.latencies.append(time.monotonic() - since)

    def keep(self) -> None:
        """Requests on one connection until the time is over."""
        with self.connect() as connection:
            while (now := time.monotonic()) < self.deadline:
                self.ask(connection, now)

    def new(self) -> None:
        """A connection for each request."""
        while (now := time.monotonic()) < self.deadline:
            with self.connect() as connection:
                self.ask(connection, now)

    def paced(self) -> None:
        """Requests at a fixed rate, each timed from when it was due: waiting is not left out."""
        with self.connect() as connection:
            due = time.monotonic()
            while (due := due + PACE_SECONDS) < self.deadline:
                time.sleep(max(0.0, due - time.monotonic()))
                self.ask(connection, due)

    def guarded(self, mode: str) -> None:
        """One of the three; a failure is kept for the report."""
        try:
            getattr(self, mode)()
        except (OSError, StopIteration) as error:
            self.failures.append(repr(error))


def main(argv: list[str]) -> int:
    """Make the load; print one JSON object."""
    port, cert, key, roots, seconds, connections, mode = argv
    load = Load(int(port), client_context(cert, key, roots), float(seconds))
    start = time.monotonic()
    threads = [threading.Thread(target=load.guarded, args=(mode,)) for _ in range(int(connections))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.monotonic() - start
    latencies = sorted(load.latencies) or [0.0]
    print(
        json.dumps(
            {
                "requests": len(load.latencies),
                "per_second": len(load.latencies) / took,
                "p50_ms": latencies[len(latencies) // 2] * 1000,
                "p99_ms": latencies[len(latencies) * 99 // 100] * 1000,
                "longest_ms": latencies[-1] * 1000,
                "failures": load.failures,
            }
        )
    )
    return 1 if load.failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""A client that speaks HTTP/2 and nothing else, as Consul's Go SDK does."""

from __future__ import annotations

import json
import socket
import ssl
from contextlib import closing
from typing import Any

import h2.connection
import h2.events

from mesh_middleware.tls.contexts import TLSContexts
from tests.e2e.launch import Caller


def connect(caller: Caller, port: int, server: str = "api") -> ssl.SSLSocket:
    """A connection that offers h2 alone."""
    expected = caller.svid.identity
    expected = type(expected)(
        expected.trust_domain, server, expected.namespace, expected.partition, expected.datacenter
    )
    contexts = TLSContexts(caller.svid, caller.bundle, generation=1)
    sock = socket.create_connection(("127.0.0.1", port), timeout=10)
    try:
        return contexts.client(expected, ("h2",)).wrap_socket(sock, server_hostname="mesh")
    except BaseException:
        sock.close()
        raise


def ask(caller: Caller, port: int, *targets: str, server: str = "api") -> list[tuple[int, Any]]:
    """GET each of `targets` at the same time on one connection: status and body as JSON."""
    with closing(connect(caller, port, server)) as sock:
        assert sock.selected_alpn_protocol() == "h2"
        return exchange(sock, targets)


def exchange(sock: ssl.SSLSocket, targets: tuple[str, ...]) -> list[tuple[int, Any]]:
    connection = h2.connection.H2Connection()
    connection.initiate_connection()
    for number, target in enumerate(targets):
        head = [(":method", "GET"), (":authority", "api"), (":scheme", "https"), (":path", target)]
        connection.send_headers(1 + 2 * number, head, end_stream=True)
    sock.sendall(connection.data_to_send())
    statuses, bodies, open_streams = {}, {}, {1 + 2 * number for number in range(len(targets))}
    while open_streams:
        received = sock.recv(65536)
        assert received, "the connection ended"
        for event in connection.receive_data(received):
            if isinstance(event, h2.events.ResponseReceived):
                statuses[event.stream_id] = int(dict(event.headers)[b":status"])
            elif isinstance(event, h2.events.DataReceived):
                bodies[event.stream_id] = bodies.get(event.stream_id, b"") + event.data
            elif isinstance(event, h2.events.StreamEnded | h2.events.StreamReset):
                open_streams.discard(event.stream_id)
        sock.sendall(connection.data_to_send())
    return [(statuses[stream], json.loads(bodies[stream])) for stream in sorted(statuses)]

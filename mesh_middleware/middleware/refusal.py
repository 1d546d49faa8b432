"""What a refused peer is told: a status, a reason code and a request id, never the rule.

The body is a problem document (RFC 9457). The header `MARKER` tells a refusal by the mesh from a
403 of the application itself.

======  =================================================================  ===================
status  reasons                                                            also
======  =================================================================  ===================
400     ``malformed_target``, ``malformed_headers``
503     ``no_policy``, ``policy_undecodable``, ``stale_policy``, and any   ``retry-after``
        reason that stands for a fault of the mesh state
403     every other
======  =================================================================  ===================

A WebSocket handshake is answered in the same way where the server offers the
``websocket.http.response`` extension; elsewhere it is closed before it is accepted, which servers
turn into a bare 403.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from types import MappingProxyType

from mesh_middleware._types import Scope, Send
from mesh_middleware.policy.decision import Reason

MARKER = b"x-mesh-refused"
"""Response header of every refusal; its value is the reason code."""

RETRY_AFTER_SECONDS = 2
"""What a peer is told to wait while there is no usable policy: about one poll of the agent."""

WEBSOCKET_POLICY_VIOLATION = 1008

LAST = (b"connection", b"close")
"""Response header: the server closes the connection after it, and the client knows."""

STATUSES = MappingProxyType(
    {
        Reason.MALFORMED_TARGET: 400,
        Reason.MALFORMED_HEADERS: 400,
        Reason.NO_POLICY: 503,
        Reason.POLICY_UNDECODABLE: 503,
        Reason.STALE_POLICY: 503,
    }
)
"""Every other reason is 403."""

_TITLES = {
    400: "The request is malformed",
    403: "The service mesh does not allow this request",
    503: "The service mesh cannot decide about this request now",
}

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")


@dataclass(frozen=True, slots=True)
class Refusal:
    """An HTTP answer, for ASGI and WSGI alike. Header names are in lower case.

    `last`: nothing can come after it on this connection, which ASGI servers close (HTTP/1).
    """

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    last: bool = False


def refuse(
    reason: Reason, request_id: str, *, status: int | None = None, last: bool = False
) -> Refusal:
    """The answer for `reason`; `status` overrides `STATUSES` (a fault of the state is 503)."""
    status = STATUSES.get(reason, 403) if status is None else status
    body = json.dumps(
        {
            "type": f"urn:mesh-middleware:refused:{reason}",
            "title": _TITLES[status],
            "status": status,
            "reason": reason,
            "request_id": request_id,
        }
    ).encode("ascii")
    headers = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", str(len(body)).encode("ascii")),
        (b"cache-control", b"no-store"),
        (MARKER, reason.encode("ascii")),
        (b"x-request-id", request_id.encode("ascii")),
    ]
    if status == 503:
        headers.append((b"retry-after", str(RETRY_AFTER_SECONDS).encode("ascii")))
    return Refusal(status, tuple(headers), body, last)


def request_id_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The one ``x-request-id`` of a request if it is 1 to 128 of ``A-Za-z0-9._-``, else a new one.

    The id goes into logs and answers, so nothing else of what a peer may send is repeated.
    """
    given = [value for name, value in headers if name.lower() == b"x-request-id"]
    if len(given) == 1 and _REQUEST_ID.fullmatch(given[0]):
        return given[0].decode("ascii")
    return secrets.token_hex(16)


def is_http1(scope: Scope) -> bool:
    """Whether the connection can be closed by a header; HTTP/2 does not know any such."""
    return bool(scope.get("http_version", "1.1").startswith("1"))


async def send_refusal(scope: Scope, send: Send, refusal: Refusal) -> None:
    """Answer an ``http`` or ``websocket`` scope; the application is never called.

    The body of a refused request is not read: servers discard it, or close the connection. A
    client that waits for ``100 Continue`` may or may not send its body after a refusal, so that
    the next bytes could be either; such an HTTP/1 connection is closed.
    """
    headers = list(refusal.headers)
    prefix = "http.response"
    if scope["type"] == "websocket":
        if "websocket.http.response" not in (scope.get("extensions") or {}):
            await send({"type": "websocket.close", "code": WEBSOCKET_POLICY_VIOLATION})
            return
        prefix = "websocket.http.response"
    elif is_http1(scope) and (
        refusal.last or any(name.lower() == b"expect" for name, _ in scope["headers"])
    ):
        headers.append(LAST)
    body = b"" if scope.get("method") == "HEAD" else refusal.body
    await send({"type": f"{prefix}.start", "status": refusal.status, "headers": headers})
    await send({"type": f"{prefix}.body", "body": body})

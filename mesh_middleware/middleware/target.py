"""What the rules see of a scope: method, target as on the wire, headers, and where it is routed.

*The rule for root paths and mounts:* rules judge the request target that the client sent, wherever
the middleware stands. The launcher records it before anybody can change the scope; with other
servers it is ``raw_path`` and ``query_string`` as the server reports them.

A router that knows a root path takes it off a path that starts with it, so that ``/admin`` and
``/api/admin`` can be the same route. Which of the two a rule was written for cannot be known;
therefore a deny on either holds (see `routed_requests`). The mounts of Starlette and FastAPI are
another thing: their prefix is part of what the client sent and of nothing else.

Source: ASGI HTTP 2.4 (``path``, ``raw_path``, ``root_path``); Starlette ``get_route_path``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from urllib.parse import quote

from mesh_middleware._types import Scope
from mesh_middleware.policy.request import HTTPRequest

# What RFC 3986 lets stand in a path; "%" is not among them, a decoded path has none that escapes.
_PATH_SAFE = "/:@!$&'()*+,;=~"

_HTTP_SCHEMES: dict[str, str] = {"ws": "http", "wss": "https"}


PLAIN_METHODS = frozenset("GET HEAD POST PUT PATCH DELETE OPTIONS TRACE".split())
"""Methods that need no closer look."""


def has_sound_method(request: HTTPRequest) -> bool:
    """Whether the method means the same to rules and to routers.

    Rules compare methods with case, and werkzeug routes them without: a deny on DELETE must not be
    walked around by ``delete``. Servers with httptools refuse such methods themselves.
    """
    return request.method == request.method.upper()


def wire_request(scope: Scope, method: str, recorded: bytes | None) -> HTTPRequest:
    """The request that rules judge. `recorded`: the target that the launcher saw, if it did."""
    path: str = scope["path"]
    raw: bytes | None = scope.get("raw_path")
    if raw is None:
        raw = quoted(path)
    query: bytes | None = scope.get("query_string")
    target = raw + b"?" + query if query else raw
    decoded: str | None = path
    if recorded is not None and recorded != target:
        root = server_root(scope)
        prefixed = root and target == root.encode("utf-8", "surrogateescape") + recorded
        decoded = path.removeprefix(root) if prefixed else None
        target = recorded
    scheme: str = scope.get("scheme", "http")
    return HTTPRequest(
        method,
        target,
        scope["headers"],
        scheme=_HTTP_SCHEMES.get(scheme, scheme),
        decoded_path=decoded,
    )


def routed_requests(
    scope: Scope, request: HTTPRequest, roots: Iterable[str]
) -> Iterator[HTTPRequest]:
    """`request` as a router sees it that takes one of `roots` off the path, where that matters."""
    path: str = scope["path"]
    for root in roots:
        if not root or not path.startswith(root):
            continue
        # Not only before a slash: a2wsgi takes /api off /apiadmin, and Flask then routes /admin.
        routed = "/" + path[len(root) :].removeprefix("/")
        if routed in (request.decoded_path, path):
            continue
        query: bytes = scope.get("query_string") or b""
        target = quoted(routed)
        yield HTTPRequest(
            request.method,
            target + b"?" + query if query else target,
            request.headers,
            scheme=request.scheme,
            decoded_path=routed,
        )


def server_root(scope: Scope) -> str:
    """The root path that server or application set, without the prefixes of Starlette's mounts."""
    root: str = scope.get("app_root_path", scope.get("root_path", ""))
    return root.rstrip("/")


def quoted(path: str) -> bytes:
    """A target for a decoded path: the way back, for servers that do not give ``raw_path``."""
    return quote(path.encode("utf-8", "surrogateescape"), safe=_PATH_SAFE).encode("ascii")

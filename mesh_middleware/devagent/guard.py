"""Keeps web pages away from the development agent: it has no ACLs and hands out private keys.

A page in a browser of the same machine can reach loopback. What stops it, each rule alone:

1. Host names a loopback address or ``localhost``, so a name that an attacker rebinds to 127.0.0.1
   is of no use.
2. A request with an Origin header is refused: no page has business here, and nothing allows CORS.
3. Sec-Fetch-Site, which browsers send and pages cannot forge, is absent, ``none`` (somebody typed
   the address) or ``same-origin``: an image or a script of a page has no Origin.
4. A write must not carry what only browsers send (Sec-Fetch-*, Referer, a Mozilla user agent).
5. A write's content type is JSON or missing. ``application/x-www-form-urlencoded`` passes too,
   because that is what ``curl -d`` says and rules 2 to 4 keep a form of a page out.

Every answer carries a policy that lets a browser do nothing with it.
"""

from __future__ import annotations

import re
from ipaddress import ip_address

from starlette.datastructures import Headers, MutableHeaders

from mesh_middleware._types import ASGIApp, Message, Receive, Scope, Send
from mesh_middleware.devagent.responses import text_response

CONTENT_TYPES = ("", "application/json", "application/x-www-form-urlencoded")

_OWN_SITES = frozenset({"none", "same-origin"})
_READS = ("GET", "HEAD", "OPTIONS")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+)(?::[0-9]*)?")

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Guard:
    """ASGI middleware with the rules above."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on; a lifespan scope has nothing to refuse."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        refused = refusal(scope["method"], Headers(scope=scope))
        if refused:
            status, text = refused
            await text_response(text, status)(scope, receive, with_headers)
        else:
            await self._app(scope, receive, with_headers)


def refusal(method: str, headers: Headers) -> tuple[int, str] | None:
    """Status and text for a request that a browser may have sent, None for a good one."""
    host = headers.getlist("host")
    if len(host) != 1 or not is_loopback_host(host[0]):
        return 403, "Host must be a loopback address or localhost"
    if "origin" in headers:
        return 403, "requests of web pages are refused"
    if not _OWN_SITES.issuperset(headers.getlist("sec-fetch-site")):
        return 403, "requests of web pages are refused"
    if method in _READS:
        return None
    agent = headers.get("user-agent", "")
    if agent.startswith("Mozilla/") or any(
        name == "referer" or name.startswith("sec-fetch-") for name in headers
    ):
        return 403, "writes of web browsers are refused"
    content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type not in CONTENT_TYPES:
        return 415, f"Content-Type must be application/json, not {content_type}"
    return None


def is_loopback_host(host: str) -> bool:
    """Whether a Host header's value, with or without a port, can only mean this machine."""
    found = _HOST.fullmatch(host)
    if not found:
        return False
    name = found[1].strip("[]").lower().removesuffix(".")
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"

"""The operations listener: health, metrics and status for those without a mesh certificate.

Plain HTTP on its own port, in its own thread, with our handlers only; the application is never
reachable through it. The standard library's server is enough and shares nothing with uvicorn, so
that it answers while the application's event loop hangs.

A web page in an operator's browser can make a name of its own point to 127.0.0.1 and then read
what listens there (DNS rebinding). So a Host must be an IP address, ``localhost`` or the name
that was configured; an attacker's page can only send its own name.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import re
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from mesh_middleware.observe.report import Report
from mesh_middleware.observe.status import status_document, status_page
from mesh_middleware.server.heartbeat import Health

logger = logging.getLogger("mesh_middleware.server")

SECURITY_HEADERS: tuple[tuple[str, str], ...] = (
    ("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),
    ("x-content-type-options", "nosniff"),
    ("cache-control", "no-store"),
)


_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]]+))(?::[0-9]{1,5})?")


@dataclass(frozen=True, slots=True)
class Page:
    """One answer: status, media type, body."""

    status: int
    body: bytes
    media_type: str = "application/json"

    @classmethod
    def json(cls, status: int, document: Mapping[str, Any]) -> Page:
        """`document` as a JSON body."""
        return cls(status, json.dumps(document).encode() + b"\n")


Pages = Mapping[str, Callable[[], Page]]
"""What the listener answers: path -> a function that makes the answer, in any thread."""


Workers = Sequence[tuple[str, Report]]
"""The report of each worker, by its name."""


def health_pages(health: Callable[[], Health], stopping: Callable[[], bool]) -> Pages:
    """/health/live (restart me if not 200) and /health/ready (send traffic only if 200)."""

    def live() -> Page:
        now = health()
        return Page.json(200 if now.alive else 503, _document(alive=now.alive, why=now.why))

    def ready() -> Page:
        if stopping():
            return Page.json(503, _document(ready=False, why="stopping"))
        now = health()
        return Page.json(200 if now.ready else 503, _document(ready=now.ready, why=now.why))

    return {"/health/live": live, "/health/ready": ready}


def report_pages(all_: Callable[[], Workers], counted: Callable[[], Workers]) -> Pages:
    """/status, /status.json and /metrics. `all_`: each worker as it is; `counted`: with the counts
    of those that have ended, for sums that must not go down."""

    def status() -> Page:
        return Page(200, status_page(all_()).encode(), "text/html; charset=utf-8")

    def document() -> Page:
        return Page.json(200, status_document(all_()))

    def metrics() -> Page:
        try:
            # An optional package: the listener is there without it.
            from mesh_middleware.observe.metrics import exposition  # noqa: PLC0415
        except ImportError:
            hint = "metrics need prometheus-client: pip install 'mesh-middleware[metrics]'"
            return Page.json(501, {"error": hint})
        return Page(200, exposition(counted), "text/plain; version=0.0.4; charset=utf-8")

    return {"/status": status, "/status.json": document, "/metrics": metrics}


def _document(*, why: str, **flags: bool) -> dict[str, Any]:
    return {**flags, **({} if all(flags.values()) else {"why": why})}


def host_allowed(header: str | None, configured: str) -> bool:
    """True when a request with this Host cannot come from a rebound name."""
    found = _HOST.fullmatch(header or "")
    if found is None:
        return False
    name = found[1] or found[2]
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name.lower() in ("localhost", configured.lower())
    return True


class _Handler(BaseHTTPRequestHandler):
    """GET and HEAD of the pages; everything else is refused."""

    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride] - who makes it is ours
    protocol_version = "HTTP/1.1"
    timeout = 10.0
    server_version = "mesh-middleware"
    sys_version = ""

    def do_GET(self) -> None:
        self._answer(self._page())

    do_HEAD = do_GET  # noqa: N815 - the standard library's name

    def _page(self) -> Page:
        if not host_allowed(self.headers.get("host"), self.server.configured_host):
            return Page.json(421, {"error": "this Host is not served here; use the IP address"})
        make = self.server.pages.get(self.path.partition("?")[0])
        if make is None:
            return Page.json(404, {"error": "not found", "pages": sorted(self.server.pages)})
        return make()

    def _answer(self, page: Page) -> None:
        self.send_response(page.status)
        for name, value in SECURITY_HEADERS:
            self.send_header(name, value)
        self.send_header("content-type", page.media_type)
        self.send_header("content-length", str(len(page.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(page.body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - theirs
        """Probes come every few seconds: their requests are debug."""
        logger.debug("operations listener: " + format, *args)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, host: str, port: int, pages: Pages) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.configured_host = host
        self.pages = pages
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        """Without the base's reverse look-up of our own name, which can take seconds."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = self.configured_host, self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - theirs
        """A probe that hangs up is not worth a traceback."""
        logger.debug("operations listener: %s: %r", client_address, sys.exception())


class OpsListener:
    """Serves `pages` on `host`:`port` until closed. Context manager; owns a socket and a thread.

    `port` 0 takes a free one; `address` says which. OSError when the port cannot be had.
    """

    def __init__(self, host: str, port: int, pages: Pages) -> None:
        self._server = _Server(host, port, pages)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="mesh-ops", daemon=True
        )

    @property
    def address(self) -> str:
        """``http://host:port``."""
        host, port = self._server.server_address[:2]
        return f"http://[{host!s}]:{port}" if ":" in str(host) else f"http://{host!s}:{port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __repr__(self) -> str:
        return f"OpsListener({self.address})"

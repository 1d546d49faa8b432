"""Each cell of the table in docs/guides/servers.md, asked of the real server."""

from __future__ import annotations

import json
import re
import socket
import ssl
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography import x509
from websockets.exceptions import InvalidHandshake
from websockets.sync.client import connect as websocket_connect

from mesh_middleware.devagent import DevAgent
from mesh_middleware.tls.keys import load_svid
from tests.e2e.launch import REFUSED, Caller
from tests.servers import http2
from tests.servers.conftest import ENTRY
from tests.servers.processes import BIN, Process, get, gunicorn
from tests.support import free_port, wait_for

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "servers.md"
WORKER = 'worker_class = "mesh_middleware.server.gunicorn_worker.MeshUvicornWorker"'
APPS = "tests.servers.apps"


def launcher(app: str) -> Callable[[str, Path], Process]:
    def start(agent: str, _folder: Path) -> Process:
        port = free_port()
        command = [sys.executable, "-m", "mesh_middleware", "run", f"{APPS}:{app}"]
        command += ["--service", "api", "--port", str(port), "--workers", "2", "--grace", "0"]
        command += ["--http", "zttp", "--http2", "--no-register"]
        return Process(command, port=port, agent=agent)

    return start


def with_gunicorn(app: str, *lines: str) -> Callable[[str, Path], Process]:
    def start(agent: str, folder: Path) -> Process:
        more = ("workers = 2", 'http_protocols = "h2,h1"', *lines)
        return gunicorn(agent, f"{APPS}:{app}", folder / "gunicorn.conf.py", *more)

    return start


def program(server: str, app: str) -> Callable[[str, Path], Process]:
    def start(agent: str, _folder: Path) -> Process:
        port = free_port()
        command = [sys.executable, "-m", "tests.servers.serve", server, app, str(port)]
        return Process(command, port=port, agent=agent)

    return start


def command(*words: str) -> Callable[[str, Path], Process]:
    def start(agent: str, _folder: Path) -> Process:
        port = free_port()
        arguments = [word.replace("PORT", str(port)) for word in words[1:]]
        return Process([str(BIN / words[0]), *arguments], port=port, agent=agent)

    return start


SERVERS: dict[str, Callable[[str, Path], Process]] = {
    "`mesh-middleware run`, ASGI": launcher("asgi"),
    "`mesh-middleware run`, WSGI": launcher("wsgi"),
    "gunicorn, sync": with_gunicorn("wsgi"),
    "gunicorn, gthread": with_gunicorn("wsgi", 'worker_class = "gthread"', "threads = 4"),
    "gunicorn, uvicorn worker": with_gunicorn("asgi", WORKER),
    "hypercorn": program("hypercorn", "asgi"),
    "hypercorn, WSGI": program("hypercorn", "threaded"),
    "werkzeug (development)": program("werkzeug", "wsgi"),
    "uvicorn by itself": program("uvicorn", "asgi"),
    "granian": command("granian", "--interface", "asgi", "--port", "PORT", f"{APPS}:asgi"),
    "daphne": command("daphne", "-p", "PORT", f"{APPS}:asgi"),
}


def rows() -> dict[str, dict[str, str]]:
    """The table: server -> capability -> what the cell says."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    head, _, *body = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in body}


TABLE = rows()


@dataclass
class Site:
    """A running server of the table, its agent, and what the page says of it."""

    agent: DevAgent
    process: Process
    says: dict[str, str]
    caller: Caller = field(init=False)

    def __post_init__(self) -> None:
        self.caller = Caller.of(self.agent.address, "web")


@pytest.fixture(scope="module", params=SERVERS)
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    start = SERVERS[request.param]
    with (
        DevAgent(intentions=[ENTRY]) as agent,
        start(agent.address, tmp_path_factory.mktemp("server")) as process,
    ):
        says = TABLE[request.param]
        if says["mTLS"] == "yes":
            process.answers("web")
        else:
            wait_for(lambda: plain_status(process.port), message=process.log)
        yield Site(agent, process, says)


def plain_status(port: int) -> int:
    """The status of a GET without TLS; 0 when there is no answer."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
            return get(sock)[0]
    except REFUSED:
        return 0


def test_every_row_is_tested() -> None:
    assert list(TABLE) == list(SERVERS)
    cells = [cell for row in TABLE.values() for name, cell in row.items() if name != "kind"]
    assert {re.split(r"[ ,]", cell)[0] for cell in cells} == {"yes", "no"}


def test_mtls(site: Site) -> None:
    """Without a certificate of the mesh nobody is answered; where the page says no, all is 403."""
    if site.says["mTLS"] == "no":
        assert plain_status(site.process.port) == 403
        return
    with DevAgent() as other:
        foreign = Caller.of(other.address, "web").svid
    for svid in (None, foreign):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if svid is not None:
            load_svid(context, svid)
        with (
            socket.create_connection(("127.0.0.1", site.process.port), timeout=10) as raw,
            pytest.raises(REFUSED),
            context.wrap_socket(raw) as sock,
        ):
            get(sock)


def test_identity(site: Site) -> None:
    process = site.process
    if site.says["identity"] == "no":
        if site.says["mTLS"] == "yes":
            assert process.ask("web")[1]["reason"] == "no_identity"
        return
    forged = {"x-forwarded-client-cert": "URI=x", "x_forwarded_client_cert": "URI=x"}
    status, said = process.ask("web", "/x", forged)
    assert (status, said["caller"], said["path"]) == (200, "web", "/x")
    assert not [name for name in said["headers"] if "client" in name.lower()]
    assert process.ask("stranger")[1]["reason"] == "default_deny"
    for target in ("/admin", "//admin", "/x/%2e%2e/admin", "/%61dmin"):
        status, said = process.ask(site.caller, target)
        assert status == 403, target
        assert said["reason"] in ("permission_deny", "ambiguous_path")
    assert process.status("web", "/x%zz") in (0, 400)  # some servers end the connection themselves


def test_http2(site: Site) -> None:
    """A client that offers h2 and nothing else gets in, and each of its streams is decided."""
    if site.says["mTLS"] == "no":
        return
    if site.says["HTTP/2"].startswith("yes"):
        answers = http2.ask(site.caller, site.process.port, "/a", "/admin", "/b")
        assert [status for status, _ in answers] == [200, 403, 200]
        assert answers[2][1]["caller"] == "web"
        assert site.process.ask("web")[0] == 200  # HTTP/1.1 beside it
        return
    try:
        with closing(http2.connect(site.caller, site.process.port)) as sock:
            assert sock.selected_alpn_protocol() is None
    except REFUSED:
        pass


def test_websocket(site: Site) -> None:
    if site.says["mTLS"] == "no" or site.says["identity"] == "no":
        return
    said = websocket(site)
    assert said == ("web" if site.says["WebSocket"] == "yes" else None)


def websocket(site: Site) -> str | None:
    """The caller that the application knows over a WebSocket; None when there are none."""
    with closing(site.caller.connect(site.process.port, "api")) as sock:
        try:
            with websocket_connect("ws://api/echo", sock=sock, proxy=None) as connection:
                return str(json.loads(connection.recv())["caller"])
        except InvalidHandshake:
            return None


def test_workers(site: Site) -> None:
    if site.says["workers"] == "yes":
        pids: set[int] = set()

        def several() -> bool:
            pids.add(site.process.ask(site.caller)[1]["pid"])
            return len(pids) > 1

        wait_for(several)


def test_rotation(site: Site) -> None:
    """Last, because it changes the roots: new certificate, new roots, and the old ones refused."""
    if site.says["rotation"] == "no":
        return
    old, before = site.caller, served_root(site)
    site.agent.rotate_ca()
    wait_for(lambda: served_root(site) != before, message="the old certificate is served")
    site.agent.remove_inactive_roots()
    wait_for(lambda: site.process.refuses(old), message="the removed root is trusted")
    assert site.process.status("web") == (200 if site.says["identity"] == "yes" else 403)


def served_root(site: Site) -> bytes:
    """The key of the issuer of the certificate that the server shows now."""
    caller = Caller.of(site.agent.address, "web")
    with closing(caller.connect(site.process.port, "api")) as sock:
        leaf = x509.load_der_x509_certificate(sock.getpeercert(binary_form=True) or b"")
        get(sock)
    issuer = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    return issuer.key_identifier or b""

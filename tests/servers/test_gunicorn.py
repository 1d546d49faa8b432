"""The real gunicorn: certificates from the mesh, callers proven, whatever the worker class."""

from __future__ import annotations

import json
import signal
import socket
import ssl
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from cryptography import x509
from websockets.sync.client import connect as websocket_connect

from mesh_middleware import ConfigError
from mesh_middleware.devagent import DevAgent
from mesh_middleware.server.gunicorn import MeshConf, alpn_of
from mesh_middleware.tls.keys import load_svid
from tests.e2e.launch import REFUSED, Caller
from tests.servers.conftest import ENTRY
from tests.servers.processes import GUNICORN_CONF, Process, get, gunicorn
from tests.support import wait_for

WORKERS = {
    "sync": ("tests.servers.apps:wsgi", ()),
    "gthread": ("tests.servers.apps:wsgi", ('worker_class = "gthread"', "threads = 4")),
    "uvicorn": (
        "tests.servers.apps:asgi",
        ('worker_class = "mesh_middleware.server.gunicorn_worker.MeshUvicornWorker"',),
    ),
}


@pytest.fixture(scope="module", params=WORKERS)
def server(
    request: pytest.FixtureRequest, agent: DevAgent, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Process]:
    """One gunicorn for each worker class, that nobody changes."""
    app, lines = WORKERS[request.param]
    conf = tmp_path_factory.mktemp("gunicorn") / "gunicorn.conf.py"
    with gunicorn(agent.address, app, conf, *lines) as process:
        yield process.answers("web")


def test_the_caller_is_proven(server: Process) -> None:
    status, said = server.ask("web", "/x")
    assert (status, said["caller"], said["path"]) == (200, "web", "/x")


@pytest.mark.parametrize(
    ("caller", "target", "status", "reason"),
    [
        ("stranger", "/", 403, "default_deny"),
        ("web", "/admin", 403, "permission_deny"),
        ("web", "//admin", 403, "ambiguous_path"),
        ("web", "/x/%2e%2e/admin", 403, "ambiguous_path"),
        ("web", "/x%zz", 400, "malformed_target"),
    ],
)
def test_refusals(server: Process, caller: str, target: str, status: int, reason: str) -> None:
    answer, problem = server.ask(caller, target)
    assert (answer, problem["reason"]) == (status, reason)


def test_forged_headers_never_reach_the_application(server: Process) -> None:
    forged = {
        "x-forwarded-client-cert": "URI=spiffe://x",
        "x_forwarded_client_cert": "URI=spiffe://x",
        "x-role": "user",
    }
    status, said = server.ask("web", "/", forged)
    assert status == 200
    assert {key.lower() for key in said["headers"] if "role" in key.lower()}
    assert not [key for key in said["headers"] if "client" in key.lower()]


@pytest.mark.parametrize("svid", ["none", "of another mesh"])
def test_without_a_certificate_of_the_mesh_there_is_no_answer(server: Process, svid: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if svid != "none":
        with DevAgent() as other:
            load_svid(context, Caller.of(other.address, "web").svid)
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw,
        pytest.raises(REFUSED),
        context.wrap_socket(raw) as sock,
    ):
        get(sock)


def test_responses_are_streamed_and_closed_or_websockets_served(server: Process) -> None:
    with closing(Caller.of(server.agent, "web").connect(server.port, "api")) as sock:
        if server.command[-1].endswith(":asgi"):
            with websocket_connect("ws://api/echo", sock=sock, proxy=None) as connection:
                assert json.loads(connection.recv())["caller"] == "web"
            return
        sock.sendall(b"GET /endless HTTP/1.1\r\nhost: a\r\n\r\n")
        assert sock.recv(12) == b"HTTP/1.1 200"
    assert server.ask("web", "/closed")[1] == {"closed": True}


# -- what changes while it runs --------------------------------------------------------------------


def served_root(process: Process) -> bytes:
    """The key of the issuer of the certificate that the server shows now."""
    with closing(Caller.of(process.agent, "web").connect(process.port, "api")) as sock:
        leaf = x509.load_der_x509_certificate(sock.getpeercert(binary_form=True) or b"")
        get(sock)
    issuer = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    return issuer.key_identifier or b""


@pytest.mark.parametrize("worker", WORKERS)
def test_the_ca_rotates_and_intentions_change_while_it_runs(worker: str, tmp_path: Path) -> None:
    app, lines = WORKERS[worker]
    with (
        DevAgent(intentions=[ENTRY]) as agent,
        gunicorn(agent.address, app, tmp_path / "conf.py", "keepalive = 60", *lines) as process,
    ):
        process.answers("web")
        old, before = Caller.of(agent.address, "web"), served_root(process)
        agent.rotate_ca()
        wait_for(lambda: served_root(process) != before, message="the old certificate is served")
        assert process.status(old) == 200  # its root is still trusted
        agent.remove_inactive_roots()
        wait_for(lambda: process.refuses(old), message="the removed root is trusted")
        assert process.ask("web")[0] == 200
        agent.put_intentions([{**ENTRY, "Sources": [{"Name": "web", "Action": "deny"}]}])
        wait_for(lambda: process.ask("web")[0] == 403, message="the old intention holds")


@pytest.mark.parametrize("worker", ["sync", "gthread", "uvicorn"])
def test_preloaded_and_reloaded(worker: str, agent: DevAgent, tmp_path: Path) -> None:
    """The application is imported before the fork; HUP replaces the workers, new ones can serve."""
    app, lines = WORKERS[worker]
    more = ("preload_app = True", "workers = 2", *lines)
    with gunicorn(agent.address, app, tmp_path / "conf.py", *more) as process:
        process.answers("web")
        before = pid_of(process)
        process.signal(signal.SIGHUP)
        wait_for(lambda: pid_of(process) not in ("", before), message=process.log)
        assert process.ask("stranger")[0] == 403
        assert process.stop() == 0, process.log


def pid_of(process: Process) -> str:
    """The worker that answered; empty while one goes and drops what has not asked yet."""
    try:
        return str(process.ask("web")[1]["pid"])
    except REFUSED:
        return ""


def test_an_agent_that_comes_late(tmp_path: Path) -> None:
    """Until the worker knows anything, connections are closed; no plain text is written to them."""
    with DevAgent(intentions=[ENTRY]) as agent:
        caller = Caller.of(agent.address, "web")
        agent.stop()
        lines = ('mesh = MeshConf("api", wait=0.1)', GUNICORN_CONF[2])
        with gunicorn(agent.address, WORKERS["sync"][0], tmp_path / "conf.py", *lines) as process:
            process.says("connections are dropped until then")
            with socket.create_connection(("127.0.0.1", process.port), timeout=10) as sock:
                sock.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
                assert sock.recv(100) == b""
            assert process.refuses(caller)
            agent.start()
            process.answers("web")


def test_plain_http_is_not_served(agent: DevAgent, tmp_path: Path) -> None:
    """Without the certfile line gunicorn would serve without TLS: it ends and says so."""
    with gunicorn(agent.address, WORKERS["sync"][0], tmp_path / "conf.py", "certfile = None") as it:
        assert it.process.wait(20) != 0
        assert "certfile = mesh.certfile" in it.log


def test_without_our_lines_everything_is_refused(agent: DevAgent, tmp_path: Path) -> None:
    lines = ("certfile = None", "post_fork = lambda server, worker: None")
    conf = tmp_path / "conf.py"
    with gunicorn(agent.address, WORKERS["gthread"][0], conf, *lines) as process:
        wait_for(lambda: plain_status(process.port) == 403, message=process.log)


def plain_status(port: int) -> int:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
            return get(sock)[0]
    except REFUSED:
        return 0


# -- the settings themselves -----------------------------------------------------------------------


def test_a_service_needs_a_name() -> None:
    with pytest.raises(ConfigError, match="service"):
        MeshConf("")


class Conf:
    http_protocols: tuple[str, ...] | None = None


@pytest.mark.parametrize(
    ("wanted", "alpn"),
    [
        (None, ()),
        (("h1",), ()),
        (("h2", "h1"), ("h2", "http/1.1")),
        (("h3", "h2"), ("h2",)),
    ],
)
def test_the_protocols_are_those_of_gunicorn(
    wanted: tuple[str, ...] | None, alpn: tuple[str, ...]
) -> None:
    conf = Conf()
    conf.http_protocols = wanted
    assert alpn_of(conf) == alpn

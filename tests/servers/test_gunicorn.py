"""The real gunicorn: certificates from the mesh, callers proven, whatever the worker class."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
from websockets.sync.client import connect as websocket_connect

from mesh_middleware import ConfigError
from mesh_middleware.devagent import DevAgent
from mesh_middleware.server.gunicorn import MeshConf, alpn_of
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


@pytest.mark.parametrize("worker", WORKERS)
def test_an_idle_client_does_not_hold_the_stop(
    worker: str, agent: DevAgent, tmp_path: Path
) -> None:
    """Clients with a pool read nothing from an idle connection, the server's goodbye neither."""
    app, lines = WORKERS[worker]
    with gunicorn(agent.address, app, tmp_path / "conf.py", *lines) as process:
        process.answers("web")
        with closing(Caller.of(agent.address, "web").connect(process.port, "api")) as sock:
            assert get(sock)[0] == 200
            assert process.stop() == 0, process.log  # within half of asyncio's 30 s


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
        lines = ('mesh = MeshConf("api", wait=0.1)', *GUNICORN_CONF[2:])
        with gunicorn(agent.address, WORKERS["sync"][0], tmp_path / "conf.py", *lines) as process:
            process.says("connections are dropped until then")
            with socket.create_connection(("127.0.0.1", process.port), timeout=10) as sock:
                sock.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
                assert sock.recv(100) == b""
            assert process.refuses(caller)
            agent.start()
            process.answers("web")


@pytest.mark.parametrize("worker", WORKERS)
def test_a_worker_that_waits_can_be_stopped(worker: str, tmp_path: Path) -> None:
    with DevAgent() as agent:
        agent.stop()
        app, lines = WORKERS[worker]
        more = ('mesh = MeshConf("api", wait=60)', *GUNICORN_CONF[2:], *lines)
        with gunicorn(agent.address, app, tmp_path / "conf.py", *more) as process:
            process.says("waiting for certificates")
            process.signal(signal.SIGTERM)
            assert process.process.wait(10) == 0, process.log
            assert "SIGKILL" not in process.log


def test_plain_http_is_not_served(agent: DevAgent, tmp_path: Path) -> None:
    """Without the certfile line gunicorn would serve without TLS: it ends and says so."""
    with gunicorn(agent.address, WORKERS["sync"][0], tmp_path / "conf.py", "certfile = None") as it:
        assert it.process.wait(20) != 0
        assert "certfile = mesh.certfile" in it.log


def test_without_our_lines_everything_is_refused(agent: DevAgent, tmp_path: Path) -> None:
    lines = ("certfile = None", "post_worker_init = lambda worker: None")
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


@pytest.mark.parametrize(
    ("wanted", "worker", "alpn"),
    [
        (None, "gthread", ()),
        (("h1",), "gthread", ()),
        (("h2", "h1"), "gthread", ("h2", "http/1.1")),
        (("h3", "h2"), "gthread", ("h2",)),
        (("h2", "h1"), "sync", ()),  # would be chosen by the client and then not spoken
        (("h2", "h1"), "mesh_middleware.server.gunicorn_worker.MeshUvicornWorker", ()),
    ],
)
def test_the_protocols_are_those_that_the_worker_speaks(
    wanted: tuple[str, ...] | None, worker: str, alpn: tuple[str, ...]
) -> None:
    assert alpn_of(SimpleNamespace(http_protocols=wanted, worker_class_str=worker)) == alpn

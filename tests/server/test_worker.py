"""One serving process: its application, its certificates, its readiness."""

from __future__ import annotations

import logging
import os
import pickle
import pty
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
import uvicorn

from mesh_middleware.config import MeshConfig
from mesh_middleware.consul.manager import MeshManager
from mesh_middleware.devagent import DevAgent
from mesh_middleware.middleware.asgi import MeshMiddleware
from mesh_middleware.server.context import ServerContext
from mesh_middleware.server.exits import ExitCode, LaunchError
from mesh_middleware.server.heartbeat import Board
from mesh_middleware.server.protocols import MeshScope, protocol_class
from mesh_middleware.server.readiness import ready_line, wait_until_ready
from mesh_middleware.server.signals import Signals
from mesh_middleware.server.worker import Settings, Worker, load_app
from mesh_middleware.state import PARTS
from mesh_middleware.tls.contexts import MeshContext
from tests.e2e.launch import Caller
from tests.server.apps import hello
from tests.server.mesh import request, running, serving
from tests.support import wait_for


@pytest.fixture(scope="module")
def agent() -> Iterator[DevAgent]:
    with DevAgent(default_action="allow") as started:
        yield started


def settings(app: object, **options: object) -> Settings:
    return Settings(app, MeshConfig("api"), options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("app", "options"),
    [
        (hello, {}),
        ("tests.server.apps:hello", {}),
        ("tests.server.apps:make", {"factory": True}),
        ("tests.server.apps:legacy", {"interface": "asgi2"}),
        pytest.param(
            "tests.server.apps:wsgi",
            {"interface": "wsgi"},
            marks=pytest.mark.filterwarnings("ignore:Uvicorn's native WSGI:DeprecationWarning"),
        ),
    ],
)
def test_applications_of_every_kind_are_served(app: object, options: dict[str, object]) -> None:
    with (
        serving(load_app(settings(app, **options)), interface="asgi3") as port,
        socket.create_connection(("127.0.0.1", port), timeout=10) as sock,
    ):
        assert request(sock) == (200, b"hello")


@pytest.mark.parametrize("app", ["no_such:app", "tests.server.apps:no_such", "tests.server.apps"])
def test_an_application_that_is_not_there_says_so(app: str) -> None:
    with pytest.raises(LaunchError, match="module:attribute") as raised:
        load_app(settings(app))
    assert raised.value.code is ExitCode.APP_IMPORT


def test_an_application_that_fails_to_import_shows_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "broken_app.py").write_text("raise RuntimeError('no database')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(LaunchError, match="RuntimeError: no database"):
        load_app(settings("broken_app:app"))
    assert "broken_app.py" in caplog.text


def test_uvicorn_alone_can_use_the_hooks(agent: DevAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the launcher: the three hooks, and a manager started from the environment."""
    monkeypatch.setenv("CONSUL_HTTP_ADDR", agent.address)
    context = pickle.loads(pickle.dumps(ServerContext("alone")))
    config = uvicorn.Config(
        MeshScope(MeshMiddleware(hello, service="alone")),
        http=protocol_class(),
        ssl_context_factory=context,
        log_config=None,
        lifespan="off",
        proxy_headers=False,
    )
    caller = Caller.of(agent.address, "web")
    with running(uvicorn.Server(config)) as port:

        def reply() -> object:
            try:
                sock = caller.connect(port, "alone")
            except OSError:  # connections before the first leaf are dropped
                return None
            with closing(sock):
                return request(sock)

        assert wait_for(reply) == (200, b"hello")


def test_a_uvicorn_that_asks_for_the_context_first_gets_one(agent: DevAgent) -> None:
    """Before 0.53 the class of the protocol is not there yet."""
    with MeshManager(MeshConfig("first", address=agent.address)):
        context = ServerContext("first")(SimpleNamespace(http=protocol_class()), lambda: None)
    assert isinstance(context, MeshContext)


def test_a_wait_of_0_takes_the_state_as_it_is(agent: DevAgent) -> None:
    with MeshManager(MeshConfig("early", address="http://127.0.0.1:1")) as manager:
        state = wait_until_ready(manager, 0, threading.Event())
        assert state.missing() == PARTS[:-1]
        assert "early starts without roots, leaf, intentions" in ready_line(manager, state, 0.0)


def test_the_first_state_is_waited_for(agent: DevAgent) -> None:
    with MeshManager(MeshConfig("api", address=agent.address)) as manager:
        state = wait_until_ready(manager, None, threading.Event())
        assert state.ready


def test_an_unreachable_agent_has_its_own_code(caplog: pytest.LogCaptureFixture) -> None:
    with (
        MeshManager(MeshConfig("api", address="http://127.0.0.1:1")) as manager,
        pytest.raises(LaunchError, match=r"not ready after 0\.5 s \(--wait\)") as raised,
    ):
        wait_until_ready(manager, 0.5, threading.Event())
    assert raised.value.code is ExitCode.AGENT_UNREACHABLE


def test_a_stop_ends_the_waiting() -> None:
    stopping = threading.Event()
    stopping.set()
    with (
        MeshManager(MeshConfig("api", address="http://127.0.0.1:1")) as manager,
        pytest.raises(LaunchError) as raised,
    ):
        wait_until_ready(manager, None, stopping)
    assert raised.value.code is ExitCode.OK


def test_a_signal_before_the_server_is_there_still_stops_it() -> None:
    signals, calls = Signals(), []
    signals._handle(signal.SIGHUP, None)  # nothing to restart yet
    signals._handle(signal.SIGTERM, None)
    signals.call(**{name: partial(calls.append, name) for name in ("stop", "force", "restart")})
    signals._handle(signal.SIGTERM, None)
    signals._handle(signal.SIGTERM, None)
    signals._handle(signal.SIGHUP, None)  # too late for one
    assert calls == ["stop", "force"]


def test_a_terminal_that_was_closed_stops_the_service() -> None:
    outside, terminal = pty.openpty()
    signals, calls = Signals(terminal), []
    signals.call(**{name: partial(calls.append, name) for name in ("stop", "force", "restart")})
    signals._handle(signal.SIGHUP, None)  # somebody sent it
    assert calls == ["restart"]
    os.close(outside)
    signals._handle(signal.SIGHUP, None)
    os.close(terminal)
    assert calls == ["restart", "stop"]


@contextmanager
def working(settings: Settings, codes: list[ExitCode]) -> Iterator[int]:
    """A worker in a thread, as under the launcher, with the board read here; gives its port."""
    board = Board()
    worker = Worker(settings, board)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=lambda: codes.append(worker.run([listener])))
        thread.start()
        wait_for(lambda: board.health().ready)
        yield int(listener.getsockname()[1])
        worker.stop()
        thread.join(10)


def test_a_worker_serves_and_stops(agent: DevAgent, caplog: pytest.LogCaptureFixture) -> None:
    config = MeshConfig("thread", address=agent.address)
    options = {"lifespan": "off", "log_config": None, "root_path": "/outer"}
    codes: list[ExitCode] = []
    with caplog.at_level(logging.INFO), working(Settings(hello, config, options), codes) as port:
        caller = Caller.of(agent.address, "web")
        with closing(caller.connect(port, "thread")) as sock:
            assert request(sock, "/x?y") == (200, b"hello")
    assert codes == [ExitCode.OK]
    assert "is ready after" in caplog.text


@pytest.mark.parametrize(
    ("of_the_config", "of_the_app", "of_the_launcher", "status"),
    [
        ("audit", {}, {}, 200),
        ("audit", {"enforcement": "enforce"}, {}, 403),
        ("audit", {}, {"enforcement": "enforce"}, 403),
        ("enforce", {"enforcement": "audit"}, {}, 200),
        ("enforce", {}, {"enforcement": "audit"}, 200),
    ],
)
def test_the_launcher_the_application_and_the_config_are_asked_in_turn(
    of_the_config: Literal["enforce", "audit"],
    of_the_app: dict[str, str],
    of_the_launcher: dict[str, str],
    status: int,
) -> None:
    with DevAgent() as denying:
        config = MeshConfig("turns", address=denying.address, enforcement=of_the_config)
        app = MeshMiddleware(hello, service="turns", **of_the_app)
        options = {"lifespan": "off", "log_config": None}
        settings = Settings(app, config, options, middleware=of_the_launcher)
        caller = Caller.of(denying.address, "web")
        with working(settings, []) as port, closing(caller.connect(port, "turns")) as sock:
            assert request(sock)[0] == status

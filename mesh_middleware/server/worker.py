"""One serving process: its mesh manager, the wrapped application, uvicorn.

The same code serves alone, as one of ``--workers`` and under ``--reload``; what differs is who
tells it to stop.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from uvicorn.config import LOGGING_CONFIG, STARTUP_FAILURE
from uvicorn.middleware.message_logger import MessageLoggerMiddleware

from mesh_middleware._listening import close_listeners
from mesh_middleware._types import ASGIApp, Receive, Scope, Send
from mesh_middleware.config import MeshConfig
from mesh_middleware.consul.manager import MeshManager
from mesh_middleware.middleware.asgi import MeshMiddleware
from mesh_middleware.observe.report import Reporter
from mesh_middleware.server.context import ServerContext
from mesh_middleware.server.drain import let_clients_go
from mesh_middleware.server.exits import ExitCode, LaunchError
from mesh_middleware.server.goaway import GoAway
from mesh_middleware.server.heartbeat import BEAT_SECONDS, Board, Phase
from mesh_middleware.server.inner import inner_arguments
from mesh_middleware.server.interface import is_wsgi
from mesh_middleware.server.linger import lingering_cut
from mesh_middleware.server.options import config_options
from mesh_middleware.server.protocols import MeshScope
from mesh_middleware.server.readiness import ready_line, wait_until_ready
from mesh_middleware.server.suggest import SuggestionHandler

logger = logging.getLogger("mesh_middleware.server")

DRAIN_SECONDS = 30
"""How long open requests may go on after the listeners closed, unless
``--timeout-graceful-shutdown`` says otherwise (uvicorn's own default is for ever)."""

WSGI_THREADS = 10
"""Requests of a WSGI application at a time, in one worker process."""

HANDSHAKE_SECONDS = 10.0
"""How long a TLS handshake may take: a client does no work for it that could take longer, and
uvicorn leaves it at the loops' 60."""

_SUPERVISION = frozenset(
    {"workers", "reload", "reload_dirs", "reload_includes", "reload_excludes", "reload_delay"}
)


@dataclass(frozen=True, slots=True)
class Settings:
    """What a serving process needs; can be pickled when `app` is a string.

    `options`: names and values of `uvicorn.run`. `wait_seconds`: None is for ever. `suggest`: log
    the intention that would allow what is refused. `middleware`: further arguments of
    `MeshMiddleware`. `wsgi_threads`: how many requests of a WSGI application run at a time.
    `handshake_seconds`: how long a TLS handshake may take.
    """

    app: str | ASGIApp
    config: MeshConfig
    options: Mapping[str, Any]
    wait_seconds: float | None = 30.0
    suggest: bool = False
    middleware: Mapping[str, Any] = field(default_factory=dict)
    wsgi_threads: int = WSGI_THREADS
    handshake_seconds: float = HANDSHAKE_SECONDS


class WithoutQueries(logging.Filter):
    """Leaves queries out of uvicorn's access log: they may hold tokens."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Always True; uvicorn's arguments are client, method, target, HTTP version, status."""
        if isinstance(record.args, tuple) and len(record.args) == 5:
            client, method, target, version, status = record.args
            path, mark, _ = str(target).partition("?")
            record.args = (client, method, f"{path}?..." if mark else path, version, status)
        return True


def logging_config() -> dict[str, Any]:
    """uvicorn's logging, with our lines in the same form beside its own."""
    config = copy.deepcopy(LOGGING_CONFIG)
    config["filters"] = {"without_queries": {"()": f"{__name__}.{WithoutQueries.__name__}"}}
    config["handlers"]["access"]["filters"] = ["without_queries"]
    config["loggers"]["mesh_middleware"] = {
        "handlers": ["default"],
        "level": "INFO",
        "propagate": False,
    }
    return config


def uvicorn_config(settings: Settings, *, watch: bool = False) -> uvicorn.Config:
    """uvicorn's settings, still without an application.

    Making them also sets logging up and reads ``--env-file``. `watch`: for the process that
    watches the files under ``--reload``; the others don't watch.
    """
    options = config_options(settings.options)
    if not watch:
        options = {name: value for name, value in options.items() if name not in _SUPERVISION}
    options.setdefault("log_config", logging_config())
    if options.get("timeout_graceful_shutdown") is None:
        options["timeout_graceful_shutdown"] = DRAIN_SECONDS
    factory = ServerContext(settings.config.service)
    return uvicorn.Config(settings.app, **options, ssl_context_factory=factory)


def load_app(settings: Settings) -> ASGIApp:
    """The application as ASGI 3, imported, built and adapted as uvicorn itself would.

    A WSGI application, asked for by ``interface`` or recognised, is a `ThreadedWSGI`.
    `LaunchError` (app import) when it cannot be loaded; the traceback is logged.
    """
    interface = settings.options.get("interface", "auto")
    hint = "check the name (module:attribute), --app-dir and the module's own imports"
    try:
        app = _loaded(settings.app, "asgi3", factory=settings.options.get("factory", False))
        if interface == "wsgi" or (interface == "auto" and is_wsgi(app)):
            return _threaded(app, settings.wsgi_threads)
        adapted: ASGIApp = _loaded(app, interface)
    except SystemExit as error:  # uvicorn logged what it could not find
        raise LaunchError(
            ExitCode.APP_IMPORT, f"cannot load the application {settings.app!r}: {hint}"
        ) from error
    except LaunchError:
        raise
    except Exception as error:
        logger.exception("importing the application failed")
        raise LaunchError(
            ExitCode.APP_IMPORT,
            f"cannot load the application {settings.app!r}: {type(error).__name__}: {error}",
        ) from error
    return adapted


def _loaded(app: Any, interface: Any, *, factory: bool = False) -> Any:
    config = uvicorn.Config(
        app, interface=interface, factory=factory, log_config=None, proxy_headers=False
    )
    config.load()
    loaded = config.loaded_app
    # --log-level trace; it is put around everything again when uvicorn serves
    return loaded.app if isinstance(loaded, MessageLoggerMiddleware) else loaded


def _threaded(app: Any, threads: int) -> ASGIApp:
    try:
        # Imported here: only WSGI needs the package.
        from mesh_middleware.server.wsgi import ThreadedWSGI  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise LaunchError(
            ExitCode.APP_IMPORT,
            "a WSGI application needs a package that is missing: "
            "pip install 'mesh-middleware[wsgi]'",
        ) from error
    return ThreadedWSGI(app, threads)


class UvicornServer(uvicorn.Server):
    """uvicorn's server, whose signals are somebody else's and whose clients are told of the end.

    `patient`: connections may end without haste, see `drain`. `handshake_seconds`: how long a TLS
    handshake may take.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        goaway: GoAway,
        beat: Callable[[Phase], None],
        *,
        patient: bool = True,
        handshake_seconds: float = HANDSHAKE_SECONDS,
    ) -> None:
        super().__init__(config)
        self._handshake_seconds = handshake_seconds
        self._goaway = goaway
        self._beat = beat
        self._patient = patient
        self._phase = Phase.SERVING
        self._heart: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone: uvicorn would raise SIGTERM again after a clean stop."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then let the heart beat."""
        await super().startup(sockets=[])  # uvicorn (0.54) cannot be told of a time for handshakes
        self.started = False
        for sock in sockets or ():
            self.servers.append(await self._listen(sock))
        self.started = True
        self._beat(self._phase)
        self._heart = asyncio.create_task(self._beat_on(), name="mesh-heartbeat")

    async def _listen(self, sock: socket.socket) -> asyncio.Server:
        """As uvicorn does it."""
        config = self.config
        connected: Callable[..., asyncio.Protocol] = functools.partial(
            config.http_protocol_class,  # type: ignore[call-arg]
            config=config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        return await asyncio.get_running_loop().create_server(
            connected,
            sock=sock,
            ssl=config.ssl,
            backlog=config.backlog,
            ssl_handshake_timeout=self._handshake_seconds if config.ssl else None,
        )

    async def _beat_on(self) -> None:
        parent = multiprocessing.parent_process()  # None: nobody's worker
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            self._beat(self._phase)
            if parent is not None and os.getppid() != parent.pid:
                logger.error("the parent process is gone; stopping")
                self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the listeners, say goodbye to clients, then drain as uvicorn does."""
        await close_listeners(self.servers)
        self._phase = Phase.STOPPING
        self._beat(self._phase)
        await self._goaway.close_all()
        async with lingering_cut(self.server_state.connections):
            await let_clients_go(self, patient=self._patient)
            await super().shutdown(sockets=sockets)
        if self._heart is not None:
            self._heart.cancel()
        self._beat(self._phase)  # what was decided since counts as well


class Worker:
    """Runs `settings` in this process, as row `slot` of `board`.

    ``stop()`` and ``force()`` can be called from any thread or signal handler, at any time.
    """

    def __init__(self, settings: Settings, board: Board, slot: int = 0) -> None:
        self._settings = settings
        self._board = board
        self._slot = slot
        self._config = uvicorn_config(settings)
        self._stopping = threading.Event()
        self._manager = MeshManager(settings.config)
        self._reporter = None if board.reports is None else Reporter(self._manager)
        self._goaway = GoAway(_no_app)
        # who changed a file wants to see it now
        patient = not settings.options.get("reload")
        self._server = UvicornServer(
            self._config,
            self._goaway,
            self._beat,
            patient=patient,
            handshake_seconds=settings.handshake_seconds,
        )

    def stop(self) -> None:
        """Finish what is open and return from `run`."""
        self._stopping.set()
        self._server.should_exit = True

    def force(self) -> None:
        """Return from `run` without waiting for what is open."""
        self.stop()
        self._server.force_exit = True

    def run(self, sockets: list[socket.socket]) -> ExitCode:
        """Serve until stopped. `LaunchError` when it never came to that."""
        started = time.monotonic()
        if self._settings.suggest:
            SuggestionHandler.install()
        app = load_app(self._settings)
        arguments = inner_arguments(app, self._settings.config.service)
        arguments |= self._settings.middleware
        self._goaway.app = MeshMiddleware(app, mesh=self._manager, **arguments)
        self._config.app = MeshScope(self._goaway)
        self._config.interface, self._config.factory = "asgi3", False
        with self._manager as manager:
            state = wait_until_ready(manager, self._settings.wait_seconds, self._stopping)
            logger.info("%s", ready_line(manager, state, time.monotonic() - started))
            self._beat(Phase.STARTING)
            return self._serve(sockets)

    def _beat(self, phase: Phase) -> None:
        self._board.beat(self._slot, phase, self._manager.state.missing())
        if self._board.reports is not None and self._reporter is not None:
            self._board.reports.write(self._slot, self._reporter.report())

    def _serve(self, sockets: list[socket.socket]) -> ExitCode:
        try:
            self._server.run(sockets=sockets)
        except SystemExit as error:
            if error.code == STARTUP_FAILURE:
                raise LaunchError(
                    ExitCode.APP_STARTUP, "the application's startup (lifespan) failed; see above"
                ) from error
            raise
        return ExitCode.OK


async def _no_app(_scope: Scope, _receive: Receive, _send: Send) -> None:
    raise LaunchError(ExitCode.RUNTIME, "the application is not loaded yet")


@dataclass(frozen=True, slots=True)
class ChildProcess:
    """What a spawned process runs: a `Worker` that its parent stops by `stop_signal`.

    Other signals are the parent's business: Ctrl-C, a closed terminal and service managers that
    stop a whole group (systemd's default) reach the worker too, but the check must be critical
    before it closes its listeners.
    """

    settings: Settings
    board: Board
    slot: int = 0
    stop_signal: signal.Signals = signal.SIGTERM

    def __call__(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve, then exit the process."""
        worker = Worker(self.settings, self.board, self.slot)
        for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            signal.signal(signum, signal.SIG_IGN)
        signal.signal(self.stop_signal, lambda *_: worker.stop())
        try:
            sys.exit(worker.run(sockets or []))
        except LaunchError as error:
            if error.code:
                logger.error("%s", error)  # noqa: TRY400 - a sentence for a person
            sys.exit(error.code)

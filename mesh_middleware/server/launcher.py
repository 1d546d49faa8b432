"""``mesh-middleware run``: serve an application on the mesh, from the first wait to a clean exit.

One process owns the port, the registration, the operations listener and the signals. Alone it
serves itself; with ``--workers`` and ``--reload`` it starts processes that do.

Start: bind the port; wait for the mesh state; register, critical; listen; pass.
Stop: check critical; grace, so that callers look elsewhere; listeners closed; WebSockets 1001;
drain; deregister; exit 0. A second signal skips what is left of it.
Restart, with ``--workers``: SIGHUP replaces the workers one after the other; see `supervisor`.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

from dotenv import load_dotenv

from mesh_middleware._types import ASGIApp
from mesh_middleware.config import MeshConfig
from mesh_middleware.errors import ConfigError
from mesh_middleware.middleware.audit import Audit, AuditRule
from mesh_middleware.policy.enforcement import EnforcementMode
from mesh_middleware.server.exits import ExitCode, LaunchError
from mesh_middleware.server.heartbeat import Board
from mesh_middleware.server.listen import bind
from mesh_middleware.server.ops import OpsListener, health_pages, report_pages
from mesh_middleware.server.presence import Presence, registration_of
from mesh_middleware.server.reload import Reloader
from mesh_middleware.server.reports import SharedReports
from mesh_middleware.server.signals import Signals
from mesh_middleware.server.supervisor import SPARE_ROWS, Supervisor
from mesh_middleware.server.worker import (
    HANDSHAKE_SECONDS,
    WSGI_THREADS,
    Settings,
    Worker,
    uvicorn_config,
)

logger = logging.getLogger("mesh_middleware.server")

GRACE_SECONDS = 1.0
"""Between the check going critical and the listeners closing: callers get to know."""

FORCE_SECONDS = 3.0
"""After the second signal, what has not ended by itself is ended."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the service is, for those who look for it.

    `advertise`: the address that the catalogue gives; None takes the bind address when it is a
    concrete one, else leaves it to the agent. `ops_port` None: no operations listener.
    `grace_seconds`: between the check going critical and the listeners closing.
    """

    register: bool = True
    advertise: str | None = None
    tags: tuple[str, ...] = ()
    meta: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    ops_host: str = "127.0.0.1"
    ops_port: int | None = None
    grace_seconds: float = GRACE_SECONDS


class Serving(Protocol):
    """What the launcher drives: a worker, a supervisor, a reloader."""

    def stop(self) -> None:
        """Finish what is open, then return from the serving call."""
        ...

    def force(self) -> None:
        """Return without waiting for what is open."""
        ...


def cannot_restart() -> None:
    """What SIGHUP does without workers: it must not end the service, and it cannot restart it."""
    logger.warning("SIGHUP restarts nothing here: that needs --workers (--workers 1 will do)")


class Launcher:
    """One launch of `settings` at `placement`. Call `run` once, in the main thread."""

    def __init__(self, settings: Settings, placement: Placement) -> None:
        self._settings = settings
        self._placement = placement
        self._options = settings.options
        self._reload = bool(self._options.get("reload"))
        workers = self._options.get("workers")
        self._workers = int(workers or os.environ.get("WEB_CONCURRENCY") or 1)
        self._supervised = not self._reload and (workers is not None or self._workers > 1)
        if (self._reload or self._supervised) and not isinstance(settings.app, str):
            raise ConfigError("give the application as 'module:attribute' for workers or reload")
        self._board = Board(self._workers + SPARE_ROWS if self._supervised else 1)
        if placement.ops_port is not None:
            self._board.reports = SharedReports(self._board.slots)
        self._signals = Signals()
        self._presence: Presence | None = None
        self._refusal = ""
        self._last_resort = threading.Timer(FORCE_SECONDS, os._exit, (ExitCode.RUNTIME,))
        self._last_resort.daemon = True
        self._serving: Serving

    def run(self) -> ExitCode:
        """Serve until a signal; the exit code for the process. `LaunchError` says why not."""
        uvicorn_config(self._settings)  # sets logging up, for what is said from here on
        with self._signals.owned(), ExitStack() as stack:
            listener = stack.enter_context(self._bind())
            self._listen_for_operations(stack)
            self._announce(listener)
            stack.callback(self._last_resort.cancel)
            code = self._serve(listener, stack)
        logger.info("stopped")
        return code

    def _bind(self) -> socket.socket:
        option = self._options.get
        return bind(
            option("host") or "127.0.0.1",
            int(option("port", 8000)),
            uds=option("uds"),
            fd=option("fd"),
        )

    def _announce(self, listener: socket.socket) -> None:
        logger.info(
            "%s: mTLS on %s, Consul agent %s%s",
            self._settings.config.service,
            display_address(listener),
            self._settings.config.address,
            f", {self._workers} workers" if self._supervised else "",
        )
        if self._settings.middleware.get("enforcement") == EnforcementMode.AUDIT:
            logger.warning("AUDIT MODE (--enforcement audit): nothing is refused by an intention")

    def _listen_for_operations(self, stack: ExitStack) -> None:
        port, host = self._placement.ops_port, self._placement.ops_host
        if port is None:
            return
        pages = dict(health_pages(self._board.health, self._signals.stopping.is_set))
        if self._board.reports is not None:
            pages |= report_pages(self._board.reports.all, self._board.reports.counted)
        try:
            ops = stack.enter_context(OpsListener(host, port, pages))
        except OSError as error:
            raise LaunchError(
                ExitCode.PORT_TAKEN, f"--ops-port {port}: cannot listen on {host}: {error.strerror}"
            ) from error
        logger.info("operations listener on %s", ops.address)

    def _serve(self, listener: socket.socket, stack: ExitStack) -> ExitCode:
        if self._placement.register:
            config, place = self._settings.config, self._placement
            entry = registration_of(
                config, listener, advertise=place.advertise, tags=place.tags, meta=place.meta
            )
            self._presence = stack.enter_context(
                Presence(config, entry, self._board, self._refused)
            )
        if self._reload:
            return self._reloading([listener])
        if self._supervised:
            supervisor = Supervisor(self._settings, self._board, [listener])
            self._drive(supervisor, supervisor.restart)
            return self._outcome(supervisor.run())
        worker = Worker(self._settings, self._board)
        self._drive(worker)
        return self._outcome(worker.run([listener]))

    def _reloading(self, sockets: list[socket.socket]) -> ExitCode:
        config = uvicorn_config(self._settings, watch=True)
        reloader = Reloader(
            config, self._settings, self._board, sockets, lambda: self._drive(reloader)
        )
        return self._outcome(reloader.serve())

    def _drive(self, serving: Serving, restart: Callable[[], None] = cannot_restart) -> None:
        """From now on signals stop `serving`, with the check critical and the grace before."""
        self._serving = serving
        self._signals.call(stop=self._begin_to_stop, force=self._force, restart=restart)

    def _begin_to_stop(self) -> None:
        threading.Thread(target=self._withdraw_and_stop, name="mesh-stop", daemon=True).start()

    def _withdraw_and_stop(self) -> None:
        if self._presence is not None and self._presence.withdraw():
            logger.info("check is critical; closing in %g s", self._placement.grace_seconds)
            self._signals.forced.wait(self._placement.grace_seconds)
        self._serving.stop()

    def _force(self) -> None:
        logger.warning("second signal: not waiting for what is open")
        self._serving.force()
        self._last_resort.start()

    def _refused(self, message: str) -> None:
        """The agent's ACLs don't let us register: nobody would find the service."""
        self._refusal = message
        self._serving.stop()

    def _outcome(self, code: ExitCode) -> ExitCode:
        if self._refusal:
            raise LaunchError(ExitCode.ACL, self._refusal)
        return code


def display_address(listener: socket.socket) -> str:
    """Where `listener` can be reached, as a person writes it."""
    address = listener.getsockname()
    if isinstance(address, str | bytes):
        return f"unix:{os.fsdecode(address)}"
    host, port = address[:2]
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


def serve(
    app: str | ASGIApp,
    *,
    service: str,
    config: MeshConfig | None = None,
    wait: float | None = 30.0,
    register: bool = True,
    advertise: str | None = None,
    tags: Iterable[str] = (),
    meta: Mapping[str, str] | None = None,
    ops_host: str = "127.0.0.1",
    ops_port: int | None = None,
    grace: float = GRACE_SECONDS,
    suggest: bool = False,
    enforcement: str | None = None,
    audit: Iterable[AuditRule] | None = None,
    debug_headers: bool | None = None,
    drain_seconds: float | None = None,
    wsgi_threads: int = WSGI_THREADS,
    timeout_handshake: float = HANDSHAKE_SECONDS,
    **uvicorn_options: Any,
) -> ExitCode:
    """Serve `app` as `service` of the mesh until a signal says stop; the exit code for the process.

    `app`: an ASGI or WSGI application, or ``"module:attribute"`` (needed for `workers`, 1 too,
    and `reload`). `wsgi_threads`: requests of a WSGI application at a time, in each worker process.
    `timeout_handshake`: seconds that a TLS handshake may take.
    `config`: how to reach the agent; None reads the environment (``CONSUL_HTTP_ADDR`` and so on).
    `wait`: seconds to wait for the first mesh state; 0 serves at once and refuses until it is
    there; None waits for ever. `register`, `advertise`, `tags`, `meta`: the entry in the
    catalogue. `ops_port`: plain HTTP for health, metrics and status on `ops_host`. `grace`:
    seconds between the check going critical and the listeners closing. `suggest`: log, with each
    refusal, the intention that would allow it (development). `enforcement`, `audit`,
    `debug_headers`, `drain_seconds`: as `MeshMiddleware` takes them; None is what the application's
    own middleware says (and else, for `enforcement`, `config`). `uvicorn_options`: those of
    `uvicorn.run`, but for TLS and proxy headers, which the mesh decides.

    What goes wrong is logged and is in the exit code (`ExitCode`); ConfigError only for a wrong
    argument. Call it in the main thread, where it owns SIGTERM, SIGINT and SIGHUP.
    """
    env_file = uvicorn_options.pop("env_file", None)
    if env_file is not None:
        load_dotenv(env_file)
    app_dir = uvicorn_options.pop("app_dir", None)
    if app_dir is not None:
        sys.path.insert(0, app_dir)
    if config is None:
        config = MeshConfig.from_env(service)
    elif config.service != service:
        raise ConfigError(f"service is {service!r}, but config is for {config.service!r}")
    if wsgi_threads < 1:
        raise ConfigError(f"wsgi_threads {wsgi_threads!r}: give 1 or more")
    if not 0 < timeout_handshake < math.inf:
        raise ConfigError(f"timeout_handshake {timeout_handshake!r}: give more than 0 seconds")
    given = {
        "enforcement": Audit.of(enforcement, ()).mode,
        "audit": None if audit is None else Audit.of(None, audit).rules,
        "debug_headers": debug_headers,
        "drain_seconds": drain_seconds,
    }
    settings = Settings(
        app,
        config,
        uvicorn_options,
        wait_seconds=wait,
        suggest=suggest,
        middleware={name: value for name, value in given.items() if value is not None},
        wsgi_threads=wsgi_threads,
        handshake_seconds=timeout_handshake,
    )
    placement = Placement(
        register=register,
        advertise=advertise,
        tags=tuple(tags),
        meta=dict(meta or {}),
        ops_host=ops_host,
        ops_port=ops_port,
        grace_seconds=grace,
    )
    launcher = Launcher(settings, placement)
    try:
        return launcher.run()
    except LaunchError as error:
        if error.code:
            logger.error("%s", error)  # noqa: TRY400 - a sentence for a person, no traceback
        return error.code


def run(app: str | ASGIApp, *, service: str, **options: Any) -> None:
    """`serve`, as the whole of a program: returns after a clean stop, else SystemExit.

    Takes what `serve` takes. The exit code is that of ``mesh-middleware run``.
    """
    code = serve(app, service=service, **options)
    if code:
        sys.exit(code)

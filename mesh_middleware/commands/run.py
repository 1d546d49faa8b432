"""``mesh-middleware run``: an application on the mesh."""

from __future__ import annotations

import logging
import math
from contextlib import ExitStack
from inspect import cleandoc
from typing import Any

import click

from mesh_middleware.config import MeshConfig
from mesh_middleware.devagent import DevAgent
from mesh_middleware.errors import ConfigError
from mesh_middleware.policy.enforcement import EnforcementMode
from mesh_middleware.server.exits import ExitCode
from mesh_middleware.server.launcher import GRACE_SECONDS, serve
from mesh_middleware.server.options import from_command_line, uvicorn_params
from mesh_middleware.server.worker import HANDSHAKE_SECONDS, WSGI_THREADS

EXIT_CODES = """\b
Exit codes:
  0  stopped by a signal        4  Consul agent unreachable
  1  failed while running       5  refused by Consul's ACLs
  2  wrong option               6  port taken
  3  the app's startup failed   7  the app could not be imported"""


class Wait(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.4
    """Seconds, or ``forever`` (None)."""

    name = "SECONDS|forever"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | None:
        """Positive seconds, 0, or None for ever."""
        if value == "forever":
            return None
        try:
            seconds = float(value)
        except ValueError:
            seconds = math.nan
        if not 0 <= seconds < math.inf:
            self.fail(f"{value!r}: write seconds such as 30, 0, or forever", param, ctx)
        return seconds


class KeyValue(click.ParamType):  # type: ignore[type-arg]  # as above
    """``KEY=VALUE``."""

    name = "KEY=VALUE"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        """The pair."""
        key, equals, text = str(value).partition("=")
        if not equals or not key:
            self.fail(f"{value!r}: write KEY=VALUE, such as version=3", param, ctx)
        return key, text


OPTIONS: tuple[click.Parameter, ...] = (
    click.Argument(["app"], metavar="APP"),
    click.Option(["--service"], required=True, help="The service's name in the mesh."),
    click.Option(
        ["--wait"],
        type=Wait(),
        default="30",
        show_default=True,
        help="How long to wait for the Consul agent; 0 serves at once, refusing until it answers.",
    ),
    click.Option(["--advertise"], help="Address for the catalogue, if not the bind address."),
    click.Option(["--no-register"], is_flag=True, help="Leave the registration to somebody else."),
    click.Option(["--tag", "tags"], multiple=True, help="Tag for the catalogue (repeatable)."),
    click.Option(
        ["--meta"], type=KeyValue(), multiple=True, help="Meta data for the catalogue (repeatable)."
    ),
    click.Option(
        ["--ops-port"],
        type=click.IntRange(0, 65535),
        help="Port of the plaintext operations listener: /health, /metrics, /status.",
    ),
    click.Option(
        ["--ops-host"], default="127.0.0.1", show_default=True, help="Address of that listener."
    ),
    click.Option(
        ["--grace"],
        type=click.FloatRange(0, 3600),
        default=GRACE_SECONDS,
        show_default=True,
        help="Seconds between the check going critical and the listeners closing.",
    ),
    # Without a variable in the environment: who turns enforcement off must have written it down.
    click.Option(
        ["--enforcement"],
        type=click.Choice([str(mode) for mode in EnforcementMode]),
        help="audit: log and count what the intentions refuse, and pass it on.  "
        "[default: what the application's own MeshMiddleware says, else enforce]",
    ),
    click.Option(
        ["--debug-headers"],
        is_flag=True,
        help="Say the reason in a response header of what audit passes on.",
    ),
    click.Option(
        ["--revoked-drain"],
        type=click.FloatRange(0, 86400),
        help="Seconds for which an open HTTP request may go on once it is refused.  "
        "[default: what the application's own MeshMiddleware says, else 0]",
    ),
    click.Option(
        ["--wsgi-threads"],
        type=click.IntRange(1, 1000),
        default=WSGI_THREADS,
        show_default=True,
        help="Requests of a WSGI application (Flask, Django) at a time, in each worker.",
    ),
    click.Option(
        ["--timeout-handshake"],
        type=click.FloatRange(0, 3600, min_open=True),
        default=HANDSHAKE_SECONDS,
        show_default=True,
        help="Seconds that a TLS handshake may take.",
    ),
    click.Option(["--dev"], is_flag=True, help="Run a development agent in this process."),
    click.Option(
        ["--dev-intentions"],
        type=click.Path(exists=True, dir_okay=False),
        multiple=True,
        help="Intentions for --dev: JSON or YAML, read again when the file changes (repeatable).",
    ),
)


def _quiet_dev_agent() -> None:
    """Keep the embedded agent's own requests out of the application's log."""

    def of_the_service(record: logging.LogRecord) -> bool:
        return record.threadName != "mesh-dev-agent" or record.levelno > logging.INFO

    for name in ("uvicorn.access", "uvicorn.error"):
        logging.getLogger(name).addFilter(of_the_service)


def _run(
    *,
    app: str,
    service: str,
    wait: float | None,
    advertise: str | None,
    no_register: bool,
    tags: tuple[str, ...],
    meta: tuple[tuple[str, str], ...],
    ops_port: int | None,
    ops_host: str,
    grace: float,
    enforcement: str | None,
    debug_headers: bool,
    revoked_drain: float | None,
    wsgi_threads: int,
    timeout_handshake: float,
    dev: bool,
    dev_intentions: tuple[str, ...],
    **uvicorn_options: Any,
) -> None:
    if dev_intentions and not dev:
        raise click.UsageError("--dev-intentions needs --dev.")
    options = from_command_line(uvicorn_options)
    if options.get("uds") and not no_register:
        raise click.UsageError("--uds: Consul cannot list a unix socket; add --no-register.")
    try:
        with ExitStack() as stack:
            config = None
            if dev:
                _quiet_dev_agent()
                agent = stack.enter_context(DevAgent(intentions=dev_intentions))
                click.echo(
                    f"DEVELOPMENT ONLY: embedded agent on {agent.address}\n"
                    "To call the service from another terminal:\n"
                    f"  export CONSUL_HTTP_ADDR={agent.address}",
                    err=True,
                )
                if not dev_intentions:
                    click.echo("No --dev-intentions: every call will be refused.", err=True)
                config = MeshConfig(service, address=agent.address)
            code = serve(
                app,
                service=service,
                config=config,
                wait=wait,
                register=not no_register,
                advertise=advertise,
                tags=tags,
                meta=dict(meta),
                ops_host=ops_host,
                ops_port=ops_port,
                grace=grace,
                suggest=dev,
                enforcement=enforcement,
                debug_headers=debug_headers or None,
                drain_seconds=revoked_drain,
                wsgi_threads=wsgi_threads,
                timeout_handshake=timeout_handshake,
                **options,
            )
    except ConfigError as error:
        raise click.UsageError(str(error)) from error
    raise SystemExit(ExitCode(code))


run = click.Command(
    "run",
    params=[*OPTIONS, *uvicorn_params()],
    callback=_run,
    short_help="Serve an application on the mesh.",
    help=cleandoc("""
        Serve APP (module:attribute) as a service of the mesh: mTLS with certificates from the
        Consul agent, every request decided by the agent's intentions.

        The agent is found as Consul's own tools find it (CONSUL_HTTP_ADDR, CONSUL_HTTP_TOKEN, ...).
        Options after --dev-intentions are uvicorn's own.
    """)
    + f"\n\n{EXIT_CODES}",
)

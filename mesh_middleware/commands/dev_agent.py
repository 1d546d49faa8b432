"""``mesh-middleware dev-agent``: a Consul agent small enough for a laptop."""

from __future__ import annotations

import logging
import signal
import threading

import click

from mesh_middleware.devagent import DevAgent
from mesh_middleware.errors import ConfigError

FIRST_LINE = "FOR DEVELOPMENT ONLY: no access control, keys in memory, loopback addresses only."


@click.command("dev-agent")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8500, show_default=True, help="0: any free."
)
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="A loopback address; no other is taken."
)
@click.option(
    "--intentions",
    type=click.Path(exists=True, dir_okay=False),
    multiple=True,
    help="JSON or YAML file of intentions, of one service or several, read again when it changes "
    "(repeatable).",
)
@click.option(
    "--default",
    "default_action",
    type=click.Choice(["allow", "deny"]),
    default="deny",
    show_default=True,
    help="What happens where no intention matches.",
)
def dev_agent(port: int, host: str, intentions: tuple[str, ...], default_action: str) -> None:
    """Run a Consul agent for development: certificates, intentions, registration, rotation.

    It speaks Consul's HTTP API: point CONSUL_HTTP_ADDR to it, write intentions with
    `consul intention create` or PUT /v1/config.
    """
    click.echo(FIRST_LINE)
    # what is read from the files, and what cannot be
    logging.basicConfig(format="%(message)s")
    logging.getLogger("mesh_middleware.devagent").setLevel(logging.INFO)
    stopping = threading.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: stopping.set())
    try:
        agent = DevAgent(port, host=host, intentions=intentions, default_action=default_action)
        with agent:
            click.echo(f"CONSUL_HTTP_ADDR={agent.address}")
            click.echo(f"trust domain {agent.ca.trust_domain}, default {default_action}")
            stopping.wait()
    except ConfigError as error:
        taken = isinstance(error.__cause__, OSError)
        raise click.ClickException(str(error)) if taken else click.UsageError(str(error)) from None

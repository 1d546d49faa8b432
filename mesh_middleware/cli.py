"""The ``mesh-middleware`` command: finds the subcommand. No logic."""

from __future__ import annotations

from importlib import import_module
from types import MappingProxyType

import click

COMMANDS = MappingProxyType(
    {
        "run": "run:run",
        "call": "call:call",
        "check": "check:check",
        "explain": "check:explain",
        "lint": "lint:lint_command",
        "doctor": "doctor:doctor",
        "dev-agent": "dev_agent:dev_agent",
    }
)
"""Subcommand -> ``module:attribute`` below `mesh_middleware.commands`, in the order of the help."""


class Commands(click.Group):
    """Imports a subcommand's module when it is used: `check` needs no web server."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """The names, in the order of `COMMANDS`."""
        return list(COMMANDS)

    def get_command(
        self,
        ctx: click.Context,  # noqa: ARG002 - click's signature
        cmd_name: str,
    ) -> click.Command | None:
        """The command, imported now."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name].split(":")
        found: click.Command = getattr(
            import_module(f"mesh_middleware.commands.{module}"), attribute
        )
        return found


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mesh-middleware", prog_name="mesh-middleware")
def main() -> None:
    """Consul service mesh for Python services: mTLS and intentions without a sidecar."""

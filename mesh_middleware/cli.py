"""The ``mesh-middleware`` command: reads options, calls the package, prints. No logic."""

from __future__ import annotations

import click

from mesh_middleware.commands.call import call
from mesh_middleware.commands.check import check, explain
from mesh_middleware.commands.dev_agent import dev_agent
from mesh_middleware.commands.run import run


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mesh-middleware", prog_name="mesh-middleware")
def main() -> None:
    """Consul service mesh for Python services: mTLS and intentions without a sidecar."""


for _command in (run, call, check, explain, dev_agent):
    main.add_command(_command)

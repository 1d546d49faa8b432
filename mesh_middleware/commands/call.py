"""``mesh-middleware call``: one request as a service of the mesh, as curl would make it."""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path

import click

from mesh_middleware._text import one_line
from mesh_middleware.config import MeshConfig
from mesh_middleware.consul.failures import explain
from mesh_middleware.errors import ConfigError, ConsulError, MeshError
from mesh_middleware.server.exits import ExitCode
from mesh_middleware.upstream.oneshot import Call, Reply, call_once

FORM = "application/x-www-form-urlencoded"
JSON = "application/json"


@click.command(short_help="Make one request as a service of the mesh.")
@click.argument("url")
@click.option("--as", "service", required=True, help="The service to call as.")
@click.option("--expect", help="The service that must answer: its name, or a SPIFFE ID.")
@click.option("--connect-to", metavar="HOST:PORT", help="Where to connect, whatever the URL says.")
@click.option("-X", "--request", "method", help="The method; default GET, or POST with a body.")
@click.option("-H", "--header", "headers", multiple=True, help="'Name: value' (repeatable).")
@click.option("-d", "--data", help="The body; @FILE reads a file, @- standard input.")
@click.option("--json", "json_data", help="As -d, with 'Content-Type: application/json'.")
@click.option("-i", "--include", is_flag=True, help="Print status and headers before the body.")
@click.option("--fail", is_flag=True, help="Exit 1 on a status of 400 or more.")
@click.option(
    "--max-time", type=click.FloatRange(0.1, 3600), default=30.0, show_default=True, help="Seconds."
)
def call(
    *,
    url: str,
    service: str,
    expect: str | None,
    connect_to: str | None,
    method: str | None,
    headers: tuple[str, ...],
    data: str | None,
    json_data: str | None,
    include: bool,
    fail: bool,
    max_time: float,
) -> None:
    """Make one request to URL with a certificate of a service, from the Consul agent.

    The server must prove to be a service of the mesh: the one of --expect, the one that a URL such
    as https://web.service.consul/ names (it is then found in the catalogue), or, without either,
    any; its identity is printed on standard error.

    \b
      mesh-middleware call --as api https://127.0.0.1:8443/hello --expect web
      mesh-middleware call --as api https://web/hello
      mesh-middleware call --as api https://web.service.dc2.consul/hello

    Exit codes: 0 for any HTTP answer (1 with --fail and a status of 400 or more); 1 no answer, or
    another server; 2 wrong option; 4 agent unreachable; 5 refused by its ACLs.
    """
    # what the TLS hook logs is in the error, too
    logging.getLogger("mesh_middleware").addHandler(logging.NullHandler())
    try:
        config = MeshConfig.from_env(service)
        body, kind = _body(data, json_data)
        request = Call(
            url,
            method=method or ("GET" if body is None else "POST"),
            headers=_headers(headers, kind),
            body=body,
            expect=expect,
            connect_to=None if connect_to is None else _host_port(connect_to),
            timeout_seconds=max_time,
        )
    except ConfigError as error:
        raise click.UsageError(str(error)) from error
    try:
        reply = asyncio.run(call_once(config, request))
    except ConfigError as error:
        raise click.UsageError(str(error)) from error
    except MeshError as error:
        click.echo(f"Error: {_advised(error, config)}", err=True)
        raise SystemExit(_code(error)) from error
    _print(reply, include=include, name_server=expect is None and request.upstream is None)
    raise SystemExit(ExitCode.RUNTIME if fail and reply.status >= 400 else ExitCode.OK)


_NO_AGENT = (
    "no Consul agent answers at {}: start one (mesh-middleware dev-agent, or Consul), or set "
    "CONSUL_HTTP_ADDR to where the called service's agent is."
)


def _advised(error: MeshError, config: MeshConfig) -> str:
    """What happened and what to do."""
    code, agent = _code(error), config.address
    if code is ExitCode.AGENT_UNREACHABLE:
        return f"{_NO_AGENT.format(agent)}\n{error}"
    if code is ExitCode.ACL:
        return f"the agent at {agent} refuses: {explain(error, 'leaf', config)}"
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return f"{error}\nIs {agent} the agent of the called service, too? See CONSUL_HTTP_ADDR."
    return str(error)


def _code(error: MeshError) -> ExitCode:
    if isinstance(error, ConsulError):
        if error.status is None:
            return ExitCode.AGENT_UNREACHABLE
        if error.status in (401, 403):
            return ExitCode.ACL
    return ExitCode.RUNTIME


def _body(data: str | None, json_data: str | None) -> tuple[bytes | None, str]:
    """What to send, and its media type unless a header says another; None and nothing: no body."""
    if data is not None and json_data is not None:
        raise ConfigError("-d and --json are both the body; give one")
    if json_data is not None:
        return _read("--json", json_data), JSON
    return (None, "") if data is None else (_read("-d", data), FORM)


def _read(option: str, text: str) -> bytes:
    if text == "@-":
        return sys.stdin.buffer.read()
    if text.startswith("@"):
        try:
            return Path(text[1:]).read_bytes()
        except OSError as error:
            raise ConfigError(f"{option} {text}: {error.strerror}") from error
    return text.encode("utf-8")


def _headers(lines: tuple[str, ...], kind: str) -> tuple[tuple[str, str], ...]:
    headers = []
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name.strip():
            raise ConfigError(f"-H {line!r}: write 'Name: value'")
        headers.append((name.strip(), value.strip()))
    if kind and not any(name.lower() == "content-type" for name, _ in headers):
        headers.append(("content-type", kind))
    return tuple(headers)


def _host_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"--connect-to {text}: write HOST:PORT, such as 127.0.0.1:8443")
    return host.strip("[]"), int(port)


def _print(reply: Reply, *, include: bool, name_server: bool) -> None:
    if name_server:
        click.echo(f"answered by {reply.server}", err=True)
    if include:
        click.echo(one_line(f"{reply.http_version} {reply.status} {reply.reason}".rstrip()))
        for name, value in reply.headers:
            click.echo(one_line(f"{name}: {value}"))
        click.echo()
    sys.stdout.flush()
    sys.stdout.buffer.write(reply.body)
    sys.stdout.buffer.flush()

"""``mesh-middleware doctor``: whether a service can join the mesh from here, and if not, why.

Each check is a function that turns what was learnt into findings; the table `CHECKS` has their
order. Nothing is registered, and no port is opened.
"""

from __future__ import annotations

import concurrent.futures
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum

import click

from mesh_middleware._text import one_line
from mesh_middleware.config import MeshConfig
from mesh_middleware.consul.decode_health import Health, Instance, decode_health
from mesh_middleware.consul.failures import Failure, FailureKind, rejected, together
from mesh_middleware.consul.manager import MeshManager
from mesh_middleware.errors import ConfigError, MeshError, NotReadyError
from mesh_middleware.policy.lint import Severity, lint
from mesh_middleware.policy.request import DEFAULT_NORMALIZATION, Normalization
from mesh_middleware.server.exits import ExitCode
from mesh_middleware.server.readiness import failure_code
from mesh_middleware.state import PARTS, MeshState

SKEW_SECONDS = 5.0
"""A new root is not backdated: a clock that is behind by more refuses it for so long."""

AGENT_CONNECTIONS = 200
"""What an agent takes from one address (Consul: ``limits.http_max_conns_per_client``)."""

WATCHED = 4
"""Connections to the agent that each process holds; one more where rules ask for tokens, and one
that is idle now and then."""

_ASK_SECONDS = 10.0
_NO_ANSWER = (MeshError, TimeoutError, concurrent.futures.CancelledError, ValueError)


class Level(StrEnum):
    """How bad a finding is. Only the last makes the command fail."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


_COLOURS = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "red"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, how it is, and what to do where that is not well."""

    level: Level
    subject: str
    text: str


@dataclass(frozen=True, slots=True)
class Seen:
    """What was learnt. `skew`: seconds by which the agent's clock is ahead of ours, if known.

    `instances`: of the service, in the catalogue; None when that cannot be read.
    """

    config: MeshConfig
    state: MeshState
    errors: Mapping[str, Failure]
    unreachable: str = ""
    skew: float | None = None
    instances: Sequence[Instance] | None = None
    processes: int = 1


def _agent(seen: Seen) -> Iterator[Finding]:
    if seen.unreachable:
        yield Finding(Level.FAIL, "agent", seen.unreachable)
    elif seen.skew is not None and abs(seen.skew) > SKEW_SECONDS:
        side = "behind" if seen.skew > 0 else "ahead of"
        yield Finding(
            Level.WARN,
            "agent",
            f"our clock is {abs(seen.skew):.0f} s {side} that of {seen.config.address}, so that "
            "certificates may seem to be of another time; set this machine's clock",
        )
    else:
        yield Finding(Level.OK, "agent", seen.config.address)


def _parts(seen: Seen) -> Iterator[Finding]:
    """What is missing, and what is there but fails now; parts with one cause on one line."""
    if seen.unreachable:
        return
    missing = seen.state.missing()
    why = {part: seen.errors.get(part) or seen.errors.get(rejected(part)) for part in PARTS}
    silent = [part for part in missing if why[part] is None]
    failing = {part: failure for part, failure in why.items() if failure is not None}
    lost = {part: failure for part, failure in failing.items() if part in missing}
    kept = {part: failure for part, failure in failing.items() if part not in missing}
    if silent:
        yield Finding(Level.FAIL, ", ".join(silent), "no answer from the agent yet")
    for level, failures in ((Level.FAIL, lost), (Level.WARN, kept)):
        for names, failure in together(failures):
            yield Finding(level, names, failure)


def _identity(seen: Seen) -> Iterator[Finding]:
    bundle, svid = seen.state.bundle, seen.state.svid
    if bundle is not None:
        yield Finding(
            Level.OK, "roots", f"{len(bundle.fingerprints)} of trust domain {bundle.trust_domain}"
        )
    if svid is not None and "leaf" not in seen.state.missing():
        until = datetime.fromtimestamp(svid.not_after, UTC)
        yield Finding(Level.OK, "leaf", f"{svid.identity} until {until:%Y-%m-%d %H:%M} UTC")


def _policy(seen: Seen) -> Iterator[Finding]:
    policy = seen.state.policy
    if policy is None:
        return
    rows = len(policy.intentions)
    yield Finding(Level.OK, "intentions", f"{rows} for this service, revision {policy.revision}")
    if not rows:
        fate = "allowed" if policy.default_action == "allow" else "refused"
        yield Finding(Level.WARN, "intentions", f"there are none: every caller is {fate}")
    for problem in policy.problems:
        yield Finding(Level.WARN, "intentions", problem)
    found = lint(policy.intentions, default_action=policy.default_action)
    for finding in found:
        if finding.severity is Severity.WARNING:
            yield Finding(Level.WARN, "intentions", str(finding))
    yield Finding(Level.OK, "default action", str(policy.default_action))
    yield Finding(Level.OK, "mesh entry", _settings(policy.normalization))


def _settings(normalization: Normalization) -> str:
    """What differs from Consul's defaults."""
    different = [
        f"{item.name}: {getattr(normalization, item.name)}"
        for item in fields(normalization)
        if getattr(normalization, item.name) != getattr(DEFAULT_NORMALIZATION, item.name)
    ]
    return ", ".join(different) or "Consul's defaults"


def _catalogue(seen: Seen) -> Iterator[Finding]:
    if seen.instances is None:
        return
    passing = sum(instance.health is Health.PASSING for instance in seen.instances)
    yield Finding(Level.OK, "catalogue", f"passing instances: {passing} of {len(seen.instances)}")


def _connections(seen: Seen) -> Iterator[Finding]:
    policy = seen.state.policy
    each = WATCHED + (policy is not None and policy.needs_tokens)
    held = each * seen.processes + 1
    text = (
        f"{held} for {seen.processes} processes; an agent takes {AGENT_CONNECTIONS} from one "
        "address unless its http_max_conns_per_client says otherwise"
    )
    near = held > AGENT_CONNECTIONS * 3 / 4
    yield Finding(Level.WARN if near else Level.OK, "connections", text)


CHECKS: tuple[Callable[[Seen], Iterator[Finding]], ...] = (
    _agent,
    _parts,
    _identity,
    _policy,
    _catalogue,
    _connections,
)


def examine(seen: Seen) -> list[Finding]:
    """Every finding, in the order of `CHECKS`; when the agent is not there, only that."""
    checks = CHECKS[:1] if seen.unreachable else CHECKS
    return [finding for check in checks for finding in check(seen)]


def look(manager: MeshManager, wait_seconds: float, processes: int) -> Seen:
    """What `manager`, which was started, learns within `wait_seconds`."""
    with suppress(NotReadyError):
        manager.wait_ready(wait_seconds)
    errors, kind = manager.last_errors, manager.last_failure_kind
    gone = [str(error) for error in errors.values() if error.kind is FailureKind.UNREACHABLE]
    nothing = kind is FailureKind.UNREACHABLE and manager.state.bundle is None
    return Seen(
        manager.config,
        manager.state,
        errors,
        gone[0] if nothing else "",
        None if nothing else _skew(manager),
        None if nothing else _instances(manager),
        processes,
    )


def _skew(manager: MeshManager) -> float | None:
    with suppress(*_NO_ANSWER):
        answer = manager.run_coroutine(manager.client.roots()).result(_ASK_SECONDS)
        return parsedate_to_datetime(answer.headers.get("date", "")).timestamp() - time.time()
    return None


def _instances(manager: MeshManager) -> Sequence[Instance] | None:
    with suppress(*_NO_ANSWER):
        asked = manager.client.health_connect(manager.config.service, passing=False)
        return decode_health(manager.run_coroutine(asked).result(_ASK_SECONDS).json)
    return None


@click.command(short_help="Say whether a service can join the mesh from here.")
@click.option("--service", required=True, help="The service's name in the mesh.")
@click.option(
    "--wait",
    type=click.FloatRange(0.1, 600),
    default=10.0,
    show_default=True,
    help="Seconds to wait for the agent.",
)
@click.option(
    "--processes",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="How many processes of services on this machine will ask the agent.",
)
def doctor(*, service: str, wait: float, processes: int) -> None:
    """Ask the Consul agent for all that a service needs, and say what is missing and what to do.

    The agent is found as `run` finds it (CONSUL_HTTP_ADDR, CONSUL_HTTP_TOKEN, ...). Nothing is
    registered or changed.

    Exit codes: 0 nothing is missing; 1 something is; 2 wrong option or setting; 4 agent
    unreachable; 5 refused by its ACLs.
    """
    # what the manager logs is among the findings, too
    logging.getLogger("mesh_middleware").addHandler(logging.NullHandler())
    try:
        with MeshManager(MeshConfig.from_env(service)) as manager:
            found = examine(look(manager, wait, processes))
            code = failure_code(manager)
    except ConfigError as error:
        raise click.UsageError(str(error)) from error
    width = max(len(finding.subject) for finding in found)
    for finding in found:
        level = click.style(f"{finding.level:4}", fg=_COLOURS[finding.level])
        click.echo(f"{level}  {finding.subject:{width}}  {one_line(finding.text)}")
    failed = any(finding.level is Level.FAIL for finding in found)
    raise SystemExit(code if failed else ExitCode.OK)

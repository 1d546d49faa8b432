"""What went wrong with a part of the state, why, and what to do: texts and when to log them."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Self

from mesh_middleware._text import gist, one_line
from mesh_middleware.config import MeshConfig
from mesh_middleware.errors import ConsulError

logger = logging.getLogger("mesh_middleware.consul")


class FailureKind(StrEnum):
    """What a caller would do differently."""

    UNREACHABLE = "unreachable"
    ACL = "acl"
    OTHER = "other"


class Failure(str):
    """One line that says what, why and what to do; `status` is that of a `ConsulError`, else 0.

    `condition`: what stays the same while only the words differ (a time, a request's number).
    `subject`: what fails, when that is not just the part that was asked for: ``agent`` for one
    that cannot be reached, ``token`` for one that the agent does not know.
    """

    __slots__ = ("condition", "kind", "status", "subject")
    kind: FailureKind
    status: int | None
    condition: str
    subject: str

    @classmethod
    def of(
        cls,
        text: str,
        kind: FailureKind,
        status: int | None = 0,
        *,
        condition: str | None = None,
        subject: str = "",
    ) -> Self:
        """A failure with its text and kind. `condition` None: the text without its numbers."""
        self = cls(text)
        self.kind, self.status, self.subject = kind, status, subject
        self.condition = re.sub("[0-9]+", "#", text) if condition is None else condition
        return self


_NEED_RIGHTS = frozenset(
    {"leaf", "intentions", "default action", "jwt providers", "registration", "health check"}
)
"""What the agent gives to the token of the service only; the rest it gives to everybody."""

_RULE = 'service "{service}" {{ policy = "write" }} (and no intentions = "deny")'
"""Enough for all of `_NEED_RIGHTS` (Consul, ACL rules: each needs that, or something less)."""

_REFUSED = frozenset({401, 403})

_STAYS = "the last state stays"
_KEPT: Mapping[str, str] = {
    "intentions": "everything is refused",
    "mesh entry": "everything is refused",
    "jwt providers": "rules that need tokens refuse",
}


def explain(error: Exception, part: str, config: MeshConfig) -> Failure:
    """The failure that `error` means for `part` of the state."""
    if not isinstance(error, ConsulError):
        return Failure.of(
            f"the answer of {config.address} cannot be used: {error}; {_KEPT.get(part, _STAYS)} "
            "until a good one comes; check that this is a Consul agent and nothing is in between",
            FailureKind.OTHER,
            condition=f"undecodable {getattr(error, 'field', '')}",
        )
    if error.status is None:
        return Failure.of(
            f"no answer from the Consul agent at {config.address} ({error}); start the agent, or "
            "set CONSUL_HTTP_ADDR to where it is",
            FailureKind.UNREACHABLE,
            None,
            condition="",
            subject="agent",
        )
    refused = error.status in _REFUSED
    kind = FailureKind.ACL if refused else FailureKind.OTHER
    advice = _refusal(error, part, config) if refused else _advice(error, config)
    text = f"status {error.status}: {gist(error.body)}; {advice}"
    subject = "token" if refused and _unknown_token(error) else ""
    return Failure.of(text, kind, error.status, condition=advice, subject=subject)


def _unknown_token(error: ConsulError) -> bool:
    return "acl not found" in error.body.lower()


def _refusal(error: ConsulError, part: str, config: MeshConfig) -> str:
    if _unknown_token(error):
        if config.token_file:
            return (
                f"the agent does not know the token; put a valid one into {config.token_file} "
                "(CONSUL_HTTP_TOKEN_FILE), which is read again when it changes"
            )
        return (
            "the agent does not know the token; set CONSUL_HTTP_TOKEN or "
            "CONSUL_HTTP_TOKEN_FILE to a valid one"
        )
    if part not in _NEED_RIGHTS:
        return "the agent gives this to everybody: check the token, and what is in between"
    rule = _RULE.format(service=config.service)
    if config.token or config.token_file:
        return f"the token needs a service identity for {config.service!r}, or the rule {rule}"
    return (
        "no token was sent; set CONSUL_HTTP_TOKEN or CONSUL_HTTP_TOKEN_FILE to one with a service "
        f"identity for {config.service!r}, or the rule {rule}"
    )


def _advice(error: ConsulError, config: MeshConfig) -> str:
    if "connect must be enabled" in error.body.lower():
        return "enable the service mesh on the Consul servers: connect { enabled = true }"
    if error.status == 404:
        return f"check that {config.address} is a Consul agent with service mesh"
    if error.status == 429:
        return "the agent limits requests; it is asked again"
    if (error.status or 0) >= 500:
        return "check the Consul servers (consul members, consul operator raft list-peers)"
    return "check the settings and the version of the agent"


def rejected(part: str) -> str:
    """The name under which a `part` stands that was read but does not fit the others."""
    return f"{part} (rejected)"


def together(failures: Mapping[str, Failure]) -> list[tuple[str, Failure]]:
    """Each cause once: the parts that fail for it, such as ``leaf, intentions``, and one failure.

    What the agent's ACLs refuse has one cause where one change of the token mends it.
    """
    causes: dict[str, tuple[list[str], Failure]] = {}
    for part, failure in failures.items():
        cause = failure if failure.kind is FailureKind.OTHER else failure.condition
        causes.setdefault(f"{failure.kind} {cause}", ([], failure))[0].append(part)
    return [(", ".join(parts), failure) for parts, failure in causes.values()]


class Failures:
    """The failures of now, by part; logs each change of condition once.

    `current` can be read from any thread: it is replaced, never changed, and only after the change
    was logged, so that who sees it finds the line. What has a `subject` is one condition, whatever
    the number of parts that meet it.
    """

    def __init__(self, config: MeshConfig) -> None:
        self._config = config
        self.current: Mapping[str, Failure] = MappingProxyType({})

    def set(self, part: str, error: Exception | Failure) -> None:
        """`part` fails now because of `error`."""
        failure = error if isinstance(error, Failure) else explain(error, part, self._config)
        if not self._is_known(part, failure):
            self._log(logging.WARNING, "failed", part, failure)
        self._replace({**self.current, part: failure})

    def _is_known(self, part: str, failure: Failure) -> bool:
        if failure.subject:
            return any(other.subject == failure.subject for other in self.current.values())
        before = self.current.get(part)
        return before is not None and _condition(before) == _condition(failure)

    def clear(self, part: str) -> bool:
        """`part` is well; True when it was not before."""
        before = self.current.get(part)
        if before is None:
            return False
        rest = {key: value for key, value in self.current.items() if key != part}
        if not before.subject or all(other.subject != before.subject for other in rest.values()):
            self._log(logging.INFO, "recovered", part, before)
        self._replace(rest)
        return True

    def words(self, parts: tuple[str, ...]) -> str:
        """Why each of `parts` is missing, those with one cause together."""
        current = self.current
        away = next((f for f in current.values() if f.kind is FailureKind.UNREACHABLE), None)
        silent = away or Failure.of(
            f"no answer yet from the Consul agent at {self._config.address}", FailureKind.OTHER
        )
        why = {part: current.get(part) or current.get(rejected(part)) or silent for part in parts}
        return "; ".join(f"{names}: {failure}" for names, failure in together(why))

    def _replace(self, failures: dict[str, Failure]) -> None:
        self.current = MappingProxyType(failures)

    def _log(self, level: int, event: str, part: str, failure: Failure) -> None:
        service, what = self._config.service, failure.subject or part
        text = f"{service}: {what}: {failure if event == 'failed' else 'well again'}"
        logger.log(
            level,
            "%s",
            one_line(text),
            extra={
                "mesh_event": event,
                "mesh_service": service,
                "mesh_part": what,
                "mesh_failure_kind": str(failure.kind),
                "mesh_status": failure.status,
            },
        )


def _condition(failure: Failure) -> tuple[FailureKind, str]:
    return failure.kind, failure.condition

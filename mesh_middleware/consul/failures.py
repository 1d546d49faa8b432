"""What went wrong with a part of the state, why, and what to do: texts and when to log them."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Self

from mesh_middleware._text import one_line
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
    """

    __slots__ = ("condition", "kind", "status")
    kind: FailureKind
    status: int | None
    condition: str

    @classmethod
    def of(
        cls, text: str, kind: FailureKind, status: int | None = 0, condition: str | None = None
    ) -> Self:
        """A failure with its text and kind. `condition` None: the text without its numbers."""
        self = cls(text)
        self.kind, self.status = kind, status
        self.condition = re.sub("[0-9]+", "#", text) if condition is None else condition
        return self


_RULES: Mapping[str, str] = {
    "leaf": 'service "{service}" {{ policy = "write" }}',
    "intentions": 'service "{service}" {{ policy = "read" }} (and no intentions = "deny")',
    "default action": 'service "{service}" {{ policy = "write" }} (and no intentions = "deny")',
    "jwt providers": 'mesh = "read"',
    "registration": 'service "{service}" {{ policy = "write" }}',
}


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
        )
    kind = FailureKind.ACL if error.status in {401, 403} else FailureKind.OTHER
    advice = _advice(error, part, config)
    return Failure.of(f"{error}; {advice}", kind, error.status, condition=advice)


def _advice(error: ConsulError, part: str, config: MeshConfig) -> str:
    if error.status in {401, 403}:
        if "acl not found" in error.body.lower():
            return (
                "the agent does not know the token; set CONSUL_HTTP_TOKEN or "
                "CONSUL_HTTP_TOKEN_FILE to a valid one"
            )
        if part not in _RULES:
            return "the agent gives this to everybody: check the token, and what is in between"
        rule = _RULES[part].format(service=config.service)
        sent = "the token needs" if config.token or config.token_file else "no token was sent; use"
        return f"{sent} a service identity for {config.service!r}, or the rule {rule}"
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


class Failures:
    """The failures of now, by part; logs each change of condition once.

    `current` can be read from any thread: it is replaced, never changed, and only after the change
    was logged, so that who sees it finds the line. An agent that cannot be
    reached is one condition, whatever the number of parts that ask it.
    """

    def __init__(self, config: MeshConfig) -> None:
        self._config = config
        self.current: Mapping[str, Failure] = MappingProxyType({})

    def set(self, part: str, error: Exception | Failure) -> None:
        """`part` fails now because of `error`."""
        failure = error if isinstance(error, Failure) else explain(error, part, self._config)
        before = self.current.get(part)
        known = _condition(failure) in map(_condition, self._others(part))
        if failure.kind is FailureKind.UNREACHABLE:
            known = known or (before is not None and before.kind is FailureKind.UNREACHABLE)
        else:
            known = before is not None and _condition(before) == _condition(failure)
        if not known:
            self._log(logging.WARNING, "failed", part, failure)
        self._replace({**self.current, part: failure})

    def clear(self, part: str) -> bool:
        """`part` is well; True when it was not before."""
        before = self.current.get(part)
        if before is None:
            return False
        unreachable = FailureKind.UNREACHABLE
        if before.kind is not unreachable or not any(
            other.kind is unreachable for other in self._others(part)
        ):
            self._log(logging.INFO, "recovered", part, before)
        self._replace({key: value for key, value in self.current.items() if key != part})
        return True

    def words(self, parts: tuple[str, ...]) -> str:
        """Why each of `parts` is missing, those with one cause together."""
        causes: dict[str, list[str]] = {}
        failures = self.current.values()
        unreachable = [f for f in failures if f.kind is FailureKind.UNREACHABLE]
        for part in parts:
            text: str | None = self.current.get(part) or self.current.get(rejected(part))
            if text is None or text in unreachable:
                waiting = f"no answer yet from the Consul agent at {self._config.address}"
                text = unreachable[0] if unreachable else waiting
            causes.setdefault(str(text), []).append(part)
        return "; ".join(f"{', '.join(names)}: {text}" for text, names in causes.items())

    def _others(self, part: str) -> list[Failure]:
        return [failure for key, failure in self.current.items() if key != part]

    def _replace(self, failures: dict[str, Failure]) -> None:
        self.current = MappingProxyType(failures)

    def _log(self, level: int, event: str, part: str, failure: Failure) -> None:
        service, what = self._config.service, part
        if failure.kind is FailureKind.UNREACHABLE:
            what = "agent"
        if event == "failed":
            text = f"{service}: {what}: {failure}"
        else:
            text = f"{service}: {what}: well again"
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
    unreachable = failure.kind is FailureKind.UNREACHABLE
    return failure.kind, "" if unreachable else failure.condition

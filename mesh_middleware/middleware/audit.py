"""Audit: what the rules would refuse is said, counted and passed on, so that a team can roll out.

Only the rules are in audit. Who is calling stays proven, what is malformed stays refused, and where
nobody can decide nothing passes:

1. The reason is one of `AUDITED`: an intention, the default, a token, an ambiguous path.
2. There is a proven caller.
3. The mesh state has no fault.
4. The whole service is in audit, or an `AuditRule` covers both caller and path.

Audit is an argument in code (of a middleware, else of the manager's `MeshConfig`) or an option on a
command line that somebody can read, never an environment variable.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Final, Self

from mesh_middleware._types import Message, Scope, Send
from mesh_middleware.errors import ConfigError, SpiffeIDError
from mesh_middleware.middleware.peer import decision_of
from mesh_middleware.policy.decision import Decision, Reason
from mesh_middleware.policy.enforcement import AUDITED, EnforcementMode
from mesh_middleware.policy.request import PLAIN_TARGET, HTTPRequest
from mesh_middleware.policy.spiffe import (
    DEFAULT,
    ServiceIdentity,
    SourceKey,
    SpiffeID,
)

AUDIT_HEADER: Final = b"x-mesh-audit"
"""Response header of a request that was passed on against the rules, where debug headers are on;
its value is the reason code."""

_STARTS: Final = ("http.response.start", "websocket.accept")


@dataclass(frozen=True, slots=True)
class AuditRule:
    """A route or a source that is in audit while everything else is enforced.

    `paths`: ``/reports/daily`` is this path alone, ``/reports/*`` what is below it; compared with
    the path as on the wire and, under a root path, with the one that is routed too. A path with
    more than one reading is never covered. `sources`: service names of the default namespace, or
    SPIFFE IDs. Of each, one must match; empty is any. ConfigError for a rule that covers
    everything, or is not written so.
    """

    paths: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    _exact: frozenset[bytes] = field(init=False, repr=False, compare=False)
    _prefixes: tuple[bytes, ...] = field(init=False, repr=False, compare=False)
    _names: frozenset[SourceKey] = field(init=False, repr=False, compare=False)
    _ids: frozenset[tuple[object, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        given: tuple[object, object] = (self.paths, self.sources)
        if any(isinstance(each, str) for each in given):
            raise ConfigError("an AuditRule takes tuples, such as paths=('/reports/*',)")
        if not self.paths and not self.sources:
            raise ConfigError("an AuditRule needs paths or sources; enforcement='audit' is for all")
        plain = [_plain(path) for path in self.paths]
        ids = [_identity(source) for source in self.sources if "/" in source]
        names = [source for source in self.sources if "/" not in source]
        if "" in names or "*" in names:
            raise ConfigError("a source of an AuditRule is a service name or a SPIFFE ID")
        exact = frozenset(path for path in plain if not path.endswith(b"/*"))
        prefixes = tuple(path[:-1] for path in plain if path.endswith(b"/*"))
        set_once = object.__setattr__
        set_once(self, "_exact", exact)
        set_once(self, "_prefixes", prefixes)
        set_once(self, "_names", frozenset(("", DEFAULT, DEFAULT, name) for name in names))
        set_once(self, "_ids", frozenset(_by_id(each) for each in ids))

    def covers(self, caller: ServiceIdentity | SpiffeID, paths: tuple[bytes, ...]) -> bool:
        """Whether a request of `caller` is in audit; `paths`: each way it can be routed."""
        if self.sources and not (
            isinstance(caller, ServiceIdentity)
            and (caller.key in self._names or _by_id(caller) in self._ids)
        ):
            return False
        if not self.paths:
            return True
        return bool(paths) and all(
            path in self._exact or path.startswith(self._prefixes) for path in paths
        )


def _by_id(service: ServiceIdentity) -> tuple[object, ...]:
    """What two SPIFFE IDs of one service have in common: all but the datacenter."""
    return service.trust_domain, service.partition.lower(), service.namespace, service.service


@dataclass(frozen=True, slots=True)
class Audit:
    """What of one service is in audit: everything, or what `rules` cover.

    `mode` None: what the mesh state says, see `under`.
    """

    mode: EnforcementMode | None = None
    rules: tuple[AuditRule, ...] = ()

    @classmethod
    def of(cls, enforcement: str | None, rules: Iterable[AuditRule]) -> Self:
        """Checked; ConfigError for another word than ``enforce`` and ``audit``."""
        given = tuple(rules)
        if not all(isinstance(rule, AuditRule) for rule in given):
            raise ConfigError("audit takes AuditRule values")
        try:
            return cls(None if enforcement is None else EnforcementMode(enforcement), given)
        except ValueError:
            raise ConfigError(f"enforcement {enforcement!r}: write 'enforce' or 'audit'") from None

    def under(self, enforcement: EnforcementMode) -> Self:
        """With the mode of the mesh state, where none was given here."""
        return self if self.mode is not None else replace(self, mode=enforcement)

    def __bool__(self) -> bool:
        """True when anything is in audit."""
        return self.mode is EnforcementMode.AUDIT or bool(self.rules)

    def __str__(self) -> str:
        if self.mode is EnforcementMode.AUDIT:
            return "AUDIT MODE: requests that intentions refuse are passed on"
        return "AUDIT MODE in part: intentions are not enforced for " + "; ".join(
            " ".join((*rule.paths, *(f"from {source}" for source in rule.sources)))
            for rule in self.rules
        )

    def passes(
        self,
        decision: Decision,
        caller: ServiceIdentity | SpiffeID | None,
        fault: Reason | None,
        requests: Iterable[HTTPRequest],
    ) -> bool:
        """Whether a refused request goes on. `requests`: it, in each way it can be routed."""
        if not self or decision.reason not in AUDITED or caller is None or fault is not None:
            return False
        if self.mode is EnforcementMode.AUDIT:
            return True
        paths = plain_paths(requests)
        return any(rule.covers(caller, paths) for rule in self.rules)


def with_audit_header(scope: Scope, send: Send) -> Send:
    """`send`, adding `AUDIT_HEADER` to the response of a request that rules refuse."""
    decision = decision_of(scope)
    if decision is None or decision.allowed:
        return send
    header = (AUDIT_HEADER, decision.reason.encode("ascii"))

    async def told(message: Message) -> None:
        if message["type"].endswith(_STARTS):
            message = {**message, "headers": [*(message.get("headers") or ()), header]}
        await send(message)

    return told


def plain_paths(requests: Iterable[HTTPRequest]) -> tuple[bytes, ...]:
    """The paths of `requests`; empty when one of them has a path with several readings."""
    paths = []
    for request in requests:
        found = PLAIN_TARGET.fullmatch(request.target)
        if found is None or request.decoded_path not in (None, found[1].decode("ascii")):
            return ()
        paths.append(found[1])
    return tuple(paths)


def _plain(path: str) -> bytes:
    encoded = path.encode("utf-8", "surrogateescape")
    found = PLAIN_TARGET.fullmatch(encoded)
    if found is None or found[1] != encoded or "*" in path.removesuffix("/*"):
        raise ConfigError(
            f"path {path!r} of an AuditRule: write a plain path such as '/reports/daily', "
            "or '/reports/*' for what is below it"
        )
    return encoded


def _identity(source: str) -> ServiceIdentity:
    try:
        return ServiceIdentity.from_string(source)
    except SpiffeIDError as error:
        raise ConfigError(f"source {source!r} of an AuditRule: {error}") from error

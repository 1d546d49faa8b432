"""Consul's intention model as frozen values, in Consul's words.

The values say what a row of ``GET /v1/connect/intentions/match`` says, no more: nothing here
matches or decides. What a row says that this model does not know is kept by name in the
`unknown` fields, because a condition that cannot be evaluated counts against the caller.

Precedence (9 highest) is how exact the destination is (9, 6 or 3), minus how wild the source is
(0, 1 or 2). It orders the rows; partitions and peers do not influence it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from mesh_middleware.policy.spiffe import DEFAULT, SourceKey

WILDCARD = "*"


class Action(StrEnum):
    """What an intention, a permission or the mesh's default says. Any other word is deny."""

    ALLOW = "allow"
    DENY = "deny"


@dataclass(frozen=True, slots=True)
class HeaderMatch:
    """One entry of ``HTTP.Header``: a header's name and exactly one criterion for its value.

    None means that the criterion is not set. `unknown` names the fields not known here.
    """

    name: str
    present: bool = False
    exact: str | None = None
    prefix: str | None = None
    suffix: str | None = None
    contains: str | None = None
    regex: str | None = None
    invert: bool = False
    ignore_case: bool = False
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HTTPMatch:
    """The ``HTTP`` block of a permission; all parts must hold. None or empty: not set."""

    path_exact: str | None = None
    path_prefix: str | None = None
    path_regex: str | None = None
    methods: tuple[str, ...] = ()
    headers: tuple[HeaderMatch, ...] = ()
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ClaimMatch:
    """One ``VerifyClaims`` entry: object keys from the payload's root, and the wanted string."""

    path: tuple[str, ...]
    value: str


@dataclass(frozen=True, slots=True)
class JWTProviderRequirement:
    """A provider by name and the claims its token must carry, all of them."""

    name: str
    claims: tuple[ClaimMatch, ...] = ()


@dataclass(frozen=True, slots=True)
class JWTRequirement:
    """A ``JWT`` block: one of the providers must be satisfied."""

    providers: tuple[JWTProviderRequirement, ...]
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Permission:
    """One entry of ``Permissions``. Without an HTTP block it cannot be evaluated."""

    action: Action
    http: HTTPMatch | None
    jwt: JWTRequirement | None = None
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Intention:
    """One row of the match API: who may call whom, and how.

    With `permissions` (L7) they decide and `action` is not looked at; without them `action` does.
    Names and namespaces may be ``*``; partitions and peers may not. `precedence`: 1 to 9.
    """

    source_name: str
    destination_name: str
    action: Action = Action.DENY
    permissions: tuple[Permission, ...] = ()
    jwt: JWTRequirement | None = None
    source_namespace: str = DEFAULT
    source_partition: str = DEFAULT
    source_peer: str = ""
    source_sameness_group: str = ""
    destination_namespace: str = DEFAULT
    destination_partition: str = DEFAULT
    precedence: int = 0
    description: str = ""
    unknown: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.precedence:
            object.__setattr__(self, "precedence", precedence(self))
        if not 1 <= self.precedence <= 9:
            raise ValueError(f"precedence {self.precedence} is not within 1 to 9")

    @property
    def source_key(self) -> SourceKey:
        """Peer, partition, namespace and name of the source, as callers are looked up."""
        # A peered source has no local partition: the peer's bundle says which one it exports.
        partition = "" if self.source_peer else self.source_partition.lower()
        return (
            self.source_peer,
            partition or DEFAULT,
            self.source_namespace,
            self.source_name,
        )

    @property
    def source(self) -> str:
        """The source as a person would write it, defaults left out."""
        local = name_of(self.source_partition, self.source_namespace, self.source_name)
        if self.source_peer:
            return f"{local} (peer {self.source_peer})"
        if self.source_sameness_group:
            return f"{local} (sameness group {self.source_sameness_group})"
        return local

    @property
    def destination(self) -> str:
        """The destination as a person would write it, defaults left out."""
        return name_of(
            self.destination_partition, self.destination_namespace, self.destination_name
        )

    def __str__(self) -> str:
        return f"{self.source} => {self.destination} (precedence {self.precedence})"


def precedence(intention: Intention) -> int:
    """The precedence that Consul computes for the row, 1 to 9.

    Source: Consul, "intention precedence" table; https://developer.hashicorp.com/consul/docs.
    """
    base = 9 - 3 * _wildness(intention.destination_namespace, intention.destination_name)
    return base - _wildness(intention.source_namespace, intention.source_name)


def in_precedence_order(intentions: Sequence[Intention]) -> list[Intention]:
    """The rows as the match API orders them: precedence falling, ties by name rising."""
    return sorted(
        intentions,
        key=lambda row: (
            -row.precedence,
            row.source_sameness_group,
            row.source_peer,
            row.source_partition,
            row.source_namespace,
            row.source_name,
            row.destination_partition,
            row.destination_namespace,
            row.destination_name,
        ),
    )


def _wildness(namespace: str, name: str) -> int:
    if namespace == WILDCARD:
        return 2
    return 1 if name == WILDCARD else 0


def name_of(partition: str, namespace: str, name: str) -> str:
    """A service as a person would write it: the defaults left out."""
    parts = [name]
    if namespace != DEFAULT or partition != DEFAULT:
        parts.insert(0, namespace)
    if partition != DEFAULT:
        parts.insert(0, partition)
    return "/".join(parts)

"""What a policy answers: one value that says what decided, and why."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Why a request was allowed or refused. The values are stable and documented."""

    # allowed
    INTENTION_ALLOW = "intention_allow"
    PERMISSION_ALLOW = "permission_allow"
    DEFAULT_ALLOW = "default_allow"
    EXEMPT_PATH = "exempt_path"
    # refused by the rules
    INTENTION_DENY = "intention_deny"
    PERMISSION_DENY = "permission_deny"
    DEFAULT_DENY = "default_deny"
    L7_OVER_TCP = "l7_over_tcp"
    UNEVALUABLE = "unevaluable"
    AMBIGUOUS_PATH = "ambiguous_path"
    JWT_MISSING = "jwt_missing"
    JWT_INVALID = "jwt_invalid"
    JWT_CLAIMS = "jwt_claims"
    JWT_PROVIDER_UNKNOWN = "jwt_provider_unknown"
    # refused for who is calling
    NO_IDENTITY = "no_identity"
    INVALID_IDENTITY = "invalid_identity"
    NOT_A_SERVICE = "not_a_service"
    FOREIGN_TRUST_DOMAIN = "foreign_trust_domain"
    CERTIFICATE_EXPIRED = "certificate_expired"
    ROOT_NOT_TRUSTED = "root_not_trusted"
    # refused for what was sent
    MALFORMED_TARGET = "malformed_target"
    MALFORMED_HEADERS = "malformed_headers"
    UNKNOWN_SCOPE = "unknown_scope"
    # refused because nobody can decide
    NO_POLICY = "no_policy"
    POLICY_UNDECODABLE = "policy_undecodable"
    STALE_POLICY = "stale_policy"


@dataclass(frozen=True, slots=True)
class NearMiss:
    """A row that came near to deciding, and the first of its conditions that failed."""

    intention: str
    permission: int | None
    failed: str

    def __str__(self) -> str:
        where = "" if self.permission is None else f" permission {self.permission}"
        return f"{self.intention}{where}: {self.failed}"


@dataclass(frozen=True, slots=True)
class IntentionRef:
    """Which intention decided: names as a person writes them, precedence 1 to 9."""

    source: str
    destination: str
    precedence: int

    def __str__(self) -> str:
        return f"{self.source} => {self.destination} (precedence {self.precedence})"


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a request is allowed, and what decided it.

    `revision` names the policy (empty when there was none). `permission` counts from 0 in the
    intention's list. `reading` names the path reading that decided, or is None when the path has
    only one. `detail` is for operators, never for the peer. `nearest` is filled when the default
    refused: the rows that came nearest, each with the first condition that failed.
    """

    allowed: bool
    reason: Reason
    revision: str = ""
    intention: IntentionRef | None = None
    permission: int | None = None
    reading: str | None = None
    detail: str = ""
    nearest: tuple[NearMiss, ...] = ()

"""One intention, compiled: its matchers, and the decisions it can give, made beforehand."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

from mesh_middleware.policy.decision import Decision, IntentionRef, Reason
from mesh_middleware.policy.intentions import Action, Intention, JWTRequirement, Permission
from mesh_middleware.policy.match import Check, Matcher, compile_http
from mesh_middleware.policy.request import Normalization, Underscores


@dataclass(frozen=True, slots=True)
class CompiledPermission:
    """A permission of a row: `decision` where it matches, `unevaluable` where nobody can tell."""

    index: int
    allow: bool
    matches: Check
    matcher: Matcher
    jwt: JWTRequirement | None
    decision: Decision
    unevaluable: Decision

    def refused(self, reason: Reason) -> Decision:
        """A refusal that this permission gives although it would allow."""
        return replace(self.decision, allowed=False, reason=reason)


@dataclass(frozen=True, slots=True)
class Rule:
    """A row of a policy. `order`: 0 decides first. `static`: what it says of every request.

    `digest` covers the row; it does not depend on the policy around it.
    """

    intention: Intention
    order: int
    digest: bytes
    ref: IntentionRef
    permissions: tuple[CompiledPermission, ...]
    jwt: JWTRequirement | None
    static: Decision | None
    allowed: Decision
    default_allowed: Decision
    default_denied: Decision
    problems: tuple[str, ...]

    @property
    def needs_tokens(self) -> bool:
        """True when deciding by this row may need a token."""
        return self.jwt is not None or any(p.jwt is not None for p in self.permissions)

    def refused(self, reason: Reason, detail: str = "") -> Decision:
        """A refusal that the row gives as a whole."""
        return replace(self.allowed, allowed=False, reason=reason, detail=detail)


def row_digest(row: Intention) -> bytes:
    """A digest of everything in a row that can decide, 32 bytes; its description cannot."""
    deciding = replace(row, description="") if row.description else row
    return hashlib.sha256(repr(deciding).encode("utf-8", "surrogateescape")).digest()


def compile_rule(
    row: Intention,
    order: int,
    revision: str,
    normalization: Normalization,
    previous: Rule | None = None,
) -> Rule:
    """Compile `row`. `previous` is the same row, compiled under the same normalisation."""
    if previous is not None and previous.order == order and previous.allowed.revision == revision:
        return previous
    ref = previous.ref if previous else IntentionRef(row.source, row.destination, row.precedence)
    allowed = Decision(True, Reason.INTENTION_ALLOW, revision, ref)
    permissions = tuple(
        _compile_permission(index, permission, allowed, normalization, previous)
        for index, permission in enumerate(row.permissions)
    )
    return Rule(
        intention=row,
        order=order,
        digest=previous.digest if previous else row_digest(row),
        ref=ref,
        permissions=permissions,
        jwt=row.jwt,
        static=_static(row, allowed),
        allowed=allowed,
        default_allowed=replace(allowed, reason=Reason.DEFAULT_ALLOW),
        default_denied=replace(allowed, allowed=False, reason=Reason.DEFAULT_DENY),
        problems=tuple(_problems(row, ref, permissions)),
    )


def _static(row: Intention, allowed: Decision) -> Decision | None:
    if row.unknown:
        detail = f"the row has conditions that are not known: {', '.join(row.unknown)}"
        return replace(allowed, allowed=False, reason=Reason.UNEVALUABLE, detail=detail)
    if row.permissions:
        return None
    if row.action is not Action.ALLOW:
        return replace(allowed, allowed=False, reason=Reason.INTENTION_DENY)
    return allowed if row.jwt is None else None


def _compile_permission(
    index: int,
    permission: Permission,
    allowed: Decision,
    normalization: Normalization,
    previous: Rule | None,
) -> CompiledPermission:
    if previous is not None:
        matcher = previous.permissions[index].matcher
    else:
        drop = normalization.underscores is Underscores.DROP_HEADER
        matcher = compile_http(permission.http, unknown=permission.unknown, drop_underscores=drop)
    allow = permission.action is Action.ALLOW
    reason = Reason.PERMISSION_ALLOW if allow else Reason.PERMISSION_DENY
    decision = replace(allowed, allowed=allow, reason=reason, permission=index)
    detail = "; ".join(matcher.problems)
    return CompiledPermission(
        index=index,
        allow=allow,
        matches=matcher.matches,
        matcher=matcher,
        jwt=permission.jwt,
        decision=decision,
        unevaluable=replace(decision, allowed=False, reason=Reason.UNEVALUABLE, detail=detail),
    )


def _problems(
    row: Intention, ref: IntentionRef, permissions: tuple[CompiledPermission, ...]
) -> list[str]:
    found = [f"{ref}: {name} is not known, so the row refuses" for name in row.unknown]
    for permission in permissions:
        effect = "never matches" if permission.allow else "refuses whatever else it matches"
        found += [
            f"{ref} permission {permission.index}: {problem}; it {effect}"
            for problem in permission.matcher.problems
        ]
    requirements = [row.jwt, *(permission.jwt for permission in row.permissions)]
    if any(jwt is not None and (jwt.unknown or not jwt.providers) for jwt in requirements):
        found.append(f"{ref}: a JWT requirement cannot be evaluated, so what needs it is refused")
    return found

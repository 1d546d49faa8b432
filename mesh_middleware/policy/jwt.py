"""Whether a row's JWT requirement is met by tokens that were already verified.

Source: Consul, service-intentions ``JWT`` (providers are alternatives, claims must all hold).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from mesh_middleware.policy.decision import Reason
from mesh_middleware.policy.intentions import (
    ClaimMatch,
    JWTProviderRequirement,
    JWTRequirement,
)
from mesh_middleware.policy.match import claim_matches

Claims = Mapping[str, Any]
"""Provider name -> payload of a token that passed verification for that provider.

A value may also be a `Reason` or a `BadToken`: why there is no payload. A missing provider means
no token.
"""


@dataclass(frozen=True, slots=True)
class BadToken:
    """A token that is not valid; `why` in words for operators, which repeat nothing of it."""

    why: str


NO_CLAIMS: Final[Claims] = MappingProxyType({})

Issuers = Mapping[str, str]
"""Provider name -> issuer, for every provider that the mesh knows."""


@dataclass(frozen=True, slots=True)
class JWTProvider:
    """What deciding needs of a ``jwt-provider``: `issuer` must equal the payload's ``iss``.

    A provider without an issuer accepts nothing.
    """

    name: str
    issuer: str


# The further a token came, the more its failure says.
_PROGRESS = (Reason.JWT_MISSING, Reason.JWT_INVALID, Reason.JWT_CLAIMS)


def unmet(requirement: JWTRequirement | None, claims: Claims, issuers: Issuers) -> Reason | None:
    """Why `requirement` is not met, or None when it is: one of its providers is enough.

    A requirement that names a provider nobody knows is never met: Consul does not serve it either.
    """
    if requirement is None:
        return None
    if requirement.unknown or not requirement.providers:
        return Reason.UNEVALUABLE
    if any(wanted.name not in issuers for wanted in requirement.providers):
        return Reason.JWT_PROVIDER_UNKNOWN
    reasons = []
    for wanted in requirement.providers:
        reason = _unmet_by(wanted, claims.get(wanted.name), issuers[wanted.name])
        if reason is None:
            return None
        reasons.append(reason)
    return max(reasons, key=_PROGRESS.index)


def _unmet_by(wanted: JWTProviderRequirement, payload: Any, issuer: str) -> Reason | None:
    if not isinstance(payload, Mapping):
        return Reason.JWT_INVALID if payload is not None else Reason.JWT_MISSING
    if not issuer or payload.get("iss") != issuer:
        return Reason.JWT_INVALID
    if all(claim_matches(payload, claim) for claim in wanted.claims):
        return None
    return Reason.JWT_CLAIMS


@dataclass(frozen=True, slots=True)
class AskedProvider:
    """A provider that a requirement names: why its token does not meet it, or None and no words.

    `failed` says it in words, `claims` are the wanted ones that the token has not: nothing here
    comes from a token.
    """

    name: str
    reason: Reason | None
    failed: str
    claims: tuple[ClaimMatch, ...] = ()


@dataclass(frozen=True, slots=True)
class AskedToken:
    """A requirement and what became of it: `reason` as from `unmet`.

    `problem` says what of the requirement itself cannot be evaluated, or is empty.
    """

    reason: Reason | None
    providers: tuple[AskedProvider, ...]
    problem: str = ""


def ask(requirement: JWTRequirement | None, claims: Claims, issuers: Issuers) -> AskedToken | None:
    """The same answer as `unmet` gives, with every provider asked; None when nothing is."""
    if requirement is None:
        return None
    problem = "" if requirement.providers else "no provider is named"
    if requirement.unknown:
        problem = f"{', '.join(requirement.unknown)} is not known"
    return AskedToken(
        reason=unmet(requirement, claims, issuers),
        providers=tuple(
            _ask_provider(wanted, claims.get(wanted.name), issuers.get(wanted.name))
            for wanted in requirement.providers
        ),
        problem=problem,
    )


def _ask_provider(
    wanted: JWTProviderRequirement, payload: Any, issuer: str | None
) -> AskedProvider:
    if issuer is None:
        unknown = Reason.JWT_PROVIDER_UNKNOWN
        return AskedProvider(wanted.name, unknown, "the mesh does not know this provider")
    reason = _unmet_by(wanted, payload, issuer)
    if reason is not Reason.JWT_CLAIMS:
        return AskedProvider(wanted.name, reason, _failed(reason, payload, issuer))
    missing = tuple(claim for claim in wanted.claims if not claim_matches(payload, claim))
    failed = "; ".join(
        f"claim {'.'.join(claim.path)!r} is absent or not {claim.value!r}" for claim in missing
    )
    return AskedProvider(wanted.name, reason, failed, missing)


def _failed(reason: Reason | None, payload: Any, issuer: str) -> str:
    if reason is None:
        return ""
    if reason is Reason.JWT_MISSING:
        return "no token came"
    if isinstance(payload, BadToken):
        return f"the token is not valid: {payload.why}"
    if not isinstance(payload, Mapping):
        return "the token did not pass verification"
    return f"iss is not {issuer!r}" if issuer else "a provider without Issuer accepts nothing"

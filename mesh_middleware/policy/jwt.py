"""Whether a row's JWT requirement is met by tokens that were already verified.

Source: Consul, service-intentions ``JWT`` (providers are alternatives, claims must all hold).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from mesh_middleware.policy.decision import Reason
from mesh_middleware.policy.intentions import JWTRequirement
from mesh_middleware.policy.match import claim_matches

Claims = Mapping[str, Any]
"""Provider name -> payload of a token that passed verification for that provider.

A value may also be a `Reason`: why there is no payload. A missing provider means no token.
"""

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
        payload = claims.get(wanted.name)
        issuer = issuers[wanted.name]
        if not isinstance(payload, Mapping):
            reasons.append(Reason.JWT_INVALID if payload is not None else Reason.JWT_MISSING)
        elif not issuer or payload.get("iss") != issuer:
            reasons.append(Reason.JWT_INVALID)
        elif all(claim_matches(payload, claim) for claim in wanted.claims):
            return None
        else:
            reasons.append(Reason.JWT_CLAIMS)
    return max(reasons, key=_PROGRESS.index)

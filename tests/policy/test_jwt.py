"""When a JWT requirement is met, and what is said when it is not."""

from __future__ import annotations

from typing import Any

import pytest

from mesh_middleware.policy.decision import Reason
from mesh_middleware.policy.intentions import ClaimMatch, JWTProviderRequirement, JWTRequirement
from mesh_middleware.policy.jwt import NO_CLAIMS, ask, unmet

ISSUERS = {"okta": "https://okta", "auth0": "https://auth0", "void": ""}
ADMIN = ClaimMatch(("role",), "admin")


def asks(*names: str, claims: tuple[ClaimMatch, ...] = ()) -> JWTRequirement:
    return JWTRequirement(tuple(JWTProviderRequirement(name, claims) for name in names))


def okta(**payload: Any) -> dict[str, Any]:
    return {"okta": {"iss": "https://okta", **payload}}


# name, requirement, claims, answer
ROWS: list[tuple[str, JWTRequirement | None, dict[str, Any], Reason | None]] = [
    ("nothing is asked", None, {}, None),
    ("met", asks("okta"), okta(), None),
    ("no token", asks("okta"), {}, Reason.JWT_MISSING),
    ("another provider's token", asks("auth0"), okta(), Reason.JWT_MISSING),
    ("an invalid token", asks("okta"), {"okta": Reason.JWT_INVALID}, Reason.JWT_INVALID),
    ("a payload that is no object", asks("okta"), {"okta": ["iss"]}, Reason.JWT_INVALID),
    ("another issuer", asks("okta"), okta(iss="https://evil"), Reason.JWT_INVALID),
    ("no issuer", asks("okta"), {"okta": {}}, Reason.JWT_INVALID),
    ("a provider without issuer", asks("void"), {"void": {"iss": ""}}, Reason.JWT_INVALID),
    ("claims met", asks("okta", claims=(ADMIN,)), okta(role="admin"), None),
    ("a claim not met", asks("okta", claims=(ADMIN,)), okta(role="x"), Reason.JWT_CLAIMS),
    (
        "claims are ANDed",
        asks("okta", claims=(ADMIN, ClaimMatch(("sub",), "me"))),
        okta(role="admin"),
        Reason.JWT_CLAIMS,
    ),
    ("providers are ORed", asks("auth0", "okta"), okta(), None),
    ("the failure that came furthest", asks("auth0", "okta"), okta(iss="x"), Reason.JWT_INVALID),
    ("also in the other order", asks("okta", "auth0"), okta(iss="x"), Reason.JWT_INVALID),
    ("an unknown provider", asks("nobody"), {"nobody": {"iss": ""}}, Reason.JWT_PROVIDER_UNKNOWN),
    ("beside a met one", asks("okta", "nobody"), okta(), Reason.JWT_PROVIDER_UNKNOWN),
    ("no provider", JWTRequirement(()), okta(), Reason.UNEVALUABLE),
    ("an unknown part", JWTRequirement(asks("okta").providers, ("N",)), okta(), Reason.UNEVALUABLE),
]


@pytest.mark.parametrize(
    ("requirement", "claims", "answer"), [r[1:] for r in ROWS], ids=[r[0] for r in ROWS]
)
def test_requirements(
    requirement: JWTRequirement | None, claims: dict[str, Any], answer: Reason | None
) -> None:
    assert unmet(requirement, claims, ISSUERS) is answer
    asked = ask(requirement, claims, ISSUERS)
    if requirement is None:
        assert asked is None
    else:
        assert asked
        assert asked.reason is answer
        assert [provider.name for provider in asked.providers] == [
            wanted.name for wanted in requirement.providers
        ]


SECRET = {"okta": {"iss": "https://okta", "role": "s3cret", "perms": {"a": ["s3cret"]}}}

# name, requirement, claims, what is said of each provider
SAID: list[tuple[str, JWTRequirement, dict[str, Any], list[str]]] = [
    ("good", asks("okta"), okta(), [""]),
    ("no token", asks("okta"), {}, ["no token came"]),
    (
        "invalid",
        asks("okta"),
        {"okta": Reason.JWT_INVALID},
        ["the token did not pass verification"],
    ),
    ("another issuer", asks("okta"), okta(iss="https://evil"), ["iss is not 'https://okta'"]),
    (
        "no issuer",
        asks("void"),
        {"void": {"iss": ""}},
        ["a provider without Issuer accepts nothing"],
    ),
    (
        "claims",
        asks("okta", claims=(ADMIN, ClaimMatch(("iss",), "https://okta"))),
        SECRET,
        ["claim 'role' is absent or not 'admin'"],
    ),
    (
        "several claims",
        asks("okta", claims=(ClaimMatch(("perms", "a"), "b"), ClaimMatch(("x",), "y"))),
        SECRET,
        ["claim 'perms.a' is absent or not 'b'; claim 'x' is absent or not 'y'"],
    ),
    (
        "each provider",
        asks("nobody", "auth0", "okta"),
        okta(),
        ["the mesh does not know this provider", "no token came", ""],
    ),
]


@pytest.mark.parametrize(
    ("requirement", "claims", "said"), [r[1:] for r in SAID], ids=[r[0] for r in SAID]
)
def test_what_is_said_of_each_provider(
    requirement: JWTRequirement, claims: dict[str, Any], said: list[str]
) -> None:
    asked = ask(requirement, claims, ISSUERS)
    assert asked
    assert [provider.failed for provider in asked.providers] == said
    assert [provider.reason is None for provider in asked.providers] == [not each for each in said]
    assert asked.problem == ""
    assert "s3cret" not in str(asked)
    assert "evil" not in str(asked)


def test_the_claims_that_are_missing_are_named_as_values() -> None:
    wanted = (ADMIN, ClaimMatch(("iss",), "https://okta"))
    asked = ask(asks("okta", claims=wanted), SECRET, ISSUERS)
    assert asked
    assert asked.providers[0].claims == (ADMIN,)


@pytest.mark.parametrize(
    ("requirement", "problem"),
    [
        (JWTRequirement(()), "no provider is named"),
        (JWTRequirement(asks("okta").providers, ("N", "M")), "N, M is not known"),
    ],
)
def test_a_requirement_that_cannot_be_evaluated_says_so(
    requirement: JWTRequirement, problem: str
) -> None:
    asked = ask(requirement, okta(), ISSUERS)
    assert asked
    assert (asked.reason, asked.problem) == (Reason.UNEVALUABLE, problem)


def test_no_claims_cannot_be_added_to() -> None:
    with pytest.raises(TypeError):
        NO_CLAIMS["okta"] = {}  # type: ignore[index]

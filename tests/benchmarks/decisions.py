"""What one decision costs, against the number of intentions, permissions, and kinds of matchers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from mesh_middleware.policy.engine import JWTProvider, Policy, compile_policy
from mesh_middleware.policy.intentions import (
    Action,
    ClaimMatch,
    HeaderMatch,
    HTTPMatch,
    Intention,
    JWTProviderRequirement,
    JWTRequirement,
    Permission,
)
from mesh_middleware.policy.request import HTTPRequest
from mesh_middleware.policy.spiffe import ServiceIdentity, TrustDomain
from mesh_middleware.tls.jwks import KeySet
from mesh_middleware.tls.remembered import Remembered
from mesh_middleware.tls.tokens import TokenVerifier, VerifiedToken
from tests.benchmarks.measure import microseconds, table
from tests.tls.tokens import ISSUER, NOW, jwk, jwks, provider, token

TRUST_DOMAIN = TrustDomain("11111111-2222-3333-4444-555555555555.consul")
CALLER = ServiceIdentity(TRUST_DOMAIN, "web7")
HEADERS = [
    (b"host", b"api:8443"),
    (b"user-agent", b"bench"),
    (b"accept", b"*/*"),
    (b"accept-encoding", b"gzip"),
    (b"x-team", b"blue"),
]
Timing = Callable[[Callable[[], object]], float]
"""Microseconds of one call."""

TARGET = b"/v1/items/42?verbose=1"
ROLES = ["reader", "writer"]
JWT = JWTRequirement((JWTProviderRequirement("okta", (ClaimMatch(("roles",), "writer"),)),))


def request(token: bytes = b"") -> HTTPRequest:
    """One request as the ASGI middleware makes it."""
    headers = [*HEADERS, (b"authorization", b"Bearer " + token)] if token else HEADERS
    return HTTPRequest("GET", TARGET, headers, decoded_path="/v1/items/42")


def policy(*rows: Intention, previous: Policy | None = None) -> Policy:
    """A policy of the service api."""
    return compile_policy(
        rows,
        trust_domain=TRUST_DOMAIN,
        service="api",
        previous=previous,
        jwt_providers=[JWTProvider("okta", ISSUER)],
    )


def l7(*permissions: Permission, jwt: JWTRequirement | None = None) -> Policy:
    """A policy whose one row for the caller has these permissions."""
    return policy(Intention("web7", "api", permissions=permissions, jwt=jwt))


def misses(count: int, kind: str = "path_prefix") -> Iterator[Permission]:
    """Permissions that do not match the request."""
    for number in range(count):
        value = f"/never/{number}/" + (".*" if kind == "path_regex" else "")
        yield Permission(Action.ALLOW, HTTPMatch(**{kind: value}))  # type: ignore[arg-type]


HIT = Permission(Action.ALLOW, HTTPMatch(path_prefix="/v1/"))


def by_permissions(best: Timing) -> str:
    """Cost of one allowed decision by what the row has to look at."""
    regex = Permission(Action.ALLOW, HTTPMatch(path_regex="/v1/items/[0-9]+"))
    headers = HTTPMatch(
        path_prefix="/v1/",
        headers=(
            HeaderMatch("x-team", exact="blue"),
            HeaderMatch("x-old", present=True, invert=True),
        ),
    )
    cases = [
        ("connection-level (L4)", policy(Intention("web7", "api", Action.ALLOW))),
        ("1 literal permission", l7(HIT)),
        ("8 literal permissions, the last matches", l7(*misses(7), HIT)),
        ("64 literal permissions, the last matches", l7(*misses(63), HIT)),
        ("1 regular expression", l7(regex)),
        ("8 regular expressions, the last matches", l7(*misses(7, "path_regex"), regex)),
        ("1 permission with a path and 2 headers", l7(Permission(Action.ALLOW, headers))),
    ]
    rows = []
    for name, compiled in cases:
        assert compiled.decide(CALLER, request()).allowed, name
        alone = request()
        rows.append(
            (
                name,
                best(lambda c=compiled, r=alone: c.decide(CALLER, r)),  # type: ignore[misc]
                best(lambda c=compiled: c.decide(CALLER, request())),  # type: ignore[misc]
            )
        )
    return table(
        "One decision, microseconds", ("rule", "decide()", "with making the HTTPRequest"), rows
    )


class Forgetful(Remembered[VerifiedToken]):
    """Remembers nothing: every token is a new one."""

    def add_good(self, key: bytes, value: VerifiedToken) -> None:
        """As if it made room at once."""


def by_tokens(best: Timing) -> str:
    """Cost of a decision that needs a token: finding it, its signature, its claims."""
    compiled = l7(HIT, jwt=JWT)
    cases: list[tuple[str, str, Remembered[VerifiedToken]]] = [
        ("known token (any algorithm)", "RS256", Remembered()),
        ("new token, RS256", "RS256", Forgetful()),
        ("new token, ES256", "ES256", Forgetful()),
    ]
    rows = []
    for name, algorithm, memory in cases:
        asked = request(token(algorithm, roles=ROLES))
        keys = KeySet.from_json(jwks(jwk(algorithm)))
        tokens = TokenVerifier([(provider(), keys)], remembered=memory, clock=lambda: NOW)
        assert compiled.decide(CALLER, asked, tokens.claims(asked)).allowed
        cost = best(lambda t=tokens, r=asked: compiled.decide(CALLER, r, t.claims(r)))  # type: ignore[misc]
        rows.append((f"1 permission with a JWT claim, {name}", cost))
    return table("One decision with a token, microseconds", ("rule", "verifying included"), rows)


def by_intentions(best: Timing, counts: tuple[int, ...]) -> str:
    """Cost of one decision, and of compiling, by the number of intentions."""
    rows = []
    for count in counts:
        intentions = [Intention(f"web{n}", "api", Action.ALLOW) for n in range(count)]
        compiled = policy(*intentions)
        changed = [*intentions[:-1], Intention("other", "api", Action.DENY)]
        cold = microseconds(lambda: policy(*intentions), number=1, repeat=5) / 1000  # noqa: B023
        warm = microseconds(lambda: policy(*changed, previous=compiled), number=1, repeat=5) / 1000  # noqa: B023
        asked = request()
        one = best(lambda: compiled.decide(CALLER, asked))  # noqa: B023
        rows.append((count, one, cold, warm))
    return table(
        "By number of intentions",
        ("intentions", "decide(), µs", "compile all, ms", "compile after one change, ms"),
        rows,
    )


def report(*, short: bool = False) -> str:
    """All tables of this file."""
    # Short timings, so that on a busy machine some of them are undisturbed.
    best = partial(microseconds, number=50 if short else 500, repeat=2 if short else 100)
    counts = (10, 100) if short else (10, 100, 1_000, 10_000)
    return "\n".join([by_permissions(best), by_tokens(best), by_intentions(best, counts)])

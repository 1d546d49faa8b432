"""What one decision costs, against the number of intentions, permissions, and kinds of matchers."""

from __future__ import annotations

import time
from collections.abc import Iterator

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
from tests.benchmarks.measure import microseconds, table

TRUST_DOMAIN = TrustDomain("11111111-2222-3333-4444-555555555555.consul")
CALLER = ServiceIdentity(TRUST_DOMAIN, "web7")
HEADERS = [
    (b"host", b"api:8443"),
    (b"user-agent", b"bench"),
    (b"accept", b"*/*"),
    (b"accept-encoding", b"gzip"),
    (b"x-team", b"blue"),
]
TARGET = b"/v1/items/42?verbose=1"
CLAIMS = {"okta": {"iss": "https://okta", "roles": ["reader", "writer"]}}
JWT = JWTRequirement((JWTProviderRequirement("okta", (ClaimMatch(("roles",), "writer"),)),))


def request() -> HTTPRequest:
    """One request as the ASGI middleware makes it."""
    return HTTPRequest("GET", TARGET, HEADERS, decoded_path="/v1/items/42")


def policy(*rows: Intention) -> Policy:
    """A policy of the service api."""
    return compile_policy(
        rows,
        trust_domain=TRUST_DOMAIN,
        service="api",
        jwt_providers=[JWTProvider("okta", "https://okta")],
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


def by_permissions(number: int) -> str:
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
        ("1 permission with a JWT claim, token verified", l7(HIT, jwt=JWT)),
    ]
    rows = []
    for name, compiled in cases:
        assert compiled.decide(CALLER, request(), CLAIMS).allowed, name
        alone = request()
        rows.append(
            (
                name,
                microseconds(
                    lambda c=compiled, r=alone: c.decide(CALLER, r, CLAIMS), number=number
                ),  # type: ignore[misc]
                microseconds(lambda c=compiled: c.decide(CALLER, request(), CLAIMS), number=number),  # type: ignore[misc]
            )
        )
    return table(
        "One decision, microseconds", ("rule", "decide()", "with making the HTTPRequest"), rows
    )


def by_intentions(number: int, counts: tuple[int, ...]) -> str:
    """Cost of one decision, and of compiling, by the number of intentions."""
    rows = []
    for count in counts:
        intentions = [Intention(f"web{n}", "api", Action.ALLOW) for n in range(count)]
        start = time.perf_counter()
        compiled = policy(*intentions)
        cold = time.perf_counter() - start
        changed = [*intentions[:-1], Intention("other", "api", Action.DENY)]
        start = time.perf_counter()
        compile_policy(changed, trust_domain=TRUST_DOMAIN, service="api", previous=compiled)
        warm = time.perf_counter() - start
        asked = request()
        one = microseconds(lambda: compiled.decide(CALLER, asked), number=number)  # noqa: B023
        rows.append((count, one, cold * 1000, warm * 1000))
    return table(
        "By number of intentions",
        ("intentions", "decide(), µs", "compile all, ms", "compile after one change, ms"),
        rows,
    )


def report(*, short: bool = False) -> str:
    """All tables of this file."""
    number = 200 if short else 50_000
    counts = (10, 100) if short else (10, 100, 1_000, 10_000)
    return by_permissions(number) + "\n" + by_intentions(number, counts)

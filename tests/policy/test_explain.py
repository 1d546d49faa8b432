"""Explanations show the whole trail, in words that are checked here line by line."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mesh_middleware.policy.decision import Reason
from mesh_middleware.policy.engine import JWTProvider, compile_policy
from mesh_middleware.policy.intentions import (
    Action,
    ClaimMatch,
    HTTPMatch,
    Intention,
    JWTProviderRequirement,
    JWTRequirement,
    Permission,
)
from mesh_middleware.policy.request import HTTPRequest
from tests.policy.worlds import GATEWAY, TRUST_DOMAIN

WEB = f"spiffe://{TRUST_DOMAIN}/ns/default/dc/dc1/svc/web"
RULES = (
    Permission(Action.DENY, HTTPMatch(path_prefix="/admin")),
    Permission(Action.ALLOW, HTTPMatch(path_prefix="/", unknown=("Novel",))),
    Permission(Action.ALLOW, HTTPMatch(path_prefix="/a")),
    Permission(Action.ALLOW, HTTPMatch(path_prefix="/never-asked")),
)
ROWS = [Intention("web", "api", permissions=RULES), Intention("*", "api", Action.ALLOW)]


def explain(target: bytes | None, source: str = WEB, *rows: Intention, method: str = "GET") -> str:
    policy = compile_policy(rows or ROWS, trust_domain=TRUST_DOMAIN)
    request = None if target is None else HTTPRequest(method, target)
    return str(policy.explain(source, request))


def test_a_plain_request() -> None:
    assert explain(b"/a") == "\n".join(
        [
            "allowed: permission_allow",
            f"caller: {WEB}",
            "decided by: web => api (precedence 9), permission 2",
            "candidates, highest precedence first:",
            "  web => api (precedence 9) <- decides",
            "    permission 0 deny: path is not PathPrefix '/admin'",
            "    permission 1 allow: unknown, cannot be evaluated: HTTP.Novel is not known",
            "    permission 2 allow: matches",
            "  * => api (precedence 8)",
            "readings of the path:",
            "  canonical /a: allowed, permission_allow",
        ]
    )


def test_a_path_with_several_readings() -> None:
    assert explain(b"/a/..%2fadmin/%C3%A4") == "\n".join(
        [
            "refused: ambiguous_path",
            f"caller: {WEB}",
            "decided by: web => api (precedence 9), permission 0",
            "detail: another reading is allowed, but 'resolved' is refused: permission_deny",
            "candidates, highest precedence first:",
            "  web => api (precedence 9) <- decides",
            "    permission 0 deny as canonical: path is not PathPrefix '/admin'",
            "    permission 1 allow as canonical: unknown, "
            "cannot be evaluated: HTTP.Novel is not known",
            "    permission 2 allow as canonical: matches",
            "    permission 0 deny as decoded: path is not PathPrefix '/admin'",
            "    permission 1 allow as decoded: unknown, "
            "cannot be evaluated: HTTP.Novel is not known",
            "    permission 2 allow as decoded: matches",
            "    permission 0 deny as resolved: matches",
            "  * => api (precedence 8)",
            "readings of the path:",
            "  canonical /a/..%2fadmin/%C3%A4: allowed, permission_allow",
            "  decoded /a/../admin/ä: allowed, permission_allow",
            "  resolved /admin/ä: refused, permission_deny",
        ]
    )


def test_a_default_refusal_tries_every_permission() -> None:
    lines = explain(b"/z").splitlines()
    assert lines[0] == "refused: default_deny"
    assert lines[2] == "decided by: web => api (precedence 9)"
    assert [line for line in lines if "never-asked" in line] == [
        "    permission 3 allow: path is not PathPrefix '/never-asked'",
        "near: web => api (precedence 9) permission 3: path is not PathPrefix '/never-asked'",
    ]


def test_a_row_that_does_not_look_at_the_path() -> None:
    text = explain(b"//a", WEB, Intention("web", "api", Action.ALLOW))
    assert text.splitlines()[-3:] == ["readings of the path:", "  canonical //a", "  resolved /a"]


def test_nobody_named_the_caller() -> None:
    text = explain(b"/a", WEB, Intention("cron", "api", Action.ALLOW))
    assert text.splitlines() == [
        "refused: default_deny",
        f"caller: {WEB}",
        "decided by: no intention; the default action is deny",
        "candidates: none covers the caller",
        "readings of the path:",
        "  canonical /a",
        "near: cron => api (precedence 9): source is not web",
    ]


def test_a_stranger_has_no_candidates() -> None:
    assert explain(b"/a", GATEWAY).splitlines()[3:] == [
        f"detail: {GATEWAY} is a mesh gateway",
        "candidates: none covers the caller",
        "readings of the path:",
        "  canonical /a",
    ]


def test_a_malformed_target_has_no_readings() -> None:
    text = explain(b"/%zz")
    assert "readings" not in text
    assert text.startswith("refused: malformed_target")
    assert "permission" not in text


def test_a_connection_has_rows_but_no_readings() -> None:
    text = explain(None)
    assert text.startswith(f"refused: {Reason.L7_OVER_TCP}")
    assert "<- decides" in text
    assert "permission 0" not in text
    assert explain(None, GATEWAY).splitlines()[-1] == "candidates: none covers the caller"


def test_the_values_say_what_the_words_say() -> None:
    policy = compile_policy(ROWS, trust_domain=TRUST_DOMAIN)
    explained = policy.explain(WEB, HTTPRequest("GET", b"/a"))
    assert explained.decision == policy.decide(WEB, HTTPRequest("GET", b"/a"))
    assert [candidate.decides for candidate in explained.candidates] == [True, False]
    assert [tried.matched for tried in explained.candidates[0].permissions] == [False, None, True]
    assert explained.candidates[1].permissions == ()
    assert explained.readings[0].decision == explained.decision


# -- tokens -----------------------------------------------------------------------------------

ISSUER = "https://okta"
ANY = JWTRequirement((JWTProviderRequirement("okta"),))
ADMIN = JWTRequirement((JWTProviderRequirement("okta", (ClaimMatch(("role",), "admin"),)),))
USER = {"okta": {"iss": ISSUER, "role": "user"}}


def asks_for_a_token(
    row: JWTRequirement | None, permission: JWTRequirement | None, **http: Any
) -> Intention:
    block = HTTPMatch(**({"path_prefix": "/"} | http))
    rules = (
        Permission(Action.DENY, HTTPMatch(path_prefix="/admin"), permission),
        Permission(Action.ALLOW, HTTPMatch(path_prefix="/other"), permission),
        Permission(Action.ALLOW, block, permission),
    )
    return Intention("web", "api", permissions=rules, jwt=row)


def trail(row: Intention, claims: dict[str, Any], target: bytes = b"/") -> list[str]:
    policy = compile_policy(
        [row], trust_domain=TRUST_DOMAIN, jwt_providers=[JWTProvider("okta", ISSUER)]
    )
    explained = policy.explain(WEB, HTTPRequest("GET", target), claims)
    lines = str(explained).split("candidates, highest precedence first:\n")[1].splitlines()
    return [line.strip() for line in lines[1:-2]]


OTHER = "permission 1 allow: path is not PathPrefix '/other'"
NO_ADMIN = "permission 0 deny: path is not PathPrefix '/admin'"


@pytest.mark.parametrize(
    ("row", "claims", "said"),
    [
        pytest.param(
            asks_for_a_token(None, ADMIN),
            USER,
            [
                NO_ADMIN,
                OTHER,
                "permission 2 allow: matches, but refuses: jwt_claims",
                "token of okta: claim 'role' is absent or not 'admin'",
            ],
            id="of a permission",
        ),
        pytest.param(
            asks_for_a_token(ANY, ADMIN),
            {},
            [
                "token of okta: no token came",
                NO_ADMIN,
                OTHER,
                "permission 2 allow: matches, but refuses: jwt_missing",
                "token of okta: no token came",
            ],
            id="of both, none came",
        ),
        pytest.param(
            asks_for_a_token(ADMIN, ANY),
            USER,
            [
                "token of okta: claim 'role' is absent or not 'admin'",
                NO_ADMIN,
                OTHER,
                "permission 2 allow: matches, but refuses: jwt_claims",
                "token of okta: good",
            ],
            id="of the row alone",
        ),
        pytest.param(
            asks_for_a_token(ANY, ANY),
            USER,
            [
                "token of okta: good",
                NO_ADMIN,
                OTHER,
                "permission 2 allow: matches",
                "token of okta: good",
            ],
            id="met",
        ),
        pytest.param(
            asks_for_a_token(None, ANY, unknown=("Novel",)),
            {},
            [
                NO_ADMIN,
                OTHER,
                "permission 2 allow: unknown, cannot be evaluated: HTTP.Novel is not known, "
                "but refuses: jwt_missing",
                "token of okta: no token came",
            ],
            id="asked for where the match is unknown",
        ),
        pytest.param(
            Intention("web", "api", Action.ALLOW, jwt=ANY),
            {"okta": Reason.JWT_INVALID},
            ["token of okta: the token did not pass verification"],
            id="of a row without permissions",
        ),
        pytest.param(
            Intention("web", "api", Action.ALLOW, jwt=JWTRequirement(())),
            USER,
            ["token: cannot be evaluated: no provider is named"],
            id="unevaluable",
        ),
        pytest.param(Intention("web", "api", Action.DENY, jwt=ANY), USER, [], id="of a deny"),
    ],
)
def test_who_was_asked_for_a_token_and_why_it_does_not_do(
    row: Intention, claims: dict[str, Any], said: list[str]
) -> None:
    assert trail(row, claims) == said


def test_a_deny_asks_for_no_token() -> None:
    assert trail(asks_for_a_token(None, ANY), {}, b"/admin") == ["permission 0 deny: matches"]


def test_the_json_says_what_the_words_say() -> None:
    row = asks_for_a_token(None, ADMIN)
    policy = compile_policy(
        [row, Intention("*", "api", Action.ALLOW)],
        trust_domain=TRUST_DOMAIN,
        jwt_providers=[JWTProvider("okta", ISSUER)],
    )
    explained = policy.explain(WEB, HTTPRequest("GET", b"//"), USER)
    found = json.loads(json.dumps(explained.to_json()))
    deciding, other = found["candidates"]
    assert found["caller"] == WEB
    assert found["default"] == "deny"
    assert deciding["intention"] == {"source": "web", "destination": "api", "precedence": 9}
    assert (deciding["decides"], other["decides"]) == (True, False)
    assert deciding["permissions"][2] == {
        "reading": "canonical",
        "index": 2,
        "action": "allow",
        "matched": True,
        "failed": "",
        "token": {
            "reason": "jwt_claims",
            "providers": [
                {
                    "name": "okta",
                    "reason": "jwt_claims",
                    "failed": "claim 'role' is absent or not 'admin'",
                    "claims": [{"path": ["role"], "value": "admin"}],
                }
            ],
            "problem": "",
        },
        "refused": "jwt_claims",
    }
    assert found["readings"] == [
        {"reading": "canonical", "path": "//", "allowed": False, "reason": "jwt_claims"},
        {"reading": "resolved", "path": "/", "allowed": False, "reason": "jwt_claims"},
    ]
    assert "user" not in json.dumps(found)


def test_the_json_of_a_reading_that_was_not_judged() -> None:
    policy = compile_policy([], trust_domain=TRUST_DOMAIN)
    found = policy.explain(WEB, HTTPRequest("GET", b"/")).to_json()
    reading = {"reading": "canonical", "path": "/", "allowed": None, "reason": None}
    assert found["readings"] == [reading]
    [near] = found["nearest"]
    assert near == {
        "intention": "* => *",
        "permission": None,
        "failed": "there is no intention for this destination",
    }

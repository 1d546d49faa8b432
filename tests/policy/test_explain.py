"""Explanations show the whole trail, in words that are checked here line by line."""

from __future__ import annotations

from mesh_middleware.policy.decision import Reason
from mesh_middleware.policy.engine import compile_policy
from mesh_middleware.policy.intentions import Action, HTTPMatch, Intention, Permission
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

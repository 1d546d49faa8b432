"""Deciding and compiling answer for every input; text that is not text included."""

from __future__ import annotations

import pytest

from mesh_middleware.policy.decision import Reason
from mesh_middleware.policy.engine import compile_policy
from mesh_middleware.policy.intentions import Action, HeaderMatch, HTTPMatch, Intention, Permission
from mesh_middleware.policy.request import HTTPRequest
from tests.policy.worlds import TRUST_DOMAIN

WEB = f"spiffe://{TRUST_DOMAIN}/ns/default/dc/dc1/svc/web"


def policy(http: HTTPMatch, *, action: Action = Action.DENY):
    row = Intention("web", "api", permissions=(Permission(action, http),))
    return compile_policy([row], default_action=Action.ALLOW, trust_domain=TRUST_DOMAIN)


@pytest.mark.parametrize("path", ["/\ud800", "/a\udcffb", "/a\x00"])
def test_a_handed_over_path_that_is_not_text_is_malformed(path: str) -> None:
    decision = policy(HTTPMatch(path_exact="/x")).decide(
        WEB, HTTPRequest("GET", b"/a", decoded_path=path)
    )
    assert decision.reason is Reason.MALFORMED_TARGET


@pytest.mark.parametrize("name", [":method", ":scheme"])
def test_a_surrogate_in_the_method_or_scheme_is_a_value_like_any_other(name: str) -> None:
    odd = HTTPRequest("\ud800", b"/", scheme="\ud800")
    exact = policy(HTTPMatch(headers=(HeaderMatch(name, exact="\ud800"),)))
    assert exact.decide(WEB, odd).reason is Reason.PERMISSION_DENY
    regex = policy(HTTPMatch(headers=(HeaderMatch(name, regex=".*"),)))
    assert regex.decide(WEB, odd).reason is Reason.UNEVALUABLE


@pytest.mark.parametrize(
    "http",
    [
        HTTPMatch(path_exact="/\ud800"),
        HTTPMatch(path_prefix="/\ud800"),
        HTTPMatch(path_regex="/\ud800"),
        HTTPMatch(headers=(HeaderMatch("\ud800", present=True),)),
        HTTPMatch(headers=(HeaderMatch("x-a", contains="\ud800"),)),
    ],
)
def test_a_rule_with_a_surrogate_compiles(http: HTTPMatch) -> None:
    assert not policy(http, action=Action.ALLOW).decide(WEB, HTTPRequest("GET", b"/")).permission

"""Policies decide: which row, which permission, which default, and what is said of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh_middleware.errors import SpiffeIDError
from mesh_middleware.policy.decision import Decision, IntentionRef, NearMiss, Reason
from mesh_middleware.policy.engine import JWTProvider, PeerBundle, Policy, compile_policy
from mesh_middleware.policy.intentions import (
    Action,
    HeaderMatch,
    HTTPMatch,
    Intention,
    JWTProviderRequirement,
    JWTRequirement,
    Permission,
)
from mesh_middleware.policy.request import HTTPRequest, Normalization, Underscores
from mesh_middleware.policy.spiffe import ServiceIdentity, SpiffeID, TrustDomain
from tests.fuzzing import fuzz
from tests.policy.dice import Dice
from tests.policy.naive import World
from tests.policy.worlds import (
    GATEWAY,
    OTHER_DOMAIN,
    PEER_DOMAIN,
    TRUST_DOMAIN,
    compiled,
    request,
    xfcc,
)
from tests.policy.worlds import asks as any_asks
from tests.policy.worlds import worlds as any_worlds

ALLOW, DENY = Action.ALLOW, Action.DENY
OKTA = JWTRequirement((JWTProviderRequirement("okta"),))
PROVIDERS = [JWTProvider("okta", "https://okta")]
TOKEN = {"okta": {"iss": "https://okta"}}
PEER = PeerBundle("east", TrustDomain(PEER_DOMAIN))


def identity(name: str = "web", domain: str = TRUST_DOMAIN, **parts: str) -> ServiceIdentity:
    return ServiceIdentity(TrustDomain(domain), name, **parts)


def get(
    target: str = "/", *lines: tuple[str, str], method: str = "GET", **rest: Any
) -> HTTPRequest:
    headers = [(name.encode(), value.encode()) for name, value in lines]
    return HTTPRequest(method, target.encode(), headers, **rest)


def policy(*rows: Intention, default: Action = DENY, **options: Any) -> Policy:
    return compile_policy(
        rows,
        default_action=default,
        trust_domain=TRUST_DOMAIN,
        **{"jwt_providers": PROVIDERS, **options},
    )


def on(action: Action, jwt: JWTRequirement | None = None, **http: Any) -> Permission:
    return Permission(action, HTTPMatch(**http), jwt)


def prefix(action: Action, path: str, jwt: JWTRequirement | None = None) -> Permission:
    return on(action, jwt, path_prefix=path)


def maybe(action: Action, jwt: JWTRequirement | None = None) -> Permission:
    return on(action, jwt, path_prefix="/", unknown=("Novel",))


def web(*permissions: Permission, action: Action = DENY, **rest: Any) -> Intention:
    return Intention("web", "api", action, permissions, **rest)


def anyone(action: Action = ALLOW, *permissions: Permission, **rest: Any) -> Intention:
    return Intention("*", "api", action, permissions, **rest)


R = Reason

# name, rows, what GET /x/y of web is decided under default deny, and under default allow
ROWS: list[tuple[str, list[Intention], Reason, Reason]] = [
    ("no row", [], R.DEFAULT_DENY, R.DEFAULT_ALLOW),
    ("a row about another", [Intention("cron", "api", ALLOW)], R.DEFAULT_DENY, R.DEFAULT_ALLOW),
    ("allow", [web(action=ALLOW)], R.INTENTION_ALLOW, R.INTENTION_ALLOW),
    ("deny", [web()], R.INTENTION_DENY, R.INTENTION_DENY),
    ("wildcard", [anyone()], R.INTENTION_ALLOW, R.INTENTION_ALLOW),
    ("name above wildcard", [anyone(), web()], R.INTENTION_DENY, R.INTENTION_DENY),
    (
        "a wildcard source above a wildcard destination",
        [Intention("web", "*", ALLOW), anyone(DENY)],
        R.INTENTION_DENY,
        R.INTENTION_DENY,
    ),
    (
        "permissions, and the action beside them is not looked at",
        [web(prefix(DENY, "/x"), action=ALLOW)],
        R.PERMISSION_DENY,
        R.PERMISSION_DENY,
    ),
    (
        "no permission matches, and neither action nor wildcard decides",
        [web(prefix(ALLOW, "/z"), action=ALLOW), anyone()],
        R.DEFAULT_DENY,
        R.DEFAULT_ALLOW,
    ),
    (
        "no deny permission matches, and the wildcard deny does not decide",
        [web(prefix(DENY, "/z")), anyone(DENY)],
        R.DEFAULT_DENY,
        R.DEFAULT_ALLOW,
    ),
    (
        "the first permission that matches",
        [web(prefix(ALLOW, "/x/"), prefix(DENY, "/x"))],
        R.PERMISSION_ALLOW,
        R.PERMISSION_ALLOW,
    ),
    (
        "the first permission that matches denies",
        [web(prefix(ALLOW, "/z"), prefix(DENY, "/x"), prefix(ALLOW, "/"))],
        R.PERMISSION_DENY,
        R.PERMISSION_DENY,
    ),
    ("an unknown allow", [web(maybe(ALLOW))], R.DEFAULT_DENY, R.DEFAULT_ALLOW),
    ("an unknown deny", [web(maybe(DENY))], R.UNEVALUABLE, R.UNEVALUABLE),
    (
        "an unknown allow, then an allow",
        [web(maybe(ALLOW), prefix(ALLOW, "/"))],
        R.PERMISSION_ALLOW,
        R.PERMISSION_ALLOW,
    ),
    (
        "an unknown deny, then an allow",
        [web(maybe(DENY), prefix(ALLOW, "/"))],
        R.UNEVALUABLE,
        R.UNEVALUABLE,
    ),
    (
        "a known deny, then an unknown deny",
        [web(prefix(DENY, "/"), maybe(DENY))],
        R.PERMISSION_DENY,
        R.PERMISSION_DENY,
    ),
    (
        "an unknown part of an allow row",
        [web(action=ALLOW, unknown=("Novel",)), anyone()],
        R.UNEVALUABLE,
        R.UNEVALUABLE,
    ),
    (
        "an unknown part of a row whose permission allows",
        [web(prefix(ALLOW, "/"), unknown=("Novel",))],
        R.UNEVALUABLE,
        R.UNEVALUABLE,
    ),
    (
        "an unknown structure in a permission",
        [web(Permission(DENY, HTTPMatch(path_prefix="/"), None, ("Novel",)))],
        R.UNEVALUABLE,
        R.UNEVALUABLE,
    ),
    ("no HTTP block, deny", [web(Permission(DENY, None))], R.UNEVALUABLE, R.UNEVALUABLE),
    ("no HTTP block, allow", [web(Permission(ALLOW, None))], R.DEFAULT_DENY, R.DEFAULT_ALLOW),
    (
        "another namespace",
        [web(action=ALLOW, source_namespace="team")],
        R.DEFAULT_DENY,
        R.DEFAULT_ALLOW,
    ),
    (
        "any namespace",
        [anyone(ALLOW, source_namespace="*")],
        R.INTENTION_ALLOW,
        R.INTENTION_ALLOW,
    ),
    (
        "another partition",
        [web(action=ALLOW, source_partition="foo"), anyone(ALLOW, source_partition="foo")],
        R.DEFAULT_DENY,
        R.DEFAULT_ALLOW,
    ),
    (
        "a peer's service of that name",
        [web(action=ALLOW, source_peer="east"), anyone(ALLOW, source_peer="east")],
        R.DEFAULT_DENY,
        R.DEFAULT_ALLOW,
    ),
    (
        "an unexpanded sameness group",
        [web(action=ALLOW, source_sameness_group="g")],
        R.DEFAULT_DENY,
        R.DEFAULT_ALLOW,
    ),
]


@pytest.mark.parametrize(
    ("rows", "denied", "allowed"), [r[1:] for r in ROWS], ids=[r[0] for r in ROWS]
)
def test_which_row_and_permission_decide(
    rows: list[Intention], denied: Reason, allowed: Reason
) -> None:
    for default, reason in ((DENY, denied), (ALLOW, allowed)):
        asked = policy(*rows, default=default, peers=[PEER])
        decision = asked.decide(identity(), get("/x/y"))
        assert decision.reason is reason
        # The slow way, which a path with an escape takes, says the same.
        assert asked.decide(identity(), get("/x/%79")) == decision
        assert decision.allowed is reason.name.endswith("_ALLOW")


# name, row, reason of GET /x without a token and with one, both under default deny and allow
TOKENS: list[tuple[str, Intention, tuple[Reason, Reason], tuple[Reason, Reason]]] = [
    (
        "allow",
        web(action=ALLOW, jwt=OKTA),
        (R.JWT_MISSING, R.INTENTION_ALLOW),
        (R.JWT_MISSING, R.INTENTION_ALLOW),
    ),
    (
        "deny",
        web(jwt=OKTA),
        (R.INTENTION_DENY, R.INTENTION_DENY),
        (R.INTENTION_DENY, R.INTENTION_DENY),
    ),
    (
        "row with an allow permission",
        web(prefix(ALLOW, "/"), jwt=OKTA),
        (R.JWT_MISSING, R.PERMISSION_ALLOW),
        (R.JWT_MISSING, R.PERMISSION_ALLOW),
    ),
    (
        "row with a deny permission",
        web(prefix(DENY, "/"), jwt=OKTA),
        (R.PERMISSION_DENY, R.PERMISSION_DENY),
        (R.PERMISSION_DENY, R.PERMISSION_DENY),
    ),
    (
        "row whose permissions do not match",
        web(prefix(DENY, "/z"), jwt=OKTA),
        (R.DEFAULT_DENY, R.DEFAULT_DENY),
        (R.JWT_MISSING, R.DEFAULT_ALLOW),
    ),
    (
        "allow permission, and no falling through",
        web(prefix(ALLOW, "/x", OKTA), prefix(ALLOW, "/")),
        (R.JWT_MISSING, R.PERMISSION_ALLOW),
        (R.JWT_MISSING, R.PERMISSION_ALLOW),
    ),
    (
        "deny permission",
        web(prefix(DENY, "/x", OKTA), prefix(ALLOW, "/")),
        (R.PERMISSION_DENY, R.PERMISSION_DENY),
        (R.PERMISSION_DENY, R.PERMISSION_DENY),
    ),
    (
        "unknown allow permission: it may have asked for the token",
        web(maybe(ALLOW, OKTA), prefix(ALLOW, "/")),
        (R.JWT_MISSING, R.PERMISSION_ALLOW),
        (R.JWT_MISSING, R.PERMISSION_ALLOW),
    ),
    (
        "a requirement that cannot be evaluated",
        web(action=ALLOW, jwt=JWTRequirement(())),
        (R.UNEVALUABLE, R.UNEVALUABLE),
        (R.UNEVALUABLE, R.UNEVALUABLE),
    ),
]


@pytest.mark.parametrize(
    ("row", "deny", "allow"), [r[1:] for r in TOKENS], ids=[r[0] for r in TOKENS]
)
def test_token_requirements_hold_under_either_default(
    row: Intention, deny: tuple[Reason, Reason], allow: tuple[Reason, Reason]
) -> None:
    for default, reasons in ((DENY, deny), (ALLOW, allow)):
        # A caller that lacks the token does not fall through to the wildcard.
        compiled_rows = policy(row, anyone(), default=default)
        assert compiled_rows.needs_tokens
        found = [compiled_rows.decide(identity(), get("/x"), claims) for claims in ({}, TOKEN)]
        assert tuple(decision.reason for decision in found) == reasons
        assert [d.allowed for d in found] == [r.name.endswith("_ALLOW") for r in reasons]


def test_a_policy_without_token_rules_needs_none() -> None:
    assert not policy(web(prefix(ALLOW, "/"))).needs_tokens


# name, source, reason under default allow with a row that denies nobody named here
SOURCES: list[tuple[str, Any, Reason]] = [
    ("an identity", identity(), R.DEFAULT_ALLOW),
    ("text", str(identity()), R.DEFAULT_ALLOW),
    ("a SPIFFE ID", identity().spiffe_id, R.DEFAULT_ALLOW),
    ("another datacenter", identity(datacenter="dc9"), R.DEFAULT_ALLOW),
    ("another trust domain", identity(domain=OTHER_DOMAIN), R.FOREIGN_TRUST_DOMAIN),
    ("the same in upper case", str(identity()).replace("consul/", "CONSUL/"), R.INVALID_IDENTITY),
    ("a peer's own certificate", identity(domain=PEER_DOMAIN), R.FOREIGN_TRUST_DOMAIN),
    ("a gateway alone", GATEWAY, R.NOT_A_SERVICE),
    ("an agent", f"spiffe://{TRUST_DOMAIN}/agent/client/dc/d/id/n", R.NOT_A_SERVICE),
    ("a server", f"spiffe://{TRUST_DOMAIN}/agent/server/dc/d", R.NOT_A_SERVICE),
    ("a CA", f"spiffe://{TRUST_DOMAIN}", R.NOT_A_SERVICE),
    ("another path", f"spiffe://{TRUST_DOMAIN}/x", R.NOT_A_SERVICE),
    ("a needless escape", f"spiffe://{TRUST_DOMAIN}/ns/default/dc/d/svc/w%65b", R.INVALID_IDENTITY),
    ("no text", "", R.INVALID_IDENTITY),
    ("a surrogate", "\ud800", R.INVALID_IDENTITY),
]


@pytest.mark.parametrize(
    ("source", "reason"), [r[1:] for r in SOURCES], ids=[r[0] for r in SOURCES]
)
def test_only_services_of_our_trust_domain_are_looked_up(source: Any, reason: Reason) -> None:
    asked = policy(Intention("other", "api"), default=ALLOW, peers=[])
    for decision in (asked.decide(source, get()), asked.decide_connection(source)):
        assert decision.reason is reason
        assert decision.allowed is (reason is R.DEFAULT_ALLOW)
        assert bool(decision.detail) is not decision.allowed
        assert decision.revision == asked.revision


def test_a_foreign_gateway_is_foreign() -> None:
    foreign = GATEWAY.replace(TRUST_DOMAIN, PEER_DOMAIN)
    line = ("x-forwarded-client-cert", xfcc(str(identity("pong", PEER_DOMAIN))))
    asked = policy(default=ALLOW, peers=[PEER])
    assert asked.decide(foreign, get("/", line)).reason is R.FOREIGN_TRUST_DOMAIN
    assert not asked.decide_connection(foreign).allowed


def test_a_peered_caller_comes_through_our_own_gateway() -> None:
    pong = identity("pong", PEER_DOMAIN)
    rows = [Intention("pong", "api", ALLOW, source_peer="east"), Intention("pong", "api", DENY)]
    asked = policy(*rows, peers=[PEER])
    line = ("x-forwarded-client-cert", xfcc(str(pong)))
    reason = asked.decide(GATEWAY, get("/", line)).reason
    assert reason is R.INTENTION_ALLOW
    # Said by a service, it is nothing; without a bundle, so it is when said by a gateway.
    assert asked.decide(identity("cron"), get("/", line)).reason is R.DEFAULT_DENY
    assert policy(*rows).decide(GATEWAY, get("/", line)).reason is R.NOT_A_SERVICE
    foreign = xfcc(str(identity("pong", OTHER_DOMAIN)))
    said = asked.decide(GATEWAY, get("/", ("x-forwarded-client-cert", foreign)))
    assert said.reason is R.NOT_A_SERVICE
    # Nobody but a mesh gateway forwards, whatever else of our trust domain is no service. Consul's
    # rule for peered callers knows gateways of the default partition only.
    for other in (
        "/agent/client/dc/dc1/id/n",
        "/agent/server/dc/dc1",
        "/ap/other/gateway/mesh/dc/dc1",
        "",
    ):
        said = asked.decide(f"spiffe://{TRUST_DOMAIN}{other}", get("/", line))
        assert said.reason is R.NOT_A_SERVICE
    # Over HTTP its own certificate is no proof; on a bare connection it is the only one.
    assert asked.decide(pong, get()).reason is R.FOREIGN_TRUST_DOMAIN
    assert asked.decide_connection(pong).reason is R.INTENTION_ALLOW
    assert asked.decide_connection(GATEWAY).reason is R.NOT_A_SERVICE
    assert asked.decide_connection(identity("pong")).reason is R.INTENTION_DENY


@pytest.mark.parametrize("default", list(Action))
def test_connections_are_decided_without_paths_and_tokens(default: Action) -> None:
    rows = [
        Intention("plain", "api", ALLOW),
        Intention("no", "api", DENY),
        Intention("l7", "api", permissions=(prefix(ALLOW, "/"),)),
        Intention("token", "api", ALLOW, jwt=OKTA),
        Intention("token-deny", "api", DENY, jwt=OKTA),
        Intention("both", "api", jwt=OKTA, permissions=(prefix(ALLOW, "/"),)),
        Intention("novel", "api", ALLOW, unknown=("Novel",)),
    ]
    asked = policy(*rows, default=default)
    said = {row.source_name: asked.decide_connection(identity(row.source_name)) for row in rows}
    assert {name: decision.reason for name, decision in said.items()} == {
        "plain": R.INTENTION_ALLOW,
        "no": R.INTENTION_DENY,
        "l7": R.L7_OVER_TCP,
        "token": R.JWT_MISSING,
        "token-deny": R.INTENTION_DENY,
        "both": R.L7_OVER_TCP,
        "novel": R.UNEVALUABLE,
    }
    assert [name for name, decision in said.items() if decision.allowed] == ["plain"]
    other = asked.decide_connection(identity("other"))
    assert other.allowed is (default is ALLOW)


# name, request, reason where / is allowed but /admin denied
TARGETS: list[tuple[str, HTTPRequest, Reason, str | None]] = [
    ("plain", get("/a"), R.PERMISSION_ALLOW, None),
    ("query", get("/a?/admin"), R.PERMISSION_ALLOW, None),
    ("denied", get("/admin"), R.PERMISSION_DENY, None),
    ("one reading, slowly", get("/%61"), R.PERMISSION_ALLOW, None),
    ("all readings allowed", get("/a%20b"), R.PERMISSION_ALLOW, "canonical"),
    ("all readings denied", get("/admin%20b"), R.PERMISSION_DENY, "canonical"),
    ("doubled slash", get("//admin"), R.AMBIGUOUS_PATH, "resolved"),
    ("escaped slashes", get("/x%2f..%2fadmin"), R.AMBIGUOUS_PATH, "resolved"),
    ("canonical denied", get("/x/../admin"), R.AMBIGUOUS_PATH, "canonical"),
    ("handed over", get("/a", decoded_path="/admin"), R.AMBIGUOUS_PATH, "received"),
    ("handed over, the same", get("/a", decoded_path="/a"), R.PERMISSION_ALLOW, None),
    ("handed over, another", get("/a", decoded_path="/b"), R.PERMISSION_ALLOW, "canonical"),
    ("bad escape", get("/%"), R.MALFORMED_TARGET, None),
    ("no path", get("*", method="OPTIONS"), R.MALFORMED_TARGET, None),
    ("CONNECT, plain path", get("/a", method="CONNECT"), R.MALFORMED_TARGET, None),
    ("handed over, not text", get("/a", decoded_path="/\ud800"), R.MALFORMED_TARGET, None),
    ("one Host", get("/a", ("Host", "h")), R.PERMISSION_ALLOW, None),
    ("one Host, slowly", get("/%61", ("Host", "h")), R.PERMISSION_ALLOW, None),
    ("two other headers", get("/a", ("x-a", "1"), ("x-b", "1")), R.PERMISSION_ALLOW, None),
    ("two as long as Host", get("/a", ("x-ab", "1"), ("x-ab", "2")), R.PERMISSION_ALLOW, None),
    ("two Hosts", get("/a", ("Host", "h"), ("host", "h")), R.MALFORMED_HEADERS, None),
    ("two Hosts, slowly", get("//a", ("Host", "h"), ("host", "h")), R.MALFORMED_HEADERS, None),
    ("absolute form", get("http://h/a", ("Host", "H")), R.PERMISSION_ALLOW, None),
    ("absolute form, denied", get("http://h/admin"), R.PERMISSION_DENY, None),
    ("absolute form, another Host", get("http://h/a", ("Host", "i")), R.MALFORMED_HEADERS, None),
]


@pytest.mark.parametrize(
    ("asked", "reason", "reading"), [r[1:] for r in TARGETS], ids=[r[0] for r in TARGETS]
)
@pytest.mark.parametrize("default", list(Action))
def test_every_reading_of_a_path_must_be_allowed(
    asked: HTTPRequest, reason: Reason, reading: str | None, default: Action
) -> None:
    rules = policy(web(prefix(DENY, "/admin"), prefix(ALLOW, "/")), default=default)
    decision = rules.decide(identity(), asked)
    assert (decision.reason, decision.reading) == (reason, reading)
    assert decision.allowed is (reason is R.PERMISSION_ALLOW)


@pytest.mark.parametrize("rows", [[], [web(action=ALLOW)]])
def test_malformed_requests_are_refused_whoever_is_allowed(rows: list[Intention]) -> None:
    asked = policy(*rows, default=ALLOW)
    assert asked.decide(identity(), get("//a")).allowed
    assert asked.decide(identity(), get("/%zz")).reason is R.MALFORMED_TARGET
    assert asked.decide(identity(), get("/a", method="CONNECT")).reason is R.MALFORMED_TARGET
    twice = get("/a", ("host", "a"), ("host", "b"))
    assert asked.decide(identity(), twice).reason is R.MALFORMED_HEADERS


def test_an_ambiguous_refusal_names_the_reading_and_what_it_met() -> None:
    decision = policy(web(prefix(DENY, "/admin"), prefix(ALLOW, "/"))).decide(
        identity(), get("//admin")
    )
    assert decision.permission == 0
    assert (
        decision.detail == "another reading is allowed, but 'resolved' is refused: permission_deny"
    )


def test_headers_with_underscores_are_refused_or_dropped_as_the_mesh_says() -> None:
    row = web(on(ALLOW, headers=(HeaderMatch("x_a", present=True),)))
    line = ("x_a", "1")
    said = {
        action: policy(row, normalization=Normalization(underscores=action))
        .decide(identity(), get("/", line))
        .reason
        for action in Underscores
    }
    assert said == {
        Underscores.ALLOW: R.PERMISSION_ALLOW,
        Underscores.DROP_HEADER: R.DEFAULT_DENY,
        Underscores.REJECT_REQUEST: R.MALFORMED_HEADERS,
    }
    strict = Normalization(underscores=Underscores.REJECT_REQUEST)
    plain = policy(web(prefix(ALLOW, "/")), normalization=strict)
    assert plain.decide(identity(), get("/", ("x-a", "_"))).allowed


def test_a_decision_names_what_decided() -> None:
    asked = policy(web(prefix(DENY, "/z"), prefix(ALLOW, "/")))
    assert asked.decide(identity(), get()) == Decision(
        allowed=True,
        reason=R.PERMISSION_ALLOW,
        revision=asked.revision,
        intention=IntentionRef("web", "api", 9),
        permission=1,
    )


def test_decisions_that_allow_are_shared() -> None:
    """An allowed request costs no allocation."""
    asked = policy(web(prefix(ALLOW, "/")), anyone(), default=ALLOW)
    for name in ("web", "cron"):
        assert asked.decide(identity(name), get("/a")) is asked.decide(identity(name), get("/b"))
    nobody = policy(default=ALLOW)
    assert nobody.decide(identity(), get("/a")) is nobody.decide(identity("x"), get("/b"))
    unmatched = policy(web(prefix(DENY, "/z")), default=ALLOW)
    assert unmatched.decide(identity(), get("/a")) is unmatched.decide(identity(), get("/b"))


def test_remembered_callers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh_middleware.policy.engine._REMEMBERED_CALLERS", 8)
    asked = policy(web(action=ALLOW))
    for number in range(100):
        assert not asked.decide(identity(f"s{number}"), get()).allowed
        assert asked.decide(identity(), get()).allowed
        assert len(asked._found) <= 8


# -- near misses ------------------------------------------------------------------------------


def test_a_default_refusal_says_what_came_near() -> None:
    row = web(prefix(ALLOW, "/a"), on(ALLOW, path_prefix="/", methods=("PUT",)))
    assert policy(row).decide(identity(), get("/x")).nearest == (
        NearMiss("web => api (precedence 9)", 0, "path is not PathPrefix '/a'"),
        NearMiss("web => api (precedence 9)", 1, "method is not PUT"),
    )
    elsewhere = policy(web(source_namespace="team"), Intention("cron", "api", ALLOW))
    assert elsewhere.decide(identity(), get()).nearest == (
        NearMiss("team/web => api (precedence 9)", None, "source is not web"),
    )
    assert elsewhere.decide(identity("x"), get()).nearest[0].failed == "source is not x"
    nothing = "there is no intention for this destination"
    assert policy().decide(identity(), get()).nearest == (NearMiss("* => *", None, nothing),)
    assert policy(service="api").decide(identity(), get()).nearest[0].intention == "* => api"


def test_a_peered_default_refusal_names_the_peer() -> None:
    asked = policy(Intention("ping", "api", ALLOW, source_peer="east"), peers=[PEER])
    near = asked.decide_connection(identity("pong", PEER_DOMAIN)).nearest
    assert [miss.failed for miss in near] == ["source is not pong (peer east)"]


def test_near_misses_are_few() -> None:
    many = [prefix(ALLOW, f"/{n}") for n in range(50)]
    assert len(policy(web(*many)).decide(identity(), get("/x")).nearest) == 4
    rows = [Intention(f"s{n}", "api") for n in range(50)]
    assert len(policy(*rows).decide(identity(), get()).nearest) == 4
    namespaces = [web(source_namespace=f"n{n}") for n in range(50)]
    assert len(policy(*namespaces).decide(identity(), get()).nearest) == 4


def test_near_misses_print_where_they_are() -> None:
    assert str(NearMiss("a => b", 1, "no")) == "a => b permission 1: no"
    assert str(NearMiss("a => b", None, "no")) == "a => b: no"
    assert str(IntentionRef("a", "b", 9)) == "a => b (precedence 9)"


# -- compiling --------------------------------------------------------------------------------


def test_rows_of_other_destinations_are_left_out_and_said() -> None:
    asked = policy(Intention("web", "other", ALLOW), service="api")
    assert asked.decide(identity(), get()).reason is R.DEFAULT_DENY
    assert asked.intentions == ()
    assert asked.problems == (
        "web => other (precedence 9): left out, it is about another destination than 'api'",
    )
    assert policy(Intention("web", "*", ALLOW), service="api").decide(identity(), get()).allowed
    assert policy(Intention("web", "other", ALLOW)).decide(identity(), get()).allowed


def test_rows_that_can_never_match_are_said() -> None:
    rows = [web(source_sameness_group="g"), web(source_peer="north"), web(source_peer="east")]
    problems = policy(*rows, peers=[PEER]).problems
    assert len(problems) == 2
    assert "no trust bundle is configured for peer 'north'" in problems[0]
    assert "sameness group was not expanded" in problems[1]


def test_what_cannot_be_evaluated_is_said_once() -> None:
    row = web(maybe(ALLOW, JWTRequirement(())), maybe(DENY), unknown=("Novel",))
    problems = policy(row, row).problems
    assert problems == (
        "web => api (precedence 9): Novel is not known, so the row refuses",
        "web => api (precedence 9) permission 0: cannot be evaluated: HTTP.Novel is not known; "
        "it never matches",
        "web => api (precedence 9) permission 1: cannot be evaluated: HTTP.Novel is not known; "
        "it refuses whatever else it matches",
        "web => api (precedence 9): a JWT requirement cannot be evaluated, so what needs it is "
        "refused",
    )
    assert policy(web(action=ALLOW, jwt=OKTA), web(prefix(ALLOW, "/", OKTA))).problems == ()
    unknown = JWTRequirement(OKTA.providers, ("Novel",))
    assert len(policy(web(action=ALLOW, jwt=unknown)).problems) == 1


def test_details_name_what_is_unknown() -> None:
    row = policy(web(action=ALLOW, unknown=("A", "B"))).decide(identity(), get())
    assert row.detail == "the row has conditions that are not known: A, B"
    permission = policy(web(maybe(DENY))).decide(identity(), get())
    assert permission.detail == "cannot be evaluated: HTTP.Novel is not known"
    assert permission.permission == 0


def test_a_bad_trust_domain_is_the_callers_fault() -> None:
    with pytest.raises(SpiffeIDError):
        compile_policy([], trust_domain="NOT ONE")


def test_a_policy_says_what_it_is() -> None:
    asked = policy(anyone(), service="api")
    assert asked.trust_domain == TrustDomain(TRUST_DOMAIN)
    given = compile_policy([anyone()], trust_domain=asked.trust_domain, jwt_providers=PROVIDERS)
    assert given.revision == asked.revision
    assert repr(asked) == f"<Policy {asked.revision} for api: 1 intentions, default deny>"
    assert "for any service" in repr(policy())


# -- revisions --------------------------------------------------------------------------------

BASE = web(on(ALLOW, path_prefix="/", headers=(HeaderMatch("x-a", exact="1"),)), action=DENY)

# name, what is compiled instead of BASE alone
CHANGED: list[tuple[str, list[Intention], dict[str, Any]]] = [
    ("action", [dataclasses.replace(BASE, action=ALLOW)], {}),
    ("precedence", [dataclasses.replace(BASE, precedence=8)], {}),
    ("source", [dataclasses.replace(BASE, source_name="cron")], {}),
    ("namespace", [dataclasses.replace(BASE, source_namespace="team")], {}),
    ("partition", [dataclasses.replace(BASE, source_partition="foo")], {}),
    ("token", [dataclasses.replace(BASE, jwt=OKTA)], {}),
    ("unknown", [dataclasses.replace(BASE, unknown=("N",))], {}),
    ("permission's action", [web(prefix(DENY, "/"))], {}),
    ("permission's token", [web(prefix(ALLOW, "/", OKTA))], {}),
    ("permission's order", [web(prefix(ALLOW, "/a"), prefix(DENY, "/"))], {}),
    ("the other order", [web(prefix(DENY, "/"), prefix(ALLOW, "/a"))], {}),
    ("one row more", [BASE, anyone()], {}),
    ("no row", [], {}),
    ("default", [BASE], {"default": ALLOW}),
    ("normalisation", [BASE], {"normalization": Normalization(merge_slashes=True)}),
    ("providers", [BASE], {"jwt_providers": []}),
    ("issuer", [BASE], {"jwt_providers": [JWTProvider("okta", "x")]}),
    ("peers", [BASE], {"peers": [PEER]}),
]


def test_a_revision_changes_with_everything_that_decides() -> None:
    revisions = {"base": policy(BASE).revision}
    revisions |= {name: policy(*rows, **options).revision for name, rows, options in CHANGED}
    other = compile_policy([BASE], trust_domain=OTHER_DOMAIN, jwt_providers=PROVIDERS)
    revisions["trust domain"] = other.revision
    assert len(set(revisions.values())) == len(revisions), revisions
    assert all(len(revision) == 12 for revision in revisions.values())


# name, what is compiled instead of BASE and anyone()
SAME: list[tuple[str, list[Intention], dict[str, Any]]] = [
    ("order of rows", [anyone(), BASE], {}),
    ("a description", [dataclasses.replace(BASE, description="new words"), anyone()], {}),
    ("a row twice", [BASE, anyone(), BASE], {}),
    ("a row about another", [BASE, anyone(), Intention("web", "other", ALLOW)], {}),
    ("a row that never matches", [BASE, anyone(), web(source_peer="north")], {}),
    ("providers in another order", [BASE, anyone()], {"jwt_providers": iter(PROVIDERS)}),
]


@pytest.mark.parametrize(("rows", "options"), [r[1:] for r in SAME], ids=[r[0] for r in SAME])
def test_a_revision_stays_when_nothing_that_decides_changed(
    rows: list[Intention], options: dict[str, Any]
) -> None:
    expected = policy(BASE, anyone(), service="api").revision
    assert policy(*rows, service="api", **options).revision == expected


def test_compiled_rows_are_reused_where_they_are_unchanged() -> None:
    before = policy(BASE, anyone(DENY, prefix(ALLOW, "/b")))
    after = policy(BASE, anyone(DENY, prefix(ALLOW, "/c")), previous=before)
    assert after._rules[BASE].permissions[0].matcher is before._rules[BASE].permissions[0].matcher
    assert after._rules[BASE].allowed.revision == after.revision != before.revision
    again = policy(BASE, anyone(DENY, prefix(ALLOW, "/b")), previous=before)
    assert again._rules[BASE] is before._rules[BASE]


def test_nothing_is_reused_under_another_normalisation() -> None:
    row = web(on(ALLOW, headers=(HeaderMatch("x_a", present=True),)))
    drop = Normalization(underscores=Underscores.DROP_HEADER)
    after = policy(row, normalization=drop, previous=policy(row))
    assert not after.decide(identity(), get("/", ("x_a", "1"))).allowed


def test_a_row_that_moved_keeps_its_place() -> None:
    """The order is that of the new rows, not the remembered one."""
    named, wild = Intention("web", "*", DENY), anyone()
    first = policy(Intention("web", "*", DENY))
    assert policy(named, wild, previous=first).decide(identity(), get()).allowed


def test_many_rows_leave_time_for_others() -> None:
    """At least one pause for each two hundred rows of work, and none for a usual list."""
    pauses: list[None] = []
    many = [Intention(f"web{number}", "api", ALLOW) for number in range(1000)]
    policy(*many, pause=lambda: pauses.append(None))
    assert len(pauses) >= 10
    pauses.clear()
    policy(*many[:50], pause=lambda: pauses.append(None))
    assert pauses == []


def test_decisions_with_and_without_previous_are_the_same() -> None:
    for seed in range(150):
        dice = Dice(seed)
        first, second = dice.world(), dice.world()
        second.rows = [*second.rows, *first.rows[::2]]
        fresh, reused = compiled(second), compiled(second, previous=compiled(first))
        assert (fresh.revision, fresh.problems) == (reused.revision, reused.problems)
        for _ in range(8):
            ask = dice.ask()
            asked = (ask.source, request(ask), ask.claims)
            assert fresh.decide(*asked) == reused.decide(*asked), seed
            assert fresh.decide_connection(ask.source) == reused.decide_connection(ask.source)


# -- anything at all --------------------------------------------------------------------------

anything = st.one_of(
    st.none(), st.integers(), st.text(max_size=4), st.lists(st.integers(), max_size=2)
)
surrogates = st.text(st.characters(), max_size=12)
sources = st.one_of(
    surrogates,
    st.builds(SpiffeID, st.just(TrustDomain(TRUST_DOMAIN)), surrogates),
    st.just(identity()),
    st.just(GATEWAY),
    surrogates.map(lambda tail: f"spiffe://{TRUST_DOMAIN}/ns/default/dc/dc1/svc/{tail}"),
)


@fuzz(300, cost=2)
@given(
    world=any_worlds,
    method=surrogates,
    target=st.one_of(st.binary(max_size=24), st.binary(max_size=12).map(lambda b: b"/" + b)),
    headers=st.lists(
        st.tuples(
            st.one_of(
                st.binary(max_size=6), st.sampled_from([b"host", b"x-forwarded-client-cert"])
            ),
            st.binary(max_size=12),
        ),
        max_size=4,
    ),
    scheme=surrogates,
    decoded_path=st.one_of(st.none(), surrogates),
    source=sources,
    claims=st.dictionaries(st.text(max_size=4) | st.just("okta"), anything, max_size=2),
)
def test_deciding_never_raises(
    world: World,
    method: str,
    target: bytes,
    headers: list[tuple[bytes, bytes]],
    scheme: str,
    decoded_path: str | None,
    source: Any,
    claims: dict[str, Any],
) -> None:
    asked = compiled(world)
    sent = HTTPRequest(method, target, headers, scheme=scheme, decoded_path=decoded_path)
    decision = asked.decide(source, sent, claims)
    assert decision == asked.decide(source, sent, claims)
    assert len(decision.nearest) <= 4
    assert bool(decision.nearest) is (decision.reason is R.DEFAULT_DENY) or decision.reading
    assert all(near.failed for near in decision.nearest)
    assert asked.explain(source, sent, claims).decision == decision
    assert isinstance(str(asked.explain(source, sent, claims)), str)
    assert asked.explain(source).decision == asked.decide_connection(source)


@fuzz(60, cost=10)
@given(any_worlds, any_asks)
def test_default_refusals_always_say_what_came_near(world: World, ask: Any) -> None:
    decision = compiled(world).decide(ask.source, request(ask), ask.claims)
    if decision.reason is R.DEFAULT_DENY:
        assert 1 <= len(decision.nearest) <= 4


def test_names_of_destinations_are_compared_without_case_as_consul_looks_them_up() -> None:
    rows = [Intention("web", "api", DENY), Intention("cron", "other", DENY)]
    asked = compile_policy(rows, default_action=ALLOW, trust_domain=TRUST_DOMAIN, service="API")
    assert asked.decide(identity("web"), get()).reason is R.INTENTION_DENY
    assert asked.decide(identity("cron"), get()).reason is R.DEFAULT_ALLOW


def test_a_fingerprint_is_whole_and_a_revision_its_beginning() -> None:
    """Forty-eight bits can be made to collide in minutes: two policies, one revision."""
    one, other = policy(Intention("web", "api", ALLOW)), policy(Intention("web", "api", DENY))
    assert len(one.fingerprint) == 64
    assert one.fingerprint.startswith(one.revision)
    assert one.fingerprint != other.fingerprint

"""Audit: what rules refuse is passed on and said; what is no matter of rules stays refused."""

from __future__ import annotations

import logging
import pickle
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest

from mesh_middleware.errors import ConfigError
from mesh_middleware.middleware import AuditRule, MeshMiddleware, decision_of, peer_identity
from mesh_middleware.middleware.audit import plain_paths
from mesh_middleware.observe.decisions import DecisionLog
from mesh_middleware.policy.decision import Decision, Reason
from mesh_middleware.policy.enforcement import AUDITED, EnforcementMode
from mesh_middleware.policy.engine import Policy, compile_policy
from mesh_middleware.policy.intentions import Action, Intention
from mesh_middleware.policy.request import DEFAULT_NORMALIZATION, HTTPRequest, Normalization
from mesh_middleware.policy.spiffe import ServiceIdentity
from mesh_middleware.state import MeshState, StaticState
from mesh_middleware.testing import TRUST_DOMAIN, static_mesh
from mesh_middleware.tls.certificates import TrustBundle
from tests.middleware.calls import (
    WEB_MAY,
    Answer,
    Recorder,
    call,
    http_scope,
    identity,
    rule,
    verified,
    web_permissions,
)

REFUSING = [
    reason for reason in Reason if not reason.endswith("_allow") and reason != "exempt_path"
]

PASSED_ON = {
    "intention_deny",
    "permission_deny",
    "default_deny",
    "l7_over_tcp",
    "unevaluable",
    "ambiguous_path",
    "jwt_missing",
    "jwt_invalid",
    "jwt_claims",
    "jwt_provider_unknown",
}
"""Written out: a reason that somebody adds is enforced until it is put here too."""


@dataclass
class Always:
    """A policy that gives one answer."""

    reason: Reason
    normalization: Normalization = DEFAULT_NORMALIZATION

    peered = False

    def decide(self, *_: Any) -> Decision:
        return Decision(allowed=False, reason=self.reason)

    @property
    def mesh(self) -> StaticState:
        return StaticState(MeshState("api", generation=1, policy=cast("Policy", self)))


@pytest.fixture(autouse=True)
def fresh_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process's log leaves out what comes too often."""
    monkeypatch.setattr("mesh_middleware.middleware.enforcer.decision_log", DecisionLog())


def guarded(mesh: StaticState | None = None, **options: Any) -> tuple[MeshMiddleware, Recorder]:
    app = Recorder()
    return MeshMiddleware(app, mesh=mesh or static_mesh("api"), **options), app


def get(mesh: MeshMiddleware, path: str = "/", source: str = "web", **more: Any) -> Answer:
    return call(mesh, http_scope(path, peer=verified(source), **more))


@pytest.mark.parametrize("mode", ["enforce", "audit"])
@pytest.mark.parametrize("reason", REFUSING)
def test_each_reason_in_each_mode(reason: Reason, mode: str) -> None:
    mesh, app = guarded(Always(reason).mesh, enforcement=mode)
    answer = get(mesh)
    if mode == "audit" and reason in PASSED_ON:
        assert answer.body == b"hello"
        assert decision_of(app.scope) == Decision(allowed=False, reason=reason)
        assert peer_identity(app.scope) == identity()
    else:
        assert (answer.reason, app.scopes) == (reason, [])


def test_the_list_of_reasons_is_the_promised_one() -> None:
    assert {str(reason) for reason in AUDITED} == PASSED_ON


def test_the_guide_lists_the_same() -> None:
    guide = Path(__file__).parents[2] / "docs" / "guides" / "audit.md"
    (row,) = re.findall(r"^\| passed on \|(.*)\|$", guide.read_text(), re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", row)) == PASSED_ON


def test_enforcing_is_what_happens_unless_somebody_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("ENFORCEMENT", "AUDIT", "MODE"):
        for prefix in ("MESH_", "CONSUL_", "UVICORN_", "MESH_MIDDLEWARE_", ""):
            monkeypatch.setenv(prefix + name, "audit")
    mesh, _ = guarded()
    assert get(mesh).reason == "default_deny"


# -- what audit never passes on ----------------------------------------------------------------


ROOTS = cast("TrustBundle", type("Roots", (), {"fingerprints": frozenset(), "trust_domain": ""}))

NEVER: list[Any] = [
    pytest.param({"peer": None}, {}, "no_identity", id="nobody"),
    pytest.param({"peer": verified(life=-1)}, {}, "certificate_expired", id="expired"),
    pytest.param(
        {"peer": verified(generation=0)}, {"bundle": ROOTS}, "root_not_trusted", id="root"
    ),
    pytest.param(
        {"peer": verified(trust_domain="elsewhere.consul")},
        {},
        "foreign_trust_domain",
        id="foreign",
    ),
    pytest.param({"raw_path": b"/%zz"}, {}, "malformed_target", id="malformed"),
    pytest.param(
        {"headers": [(b"host", b"a"), (b"host", b"b")]}, {}, "malformed_headers", id="host"
    ),
    pytest.param({}, {"policy": None}, "no_policy", id="no policy"),
    pytest.param({}, {"fault": Reason.POLICY_UNDECODABLE}, "policy_undecodable", id="undecodable"),
    pytest.param({}, {"fault": Reason.STALE_POLICY}, "stale_policy", id="stale"),
    pytest.param({}, {"fault": Reason.DEFAULT_DENY}, "default_deny", id="fault with a rule's name"),
]


@pytest.mark.parametrize(("scope", "state", "reason"), NEVER)
@pytest.mark.parametrize(
    "options",
    [
        {"enforcement": "audit"},
        {"audit": [AuditRule(paths=("/", "/*"))]},
        {"audit": [AuditRule(sources=("web",))]},
    ],
    ids=["all", "paths", "source"],
)
def test_audit_is_about_rules_only(
    scope: dict[str, Any], state: dict[str, Any], reason: str, options: dict[str, Any]
) -> None:
    mesh = StaticState(replace(static_mesh("api", WEB_MAY).state, **state))
    middleware, app = guarded(mesh, **options)
    request = http_scope(
        **{"peer": verified(), **{k: v for k, v in scope.items() if k != "headers"}}
    )
    request["headers"] = scope.get("headers", request["headers"])
    assert (call(middleware, request).reason, app.scopes) == (reason, [])


def test_a_rules_reason_alone_lets_nothing_pass() -> None:
    """Should a decision ever come about without a caller, or a state with a fault."""
    audit = guarded(enforcement="audit")[0]._enforcer._audit
    decision = Decision(allowed=False, reason=Reason.DEFAULT_DENY)
    assert audit.passes(decision, identity(), None, ())
    assert not audit.passes(decision, identity(), Reason.NO_POLICY, ())
    assert not audit.passes(decision, None, None, ())


# -- single routes and sources -----------------------------------------------------------------

ROUTES: list[Any] = [
    ("/reports/daily", True),
    ("/reports/daily/x", False),
    ("/legacy/", True),
    ("/legacy/a/b", True),
    ("/legacy", False),
    ("/legacyx", False),
    ("/", False),
]


@pytest.mark.parametrize(("path", "passes"), ROUTES)
def test_a_route_in_audit(path: str, passes: bool) -> None:
    mesh, _ = guarded(audit=[AuditRule(paths=("/reports/daily", "/legacy/*"))])
    assert (get(mesh, path).reason == "allowed") is passes


@pytest.mark.parametrize(
    "raw",
    [
        b"/legacy/../admin",
        b"/legacy/%2e%2e/admin",
        b"/legacy//admin",
        b"/legacy/%61",
        b"/legacy/..",
    ],
)
def test_a_path_with_several_readings_is_in_no_route(raw: bytes) -> None:
    mesh, _ = guarded(audit=[AuditRule(paths=("/legacy/*",))])
    answer = get(mesh, "/legacy/a", raw_path=raw)
    assert answer.reason in ("default_deny", "ambiguous_path")


def test_a_path_that_the_server_reads_otherwise_is_in_no_route() -> None:
    mesh, _ = guarded(audit=[AuditRule(paths=("/legacy/*",))])
    assert get(mesh, "/admin", raw_path=b"/legacy/a").reason != "allowed"


def test_all_readings_are_known_or_none_is() -> None:
    good = HTTPRequest("GET", b"/legacy/a", ())
    assert plain_paths([good]) == (b"/legacy/a",)
    assert plain_paths([good, HTTPRequest("GET", b"/legacy/%61", ())]) == ()


def test_under_a_root_path_the_routed_path_must_be_in_audit_too() -> None:
    for paths, reason in ((("/api/*",), "default_deny"), (("/api/*", "/reports/*"), "allowed")):
        mesh, _ = guarded(audit=[AuditRule(paths=paths)])
        assert get(mesh, "/api/reports/1", root_path="/api").reason == reason


@pytest.mark.parametrize(
    ("sources", "source", "passes"),
    [
        (("web",), identity("web"), True),
        (("web",), identity("batch"), False),
        (("web",), replace(identity("web"), namespace="other"), False),
        (("web",), replace(identity("web"), partition="other"), False),
        ((str(identity("web")),), identity("web"), True),
        ((str(identity("web")),), replace(identity("web"), datacenter="dc2"), True),
        ((str(identity("web")),), identity("batch"), False),
        ((str(identity("web", "elsewhere.consul")),), identity("web"), False),
        (("web",), replace(identity("web", "elsewhere.consul"), peer="east"), False),
        (
            (str(identity("web", "elsewhere.consul")),),
            replace(identity("web", "elsewhere.consul"), peer="east"),
            True,
        ),
    ],
)
def test_a_source_in_audit(sources: tuple[str, ...], source: ServiceIdentity, passes: bool) -> None:
    assert AuditRule(sources=sources).covers(source, ()) is passes


def test_only_services_are_sources() -> None:
    assert not AuditRule(sources=("web",)).covers(identity().spiffe_id, ())


def test_path_and_source_of_one_rule_must_both_match() -> None:
    mesh, _ = guarded(audit=[AuditRule(paths=("/a",), sources=("web",)), AuditRule(paths=("/b",))])
    assert get(mesh, "/a").reason == "allowed"
    assert get(mesh, "/a", "batch").reason == "default_deny"
    assert get(mesh, "/b", "batch").reason == "allowed"
    assert get(mesh, "/c").reason == "default_deny"


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"paths": "/a"},
        {"sources": "web"},
        {"paths": ("a",)},
        {"paths": ("/*/a",)},
        {"paths": ("/a*",)},
        {"paths": ("/a/../b",)},
        {"paths": ("/a?x",)},
        {"paths": ("/a%20b",)},
        {"sources": ("*",)},
        {"sources": ("",)},
        {"sources": ("spiffe://x/agent",)},
        {"sources": ("ns/web",)},
    ],
    ids=str,
)
def test_a_rule_that_cannot_be_meant_is_an_error(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        AuditRule(**arguments)


@pytest.mark.parametrize("options", [{"enforcement": "off"}, {"audit": ["/a"]}])
def test_wrong_arguments(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"enforce|AuditRule"):
        guarded(**options)


def test_rules_travel_to_spawned_workers() -> None:
    rule = AuditRule(paths=("/legacy/*",), sources=("web",))
    assert pickle.loads(pickle.dumps(rule)).covers(identity(), (b"/legacy/a",))


# -- what is said ------------------------------------------------------------------------------


def test_a_request_passed_on_is_logged_as_such(caplog: pytest.LogCaptureFixture) -> None:
    mesh, _ = guarded(enforcement="audit")
    get(mesh, "/x")
    get(mesh, "/y", "batch", headers=[(b"x-request-id", b"abc")])
    announcement, first, second = caplog.records
    assert "AUDIT MODE" in announcement.getMessage()
    assert announcement.levelno == logging.WARNING
    assert first.getMessage().startswith("audit: would refuse GET /x from spiffe://")
    assert vars(second)["mesh_enforced"] is False
    assert vars(second)["mesh_allowed"] is False
    assert vars(second)["mesh_request_id"] == "abc"
    assert vars(second)["mesh_reason"] == "default_deny"


def test_a_refusal_is_logged_as_enforced(caplog: pytest.LogCaptureFixture) -> None:
    get(guarded()[0])
    (record,) = caplog.records
    assert record.getMessage().startswith("refused GET /")
    assert vars(record)["mesh_enforced"] is True


def test_rules_are_said_with_the_first_scope(caplog: pytest.LogCaptureFixture) -> None:
    mesh, _ = guarded(audit=[AuditRule(paths=("/legacy/*",), sources=("web",))])
    assert not caplog.records
    call(mesh, {"type": "lifespan"})
    call(mesh, {"type": "lifespan"})
    (record,) = caplog.records
    assert record.getMessage() == (
        "api: AUDIT MODE in part: intentions are not enforced for /legacy/* from web"
    )


# -- the manager's setting ---------------------------------------------------------------------


def told(mode: EnforcementMode) -> StaticState:
    """A mesh whose state says what to do where no middleware does."""
    return StaticState(replace(static_mesh("api", WEB_MAY).state, enforcement=mode))


@pytest.mark.parametrize(
    ("of_the_mesh", "options", "status"),
    [
        (EnforcementMode.ENFORCE, {}, 403),
        (EnforcementMode.AUDIT, {}, 200),
        (EnforcementMode.AUDIT, {"enforcement": "enforce"}, 403),
        (EnforcementMode.ENFORCE, {"enforcement": "audit"}, 200),
        (EnforcementMode.ENFORCE, {"audit": [AuditRule(sources=("other",))]}, 403),
        (EnforcementMode.AUDIT, {"audit": [AuditRule(sources=("other",))]}, 200),
    ],
)
def test_the_middleware_is_asked_before_the_manager(
    of_the_mesh: EnforcementMode, options: dict[str, Any], status: int
) -> None:
    mesh, _ = guarded(told(of_the_mesh), **options)
    assert get(mesh, source="batch").status == status


@pytest.mark.parametrize("first", ["lifespan", "http"])
def test_the_managers_audit_is_said_once(first: str, caplog: pytest.LogCaptureFixture) -> None:
    mesh, _ = guarded(told(EnforcementMode.AUDIT))
    assert not caplog.records
    if first == "lifespan":
        call(mesh, {"type": "lifespan"})
    get(mesh)
    (record,) = caplog.records
    assert record.getMessage().startswith("api: AUDIT MODE: ")


def test_a_middleware_that_enforces_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    call(guarded(told(EnforcementMode.AUDIT), enforcement="enforce")[0], {"type": "lifespan"})
    assert not caplog.records


def test_nothing_is_said_without_audit(caplog: pytest.LogCaptureFixture) -> None:
    call(guarded()[0], {"type": "lifespan"})
    assert not caplog.records


def test_debug_headers_tell_what_would_have_been_refused() -> None:
    mesh, _ = guarded(
        static_mesh("api", (*WEB_MAY, Intention("batch", "api", Action.DENY))),
        enforcement="audit",
        debug_headers=True,
    )
    assert get(mesh).header(b"x-mesh-audit") is None
    assert get(mesh, source="batch").header(b"x-mesh-audit") == b"intention_deny"
    opened = get(mesh, source="batch", kind="websocket")
    assert opened.sent == [
        {"type": "websocket.accept", "headers": [(b"x-mesh-audit", b"intention_deny")]}
    ]


def test_without_debug_headers_a_peer_learns_nothing() -> None:
    assert get(guarded(enforcement="audit")[0]).header(b"x-mesh-audit") is None


def test_an_inner_middleware_passes_on_what_the_outer_one_audits() -> None:
    app = Recorder()
    inner = MeshMiddleware(app, mesh=static_mesh("api"))
    assert get(MeshMiddleware(inner, mesh=static_mesh("api"), enforcement="audit")).status == 200
    decision = decision_of(app.scope)
    assert decision is not None
    assert not decision.allowed


def test_an_ambiguous_path_and_a_permission_are_audited_with_real_rules() -> None:
    rows = web_permissions(rule(Action.DENY, path_prefix="/admin"), rule(Action.ALLOW))
    policy = compile_policy(rows, trust_domain=TRUST_DOMAIN, service="api")
    mesh, app = guarded(StaticState.from_policy(policy, service="api"), enforcement="audit")
    assert get(mesh, "/admin").status == 200
    assert get(mesh, "/x/../admin", raw_path=b"/x/%2e%2e/admin").status == 200
    decisions = [decision_of(scope) for scope in app.scopes]
    assert [decision.allowed for decision in decisions if decision] == [False, False]

"""Every surprise that `lint` knows: a row that has it and the same row put right."""

from __future__ import annotations

from typing import Any

import pytest

from mesh_middleware.consul.decode import decode_matches
from mesh_middleware.policy.intentions import Action
from mesh_middleware.policy.lint import CHECKS, Finding, Severity, lint


def row(*permissions: dict[str, Any], **fields: Any) -> dict[str, Any]:
    base = {"SourceName": "web", "DestinationName": "api", **fields}
    return {**base, "Permissions": list(permissions)} if permissions else base


def allow(http: dict[str, Any] | None, **fields: Any) -> dict[str, Any]:
    return {"Action": "allow", "HTTP": http, **fields}


def deny(http: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"Action": "deny", "HTTP": http, **fields}


ALL = allow({"PathPrefix": "/"})
WILD = row(SourceName="*", Action="deny")
JWT = {"Providers": [{"Name": "okta"}]}


def header(**fields: Any) -> dict[str, Any]:
    return {"Header": [{"Name": "x-role", **fields}]}


# check, default action, rows that have it, rows that do not
CASES: list[tuple[str, str, list[dict[str, Any]], list[dict[str, Any]]]] = [
    (
        "prefix-without-slash",
        "deny",
        [row(allow({"PathPrefix": "/admin"}))],
        [row(allow({"PathExact": "/admin"}), allow({"PathPrefix": "/admin/"}))],
    ),
    (
        "exact-without-slash",
        "deny",
        [row(deny({"PathExact": "/admin"}), ALL)],
        [row(deny({"PathExact": "/admin/"}), ALL)],
    ),
    (
        "case-sensitive-deny",
        "deny",
        [row(deny(header(Exact="blocked")), ALL)],
        [row(deny(header(Contains="blocked", IgnoreCase=True)), ALL)],
    ),
    (
        "case-sensitive-deny",
        "deny",
        [row(deny(header(Prefix="b")), ALL)],
        [row(deny(header(Prefix="12")), ALL)],
    ),
    (
        "case-sensitive-deny",
        "deny",
        [row(deny(header(Regex="block.*")), ALL)],
        [row(deny(header(Regex="(?i)block.*")), deny(header(Regex="BLOCK", Invert=True)), ALL)],
    ),
    (
        "case-sensitive-deny",
        "deny",
        [row(deny({"PathPrefix": "/admin/"}), ALL)],
        [row(deny({"PathRegex": "(?i)/admin/.*"}), ALL)],
    ),
    (
        "case-sensitive-deny",
        "deny",
        [row(deny({"PathExact": "/ADMIN/"}), ALL)],
        [row(deny({"PathExact": "/42/"}), allow({"PathExact": "/public"}))],
    ),
    (
        "case-sensitive-deny",
        "deny",
        [row(deny({"PathRegex": "/[Aa]dmin(/.*)?"}), ALL)],
        [row(deny({"PathRegex": r"/\d+/[A-Za-z]+/[^/]+\w"}), ALL)],
    ),
    (
        "exact-header-deny",
        "deny",
        [row(deny(header(Exact="blocked", IgnoreCase=True)), ALL)],
        [row(deny(header(Contains="blocked", IgnoreCase=True)), ALL)],
    ),
    (
        "ignore-case-with-regex",
        "deny",
        [row(deny(header(Regex="blocked", IgnoreCase=True)), ALL)],
        [row(deny(header(Regex="(?i)blocked")), ALL)],
    ),
    (
        "invert-on-absence",
        "deny",
        [row(deny(header(Exact="good", Invert=True)), ALL)],
        [row(deny(header(Present=True, Invert=True)), ALL)],
    ),
    (
        "invert-on-absence",
        "deny",
        [row(allow(header(Exact="bad", Invert=True)))],
        [row(allow(header(Exact="good")))],
    ),
    (
        "methods-without-head",
        "deny",
        [row(deny({"Methods": ["GET"]}), ALL)],
        [row(deny({"Methods": ["GET", "HEAD"]}), ALL)],
    ),
    (
        "methods-without-head",
        "deny",
        [row(allow({"Methods": ["GET"]}))],
        [row(allow({"Methods": ["POST"]}))],
    ),
    (
        "methods-without-options",
        "deny",
        [row(allow({"PathPrefix": "/a/", "Methods": ["GET", "HEAD", "PUT"]}))],
        [row(allow({"PathPrefix": "/a/", "Methods": ["GET", "HEAD", "OPTIONS", "PUT"]}))],
    ),
    (
        "methods-without-options",
        "deny",
        [
            row(
                allow({"PathPrefix": "/a/", "Methods": ["OPTIONS"]}),
                allow({"PathPrefix": "/", "Methods": ["OPTIONS"]}, JWT=JWT),
                deny({"PathPrefix": "/", "Methods": ["OPTIONS"]}),
                allow({"PathPrefix": "/b/", "Methods": ["POST"]}),
            )
        ],
        [
            row(
                allow({**header(Exact="1"), "PathPrefix": "/a/", "Methods": ["POST"]}, JWT=JWT),
                allow({"PathPrefix": "/", "Methods": ["OPTIONS"]}),
                deny({"PathPrefix": "/", "Methods": ["DELETE"]}),
            )
        ],
    ),
    (
        "methods-without-options",
        "deny",
        [row(allow({"Methods": ["DELETE"]}))],
        [row(allow({"Methods": ["GET", "HEAD"]}), allow(None), deny({"Methods": ["PATCH"]}))],
    ),
    (
        "methods-without-options",
        "deny",
        [
            row(
                allow({**header(Exact="1"), "Methods": ["OPTIONS"]}),
                allow({**header(Exact="1"), "Methods": ["PATCH"]}),
            )
        ],
        [row(allow({"Methods": ["OPTIONS"]}), allow({**header(Exact="1"), "Methods": ["PATCH"]}))],
    ),
    (
        "never-matches",
        "deny",
        [row(allow({"PathExact": "/a?x=1"}))],
        [row(allow({"PathExact": "/a%20b"}))],
    ),
    (
        "never-matches",
        "deny",
        [row(allow({"PathPrefix": "api/"}))],
        [row(allow({"PathPrefix": "/api/"}))],
    ),
    (
        "regex",
        "deny",
        [row(allow({"PathRegex": "/(?=a).*"}))],
        [row(allow({"PathRegex": "/a.*"}))],
    ),
    (
        "regex",
        "deny",
        [row(allow(header(Regex="(a+)+")))],
        [row(allow(header(Regex="a+")))],
    ),
    (
        "unreachable-permission",
        "deny",
        [row(ALL, deny({"PathExact": "/admin/"}))],
        [row(deny({"PathExact": "/admin/"}), ALL)],
    ),
    (
        "unreachable-permission",
        "deny",
        [row(allow({"PathExact": "/a"}), allow({"PathExact": "/a", "Methods": ["PUT"]}))],
        [row(allow({"PathExact": "/a", "Methods": ["PUT"]}), allow({"PathExact": "/a"}))],
    ),
    (
        "unreachable-permission",
        "deny",
        [row(allow({"PathRegex": "/a"}), allow({"PathRegex": "/a"}))],
        [row(allow({"PathRegex": "/a"}), allow({"PathRegex": "/b"}))],
    ),
    (
        "unreachable-permission",
        "deny",
        [row(allow({"Methods": ["PUT"]}), allow({"PathExact": "/a", "Methods": ["PUT"]}))],
        [row(allow({"PathPrefix": "/b/"}), allow({"PathExact": "/a", "Methods": ["PUT"]}))],
    ),
    (
        "unreachable-permission",
        "deny",
        [row(allow(header(Exact="1")), allow({**header(Exact="1"), "PathExact": "/a"}))],
        [row(allow(header(Exact="1")), allow({"PathExact": "/a"}))],
    ),
    (
        "nothing-allowed",
        "deny",
        [row(deny({"PathPrefix": "/admin/"}))],
        [row(deny({"PathPrefix": "/admin/"}), ALL)],
    ),
    (
        "sidecar-precedence",
        "deny",
        [WILD, row(DestinationName="*", Action="allow")],
        [WILD, row(Action="allow")],
    ),
    (
        "sidecar-precedence",
        "deny",
        [row(ALL, SourceName="*"), row(DestinationName="*", Action="allow")],
        [WILD, row(DestinationName="*", Action="deny")],
    ),
    (
        "sidecar-precedence",
        "deny",
        [WILD, row(DestinationName="*", Action="allow")],
        [WILD, row(DestinationName="*", Action="allow", SourcePeer="east")],
    ),
    (
        "jwt-under-default-allow",
        "allow",
        [row(Action="allow", JWT=JWT)],
        [row(Action="allow")],
    ),
    (
        "jwt-under-default-allow",
        "allow",
        [row(allow({"PathPrefix": "/"}, JWT=JWT))],
        [row(ALL)],
    ),
    (
        "not-evaluable",
        "deny",
        [row(Action="allow", Conditions={"hour": 3})],
        [row(Action="allow", Note="a scalar")],
    ),
    (
        "not-evaluable",
        "deny",
        [row(allow({"PathExact": "/a", "PathPrefix": "/b/"}))],
        [row(allow({"PathExact": "/a"}))],
    ),
]


def findings(rows: list[dict[str, Any]], default: str) -> tuple[Finding, ...]:
    return lint(decode_matches({"api": rows}, "api"), default_action=Action(default))


@pytest.mark.parametrize(("check", "default", "having", "right"), CASES)
def test_a_surprise_is_found_and_its_cure_is_not(
    check: str, default: str, having: list[dict[str, Any]], right: list[dict[str, Any]]
) -> None:
    found = [finding for finding in findings(having, default) if finding.check == check]
    assert found
    assert all(finding.why and finding.instead for finding in found)
    assert check in str(found[0])
    assert check not in {finding.check for finding in findings(right, default)}


def test_every_check_has_a_case() -> None:
    assert {case[0] for case in CASES} == set(CHECKS)


# Permissions that must not be called covered: nothing is known to be matched by the first.
NOT_COVERED = [
    ("an empty block", allow({}), deny({"PathExact": "/a/"})),
    ("a missing block", allow(None), deny({"PathExact": "/a/"})),
    ("an unknown matcher", allow({"PathSuffix": "x"}), deny({"PathExact": "/a/"})),
    ("a token", allow({"PathPrefix": "/"}, JWT=JWT), deny({"PathExact": "/a/"})),
    ("methods", allow({"Methods": ["PUT"]}), deny({"PathExact": "/a/"})),
    ("another exact path", allow({"PathExact": "/b"}), deny({"PathExact": "/a/"})),
    ("a prefix of text elsewhere", allow({"PathPrefix": "/b/"}), deny({"PathPrefix": "/a/"})),
    (
        "an unknown permission field",
        allow({"PathPrefix": "/"}, Extra=[1]),
        deny({"PathExact": "/a/"}),
    ),
    ("a regex before", allow({"PathRegex": ".*"}), deny({"PathExact": "/a/"})),
    (
        "an unknown header matcher",
        allow({"Header": [{"Name": "x", "Glob": "*"}]}),
        deny({"Header": [{"Name": "x", "Glob": "*"}]}),
    ),
]


@pytest.mark.parametrize(("first", "second"), [pytest.param(a, b, id=n) for n, a, b in NOT_COVERED])
def test_what_is_not_surely_covered_is_not_called_unreachable(
    first: dict[str, Any], second: dict[str, Any]
) -> None:
    found = findings([row(first, second)], "deny")
    assert "unreachable-permission" not in {finding.check for finding in found}


def test_a_deny_behind_a_broader_allow_is_worse_than_a_repetition() -> None:
    harm = findings([row(ALL, deny({"PathExact": "/a/"}))], "deny")
    same = findings([row(ALL, allow({"PathExact": "/a/"}))], "deny")
    assert [f.severity for f in harm if f.check == "unreachable-permission"] == [Severity.WARNING]
    assert [f.severity for f in same if f.check == "unreachable-permission"] == [Severity.NOTE]

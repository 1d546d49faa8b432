"""Intentions that Consul refuses to store, with its words; before 1.9 the whole kind is unknown."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.agents import Agent, fresh_name

ALLOW = {"Name": "web", "Action": "allow"}


def l7(http: Any, action: str = "allow") -> dict[str, Any]:
    return {"Name": "web", "Permissions": [{"Action": action, "HTTP": http}]}


def header(**fields: Any) -> dict[str, Any]:
    return l7({"Header": [fields]})


HTTP = "Sources[0].Permissions[0].HTTP"
HEADER = f"{HTTP}.Header[0]"

REFUSED: list[tuple[str, list[Any], str]] = [
    ("no sources", [], "At least one source is required"),
    ("no source name", [{"Action": "allow"}], "Sources[0].Name is required"),
    ("no action", [{"Name": "web"}], "Sources[0].Action must be set to 'allow' or 'deny'"),
    (
        "another action",
        [{"Name": "web", "Action": "ALLOW"}],
        "Sources[0].Action must be set to 'allow' or 'deny'",
    ),
    (
        "action and permissions",
        [{**l7({"PathExact": "/"}), "Action": "allow"}],
        "Sources[0].Action must be omitted if Permissions are specified",
    ),
    (
        "permission without action",
        [l7({"PathExact": "/"}, action="")],
        "Sources[0].Permissions[0].Action must be set to 'allow' or 'deny'",
    ),
    ("no HTTP", [{"Name": "web", "Permissions": [{"Action": "allow"}]}], f"{HTTP} is required"),
    ("empty HTTP", [l7({})], "should not be empty"),
    ("relative exact", [l7({"PathExact": "a"})], f"{HTTP}.PathExact doesn't start with '/': \"a\""),
    (
        "relative prefix",
        [l7({"PathPrefix": "a"})],
        f"{HTTP}.PathPrefix doesn't start with '/': \"a\"",
    ),
    (
        "two paths",
        [l7({"PathPrefix": "/a", "PathRegex": "/b"})],
        f"{HTTP} should only contain at most one of PathExact, PathPrefix, or PathRegex",
    ),
    (
        "unknown method",
        [l7({"Methods": ["BREW"]})],
        f'{HTTP}.Methods contains an invalid method "BREW"',
    ),
    (
        "method twice",
        [l7({"Methods": ["GET", "get"]})],
        f'{HTTP}.Methods contains "GET" more than once',
    ),
    ("header without name", [header(Exact="a")], f"{HEADER} missing required Name field"),
    ("header without rule", [header(Name="x")], f"{HEADER} should only contain one of Present, Ex"),
    (
        "header with two rules",
        [header(Name="x", Exact="a", Prefix="b")],
        f"{HEADER} should only contain one of Present, Exact, Prefix, Suffix",
    ),
    (
        "partial wildcard",
        [{"Name": "we*", "Action": "allow"}],
        "Sources[0].Name: wildcard character '*' cannot be used with partial values",
    ),
    ("source twice", [ALLOW, ALLOW], 'Sources[1] defines "web" more than once'),
    ("another type", [{**ALLOW, "Type": "x"}], "Sources[0].Type must be set to 'consul'"),
    (
        "long description",
        [{**ALLOW, "Description": "x" * 513}],
        "Sources[0].Description exceeds maximum length 512",
    ),
]


def write(agent: Agent, name: str, sources: list[Any], **more: Any):
    return agent.put(
        "/config", {"Kind": "service-intentions", "Name": name, "Sources": sources, **more}
    )


@pytest.mark.parametrize(
    ("sources", "text"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_what_makes_no_sense_is_refused_in_consuls_words(agent, sources, text):
    name = fresh_name("api")
    agent.put("/config", {"Kind": "service-defaults", "Name": name, "Protocol": "http"})
    answer = write(agent, name, sources)
    if not agent.has("service-intentions"):
        assert answer.status_code == 400
        return
    assert answer.status_code == 500
    assert text in answer.text
    assert agent.rows(name) == []


def test_a_wild_destination_has_no_permissions(agent):
    answer = write(agent, "*", [l7({"PathExact": "/"})])
    if agent.has("service-intentions"):
        assert answer.status_code == 500
        assert "cannot be specified on intentions with wildcarded destinations" in answer.text
    else:
        assert answer.status_code == 400


def test_permissions_want_a_destination_that_speaks_http(agent):
    name = fresh_name("api")
    agent.put("/config", {"Kind": "service-defaults", "Name": name, "Protocol": "tcp"})
    answer = write(agent, name, [l7({"PathExact": "/"})])
    text = (
        f'service "{name}" has protocol "tcp", which is incompatible with L7 intentions permissions'
    )
    if not agent.has("service-intentions"):
        assert answer.status_code == 400
        return
    assert answer.status_code == 500
    assert text in answer.text
    agent.put("/config", {"Kind": "service-defaults", "Name": name, "Protocol": "grpc"})
    assert write(agent, name, [l7({"PathExact": "/"})]).status_code == 200
    back = agent.put("/config", {"Kind": "service-defaults", "Name": name, "Protocol": "tcp"})
    assert back.status_code == 500
    assert "incompatible" in back.text


@pytest.mark.parametrize(
    "source",
    [
        {**ALLOW, "Colour": "red"},
        l7({"PathExact": "/", "Query": "a"}),
        header(Name="x", Exakt="a"),
    ],
)
def test_an_unknown_key_is_400(agent, source):
    answer = write(agent, fresh_name("api"), [source])
    assert answer.status_code == 400
    assert "invalid config" in answer.text


def test_snake_case_is_another_spelling(agent):
    name = fresh_name("api")
    agent.put("/config", {"Kind": "service-defaults", "Name": name, "Protocol": "http"})
    permission = {"action": "allow", "http": {"path_prefix": "/a", "methods": ["get"]}}
    sources = [{"name": "web", "permissions": [permission]}]
    answer = agent.put("/config", {"kind": "service-intentions", "name": name, "sources": sources})
    if not agent.has("service-intentions"):
        assert answer.status_code == 400
        return
    assert answer.json() is True
    (row,) = [row for row in agent.rows(name) if row["DestinationName"] == name]
    assert row["Permissions"] == [
        {"Action": "allow", "HTTP": {"PathPrefix": "/a", "Methods": ["GET"]}}
    ]

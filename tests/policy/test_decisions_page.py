"""The tables of docs/reference/decisions.md hold, row by row."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from mesh_middleware.consul.decode import decode_jwt_provider, decode_matches
from mesh_middleware.errors import MeshError
from mesh_middleware.middleware import MeshMiddleware
from mesh_middleware.middleware.refusal import refuse
from mesh_middleware.policy.decision import Decision, Reason
from mesh_middleware.policy.engine import Policy, compile_policy
from mesh_middleware.policy.intentions import Action, Intention
from mesh_middleware.policy.request import HTTPRequest
from mesh_middleware.testing import static_mesh
from tests.middleware.calls import Recorder, http_scope
from tests.policy.worlds import TRUST_DOMAIN

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "decisions.md").read_text("utf-8")


def table(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its own heading."""
    section = PAGE.split(f"# {heading}\n", 1)[1].split("\n#", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


CASES = table("Stricter than the sidecar")


def policy(default: str, rows: str) -> Policy:
    found: Any = yaml.safe_load(rows.strip("`"))
    whole = [
        {"SourceName": "web", "DestinationName": "api", **row}
        for row in (found if isinstance(found, list) else [found])
    ]
    return compile_policy(
        decode_matches({"api": whole}, "api"),
        default_action=Action(default),
        trust_domain=TRUST_DOMAIN,
        service="api",
        jwt_providers=[decode_jwt_provider({"Name": "okta", "Issuer": "https://okta"})],
    )


def decide(asked: Policy, request: str) -> Decision:
    found = re.fullmatch(r"`(\S+)(?: (\S+))?(?: (.+))?` by `(\S+)`(?: with `(.+)`)?", request)
    assert found, request
    method, target, lines, source, claims = found.groups()
    path = source if source.startswith("/") else f"/ns/default/dc/dc1/svc/{source}"
    identity = f"spiffe://{TRUST_DOMAIN}{path}"
    if method == "connection":
        return asked.decide_connection(identity)
    headers = [line.split(": ") for line in (lines or "").split(", ") if line]
    pairs = [(name.encode(), value.encode()) for name, value in headers]
    return asked.decide(
        identity, HTTPRequest(method, target.encode(), pairs), yaml.safe_load(claims or "{}")
    )


@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_where_the_page_says_we_are_stricter(case: list[str]) -> None:
    _, default, rows, request, sidecar, here, why = case
    decision = decide(policy(default, rows), request)
    assert f"`{decision.reason}`" == here
    assert why.endswith(".")
    differs = {"allow": not decision.allowed, "deny": decision.allowed, "n/a": not decision.allowed}
    assert differs[sidecar], "only differences belong here"


def test_what_is_no_matter_of_rules_has_a_test_each() -> None:
    rows = table("Beyond the rules")
    assert len(rows) == 10
    for *_, here, test in rows:
        assert here
        assert re.fullmatch(r"`tests/[\w/]+\.py::test_\w+`", test)


ALLOWED = {"intention_allow", "permission_allow", "default_allow", "exempt_path"}
NOT_ANSWERED = {
    Reason.UNKNOWN_SCOPE: "none: raises `MeshError`",
    Reason.L7_OVER_TCP: "none: the connection is cut",
}


def test_the_page_names_every_reason_with_its_status() -> None:
    listed = {row[0].strip("`"): row[1] for row in table("Reasons")}
    assert list(listed) == [reason.value for reason in Reason]
    for reason in Reason:
        answer = NOT_ANSWERED.get(reason) or str(refuse(reason, "id").status)
        assert listed[reason.value] == ("allowed" if reason.value in ALLOWED else answer)
    assert all(row[2].endswith(".") for row in table("Reasons"))


def test_a_scope_that_nobody_knows_is_not_answered() -> None:
    mesh = MeshMiddleware(Recorder(), mesh=static_mesh("api"))
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    with pytest.raises(MeshError, match=Reason.UNKNOWN_SCOPE):
        asyncio.run(mesh(http_scope(kind="novel"), send, send))
    assert sent == []


def test_only_a_connection_is_refused_for_its_permissions() -> None:
    asked = policy("deny", "{Permissions: [{Action: allow, HTTP: {PathPrefix: /}}]}")
    assert decide(asked, "`connection` by `web`").reason is Reason.L7_OVER_TCP
    assert decide(asked, "`GET /` by `web`").reason is Reason.PERMISSION_ALLOW


def test_the_page_has_the_precedence_that_is_computed() -> None:
    destinations = [("default", "api"), ("default", "*"), ("*", "*")]
    sources = [("default", "web"), ("default", "*"), ("*", "*")]
    for (namespace, destination), cells in zip(destinations, table("Precedence"), strict=True):
        for (source_namespace, source), cell in zip(sources, cells[1:], strict=True):
            row = Intention(
                source,
                destination,
                source_namespace=source_namespace,
                destination_namespace=namespace,
            )
            assert str(row.precedence) == cell

"""The intention that would have allowed it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from mesh_middleware.consul.decode import decode_config_entry
from mesh_middleware.observe.decisions import log_fields
from mesh_middleware.observe.decisions import logger as decision_logger
from mesh_middleware.policy.engine import compile_policy
from mesh_middleware.policy.intentions import Action, HTTPMatch, Intention, Permission
from mesh_middleware.policy.request import HTTPRequest
from mesh_middleware.policy.spiffe import ServiceIdentity, TrustDomain
from mesh_middleware.server.suggest import SuggestionHandler, suggestion

DOMAIN = "11111111-2222-3333-4444-555555555555.consul"
CALLER = ServiceIdentity(TrustDomain(DOMAIN), "web")
REQUEST = HTTPRequest("GET", b"/orders?id=1", [])


def fields(*intentions: Intention) -> dict[str, Any]:
    decision = compile_policy(intentions, trust_domain=DOMAIN).decide(CALLER, REQUEST)
    return log_fields(
        decision, service="api", source=CALLER, method=REQUEST.method, target=REQUEST.target
    )


@pytest.mark.parametrize(
    "intentions",
    [
        (),
        (Intention("web", "api", Action.DENY),),
        (Intention("*", "api", Action.DENY),),
        (
            Intention(
                "web",
                "api",
                permissions=(Permission(Action.ALLOW, HTTPMatch(path_exact="/other")),),
            ),
        ),
        (
            Intention(
                "web",
                "api",
                permissions=(Permission(Action.DENY, HTTPMatch(path_exact="/orders")),),
            ),
        ),
    ],
)
def test_what_is_suggested_is_allowed_when_followed(intentions: tuple[Intention, ...]) -> None:
    entry = suggestion(fields(*intentions))
    rows = decode_config_entry(entry)
    assert compile_policy(rows, trust_domain=DOMAIN).decide(CALLER, REQUEST).allowed


@pytest.mark.parametrize(
    "changes",
    [
        {"mesh_allowed": True},
        {"mesh_reason": "no_identity"},
        {"mesh_source": None},
        {"mesh_source": "spiffe://x/agent"},
    ],
)
def test_what_no_intention_can_allow_has_no_suggestion(changes: dict[str, Any]) -> None:
    assert suggestion({**fields(), **changes}) is None


def test_namespaces_are_kept() -> None:
    caller = ServiceIdentity(TrustDomain(DOMAIN), "web", "team")
    entry = suggestion({**fields(), "mesh_source": str(caller)})
    assert entry is not None
    assert entry["Sources"] == [{"Name": "web", "Namespace": "team", "Action": "allow"}]


@pytest.fixture
def installed() -> Iterator[None]:
    before = list(decision_logger.handlers)
    SuggestionHandler.install()
    SuggestionHandler.install()
    yield
    decision_logger.handlers[:] = before


def test_the_line_follows_the_refusal_once(
    installed: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        decision_logger.warning("refused", extra=fields())
        decision_logger.warning("left out", extra={"mesh_left_out": 3})
    lines = [line for line in caplog.messages if line.startswith("this intention would allow")]
    assert len(lines) == 1
    assert json.loads(lines[0].partition(": ")[2])["Name"] == "api"

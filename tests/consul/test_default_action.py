"""The table of what decides when no intention matches."""

from __future__ import annotations

import pytest

from mesh_middleware.consul.client import Answer
from mesh_middleware.consul.default_action import (
    DefaultAction,
    Probe,
    Silence,
    header_action,
    is_final,
    probe_result,
    probe_uri,
)
from mesh_middleware.errors import ConsulError, DecodeError
from mesh_middleware.policy.intentions import Action
from mesh_middleware.policy.spiffe import ServiceIdentity, TrustDomain

ALLOW, DENY = Action.ALLOW, Action.DENY
NOT_ASKED, CANNOT = Silence.NOT_ASKED, Silence.CANNOT

ROWS = [
    # setting, probe, header, default action
    (ALLOW, DENY, DENY, ALLOW),
    (DENY, ALLOW, ALLOW, DENY),
    (ALLOW, NOT_ASKED, None, ALLOW),
    (None, ALLOW, ALLOW, ALLOW),
    (None, ALLOW, None, ALLOW),  # 1.8.7 has no header
    (None, ALLOW, DENY, DENY),  # ACLs off, default_policy deny
    (None, DENY, ALLOW, DENY),  # default_intention_policy deny
    (None, DENY, DENY, DENY),
    (None, DENY, None, DENY),
    (None, CANNOT, ALLOW, ALLOW),
    (None, CANNOT, DENY, DENY),
    (None, CANNOT, None, DENY),
    (None, NOT_ASKED, ALLOW, None),  # the probe may still say deny
    (None, NOT_ASKED, DENY, DENY),
    (None, NOT_ASKED, None, None),
]


@pytest.mark.parametrize(("setting", "probe", "header", "expected"), ROWS)
def test_row(
    setting: Action | None, probe: Probe, header: Action | None, expected: Action | None
) -> None:
    assert DefaultAction(setting, probe, header).resolve() is expected


def test_words_say_where_it_comes_from_and_what_to_do() -> None:
    assert str(DefaultAction(ALLOW)) == "allow (by setting)"
    assert str(DefaultAction(None, DENY, ALLOW)) == "deny (probe: deny, header: allow)"
    assert "MESH_DEFAULT_ACTION" in str(DefaultAction(None, CANNOT, None))
    assert str(DefaultAction()) == "unknown (probe: not asked yet, header: none)"


@pytest.mark.parametrize(
    ("headers", "action"),
    [
        ({"x-consul-default-acl-policy": "allow"}, ALLOW),
        ({"x-consul-default-acl-policy": "deny"}, DENY),
        ({"x-consul-default-acl-policy": "extend-cache"}, DENY),
        ({"x-consul-default-acl-policy": ""}, DENY),
        ({}, None),
    ],
)
def test_header(headers: dict[str, str], action: Action | None) -> None:
    assert header_action(Answer(200, b"", None, headers)) is action


@pytest.mark.parametrize(
    ("body", "result"),
    [
        (b'{"Authorized": true, "Reason": "Default intention policy"}', ALLOW),
        (b'{"Authorized": false, "Reason": "Default behavior configured by ACLs"}', DENY),
        (b'{"Authorized": true, "Reason": "Matched L4 intention: */* => web"}', CANNOT),
        (b'{"Authorized": true, "Reason": "Matched intention: ALLOW x"}', CANNOT),
    ],
)
def test_probe(body: bytes, result: Probe) -> None:
    assert probe_result(Answer(200, body, None, {})) is result


@pytest.mark.parametrize("body", [b"<html>", b"{}", b'{"Authorized": 1}', b""])
def test_a_probe_that_cannot_be_read(body: bytes) -> None:
    with pytest.raises(DecodeError):
        probe_result(Answer(200, body, None, {}))


def test_the_probe_is_a_service_of_the_trust_domain() -> None:
    identity = ServiceIdentity.from_string(probe_uri(TrustDomain("a.consul")))
    assert (identity.trust_domain.name, identity.namespace) == ("a.consul", "zz-probe")


@pytest.mark.parametrize(
    ("error", "final"),
    [
        (ConsulError("x", status=403), True),
        (ConsulError("x", status=404), True),
        (ConsulError("x", status=500), False),
        (ConsulError("x", status=429), False),
        (ConsulError("x"), False),
        (DecodeError("x"), False),
    ],
)
def test_what_asking_again_would_not_mend(error: Exception, final: bool) -> None:
    assert is_final(error) is final

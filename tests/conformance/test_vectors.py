"""The recorded and derived decisions hold. tests/data/conformance/ says where they come from."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mesh_middleware.consul.decode import (
    decode_jwt_provider,
    decode_matches,
    decode_normalization,
    decode_peer,
)
from mesh_middleware.policy.decision import Decision, Reason
from mesh_middleware.policy.engine import Policy, compile_policy
from mesh_middleware.policy.intentions import Action
from mesh_middleware.policy.request import HTTPRequest, MalformedRequestError, read_path

DATA = Path(__file__).parent.parent / "data" / "conformance"
RULES = json.loads((DATA / "rules.json").read_text())
DEFAULTS = RULES["defaults"]


def rule_policy(case: dict[str, Any]) -> Policy:
    normalize = {**DEFAULTS["normalize"], **case.get("normalize", {})}
    mesh_entry = {
        "Kind": "mesh",
        "HTTP": {
            "Incoming": {
                "RequestNormalization": {
                    "InsecureDisablePathNormalization": not normalize["path"],
                    "MergeSlashes": normalize["merge_slashes"],
                    "PathWithEscapedSlashesAction": normalize["escaped_slashes"],
                    "HeadersWithUnderscoresAction": normalize["headers_with_underscores"],
                }
            }
        },
    }
    return compile_policy(
        decode_matches({"api": case["intentions"]}, "api"),
        default_action=Action.ALLOW if case["default_allow"] else Action.DENY,
        trust_domain=DEFAULTS["trust_domain"],
        service="api",
        normalization=decode_normalization(mesh_entry),
        jwt_providers=[
            decode_jwt_provider({"Name": name, **provider})
            for name, provider in DEFAULTS["jwt_providers"].items()
        ],
        peers=[decode_peer(bundle) for bundle in case.get("peer_trust_bundles", [])],
    )


def latin(pairs: list[list[str]]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in pairs]


def decide_rule(case: dict[str, Any]) -> Decision:
    policy = rule_policy(case)
    if case.get("mode", "http") == "tcp":
        return policy.decide_connection(case["source"])
    asked = case["request"]
    request = HTTPRequest(asked["method"], asked["path"].encode("latin-1"), latin(asked["headers"]))
    return policy.decide(case["source"], request, case.get("jwt", {}))


@pytest.mark.parametrize("case", RULES["vectors"], ids=lambda case: case["id"])
def test_derived_rule(case: dict[str, Any]) -> None:
    decision = decide_rule(case)
    decided = "allow" if decision.allowed else "deny"
    if decided != case["expected"]:
        assert case.get("may_refuse"), (decision, case["why"])
        assert not decision.allowed


def test_the_derived_rules_have_every_group() -> None:
    groups = Counter(case["group"] for case in RULES["vectors"])
    assert len(RULES["vectors"]) == 196
    assert set(groups) == set(
        """l4 spiffe l7-order path method header jwt l4-mode precedence-divergence peer normalize
        underscore""".split()
    )


def sidecar_sets(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text().splitlines()]


@pytest.mark.parametrize("name", ["sidecar-default-allow.jsonl", "sidecar-default-deny.jsonl"])
def test_recorded_sidecar(name: str) -> None:
    """Rules 1 to 3 of the recordings' README, over every request of the file."""
    judged: Counter[str] = Counter()
    for number, recorded in enumerate(sidecar_sets(name)):
        policy = compile_policy(
            decode_matches({"web": recorded["match"]}, "web"),
            default_action=Action.ALLOW if recorded["default_allow"] else Action.DENY,
            trust_domain=DEFAULTS["trust_domain"],
            service="web",
        )
        for asked in recorded["requests"]:
            decision = decide_recorded(policy, asked)
            kind = "corner" if asked.get("precedence_corner") else asked["path_kind"]
            judged[kind] += 1
            problem = disagreement(policy, asked, decision)
            assert not problem, (problem, name, number, asked, decision)
    assert judged["plain"] > 1000, judged
    assert all(judged[kind] > 20 for kind in ("corner", "encoded", "ambiguous")), judged


def identity(source: str) -> str:
    return f"spiffe://{DEFAULTS['trust_domain']}/ns/default/dc/dc1/svc/{source}"


def recorded_request(asked: dict[str, Any]) -> HTTPRequest:
    headers = [(name.encode(), value.encode()) for name, value in asked["headers"]]
    return HTTPRequest(asked["method"], asked["path"].encode(), headers)


def decide_recorded(policy: Policy, asked: dict[str, Any]) -> Decision:
    return policy.decide(identity(asked["source"]), recorded_request(asked))


def disagreement(policy: Policy, asked: dict[str, Any], decision: Decision) -> str:
    """What of the README's rules `decision` breaks; empty when it holds."""
    sidecar = asked["sidecar"]
    if asked.get("precedence_corner"):
        explained = policy.explain(identity(asked["source"]), recorded_request(asked))
        first = explained.candidates[0]
        if decision.reason is not Reason.MALFORMED_TARGET and not first.decides:
            return "the highest precedence does not decide alone"
        return ""
    if asked["path_kind"] == "plain":
        expected = sidecar == "allow"
        return "" if decision.allowed is expected else "a plain request is decided differently"
    if decision.allowed:
        return "allowed where the sidecar refuses" if sidecar == "deny" else ""
    if sidecar == "allow" and decision.reason is not Reason.MALFORMED_TARGET:
        explained = policy.explain(identity(asked["source"]), recorded_request(asked))
        if all(r.decision is not None and r.decision.allowed for r in explained.readings):
            return "refused although every reading is allowed"
    return ""


def test_a_malformed_refusal_is_never_given_for_a_path_that_can_be_read() -> None:
    """What the recordings may be refused for as malformed is malformed indeed."""
    for name in ("sidecar-default-allow.jsonl", "sidecar-default-deny.jsonl"):
        for recorded in sidecar_sets(name):
            policy = compile_policy(
                [], default_action=Action.ALLOW, trust_domain=DEFAULTS["trust_domain"]
            )
            for asked in recorded["requests"]:
                decision = decide_recorded(policy, asked)
                if asked["path_kind"] == "plain":
                    assert decision.allowed, asked
                if decision.reason is Reason.MALFORMED_TARGET and asked["path"].startswith("/"):
                    path = asked["path"].partition("?")[0].encode()
                    plain_bytes = all(0x20 < byte < 0x7F and byte != 0x23 for byte in path)
                    if plain_bytes and "#" not in asked["path"]:
                        with pytest.raises(MalformedRequestError):
                            read_path(path, policy.normalization)

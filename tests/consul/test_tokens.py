"""Providers, keys and rules from a real agent: who gets through, while all of it changes."""

from __future__ import annotations

import base64
import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import httpx
import pytest

from mesh_middleware._types import Receive, Scope, Send
from mesh_middleware.config import MeshConfig
from mesh_middleware.consul import jwks as jwks_module
from mesh_middleware.consul import learner as learner_module
from mesh_middleware.consul.manager import MeshManager
from mesh_middleware.consul.tokens import providers_named
from mesh_middleware.devagent import DevAgent
from mesh_middleware.errors import NotReadyError
from mesh_middleware.middleware.asgi import MeshMiddleware
from mesh_middleware.policy.decision import Decision, Reason
from mesh_middleware.policy.intentions import Action
from mesh_middleware.policy.request import HTTPRequest
from mesh_middleware.policy.spiffe import ServiceIdentity
from tests.consul.fake_agent import PATHS, FakeAgent, Reply
from tests.consul.key_server import KeyServer
from tests.e2e.launch import Caller
from tests.server.mesh import request, serving
from tests.support import wait_for
from tests.tls.tokens import ISSUER, bearer, jwk, jwks, token

KEYS, NEW_KEYS = jwks(jwk("ES256", "a")), jwks(jwk("ES256", "b"), jwk("ES256", "a"))


def good(name: str = "a", **claims: Any) -> bytes:
    """A token that is good by the real clock."""
    return token(name=name, exp=time.time() + 60, **claims)


def requires(*names: str, **claim: str) -> dict[str, Any]:
    verify = [{"Path": [key], "Value": value} for key, value in claim.items()]
    return {"Providers": [{"Name": name, "VerifyClaims": verify} for name in names]}


def intentions(*names: str, **claim: str) -> dict[str, Any]:
    """`web` may call `api` with a token, and ``/open`` without one."""
    return {
        "Kind": "service-intentions",
        "Name": "api",
        "Sources": [
            {
                "Name": "web",
                "Permissions": [
                    {"Action": "allow", "HTTP": {"PathExact": "/open"}},
                    {
                        "Action": "allow",
                        "HTTP": {"PathPrefix": "/"},
                        **({"JWT": requires(*names, **claim)} if names else {}),
                    },
                ],
            }
        ],
    }


def local(document: bytes = KEYS) -> dict[str, Any]:
    return {"Local": {"JWKS": base64.b64encode(document).decode()}}


def provider_entry(name: str = "okta", **changes: Any) -> dict[str, Any]:
    return {
        "Kind": "jwt-provider",
        "Name": name,
        "Issuer": ISSUER,
        "JSONWebKeySet": local(),
        **changes,
    }


@pytest.fixture
def agent() -> Iterator[DevAgent]:
    protocol = {"Kind": "service-defaults", "Name": "api", "Protocol": "http"}
    with DevAgent(intentions=[protocol, intentions("okta"), provider_entry()]) as agent:
        yield agent


@pytest.fixture
def manager(agent: DevAgent) -> Iterator[MeshManager]:
    with MeshManager(MeshConfig("api", address=agent.address, wait_seconds=5)) as manager:
        manager.wait_ready(10)
        yield manager


def decide(manager: MeshManager, asked: HTTPRequest) -> Decision:
    state = manager.state
    assert state.policy is not None
    caller = ServiceIdentity(state.policy.trust_domain, "web")
    claims = {} if state.tokens is None else state.tokens.claims(asked)
    return state.policy.decide(caller, asked, claims)


def reason(manager: MeshManager, text: bytes) -> Reason:
    return decide(manager, bearer(text)).reason


def comes_to(manager: MeshManager, text: bytes, wanted: Reason) -> None:
    wait_for(lambda: reason(manager, text) is wanted, message=f"it is {reason(manager, text)}")


def remove(agent: DevAgent, kind: str, name: str) -> None:
    answer = httpx.delete(f"{agent.address}/v1/config/{kind}/{name}", trust_env=False)
    assert answer.status_code == 200, answer.text


def test_tokens_count_as_the_rules_ask(agent: DevAgent, manager: MeshManager) -> None:
    comes_to(manager, good(), Reason.PERMISSION_ALLOW)
    assert decide(manager, HTTPRequest("GET", b"/")).reason is Reason.JWT_MISSING
    assert reason(manager, b"opaque") is Reason.JWT_INVALID
    assert reason(manager, token(exp=time.time() - 60)) is Reason.JWT_INVALID
    agent.put_intentions([intentions("okta", role="admin")])
    comes_to(manager, good(), Reason.JWT_CLAIMS)
    assert reason(manager, good(role="admin")) is Reason.PERMISSION_ALLOW
    assert reason(manager, good(role=["user", "admin"])) is Reason.PERMISSION_ALLOW


def test_an_unneeded_list_of_providers_is_never_asked_for() -> None:
    rows = [{"SourceName": "web", "DestinationName": "api", "Action": "allow", "Precedence": 9}]
    with FakeAgent("api") as agent:
        agent.set(match=Reply.json({"api": rows}, 5))
        with MeshManager(MeshConfig("api", address=agent.address, wait_seconds=1)) as manager:
            manager.wait_ready(10)
            generation = manager.state.generation
            agent.set(match=Reply.json({"api": [{**rows[0], "Action": "deny"}]}, 6))
            wait_for(lambda: manager.state.generation > generation)
            assert manager.state.tokens is None
    assert not [asked for asked in agent.asked if "jwt-provider" in asked.path]


def test_providers_come_and_go_with_the_rules(agent: DevAgent, manager: MeshManager) -> None:
    comes_to(manager, good(), Reason.PERMISSION_ALLOW)
    agent.put_intentions([intentions()])
    wait_for(lambda: manager.state.tokens is None)
    assert decide(manager, HTTPRequest("GET", b"/")).reason is Reason.PERMISSION_ALLOW
    agent.put_intentions([intentions("okta")])
    comes_to(manager, good(), Reason.PERMISSION_ALLOW)


def test_only_providers_that_rules_name_are_used(agent: DevAgent, manager: MeshManager) -> None:
    agent.put_intentions([provider_entry("other", Locations=[{"Header": {"Name": "cookie"}}])])
    comes_to(manager, good(), Reason.PERMISSION_ALLOW)
    tokens = manager.state.tokens
    assert tokens is not None
    assert [provider.name for provider in tokens.providers] == ["okta"]


def test_a_provider_that_is_removed_is_unknown(
    agent: DevAgent, manager: MeshManager, caplog: pytest.LogCaptureFixture
) -> None:
    comes_to(manager, good(), Reason.PERMISSION_ALLOW)
    caplog.set_level(logging.WARNING, "mesh_middleware.consul")
    remove(agent, "jwt-provider", "okta")
    comes_to(manager, good(), Reason.JWT_PROVIDER_UNKNOWN)
    agent.put_intentions([provider_entry()])
    comes_to(manager, good(), Reason.PERMISSION_ALLOW)
    said = [record.message for record in caplog.records if "okta" in record.message]
    assert said == [
        "api: jwt provider 'okta': there is no such jwt-provider entry; rules that name it refuse"
    ]


def test_a_provider_with_an_unknown_condition_is_unknown(
    agent: DevAgent, manager: MeshManager, caplog: pytest.LogCaptureFixture
) -> None:
    comes_to(manager, good(), Reason.PERMISSION_ALLOW)
    agent.put_intentions([provider_entry(RequiredClaims=["sub"])])
    comes_to(manager, good(), Reason.JWT_PROVIDER_UNKNOWN)
    agent.put_intentions([intentions("okta", "other")])
    wait_for(lambda: "'other': there is no such" in caplog.text)
    assert caplog.text.count("'RequiredClaims' is not known; rules that name it refuse") == 1


def test_a_change_of_the_entry_takes_effect(agent: DevAgent, manager: MeshManager) -> None:
    comes_to(manager, good(), Reason.PERMISSION_ALLOW)
    agent.put_intentions([provider_entry(Audiences=["api"])])
    comes_to(manager, good(), Reason.JWT_INVALID)
    assert reason(manager, good(aud="api")) is Reason.PERMISSION_ALLOW
    agent.put_intentions([provider_entry(Issuer="https://other.example")])
    comes_to(manager, good(), Reason.JWT_INVALID)
    comes_to(manager, good(iss="https://other.example"), Reason.PERMISSION_ALLOW)
    agent.put_intentions([provider_entry(JSONWebKeySet=local(NEW_KEYS))])
    comes_to(manager, good("b"), Reason.PERMISSION_ALLOW)


def test_keys_that_cannot_be_used_are_named(
    agent: DevAgent, manager: MeshManager, caplog: pytest.LogCaptureFixture
) -> None:
    comes_to(manager, good(), Reason.PERMISSION_ALLOW)
    document = jwks({"kty": "oct", "k": "AAAA"}, jwk("ES256", "b"))
    agent.put_intentions([provider_entry(JSONWebKeySet=local(document))])
    comes_to(manager, good("b"), Reason.PERMISSION_ALLOW)
    assert "jwt provider 'okta': keys[0]: left out" in caplog.text
    agent.put_intentions([provider_entry(JSONWebKeySet=local(b"<html>"))])
    comes_to(manager, good("b"), Reason.JWT_INVALID)
    part = "keys of jwt provider 'okta'"
    wait_for(lambda: part in manager.last_errors)
    assert "the JWKS is not JSON" in manager.last_errors[part]
    remove(agent, "jwt-provider", "okta")
    wait_for(lambda: part not in manager.last_errors)


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown keys may be fetched often, failures are tried again soon."""
    defaults = jwks_module.RemoteKeys.__init__.__kwdefaults__
    monkeypatch.setitem(defaults, "hurry_seconds", 0.05)
    monkeypatch.setitem(defaults, "failed_seconds", 0.05)


@pytest.mark.usefixtures("_quick")
def test_an_unknown_key_is_refused_and_fetched_for_the_next_time(
    agent: DevAgent, manager: MeshManager
) -> None:
    with KeyServer(KEYS) as server:
        agent.put_intentions([provider_entry(JSONWebKeySet={"Remote": {"URI": server.uri}})])
        wait_for(lambda: server.asked)
        comes_to(manager, good(), Reason.PERMISSION_ALLOW)
        server.document = NEW_KEYS
        asked = server.asked
        new = good("b")
        assert reason(manager, new) is Reason.JWT_INVALID
        wait_for(lambda: server.asked > asked)
        comes_to(manager, new, Reason.PERMISSION_ALLOW)
        assert reason(manager, good()) is Reason.PERMISSION_ALLOW


def test_a_flood_of_unknown_keys_asks_the_issuer_once(
    agent: DevAgent, manager: MeshManager
) -> None:
    with KeyServer(KEYS) as server:
        agent.put_intentions([provider_entry(JSONWebKeySet={"Remote": {"URI": server.uri}})])
        wait_for(lambda: server.asked)
        comes_to(manager, good(), Reason.PERMISSION_ALLOW)
        for n in range(500):
            assert reason(manager, good(headers={"kid": str(n)})) is Reason.JWT_INVALID
        assert server.asked == 1


@pytest.mark.usefixtures("_quick")
def test_an_issuer_that_is_away_leaves_the_last_keys(agent: DevAgent, manager: MeshManager) -> None:
    remote = {"Remote": {"CacheDuration": "100ms"}}
    part = "keys of jwt provider 'okta'"
    with KeyServer(KEYS) as server:
        remote["Remote"]["URI"] = server.uri
        agent.put_intentions([provider_entry(JSONWebKeySet=remote)])
        wait_for(lambda: server.asked)
        server.status = 500
        wait_for(lambda: part in manager.last_errors)
        assert "status 500 instead of 200; tokens are verified" in manager.last_errors[part]
        assert reason(manager, good()) is Reason.PERMISSION_ALLOW
        assert manager.ready
        server.status = 200
        wait_for(lambda: part not in manager.last_errors)


def test_what_rules_do_not_name_changes_nothing_and_what_none_names_is_not_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(PATHS, "providers", "/v1/config/jwt-provider")
    row = {"SourceName": "web", "DestinationName": "api", "Action": "allow", "Precedence": 9}
    needing = {**row, "JWT": requires("okta")}
    with FakeAgent("api", match=Reply.json({"api": [needing]}, 5)) as agent:
        agent.set(providers=Reply.json([provider_entry()], 5))
        with MeshManager(MeshConfig("api", address=agent.address, wait_seconds=0.2)) as manager:
            manager.wait_ready(10)
            comes_to(manager, good(), Reason.INTENTION_ALLOW)
            before = manager.state.tokens
            agent.set(providers=Reply.json([provider_entry(), provider_entry("other")], 6))
            wait_for(lambda: agent.last("providers").query.get("index") == "6")
            assert manager.state.tokens is before
            agent.set(match=Reply.json({"api": [row]}, 6))
            wait_for(lambda: manager.state.tokens is None)
            asked = agent.count("providers")
            for index in ("6", "7"):  # a whole wait, then another
                agent.set(match=Reply.json({"api": [row]}, int(index)))
                count = agent.count("match")
                wait_for(lambda count=count: agent.count("match") > count + 2)
            assert agent.count("providers") == asked


@pytest.mark.parametrize("body", [b"<html>", b'{"okta": {}}', b'[{"Kind": "jwt-provider"}]'])
def test_a_list_that_cannot_be_read_lets_no_token_count(
    body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PATHS, "providers", "/v1/config/jwt-provider")
    row = {
        "SourceName": "web",
        "DestinationName": "api",
        "Action": "allow",
        "JWT": requires("okta"),
        "Precedence": 9,
    }
    with FakeAgent("api", match=Reply.json({"api": [row]}, 5)) as agent:
        agent.set(providers=Reply.json([provider_entry()], 5))
        with MeshManager(MeshConfig("api", address=agent.address, wait_seconds=0.3)) as manager:
            manager.wait_ready(10)
            comes_to(manager, good(), Reason.INTENTION_ALLOW)
            agent.set(providers=Reply(body=body, index=6))
            comes_to(manager, good(), Reason.JWT_INVALID)
            assert "rules that need tokens refuse" in manager.last_errors["jwt providers"]
            agent.set(providers=Reply(status=500, body=b"no leader"))
            wait_for(lambda: "no leader" in manager.last_errors["jwt providers"])
            assert reason(manager, good()) is Reason.JWT_INVALID
            agent.set(providers=Reply.json([provider_entry()], 7))
            comes_to(manager, good(), Reason.INTENTION_ALLOW)
            agent.set(providers=Reply(status=500, body=b"no leader"))
            wait_for(lambda: "jwt providers" in manager.last_errors)
            assert reason(manager, good()) is Reason.INTENTION_ALLOW


def test_a_missing_library_refuses_and_is_said_once(
    agent: DevAgent, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    text = good()
    monkeypatch.setitem(sys.modules, "jwt", None)
    config = MeshConfig("api", address=agent.address, wait_seconds=0.3)
    with MeshManager(config) as manager:
        manager.wait_ready(10)
        wait_for(lambda: "jwt providers" in manager.last_errors)
        assert reason(manager, text) is Reason.JWT_PROVIDER_UNKNOWN
        agent.put_intentions([intentions("okta", "other")])
        generation = manager.state.generation
        wait_for(lambda: manager.state.generation > generation)
        assert "install mesh-middleware[jwt]" in manager.last_errors["jwt providers"]
    assert caplog.text.count("install mesh-middleware[jwt]") == 1


# -- all of it --------------------------------------------------------------------------------


async def shows_headers(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the headers that the application sees."""
    shown = {name.decode(): value.decode() for name, value in scope["headers"]}
    body = json.dumps(shown).encode()
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": body})


def test_a_served_application_sees_payloads_and_no_tokens(
    agent: DevAgent, manager: MeshManager
) -> None:
    agent.put_intentions([provider_entry(Forwarding={"HeaderName": "X-JWT-Payload"})])
    comes_to(manager, good(), Reason.PERMISSION_ALLOW)
    wait_for(lambda: manager.state.tokens and manager.state.tokens.providers[0].forwarding)
    app = MeshMiddleware(shows_headers, mesh=manager)
    caller = Caller.of(agent.address, "web")
    forged = {"X-JWT-Payload": "Zm9yZ2Vk", "x_jwt_payload": "Zm9yZ2Vk"}
    with (
        serving(app, manager.server_context()) as port,
        closing(caller.connect(port, "api")) as connection,
    ):

        def ask(target: str, text: bytes | None) -> tuple[int, dict[str, Any]]:
            headers = {"authorization": f"Bearer {text.decode()}"} if text else {}
            status, body = request(connection, target, {**headers, **forged})
            return status, json.loads(body)

        status, seen = ask("/data", good(sub="bob"))
        assert status == 200
        payload = json.loads(base64.urlsafe_b64decode(seen.pop("x-jwt-payload") + "=="))
        assert payload["sub"] == "bob"
        assert seen == {"host": "mesh"}
        assert ask("/open", None) == (200, {"host": "mesh"})
        assert ask("/open", b"opaque") == (200, {"host": "mesh"})
        for text, why in [(None, "jwt_missing"), (b"opaque", "jwt_invalid")]:
            status, problem = ask("/data", text)
            assert (status, problem["reason"]) == (403, why)
        agent.put_intentions([intentions("okta", role="admin")])
        wait_for(lambda: ask("/data", good())[0] == 403)
        assert ask("/data", good())[1]["reason"] == "jwt_claims"
        assert ask("/data", good(role="admin"))[0] == 200


def test_a_default_of_allow_does_not_help_without_a_token(agent: DevAgent) -> None:
    config = MeshConfig("api", address=agent.address, default_action=Action.ALLOW)
    with MeshManager(config) as manager:
        manager.wait_ready(10)
        comes_to(manager, good(), Reason.PERMISSION_ALLOW)
        assert decide(manager, HTTPRequest("GET", b"/")).reason is Reason.JWT_MISSING


# -- headers that only a provider may fill -----------------------------------------------------

FORWARDING = {"HeaderName": "X-JWT-Payload"}
FORGED = (b"x-jwt-payload", b"Zm9yZ2Vk")
ROW = {"SourceName": "web", "DestinationName": "api", "Action": "allow", "Precedence": 9}


def hides(manager: MeshManager, line: tuple[bytes, bytes] = FORGED) -> bool:
    tokens = manager.state.tokens
    return tokens is not None and list(tokens.scrub([line])) == []


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeAgent]:
    monkeypatch.setitem(PATHS, "providers", "/v1/config/jwt-provider")
    with FakeAgent("api", match=Reply.json({"api": [ROW]}, 5)) as fake:
        fake.set(providers=Reply.json([provider_entry(Forwarding=FORWARDING)], 5))
        yield fake


NEEDING = {"api": [{**ROW, "JWT": requires("okta")}]}
DENIED = Reply(status=403, body=b"Permission denied")


def test_there_is_no_policy_until_the_providers_of_its_rules_were_listed(fake: FakeAgent) -> None:
    fake.set(match=Reply.json(NEEDING, 6), providers=DENIED)
    with MeshManager(MeshConfig("api", address=fake.address, wait_seconds=0.2)) as manager:
        wait_for(lambda: manager.state.missing() == ("jwt providers",))
        wait_for(lambda: "jwt providers" in manager.last_errors)
        with pytest.raises(NotReadyError, match="jwt providers: status 403: ") as caught:
            manager.wait_ready(0.01)
        assert caught.value.missing == ("jwt providers",)
        assert manager.state.policy is None
        fake.set(providers=Reply.json([provider_entry(Forwarding=FORWARDING)], 6))
        manager.wait_ready(10)
        assert hides(manager)
        fake.set(providers=DENIED)
        wait_for(lambda: "jwt providers" in manager.last_errors)
        assert hides(manager)
        assert manager.ready


def test_new_rules_wait_for_their_providers_and_the_last_ones_stay_meanwhile(
    fake: FakeAgent,
) -> None:
    with MeshManager(MeshConfig("api", address=fake.address, wait_seconds=0.2)) as manager:
        manager.wait_ready(10)
        seen = [manager.state]
        manager.subscribe(seen.append)
        fake.set(match=Reply.json(NEEDING, 6))
        wait_for(lambda: hides(manager))
        other = provider_entry("other", Forwarding={"HeaderName": "x-other"})
        fake.set(providers=Reply.json([provider_entry(Forwarding=FORWARDING), other], 6))
        wait_for(lambda: fake.last("providers").query.get("index") == "6")
        fake.set(match=Reply.json({"api": [{**ROW, "JWT": requires("okta", "other")}]}, 7))
        wait_for(lambda: hides(manager, (b"x-other", b"Zm9yZ2Vk")))
    for state in seen[:-1]:  # the last one is that of a closed manager
        assert state.policy is not None
        names = providers_named(state.policy)
        for name, header in (("okta", b"x-jwt-payload"), ("other", b"x-other")):
            assert name not in names or (
                state.tokens is not None and not state.tokens.scrub([(header, b"x")])
            )
    generations = [state.generation for state in seen]
    assert generations == sorted(set(generations))


def test_old_rules_do_not_stay_when_the_providers_of_the_new_cannot_be_read(
    fake: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learner_module, "HOLD_SECONDS", 0.2)
    monkeypatch.setattr(learner_module, "TICK_SECONDS", 0.05)
    fake.set(providers=DENIED)
    with MeshManager(MeshConfig("api", address=fake.address, wait_seconds=0.2)) as manager:
        manager.wait_ready(10)
        fake.set(match=Reply.json(NEEDING, 6))
        wait_for(lambda: not manager.ready)
        assert manager.state.policy is None
        fake.set(match=Reply.json({"api": [ROW]}, 7))
        manager.wait_ready(10)


@pytest.mark.parametrize(
    "listed",
    [
        [],
        [provider_entry(RequiredClaims=["sub"])],
        [provider_entry(Forwarding=FORWARDING, RequiredClaims=["sub"])],
        [provider_entry(Forwarding="odd")],
    ],
)
def test_a_header_stays_hidden_when_its_provider_goes_or_cannot_be_used(
    fake: FakeAgent, listed: list[Any]
) -> None:
    fake.set(match=Reply.json(NEEDING, 6))
    with MeshManager(MeshConfig("api", address=fake.address, wait_seconds=0.2)) as manager:
        manager.wait_ready(10)
        comes_to(manager, good(), Reason.INTENTION_ALLOW)
        fake.set(providers=Reply.json(listed, 6))
        comes_to(manager, good(), Reason.JWT_PROVIDER_UNKNOWN)
        assert hides(manager)
        assert hides(manager, (b"authorization", b"Bearer x"))
        named = provider_entry(Forwarding={"HeaderName": "x-new"})
        fake.set(providers=Reply.json([named], 7))
        wait_for(lambda: hides(manager, (b"x-new", b"x")))
        assert not hides(manager)


def test_an_entry_that_cannot_be_used_hides_its_headers_from_the_start(fake: FakeAgent) -> None:
    entry = provider_entry(Forwarding=FORWARDING, RequiredClaims=["sub"])
    fake.set(match=Reply.json(NEEDING, 6), providers=Reply.json([entry], 6))
    with MeshManager(MeshConfig("api", address=fake.address, wait_seconds=0.2)) as manager:
        manager.wait_ready(10)
        assert hides(manager)
        assert reason(manager, good()) is Reason.JWT_PROVIDER_UNKNOWN


def test_headers_are_hidden_without_the_library_too(
    fake: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jwt", None)
    fake.set(match=Reply.json(NEEDING, 6))
    with MeshManager(MeshConfig("api", address=fake.address, wait_seconds=0.2)) as manager:
        manager.wait_ready(10)
        assert hides(manager)
        assert decide(manager, HTTPRequest("GET", b"/")).reason is Reason.JWT_PROVIDER_UNKNOWN

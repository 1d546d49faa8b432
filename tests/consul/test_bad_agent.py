"""A manager and an agent that misbehaves: what is kept, what refuses, and that it recovers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mesh_middleware.config import MeshConfig
from mesh_middleware.consul.manager import MeshManager
from mesh_middleware.devagent.ca import CertificateAuthority
from mesh_middleware.errors import NotReadyError
from mesh_middleware.policy.decision import Reason
from mesh_middleware.policy.intentions import Action
from tests.consul.fake_agent import FakeAgent, Reply
from tests.support import wait_for

HTML = Reply(body=b"<html>Bad gateway</html>", index=77)
HALF_JSON = Reply(body=b'{"web": [{"SourceName": "a"', index=77)
WRONG_SHAPE = Reply.json({"web": {"not": "a list"}}, 77)
WRONG_KEY = Reply.json({"other": []}, 77)
BAD_GZIP = Reply(body=b"not gzip", index=77, headers={"Content-Encoding": "gzip"})
NOTHING = Reply(body=b"", index=77)
HALF_BODY = Reply(raw=b'HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\n{"web": null')
CLOSED = Reply(raw=b"")
REFUSED = Reply(status=403, body=b"Permission denied", index=1)
GONE = Reply(status=404)
BROKEN = Reply(status=500, body=b"rpc error", index=1)

Manage = Callable[..., MeshManager]
ROW = {"SourceName": "a", "DestinationName": "web", "Action": "allow", "Precedence": 9}


@pytest.fixture
def agent() -> Iterator[FakeAgent]:
    with FakeAgent() as agent:
        yield agent


@pytest.fixture
def manage() -> Iterator[Manage]:
    """Starts managers of an agent, with short waits; closes them at the end."""
    started: list[MeshManager] = []

    def start(agent: FakeAgent, **settings: Any) -> MeshManager:
        settings = {"wait_seconds": 0.3, **settings}
        manager = MeshManager(MeshConfig("web", address=agent.address, **settings))
        started.append(manager)
        manager.start()
        return manager

    yield start
    for manager in started:
        manager.close()


@pytest.mark.parametrize("bad", [HTML, HALF_JSON, WRONG_SHAPE, WRONG_KEY, NOTHING, BAD_GZIP])
def test_undecodable_intentions_refuse_everything_until_good_ones_come(
    agent: FakeAgent, manage: Manage, bad: Reply
) -> None:
    manager = manage(agent)
    before = manager.wait_ready(5)
    agent.set(match=bad)
    wait_for(lambda: manager.state.fault is Reason.POLICY_UNDECODABLE)
    assert not manager.ready
    assert "everything is refused" in manager.last_errors["intentions"]
    with pytest.raises(NotReadyError, match="everything is refused"):
        manager.wait_ready(0)
    agent.set(match=agent.good()["match"])
    after = wait_for(lambda: manager.state.fault is None and manager.state)
    assert after.policy is before.policy
    assert "intentions" not in manager.last_errors


@pytest.mark.parametrize("bad", [HALF_BODY, CLOSED, REFUSED, GONE, BROKEN])
@pytest.mark.parametrize("part", ["roots", "leaf", "match"])
def test_failures_keep_the_last_state(
    agent: FakeAgent, manage: Manage, part: str, bad: Reply
) -> None:
    manager = manage(agent)
    before = manager.wait_ready(5)
    agent.set(**{part: bad})
    name = "intentions" if part == "match" else part
    wait_for(lambda: name in manager.last_errors)
    assert manager.ready
    assert manager.state.generation == before.generation
    agent.set(**{part: agent.good(index=99)[part]})
    wait_for(lambda: not manager.last_errors)
    assert manager.ready


@pytest.mark.parametrize("bad", [HTML, HALF_JSON, NOTHING, Reply.json([], 77)])
@pytest.mark.parametrize("part", ["roots", "leaf"])
def test_undecodable_roots_or_leaf_keep_the_last_state(
    agent: FakeAgent, manage: Manage, part: str, bad: Reply
) -> None:
    manager = manage(agent)
    before = manager.wait_ready(5)
    agent.set(**{part: bad})
    wait_for(lambda: part in manager.last_errors)
    assert manager.ready
    assert manager.state.contexts is before.contexts
    assert "the last state stays" in manager.last_errors[part]
    assert manager.last_failure_kind == "other"


def test_a_leaf_with_another_key_is_not_taken(agent: FakeAgent, manage: Manage) -> None:
    manager = manage(agent)
    before = manager.wait_ready(5)
    document = agent.ca.issue("web").document()
    document["PrivateKeyPEM"] = agent.ca.issue("web").document()["PrivateKeyPEM"]
    agent.set(leaf=Reply.json(document, 9))
    failure = wait_for(lambda: manager.last_errors.get("leaf"))
    assert "does not fit the certificate" in failure
    assert "BEGIN" not in failure
    assert manager.state.svid is before.svid


def test_a_leaf_of_another_service_is_not_taken(agent: FakeAgent, manage: Manage) -> None:
    manager = manage(agent)
    before = manager.wait_ready(5)
    agent.set(leaf=Reply.json(agent.ca.issue("admin").document(), 9))
    assert "admin" in wait_for(lambda: manager.last_errors.get("leaf"))
    assert manager.state.svid is before.svid


def test_a_leaf_of_other_roots_is_not_taken_and_said(agent: FakeAgent, manage: Manage) -> None:
    manager = manage(agent)
    before = manager.wait_ready(5)
    foreign = CertificateAuthority("fake.consul")
    agent.set(leaf=Reply.json(foreign.issue("web").document(), 9))
    failure = wait_for(lambda: manager.last_errors.get("leaf (rejected)"))
    assert "does not lead to any" in failure
    assert manager.ready
    assert manager.state.contexts is before.contexts
    agent.set(roots=Reply.json(foreign.roots_document(), 9))
    wait_for(lambda: manager.state.contexts is not before.contexts)
    wait_for(lambda: not manager.last_errors)


def test_another_trust_domain_comes_with_roots_and_leaf_together(
    agent: FakeAgent, manage: Manage, caplog: pytest.LogCaptureFixture
) -> None:
    manager = manage(agent)
    before = manager.wait_ready(5)
    other = CertificateAuthority("other.consul")
    agent.set(roots=agent.good(other, 9)["roots"])
    wait_for(lambda: manager.last_errors.get("roots (rejected)"))
    assert manager.state.bundle is before.bundle
    agent.set(leaf=agent.good(other, 9)["leaf"])
    state = wait_for(lambda: manager.state.bundle is not before.bundle and manager.state)
    assert state.bundle is not None
    assert state.policy is not None
    assert state.bundle.trust_domain.name == state.policy.trust_domain.name == "other.consul"
    wait_for(lambda: "trust domain changed from fake.consul to other.consul" in caplog.text)
    record = next(r for r in caplog.records if vars(r).get("mesh_event") == "trust domain")
    assert record.levelno == logging.ERROR


def test_a_pinned_trust_domain_does_not_follow(agent: FakeAgent, manage: Manage) -> None:
    manager = manage(agent, trust_domain="fake.consul")
    before = manager.wait_ready(5)
    other = CertificateAuthority("other.consul")
    good = agent.good(other, 9)
    agent.set(roots=good["roots"], leaf=good["leaf"])
    assert "MESH_TRUST_DOMAIN" in wait_for(lambda: manager.last_errors.get("roots"))
    wait_for(lambda: "leaf (rejected)" in manager.last_errors)
    assert manager.state.bundle is before.bundle
    assert manager.state.svid is before.svid


def test_an_index_that_goes_back_is_the_new_truth(agent: FakeAgent, manage: Manage) -> None:
    agent.set(match=Reply.json({"web": None}, 56))
    manager = manage(agent)
    manager.wait_ready(5)
    wait_for(lambda: agent.last("match").query.get("index") == "56")
    asked = agent.count("match")
    agent.set(match=Reply.json({"web": [ROW]}, 10))
    wait_for(lambda: manager.state.policy and manager.state.policy.intentions)
    wait_for(lambda: agent.count("match") >= asked + 2)
    queries = [a.query.get("index") for a in agent.asked if a.key == "match"][asked:]
    assert queries[:2] == [None, "10"]


@pytest.mark.parametrize("index", [str(2**64 - 1), "18446744073709551616", "-5", "soon"])
def test_a_strange_index_hurts_nobody(agent: FakeAgent, manage: Manage, index: str) -> None:
    strange = agent.good()["match"]
    strange.index, strange.headers["X-Consul-Index"] = None, index
    agent.set(match=strange)
    manager = manage(agent)
    manager.wait_ready(5)
    agent.set(match=Reply.json({"web": [ROW]}, 3))
    wait_for(lambda: manager.state.policy and manager.state.policy.intentions)


def test_errors_carry_no_index(agent: FakeAgent, manage: Manage) -> None:
    manager = manage(agent)
    manager.wait_ready(5)
    agent.set(match=BROKEN)
    wait_for(lambda: "intentions" in manager.last_errors)
    asked = agent.count("match")
    wait_for(lambda: agent.count("match") > asked)
    assert "index" not in agent.last("match").query


def test_wait_is_always_sent(agent: FakeAgent, manage: Manage) -> None:
    manage(agent).wait_ready(5)
    asked = [a for a in tuple(agent.asked) if a.key in {"roots", "leaf", "match"}]
    assert {a.query["wait"] for a in asked} == {"300ms"}


def test_an_agent_that_answers_at_once_is_asked_twice_a_second(
    agent: FakeAgent, manage: Manage
) -> None:
    restless = agent.good()["roots"]
    restless.index, restless.headers["X-Consul-Index"] = None, "1"
    agent.set(roots=restless)  # the same index again and again, without blocking
    manage(agent)
    wait_for(lambda: agent.count("roots") >= 12, 5)
    times = [a.at for a in agent.asked if a.key == "roots"]
    assert times[11] - times[0] >= 0.9


def test_an_agent_of_1_8_7_is_woken_by_the_list(agent: FakeAgent, manage: Manage) -> None:
    """Its match answers carry no index; the list of all intentions does."""
    agent.set(match=Reply.json({"web": None}, None), intentions=Reply.json([], 40))
    manager = manage(agent, wait_seconds=30)
    manager.wait_ready(5)
    wait_for(lambda: agent.count("intentions") >= 2)
    time_of_change = time.monotonic()
    agent.set(match=Reply.json({"web": [ROW]}, None), intentions=Reply.json([ROW], 41))
    wait_for(lambda: manager.state.policy and manager.state.policy.intentions, 1.5)
    assert time.monotonic() - time_of_change < 1.5
    assert agent.count("match") <= 5


def test_cached_intentions_start_a_service_while_the_servers_are_away(
    agent: FakeAgent, manage: Manage
) -> None:
    agent.set(match=BROKEN)
    manager = manage(agent)
    wait_for(lambda: agent.count("match") >= 2)
    queries = [a.query for a in agent.asked if a.key == "match"]
    assert "cached" not in queries[0]
    assert "cached" in queries[1]
    assert "index" not in queries[1]
    agent.set(match=Reply.json({"web": None}, 5, Age="30", X_Consul_Default_Acl_Policy="deny"))
    state = manager.wait_ready(5)
    assert time.time() - state.updated["intentions"] == pytest.approx(30, abs=3)
    agent.set(match=BROKEN)
    asked = agent.count("match")
    wait_for(lambda: agent.count("match") >= asked + 3)
    later = [a.query for a in agent.asked if a.key == "match"][asked:]
    assert not [query for query in later if "cached" in query]  # it might be older than ours


def test_stale_intentions_refuse_and_recover(
    agent: FakeAgent, manage: Manage, caplog: pytest.LogCaptureFixture
) -> None:
    manager = manage(agent, max_staleness_seconds=0.8)
    manager.wait_ready(5)
    agent.set(match=BROKEN)
    wait_for(lambda: manager.state.fault is Reason.STALE_POLICY)
    assert not manager.ready
    agent.set(match=agent.good(index=9)["match"])
    wait_for(lambda: manager.state.fault is None)
    assert manager.ready
    assert caplog.text.count("MESH_MAX_STALENESS_SECONDS") == 1


def test_waiting_is_shorter_than_the_staleness_bound(agent: FakeAgent, manage: Manage) -> None:
    manage(agent, wait_seconds=60, max_staleness_seconds=2).wait_ready(5)
    assert agent.last("match").query["wait"] == "500ms"


# -- the default action -----------------------------------------------------------------------


def defaults(manager: MeshManager) -> Action | None:
    return manager.state.policy.default_action if manager.state.policy else None


ALLOWED = Reply.json({"Authorized": True, "Reason": "Default intention policy"})
MATCHED = Reply.json({"Authorized": True, "Reason": "Matched L4 intention: */* => default/web"})


def header(action: str | None) -> Reply:
    reply = Reply.json({"web": None}, 6)
    if action:
        reply.headers["X-Consul-Default-Acl-Policy"] = action
    return reply


@pytest.mark.parametrize(
    ("probe", "said", "expected"),
    [
        (ALLOWED, "allow", Action.ALLOW),
        (ALLOWED, None, Action.ALLOW),
        (ALLOWED, "deny", Action.DENY),
        (MATCHED, "allow", Action.ALLOW),
        (MATCHED, None, Action.DENY),
        (REFUSED, None, Action.DENY),
    ],
)
def test_default_action_is_found_out(
    agent: FakeAgent, manage: Manage, probe: Reply, said: str | None, expected: Action
) -> None:
    agent.set(authorize=probe, match=header(said))
    manager = manage(agent)
    manager.wait_ready(5)
    assert defaults(manager) is expected


@pytest.mark.parametrize("probe", [BROKEN, HTML, CLOSED])
def test_a_probe_that_fails_leaves_the_default_unknown(
    agent: FakeAgent, manage: Manage, probe: Reply
) -> None:
    agent.set(authorize=probe, match=header("allow"))
    manager = manage(agent)
    wait_for(lambda: "default action" in manager.last_errors)
    wait_for(lambda: manager.state.missing() == ("default action",))
    agent.set(authorize=ALLOWED)
    manager.wait_ready(5)
    assert defaults(manager) is Action.ALLOW


def test_a_setting_wins_and_nobody_is_asked(agent: FakeAgent, manage: Manage) -> None:
    agent.set(match=header("deny"))
    manager = manage(agent, default_action=Action.ALLOW)
    manager.wait_ready(5)
    assert defaults(manager) is Action.ALLOW
    assert agent.count("authorize") == 0


def test_a_change_of_the_header_probes_again(agent: FakeAgent, manage: Manage) -> None:
    agent.set(authorize=ALLOWED, match=header("allow"))
    manager = manage(agent)
    manager.wait_ready(5)
    wait_for(lambda: defaults(manager) is Action.ALLOW)
    asked = agent.count("authorize")
    agent.set(match=header("deny"))
    wait_for(lambda: defaults(manager) is Action.DENY)
    wait_for(lambda: agent.count("authorize") > asked)


def test_a_reconnect_probes_again(agent: FakeAgent, manage: Manage) -> None:
    """The agent that comes back may be configured otherwise."""
    good = agent.good()
    for part in ("roots", "leaf", "match"):  # a real agent's header is on every answer
        good[part].headers["X-Consul-Default-Acl-Policy"] = "allow"
    agent.set(**{**good, "authorize": ALLOWED})
    manager = manage(agent)
    manager.wait_ready(5)
    agent.set(leaf=CLOSED)
    wait_for(lambda: "leaf" in manager.last_errors)
    agent.set(authorize=agent.good()["authorize"])
    assert defaults(manager) is Action.ALLOW
    agent.set(leaf=good["leaf"])
    wait_for(lambda: defaults(manager) is Action.DENY)


def test_the_probe_is_repeated(
    agent: FakeAgent, manage: Manage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mesh_middleware.consul.prober.PROBE_SECONDS", 0.2)
    agent.set(authorize=ALLOWED, match=header("allow"))
    manager = manage(agent)
    manager.wait_ready(5)
    agent.set(authorize=agent.good()["authorize"])
    wait_for(lambda: defaults(manager) is Action.DENY)
    assert b"zz-probe" in agent.last("authorize").body


# -- what a person is told --------------------------------------------------------------------


def test_missing_parts_are_named_with_cause_and_cure(agent: FakeAgent, manage: Manage) -> None:
    agent.set(leaf=REFUSED, match=Reply(status=403, body=b"ACL not found"))
    manager = manage(agent)
    wait_for(lambda: {"leaf", "intentions"} <= manager.last_errors.keys())
    wait_for(lambda: "roots" not in manager.state.missing())
    with pytest.raises(NotReadyError) as caught:
        manager.wait_ready(0.1)
    text = str(caught.value)
    assert {"leaf", "intentions"} <= set(caught.value.missing)
    assert "roots" not in caught.value.missing
    assert 'service "web" { policy = "write" }' in text
    assert "does not know the token" in text
    assert manager.last_failure_kind == "acl"


def test_connect_that_is_off_is_said(agent: FakeAgent, manage: Manage) -> None:
    off = Reply(status=500, body=b"Connect must be enabled in order to use this endpoint")
    agent.set(roots=off, leaf=off)
    manager = manage(agent)
    wait_for(lambda: "leaf" in manager.last_errors)
    with pytest.raises(NotReadyError, match=r"connect \{ enabled = true \}"):
        manager.wait_ready(0.1)


def test_a_new_token_in_its_file_is_tried_at_once(
    agent: FakeAgent, manage: Manage, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mesh_middleware.consul.blocking.BACKOFF_MAX", 60.0)
    path = tmp_path / "token"
    path.write_text("old")
    agent.set(leaf=REFUSED)
    manager = manage(agent, token_file=str(path))
    wait_for(lambda: "leaf" in manager.last_errors)
    path.write_text("newer")
    agent.set(leaf=agent.good(index=9)["leaf"])
    manager.wait_ready(8)
    assert agent.last("leaf").headers["x-consul-token"] == "newer"


def test_tokens_and_keys_are_never_logged(
    agent: FakeAgent, manage: Manage, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    manager = manage(agent, token="s3cret-token")
    manager.wait_ready(5)
    agent.set(leaf=HTML, roots=REFUSED, match=CLOSED)
    wait_for(lambda: {"leaf", "roots", "intentions"} <= manager.last_errors.keys())
    manager.close()
    assert "s3cret-token" not in caplog.text
    assert "PRIVATE KEY" not in caplog.text
    assert "s3cret-token" not in repr(manager.config) + repr(manager)

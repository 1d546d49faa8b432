"""The mesh entry: what it says is decided by, and nothing is decided while nobody knows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from mesh_middleware import MeshConfig, MeshManager, MeshMiddleware
from mesh_middleware.consul import mesh_entry
from mesh_middleware.consul.mesh_entry import decode_mesh_entries
from mesh_middleware.devagent import DevAgent
from mesh_middleware.errors import DecodeError, NotReadyError
from mesh_middleware.policy.decision import Reason
from mesh_middleware.policy.intentions import Action
from mesh_middleware.policy.request import (
    DEFAULT_NORMALIZATION,
    EscapedSlashes,
    Normalization,
    Underscores,
)
from tests.consul.fake_agent import FakeAgent, Reply
from tests.consul_agent import running_consul
from tests.middleware.calls import Answer, Recorder, call, http_scope, verified
from tests.support import wait_for

REFUSED = Reply(status=403, body=b"Permission denied", index=1)
BROKEN = Reply(status=500, body=b"No cluster leader")
UNKNOWN_KINDS = [
    Reply(status=400, body=b"Bad request: invalid config entry kind: mesh"),
    Reply(status=404),
    Reply(status=500, body=b"invalid config entry kind: mesh"),
]


def entry(**settings: Any) -> dict[str, Any]:
    return {
        "Kind": "mesh",
        "Name": "mesh",
        "HTTP": {"Incoming": {"RequestNormalization": settings}},
    }


def known(manager: MeshManager) -> Normalization | None:
    policy = manager.state.policy
    return policy.normalization if policy and manager.state.fault is None else None


# -- what the list says -----------------------------------------------------------------------


@pytest.mark.parametrize("nothing", [None, [], [{"Kind": "mesh", "Name": "mesh"}], [entry()]])
def test_nothing_said_is_the_default(nothing: object) -> None:
    assert decode_mesh_entries(nothing) == DEFAULT_NORMALIZATION


def test_every_setting_is_read() -> None:
    said = entry(
        InsecureDisablePathNormalization=True,
        MergeSlashes=True,
        PathWithEscapedSlashesAction="UNESCAPE_AND_FORWARD",
        HeadersWithUnderscoresAction="DROP_HEADER",
    )
    wanted = Normalization(
        path=False,
        merge_slashes=True,
        escaped_slashes=EscapedSlashes.UNESCAPE_AND_FORWARD,
        underscores=Underscores.DROP_HEADER,
    )
    assert decode_mesh_entries([said]) == wanted


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        "mesh",
        ["mesh"],
        [entry(), entry()],
        [entry(MergeSlashes="yes")],
        [entry(SomethingNew="REJECT")],
        [entry(mergeslashes=True)],
        [entry(PathWithEscapedSlashesAction="SOMETHING_NEW")],
        [entry(HeadersWithUnderscoresAction=1)],
        [{"HTTP": []}, {}],
        [{"HTTP": {"Incoming": 1}}],
    ],
)
def test_what_cannot_be_read_is_said(wrong: object) -> None:
    with pytest.raises(DecodeError):
        decode_mesh_entries(wrong)


# -- with an agent ----------------------------------------------------------------------------


@pytest.fixture
def fake() -> Iterator[FakeAgent]:
    with FakeAgent() as agent:
        yield agent


@contextmanager
def managing(address: str, **settings: Any) -> Iterator[MeshManager]:
    settings = {"wait_seconds": 0.3, **settings}
    with MeshManager(MeshConfig("web", address=address, **settings)) as manager:
        yield manager


@pytest.mark.parametrize("bad", [REFUSED, BROKEN, Reply(raw=b""), Reply.json({"no": "list"})])
def test_nothing_is_decided_before_it_is_known(fake: FakeAgent, bad: Reply) -> None:
    """It may say that requests are to be refused."""
    fake.set(mesh=bad)
    with managing(fake.address) as manager:
        wait_for(lambda: mesh_entry.PART in manager.last_errors)
        wait_for(lambda: manager.state.missing() == ("mesh entry",))
        with pytest.raises(NotReadyError, match="mesh entry: ") as why:
            manager.wait_ready(0)
        assert why.value.missing == ("mesh entry",)
        assert not (manager.state.policy and manager.state.fault is None)
        fake.set(mesh=Reply.json([entry(MergeSlashes=True)], 6))
        manager.wait_ready(5)
        assert known(manager) == Normalization(merge_slashes=True)


@pytest.mark.parametrize("unknown", UNKNOWN_KINDS, ids=lambda reply: str(reply.status))
def test_an_agent_that_does_not_know_the_kind_has_none(fake: FakeAgent, unknown: Reply) -> None:
    fake.set(mesh=unknown)
    with managing(fake.address) as manager:
        manager.wait_ready(5)
        assert known(manager) == DEFAULT_NORMALIZATION
        assert manager.last_errors == {}
        asked = fake.count("match")
        wait_for(lambda: fake.count("match") >= asked + 4)  # the others go on
        assert fake.count("mesh") == 1


def test_an_unknown_kind_says_nothing_of_the_default_action(
    fake: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no answer that the agent gave with its headers: those of the others stay in force."""
    monkeypatch.setattr(mesh_entry, "ABSENT_SECONDS", 0.05)
    fake.set(
        authorize=Reply.json({"Authorized": True, "Reason": "Matched L4 intention: a => web"}),
        match=Reply.json({"web": None}, 5, X_Consul_Default_Acl_Policy="allow"),
        mesh=UNKNOWN_KINDS[-1],
    )
    with managing(fake.address) as manager:
        manager.wait_ready(5)
        wait_for(lambda: manager.state.policy.default_action is Action.ALLOW)
        seen: list[Action] = []
        manager.subscribe(lambda state: seen.append(state.policy.default_action))
        asked = fake.count("mesh")
        wait_for(lambda: fake.count("mesh") >= asked + 4)
        assert Action.DENY not in seen
        assert manager.state.policy is not None
        assert manager.state.policy.default_action is Action.ALLOW


def test_an_agent_that_learns_the_kind_is_noticed(
    fake: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mesh_entry, "ABSENT_SECONDS", 0.2)
    fake.set(mesh=UNKNOWN_KINDS[-1])
    with managing(fake.address) as manager:
        manager.wait_ready(5)
        fake.set(mesh=Reply.json([entry(MergeSlashes=True)], 6))
        wait_for(lambda: known(manager) == Normalization(merge_slashes=True))


@pytest.mark.parametrize("bad", [BROKEN, REFUSED, *UNKNOWN_KINDS])
def test_a_failure_keeps_what_was_known(fake: FakeAgent, bad: Reply) -> None:
    fake.set(mesh=Reply.json([entry(MergeSlashes=True)], 6))
    with managing(fake.address) as manager:
        manager.wait_ready(5)
        fake.set(mesh=bad)
        wait_for(lambda: mesh_entry.PART in manager.last_errors)
        assert manager.ready
        assert known(manager) == Normalization(merge_slashes=True)


def test_an_entry_that_cannot_be_read_refuses_everything_until_a_good_one_comes(
    fake: FakeAgent,
) -> None:
    with managing(fake.address) as manager:
        manager.wait_ready(5)
        fake.set(mesh=Reply.json([entry(PathWithEscapedSlashesAction="SOMETHING_NEW")], 6))
        wait_for(lambda: manager.state.fault is Reason.POLICY_UNDECODABLE)
        with pytest.raises(NotReadyError, match="PathWithEscapedSlashesAction") as why:
            manager.wait_ready(0)
        assert why.value.missing == ("mesh entry",)
        fake.set(mesh=Reply.json([], 7))
        manager.wait_ready(5)
        assert known(manager) == DEFAULT_NORMALIZATION


def test_the_agents_copy_is_asked_for_at_the_start_only(fake: FakeAgent) -> None:
    """It starts a service while the servers are away, but may be older than what is known."""
    fake.set(mesh=BROKEN)
    with managing(fake.address) as manager:
        wait_for(lambda: fake.count("mesh") >= 2)
        assert all("cached" in a.query for a in fake.asked if a.key == "mesh")
        fake.set(mesh=Reply.json([], 6))
        manager.wait_ready(5)
        asked = fake.count("mesh")
        wait_for(lambda: fake.count("mesh") >= asked + 2)
        later = [a for a in fake.asked if a.key == "mesh"][asked:]
        assert not [a for a in later if "cached" in a.query]


def test_a_real_agent_without_the_kind_makes_a_service_ready() -> None:
    with running_consul() as consul, managing(consul.address) as manager:
        manager.wait_ready(15)
        assert manager.last_errors == {}
        assert known(manager) == DEFAULT_NORMALIZATION


# -- requests follow the entry ----------------------------------------------------------------

Ask = Callable[..., Answer]


@contextmanager
def service(agent: DevAgent, app: Any) -> Iterator[tuple[MeshManager, Ask]]:
    """A service of the agent with `app`, and a way for shop, who may do all but ``/admin``, to
    ask it."""
    agent.put_intentions(
        {
            "Kind": "service-intentions",
            "Name": "web",
            "Sources": [
                {
                    "Name": "shop",
                    "Permissions": [
                        {"Action": "deny", "HTTP": {"PathPrefix": "/admin"}},
                        {"Action": "deny", "HTTP": {"Header": [{"Name": "x_no", "Present": True}]}},
                        {"Action": "allow", "HTTP": {"PathPrefix": "/"}},
                    ],
                }
            ],
        }
    )
    with managing(agent.address) as manager:
        state = manager.wait_ready(10)
        assert state.bundle is not None
        (root,) = state.bundle.fingerprints
        domain = state.bundle.trust_domain.name

        def ask(raw: str, *headers: tuple[bytes, bytes]) -> Answer:
            scope = http_scope(
                raw.replace("%2F", "/").replace("%2f", "/"),
                peer=verified("shop", root=root, generation=999, trust_domain=domain),
                headers=headers,
                raw_path=raw.encode(),
            )
            return call(MeshMiddleware(app, mesh=manager), scope)

        yield manager, ask


# setting, target, header, status without the entry, status with it
FOLLOWED = [
    ({"PathWithEscapedSlashesAction": "REJECT_REQUEST"}, "/a%2Fb", (), 200, 400),
    ({"PathWithEscapedSlashesAction": "UNESCAPE_AND_REDIRECT"}, "/a%2Fb", (), 200, 400),
    ({"PathWithEscapedSlashesAction": "UNESCAPE_AND_FORWARD"}, "/a%2Fb", (), 200, 200),
    ({"HeadersWithUnderscoresAction": "REJECT_REQUEST"}, "/", [(b"x_a", b"1")], 200, 400),
    ({"HeadersWithUnderscoresAction": "DROP_HEADER"}, "/", [(b"x_a", b"1")], 200, 200),
    # a dropped header is one that no rule sees
    ({"HeadersWithUnderscoresAction": "DROP_HEADER"}, "/", [(b"x_no", b"1")], 403, 200),
    # whatever the mesh says, another reading of the path may still be denied
    ({"MergeSlashes": True}, "//admin", (), 403, 403),
    ({"InsecureDisablePathNormalization": True}, "/x/../admin", (), 403, 403),
    ({"InsecureDisablePathNormalization": True}, "/%61dmin", (), 403, 403),
    ({"PathWithEscapedSlashesAction": "UNESCAPE_AND_FORWARD"}, "/x%2f..%2fadmin", (), 403, 403),
    ({"MergeSlashes": True}, "//public", (), 200, 200),
]


@pytest.mark.parametrize(
    ("settings", "target", "headers", "before", "after"),
    FOLLOWED,
    ids=[f"{next(iter(row[0].items()))[1]} {row[1]} {row[2] and row[2][0][0]}" for row in FOLLOWED],
)
def test_a_live_service_follows_the_entry(
    settings: dict[str, Any],
    target: str,
    headers: list[tuple[bytes, bytes]],
    before: int,
    after: int,
) -> None:
    """Asked, the entry is put, asked again, the entry is taken away, asked again."""
    app = Recorder()
    with DevAgent() as agent, service(agent, app) as (manager, ask):
        assert ask(target, *headers).status == before
        with httpx.Client(base_url=agent.address, trust_env=False) as operator:
            assert operator.put("/v1/config", json=entry(**settings)).json() is True
        wait_for(lambda: known(manager) == decode_mesh_entries([entry(**settings)]))
        app.scopes.clear()
        assert ask(target, *headers).status == after
        if settings.get("HeadersWithUnderscoresAction") == "DROP_HEADER":
            (scope,) = app.scopes
            assert not [name for name, _ in scope["headers"] if b"_" in name]
        with httpx.Client(base_url=agent.address, trust_env=False) as operator:
            assert operator.delete("/v1/config/mesh/mesh").status_code == 200
        wait_for(lambda: known(manager) == DEFAULT_NORMALIZATION)
        assert ask(target, *headers).status == before

"""What the fault table found: words that differ are no news, and an answer once given holds."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from mesh_middleware.config import MeshConfig
from mesh_middleware.consul import prober
from mesh_middleware.consul.failures import Failure, FailureKind, Failures
from mesh_middleware.consul.manager import MeshManager
from mesh_middleware.errors import ConsulError, DecodeError
from mesh_middleware.policy.intentions import Action
from tests.consul.fake_agent import FakeAgent, Reply
from tests.support import wait_for

CONFIG = MeshConfig("web")


@pytest.fixture
def agent() -> Iterator[FakeAgent]:
    with FakeAgent() as agent:
        yield agent


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            ConsulError("status 500: request 81f3", status=500, body="request 81f3"),
            ConsulError("status 502: upstream is away", status=502, body="upstream is away"),
        ),
        (DecodeError("starts with '<html nonce=1'"), DecodeError("starts with '<html nonce=2'")),
        (
            Failure.of("not valid before 1700000000, and it is 1690000001 here", FailureKind.OTHER),
            Failure.of("not valid before 1700000000, and it is 1690000002 here", FailureKind.OTHER),
        ),
    ],
    ids=["status", "answer", "time"],
)
def test_other_words_for_the_same_condition_are_not_logged(
    one: Exception | Failure, other: Exception | Failure, caplog: pytest.LogCaptureFixture
) -> None:
    failures = Failures(CONFIG)
    for failure in (one, other, one, other):
        failures.set("leaf", failure)
    assert len(caplog.records) == 1
    assert str(other) in failures.current["leaf"]  # the newest words can be read all the same


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            ConsulError("x", status=403, body="ACL not found"),
            ConsulError("x", status=403, body="Permission denied"),
        ),
        (ConsulError("x", status=500), ConsulError("x", status=429)),
        (DecodeError("x", field="a"), DecodeError("x", field="b")),
        (ConsulError("x", status=500), DecodeError("x")),
    ],
)
def test_another_condition_is_logged(
    one: Exception, other: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    failures = Failures(CONFIG)
    failures.set("leaf", one)
    failures.set("leaf", other)
    assert len(caplog.records) == 2


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_default_action_once_known_outlives_the_token(
    agent: FakeAgent, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """Else a revoked token would refuse, after a minute, whom the mesh lets in by default."""
    monkeypatch.setattr(prober, "PROBE_SECONDS", 0.1)
    allowed = Reply.json({"Authorized": True, "Reason": "Default intention policy"})
    agent.set(match=Reply.json({"web": None}, 5), authorize=allowed)
    with MeshManager(MeshConfig("web", address=agent.address, wait_seconds=0.3)) as manager:
        before = manager.wait_ready(10).policy
        assert before is not None
        assert before.default_action is Action.ALLOW
        agent.set(authorize=Reply(status=status, body=b"ACL not found"))
        wait_for(lambda: "default action" in manager.last_errors)
        asked = agent.count("authorize")
        wait_for(lambda: agent.count("authorize") >= asked + 2)
        assert manager.state.policy is before
        agent.set(authorize=Reply.json({"Authorized": False, "Reason": "Default"}))
        wait_for(
            lambda: (
                manager.state.policy
                and manager.state.policy.default_action is Action.DENY
                and "default action" not in manager.last_errors
            )
        )


def test_a_certificate_of_the_future_is_said_once(
    agent: FakeAgent, caplog: pytest.LogCaptureFixture
) -> None:
    """The reason has the time in it, and was logged anew each second."""
    caplog.set_level(logging.INFO, "mesh_middleware.consul")
    skew = 0.0

    def clock() -> float:
        nonlocal skew
        skew += 1.0  # each look at the clock gives another time
        return 1e9 + skew

    config = MeshConfig("web", address=agent.address, wait_seconds=0.1)
    with MeshManager(config, clock=clock) as manager:
        first = wait_for(lambda: manager.last_errors.get("leaf (rejected)"))
        wait_for(lambda: agent.count("leaf") > 8)
        assert "check this machine's clock" in first
    said = [r for r in caplog.records if vars(r).get("mesh_part") == "leaf (rejected)"]
    assert len(said) == 1

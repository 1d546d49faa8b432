"""A manager against the development agent: start, change, rotate, outage, restart, close, fork."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from mesh_middleware.config import MeshConfig
from mesh_middleware.consul import learner
from mesh_middleware.consul.client import ConsulClient
from mesh_middleware.consul.manager import MeshManager
from mesh_middleware.devagent import DevAgent
from mesh_middleware.errors import ConfigError, NotReadyError
from mesh_middleware.policy.decision import Reason
from mesh_middleware.policy.intentions import Action
from mesh_middleware.policy.request import HTTPRequest
from mesh_middleware.policy.spiffe import ServiceIdentity, TrustDomain
from mesh_middleware.state import PARTS, MeshState, sources
from mesh_middleware.tls.contexts import verified_peer
from tests.consul.fake_agent import FakeAgent, Reply
from tests.support import free_port, wait_for

ALLOW_A = {"SourceName": "a", "DestinationName": "web", "Action": "allow"}
ALLOW_B = {"SourceName": "b", "DestinationName": "web", "Action": "allow"}
GET = HTTPRequest("GET", b"/", [])


@pytest.fixture
def agent() -> Iterator[DevAgent]:
    with DevAgent(intentions=[ALLOW_A]) as agent:
        yield agent


@pytest.fixture
def manager(agent: DevAgent) -> Iterator[MeshManager]:
    with MeshManager(MeshConfig("web", address=agent.address)) as manager:
        yield manager


def allows(manager: MeshManager, service: str) -> bool:
    policy = manager.state.policy
    assert policy is not None
    return policy.decide(ServiceIdentity(policy.trust_domain, service), GET).allowed


def handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> str:
    """Who the server says is calling, over a real connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        seen: list[str] = []

        def serve() -> None:
            sock, _ = listener.accept()
            with sock, server.wrap_socket(sock, server_side=True) as tls:
                peer = verified_peer(tls)
                seen.append(str(peer.certificate.identity) if peer else "")
                tls.sendall(b"x")

        thread = threading.Thread(target=serve)
        thread.start()
        with (
            socket.create_connection(listener.getsockname()) as sock,
            client.wrap_socket(sock) as tls,
        ):
            assert tls.recv(1) == b"x"
        thread.join()
    return seen[0]


def test_start_to_ready(agent: DevAgent, manager: MeshManager) -> None:
    state = manager.wait_ready(10)
    assert state.ready
    assert manager.ready
    assert state.svid is not None
    assert state.svid.identity == ServiceIdentity(TrustDomain(agent.ca.trust_domain), "web")
    assert state.policy is not None
    assert state.policy.default_action is Action.DENY
    assert (allows(manager, "a"), allows(manager, "b")) == (True, False)
    assert set(state.updated) == {*PARTS} - {"jwt providers"}
    assert manager.last_errors == {}
    assert manager.last_failure_kind is None
    assert repr(manager).endswith(": ready>")
    assert manager.run_coroutine(asyncio.sleep(0, "there")).result(5) == "there"


def test_default_allow_is_learned() -> None:
    agent = DevAgent(default_action="allow")
    with agent, MeshManager(MeshConfig("web", address=agent.address)) as manager:
        manager.wait_ready(10)
        assert allows(manager, "anybody")


def test_an_intention_that_changes_decides_at_once(agent: DevAgent, manager: MeshManager) -> None:
    manager.wait_ready(10)
    agent.put_intentions([ALLOW_A, ALLOW_B])
    wait_for(lambda: allows(manager, "b"), 2)
    agent.delete_intentions("web")
    wait_for(lambda: not allows(manager, "a"), 2)


def test_intentions_of_others_change_nothing(agent: DevAgent, manager: MeshManager) -> None:
    before = manager.wait_ready(10)
    agent.put_intentions([{**ALLOW_A, "DestinationName": "db"}])
    agent.put_intentions([ALLOW_A])
    agent.put_intentions([ALLOW_A, ALLOW_B])
    wait_for(lambda: allows(manager, "b"))
    assert manager.state.generation == before.generation + 1


def test_contexts_prove_who_calls_and_follow_a_rotation(
    agent: DevAgent, manager: MeshManager
) -> None:
    before = manager.wait_ready(10)
    assert before.svid is not None
    identity = before.svid.identity
    server, client = manager.server_context(), manager.client_context(identity)
    assert handshake(server, client) == str(identity)
    agent.rotate_ca()
    wait_for(lambda: manager.state.svid is not before.svid)
    wait_for(lambda: len(manager.state.bundle.roots) == 2 if manager.state.bundle else False)
    agent.remove_inactive_roots()
    wait_for(lambda: len(manager.state.bundle.roots) == 1 if manager.state.bundle else False)
    assert manager.state.bundle is not None
    assert before.bundle is not None
    assert not manager.state.bundle.fingerprints & before.bundle.fingerprints
    assert handshake(server, client) == str(identity)


def test_a_short_leaf_is_renewed() -> None:
    agent = DevAgent(leaf_ttl_seconds=2)
    with agent, MeshManager(MeshConfig("web", address=agent.address)) as manager:
        first = manager.wait_ready(10).svid
        wait_for(lambda: manager.state.svid is not first, 5)
        assert manager.ready


def test_an_outage_keeps_the_state_and_is_said_once(
    agent: DevAgent, manager: MeshManager, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mesh_middleware.consul")
    before = manager.wait_ready(10)
    agent.stop()
    wait_for(lambda: {"roots", "leaf", "intentions"} <= manager.last_errors.keys())
    assert manager.last_failure_kind == "unreachable"
    assert manager.ready
    assert manager.state.policy is before.policy
    agent.start()
    wait_for(lambda: not manager.last_errors)
    assert manager.state.policy is before.policy
    agent.put_intentions([ALLOW_B])
    wait_for(lambda: allows(manager, "b"))
    said = [r for r in caplog.records if vars(r).get("mesh_part") == "agent"]
    assert [vars(r)["mesh_event"] for r in said] == ["failed", "recovered"]


def test_an_agent_that_lost_its_state_is_followed(agent: DevAgent, manager: MeshManager) -> None:
    manager.wait_ready(10)
    old = agent.ca.trust_domain
    agent.restart(lose_state=True)
    assert agent.ca.trust_domain != old
    wait_for(
        lambda: (
            manager.state.bundle and manager.state.bundle.trust_domain.name == agent.ca.trust_domain
        )
    )
    wait_for(lambda: manager.ready and not manager.last_errors)
    assert allows(manager, "a")


def test_a_manager_that_starts_before_its_agent() -> None:
    agent = DevAgent(port=free_port())
    with MeshManager(MeshConfig("web", address=f"127.0.0.1:{agent.port}")) as manager:
        with pytest.raises(NotReadyError, match="start the agent, or set CONSUL_HTTP_ADDR") as why:
            manager.wait_ready(0.3)
        assert why.value.missing == ("roots", "leaf", "intentions", "default action", "mesh entry")
        assert {f.status for f in manager.last_errors.values()} == {None}
        with agent:
            manager.wait_ready(10)


def test_an_expired_leaf_is_missing(agent: DevAgent, caplog: pytest.LogCaptureFixture) -> None:
    shift = 0.0
    config = MeshConfig("web", address=agent.address, max_staleness_seconds=float("inf"))
    with MeshManager(config, clock=lambda: time.time() + shift) as manager:
        manager.wait_ready(10)
        agent.stop()
        shift = 80 * 3600.0
        assert not manager.ready
        with pytest.raises(NotReadyError) as caught:
            manager.wait_ready(0)
        assert caught.value.missing == ("leaf",)
        wait_for(lambda: "our certificate expired" in caplog.text)


def test_time_alone_makes_intentions_stale(agent: DevAgent) -> None:
    """Also while every query waits and nobody answers."""
    shift = 0.0
    config = MeshConfig(
        "web", address=agent.address, max_staleness_seconds=3600, default_action=Action.DENY
    )
    with MeshManager(config, clock=lambda: time.time() + shift) as manager:
        manager.wait_ready(10)
        shift = 3700.0
        wait_for(lambda: manager.state.fault is Reason.STALE_POLICY, 5)


# -- waiting and telling ----------------------------------------------------------------------


def test_coroutines_wait_without_blocking(agent: DevAgent, manager: MeshManager) -> None:
    async def both() -> tuple[MeshState, int]:
        beats = 0

        async def beat() -> None:
            nonlocal beats
            while True:
                beats += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(beat())
        state = await manager.ready(10)
        task.cancel()
        return state, beats

    state, _ = asyncio.run(both())
    assert state.ready


def test_coroutines_are_told_what_is_missing() -> None:
    with MeshManager(MeshConfig("web", address="127.0.0.1:1")) as manager:

        async def wait() -> int:
            beats = 0

            async def beat() -> None:
                nonlocal beats
                while True:
                    beats += 1
                    await asyncio.sleep(0.01)

            task = asyncio.create_task(beat())
            with pytest.raises(NotReadyError, match="missing roots"):
                await manager.ready(0.4)
            task.cancel()
            return beats

        assert asyncio.run(wait()) > 5


def test_waiting_ends_when_the_manager_closes() -> None:
    manager = MeshManager(MeshConfig("web", address="127.0.0.1:1"))
    manager.start()
    threading.Timer(0.1, manager.close).start()
    with pytest.raises(NotReadyError, match="not running"):
        manager.wait_ready(30)


def test_subscribers_hear_each_generation_once(agent: DevAgent, manager: MeshManager) -> None:
    manager.wait_ready(10)
    heard: list[int] = []
    threads: set[str] = set()

    def listen(state: MeshState) -> None:
        heard.append(state.generation)
        threads.add(threading.current_thread().name)

    def fail(state: MeshState) -> None:
        raise RuntimeError("subscriber")

    manager.subscribe(fail)
    unsubscribe = manager.subscribe(listen)
    for rows in ([ALLOW_B], [ALLOW_A], [ALLOW_A, ALLOW_B]):
        generation = manager.state.generation
        agent.put_intentions(rows)
        wait_for(lambda g=generation: heard and heard[-1] > g)
    assert heard == sorted(set(heard))
    assert heard[-1] == manager.state.generation
    assert threads == {"mesh-manager"}
    unsubscribe()
    unsubscribe()
    agent.put_intentions([ALLOW_B])
    wait_for(lambda: manager.state.generation > heard[-1])
    assert len(heard) == 3


# -- life -------------------------------------------------------------------------------------


def test_close_is_quick_and_can_be_repeated(agent: DevAgent) -> None:
    manager = MeshManager(MeshConfig("web", address=agent.address))
    manager.close()
    manager.start()
    state = manager.wait_ready(10)
    thread = next(t for t in threading.enumerate() if t.name == "mesh-manager")
    started = time.monotonic()
    manager.close()
    manager.close()
    assert time.monotonic() - started < 1
    assert not thread.is_alive()
    assert manager.state.policy is None
    assert manager.state.contexts is None
    assert manager.state.generation > state.generation
    assert not manager.ready
    assert sources.get("web") is None
    assert repr(manager).endswith(": closed>")
    with pytest.raises(NotReadyError, match="not running"):
        manager.run_coroutine(asyncio.sleep(0))
    with pytest.raises(NotReadyError, match="not running"):
        manager.server_context().wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_side=True)


def test_a_closed_manager_starts_again(agent: DevAgent) -> None:
    manager = MeshManager(MeshConfig("web", address=agent.address))
    generations = []
    for _ in range(2):
        with manager:
            manager.start()  # nothing happens: it runs
            generations.append(manager.wait_ready(10).generation)
    assert generations[1] > generations[0]


def test_the_mode_of_enforcement_is_in_every_state(agent: DevAgent) -> None:
    """From the first one, before anything was learnt, to those after it was closed."""
    manager = MeshManager(MeshConfig("web", address=agent.address, enforcement="audit"))
    seen = [manager.state]
    with manager:
        seen.append(manager.wait_ready(10))
    seen.append(manager.state)
    assert {str(state.enforcement) for state in seen} == {"audit"}
    assert len({state.generation for state in seen}) == 3


def test_close_right_after_start(agent: DevAgent) -> None:
    for _ in range(20):
        manager = MeshManager(MeshConfig("web", address=agent.address))
        manager.start()
        manager.close()
    assert not [t for t in threading.enumerate() if t.name == "mesh-manager"]


def test_one_manager_for_a_service(agent: DevAgent, manager: MeshManager) -> None:
    assert sources.get("web") is manager
    second = MeshManager(MeshConfig("web", address=agent.address))
    with pytest.raises(ConfigError, match="already has a mesh manager"):
        second.start()
    second.close()
    assert sources.get("web") is manager


def test_a_wrong_setting_is_said_by_start() -> None:
    manager = MeshManager(MeshConfig("web", token_file="/no/such/file"))
    with pytest.raises(ConfigError, match="CONSUL_HTTP_TOKEN_FILE"):
        manager.start()
    assert sources.get("web") is None


def test_before_start_nothing_is_known() -> None:
    manager = MeshManager(MeshConfig("web"))
    with pytest.raises(NotReadyError, match=r"not running; start\(\) it"):
        manager.wait_ready(5)
    with pytest.raises(NotReadyError):
        _ = manager.client


class Faulty(ConsulClient):
    """Has a bug that shows when `broken` is set."""

    broken = False

    async def roots(self, *args: Any, **options: Any) -> Any:
        if self.broken:
            raise ZeroDivisionError
        return await super().roots(*args, **options)


def test_a_bug_in_the_thread_refuses_everything_and_starts_anew(
    agent: DevAgent, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mesh_middleware.consul.manager._RESTART_SECONDS", 0.2)
    config = MeshConfig("web", address=agent.address, wait_seconds=0.2)
    with MeshManager(config, client_factory=Faulty) as manager:
        generation = manager.wait_ready(10).generation
        monkeypatch.setattr(Faulty, "broken", True)
        wait_for(lambda: manager.state.policy is None)
        assert manager.state.generation > generation
        monkeypatch.setattr(Faulty, "broken", False)
        assert manager.wait_ready(10).policy is not None
    assert "the mesh manager failed" in caplog.text


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork with threads, from 3.12 on
def test_a_child_process_knows_nothing_until_it_starts_its_own(
    agent: DevAgent, manager: MeshManager
) -> None:
    manager.wait_ready(10)
    read, write = os.pipe()
    with manager._changed, sources._lock:  # what another thread may hold at that moment
        pid = os.fork()
    if pid == 0:
        signal.alarm(30)
        words = ["failed"]
        try:
            words = [
                str(manager.state.policy is None and manager.state.contexts is None),
                str(bool(manager.ready)),
                str(sources.get("web") is None),
            ]
            manager.start()
            words.append(str(manager.wait_ready(10).ready))
            manager.close()
        finally:
            os.write(write, " ".join(words).encode())
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        assert pipe.read() == b"True False True True"
    os.waitpid(pid, 0)
    assert manager.ready
    agent.put_intentions([ALLOW_B])
    wait_for(lambda: allows(manager, "b"))


def test_ten_thousand_intentions() -> None:
    rows = [{**ALLOW_A, "SourceName": f"s{n}"} for n in range(10_000)]
    with (
        FakeAgent(match=Reply.json({"web": rows}, 5)) as agent,
        MeshManager(MeshConfig("web", address=agent.address)) as manager,
    ):
        manager.wait_ready(20)
        assert allows(manager, "s9999")
        assert not allows(manager, "b")
        agent.set(match=Reply.json({"web": [*rows, ALLOW_B]}, 6))
        wait_for(lambda: allows(manager, "b"))
        agent.set(match=Reply.json({"web": [*rows, {**ALLOW_B, "SourceName": 5}]}, 7))
        failure = wait_for(lambda: manager.last_errors.get("intentions"))
        assert "web[10000].SourceName" in failure


def test_compiling_a_long_list_leaves_the_lock_to_others(
    agent: DevAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaths: list[None] = []
    monkeypatch.setattr(learner, "_breathe", lambda: breaths.append(None))
    sources = [{"Name": f"web{number}", "Action": "allow"} for number in range(300)]
    agent.put_intentions([{"Kind": "service-intentions", "Name": "api", "Sources": sources}])
    with MeshManager(MeshConfig("api", address=agent.address)) as manager:
        manager.wait_ready(20)
    assert len(breaths) >= 2


def test_decoding_a_long_list_leaves_the_lock_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """By sleeping: in a mere turn of the manager's loop its thread keeps the lock."""
    slept: list[float] = []
    sleep = asyncio.sleep

    async def sleeping(seconds: float) -> None:
        slept.append(seconds)
        await sleep(seconds)

    monkeypatch.setattr(learner.asyncio, "sleep", sleeping)
    rows = [
        {"SourceName": f"web{n}", "DestinationName": "api", "Action": "allow", "Precedence": 9}
        for n in range(300)
    ]
    assert len(asyncio.run(learner.decode_in_turns({"api": rows}, "api"))) == 300
    assert len(slept) >= 3
    assert min(slept) > 0

"""One manager for each service and process, started on first use."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from mesh_middleware import runtime
from mesh_middleware.consul.manager import MeshManager
from mesh_middleware.devagent import DevAgent
from mesh_middleware.errors import ConfigError
from mesh_middleware.policy.engine import compile_policy
from mesh_middleware.state import StateSource, StaticState, sources


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Iterator[DevAgent]:
    with DevAgent() as agent:
        monkeypatch.setenv("CONSUL_HTTP_ADDR", agent.address)
        yield agent
        runtime.close_all()


def test_a_registered_source_is_the_one() -> None:
    source = StaticState.from_policy(compile_policy([], trust_domain="a.b"), service="web")
    sources.add("web", source)
    try:
        assert runtime.manager_for("web") is source
    finally:
        sources.remove("web", source)


def test_a_manager_is_started_once(agent: DevAgent) -> None:
    found: list[StateSource] = []
    threads = [
        threading.Thread(target=lambda: found.append(runtime.manager_for("web"))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, found))) == 1
    manager = found[0]
    assert isinstance(manager, MeshManager)
    manager.wait_ready(10)
    assert runtime.manager_for("api") is not manager


def test_a_process_that_becomes_a_second_service_is_told(
    agent: DevAgent, caplog: pytest.LogCaptureFixture
) -> None:
    """A slip in AsyncMeshTransport("wbe") would call as somebody else, without a word."""
    runtime.manager_for("web")
    assert "Is the name right?" not in caplog.text
    runtime.manager_for("wbe")
    assert "wbe: this process becomes this service of the mesh, too; it is web already" in (
        caplog.text
    )


def test_close_all_forgets_them(agent: DevAgent) -> None:
    manager = runtime.manager_for("web")
    runtime.close_all()
    assert sources.get("web") is None
    assert manager.state.generation > 0
    assert runtime.manager_for("web") is not manager


def test_a_wrong_setting_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSUL_HTTP_ADDR", "nonsense")
    with pytest.raises(ConfigError, match="CONSUL_HTTP_ADDR"):
        runtime.manager_for("web")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork with threads, from 3.12 on
def test_a_child_process_starts_its_own(agent: DevAgent) -> None:
    parent = runtime.manager_for("web")
    read, write = os.pipe()
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with runtime._lock:
            held.set()
            release.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(30)
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        word = "failed"
        try:
            child = runtime.manager_for("web")
            assert isinstance(child, MeshManager)
            word = f"{child is parent} {child.wait_ready(10).ready}"
            runtime.close_all()
        finally:
            os.write(write, word.encode())
            os._exit(0)
    os.close(write)
    release.set()
    holder.join()
    with os.fdopen(read, "rb") as pipe:
        assert pipe.read() == b"False True"
    os.waitpid(pid, 0)
    assert sources.get("web") is parent

"""Registering with the development agent, and the check that says whether we can serve."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mesh_middleware.config import MeshConfig
from mesh_middleware.consul.client import ConsulClient
from mesh_middleware.consul.manager import MeshManager
from mesh_middleware.consul.registration import Registrar, ServiceRegistration
from mesh_middleware.devagent import DevAgent
from mesh_middleware.errors import ConfigError, ConsulError
from tests.support import wait_for

WEB = ServiceRegistration("web", 8443, "127.0.0.1", ("v1",), {"team": "x"}, id="web-1")


@pytest.fixture
def agent() -> Iterator[DevAgent]:
    with DevAgent() as agent:
        yield agent


Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture
def manager(agent: DevAgent) -> Iterator[MeshManager]:
    with MeshManager(MeshConfig("web", address=agent.address)) as manager:
        yield manager


@pytest.fixture
def run(manager: MeshManager) -> Run:
    return lambda coroutine: manager.run_coroutine(coroutine).result(10)


def test_body() -> None:
    assert WEB.body() == {
        "ID": "web-1",
        "Name": "web",
        "Port": 8443,
        "Address": "127.0.0.1",
        "Tags": ["v1"],
        "Meta": {"team": "x"},
        "Connect": {"Native": True},
        "Checks": [
            {
                "CheckID": "service:web-1",
                "Name": "mesh-middleware: certificate, policy and event loop",
                "TTL": "15s",
                "Status": "critical",
                "Notes": "starting",
                "DeregisterCriticalServiceAfter": "10m",
            }
        ],
    }


def test_id_and_address_have_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "host/one.example")
    registration = ServiceRegistration("web", 8443)
    assert registration.id == "web-host-one.example-8443"
    assert "Address" not in registration.body()


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_port_range(port: int) -> None:
    with pytest.raises(ConfigError, match="port"):
        ServiceRegistration("web", port)


def test_it_starts_critical_and_passes_while_it_can_serve(
    agent: DevAgent, manager: MeshManager, run: Run
) -> None:
    registrar = Registrar(manager.client, WEB)
    run(registrar.register())
    assert agent.services["web-1"]["Service"] == "web"
    assert agent.statuses == {"service:web-1": "critical"}
    run(registrar.update(lambda: None))
    assert agent.statuses == {"service:web-1": "passing"}
    run(registrar.update(lambda: "the certificate expired"))
    assert agent.statuses == {"service:web-1": "critical"}
    run(registrar.update(lambda: None))
    run(registrar.critical("stopping"))
    assert agent.statuses == {"service:web-1": "critical"}
    run(registrar.deregister())
    assert agent.services == {}
    run(registrar.deregister())


def test_an_agent_that_forgot_the_service_is_told_again(
    agent: DevAgent, manager: MeshManager, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    registrar = Registrar(manager.client, WEB)
    run(registrar.register())
    agent.restart(lose_state=True)
    assert agent.services == {}
    run(registrar.update(lambda: None))
    assert agent.statuses == {"service:web-1": "passing"}
    assert "registering it again" in caplog.text


def test_keep_updates_until_cancelled(
    agent: DevAgent, manager: MeshManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mesh_middleware.consul.registration.PASS_SECONDS", 0.05)
    registrar = Registrar(manager.client, WEB)
    manager.run_coroutine(registrar.register()).result(10)
    condition: str | None = None
    kept = manager.run_coroutine(registrar.keep(lambda: condition))
    wait_for(lambda: agent.statuses == {"service:web-1": "passing"})
    condition = "no policy"
    wait_for(lambda: agent.statuses == {"service:web-1": "critical"})
    condition = None
    agent.restart(lose_state=True)
    wait_for(lambda: agent.statuses == {"service:web-1": "passing"})
    kept.cancel()


def scripted(*answers: httpx.Response | Exception) -> tuple[ConsulClient, list[str]]:
    """A client whose agent gives `answers` one by one, and the requests that came."""
    left, asked = list(answers), []

    def handle(request: httpx.Request) -> httpx.Response:
        asked.append(f"{request.method} {request.url.path}")
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return ConsulClient(MeshConfig("web"), transport=httpx.MockTransport(handle)), asked


OK = httpx.Response(200)
UPDATE = "PUT /v1/agent/check/update/service:web-1"
REGISTER = "PUT /v1/agent/service/register"
ASK = "GET /v1/agent/service/web-1"
FORGOTTEN = [
    # what the update says, what the service says, requests
    (httpx.Response(404, text="Unknown check ID"), None, [UPDATE, REGISTER, UPDATE]),
    (httpx.Response(500, text='CheckID "x" does not have associated TTL'), None,
     [UPDATE, REGISTER, UPDATE]),
    (httpx.Response(404, text=""), httpx.Response(404), [UPDATE, ASK, REGISTER, UPDATE]),
    (httpx.Response(500, text="?"), httpx.Response(404), [UPDATE, ASK, REGISTER, UPDATE]),
]  # fmt: skip


@pytest.mark.parametrize(("said", "service", "requests"), FORGOTTEN)
def test_ways_to_say_that_the_check_is_unknown(
    said: httpx.Response, service: httpx.Response | None, requests: list[str]
) -> None:
    client, asked = scripted(said, *([service] if service else []), OK, OK)
    asyncio.run(Registrar(client, WEB).update(lambda: None))
    assert asked == requests


@pytest.mark.parametrize(
    ("said", "service"),
    [
        (httpx.Response(403), None),
        (httpx.Response(503), None),
        (httpx.ConnectError("refused"), None),
        (httpx.Response(500, text="?"), httpx.Response(200, json={})),
        (httpx.Response(500, text="?"), httpx.Response(403)),
    ],
)
def test_other_failures_are_no_reason_to_register(
    said: httpx.Response | Exception, service: httpx.Response | None
) -> None:
    client, asked = scripted(said, *([service] if service else []))
    with pytest.raises(ConsulError):
        asyncio.run(Registrar(client, WEB).update(lambda: None))
    assert REGISTER not in asked


@pytest.mark.parametrize(
    ("answer", "done"),
    [
        (OK, True),
        (httpx.Response(404), True),
        (httpx.Response(500, text='Unknown service "web-1"'), True),
        (httpx.Response(403), False),
        (httpx.Response(500, text="No cluster leader"), False),
    ],
)
def test_deregistering_what_is_gone_is_done(answer: httpx.Response, done: bool) -> None:
    client, _ = scripted(answer)
    coroutine = Registrar(client, WEB).deregister()
    if done:
        asyncio.run(coroutine)
    else:
        with pytest.raises(ConsulError):
            asyncio.run(coroutine)


def test_a_new_token_registers_again_until_that_was_done(tmp_path: Path) -> None:
    """With the check as it is now: nobody must see an instance that serves as critical."""
    file, refused = tmp_path / "token", httpx.ConnectError("refused")
    file.write_text("first")
    said: list[tuple[str, str | None]] = []

    def handle(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        status = body["Checks"][0]["Status"] if "Checks" in body else None
        said.append((request.headers["x-consul-token"], status))
        if len(said) == 3:
            raise refused
        return OK

    config = MeshConfig("web", token_file=str(file))
    registrar = Registrar(ConsulClient(config, transport=httpx.MockTransport(handle)), WEB)
    asyncio.run(registrar.register())
    asyncio.run(registrar.update(lambda: None))
    file.write_text("second")
    with pytest.raises(ConsulError):
        asyncio.run(registrar.update(lambda: None))
    asyncio.run(registrar.update(lambda: None))
    asyncio.run(registrar.critical("stopping"))
    assert said == [
        *(("first", "critical"), ("first", None)),
        ("second", "passing"),  # refused
        *(("second", "passing"), ("second", None)),
        ("second", None),
    ]


def test_a_failing_update_is_said_once_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mesh_middleware.consul")
    refused = httpx.ConnectError("refused")
    client, asked = scripted(refused, refused, OK, OK)

    async def sleep(seconds: float) -> None:
        assert seconds == 5.0
        if len(asked) == 4:
            raise asyncio.CancelledError

    registrar = Registrar(client, WEB, sleep=sleep)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(registrar.keep(lambda: None))
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert repr(registrar) == "<Registrar web-1>"

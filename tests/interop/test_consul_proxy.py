"""Consul's own built-in proxy, at the other end in both directions, with its own agent."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from mesh_middleware import MeshConfig, MeshManager, MeshTransport
from tests.consul_agent import ConsulAgent, running_consul
from tests.interop.conftest import serve_billing
from tests.support import free_port, wait_for

pytestmark = pytest.mark.consul


@pytest.fixture(scope="module")
def consul() -> Iterator[ConsulAgent]:
    with running_consul() as agent:
        yield agent


@contextlib.contextmanager
def proxy(consul: ConsulAgent, log: Path, *arguments: str) -> Iterator[None]:
    """``consul connect proxy`` as long as the block lasts."""
    command = [str(consul.binary), "connect", "proxy", "-http-addr", consul.address, *arguments]
    with (
        log.open("wb") as output,
        subprocess.Popen(command, stdout=output, stderr=output) as process,
    ):
        try:
            yield
        finally:
            process.terminate()
            process.wait(15)


def register(consul: ConsulAgent, body: dict[str, object]) -> None:
    url = f"{consul.address}/v1/agent/service/register"
    assert httpx.put(url, json={"Address": "127.0.0.1", **body}, trust_env=False).is_success


def intend(consul: ConsulAgent, source: str, action: str) -> None:
    row = {"SourceName": source, "DestinationName": "billing", "SourceType": "consul"}
    url = f"{consul.address}/v1/connect/intentions"
    assert httpx.post(url, json={**row, "Action": action}, trust_env=False).is_success


def test_our_client_calls_a_plain_service_through_consuls_proxy(
    consul: ConsulAgent, backend: int, tmp_path: Path
) -> None:
    port = free_port()
    register(consul, {"Name": "billing", "Port": backend})
    sidecar = {"DestinationServiceName": "billing", "DestinationServiceID": "billing"}
    register(
        consul, {"Name": "billing-proxy", "Port": port, "Kind": "connect-proxy", "Proxy": sidecar}
    )
    with (
        MeshManager(MeshConfig("web", address=consul.address)) as manager,
        proxy(
            consul,
            tmp_path / "proxy.log",
            *("-service", "billing", "-service-addr", f"127.0.0.1:{backend}"),
            *("-listen", f"127.0.0.1:{port}"),
        ),
    ):
        manager.wait_ready(20)
        with httpx.Client(transport=MeshTransport(manager)) as client:

            def answered() -> bool:
                with contextlib.suppress(httpx.TransportError):
                    return client.get("http://billing/").text == "hello from billing"
                return False

            wait_for(answered, message="no answer through the proxy")
    url = f"{consul.address}/v1/agent/service/deregister/billing-proxy"
    assert httpx.put(url, trust_env=False).is_success


def test_consuls_proxy_calls_our_server(consul: ConsulAgent, tmp_path: Path) -> None:
    """It finds the instance in the catalogue, proves who we are, and passes bytes on."""
    local = free_port()
    with serve_billing(consul.address) as billing:
        register(
            consul,
            {"Name": "billing", "ID": "ours", "Port": billing.port, "Connect": {"Native": True}},
        )
        url = f"http://127.0.0.1:{local}/"
        arguments = ("-service", "web", "-upstream", f"billing:{local}")
        with proxy(consul, tmp_path / "proxy.log", *arguments):

            def answer() -> httpx.Response | None:
                with contextlib.suppress(httpx.TransportError):
                    return httpx.get(url, trust_env=False)
                return None

            found = wait_for(answer, message="no answer through the proxy")
            assert found.json() == {"caller": "web", "http": "1.1"}
            intend(consul, "web", "deny")
            wait_for(lambda: getattr(answer(), "status_code", 0) == 403)

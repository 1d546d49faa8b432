"""The operations listener: health for probes, nothing for anybody else."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from mesh_middleware.server.heartbeat import Health
from mesh_middleware.server.ops import OpsListener, health_pages, host_allowed
from tests.support import free_port


class Service:
    health = Health(True, True)
    stopping = False


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def ops(service: Service) -> Iterator[httpx.Client]:
    pages = health_pages(lambda: service.health, lambda: service.stopping)
    with (
        OpsListener("127.0.0.1", 0, pages) as listener,
        httpx.Client(base_url=listener.address, trust_env=False) as client,
    ):
        assert repr(listener) == f"OpsListener({listener.address})"
        yield client


def test_ready_and_live_follow_the_service(ops: httpx.Client, service: Service) -> None:
    assert ops.get("/health/ready").json() == {"ready": True}
    assert ops.get("/health/live").json() == {"alive": True}
    service.health = Health(True, False, "missing: leaf")
    answer = ops.get("/health/ready")
    assert (answer.status_code, answer.json()) == (503, {"ready": False, "why": "missing: leaf"})
    assert ops.get("/health/live").status_code == 200
    service.health = Health(False, False, "the event loop has not answered for 12 s")
    assert ops.get("/health/live").status_code == 503


def test_a_service_that_stops_is_not_ready(ops: httpx.Client, service: Service) -> None:
    service.stopping = True
    answer = ops.get("/health/ready")
    assert (answer.status_code, answer.json()) == (503, {"ready": False, "why": "stopping"})


def test_only_get_and_head_of_known_pages(ops: httpx.Client) -> None:
    assert ops.get("/health/ready?verbose").status_code == 200
    head = ops.head("/health/ready")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == "16"
    assert ops.get("/").status_code == 404
    assert ops.get("/").json()["pages"] == ["/health/live", "/health/ready"]
    assert ops.post("/health/ready").status_code == 501


def test_browsers_are_told_to_run_nothing(ops: httpx.Client) -> None:
    headers = ops.get("/health/ready").headers
    assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"


def test_a_name_that_was_rebound_to_us_gets_nothing(ops: httpx.Client) -> None:
    answer = ops.get("/health/ready", headers={"host": "evil.example"})
    assert answer.status_code == 421
    assert "ready" not in answer.text


@pytest.mark.parametrize(
    ("header", "allowed"),
    [
        ("127.0.0.1:8081", True),
        ("10.1.2.3", True),
        ("localhost:8081", True),
        ("LOCALHOST", True),
        ("[::1]:8081", True),
        ("[fd00::1]", True),
        ("ops.internal:1", True),
        ("evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("[::1].evil.example", False),
        ("", False),
        (None, False),
    ],
)
def test_hosts(header: str | None, allowed: bool) -> None:
    assert host_allowed(header, "ops.internal") is allowed


def test_ipv6_and_taken_ports() -> None:
    with OpsListener("::1", 0, {}) as listener:
        assert listener.address.startswith("http://[::1]:")
        assert httpx.get(listener.address + "/", trust_env=False).status_code == 404
    port = free_port()
    with OpsListener("127.0.0.1", port, {}), pytest.raises(OSError, match="in use"):
        OpsListener("127.0.0.1", port, {})

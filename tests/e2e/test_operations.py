"""Metrics and status of a whole service, with several workers, on the operations listener."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from mesh_middleware.devagent import CertificateAuthority, DevAgent
from mesh_middleware.tls.certificates import X509SVID
from tests.e2e.launch import Caller, Launched, refused, worker_pids
from tests.support import free_port, wait_for


class Service:
    """A launched service whose operations listener is asked."""

    def __init__(self, agent: DevAgent, launched: Launched, client: httpx.Client) -> None:
        self.agent = agent
        self.launched = launched
        self.ops = client

    def total(self, name: str, **labels: str) -> float:
        text = self.ops.get("/metrics").text
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )


@contextmanager
def service(*arguments: str) -> Iterator[Service]:
    port = free_port()
    with (
        DevAgent(default_action="deny") as agent,
        Launched(agent.address, "--ops-port", str(port), *arguments) as launched,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client,
    ):
        launched.serves()
        yield Service(agent, launched, client)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_decisions_of_all_workers_are_summed(workers: str) -> None:
    with service("--workers", workers) as running:
        agent, port = running.agent, running.launched.port
        rows = [{"Name": "friend", "Action": "allow"}]
        agent.put_intentions([{"Kind": "service-intentions", "Name": "web", "Sources": rows}])
        friend, stranger = (Caller.of(agent.address, name) for name in ("friend", "stranger"))
        wait_for(lambda: friend.get(port)[0] == 200)
        for _ in range(10):
            assert stranger.get(port)[0] == 403
        forged = CertificateAuthority(agent.ca.trust_domain).issue("friend")
        svid = X509SVID.from_pem(forged.cert_pem, forged.key_pem)
        assert refused(Caller(svid, friend.bundle), port)
        denied = {"decision": "refused", "reason": "default_deny", "source": "stranger"}
        wait_for(lambda: running.total("mesh_decisions_total", **denied) == 10)
        assert running.total("mesh_decisions_total", decision="allowed", source="friend") >= 1
        wait_for(lambda: running.total("mesh_handshake_refusals_total", side="client") == 1)
        assert running.total("mesh_ready") == int(workers)
        page = running.ops.get("/status")
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert page.headers["content-security-policy"].startswith("default-src 'none'")
        assert "default_deny" in page.text
        document = running.ops.get("/status.json").json()
        assert len(document["workers"]) == int(workers)
        assert document["workers"]["0"]["default_action"] == "deny"
        rebound = running.ops.get("/metrics", headers={"host": "evil.example"})
        assert rebound.status_code == 421
        agent.rotate_ca()
        wait_for(lambda: running.total("mesh_rotations_total") >= int(workers), 20)


def test_counters_do_not_go_down_when_a_worker_dies() -> None:
    with service("--workers", "2") as running:
        port = running.launched.port
        stranger = Caller.of(running.agent.address, "stranger")
        for _ in range(10):
            assert stranger.get(port)[0] == 403
        wait_for(lambda: running.total("mesh_decisions_total") == 10)
        before = worker_pids(running.launched.log)
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: len(worker_pids(running.launched.log)) == 4, 20)
        wait_for(lambda: running.total("mesh_decisions_total") == 10, 20)

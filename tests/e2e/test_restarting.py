"""SIGHUP: the workers are replaced one after the other, and the service never stops."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from websockets.exceptions import ConnectionClosed

from mesh_middleware.devagent import DevAgent
from mesh_middleware.server.supervisor import RETRY_SECONDS
from tests.e2e.launch import ROOT, Caller, Launched, health, worker_pids
from tests.e2e.test_processes import alive
from tests.server.mesh import request
from tests.support import free_port, wait_for

SOURCE = (ROOT / "tests/e2e/app.py").read_text()


@pytest.fixture(scope="module")
def agent() -> Iterator[DevAgent]:
    with DevAgent(default_action="allow") as running:
        yield running


class Site:
    """A service whose application is a file that a test may change."""

    def __init__(self, agent: DevAgent, directory: Path, *arguments: str) -> None:
        self.module = directory / "changing.py"
        self.module.write_text(SOURCE)
        self.launched = Launched(
            agent.address,
            *arguments,
            app="changing:app",
            env={"MESH_DEFAULT_ACTION": "allow"},
            cwd=directory,
        )
        self.caller = Caller.of(agent.address, "client")

    @property
    def port(self) -> int:
        return self.launched.port

    def rename(self, name: str) -> None:
        """Another field in the answer: the new code."""
        self.module.write_text(SOURCE.replace('"caller":', f'"{name}":'))

    def answer(self) -> dict[str, object]:
        status, body = self.caller.get(self.port)
        assert status == 200
        return dict(body)

    def restart(self, times: int = 1) -> None:
        """To the end of the `times`-th restart."""
        self.launched.signal(signal.SIGHUP)
        self.launched.says("all workers are restarted", 40, times=times)


@pytest.mark.parametrize("workers", [1, 2])
def test_new_code_is_served_by_new_workers_with_one_registration(
    agent: DevAgent, tmp_path: Path, workers: int
) -> None:
    site = Site(agent, tmp_path, "--workers", str(workers))
    with site.launched as launched:
        launched.serves()
        launched.says("Application startup complete", times=workers)
        old = worker_pids(launched.log)
        site.rename("visitor")
        site.restart()
        assert site.answer().keys() == {"visitor", "pid"}
        assert len(worker_pids(launched.log)) == 2 * workers
        assert not any(alive(pid) for pid in old)
        assert len(health(agent.address, "web", passing=True)) == 1
        assert launched.log.count("registered as") == 1
        assert "health check critical" not in launched.log
        assert launched.stop() == 0
        assert not any(alive(pid) for pid in worker_pids(launched.log))


def test_a_worker_that_is_replaced_finishes_what_is_open(agent: DevAgent, tmp_path: Path) -> None:
    site = Site(agent, tmp_path, "--workers", "1", "--timeout-keep-alive", "60")
    with site.launched as launched, concurrent.futures.ThreadPoolExecutor() as pool:
        launched.serves()
        (old,) = worker_pids(launched.log)
        with (
            site.caller.websocket(site.port) as websocket,
            closing(site.caller.connect(site.port)) as idle,
            closing(site.caller.connect(site.port)) as slow,
        ):
            websocket.send("hello")
            assert websocket.recv(10) == "client: hello"
            assert request(idle, "/whoami")[0] == 200
            answer = pool.submit(request, slow, "/slow?seconds=6")
            launched.signal(signal.SIGHUP)
            with pytest.raises(ConnectionClosed) as closed:
                websocket.recv(30)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1001
            # the old one still answers on its connections, the new one on new connections
            assert f'"pid":{old}'.encode() in request(idle, "/whoami")[1]
            assert site.answer()["pid"] != old
            assert answer.result(20) == (200, b'"done"')
        launched.says("all workers are restarted")


def test_a_replacement_that_cannot_serve_replaces_nobody(agent: DevAgent, tmp_path: Path) -> None:
    site = Site(agent, tmp_path, "--workers", "2")
    with site.launched as launched:
        launched.serves()
        launched.says("Application startup complete", times=2)
        old = worker_pids(launched.log)
        site.module.write_text("raise RuntimeError('half an edit')")
        launched.signal(signal.SIGHUP)
        launched.says("ended with 7 before it could serve")
        assert "half an edit" in launched.log
        assert all(alive(pid) for pid in old)
        # nor does it end the service when one of the old workers dies now: the other one serves
        victim = min(old)
        os.kill(victim, signal.SIGKILL)
        launched.says(f"worker {victim} ended with -9; starting another")
        launched.says("ended with 7; starting another")
        assert site.answer()["pid"] == max(old)
        since = time.monotonic()
        launched.says("ended with 7; starting another", times=2)
        assert time.monotonic() - since > RETRY_SECONDS
        assert launched.log.count("before it could serve") == 1
        assert "health check critical" not in launched.log
        # and when it is mended, it is served
        site.rename("visitor")
        site.restart()
        wait_for(lambda: site.answer().keys() == {"visitor", "pid"})
        assert launched.stop() == 0


def test_asked_again_during_a_restart_one_more_follows(agent: DevAgent, tmp_path: Path) -> None:
    site = Site(agent, tmp_path, "--workers", "1")
    with site.launched as launched:
        launched.serves()
        launched.signal(signal.SIGHUP)
        launched.says("restarting 1 workers")
        for _ in range(3):
            launched.signal(signal.SIGHUP)
        launched.says("all workers are restarted", 40, times=2)
        assert launched.stop() == 0
        assert launched.log.count("restarting 1 workers") == 2
        assert len(worker_pids(launched.log)) == 3


def test_a_stop_during_a_restart_ends_both_workers_and_cuts_no_request(
    agent: DevAgent, tmp_path: Path
) -> None:
    site = Site(agent, tmp_path, "--workers", "1")
    with site.launched as launched, concurrent.futures.ThreadPoolExecutor() as pool:
        launched.serves()
        with closing(site.caller.connect(site.port)) as slow:
            answer = pool.submit(request, slow, "/slow?seconds=5")
            launched.signal(signal.SIGHUP)
            launched.says("finishes")
            launched.signal()
            launched.says("check is critical")
            assert answer.result(20) == (200, b'"done"')
        assert launched.ends() == 0
        assert len(worker_pids(launched.log)) == 2
        assert not any(alive(pid) for pid in worker_pids(launched.log))
    assert not health(agent.address, "web")


def test_an_old_worker_that_dies_meanwhile_is_replaced_once(
    agent: DevAgent, tmp_path: Path
) -> None:
    site = Site(agent, tmp_path, "--workers", "2")
    with site.launched as launched:
        launched.serves()
        launched.says("Application startup complete", times=2)
        old = worker_pids(launched.log)
        launched.signal(signal.SIGHUP)
        launched.says("restarting 2 workers")
        for pid in old:
            os.kill(pid, signal.SIGKILL)
        launched.says("all workers are restarted", 40)
        wait_for(lambda: len(worker_pids(launched.log)) == 4)
        assert site.answer()["pid"] not in old
        assert launched.stop() == 0
        assert len(worker_pids(launched.log)) == 4


def test_every_request_is_counted_once(agent: DevAgent, tmp_path: Path) -> None:
    """Those, too, that a worker answers while it leaves; the sum never goes down."""
    ops = free_port()
    arguments = ("--workers", "1", "--ops-port", str(ops), "--timeout-keep-alive", "60")
    site = Site(agent, tmp_path, *arguments)

    def total() -> float:
        page = httpx.get(f"http://127.0.0.1:{ops}/metrics", trust_env=False).text
        families = text_string_to_metric_families(page)
        samples = (sample for family in families for sample in family.samples)
        return sum(s.value for s in samples if s.name == "mesh_decisions_total")

    with site.launched as launched:
        launched.serves()
        with closing(site.caller.connect(site.port)) as sock:
            for _ in range(10):
                assert request(sock, "/whoami")[0] == 200
            wait_for(lambda: total() == 10)
            launched.signal(signal.SIGHUP)
            launched.says("waiting for the clients of 1 connections")
            assert request(sock, "/whoami")[0] == 200
        launched.says("all workers are restarted")
        wait_for(lambda: total() == 11)
        site.answer()
        wait_for(lambda: total() == 12)


@pytest.mark.parametrize("arguments", [(), ("--reload",)])
def test_without_workers_it_says_what_it_needs_and_goes_on(
    agent: DevAgent, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    site = Site(agent, tmp_path, *arguments)
    with site.launched as launched:
        launched.serves()
        pids = worker_pids(launched.log)
        for pid in pids | {launched.process.pid}:  # as a terminal that is closed
            os.kill(pid, signal.SIGHUP)
        launched.says("SIGHUP restarts nothing here: that needs --workers")
        assert {site.answer()["pid"]} == pids
        assert launched.stop() == 0

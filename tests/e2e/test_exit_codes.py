"""Why a launch ends: the documented exit codes, each with words a person can act on."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from mesh_middleware.devagent import DevAgent
from tests.e2e.launch import PLAIN, Launched
from tests.support import free_port, wait_for


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """Something at an agent's address that gives everybody the same answer."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            self.rfile.read(length)
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_PUT = do_POST = do_GET  # noqa: N815 - the standard library's names

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def agent() -> Iterator[DevAgent]:
    with DevAgent() as running:
        yield running


def test_1_an_agent_that_answers_nonsense() -> None:
    with (
        answering(500, b"no cluster leader") as address,
        Launched(address, "--wait", "1", app=PLAIN) as launched,
    ):
        assert launched.ends() == 1
        assert "not ready after 1 s (--wait)" in launched.log
        assert "no cluster leader" in launched.log


def test_2_a_wrong_option(agent: DevAgent) -> None:
    with Launched(agent.address, "--ssl-keyfile", "key.pem") as launched:
        assert launched.ends() == 2
        assert "--ssl-keyfile: certificate, key, roots" in launched.log


def test_2_a_wrong_variable_of_the_environment_is_named() -> None:
    with Launched("http://192.0.2.1:8500") as launched:
        assert launched.ends() == 2
        assert "CONSUL_HTTP_ADDR" in launched.log


def test_3_the_application_does_not_start(agent: DevAgent) -> None:
    with Launched(agent.address, env={"E2E_BREAK_STARTUP": "1"}) as launched:
        assert launched.ends() == 3
        assert "the database is away" in launched.log
    wait_for(lambda: not agent.services)


def test_4_no_agent(agent: DevAgent) -> None:
    port = free_port()
    ops = free_port()
    with Launched(
        f"http://127.0.0.1:{port}", "--wait", "3", "--ops-port", str(ops), app=PLAIN
    ) as launched:
        launched.says("still waiting")
        live = httpx.get(f"http://127.0.0.1:{ops}/health/live", trust_env=False)
        ready = httpx.get(f"http://127.0.0.1:{ops}/health/ready", trust_env=False)
        assert (live.status_code, ready.status_code) == (200, 503)
        assert ready.json() == {"ready": False, "why": "starting"}
        assert launched.ends() == 4
        assert f"no answer from the Consul agent at http://127.0.0.1:{port}" in launched.log
        assert "set CONSUL_HTTP_ADDR" in launched.log
        assert "Traceback" not in launched.log


def test_5_a_token_that_may_nothing() -> None:
    with (
        answering(403, b"Permission denied") as address,
        Launched(address, "--wait", "1", app=PLAIN) as launched,
    ):
        assert launched.ends() == 5
        assert "service identity for 'web'" in launched.log


def test_6_a_taken_port(agent: DevAgent) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with Launched(agent.address, port=port, app=PLAIN) as launched:
            assert launched.ends() == 6
            assert f"127.0.0.1:{port} is taken by another process" in launched.log
        with Launched(agent.address, "--ops-port", str(port), app=PLAIN) as launched:
            assert launched.ends() == 6
            assert f"--ops-port {port}" in launched.log


@pytest.mark.parametrize(
    ("app", "words"),
    [
        ("no_such_module:app", "no_such_module"),
        ("tests.e2e.app", "module:attribute"),
    ],
)
def test_7_an_application_that_cannot_be_imported(agent: DevAgent, app: str, words: str) -> None:
    with Launched(agent.address, app=app) as launched:
        assert launched.ends() == 7
        assert words in launched.log

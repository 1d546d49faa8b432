"""The main job in half a minute: real mTLS, intentions, a live change and a CA rotation.

Everything runs here: a development agent, the FastAPI service of app.py under the launcher, and
two services that call it. Exit code 0 when all that is shown really happened, 1 when not.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import click
import yaml
from cryptography import x509

from mesh_middleware import MeshConfig, MeshError
from mesh_middleware.devagent import DevAgent
from mesh_middleware.upstream.oneshot import Call, Reply, call_once

HERE = Path(__file__).parent
MILK = '{"item": "milk"}'
DEADLINE_SECONDS = 15.0

_pause = threading.Event().wait


class Demo:
    """The story, step by step; `failures` counts what did not happen."""

    def __init__(self, agent: DevAgent, url: str) -> None:
        self.agent = agent
        self.url = url
        self.failures = 0

    def call(self, caller: str, method: str, path: str, body: str | None = None) -> Reply:
        """One request over mTLS with a certificate of `caller`, made just now."""
        request = Call(
            self.url + path,
            method=method,
            headers=(("content-type", "application/json"),) if body else (),
            body=body.encode() if body else None,
            expect="orders",
        )
        return asyncio.run(call_once(config_for(caller, self.agent), request))

    def show(
        self,
        caller: str,
        method: str,
        path: str,
        wanted: int,
        *,
        body: str | None = None,
        why: str = "",
    ) -> None:
        """Call, and print what came of it beside what should; `why` is for who watches."""
        reply = self.call(caller, method, path, body)
        reason = dict(reply.headers).get("x-mesh-refused")
        said = f"refused: {reason}" if reason else f"answered: {reply.body.decode()[:60]}"
        line = f"{caller:8} {method:6} {path:10} {reply.status} {said}"
        self.say(reply.status == wanted, f"{line} ({why})" if why else line)

    def say(self, happened: bool, text: str) -> None:
        """Print one line with a tick, or with a cross that makes the demo fail."""
        self.failures += not happened
        mark = (
            click.style("ok  ", fg="green")
            if happened
            else click.style("FAIL", fg="red", bold=True)
        )
        click.echo(f"  {mark} {text}")

    def wait(self, text: str, happened: Callable[[], bool]) -> None:
        """Print `text` and how long it took until `happened`, with a deadline."""
        start = time.monotonic()
        while not (done := happened()) and time.monotonic() - start < DEADLINE_SECONDS:
            _pause(0.02)
        self.say(done, f"{text} (after {(time.monotonic() - start) * 1000:.0f} ms)")

    def tell(self) -> None:
        """All of it."""
        step("Services call app.py over mTLS; intentions.yaml beside it says who may do what")
        self.show("shop", "GET", "/orders", 200)
        self.show("shop", "POST", "/orders", 201, body=MILK)
        self.show("shop", "DELETE", "/orders/1", 403, why="a permission denies DELETE")
        self.show("reports", "GET", "/orders", 200)
        self.show("reports", "POST", "/orders", 403, body=MILK, why="reports may only read")
        self.show("reports", "GET", "//orders", 403, why="some routers read it as /orders")
        self.show("stranger", "GET", "/orders", 403, why="nobody said that it may")

        step("The intention of reports changes to deny, while everything runs")
        self.agent.put_intentions(with_reports_denied())
        self.wait("reports is refused", lambda: self.status("reports") == 403)
        self.show("shop", "GET", "/orders", 200)
        self.agent.put_intentions(intentions())
        self.wait("put back, reports is answered", lambda: self.status("reports") == 200)

        step("The certificate authority rotates, then the old root is distrusted")
        before = self.served_by()
        self.agent.rotate_ca()
        self.wait(
            "the server shows a certificate of the new root", lambda: self.served_by() != before
        )
        self.show("shop", "GET", "/orders", 200)
        self.agent.remove_inactive_roots()
        self.wait("calls go on without the old root", lambda: self.status("shop") == 200)

    def status(self, caller: str) -> int:
        """What `caller` gets for GET /orders now; 0 when the connection is refused."""
        try:
            return self.call(caller, "GET", "/orders").status
        except MeshError:
            return 0

    def served_by(self) -> str:
        """The issuer's key of the certificate that the server shows now."""
        try:
            leaf = x509.load_der_x509_certificate(self.call("shop", "GET", "/orders").certificate)
        except MeshError:
            return ""
        issuer = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
        return (issuer.key_identifier or b"").hex()


def step(title: str) -> None:
    """A headline."""
    click.echo(f"\n{click.style(title, bold=True)}")


def config_for(service: str, agent: DevAgent) -> MeshConfig:
    """Settings of one caller, from the development agent and nothing else."""
    return MeshConfig.from_env(service, environ={"CONSUL_HTTP_ADDR": agent.address})


def intentions() -> dict[str, object]:
    """The entry in intentions.yaml."""
    entry: dict[str, object] = yaml.safe_load((HERE / "intentions.yaml").read_text())
    return entry


def with_reports_denied() -> dict[str, object]:
    """The same with reports denied altogether."""
    entry = intentions()
    sources = [s for s in entry["Sources"] if s["Name"] != "reports"]  # type: ignore[attr-defined]
    return {**entry, "Sources": [*sources, {"Name": "reports", "Action": "deny"}]}


def command(port: int) -> list[str]:
    """What one would type after ``mesh-middleware``."""
    return ["run", "app:app", "--service", "orders", "--port", str(port), "--app-dir", str(HERE)]


def free_port() -> int:
    """A port on loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> int:
    """Run the story; 0 when all of it happened."""
    port = free_port()
    with DevAgent(intentions=intentions()) as agent, tempfile.TemporaryFile("w+") as log:
        demo = Demo(agent, f"https://127.0.0.1:{port}")
        step("A development agent and the orders service start (no Consul needed)")
        server = subprocess.Popen(
            [sys.executable, "-m", "mesh_middleware", *command(port)],
            env={**os.environ, "CONSUL_HTTP_ADDR": agent.address},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            demo.wait("registered, check passing", lambda: "passing" in agent.statuses.values())
            if not demo.failures:
                demo.tell()
            step("SIGTERM")
            server.send_signal(signal.SIGTERM)
            demo.say(server.wait(DEADLINE_SECONDS) == 0, "the service stopped with exit code 0")
            demo.say(not agent.services, "and is no longer registered")
        finally:
            if server.poll() is None:
                server.kill()
                server.wait()
        if demo.failures:
            log.seek(0)
            click.echo(
                f"\n{demo.failures} of these did not happen. The service's log:\n{log.read()}"
            )
            return 1
    click.echo("\nAll of it happened. Next: the README, or mesh-middleware --help")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Servers in processes of their own, and the agent that tells them what they are."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any, Self

from tests.e2e.launch import REFUSED, ROOT, Caller
from tests.support import free_port, wait_for

BIN = Path(sys.executable).parent


def get(
    sock: socket.socket, target: str = "/", headers: dict[str, str] | None = None
) -> tuple[int, Any]:
    """One GET on an open connection: status, and the body as JSON."""
    lines = [f"GET {target} HTTP/1.1", "host: mesh"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
    with closing(http.client.HTTPResponse(sock, method="GET")) as response:
        response.begin()
        body = response.read()
    try:
        return response.status, json.loads(body)
    except ValueError:
        return response.status, {"text": body.decode("latin-1")}  # of the server itself


class Process:
    """A server in a process; a context manager that leaves nothing behind."""

    def __init__(
        self, command: list[str], *, port: int, agent: str = "", env: dict[str, str] | None = None
    ) -> None:
        self.command = command
        self.port = port
        self.agent = agent
        kept = {key: text for key, text in os.environ.items() if not key.startswith("CONSUL_")}
        self._env = {
            **kept,
            "CONSUL_HTTP_ADDR": agent,
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "PYTHONWARNINGS": "ignore",
            **(env or {}),
        }
        with tempfile.NamedTemporaryFile(prefix="mesh-server-", suffix=".log", delete=False) as log:
            self._log = Path(log.name)

    def __enter__(self) -> Self:
        with self._log.open("wb") as output:
            self.process = subprocess.Popen(
                self.command,
                stdout=output,
                stderr=output,
                env=self._env,
                cwd=ROOT,
                start_new_session=True,  # so that its workers can be ended with it
            )
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait(5)
        self._log.unlink()

    @property
    def log(self) -> str:
        return self._log.read_text()

    def signal(self, signum: int) -> None:
        self.process.send_signal(signum)

    def says(self, text: str, times: int = 1, timeout: float = 60.0) -> None:
        """Wait until the log has `text`; fail with the log when the process ends or time is up."""

        def said() -> bool:
            ended = self.process.poll() is not None
            return self.log.count(text) >= times or ended

        try:
            wait_for(said, timeout)
        finally:
            assert self.log.count(text) >= times, f"no {text!r} in:\n{self.log}"

    def stop(self) -> int:
        self.signal(signal.SIGTERM)
        return self.process.wait(15)

    # -- asking it ----------------------------------------------------------------------------

    def ask(
        self,
        caller: str | Caller,
        target: str = "/",
        headers: dict[str, str] | None = None,
        service: str = "api",
    ) -> tuple[int, Any]:
        """One GET of `caller` on a connection of its own: status, and the body as JSON.

        A name gets a certificate that is made now.
        """
        who = Caller.of(self.agent, caller) if isinstance(caller, str) else caller
        with closing(who.connect(self.port, service)) as sock:
            return get(sock, target, headers)

    def refuses(self, caller: str | Caller) -> bool:
        """Whether the connection ends without an answer, because of who `caller` is."""
        return self.status(caller) == 0

    def status(self, caller: str | Caller, target: str = "/") -> int:
        """The answer's status; 0 when the connection ends without one."""
        try:
            return self.ask(caller, target)[0]
        except REFUSED:
            return 0

    def answers(self, caller: str, timeout: float = 60.0) -> Self:
        """Wait until `caller` gets an answer."""

        def answered() -> bool:
            assert self.process.poll() is None, self.log
            return self.status(caller) > 0

        try:
            wait_for(answered, timeout)
        except AssertionError:
            raise AssertionError(f"no answer:\n{self.log}") from None
        return self


def gunicorn(agent: str, app: str, conf: Path, *lines: str) -> Process:
    """The real gunicorn with the five documented lines, and `lines`, in its conf file at `conf`."""
    port = free_port()
    conf.write_text("\n".join([*GUNICORN_CONF, f'bind = "127.0.0.1:{port}"', *lines]))
    return Process(
        [str(BIN / "gunicorn"), "--no-control-socket", "-c", str(conf), app], port=port, agent=agent
    )


GUNICORN_CONF = (
    "from mesh_middleware.server.gunicorn import MeshConf",
    'mesh = MeshConf("api")',
    "certfile, ssl_context = mesh.certfile, mesh.ssl_context",
    "post_worker_init = mesh.post_worker_init",
)

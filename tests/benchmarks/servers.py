"""The same FastAPI route on bare uvicorn with mTLS and on the launcher, side by side.

The servers run alternately, pinned to one core, the load generator to the other. Bare uvicorn is
started twice: how far the two lie apart (A/A) is how far a ratio can be believed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mesh_middleware.devagent import DevAgent
from tests.benchmarks.measure import cpu_seconds, medians, pin, spread, table
from tests.support import free_port, wait_for

INTENTIONS = [
    {
        "SourceName": "web",
        "DestinationName": "api",
        "Permissions": [
            {"Action": "deny", "HTTP": {"PathPrefix": "/admin/"}},
            {"Action": "allow", "HTTP": {"PathPrefix": "/hello", "Methods": ["GET", "HEAD"]}},
        ],
    }
]
ROOT = Path(__file__).parent.parent.parent


class Certificates:
    """A leaf of the calling service and one of the server, and the roots, as files."""

    def __init__(self, folder: Path, agent: DevAgent) -> None:
        self.roots = folder / "roots.pem"
        self.roots.write_text("".join(root["RootCert"] for root in agent.ca.roots()))
        for service in ("web", "api"):
            leaf = agent.ca.issue(service)
            (folder / f"{service}.pem").write_text(leaf.cert_pem)
            (folder / f"{service}.key").write_text(leaf.key_pem)
        self.folder = folder

    def of(self, service: str) -> list[str]:
        """Certificate, key and roots of `service`, as arguments."""
        return [
            str(self.folder / f"{service}.pem"),
            str(self.folder / f"{service}.key"),
            str(self.roots),
        ]


@contextmanager
def server(arguments: list[str], port: int, environ: dict[str, str]) -> Iterator[int]:
    """A server process, listening and pinned to the first core; gives its pid."""
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env={**os.environ, **environ},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: process.poll() is not None or listens(port), 30, f"{arguments} not up")
        assert process.poll() is None, arguments
        pin(process.pid, 0)
        yield process.pid
    finally:
        process.terminate()
        process.wait(20)


def listens(port: int) -> bool:
    """Whether somebody listens on a port of loopback (proc(5), net/tcp; a probe would be load)."""
    wanted = f"0100007F:{port:04X} 00000000:0000 0A"
    return wanted in Path("/proc/net/tcp").read_text()


def run_load(port: int, client: list[str], seconds: float, mode: str) -> dict[str, float]:
    """One run of the load generator on the other core; its figures. `client`: `Certificates.of`."""
    command = [sys.executable, "-m", "tests.benchmarks.load", str(port), *client]
    process = subprocess.Popen(
        [*command, str(seconds), "4", mode], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    pin(process.pid, 1)
    output, _ = process.communicate(timeout=seconds + 60)
    figures: dict[str, float] = json.loads(output)
    assert process.returncode == 0, figures
    figures.pop("failures")
    return figures


def measured(
    pid: int, port: int, certificates: Certificates, seconds: float, mode: str
) -> dict[str, float]:
    """A run with the server's CPU beside it."""
    before = cpu_seconds(pid)
    figures = run_load(port, certificates.of("web"), seconds, mode)
    figures["cpu_us"] = (cpu_seconds(pid) - before) / max(figures["requests"], 1) * 1e6
    return figures


def compare(mode: str, *, seconds: float, rounds: int) -> str:
    """The three servers in turn, `rounds` times; medians and ratios."""
    with DevAgent(intentions=INTENTIONS) as agent, tempfile.TemporaryDirectory() as folder:
        certificates = Certificates(Path(folder), agent)
        ports = {name: free_port() for name in ("bare", "bare again", "mesh_middleware")}
        bare = ["tests.benchmarks.app"]
        commands = {
            "bare": [*bare, str(ports["bare"]), *certificates.of("api")],
            "bare again": [*bare, str(ports["bare again"]), *certificates.of("api")],
            "mesh_middleware": [
                "mesh_middleware", "run", "tests.benchmarks.app:app", "--service", "api",
                "--port", str(ports["mesh_middleware"]),
                "--no-access-log", "--log-level", "warning",
            ],
        }  # fmt: skip
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in ports}
        environ = {"CONSUL_HTTP_ADDR": agent.address}
        with (
            server(commands["bare"], ports["bare"], environ) as first,
            server(commands["bare again"], ports["bare again"], environ) as second,
            server(commands["mesh_middleware"], ports["mesh_middleware"], environ) as third,
        ):
            pids = dict(zip(ports, (first, second, third), strict=True))
            for port in ports.values():  # warm up
                run_load(port, certificates.of("web"), seconds / 4, mode)
            for _ in range(rounds):
                for name, port in ports.items():
                    runs[name].append(measured(pids[name], port, certificates, seconds, mode))
    middle = {name: medians(found) for name, found in runs.items()}
    base = middle["bare"]
    rows = [
        (
            name,
            f["cpu_us"],
            f["cpu_us"] / base["cpu_us"],
            f["per_second"],
            f["p50_ms"],
            f["p99_ms"],
            f"{spread([run['cpu_us'] for run in runs[name]]) * 100:.0f} %",
        )
        for name, f in middle.items()
    ]
    kind = "keep-alive requests" if mode == "keep" else "a new connection for each request"
    return table(
        f"FastAPI over mTLS, {kind}",
        ("server", "CPU µs", "CPU ratio", "per second", "p50 ms", "p99 ms", "spread of CPU"),
        rows,
    )


def report(*, short: bool = False) -> str:
    """Both tables of this file."""
    seconds, rounds = (0.3, 1) if short else (4.0, 7)
    return "\n".join(compare(mode, seconds=seconds, rounds=rounds) for mode in ("keep", "new"))

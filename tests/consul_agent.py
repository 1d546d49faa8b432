"""A real Consul agent for tests: `consul agent -dev` on free ports of 127.0.0.1.

The binary is the one that ``CONSUL_BIN`` names, of any version, else Debian's 1.8.7 from bullseye.
That one is fetched with apt into the checkout's ``.cache/consul`` folder, with folders of its own
for lists and packages: the system's apt state is neither read nor changed and root is not needed.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import httpx

from tests.support import unavailable, wait_for

CACHE = Path(__file__).parents[1] / ".cache" / "consul"
_FALLBACK = """\
Types: deb
URIs: http://deb.debian.org/debian
Suites: bullseye
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
"""


class ConsulUnavailableError(Exception):
    """There is no binary to run, and why."""


def require_consul() -> Path:
    """The binary to test with; see `unavailable` for what happens without one."""
    try:
        return consul_binary()
    except ConsulUnavailableError as error:
        unavailable("Consul", str(error), "Set CONSUL_BIN to a consul binary to run them.")


@functools.cache
def _outcome() -> Path | str:
    """The binary, or why there is none: found out once in a process."""
    chosen = os.environ.get("CONSUL_BIN")
    try:
        return _existing(chosen) if chosen else _fetched()
    except ConsulUnavailableError as error:
        return str(error)


def consul_binary() -> Path:
    """The path of a binary that runs; ConsulUnavailableError says why there is none."""
    outcome = _outcome()
    if isinstance(outcome, str):
        raise ConsulUnavailableError(outcome)
    return outcome


@functools.cache
def consul_version(binary: Path) -> tuple[int, int, int]:
    """What ``consul version`` says, as numbers."""
    try:
        done = subprocess.run(
            [binary, "version"], capture_output=True, text=True, timeout=30, check=False
        )
    except OSError as error:
        raise ConsulUnavailableError(f"{binary} does not run: {error}") from error
    found = re.search(r"Consul v?(\d+)\.(\d+)\.(\d+)", done.stdout)
    if not found:
        raise ConsulUnavailableError(f"{binary} version says {done.stdout[:200]!r}")
    return int(found[1]), int(found[2]), int(found[3])


def _existing(name: str) -> Path:
    path = shutil.which(name)
    if path is None:
        raise ConsulUnavailableError(f"CONSUL_BIN={name} is not an executable file")
    binary = Path(path).absolute()
    consul_version(binary)
    return binary


def _fetched() -> Path:
    """Debian's binary from the cache folder, fetched first if need be, by one process at a time."""
    binary = CACHE / f"consul-1.8.7-{platform.machine()}"
    failure = CACHE / "failure"
    CACHE.mkdir(parents=True, exist_ok=True)
    asked = time.time()
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not binary.exists():
            # Another worker of this run has just failed: its reason is ours.
            if failure.exists() and failure.stat().st_mtime > asked:
                raise ConsulUnavailableError(failure.read_text())
            try:
                _fetch(binary)
            except ConsulUnavailableError as error:
                failure.write_text(str(error))
                raise
    consul_version(binary)
    return binary


def _fetch(binary: Path) -> None:
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise ConsulUnavailableError(f"Debian's consul cannot be fetched: no {tool} here")
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="fetch-") as folder:
        work = Path(folder)
        config = _apt_config(work)
        _apt(work, config, "update")
        _apt(work, config, "download", "consul")
        packages = sorted(work.glob("consul_*.deb"))
        if not packages:
            raise ConsulUnavailableError("apt-get download brought no consul package")
        _run(work, "dpkg", "-x", str(packages[0]), str(work / "root"))
        (work / "root/usr/bin/consul").replace(binary)


def _apt_config(work: Path) -> Path:
    """Settings that keep apt inside `work`; read after the system's own, so proxies stay."""
    for folder in ("parts", "lists/partial", "cache/archives/partial", "state", "log"):
        (work / folder).mkdir(parents=True)
    (work / "parts/bullseye.sources").write_text(_sources())
    (work / "status").touch()
    config = work / "apt.conf"
    config.write_text(
        f"""
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Post-Invoke;
Dir::Etc::SourceList "/dev/null";
Dir::Etc::SourceParts "{work}/parts";
Dir::State "{work}/state";
Dir::State::Lists "{work}/lists";
Dir::State::status "{work}/status";
Dir::Cache "{work}/cache";
Dir::Log "{work}/log";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Retries "2";
Acquire::http::Timeout "20";
Acquire::https::Timeout "20";
"""
    )
    return config


def _sources() -> str:
    """The installed stanza of the Debian archive with the suite changed, or the usual one."""
    for path in sorted(Path("/etc/apt/sources.list.d").glob("*.sources")):
        for stanza in re.split(r"\n\s*\n", path.read_text()):
            if re.search(r"(?m)^URIs:.*/debian/?\s*$", stanza):
                changed = re.sub(r"(?m)^Suites:.*$", "Suites: bullseye", stanza)
                return re.sub(r"(?m)^Components:.*$", "Components: main", changed) + "\n"
    return _FALLBACK


def _apt(work: Path, config: Path, *arguments: str) -> None:
    _run(work, "apt-get", "-q", "-c", str(config), *arguments)


def _run(work: Path, *command: str) -> None:
    try:
        done = subprocess.run(
            command, cwd=work, capture_output=True, text=True, timeout=300, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ConsulUnavailableError(f"{command[0]} took more than {error.timeout} s") from error
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())[-400:]
        raise ConsulUnavailableError(f"{' '.join(command[-2:])} failed: {said}")


class ConsulAgent:
    """A running ``consul agent -dev``; a context manager.

    `address`: base URL of its HTTP API. `version`: three numbers. A restart keeps the ports and,
    as a development agent has no data folder, loses every registration, intention and root.
    """

    def __init__(self, binary: Path | None = None, *arguments: str) -> None:
        self.binary = binary or consul_binary()
        self.version = consul_version(self.binary)
        self._arguments = arguments
        self._ports = _free_ports(7)
        self._process: subprocess.Popen[bytes] | None = None
        self._log: Path | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except AssertionError:  # somebody took one of the ports in between
            self.stop()
            self._ports = _free_ports(7)
            self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()
        if self._log:
            self._log.unlink()

    def __repr__(self) -> str:
        return f"<ConsulAgent {'.'.join(map(str, self.version))} {self.address}>"

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._ports[0]}"

    @property
    def pid(self) -> int | None:
        """Of the process that runs now, else None."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Run the agent; returns when it has a leader and a CA."""
        if self._log is None:
            handle, name = tempfile.mkstemp(prefix="consul-", suffix=".log")
            os.close(handle)
            self._log = Path(name)
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                [self.binary, *self._command()], stdout=output, stderr=output
            )
        with httpx.Client(base_url=self.address, trust_env=False, timeout=5) as client:
            wait_for(lambda: self._ready(client), 40, "consul agent -dev did not get ready")

    def stop(self) -> None:
        """End the process by SIGINT, as an operator would; kill it if that takes 15 s."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGINT)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)

    def restart(self) -> None:
        """Stop and start on the same ports; all state is new."""
        self.stop()
        self.start()

    def _command(self) -> list[str]:
        names = ["http", "grpc", "dns", "serf-lan", "serf-wan", "server"]
        if self.version >= (1, 14, 0):
            names.append("grpc-tls")
        command = ["agent", "-dev", "-bind", "127.0.0.1", "-client", "127.0.0.1", "-node", "n"]
        for name, port in zip(names, self._ports, strict=False):
            command += [f"-{name}-port", str(port)]
        return [*command, *self._arguments]

    def _ready(self, client: httpx.Client) -> bool:
        assert self._process is not None
        assert self._log is not None
        ended = self._process.poll()
        assert ended is None, f"consul ended with {ended}: {self._log.read_text()[-1500:]}"
        with contextlib.suppress(httpx.TransportError):
            leader = client.get("/v1/status/leader")
            if leader.status_code == 200 and leader.json():
                return client.get("/v1/agent/connect/ca/roots").status_code == 200
        return False


@contextlib.contextmanager
def running_consul(*arguments: str) -> Iterator[ConsulAgent]:
    """A real agent for the length of the block, or a loud skip (a failure in CI)."""
    with ConsulAgent(require_consul(), *arguments) as agent:
        yield agent


def _free_ports(count: int) -> list[int]:
    """Distinct ports of 127.0.0.1 that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]

"""The real nginx: the one on PATH, else Debian's, fetched into ``.cache/nginx`` of the checkout.

As with tests/consul_agent.py neither the system nor its apt state is changed.
"""

from __future__ import annotations

import fcntl
import functools
import shutil
import tempfile
from pathlib import Path

from tests.consul_agent import ConsulUnavailableError, _apt, _apt_config, _run
from tests.support import unavailable

CACHE = Path(__file__).parents[2] / ".cache" / "nginx"


def require_nginx() -> str:
    """The path of a binary; see `unavailable` for what happens without one."""
    found = _outcome()
    if not found.startswith("/"):
        unavailable("nginx", found, "Install nginx to run them.")
    return found


@functools.cache
def _outcome() -> str:
    """The path, or why there is none: found out once in a process."""
    binary = CACHE / "nginx"
    if installed := shutil.which("nginx"):
        return installed
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            if not binary.exists():
                _fetch(binary)
        except ConsulUnavailableError as error:
            return f"no nginx: {error}"
    return str(binary)


def _fetch(binary: Path) -> None:
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise ConsulUnavailableError("no apt-get and dpkg here")
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="fetch-") as folder:
        work = Path(folder)
        config = _apt_config(work)
        (work / "parts" / "bullseye.sources").unlink()
        for path in Path("/etc/apt/sources.list.d").glob("*.sources"):
            shutil.copy(path, work / "parts")
        _apt(work, config, "update")
        _apt(work, config, "download", "nginx")
        _run(work, "dpkg", "-x", str(next(iter(work.glob("nginx_*.deb")))), str(work / "root"))
        (work / "root/usr/sbin/nginx").replace(binary)


def nginx_conf(folder: Path, port: int, upstream: Path) -> str:
    """What docs/guides/behind-a-proxy.md shows, for a server of the test's own."""
    page = Path(__file__).parents[2] / "docs" / "guides" / "behind-a-proxy.md"
    server = page.read_text().split("```nginx\n")[1].split("```")[0]
    for documented, ours in (
        ("listen 8443 ssl", f"listen 127.0.0.1:{port} ssl"),
        ("/etc/mesh/", f"{folder}/"),
        ("unix:/run/app.sock", f"unix:{upstream}"),
    ):
        assert documented in server
        server = server.replace(documented, ours)
    temporary = "".join(
        f"{name}_temp_path {folder}/{name};"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return (
        f"daemon off; user root; pid {folder}/nginx.pid; error_log stderr; events {{}}\n"
        f"http {{ access_log off; {temporary}\n{server}\n}}\n"
    )

"""Private keys and tokens: not in logs, texts and exceptions, and not on a disk in clear."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import re
import ssl
import stat
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mesh_middleware.config import MeshConfig
from mesh_middleware.consul.failures import Failure
from mesh_middleware.consul.manager import MeshManager
from mesh_middleware.devagent import DevAgent
from mesh_middleware.devagent.ca import Leaf
from mesh_middleware.errors import DecodeError
from mesh_middleware.tls import keys
from mesh_middleware.tls.certificates import X509SVID
from tests.contract.agents import Dev
from tests.faults import behaviours as bad
from tests.faults.proxy import Answer, Behaviour, Exchange, FaultProxy, well
from tests.soak.service import launched
from tests.support import wait_for

TOKEN = "5up3r-s3cret-t0ken"


async def echo(exchange: Exchange) -> None:
    """An error page that repeats the request, headers and all."""
    page = b"Bad request:\n" + exchange.raw
    await exchange.send(Answer(400, {"content-type": "text/plain"}, page))


KEY_FIRST = bad.body(lambda _: b'{"PrivateKeyPEM": "-----BEGIN EC PRIVATE KEY-----\\nMHcCAQEEIAbC')
PLAIN_KEY = bad.body(lambda good: good.replace(b"EC PRIVATE KEY", b"EC PRIVATE-KEY"))

MISHAPS: dict[str, Behaviour] = {
    "echo": echo,
    "refused": bad.tokens(()),
    "cut off": bad.TRUNCATED,
    "key first": KEY_FIRST,
    "broken key": PLAIN_KEY,
    "html": bad.HTML,
}


def secret_parts(leaves: list[Leaf]) -> list[str]:
    """The token, and the lines of every key that was given out: any one would be too much."""
    lines = {line for leaf in leaves for line in leaf.key_pem.splitlines() if "-----" not in line}
    return [TOKEN, "PRIVATE KEY", *(line[:24] for line in lines)]


def search(text: str, parts: list[str], where: str) -> None:
    for part in parts:
        assert part not in text, f"{where} shows {part[:6]}…"


@pytest.fixture
def issued(monkeypatch: pytest.MonkeyPatch) -> list[Leaf]:
    """Every leaf that an agent of this process gives out."""
    from mesh_middleware.devagent import ca  # noqa: PLC0415 - only this fixture changes it

    leaves: list[Leaf] = []
    issue = ca.CertificateAuthority.issue

    def noted(self: Any, *arguments: Any, **options: Any) -> Leaf:
        leaves.append(issue(self, *arguments, **options))
        return leaves[-1]

    monkeypatch.setattr(ca.CertificateAuthority, "issue", noted)
    return leaves


def test_no_mishap_shows_a_key_or_the_token(
    issued: list[Leaf], caplog: pytest.LogCaptureFixture
) -> None:
    """In this process: logs down to DEBUG, reprs of what holds secrets, and all exceptions."""
    caplog.set_level(logging.DEBUG)
    errors: list[BaseException] = []
    with DevAgent() as agent, FaultProxy(agent.address) as proxy:
        config = MeshConfig("web", address=proxy.address, token=TOKEN, wait_seconds=0.2)
        with MeshManager(config) as manager, collected(errors):
            manager.wait_ready(20)
            for behaviour in MISHAPS.values():
                proxy.set(behaviour)
                wait_for(lambda: "leaf" in manager.last_errors)
                texts = [str(error) for error in manager.last_errors.values()]
                search("\n".join(texts), secret_parts(issued), "last_errors")
                agent.rotate_ca()
                proxy.set(well)
                wait_for(lambda: not manager.last_errors)
            state = manager.state
            assert state.svid is not None
            holders = (config, manager, manager.client, state, state.svid, state.contexts,
                       manager.client._token, manager.client._http.headers)  # fmt: skip
            parts = secret_parts(issued)
            for holder in holders:
                search(repr(holder) + str(holder), parts, type(holder).__name__)
    assert len(issued) > len(MISHAPS)
    search(caplog.text, parts, "the log")
    assert errors
    for error in errors:
        search("".join(traceback.format_exception(error)), parts, type(error).__name__)


@contextlib.contextmanager
def collected(errors: list[BaseException]) -> Iterator[None]:
    """Every failure that the manager of this block was told of, with its causes."""
    from mesh_middleware.consul import failures  # noqa: PLC0415 - only this changes it

    told = failures.Failures.set

    def noted(self: Any, part: str, error: Exception | Failure) -> None:
        if isinstance(error, Exception):
            errors.append(error)
        told(self, part, error)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(failures.Failures, "set", noted)
        yield


def test_a_launched_service_logs_no_secret(issued: list[Leaf]) -> None:
    """A whole process at its most talkative, through the same mishaps."""
    with DevAgent(default_action="allow") as agent, FaultProxy(agent.address) as proxy:
        proxied = Dev(agent)
        proxied.client.close()
        run = launched(agent, "--log-level", "trace")
        run._env |= {"CONSUL_HTTP_ADDR": proxy.address, "CONSUL_HTTP_TOKEN": TOKEN,
                     "MESH_WAIT_SECONDS": "0.2"}  # fmt: skip
        with run as server:
            server.serves()
            for name, behaviour in MISHAPS.items():
                what = "web: token: " if name == "refused" else "web: leaf: "
                said = server.log.count(what)
                proxy.set(behaviour)
                server.says(what, times=said + 1)
                agent.rotate_ca()
                proxy.set(well)
                server.says(f"{what}well again", times=said // 2 + 1)
            assert server.stop() == 0
            search(server.log, secret_parts(issued), "the log")
            search(" ".join(server.command), [TOKEN], "the command line")


# -- the disk -------------------------------------------------------------------------------------


class Disk:
    """Looks, at each moment at which OpenSSL is given a key, at all files that could show it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.given: list[str] = []
        self.seen: list[str] = []

    def look(self, parts: list[str], name: object) -> None:
        self.given.append(os.path.realpath(str(name)))
        for path in self.folder.rglob("*"):
            self._read(path, parts)
        for number in os.listdir("/proc/self/fd"):  # noqa: PTH208 - names, not paths
            link = Path("/proc/self/fd", number)
            with contextlib.suppress(OSError):
                target = os.readlink(link)  # noqa: PTH115 - not a path, for sockets and memory
                if target.startswith("/") and not target.startswith(("/memfd:", "/dev/", "/proc/")):
                    self._read(Path(target), parts)

    def _read(self, path: Path, parts: list[str]) -> None:
        with contextlib.suppress(OSError):
            if stat.S_ISREG(path.stat().st_mode) and path.stat().st_size < 10**6:
                self.seen.append(path.name)
                search(path.read_text("latin-1"), parts, str(path.name))


@pytest.mark.parametrize("memory", [True, False], ids=["memory file", "encrypted file"])
def test_no_key_is_on_a_disk_in_clear_while_contexts_are_made(
    issued: list[Leaf], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: bool
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    if not memory:
        monkeypatch.setattr(keys, "_load_from_memory", lambda *_: False)
    disk = Disk(tmp_path)
    load = ssl.SSLContext.load_cert_chain
    problems: list[AssertionError] = []

    def looked(self: ssl.SSLContext, certfile: Any, *arguments: Any, **options: Any) -> None:
        try:
            disk.look(secret_parts(issued)[2:], certfile)
        except AssertionError as error:
            problems.append(error)
        load(self, certfile, *arguments, **options)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", looked)
    with DevAgent() as agent, MeshManager(MeshConfig("web", address=agent.address)) as manager:
        first = manager.wait_ready(20).svid
        agent.rotate_ca()
        wait_for(lambda: manager.state.svid is not first)
    assert not problems, problems[0]
    assert len(disk.given) >= 2
    if memory:
        assert all(name.startswith("/memfd:") for name in disk.given)
        assert not list(tmp_path.iterdir())
    else:
        assert any(name.startswith("mesh-svid-") for name in disk.seen)
        assert not list(tmp_path.iterdir())  # and nothing stays


def test_the_search_would_find_a_key(issued: list[Leaf], tmp_path: Path) -> None:
    with DevAgent() as agent:
        leaf = agent.ca.issue("web")
    (tmp_path / "key.pem").write_text(leaf.key_pem)
    with pytest.raises(AssertionError, match=r"key\.pem shows"):
        Disk(tmp_path).look(secret_parts(issued)[2:], tmp_path / "key.pem")


def test_an_unreadable_key_is_not_quoted() -> None:
    leaf_text = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIAbCdEf\n-----END EC PRIVATE KEY-----\n"
    with pytest.raises(DecodeError) as caught:
        X509SVID.from_pem("", leaf_text)
    gc.collect()
    assert not re.search("MHcC", "".join(traceback.format_exception(caught.value)))

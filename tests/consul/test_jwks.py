"""Keys of providers: fetched, kept, replaced and given up."""

from __future__ import annotations

import asyncio
import gzip
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mesh_middleware.consul.jwks import (
    KeysError,
    RemoteKeys,
    ca_context,
    fetch,
    keys_of,
    local_document,
)
from mesh_middleware.errors import MeshError
from mesh_middleware.tls.jwks import MAX_DOCUMENT, NO_KEYS
from mesh_middleware.tls.providers import LocalJWKS, RemoteJWKS, RetryPolicy, TrustedCA
from tests.consul.key_server import KeyServer, make_certificate
from tests.support import await_for
from tests.tls.tokens import jwk, jwks, provider

pytestmark = pytest.mark.anyio

FIRST, SECOND = jwks(jwk("ES256", "a")), jwks(jwk("ES256", "b"))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Script:
    """Answers in turn, the last one again and again; a clock that stands until it is moved."""

    def __init__(self, *answers: bytes | MeshError, **settings: Any) -> None:
        self.answers = list(answers)
        self.fetched = 0
        self.now = 1000.0
        self.slept: list[float] = []
        self.changes = 0
        self.failures: list[str | None] = []
        settings = {"cache_seconds": 300.0, **settings}
        self.keys = RemoteKeys(
            self.fetch,
            changed=self.changed,
            failed=self.failed,
            clock=lambda: self.now,
            sleep=self.sleep,
            **settings,
        )

    async def fetch(self) -> bytes:
        answer = self.answers[min(self.fetched, len(self.answers) - 1)]
        self.fetched += 1
        if isinstance(answer, MeshError):
            raise answer
        return answer

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def changed(self) -> None:
        self.changes += 1

    def failed(self, error: MeshError | None) -> None:
        self.failures.append(None if error is None else str(error))

    @property
    def kids(self) -> list[str | None]:
        return [key.kid for key in self.keys.keys.keys]


AWAY = KeysError("away")


async def test_keys_are_fetched_and_good_for_the_cache_duration() -> None:
    script = Script(FIRST)
    assert script.keys.keys is NO_KEYS
    assert await script.keys.refresh() == 300.0
    assert script.kids == ["a"]
    assert script.changes == 1
    assert script.failures == [None]


async def test_the_same_document_is_the_same_set() -> None:
    script = Script(FIRST)
    await script.keys.refresh()
    before = script.keys.keys
    await script.keys.refresh()
    assert script.keys.keys is before
    assert script.changes == 1


async def test_rotated_keys_replace_the_old_ones() -> None:
    script = Script(FIRST, SECOND)
    await script.keys.refresh()
    await script.keys.refresh()
    assert script.kids == ["b"]
    assert script.changes == 2


async def test_an_issuer_can_take_all_keys_back() -> None:
    script = Script(FIRST, b'{"keys": []}')
    await script.keys.refresh()
    await script.keys.refresh()
    assert script.kids == []


@pytest.mark.parametrize("bad", [AWAY, b"<html>", b"[]"])
async def test_the_last_keys_stay_when_there_are_no_new_ones(bad: bytes | MeshError) -> None:
    script = Script(FIRST, bad, SECOND)
    await script.keys.refresh()
    await script.keys.refresh()
    assert script.kids == ["a"]
    assert script.failures[-1]
    await script.keys.refresh()
    assert script.kids == ["b"]
    assert script.failures[-1] is None


async def test_the_last_keys_do_not_stay_for_ever() -> None:
    script = Script(FIRST, AWAY, AWAY, AWAY, FIRST, max_stale_seconds=100.0)
    await script.keys.refresh()
    script.now += 99.9
    await script.keys.refresh()
    assert script.kids == ["a"]
    script.now += 0.1
    await script.keys.refresh()
    assert script.keys.keys is NO_KEYS
    assert script.changes == 2
    await script.keys.refresh()
    assert script.changes == 2
    await script.keys.refresh()
    assert script.kids == ["a"]


async def test_retries_back_off_and_then_go_on_slowly() -> None:
    script = Script(AWAY, retry=RetryPolicy(4, 1.0, 3.0), failed_seconds=10.0)
    assert [await script.keys.refresh() for _ in range(6)] == [1.0, 2.0, 3.0, 3.0, 10.0, 10.0]


async def test_a_good_answer_gives_the_retries_back() -> None:
    script = Script(AWAY, FIRST, AWAY, retry=RetryPolicy(1, 1.0, 3.0))
    assert [await script.keys.refresh() for _ in range(3)] == [1.0, 300.0, 1.0]


async def test_many_failures_do_not_overflow() -> None:
    script = Script(AWAY, retry=RetryPolicy(10_000, 1.0, 3.0))
    for _ in range(2000):
        await script.keys.refresh()


# -- in time ----------------------------------------------------------------------------------


@asynccontextmanager
async def running(script: Script) -> AsyncIterator[None]:
    """The script's keys, kept fresh by themselves."""
    task = asyncio.create_task(script.keys.run())
    try:
        await await_for(lambda: script.fetched)
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_keys_are_fetched_again_when_the_cache_duration_is_over() -> None:
    script = Script(FIRST, SECOND, cache_seconds=0.02)
    async with running(script):
        await await_for(lambda: script.kids == ["b"])


async def test_a_missing_key_is_fetched_at_once_when_the_last_fetch_is_long_ago() -> None:
    script = Script(FIRST, SECOND)
    async with running(script):
        script.now += 10.0
        await asyncio.to_thread(script.keys.hurry)
        await await_for(lambda: script.kids == ["b"])
        assert script.slept == [0.0]


async def test_missing_keys_are_fetched_at_most_every_ten_seconds() -> None:
    script = Script(FIRST)
    async with running(script):
        for count in range(2, 6):
            for _ in range(100):
                script.keys.hurry()
            await await_for(lambda count=count: script.fetched >= count)
        assert script.fetched == 5
        assert script.slept == [10.0] * 4


async def test_keys_that_never_change_are_fetched_once_unless_one_is_missing() -> None:
    script = Script(FIRST, cache_seconds=None)
    assert await script.keys.refresh() is None
    async with running(script):
        script.keys.hurry()
        await await_for(lambda: script.fetched == 3)


async def test_a_hurry_that_was_said_already_costs_the_loop_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script, loop = Script(FIRST), asyncio.get_running_loop()
    real, calls = loop.call_soon_threadsafe, []
    monkeypatch.setattr(
        loop, "call_soon_threadsafe", lambda *call: (calls.append(call), real(*call))
    )
    for _ in range(100):
        script.keys.hurry()
        await asyncio.sleep(0)
    assert len(calls) == 1


def test_a_hurry_after_the_end_is_nothing() -> None:
    async def made() -> RemoteKeys:
        return Script(FIRST).keys

    asyncio.run(made()).hurry()


# -- where keys come from ---------------------------------------------------------------------


async def test_keys_by_http() -> None:
    with KeyServer(FIRST) as server:
        assert await fetch(RemoteJWKS(server.uri)) == FIRST


async def test_keys_by_https_from_a_server_that_the_ca_vouches_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = make_certificate(tmp_path)
    pem = certificate[0].read_text()
    monkeypatch.setenv("KEYS_CA", pem)
    cas = [
        TrustedCA(filename=str(certificate[0])),
        TrustedCA(pem=pem),
        TrustedCA(variable="KEYS_CA"),
    ]
    with KeyServer(FIRST, certificate=certificate) as server:
        for ca in cas:
            assert await fetch(RemoteJWKS(server.uri, ca=ca)) == FIRST


async def test_a_server_that_nobody_vouches_for_gives_no_keys(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    with KeyServer(FIRST, certificate=certificate) as server:
        with pytest.raises(KeysError, match=r"(?i)certificate"):
            await fetch(RemoteJWKS(server.uri))
        assert server.asked == 0


async def test_a_certificate_for_another_server_gives_no_keys(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path, "127.0.0.2")
    ca = TrustedCA(filename=str(certificate[0]))
    with KeyServer(FIRST, certificate=certificate) as server:
        with pytest.raises(KeysError, match=r"(?i)certificate"):
            await fetch(RemoteJWKS(server.uri, ca=ca))
        assert server.asked == 0


async def test_the_environment_gives_neither_proxy_nor_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login user password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    with KeyServer(FIRST) as server:
        assert await fetch(RemoteJWKS(server.uri)) == FIRST
        assert server.headers["Seen-Authorization"] == ""


@pytest.mark.parametrize("status", [204, 301, 302, 304, 403, 404, 500])
async def test_only_status_200_brings_keys(status: int) -> None:
    with KeyServer(FIRST) as other, KeyServer(b"", status, {"Location": other.uri}) as server:
        with pytest.raises(KeysError, match=f"status {status}"):
            await fetch(RemoteJWKS(server.uri))
        assert other.asked == 0


async def test_a_document_has_a_limit() -> None:
    with KeyServer(b" " * (MAX_DOCUMENT + 1)) as server:
        with pytest.raises(KeysError, match="longer than"):
            await fetch(RemoteJWKS(server.uri))
        server.document = FIRST + b" " * (MAX_DOCUMENT - len(FIRST))
        assert len(await fetch(RemoteJWKS(server.uri))) == MAX_DOCUMENT


async def test_a_server_that_does_not_answer_is_given_up() -> None:
    with (
        KeyServer(FIRST, hang=threading.Event()) as server,
        pytest.raises(KeysError, match=r"no answer in 0\.2 s|Timeout"),
    ):
        await fetch(RemoteJWKS(server.uri, timeout_seconds=0.2))


async def test_nobody_listens() -> None:
    with KeyServer() as server:
        pass
    with pytest.raises(KeysError, match=server.uri.removesuffix("/jwks")):
        await fetch(RemoteJWKS(server.uri))


def test_authorities_that_cannot_be_used_are_named_without_contents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hunter2")
    monkeypatch.delenv("NO_CA", raising=False)
    monkeypatch.setenv("BAD_CA", "hunter2")
    for ca, words in [
        (TrustedCA(filename=str(tmp_path / "none")), "none"),
        (TrustedCA(filename=str(secret)), "secret"),
        (TrustedCA(variable="NO_CA"), "NO_CA"),
        (TrustedCA(variable="BAD_CA"), "BAD_CA"),
        (TrustedCA(pem="hunter2"), "InlineString"),
    ]:
        with pytest.raises(KeysError, match=words) as caught:
            ca_context(ca)
        assert "hunter2" not in str(caught.value)


def test_local_keys_come_from_the_entry_or_a_file(tmp_path: Path) -> None:
    assert local_document(LocalJWKS(FIRST)) == FIRST
    file = tmp_path / "keys.json"
    file.write_bytes(SECOND)
    assert local_document(LocalJWKS(filename=str(file))) == SECOND
    file.write_bytes(b" " * (MAX_DOCUMENT + 9))
    assert len(local_document(LocalJWKS(filename=str(file)))) == MAX_DOCUMENT + 1
    for missing in (str(tmp_path), "a\0b", str(tmp_path / "none")):
        with pytest.raises(KeysError, match="cannot read"):
            local_document(LocalJWKS(filename=missing))


async def test_each_kind_of_provider_gets_its_keys(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_bytes(FIRST)
    with KeyServer(FIRST) as server:
        cases: list[tuple[LocalJWKS | RemoteJWKS, float | None]] = [
            (LocalJWKS(FIRST), None),
            (LocalJWKS(filename=str(file)), 300.0),
            (RemoteJWKS(server.uri, cache_seconds=7.0), 7.0),
        ]
        for where, seconds in cases:
            errors: list[MeshError | None] = []
            nothing: Callable[[], None] = lambda: None  # noqa: E731
            keys = keys_of(provider(keys=where), changed=nothing, failed=errors.append)
            assert await keys.refresh() == seconds
            assert [key.kid for key in keys.keys.keys] == ["a"]
            assert errors == [None]


@pytest.mark.parametrize(
    "uri", ["https://xn--a/", "https://ü..x/", "https://a..b/", f"https://{'a' * 64}.example/"]
)
async def test_a_host_name_that_no_library_reads_gives_no_keys(uri: str) -> None:
    with pytest.raises(KeysError):
        await fetch(RemoteJWKS(uri, timeout_seconds=2))


@pytest.mark.parametrize(
    "ca",
    [
        TrustedCA(pem="\u00fc"),
        TrustedCA(filename="/etc/\0x"),
        TrustedCA(filename="/\ud800"),
        TrustedCA(variable="\ud800"),
    ],
)
async def test_authorities_that_are_no_text_give_no_keys(ca: TrustedCA) -> None:
    with pytest.raises(KeysError):
        await fetch(RemoteJWKS("https://localhost:1/", timeout_seconds=2, ca=ca))
    with pytest.raises(KeysError):
        ca_context(ca)


async def test_what_nobody_expected_is_a_failure_that_is_tried_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script(FIRST, retry=RetryPolicy(9, 0.01, 0.01))
    real, raised = script.keys._fetch, [RuntimeError("odd"), RuntimeError("odd")]

    async def odd() -> bytes:
        if raised:
            raise raised.pop()
        return await real()

    monkeypatch.setattr(script.keys, "_fetch", odd)
    async with running(script):
        await await_for(lambda: script.kids == ["a"])
    assert script.failures[:2] == ["the keys cannot be fetched: RuntimeError"] * 2
    assert script.failures[2] is None
    assert caplog.text.count("RuntimeError: odd") == 1


@pytest.mark.parametrize("status", [200, 403])
async def test_failures_name_the_server_and_none_of_the_secrets_in_its_uri(status: int) -> None:
    with KeyServer(b" " * (MAX_DOCUMENT + 1), status) as server:
        uri = server.uri.replace("//", "//user:s3cret@") + "/t0ken?sig=abc#def"
        with pytest.raises(KeysError) as caught:
            await fetch(RemoteJWKS(uri))
    with pytest.raises(KeysError) as away:
        await fetch(RemoteJWKS(uri))
    for text in (str(caught.value), str(away.value)):
        assert server.uri.removesuffix("/jwks") in text
        assert not [word for word in ("user", "s3cret", "t0ken", "abc", "def") if word in text]


async def test_a_compressed_document_is_bounded_before_it_is_unpacked() -> None:
    bomb = gzip.compress(bytes(64 * MAX_DOCUMENT))
    with KeyServer(bomb, headers={"Content-Encoding": "gzip"}) as server:
        with pytest.raises(KeysError, match="longer than"):
            await fetch(RemoteJWKS(server.uri))
        server.document = gzip.compress(bomb)
        server.headers["Content-Encoding"] = "gzip, gzip"
        with pytest.raises(KeysError, match="cannot be read"):
            await fetch(RemoteJWKS(server.uri))
        server.document, server.headers["Content-Encoding"] = gzip.compress(FIRST), "gzip"
        assert await fetch(RemoteJWKS(server.uri)) == FIRST

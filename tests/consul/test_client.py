"""What the client sends and how it reads answers, in process; then over real sockets."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from mesh_middleware.config import MeshConfig
from mesh_middleware.consul import client as module
from mesh_middleware.consul.answer import Answer, parse_index
from mesh_middleware.consul.client import ConsulClient
from mesh_middleware.devagent.ca import CertificateAuthority
from mesh_middleware.errors import ConfigError, ConsulError, DecodeError
from tests.consul.certificates import server_certificate
from tests.consul.fake_agent import FakeAgent, Reply

Call = Callable[[ConsulClient], Awaitable[Answer]]


def ask(
    call: Call, answer: httpx.Response | None = None, **settings: Any
) -> tuple[Answer, httpx.Request]:
    """What `call` gives when the agent answers with `answer`, and what it sent."""
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return answer or httpx.Response(200, json={"ok": True})

    async def run() -> Answer:
        config = MeshConfig("web", **settings)
        client = ConsulClient(config, transport=httpx.MockTransport(handle))
        try:
            return await call(client)
        finally:
            await client.aclose()

    return asyncio.run(run()), seen[0]


def over_socket(call: Call, address: str, **settings: Any) -> Answer:
    async def run() -> Answer:
        client = ConsulClient(MeshConfig("web", address=address, **settings))
        try:
            return await call(client)
        finally:
            await client.aclose()

    return asyncio.run(run())


ENDPOINTS: list[tuple[Call, str, str, Any]] = [
    (lambda c: c.roots(), "GET", "/v1/agent/connect/ca/roots?wait=60000ms", None),
    (lambda c: c.roots(7, 1.5), "GET", "/v1/agent/connect/ca/roots?wait=1500ms&index=7", None),
    (lambda c: c.leaf("web", 3, 2), "GET", "/v1/agent/connect/ca/leaf/web?wait=2000ms&index=3",
     None),
    (lambda c: c.match("web", 3, 2), "GET",
     "/v1/connect/intentions/match?by=destination&name=web&wait=2000ms&index=3", None),
    (lambda c: c.match("web", 0, 2, cached=True), "GET",
     "/v1/connect/intentions/match?by=destination&name=web&cached=&wait=2000ms", None),
    (lambda c: c.intentions(9, 2), "GET", "/v1/connect/intentions?wait=2000ms&index=9", None),
    (lambda c: c.authorize("web", "spiffe://x"), "POST", "/v1/agent/connect/authorize",
     {"Target": "web", "ClientCertURI": "spiffe://x"}),
    (lambda c: c.register({"Name": "web"}), "PUT",
     "/v1/agent/service/register?replace-existing-checks=true", {"Name": "web"}),
    (lambda c: c.deregister("web-1"), "PUT", "/v1/agent/service/deregister/web-1", None),
    (lambda c: c.update_check("service:web-1", "passing", "ok"), "PUT",
     "/v1/agent/check/update/service%3Aweb-1", {"Status": "passing", "Output": "ok"}),
    (lambda c: c.service("web-1"), "GET", "/v1/agent/service/web-1", None),
    (lambda c: c.health_connect("api", 2, 1), "GET",
     "/v1/health/connect/api?passing=&wait=1000ms&index=2", None),
    (lambda c: c.health_connect("api", 0, 1, passing=False), "GET",
     "/v1/health/connect/api?wait=1000ms", None),
    (lambda c: c.config_entry("mesh", "mesh", 2, 1), "GET",
     "/v1/config/mesh/mesh?wait=1000ms&index=2", None),
    (lambda c: c.config_entries("jwt-provider", 2, 1), "GET",
     "/v1/config/jwt-provider?wait=1000ms&index=2", None),
    (lambda c: c.agent_self(), "GET", "/v1/agent/self", None),
]  # fmt: skip


@pytest.mark.parametrize(("call", "method", "target", "body"), ENDPOINTS)
def test_endpoint(call: Call, method: str, target: str, body: Any) -> None:
    answer, request = ask(call)
    assert (request.method, request.url.raw_path.decode()) == (method, target)
    assert (json.loads(request.content) if request.content else None) == body
    assert answer.json == {"ok": True}


def test_the_log_of_the_application_has_no_line_for_each_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    ask(lambda c: c.update_check("service:web-1", "passing"))
    assert not caplog.records


def test_a_service_name_cannot_leave_its_place_in_the_path() -> None:
    _, request = ask(lambda c: c.leaf("a b/../x?y"))
    assert request.url.raw_path.startswith(b"/v1/agent/connect/ca/leaf/a%20b%2F..%2Fx%3Fy?")


def test_scope_and_datacenter_go_into_the_query() -> None:
    settings = {"namespace": "n1", "partition": "p1", "datacenter": "dc9"}
    _, request = ask(lambda c: c.match("web"), **settings)
    query = dict(request.url.params)
    assert (query["ns"], query["partition"], query["dc"]) == ("n1", "p1", "dc9")
    _, request = ask(lambda c: c.register({}), **settings)
    assert dict(request.url.params)["ns"] == "n1"
    assert "dc" not in request.url.params


def test_a_path_before_the_api_is_kept() -> None:
    _, request = ask(lambda c: c.roots(), address="http://127.0.0.1:8500/consul/")
    assert request.url.raw_path.startswith(b"/consul/v1/agent/connect/ca/roots?")


def test_token_goes_into_its_header_and_nowhere_else() -> None:
    _, request = ask(lambda c: c.roots(), token="s3cret")
    assert request.headers["X-Consul-Token"] == "s3cret"
    assert "s3cret" not in str(request.url)
    _, request = ask(lambda c: c.roots())
    assert "X-Consul-Token" not in request.headers


def test_read_timeout_is_above_the_longest_wait() -> None:
    _, request = ask(lambda c: c.roots(1, 60))
    assert request.extensions["timeout"] == {
        "connect": 5.0, "read": 73.75, "write": 73.75, "pool": 73.75
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("7", 7), ("0", 1), ("18446744073709551615", 2**64 - 1), (" 7 ", 7),
        ("18446744073709551616", None), ("-1", None), ("1e3", None), ("٣", None),
        ("", None), ("7 8", None), ("9" * 5000, None), (None, None),
    ],
)  # fmt: skip
def test_index(text: str | None, index: int | None) -> None:
    assert parse_index(text) == index


@pytest.mark.parametrize("status", [301, 400, 403, 404, 429, 500, 503])
def test_no_success_is_an_error_with_the_words_of_the_agent(status: int) -> None:
    refusal = httpx.Response(status, text="Permission denied\n" * 100, headers={"Location": "/x"})
    with pytest.raises(ConsulError, match=f"status {status}: Permission denied") as caught:
        ask(lambda c: c.roots(), refusal)
    assert caught.value.status == status
    assert len(caught.value.body) <= 500


@pytest.mark.parametrize(
    "body", [b"<html>", b'{"a": [1,', b"[" * 10**5, b"\xff\xfe", b"NaN,"], ids=range(5)
)
def test_success_without_json_is_undecodable(body: bytes) -> None:
    answer, _ = ask(lambda c: c.roots(), httpx.Response(200, content=body))
    with pytest.raises(DecodeError, match="is not JSON"):
        _ = answer.json


def test_an_empty_body_is_no_value() -> None:
    answer, _ = ask(lambda c: c.register({}), httpx.Response(200))
    assert answer.json is None


def test_broken_compression_is_undecodable() -> None:
    async def body() -> Any:
        yield b"not gzip"

    broken = httpx.Response(200, content=body(), headers={"Content-Encoding": "gzip"})
    with pytest.raises(DecodeError, match="compressed"):
        ask(lambda c: c.roots(), broken)


def test_compression_is_understood() -> None:
    packed = gzip.compress(b'{"a": 1}')
    answer, request = ask(
        lambda c: c.roots(),
        httpx.Response(200, content=packed, headers={"Content-Encoding": "gzip"}),
    )
    assert answer.json == {"a": 1}
    assert "gzip" in request.headers["Accept-Encoding"]


def test_a_body_without_end_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that is small until it is decompressed."""
    monkeypatch.setattr(module, "MAX_BODY", 1000)
    packed = gzip.compress(b" " * 1001)
    assert len(packed) < 1000
    bomb = httpx.Response(200, content=packed, headers={"Content-Encoding": "gzip"})
    with pytest.raises(DecodeError, match="longer than 1000 bytes"):
        ask(lambda c: c.roots(), bomb)


def test_nobody_listens() -> None:
    with pytest.raises(ConsulError, match="Connection refused") as caught:
        over_socket(lambda c: c.roots(), "127.0.0.1:1")
    assert caught.value.status is None


@pytest.mark.parametrize("host", ["xn--x", "xn--9999b.example", "a..b"])
def test_a_host_that_is_none_does_not_answer(host: str) -> None:
    with pytest.raises(ConsulError) as caught:
        over_socket(lambda c: c.roots(), f"https://{host}:1")
    assert caught.value.status is None


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"half"',
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{}",
        b"SSH-2.0-OpenSSH\r\n",
    ],
)
def test_half_an_answer_is_no_answer(raw: bytes) -> None:
    with FakeAgent(roots=Reply(raw=raw)) as agent, pytest.raises(ConsulError) as caught:
        over_socket(lambda c: c.roots(), agent.address)
    assert caught.value.status is None


def test_an_agent_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MARGIN_SECONDS", 0.1)
    with FakeAgent(roots=Reply(hang=True)) as agent, pytest.raises(ConsulError) as caught:
        over_socket(lambda c: c.roots(0, 0.1), agent.address)
    assert caught.value.status is None


def test_an_agent_that_trickles_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MARGIN_SECONDS", 0.05)
    monkeypatch.setattr(module, "CONNECT_SECONDS", 0.2)

    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        try:
            while True:
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.01)
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()

    async def run() -> None:
        server = await asyncio.start_server(trickle, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        client = ConsulClient(MeshConfig("web", address=f"127.0.0.1:{port}"))
        try:
            with pytest.raises(ConsulError, match="no complete answer within"):
                await client.roots(0, 0.05)
        finally:
            await client.aclose()
            server.close()

    asyncio.run(run())


def test_proxies_of_the_environment_see_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and tokens would go through ``HTTP_PROXY`` otherwise."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with FakeAgent() as agent:
        assert over_socket(lambda c: c.roots(), agent.address).json["TrustDomain"]


def test_passwords_of_the_home_folder_are_not_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password s3cret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    with FakeAgent() as agent:
        over_socket(lambda c: c.roots(), agent.address)
        assert "authorization" not in agent.last("roots").headers


def test_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        await writer.drain()
        writer.close()

    async def run() -> Answer:
        server = await asyncio.start_unix_server(serve, path)
        client = ConsulClient(MeshConfig("web", address=f"unix://{path}"))
        try:
            return await client.roots()
        finally:
            await client.aclose()
            server.close()

    assert asyncio.run(run()).json == {}


def test_https_with_our_certificate_and_the_name_we_say(tmp_path: Path) -> None:
    ca = CertificateAuthority("agent.consul")
    server_pem = server_certificate(tmp_path, "server.dc1.consul")
    leaf = ca.issue("web")
    files = {"client_cert": leaf.cert_pem, "client_key": leaf.key_pem}
    settings: dict[str, Any] = {}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        settings[name] = str(tmp_path / name)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server_pem)
    context.load_verify_locations(cadata=ca.roots()[0]["RootCert"])
    context.verify_mode = ssl.CERT_REQUIRED

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        await writer.drain()
        writer.close()

    async def run(**more: Any) -> Answer:
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        config = MeshConfig("web", address=f"https://127.0.0.1:{port}", **more)
        client = ConsulClient(config)
        try:
            return await client.roots()
        finally:
            await client.aclose()
            server.close()

    trusted = {**settings, "ca_cert": str(server_pem), "tls_server_name": "server.dc1.consul"}
    assert asyncio.run(run(**trusted)).json == {}
    for wrong in (
        {**trusted, "tls_server_name": None},  # the certificate is not for 127.0.0.1
        {**trusted, "ca_cert": None},
        {key: trusted[key] for key in ("ca_cert", "tls_server_name")},
    ):
        with pytest.raises(ConsulError) as caught:
            asyncio.run(run(**wrong))
        assert caught.value.status is None


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"ca_cert": "/no/such"}, "CONSUL_CACERT"),
        ({"client_cert": "/no/such", "client_key": "/no/such"}, "CONSUL_CLIENT_CERT"),
        ({"token_file": "/no/such"}, "CONSUL_HTTP_TOKEN_FILE"),
    ],
)
def test_files_that_are_not_there(settings: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        ConsulClient(MeshConfig("web", address="https://127.0.0.1:8501", **settings))


def test_a_file_that_is_no_certificate(tmp_path: Path) -> None:
    (tmp_path / "x.pem").write_text("hello")
    config = MeshConfig("web", address="https://h:1", ca_cert=str(tmp_path / "x.pem"))
    with pytest.raises(ConfigError, match="CONSUL_CACERT"):
        ConsulClient(config)


def test_token_file_is_read_again_when_it_changes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "token"
    path.write_text("first-token\n")
    sent: list[str] = []

    def handle(request: httpx.Request) -> httpx.Response:
        sent.append(request.headers["X-Consul-Token"])
        return httpx.Response(200, json={})

    async def run() -> None:
        config = MeshConfig("web", token="ignored", token_file=str(path))
        client = ConsulClient(config, transport=httpx.MockTransport(handle))
        for step in ("first", "same", "empty", "gone", "second"):
            if step == "empty":
                path.write_text("")
            if step == "gone":
                path.unlink()
            if step == "second":
                path.write_text("second-token")
            assert client.token_changed() == (step in {"empty", "gone", "second"})
            await client.roots()
            assert not client.token_changed()
        await client.aclose()
        assert "token" not in repr(client).replace("TokenSource", "")
        assert "second-token" not in repr(client._token)

    asyncio.run(run())
    assert sent == ["first-token"] * 4 + ["second-token"]
    assert "first-token" not in caplog.text
    assert "second-token" not in caplog.text


def test_everybody_who_waits_hears_of_a_new_token(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("first-token")
    client = ConsulClient(MeshConfig("web", token_file=str(path)))
    watches = [client.token_watch() for _ in range(2)]
    assert [watch() for watch in watches] == [False, False]
    path.write_text("second-token")
    assert [watch() for watch in watches] == [True, True]
    assert [watch() for watch in watches] == [False, False]
    path.write_text("")
    assert [watch() for watch in watches] == [False, False]


def test_a_token_that_no_header_can_carry(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("two words\nInjected: header")
    with pytest.raises(ConfigError, match="CONSUL_HTTP_TOKEN_FILE") as caught:
        ConsulClient(MeshConfig("web", token_file=str(path)))
    assert "Injected" not in str(caught.value)


def test_repr_of_an_answer_hides_the_private_key() -> None:
    answer, _ = ask(lambda c: c.leaf("web"), httpx.Response(200, json={"PrivateKeyPEM": "k3y"}))
    assert "k3y" not in repr(answer)

"""No web page reaches the development agent."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from mesh_middleware.devagent import CertificateAuthority, DevAgent
from mesh_middleware.devagent.app import create_app
from mesh_middleware.devagent.guard import HEADERS, is_loopback_host
from mesh_middleware.devagent.store import Store

BODY = b'{"Name": "web"}'


@pytest.fixture(scope="module")
def agent():
    with DevAgent() as agent:
        yield agent


def write(agent: DevAgent, method: str = "PUT", **headers: str) -> httpx.Response:
    url = f"{agent.address}/v1/agent/service/register"
    sent = {"content-type": "application/json", **headers}
    with httpx.Client(trust_env=False) as client:
        client.headers.clear()
        return client.request(method, url, content=BODY, headers=sent)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.9.9.9:8500", "localhost", "LOCALHOST:1", "localhost.", "[::1]:80", "[::1]"],
)
def test_loopback_hosts_are_served(agent, host):
    assert is_loopback_host(host)
    assert write(agent, host=host).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "192.0.2.1:8500",
        "[::2]",
        "0.0.0.0",
        "127.0.0.1@evil.example",
        "localhost:80:90",
        "",
        "[localhost",
    ],
)
def test_a_rebound_name_is_refused(agent, host):
    assert not is_loopback_host(host)
    answer = write(agent, host=host)
    assert answer.status_code in (400, 403)
    with httpx.Client(trust_env=False) as client:
        leaf = f"{agent.address}/v1/agent/connect/ca/leaf/web"
        assert client.get(leaf, headers={"host": host}).status_code in (400, 403)


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:8500"},
        {"referer": "http://evil.example/"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-mode": "no-cors"},
        {"user-agent": "Mozilla/5.0 (X11; Linux x86_64)"},
    ],
)
@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE"])
def test_a_write_with_a_browsers_marks_is_refused(agent, method, headers):
    answer = write(agent, method, **headers)
    assert answer.status_code == 403
    assert answer.headers["content-security-policy"] == HEADERS["Content-Security-Policy"]


def test_a_read_with_an_origin_is_refused(agent):
    for method in ("GET", "OPTIONS"):
        url = f"{agent.address}/v1/agent/connect/ca/leaf/web"
        answer = httpx.request(method, url, headers={"origin": "http://a.example"}, trust_env=False)
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", 200),
        ("application/json; charset=utf-8", 200),
        ("application/x-www-form-urlencoded", 200),
        ("", 200),
        ("text/plain", 415),
        ("multipart/form-data; boundary=x", 415),
        ("text/html", 415),
    ],
)
def test_the_content_type_of_a_write_is_json_missing_or_curls(agent, content_type, status):
    assert write(agent, **{"content-type": content_type}).status_code == status


def test_a_write_without_a_content_type_is_fine(agent):
    url = f"{agent.address}/v1/agent/service/register"
    assert httpx.put(url, content=BODY, trust_env=False).status_code == 200


def test_every_answer_forbids_a_browser_everything(agent):
    for path in ("/v1/status/leader", "/v1/nothing", "/", "/v1/connect/intentions/match"):
        answer = httpx.get(agent.address + path, trust_env=False)
        assert answer.headers.items() >= {k.lower(): v for k, v in HEADERS.items()}.items()


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 100_000, b"\xff", b"[]", b"3"])
def test_a_body_that_is_no_object_is_400(agent, body):
    url = f"{agent.address}/v1/agent/service/register"
    answer = httpx.put(url, content=body, trust_env=False)
    assert answer.status_code == 400
    assert answer.text.startswith("Request decode failed: ")


def test_the_app_alone_has_a_lifespan():
    sent = []

    async def run() -> None:
        messages = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])

        async def receive() -> dict[str, str]:
            return next(messages)

        async def send(message: dict[str, str]) -> None:
            sent.append(message["type"])

        await create_app(Store(CertificateAuthority()))({"type": "lifespan"}, receive, send)

    asyncio.run(run())
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


def test_options_names_the_methods(agent):
    answer = httpx.options(f"{agent.address}/v1/config", trust_env=False)
    assert (answer.status_code, answer.headers["allow"]) == (200, "OPTIONS,PUT")


@pytest.mark.parametrize(
    ("site", "status"),
    [("none", 200), ("same-origin", 200), ("same-site", 403), ("cross-site", 403), ("", 403)],
)
def test_a_read_for_a_page_of_another_site_is_refused(agent, site, status):
    url = f"{agent.address}/v1/agent/connect/ca/leaf/web"
    answer = httpx.get(url, headers={"sec-fetch-site": site}, trust_env=False)
    assert answer.status_code == status
    assert ("PrivateKeyPEM" in answer.text) is (status == 200)

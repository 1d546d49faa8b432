"""Behind the real nginx and the real Envoy: the caller they tell, and nobody else's."""

from __future__ import annotations

import hashlib
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from mesh_middleware.devagent import DevAgent
from tests.e2e.launch import REFUSED, Caller
from tests.servers.envoy import envoy_config, require_envoy
from tests.servers.nginx import nginx_conf, require_nginx
from tests.servers.processes import BIN, Process, get
from tests.support import free_port, wait_for

WORKERS = {"wsgi": "sync", "asgi": "uvicorn_worker.UvicornWorker"}


@dataclass
class Site:
    """A terminator in front of an application that also listens on a port of its own."""

    kind: str
    terminator: Process
    application: Process

    def direct(self, headers: dict[str, str]) -> tuple[int, Any]:
        """A request past the terminator, from this very machine."""
        address = ("127.0.0.1", self.application.port)
        with socket.create_connection(address, timeout=10) as sock:
            return get(sock, "/x", headers)


@pytest.fixture(scope="module", params=["envoy wsgi", "envoy asgi", "nginx wsgi", "nginx asgi"])
def site(
    request: pytest.FixtureRequest, agent: DevAgent, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    kind, interface = request.param.split()
    folder = tmp_path_factory.mktemp(kind)
    upstream = folder / "app.sock"
    write_certificates(agent, folder)
    application = gunicorn(agent, f"{interface}_behind_{kind}", WORKERS[interface], upstream)
    with application, terminator(kind, agent, folder, upstream) as front:
        application.says("Booting worker")
        front.answers("web")
        wait_for(lambda: front.status("web") == 200, message=application.log + front.log)
        yield Site(kind, front, application)


def write_certificates(agent: DevAgent, folder: Path) -> None:
    """What the terminator needs to be the service `api`."""
    with httpx.Client(base_url=agent.address, trust_env=False) as client:
        leaf = client.get("/v1/agent/connect/ca/leaf/api").json()
        roots = client.get("/v1/agent/connect/ca/roots").json()["Roots"]
    (folder / "leaf.pem").write_text(leaf["CertPEM"])
    (folder / "key.pem").write_text(leaf["PrivateKeyPEM"])
    (folder / "roots.pem").write_text("".join(root["RootCert"] for root in roots))


def gunicorn(agent: DevAgent, app: str, worker: str, upstream: Path) -> Process:
    """The application, on a unix socket and on a port."""
    port = free_port()
    command = [str(BIN / "gunicorn"), "--no-control-socket", "-k", worker, "-b", f"unix:{upstream}"]
    command += ["-b", f"127.0.0.1:{port}", f"tests.servers.apps:{app}"]
    return Process(command, port=port, agent=agent.address)


def terminator(kind: str, agent: DevAgent, folder: Path, upstream: Path) -> Process:
    port = free_port()
    if kind == "nginx":
        (folder / "nginx.conf").write_text(nginx_conf(folder, port, upstream))
        command = [require_nginx(), "-c", f"{folder}/nginx.conf", "-e", "stderr"]
    else:
        (folder / "envoy.json").write_text(envoy_config(folder, port, upstream))
        command = [require_envoy(), "--config-path", f"{folder}/envoy.json", "--concurrency", "1"]
        command += ["--disable-hot-restart", "--log-level", "warning"]
    return Process(command, port=port, agent=agent.address)


def words_of(site: Site, caller: str) -> dict[str, str]:
    """What the terminator itself would say of `caller`, as anybody can write it."""
    svid = Caller.of(site.terminator.agent, caller).svid
    leaf = svid.certificates[0]
    pem = quote(leaf.public_bytes(Encoding.PEM).decode(), safe="")
    ours = str(svid.identity).replace(f"/svc/{caller}", "/svc/api")
    digest = hashlib.sha256(leaf.public_bytes(Encoding.DER)).hexdigest()
    return {
        "x-forwarded-client-cert": f'By={ours};Hash={digest};Cert="{pem}";URI={svid.identity}',
        "x-ssl-client-cert": pem,
        "x-ssl-client-verify": "SUCCESS",
    }


def test_the_caller_is_the_one_of_the_certificate(site: Site) -> None:
    status, said = site.terminator.ask("web", "/x")
    assert (status, said["caller"], said["path"]) == (200, "web", "/x")
    assert not [name for name in said["headers"] if "client" in name.lower()]


@pytest.mark.parametrize(
    ("caller", "target", "reasons"),
    [
        ("stranger", "/", {"default_deny"}),
        ("web", "/admin", {"permission_deny"}),
        ("web", "/%61dmin", {"permission_deny", "ambiguous_path"}),
    ],
)
def test_intentions_hold(site: Site, caller: str, target: str, reasons: set[str]) -> None:
    status, problem = site.terminator.ask(caller, target)
    assert status == 403
    assert problem["reason"] in reasons


@pytest.mark.parametrize("spelling", ["-", "_"])
def test_forged_headers_through_the_terminator(site: Site, spelling: str) -> None:
    """A stranger who shows the certificate of another, which is no secret, stays a stranger."""
    forged = {name.replace("-", spelling): text for name, text in words_of(site, "web").items()}
    assert site.terminator.ask("stranger", "/", forged)[1]["reason"] == "default_deny"
    assert site.terminator.ask("web", "/", forged)[1]["caller"] == "web"


def test_an_open_quote_before_the_last_element_makes_nobody(site: Site) -> None:
    if site.kind == "envoy":
        forged = {"x-forwarded-client-cert": 'By="'}
        assert site.terminator.ask("web", "/", forged)[1]["reason"] == "no_identity"


@pytest.mark.parametrize("more", [{}, {"x-forwarded-for": "unix:1"}])
def test_forged_headers_past_the_terminator(site: Site, more: dict[str, str]) -> None:
    """The very words of the terminator, from the same machine, over a port: not its transport."""
    status, problem = site.direct({**words_of(site, "web"), **more})
    assert (status, problem["reason"]) == (403, "no_identity")


def test_without_a_certificate(site: Site) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    address = ("127.0.0.1", site.terminator.port)
    with socket.create_connection(address, timeout=10) as raw:
        try:
            with context.wrap_socket(raw) as sock:
                status, problem = get(sock, "/", words_of(site, "web"))
        except REFUSED:
            assert site.kind == "envoy"  # asks for one; nginx does not insist
        else:
            assert (status, problem["reason"]) == (403, "no_identity")

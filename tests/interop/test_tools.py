"""openssl and curl with leaves of the development agent and of a real one, against our server."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from cryptography.x509.oid import NameOID

from mesh_middleware.devagent import DevAgent
from tests.consul_agent import ConsulAgent
from tests.interop.conftest import INTENTIONS, Billing, serve_billing

DENIED = {"SourceName": "stranger", "DestinationName": "billing", "Action": "deny"}


@pytest.fixture(params=["dev", pytest.param("real", marks=pytest.mark.consul)])
def issuer(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of an agent that lets web call billing, and stranger not."""
    if request.param == "dev":
        with DevAgent(default_action="allow", intentions=INTENTIONS) as agent:
            yield agent.address
        return
    consul: ConsulAgent = request.getfixturevalue("consul")
    url = f"{consul.address}/v1/connect/intentions"
    written = httpx.post(url, json={**DENIED, "SourceType": "consul"}, trust_env=False).json()
    yield consul.address
    assert httpx.delete(f"{url}/{written['ID']}", trust_env=False).is_success


@pytest.fixture
def files(issuer: str, tmp_path: Path) -> Path:
    """A folder with what an operator would fetch: web.pem, web.key, stranger.*, roots.pem."""
    url = f"{issuer}/v1/agent/connect/ca"
    for service in ("web", "stranger"):
        leaf = httpx.get(f"{url}/leaf/{service}", trust_env=False).json()
        (tmp_path / f"{service}.pem").write_text(leaf["CertPEM"])
        (tmp_path / f"{service}.key").write_text(leaf["PrivateKeyPEM"])
    roots = httpx.get(f"{url}/roots", trust_env=False).json()["Roots"]
    (tmp_path / "roots.pem").write_text("".join(root["RootCert"] for root in roots))
    return tmp_path


def run(folder: Path, *command: str, text: str = "") -> subprocess.CompletedProcess[str]:
    assert shutil.which(command[0]), f"{command[0]} is needed"
    return subprocess.run(
        command, cwd=folder, input=text, capture_output=True, text=True, timeout=30, check=False
    )


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_openssl_proves_our_chain_and_is_answered(issuer: str, files: Path, version: str) -> None:
    with serve_billing(issuer) as billing:
        done = run(
            files,
            *("openssl", "s_client", "-connect", f"127.0.0.1:{billing.port}", version, "-quiet"),
            *("-cert", "web.pem", "-key", "web.key", "-CAfile", "roots.pem"),
            "-verify_return_error",
            text="GET /x HTTP/1.1\r\nHost: billing\r\nConnection: close\r\n\r\n",
        )
    assert '{"caller": "web", "http": "1.1"}' in done.stdout, done.stderr


def test_openssl_without_a_certificate_gets_nothing(issuer: str, files: Path) -> None:
    with serve_billing(issuer) as billing:
        done = run(
            files,
            *("openssl", "s_client", "-connect", f"127.0.0.1:{billing.port}", "-quiet"),
            *("-CAfile", "roots.pem"),
            text="GET / HTTP/1.1\r\nHost: billing\r\n\r\n",
        )
    assert "HTTP/" not in done.stdout
    assert done.returncode != 0


def common_name(billing: Billing) -> str | None:
    """What our server's leaf is called, beside its URI: agents before 1.11 give it a name."""
    svid = billing.manager.state.svid
    assert svid is not None
    names = svid.certificates[0].subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else None


def curl(folder: Path, billing: Billing, path: str, *arguments: str) -> tuple[int, str]:
    """What curl made of it: its exit status, and the answer.

    It compares a name and looks at no URI. Where the leaf has a common name, it proves chain and
    name; else it can prove nothing (status 60, whatever the host), and must not try.
    """
    name = common_name(billing)
    proving = ["--cacert", "roots.pem", "--connect-to", f"::127.0.0.1:{billing.port}"]
    command = ["curl", "--silent", "--include", *proving, *arguments]
    done = run(folder, *command, f"https://{name or 'billing'}{path}")
    if name is None:
        assert (done.returncode, done.stdout) == (60, "")
        done = run(folder, *command, "--insecure", f"https://billing{path}")
    return done.returncode, done.stdout


def leaf_of(service: str) -> tuple[str, ...]:
    return ("--cert", f"{service}.pem", "--key", f"{service}.key")


@pytest.mark.parametrize("http2", [False, True], ids=["HTTP/1.1", "HTTP/2"])
def test_curl_is_answered(issuer: str, files: Path, http2: bool) -> None:
    with serve_billing(issuer, http2=http2) as billing:
        status, answer = curl(files, billing, "/", *leaf_of("web"))
        _, refused = curl(files, billing, "/", *leaf_of("stranger"))
        nobody, nothing = curl(files, billing, "/")
    said = json.loads(answer.splitlines()[-1])
    assert (status, said) == (0, {"caller": "web", "http": "2" if http2 else "1.1"})
    assert "x-mesh-refused: intention_deny" in refused
    assert (nothing, nobody in (0, 60)) == ("", False)


@pytest.mark.parametrize("issuer", ["dev"], indirect=True)
def test_curl_is_refused_by_path(issuer: str, files: Path) -> None:
    """Agents before 1.9 have no permissions."""
    with serve_billing(issuer) as billing:
        _, refused = curl(files, billing, "/admin", *leaf_of("web"))
    assert "x-mesh-refused: permission_deny" in refused

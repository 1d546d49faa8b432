"""openssl and curl with a leaf from the agent, against our server."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.interop.conftest import serve_billing
from tests.upstream.world import World


@pytest.fixture
def files(world: World, tmp_path: Path) -> Path:
    """A folder with what an operator would fetch by curl: leaf.pem, key.pem, roots.pem."""
    url = f"{world.agent.address}/v1/agent/connect/ca"
    leaf = httpx.get(f"{url}/leaf/web", trust_env=False).json()
    (tmp_path / "leaf.pem").write_text(leaf["CertPEM"])
    (tmp_path / "key.pem").write_text(leaf["PrivateKeyPEM"])
    roots = httpx.get(f"{url}/roots", trust_env=False).json()["Roots"]
    (tmp_path / "roots.pem").write_text("".join(root["RootCert"] for root in roots))
    return tmp_path


def run(folder: Path, *command: str, text: str = "") -> subprocess.CompletedProcess[str]:
    assert shutil.which(command[0]), f"{command[0]} is needed"
    return subprocess.run(
        command, cwd=folder, input=text, capture_output=True, text=True, timeout=30, check=False
    )


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_openssl_proves_our_chain_and_is_answered(world: World, files: Path, version: str) -> None:
    with serve_billing(world.agent.address) as billing:
        done = run(
            files,
            *("openssl", "s_client", "-connect", f"127.0.0.1:{billing.port}", version, "-quiet"),
            *("-cert", "leaf.pem", "-key", "key.pem", "-CAfile", "roots.pem"),
            "-verify_return_error",
            text="GET /x HTTP/1.1\r\nHost: billing\r\nConnection: close\r\n\r\n",
        )
    assert '{"caller": "web", "http": "1.1"}' in done.stdout, done.stderr


def test_openssl_without_a_certificate_gets_nothing(world: World, files: Path) -> None:
    with serve_billing(world.agent.address) as billing:
        done = run(
            files,
            *("openssl", "s_client", "-connect", f"127.0.0.1:{billing.port}", "-quiet"),
            *("-CAfile", "roots.pem"),
            text="GET / HTTP/1.1\r\nHost: billing\r\n\r\n",
        )
    assert "HTTP/" not in done.stdout
    assert done.returncode != 0


@pytest.mark.parametrize("http2", [False, True], ids=["HTTP/1.1", "HTTP/2"])
def test_curl_is_answered(world: World, files: Path, http2: bool) -> None:
    """--insecure: curl compares a DNS name, and a leaf of the mesh has none."""
    with serve_billing(world.agent.address, http2=http2) as billing:
        curl = ["curl", "--silent", "--insecure", "--cert", "leaf.pem", "--key", "key.pem"]
        url = f"https://127.0.0.1:{billing.port}"
        done = run(files, *curl, f"{url}/")
        refused = run(files, *curl, "--include", f"{url}/admin")
        nobody = run(files, "curl", "--silent", "--insecure", f"{url}/")
    assert json.loads(done.stdout) == {"caller": "web", "http": "2" if http2 else "1.1"}
    assert "x-mesh-refused: permission_deny" in refused.stdout
    assert (nobody.stdout, nobody.returncode != 0) == ("", True)

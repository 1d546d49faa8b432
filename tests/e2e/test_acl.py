"""The commands with the tokens of a real Consul that denies what no token allows."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from mesh_middleware import AsyncMeshTransport, MeshConfig, MeshManager
from tests.consul_acl import UNKNOWN, AclConsul
from tests.e2e.launch import PLAIN, Launched, command
from tests.support import wait_for

pytestmark = pytest.mark.consul

REFUSED = ["none", "unknown", "another's"]
SAYS = {
    "none": "no token was sent; set CONSUL_HTTP_TOKEN or CONSUL_HTTP_TOKEN_FILE to one with a "
    "service identity for '{service}', or the rule service",
    "unknown": "status 403: ACL not found; the agent does not know the token",
    "another's": "the token needs a service identity for '{service}', or the rule service",
}
FAILS = {
    "none": "leaf, intentions",
    "unknown": "leaf, intentions, mesh entry",
    "another's": "leaf",
}
"""Roots and mesh entry are given to everybody; a service may read the intentions of others."""


def token_of(consul: AclConsul, kind: str) -> dict[str, str]:
    """The environment that brings the token."""
    if kind == "none":
        return {}
    return {
        "CONSUL_HTTP_TOKEN": UNKNOWN if kind == "unknown" else consul.identity("another").secret
    }


@pytest.mark.parametrize("kind", REFUSED)
def test_run_exits_5_with_each_cause_once(acl_consul: AclConsul, kind: str) -> None:
    env = {"MESH_DEFAULT_ACTION": "", **token_of(acl_consul, kind)}
    with Launched(acl_consul.address, "--wait", "1.5", app=PLAIN, env=env) as launched:
        assert launched.ends() == 5
        log = launched.log
    (last,) = (line for line in log.splitlines() if "not ready after" in line)
    assert f"missing {FAILS[kind]}: " in last
    assert last.count(SAYS[kind].format(service="web")) == 1
    assert last.count("403") == 1
    assert len(last) < 400
    assert "Traceback" not in log
    secret = env.get("CONSUL_HTTP_TOKEN")
    assert secret is None or secret not in log


@pytest.mark.parametrize("kind", REFUSED)
def test_doctor_exits_5_with_each_cause_once(acl_consul: AclConsul, kind: str) -> None:
    done = command(
        acl_consul.address, "doctor", "--service", "web", "--wait", "1.5",
        **token_of(acl_consul, kind),
    )  # fmt: skip
    assert done.returncode == 5, done.stderr
    (failing,) = (line for line in done.stdout.splitlines() if line.startswith("FAIL"))
    assert failing.split("  ")[1].strip() == FAILS[kind]
    assert SAYS[kind].format(service="web") in failing
    assert "ok    roots" in done.stdout


@pytest.mark.parametrize("kind", REFUSED)
def test_call_exits_5_and_says_what_the_token_lacks(acl_consul: AclConsul, kind: str) -> None:
    done = command(
        acl_consul.address, "call", "--as", "web", "https://127.0.0.1:1/",
        **token_of(acl_consul, kind),
    )  # fmt: skip
    assert done.returncode == 5, done.stderr
    assert SAYS[kind].format(service="web") in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def served(acl_consul: AclConsul) -> Iterator[Launched]:
    """`shop`, with a token that has its own service identity and nothing else."""
    env = {
        "CONSUL_HTTP_TOKEN": acl_consul.identity("shop").secret,
        "MESH_DEFAULT_ACTION": "",
    }
    with Launched(acl_consul.address, service="shop", env=env) as launched:
        yield launched.serves()


def test_the_identity_of_its_own_name_is_enough_to_serve(
    acl_consul: AclConsul, served: Launched
) -> None:
    """Roots, leaf, intentions, default action, mesh entry, registration and its check."""
    rows = wait_for(lambda: acl_consul.instances("shop", passing=True))
    assert rows[0]["Service"]["Connect"]["Native"]
    assert "default deny" in served.log
    assert "probe: deny" in served.log
    assert "WARNING" not in served.log


def test_the_identity_of_its_own_name_is_enough_to_call(
    acl_consul: AclConsul, served: Launched
) -> None:
    """The catalogue of others, their identity, and what they decide about us."""
    acl_consul.allow("till", "shop")
    config = MeshConfig(
        "till", address=acl_consul.address, token=acl_consul.identity("till").secret
    )

    async def ask() -> tuple[int, str]:
        async with httpx.AsyncClient(transport=AsyncMeshTransport(manager)) as client:
            answer = await client.get("http://shop/whoami")
            return answer.status_code, answer.text

    with MeshManager(config) as manager:
        manager.wait_ready(20)
        wait_for(lambda: asyncio.run(ask())[0] == 200)
        assert '"caller":"till"' in asyncio.run(ask())[1]
        assert manager.last_errors == {}


def test_the_identity_of_its_own_name_is_enough_for_doctor_and_call(
    acl_consul: AclConsul, served: Launched
) -> None:
    token = acl_consul.identity("clerk").secret
    healthy = command(acl_consul.address, "doctor", "--service", "clerk", CONSUL_HTTP_TOKEN=token)
    assert healthy.returncode == 0, healthy.stdout
    assert "FAIL" not in healthy.stdout
    called = command(
        acl_consul.address, "call", "--as", "clerk", "https://shop/whoami", CONSUL_HTTP_TOKEN=token
    )
    assert called.returncode == 0, called.stderr
    assert "default_deny" in called.stdout


def test_a_token_that_is_revoked_and_replaced(acl_consul: AclConsul, tmp_path: Path) -> None:
    """What is known stays; it is said once; a new token in the file is taken without a restart."""
    first, file = acl_consul.identity("kiosk"), tmp_path / "token"
    file.write_text(first.secret)
    acl_consul.allow("guest", "kiosk")
    env = {"CONSUL_HTTP_TOKEN_FILE": str(file), "MESH_WAIT_SECONDS": "0.5"}
    with Launched(acl_consul.address, service="kiosk", env=env) as launched:
        launched.serves()
        acl_consul.revoke(first)
        launched.says("kiosk: token: status 403: ACL not found")
        launched.says("the health check cannot be updated: status 403: ACL not found")
        assert guest_gets(acl_consul, launched.port) == 200
        renewed = tmp_path / "renewed"
        renewed.write_text(acl_consul.identity("kiosk").secret)
        renewed.replace(file)
        launched.says("kiosk: token: well again")
        launched.says("the health check is updated again")
        wait_for(lambda: acl_consul.instances("kiosk", passing=True))
        assert guest_gets(acl_consul, launched.port) == 200
        assert launched.log.count(f"put a valid one into {file}") == 2  # the state, the check
        assert launched.log.count("well again") == 1
        assert launched.stop() == 0


def guest_gets(consul: AclConsul, port: int) -> int:
    done = command(
        consul.address,
        *("call", "--as", "guest", "--expect", "kiosk", "-i", f"https://127.0.0.1:{port}/whoami"),
        CONSUL_HTTP_TOKEN=consul.identity("guest").secret,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[1])

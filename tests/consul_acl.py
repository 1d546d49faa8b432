"""A real Consul agent whose ACLs deny what no token allows, and tokens for it."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from tests.consul_agent import consul_version, require_consul, running_consul
from tests.support import wait_for

UNKNOWN = str(uuid.UUID(int=1))
"""A token that no agent knows."""


@dataclass(frozen=True)
class Token:
    """`secret` is sent; `accessor` is the name by which the token is revoked."""

    secret: str
    accessor: str


class AclConsul:
    """What a test may do with the agent as its operator. `address`: base URL of its HTTP API."""

    def __init__(self, address: str, version: tuple[int, int, int], management: str) -> None:
        self.address = address
        self._version = version
        self._client = httpx.Client(
            base_url=f"{address}/v1",
            headers={"X-Consul-Token": management},
            trust_env=False,
            timeout=20,
        )

    def __repr__(self) -> str:
        return f"<AclConsul {self.address}>"

    def identity(self, service: str) -> Token:
        """A token with the service identity of `service`, and nothing else."""
        return self._token({"ServiceIdentities": [{"ServiceName": service}]})

    def ruled(self, rules: str) -> Token:
        """A token with a policy of `rules`, in Consul's language for them."""
        body = {"Name": f"test-{uuid.uuid4()}", "Rules": rules}
        policy = self._put("/acl/policy", body).json()
        return self._token({"Policies": [{"ID": policy["ID"]}]})

    def revoke(self, token: Token) -> None:
        """From now on the servers do not know `token`."""
        self._client.delete(f"/acl/token/{token.accessor}").raise_for_status()

    def allow(self, source: str, destination: str) -> None:
        """Write an intention."""
        if self._version < (1, 9):
            row = {"SourceName": source, "DestinationName": destination, "SourceType": "consul"}
            answer = self._client.post("/connect/intentions", json={**row, "Action": "allow"})
            answer.raise_for_status()
            return
        names = f"?source={source}&destination={destination}"
        self._put(f"/connect/intentions/exact{names}", {"Action": "allow"})

    def instances(self, service: str, *, passing: bool = False) -> list[dict[str, Any]]:
        """The catalogue's connect-native instances of `service`."""
        query = "?passing" if passing else ""
        answer = self._client.get(f"/health/connect/{service}{query}").raise_for_status()
        rows: list[dict[str, Any]] = answer.json()
        return rows

    def _token(self, body: dict[str, Any]) -> Token:
        made = self._put("/acl/token", body).json()
        return Token(made["SecretID"], made["AccessorID"])

    def _put(self, path: str, body: dict[str, Any]) -> httpx.Response:
        return self._client.put(path, json=body).raise_for_status()

    def _knows_management(self) -> bool:
        return self._client.get("/acl/token/self").status_code == 200


@contextlib.contextmanager
def running_acl_consul() -> Iterator[AclConsul]:
    """A real agent with ACLs for the length of the block, or a loud skip (a failure in CI)."""
    management = str(uuid.uuid4())
    first = "initial_management" if consul_version(require_consul()) >= (1, 11, 0) else "master"
    settings = f"""
        acl {{
          enabled = true
          default_policy = "deny"
          tokens {{
            {first} = "{management}"
            agent = "{management}"
          }}
        }}
    """
    with running_consul("-hcl", settings) as agent:
        consul = AclConsul(agent.address, agent.version, management)
        with consul._client:
            wait_for(consul._knows_management)
            yield consul

"""Asking the agent whether a connection is allowed, as Consul's own SDK does for each handshake."""

from __future__ import annotations

from mesh_middleware._fields import Place
from mesh_middleware.consul.client import ConsulClient
from mesh_middleware.policy.spiffe import ServiceIdentity


async def ask_agent(
    client: ConsulClient, service: str, source: ServiceIdentity
) -> tuple[bool, str]:
    """Whether `source` may connect to `service`, and the agent's reason.

    L7 intentions count as deny. ConsulError when there is no answer, DecodeError when it cannot be
    read. Source: Consul, POST /v1/agent/connect/authorize.
    """
    answer = await client.authorize(service, str(source))
    where = Place("")
    fields = where.mapping(answer.json)
    if not isinstance(fields.get("Authorized"), bool):
        raise where.error("must be true or false", "Authorized")
    return fields["Authorized"], where.text(fields, "Reason")

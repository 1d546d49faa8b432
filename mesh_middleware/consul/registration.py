"""Registering a connect-native instance with the local agent, and keeping its TTL check.

The instance starts critical and passes only while it says itself that it can serve. Registrations
live in the agent's memory: after a restart of the agent the check is unknown, which is noticed by
the next update, and everything is registered again. So it is with a new token: the agent keeps the
one that came with the registration, tells the catalogue of the instance by that one only, and by
none once it was revoked, whoever updates the check.

Source: Consul, /v1/agent/service/register and /v1/agent/check/update.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from mesh_middleware.consul.client import ConsulClient
from mesh_middleware.errors import ConfigError, ConsulError, DecodeError

logger = logging.getLogger("mesh_middleware.consul")

TTL_SECONDS = 15
PASS_SECONDS = 5.0
DEREGISTER_AFTER = "10m"
"""Consul removes an instance that was critical for so long; Consul's minimum is one minute."""

STARTING = "starting"

Healthy = Callable[[], str | None]
"""None when the instance can serve now, else why not."""


@dataclass(frozen=True, slots=True)
class ServiceRegistration:
    """One instance of a service. `address`: None leaves it to the agent (its node's address).

    `port`: 1 to 65535. `id`: ``<service>-<host>-<port>`` unless given.
    """

    service: str
    port: int
    address: str | None = None
    tags: tuple[str, ...] = ()
    meta: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    id: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.port <= 65535:
            raise ConfigError(f"port: {self.port} is not within 1 to 65535, such as 8443")
        if not self.id:
            host = re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname()) or "host"
            object.__setattr__(self, "id", f"{self.service}-{host}-{self.port}")

    @property
    def check_id(self) -> str:
        """The check's ID; Consul would give the only check of a service the same."""
        return f"service:{self.id}"

    def body(self, status: str = "critical") -> dict[str, Any]:
        """What the agent is sent. `status`: how the check begins."""
        body: dict[str, Any] = {
            "ID": self.id,
            "Name": self.service,
            "Port": self.port,
            "Tags": list(self.tags),
            "Meta": dict(self.meta),
            "Connect": {"Native": True},
            "Checks": [
                {
                    "CheckID": self.check_id,
                    "Name": "mesh-middleware: certificate, policy and event loop",
                    "TTL": f"{TTL_SECONDS}s",
                    "Status": status,
                    "Notes": STARTING,
                    "DeregisterCriticalServiceAfter": DEREGISTER_AFTER,
                }
            ],
        }
        if self.address:
            body["Address"] = self.address
        return body


class Registrar:
    """Keeps one registration. All methods belong to the loop of `client`.

    From another thread: ``manager.run_coroutine(registrar.register()).result(timeout)``.
    `explain`: the words in which a failure of the agent is logged.
    """

    def __init__(
        self,
        client: ConsulClient,
        registration: ServiceRegistration,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        explain: Callable[[Exception], str] = str,
    ) -> None:
        self.registration = registration
        self._client = client
        self._sleep = sleep
        self._explain = explain
        self._new_token = client.token_watch()
        self._old_token = False
        self._condition: str | None = None

    def __repr__(self) -> str:
        return f"<Registrar {self.registration.id}>"

    async def register(self, status: str = "critical") -> None:
        """Register, critical at first. ConsulError says why not (403: `service:write`)."""
        self._old_token |= self._new_token()
        await self._client.register(self.registration.body(status))
        self._old_token = False

    async def update(self, healthy: Healthy) -> None:
        """Tell the agent how the instance is now; registers again if the agent forgot it."""
        why = healthy()
        status = "passing" if why is None else "critical"
        output = "serving" if why is None else why
        try:
            await self._update(status, output)
        except ConsulError as error:
            if not await self._forgotten(error):
                raise
            logger.warning(
                "%s: the agent at %s does not know %s any more; registering it again",
                self.registration.service,
                self._client.address,
                self.registration.id,
                extra={"mesh_event": "reregister", "mesh_service": self.registration.service},
            )
            await self.register()
            await self._update(status, output)

    async def keep(self, healthy: Healthy) -> None:
        """Update every 5 seconds until cancelled; failures are logged once and tried again."""
        while True:
            try:
                await self.update(healthy)
            except (ConsulError, DecodeError) as error:
                self._say(f"the health check cannot be updated: {self._explain(error)}")
            else:
                self._say(None)
            await self._sleep(PASS_SECONDS)

    async def critical(self, why: str) -> None:
        """Take the instance out of everybody's results, before it stops."""
        await self._update("critical", why)

    async def deregister(self) -> None:
        """Remove the instance; one that the agent does not know is removed already."""
        try:
            await self._client.deregister(self.registration.id)
        except ConsulError as error:
            if error.status != 404 and "unknown service" not in error.body.lower():
                raise

    async def _update(self, status: str, output: str) -> None:
        self._old_token |= self._new_token()
        if self._old_token:
            await self.register(status)
        await self._client.update_check(self.registration.check_id, status, output)

    async def _forgotten(self, error: ConsulError) -> bool:
        """Whether a failed update means that the registration, or only its check, is gone.

        Consul answers 404, older versions 500 with various words (so did the real 1.8.7): the
        agent is asked for the service itself.
        """
        if error.status not in {404, 500}:
            return False
        if "check" in error.body.lower():
            return True
        try:
            await self._client.service(self.registration.id)
        except ConsulError as found:
            return found.status == 404
        return False

    def _say(self, condition: str | None) -> None:
        if condition == self._condition:
            return
        service = self.registration.service
        extra = {"mesh_event": "health check", "mesh_service": service}
        if condition is not None:
            logger.warning("%s: %s; tried again every 5 s", service, condition, extra=extra)
        else:
            logger.info("%s: the health check is updated again", service, extra=extra)
        self._condition = condition

"""Finds the default action out and keeps it found: see `default_action` for what counts."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace

from mesh_middleware.config import MeshConfig
from mesh_middleware.consul.blocking import Pace
from mesh_middleware.consul.client import Answer, ConsulClient
from mesh_middleware.consul.default_action import (
    PROBE_SECONDS,
    DefaultAction,
    Silence,
    header_action,
    is_final,
    probe_result,
    probe_uri,
)
from mesh_middleware.consul.failures import Failures
from mesh_middleware.consul.watcher import is_denied
from mesh_middleware.errors import ConsulError, DecodeError
from mesh_middleware.policy.intentions import Action
from mesh_middleware.policy.spiffe import TrustDomain

logger = logging.getLogger("mesh_middleware.consul")

PART = "default action"


class DefaultProber:
    """Probes when the trust domain becomes known or changes, when told to `hurry`, when the header
    changes, and every minute. `settled` gets the default action whenever it was found again.
    """

    def __init__(
        self,
        config: MeshConfig,
        client: ConsulClient,
        settled: Callable[[Action], None],
        *,
        failures: Failures,
    ) -> None:
        self._service = config.service
        self._client = client
        self._settled = settled
        self._failures = failures
        self._known = DefaultAction(setting=config.default_action)
        self._trust_domain: TrustDomain | None = None
        self._now = asyncio.Event()

    def hear(self, answer: Answer) -> None:
        """Note the header of an answer to anything."""
        header = header_action(answer)
        if header != self._known.header:
            self._learn(replace(self._known, header=header))
            self.hurry()

    def ask_as(self, trust_domain: TrustDomain) -> None:
        """The trust domain of the caller that the probe makes up; new roots keep it, mostly."""
        if trust_domain != self._trust_domain:
            self._trust_domain = trust_domain
            self.hurry()

    def hurry(self) -> None:
        """Something happened that may have changed the default: probe now."""
        self._now.set()

    async def run(self) -> None:
        """Probe until cancelled; with a setting there is nothing to find out."""
        if self._known.setting is not None:
            self._say()
            self._settled(self._known.setting)
            return
        pace = Pace()
        while True:
            if self._trust_domain is not None:
                await asyncio.sleep(pace.delay(time.monotonic()))
                self._now.clear()
                if not await self._probe(self._trust_domain, pace):
                    continue
            try:
                async with asyncio.timeout(PROBE_SECONDS):
                    await self._now.wait()
            except TimeoutError:
                continue
            self._now.clear()  # else the next wait would not even yield to the loop

    async def _probe(self, trust_domain: TrustDomain, pace: Pace) -> bool:
        """Whether the probe came to an end, with or without an action."""
        try:
            answer = await self._client.authorize(self._service, probe_uri(trust_domain))
            result = probe_result(answer)
        except (ConsulError, DecodeError) as error:
            # What the agent said once holds until it says another thing, as all of the state does.
            if not is_final(error) or isinstance(self._known.probe, Action):
                pace.failed(denied=is_denied(error))
                self._failures.set(PART, error)
                return False
            logger.debug("the default action cannot be probed: %s", error)
            result = Silence.CANNOT
        pace.succeeded()
        self._failures.clear(PART)
        self._learn(replace(self._known, probe=result))
        return True

    def _learn(self, known: DefaultAction) -> None:
        before, self._known = self._known.resolve(), known
        action = known.resolve()
        if known.setting is not None or action is None:
            return
        if action is not before:
            self._say()
        self._settled(action)

    def _say(self) -> None:
        logger.info(
            "%s: requests that no intention matches: %s",
            self._service,
            self._known,
            extra={"mesh_event": "default action", "mesh_service": self._service},
        )

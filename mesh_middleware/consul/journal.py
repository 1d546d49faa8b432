"""What the log says about states: conditions that change, once each, one line with what to do."""

from __future__ import annotations

import logging

from mesh_middleware._text import one_line
from mesh_middleware.config import MeshConfig
from mesh_middleware.policy.decision import Reason
from mesh_middleware.state import MeshState

logger = logging.getLogger("mesh_middleware.consul")


class Journal:
    """Writes about the states of one service."""

    def __init__(self, config: MeshConfig) -> None:
        self._config = config
        self._expired = False

    def note_expiry(self, state: MeshState, now: float) -> None:
        """Whether our certificate has just expired."""
        svid = state.svid
        expired = svid is not None and now > svid.not_after
        if expired and not self._expired and svid is not None:
            logger.error(
                "%s: our certificate expired and the agent gave no new one; no connection is taken "
                "or made until it does",
                self._config.service,
                extra={"mesh_event": "expired", "mesh_service": self._config.service},
            )
        self._expired = expired

    def note_changes(self, before: MeshState, after: MeshState) -> None:
        """What of a new state an operator should know."""
        service = self._config.service
        extra = {"mesh_service": service, "mesh_generation": after.generation}
        if before.bundle is not None and after.bundle is not None:
            old, new = before.bundle.trust_domain, after.bundle.trust_domain
            if old != new:
                logger.error(
                    "%s: the agent's trust domain changed from %s to %s and is followed; set "
                    "MESH_TRUST_DOMAIN to keep to one",
                    service,
                    old,
                    new,
                    extra=extra | {"mesh_event": "trust domain"},
                )
        if before.fault is not Reason.STALE_POLICY and after.fault is Reason.STALE_POLICY:
            logger.error(
                "%s: the intentions are older than %g s; everything is refused until the agent "
                "answers (MESH_MAX_STALENESS_SECONDS)",
                service,
                self._config.max_staleness_seconds,
                extra=extra | {"mesh_event": "stale"},
            )
        if before.policy is not after.policy and after.policy is not None:
            known = () if before.policy is None else before.policy.problems
            for problem in after.policy.problems:
                if problem not in known:
                    logger.warning(
                        "%s: %s",
                        service,
                        one_line(problem),
                        extra=extra | {"mesh_event": "problem"},
                    )

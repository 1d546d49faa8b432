"""Waiting for the first mesh state, and saying what one waits for."""

from __future__ import annotations

import logging
import threading
import time
from datetime import UTC, datetime

from mesh_middleware.consul.failures import FailureKind
from mesh_middleware.consul.manager import MeshManager
from mesh_middleware.errors import NotReadyError
from mesh_middleware.server.exits import ExitCode, LaunchError
from mesh_middleware.state import MeshState

logger = logging.getLogger("mesh_middleware.server")

PATIENCE_SECONDS = 2.0
"""After this long without a state the log says what is missing; a healthy agent takes less."""

_SLICE_SECONDS = 0.25


def wait_until_ready(
    manager: MeshManager, wait_seconds: float | None, stopping: threading.Event
) -> MeshState:
    """The first ready state; `wait_seconds` None waits for ever, 0 takes the state as it is.

    `LaunchError` when the time is over (its code tells an unreachable agent from a refused
    token) or when `stopping` is set meanwhile (code 0).
    """
    started = time.monotonic()
    told = False
    while True:
        if wait_seconds == 0:
            return manager.state
        try:
            return manager.wait_ready(_SLICE_SECONDS)
        except NotReadyError as error:
            waited = time.monotonic() - started
            if stopping.is_set():
                raise LaunchError(ExitCode.OK, "stopped while waiting for the agent") from None
            if wait_seconds is not None and waited >= wait_seconds:
                raise LaunchError(
                    failure_code(manager),
                    f"not ready after {wait_seconds:g} s (--wait): {error}",
                ) from error
            if waited >= PATIENCE_SECONDS and not told:
                told = True
                logger.warning("still waiting: %s", error)


def failure_code(manager: MeshManager) -> ExitCode:
    """Which exit code the manager's failures mean."""
    kind = manager.last_failure_kind
    if kind is FailureKind.ACL:
        return ExitCode.ACL
    if kind is FailureKind.UNREACHABLE:
        return ExitCode.AGENT_UNREACHABLE
    return ExitCode.RUNTIME


def ready_line(manager: MeshManager, state: MeshState, seconds: float) -> str:
    """What a person wants to know once the state is there."""
    agent = manager.config.address
    if not state.ready or state.policy is None or state.svid is None:
        missing = ", ".join(state.missing())
        return f"{state.service} starts without {missing} (agent {agent}); refuses until it has it"
    policy = state.policy
    expires = datetime.fromtimestamp(state.svid.not_after, UTC)
    rows = len(policy.intentions)
    return (
        f"{state.svid.identity} is ready after {seconds:.2f} s: agent {agent}, "
        f"{rows} intention{'' if rows == 1 else 's'}, default {policy.default_action}, "
        f"certificate until {expires:%Y-%m-%d %H:%M} UTC"
    )

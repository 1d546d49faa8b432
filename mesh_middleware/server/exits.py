"""Why the launcher ends: the exit codes of ``mesh-middleware run``, and an error that carries one.

Scripts and service managers branch on these numbers, so they are stable and documented.
"""

from __future__ import annotations

from enum import IntEnum

from mesh_middleware.errors import MeshError


class ExitCode(IntEnum):
    """What ``mesh-middleware run`` says to its parent."""

    OK = 0
    RUNTIME = 1
    """Something failed while it ran; the log says what."""
    USAGE = 2
    """A wrong option or setting; the message names it and a right value."""
    APP_STARTUP = 3
    """The application's lifespan startup failed (uvicorn's own number)."""
    AGENT_UNREACHABLE = 4
    """No answer from the Consul agent within ``--wait``."""
    ACL = 5
    """The agent's ACLs refused the token, or that none was sent."""
    PORT_TAKEN = 6
    """Another process listens on the port."""
    APP_IMPORT = 7
    """The application could not be imported or built."""


class LaunchError(MeshError):
    """The launcher cannot go on. `code` is what the process exits with."""

    def __init__(self, code: ExitCode, message: str) -> None:
        super().__init__(message)
        self.code = code

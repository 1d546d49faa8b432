"""The process's managers: started on first use, one for each service."""

from __future__ import annotations

import atexit
import logging
import os
import threading

from mesh_middleware.config import MeshConfig
from mesh_middleware.consul.manager import MeshManager
from mesh_middleware.state import StateSource, sources

logger = logging.getLogger("mesh_middleware.consul")

_lock = threading.Lock()
_started: list[MeshManager] = []


def manager_for(service: str) -> StateSource:
    """The source of `service` in this process.

    When there is none yet, a manager is started with the settings of the environment; it learns
    in the background, and a child process starts its own. ConfigError when a setting is wrong.
    """
    found = sources.get(service)
    if found is not None:
        return found
    with _lock:
        found = sources.get(service)
        if found is not None:
            return found
        if others := sources.services():
            logger.warning(
                "%s: this process becomes this service of the mesh, too; it is %s already. "
                "Is the name right?",
                service,
                ", ".join(others),
                extra={"mesh_event": "another service", "mesh_service": service},
            )
        manager = MeshManager(MeshConfig.from_env(service))
        manager.start()
        _started.append(manager)
        return manager


def close_all() -> None:
    """Close the managers that `manager_for` started."""
    with _lock:
        managers, _started[:] = list(_started), []
    for manager in managers:
        manager.close()


def _after_fork_in_child() -> None:
    global _lock  # noqa: PLW0603 - the parent's thread may hold the old one for ever
    _lock = threading.Lock()
    _started.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(close_all)

"""The listening socket, made before anything else: a taken port is said at once."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

from mesh_middleware.server.exits import ExitCode, LaunchError


def bind(host: str, port: int, *, uds: str | None = None, fd: int | None = None) -> socket.socket:
    """The bound socket, not listening yet. `LaunchError` (port taken, or runtime) otherwise."""
    if fd is not None:
        return socket.socket(fileno=os.dup(fd))
    if uds is not None:
        return _bound(socket.AF_UNIX, uds, f"--uds {uds}")
    try:
        found = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise LaunchError(ExitCode.USAGE, f"--host {host}: {error.strerror}") from error
    family, _, _, _, address = found[0]
    return _bound(family, address, f"{host}:{port}")


def _bound(family: socket.AddressFamily, address: Any, name: str) -> socket.socket:
    # asyncio turns Nagle's algorithm off only where the socket says that it is TCP.
    protocol = 0 if family == socket.AF_UNIX else socket.IPPROTO_TCP
    listener = socket.socket(family, socket.SOCK_STREAM, protocol)
    if family != socket.AF_UNIX:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise LaunchError(
                ExitCode.PORT_TAKEN,
                f"{name} is taken by another process; stop it or choose another --port",
            ) from error
        raise LaunchError(ExitCode.RUNTIME, f"cannot listen on {name}: {error}") from error
    return listener

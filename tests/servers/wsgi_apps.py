"""WSGI applications for tests on real servers."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from typing import Any

from mesh_middleware import PeerIdentityError, peer_identity

HEADERS = [("Content-Type", "application/json")]
closed = threading.Event()


def whoami(environ: dict[str, Any], start_response: Any) -> Any:
    """Says who calls, where, with which ``x-`` headers, and in which process."""
    path = environ["SCRIPT_NAME"] + environ["PATH_INFO"]
    if path == "/endless":
        closed.clear()
        start_response("200 OK", HEADERS)
        return Endless()
    if path == "/closed":
        return answer(start_response, {"closed": closed.wait(10)})
    try:
        caller = peer_identity(environ).service
    except PeerIdentityError:
        caller = ""
    length = int(environ.get("CONTENT_LENGTH") or 0)
    said = {
        "caller": caller,
        "path": path,
        "pid": os.getpid(),
        "body": len(environ["wsgi.input"].read(length)) if length else 0,
        "headers": {key: value for key, value in environ.items() if key.startswith("HTTP_X")},
    }
    return answer(start_response, said)


def answer(start_response: Any, said: dict[str, Any]) -> list[bytes]:
    body = json.dumps(said).encode()
    start_response("200 OK", [*HEADERS, ("Content-Length", str(len(body)))])
    return [body]


class Endless:
    """A response that ends only when somebody closes it."""

    def __iter__(self) -> Iterator[bytes]:
        while True:
            yield b"x" * 1000

    def close(self) -> None:
        closed.set()

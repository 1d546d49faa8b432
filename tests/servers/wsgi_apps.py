"""WSGI applications for tests on real servers."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from wsgiref.util import FileWrapper

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
    if path == "/file":
        start_response("200 OK", [*HEADERS, ("Content-Length", str(FILE_BYTES))])
        return environ.get("wsgi.file_wrapper", FileWrapper)(Path("/dev/zero").open("rb"))
    if path == "/upload":
        print("reading", flush=True)
        pieces = iter(lambda: environ["wsgi.input"].read(1000), b"")
        return answer(start_response, {"read": sum(map(len, pieces))})
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


FILE_BYTES = 10**12


class Endless:
    """A response that ends only when somebody closes it."""

    def __iter__(self) -> Iterator[bytes]:
        while True:
            yield b"x" * 1000

    def close(self) -> None:
        closed.set()

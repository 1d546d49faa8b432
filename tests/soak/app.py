"""The application under load: answers, streams, echoes, and says what its process holds."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import threading
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

CHUNK = b"x" * 4096


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await _lifespan(receive, send)
    elif scope["type"] == "websocket":
        await _echo(receive, send)
    elif scope["path"] == "/download":
        await _download(scope, send)
    elif scope["path"] == "/upload":
        await _upload(receive, send)
    elif scope["path"] == "/process":
        await _answer(send, json.dumps(process()).encode())
    else:
        await _answer(send, b"hello")


_callers: dict[str, str] = {}


async def remembering(scope: Any, receive: Any, send: Any) -> None:
    """`app`, and at ``/new/callers`` certificates by client port, of the last 100 in use."""
    if scope["type"] != "lifespan":
        port = str(scope["client"][1])
        _callers.pop(port, None)
        _callers[port] = scope["extensions"]["tls"]["client_cert_chain"][0]
        if len(_callers) > 100:
            del _callers[next(iter(_callers))]
    if scope.get("path") == "/new/callers":
        await _answer(send, json.dumps(_callers).encode())
    else:
        await app(scope, receive, send)


def process() -> dict[str, int]:
    """What this process holds now: resident KiB, threads, tasks, open files, Python objects."""
    gc.collect()
    status = Path("/proc/self/status").read_text()
    resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return {
        "pid": os.getpid(),
        "resident": int(resident.split()[1]),
        "threads": threading.active_count(),
        "tasks": len(asyncio.all_tasks()),
        "files": len(os.listdir("/proc/self/fd")),  # noqa: PTH208 - names, not paths
        "objects": len(gc.get_objects()),
    }


async def _lifespan(receive: Any, send: Any) -> None:
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def _answer(send: Any, body: bytes) -> None:
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _download(scope: Any, send: Any) -> None:
    """``?chunks=`` pieces of 4 KiB, 20 ms apart."""
    chunks = int(parse_qs(scope["query_string"].decode())["chunks"][0])
    headers = [(b"content-length", str(chunks * len(CHUNK)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for _ in range(chunks):
        await send({"type": "http.response.body", "body": CHUNK, "more_body": True})
        await asyncio.sleep(0.02)
    await send({"type": "http.response.body", "body": b""})


async def _upload(receive: Any, send: Any) -> None:
    length = 0
    while True:
        message = await receive()
        length += len(message.get("body", b""))
        if not message.get("more_body"):
            break
    await _answer(send, str(length).encode())


async def _echo(receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})

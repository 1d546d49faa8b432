"""Small applications for tests of the serving side."""

from __future__ import annotations

from typing import Any


async def hello(scope: Any, receive: Any, send: Any) -> None:
    """Says hello to every request, and knows nothing else."""
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


def make() -> Any:
    return hello


def legacy(scope: Any) -> Any:
    """An application of ASGI 2."""

    async def instance(receive: Any, send: Any) -> None:
        await hello(scope, receive, send)

    return instance


def wsgi(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    return [b"hello"]

"""The application that the end-to-end tests serve."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, WebSocket

from mesh_middleware import peer_identity


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    if os.environ.get("E2E_BREAK_STARTUP"):
        raise RuntimeError("the database is away")
    yield


app = FastAPI(lifespan=lifespan)


@app.get("/whoami")
async def whoami(request: Request) -> dict[str, str | int]:
    return {"caller": peer_identity(request.scope).service, "pid": os.getpid()}


@app.get("/slow")
async def slow(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "done"


@app.get("/tls")
async def tls(request: Request) -> dict[str, object]:
    extension = request.scope["extensions"]["tls"]
    return {"chain": list(extension["client_cert_chain"]), "version": extension["tls_version"]}


@app.websocket("/echo")
async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    async for message in websocket.iter_text():
        await websocket.send_text(f"{peer_identity(websocket.scope).service}: {message}")


def make() -> FastAPI:
    return app

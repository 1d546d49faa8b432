"""What stays open: the application of test_live.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import StreamingResponse

app = FastAPI()


@app.get("/ping")
async def ping() -> str:
    return "pong"


@app.get("/feed")
async def feed() -> StreamingResponse:
    async def ticks() -> AsyncIterator[bytes]:
        while True:
            yield b"tick\n"
            await asyncio.sleep(0.02)

    return StreamingResponse(ticks())


@app.get("/silent")
async def silent() -> StreamingResponse:
    async def nothing() -> AsyncIterator[bytes]:
        yield b"hello\n"
        await asyncio.Event().wait()

    return StreamingResponse(nothing())


@app.post("/upload")
async def upload(request: Request) -> int:
    return sum([len(chunk) async for chunk in request.stream()])


@app.websocket("/echo")
async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    async for message in websocket.iter_text():
        await websocket.send_text(message)

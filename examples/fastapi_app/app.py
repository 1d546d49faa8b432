"""Orders: a FastAPI service of the mesh. Who may call what is in intentions.yaml, not here."""

from __future__ import annotations

from typing import Annotated

from fastapi import FastAPI, Path, WebSocket
from pydantic import BaseModel

from mesh_middleware import MeshMiddleware, peer_identity
from mesh_middleware.fastapi import Caller

app = FastAPI(title="orders")
app.add_middleware(MeshMiddleware, service="orders")


class Order(BaseModel):
    """What is ordered, and how many of it."""

    item: str
    count: int = 1


ORDERS: dict[int, Order] = {1: Order(item="tea", count=2)}


@app.get("/orders")
async def list_orders() -> dict[int, Order]:
    """Every order."""
    return ORDERS


@app.post("/orders", status_code=201)
async def add_order(order: Order, caller: Caller) -> dict[str, object]:
    """Take an order, and say for whom: the caller is proven, not told."""
    number = max(ORDERS, default=0) + 1
    ORDERS[number] = order
    return {"number": number, "ordered_by": caller.service}


@app.delete("/orders/{number}")
async def cancel_order(number: Annotated[int, Path(ge=1)]) -> dict[str, bool]:
    """Cancel an order."""
    return {"cancelled": ORDERS.pop(number, None) is not None}


@app.websocket("/orders/feed")
async def feed(websocket: WebSocket) -> None:
    """Say hello to the proven caller, then echo."""
    await websocket.accept()
    await websocket.send_text(f"hello {peer_identity(websocket.scope).service}")
    async for text in websocket.iter_text():
        await websocket.send_text(text)

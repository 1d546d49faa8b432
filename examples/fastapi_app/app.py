"""Orders: a FastAPI service of the mesh, and it calls another one, billing.

Who may call what is in intentions.yaml, not here.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import httpx
from fastapi import Depends, FastAPI, Path, Request, WebSocket
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from mesh_middleware import AsyncMeshTransport, MeshMiddleware, peer_identity
from mesh_middleware.fastapi import Caller

logging.basicConfig()
log = logging.getLogger("orders")
log.setLevel(logging.INFO)


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[dict[str, httpx.AsyncClient]]:
    """One client for the life of the application, so that connections are kept."""
    async with httpx.AsyncClient(
        transport=AsyncMeshTransport("orders"),  # with the certificate of this service
        base_url="http://billing",  # a name of the mesh: no address, no port, always mTLS
        event_hooks={"response": [log_call]},
    ) as client:
        yield {"billing": client}


app = FastAPI(title="orders", lifespan=lifespan)
app.add_middleware(MeshMiddleware, service="orders")


# -- calls to billing -----------------------------------------------------------------------------


def billing_client(request: Request) -> httpx.AsyncClient:
    """The client of the lifespan; a test puts another one in its place."""
    client: httpx.AsyncClient = request.state.billing
    return client


def passed_on(request: Request) -> dict[str, str]:
    """Headers that join the traces and logs of both services; the transport adds none itself."""
    names = ("traceparent", "tracestate", "x-request-id")
    return {name: request.headers[name] for name in names if name in request.headers}


Billing = Annotated[httpx.AsyncClient, Depends(billing_client)]
PassedOn = Annotated[dict[str, str], Depends(passed_on)]


async def log_call(answer: httpx.Response) -> None:
    """One line for each answer: who called whom, both proven in the handshake."""
    call = answer.extensions["mesh_middleware"]
    sent = answer.request
    log.info(
        "%s called %s: %s %s %d",
        call.source,
        call.destination,
        sent.method,
        sent.url.path,
        answer.status_code,
        extra=call.log_fields(),  # for a log that takes fields, as JSON logs do
    )


@app.exception_handler(httpx.HTTPError)
async def upstream_failed(_request: Request, error: httpx.HTTPError) -> JSONResponse:
    """502 that says who failed, for every call of every route."""
    service = error.request.url.host
    if not isinstance(error, httpx.HTTPStatusError):
        log.error("%s: %r", service, error)  # it speaks of addresses: for us, not for the caller
        return JSONResponse({"detail": f"{service} gave no answer"}, 502)
    refused = error.response.headers.get("x-mesh-refused")
    said = f"refused this service: {refused}" if refused else "could not do its part"
    return JSONResponse({"detail": f"{service} {said}"}, 502)


# -- what the service does ------------------------------------------------------------------------


class Order(BaseModel):
    """What is ordered, and how many of it."""

    item: str
    count: int = 1


ORDERS: dict[int, Order] = {1: Order(item="tea", count=2)}
NUMBERS = itertools.count(2)


@app.get("/orders")
async def list_orders() -> dict[int, Order]:
    """Every order."""
    return ORDERS


@app.post("/orders", status_code=201)
async def add_order(
    order: Order, caller: Caller, billing: Billing, headers: PassedOn
) -> dict[str, object]:
    """Take an order once billing has made the invoice. The caller is proven, not told."""
    number = next(NUMBERS)
    invoice = {"order": number, "customer": caller.service}
    answer = await billing.post("/invoices", json=invoice, headers=headers)
    answer.raise_for_status()
    ORDERS[number] = order
    return {"number": number, "ordered_by": caller.service, "invoice": answer.json()}


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

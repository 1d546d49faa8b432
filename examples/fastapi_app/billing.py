"""Billing: the service that orders calls. Who may call what is in intentions.yaml, not here."""

from __future__ import annotations

from fastapi import FastAPI
from pydantic import BaseModel

from mesh_middleware import MeshMiddleware
from mesh_middleware.fastapi import Caller

app = FastAPI(title="billing")
app.add_middleware(MeshMiddleware, service="billing")


class Invoice(BaseModel):
    """Which order is to be paid, and by whom."""

    order: int
    customer: str


INVOICES: dict[int, Invoice] = {}


@app.post("/invoices", status_code=201)
async def add_invoice(invoice: Invoice, caller: Caller) -> dict[str, object]:
    """Write an invoice, and say at whose request: the caller is proven, the customer is told."""
    number = len(INVOICES) + 1
    INVOICES[number] = invoice
    return {"number": number, "asked_by": caller.service}


@app.get("/invoices")
async def list_invoices() -> dict[int, Invoice]:
    """Every invoice."""
    return INVOICES

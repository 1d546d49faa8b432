"""Both services and their intentions, tested with no certificate and no agent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from examples.fastapi_app import billing
from examples.fastapi_app.app import ORDERS, app, billing_client
from mesh_middleware.testing import Expectation, as_service, expectations, mesh_for

INTENTIONS = Path(__file__).parent / "intentions.yaml"
MILK = {"item": "milk"}

Answer = Callable[[httpx.Request], httpx.Response]


@pytest.fixture(autouse=True)
def rules() -> Iterator[None]:
    """The intentions of both services."""
    with mesh_for("orders", INTENTIONS), mesh_for("billing", INTENTIONS):
        yield


@pytest.fixture
def orders() -> Iterator[TestClient]:
    """A client for orders; `calls` and `billing_says` give orders a billing."""
    yield TestClient(app)
    app.dependency_overrides.clear()


def calls(transport: httpx.AsyncBaseTransport) -> None:
    """Let orders call billing through `transport` in the place of the mesh."""
    client = httpx.AsyncClient(transport=transport, base_url="http://billing")
    app.dependency_overrides[billing_client] = lambda: client


def billing_says(answer: Answer) -> list[httpx.Request]:
    """Give billing's answers by hand; returns what it is asked."""
    asked: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return answer(request)

    calls(httpx.MockTransport(handle))
    return asked


def invoice(_request: httpx.Request) -> httpx.Response:
    """An invoice was written."""
    return httpx.Response(201, json={"number": 7})


# -- who may do what ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("caller", "method", "path", "status"),
    [
        ("shop", "GET", "/orders", 200),
        ("shop", "POST", "/orders", 201),
        ("shop", "DELETE", "/orders/1", 403),
        ("reports", "GET", "/orders", 200),
        ("reports", "POST", "/orders", 403),
        ("stranger", "GET", "/orders", 403),
    ],
)
def test_who_may_do_what_with_orders(
    orders: TestClient, caller: str, method: str, path: str, status: int
) -> None:
    billing_says(invoice)
    body = MILK if method == "POST" else None
    answer = as_service(orders, caller).request(method, path, json=body)
    assert answer.status_code == status, answer.text
    assert ("x-mesh-refused" in answer.headers) is (status == 403)


@pytest.mark.parametrize(
    ("caller", "method", "status"),
    [
        ("orders", "POST", 201),
        ("orders", "GET", 403),
        ("shop", "POST", 403),
        ("reports", "GET", 200),
        ("reports", "POST", 403),
    ],
)
def test_who_may_do_what_with_billing(caller: str, method: str, status: int) -> None:
    body = {"order": 1, "customer": "shop"} if method == "POST" else None
    client = as_service(TestClient(billing.app), caller)
    assert client.request(method, "/invoices", json=body).status_code == status


@pytest.mark.parametrize(
    "expectation", expectations(INTENTIONS.with_name("expectations.yaml")), ids=str
)
def test_the_intentions_do_what_they_should(expectation: Expectation) -> None:
    expectation.verify()


# -- orders calls billing -------------------------------------------------------------------------


def test_an_order_has_an_invoice_for_its_proven_caller(orders: TestClient) -> None:
    asked = billing_says(invoice)
    answer = as_service(orders, "shop").post("/orders", json=MILK).json()
    assert (answer["ordered_by"], answer["invoice"]) == ("shop", {"number": 7})
    assert b'"customer":"shop"' in asked[0].content


def test_traces_and_request_ids_are_passed_on_and_nothing_else(orders: TestClient) -> None:
    asked = billing_says(invoice)
    headers = {"traceparent": "00-1-2-01", "x-request-id": "r1", "authorization": "Bearer secret"}
    as_service(orders, "shop").post("/orders", json=MILK, headers=headers)
    sent = asked[0].headers
    assert (sent["traceparent"], sent["x-request-id"]) == ("00-1-2-01", "r1")
    assert "authorization" not in sent


def down(request: httpx.Request) -> httpx.Response:
    """What the transport raises when nobody can be reached."""
    raise httpx.ConnectError("upstream 'billing': found none at 10.0.0.5", request=request)


@pytest.mark.parametrize(
    ("answer", "detail"),
    [
        (
            lambda _: httpx.Response(403, headers={"x-mesh-refused": "intention_deny"}),
            "billing refused this service: intention_deny",
        ),
        (lambda _: httpx.Response(500), "billing could not do its part"),
        (down, "billing gave no answer"),
    ],
)
def test_without_billing_nothing_is_ordered(
    orders: TestClient, answer: Answer, detail: str
) -> None:
    billing_says(answer)
    before = dict(ORDERS)
    failed = as_service(orders, "shop").post("/orders", json=MILK)
    assert (failed.status_code, failed.json()) == (502, {"detail": detail})
    assert before == ORDERS


def test_both_services_together(orders: TestClient) -> None:
    """The real billing with its intentions, called as orders: no mock that may be wrong."""
    calls(httpx.ASGITransport(as_service(billing.app, "orders")))
    answer = as_service(orders, "shop").post("/orders", json=MILK)
    assert answer.json()["invoice"]["asked_by"] == "orders"


def test_a_service_that_may_not_call_billing_is_told_so(orders: TestClient) -> None:
    calls(httpx.ASGITransport(as_service(billing.app, "stranger")))
    answer = as_service(orders, "shop").post("/orders", json=MILK)
    assert answer.json() == {"detail": "billing refused this service: default_deny"}


# -- the rest -------------------------------------------------------------------------------------


def test_the_application_starts_without_an_agent() -> None:
    """Its client for the mesh is made at startup, and looks for the mesh when it is used."""
    with TestClient(app) as client:
        assert as_service(client, "shop").get("/orders").status_code == 200


def test_the_feed_greets_its_caller(orders: TestClient) -> None:
    feed: Any = as_service(orders, "shop").websocket_connect("/orders/feed")
    with feed:
        assert feed.receive_text() == "hello shop"

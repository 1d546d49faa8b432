"""The service and its intentions, tested with no certificate and no agent."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from examples.fastapi_app.app import app
from mesh_middleware.testing import Expectation, as_service, expectations, mesh_for

INTENTIONS = Path(__file__).parent / "intentions.yaml"


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
def test_who_may_do_what(caller: str, method: str, path: str, status: int) -> None:
    with mesh_for("orders", INTENTIONS):
        client = as_service(TestClient(app), caller)
        answer = client.request(method, path, json={"item": "milk"} if method == "POST" else None)
    assert answer.status_code == status, answer.text
    assert ("x-mesh-refused" in answer.headers) is (status == 403)


def test_the_caller_is_proven() -> None:
    with mesh_for("orders", INTENTIONS):
        answer = as_service(TestClient(app), "shop").post("/orders", json={"item": "milk"})
    assert answer.json()["ordered_by"] == "shop"


def test_the_feed_greets_its_caller() -> None:
    with (
        mesh_for("orders", INTENTIONS),
        as_service(TestClient(app), "shop").websocket_connect("/orders/feed") as feed,
    ):
        assert feed.receive_text() == "hello shop"


@pytest.mark.parametrize(
    "expectation", expectations(INTENTIONS.with_name("expectations.yaml")), ids=str
)
def test_the_intentions_do_what_they_should(expectation: Expectation) -> None:
    expectation.verify()

"""The service and its intentions, tested with no certificate and no agent."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from examples.flask_app.app import app
from mesh_middleware.consul.decode import decode_config_entry
from mesh_middleware.testing import caller_environ, mesh_for

ENTRY = yaml.safe_load((Path(__file__).parent / "intentions.yaml").read_text())


@pytest.mark.parametrize(
    ("caller", "method", "path", "status"),
    [
        ("orders", "GET", "/stock", 200),
        ("orders", "GET", "/stock/tea", 200),
        ("orders", "PUT", "/stock/tea", 200),
        ("orders", "DELETE", "/stock/tea", 403),
        ("reports", "GET", "/stock.csv", 200),
        ("reports", "GET", "/stock", 403),
        ("stranger", "GET", "/stock", 403),
    ],
)
def test_who_may_do_what(caller: str, method: str, path: str, status: int) -> None:
    with mesh_for("stock", decode_config_entry(ENTRY)):
        answer = app.test_client().open(
            path,
            method=method,
            json={"count": 7} if method == "PUT" else None,
            environ_overrides=caller_environ(caller),
        )
    assert answer.status_code == status, answer.text
    assert ("x-mesh-refused" in answer.headers) is (status == 403)


def test_the_caller_is_proven() -> None:
    with mesh_for("stock", decode_config_entry(ENTRY)):
        answer = app.test_client().put(
            "/stock/tea", json={"count": 5}, environ_overrides=caller_environ("orders")
        )
    assert answer.get_json() == {"item": "tea", "count": 5, "told_by": "orders"}


def test_the_export_is_a_stream_of_lines() -> None:
    with mesh_for("stock", decode_config_entry(ENTRY)):
        answer = app.test_client().get("/stock.csv", environ_overrides=caller_environ("reports"))
    assert "milk,3\n" in answer.text

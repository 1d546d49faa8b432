"""The Flask example under the launcher, as its README says."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from mesh_middleware.devagent import DevAgent
from tests.e2e.launch import Caller, Launched
from tests.server.mesh import request

EXAMPLE = Path(__file__).parents[2] / "examples" / "flask_app"


@pytest.fixture(scope="module")
def example() -> Iterator[Launched]:
    entry = yaml.safe_load((EXAMPLE / "intentions.yaml").read_text())
    with (
        DevAgent(intentions=[entry]) as agent,
        Launched(
            agent.address,
            *("--app-dir", str(EXAMPLE), "--wsgi-threads", "4"),
            service="stock",
            app="app:app",
        ) as launched,
    ):
        yield launched.serves()


@pytest.mark.parametrize(
    ("caller", "target", "status"),
    [
        ("orders", "/stock", 200),
        ("orders", "/stock/tea", 200),
        ("orders", "/nothing", 403),
        ("reports", "/stock.csv", 200),
        ("reports", "/stock", 403),
        ("stranger", "/stock", 403),
    ],
)
def test_who_may_do_what(example: Launched, caller: str, target: str, status: int) -> None:
    with closing(Caller.of(example.agent, caller).connect(example.port, "stock")) as sock:
        assert request(sock, target)[0] == status


def test_the_caller_is_in_g(example: Launched) -> None:
    with closing(Caller.of(example.agent, "orders").connect(example.port, "stock")) as sock:
        connection = http.client.HTTPConnection("mesh")
        connection.sock = sock
        connection.request(
            "PUT", "/stock/tea", '{"count": 9}', {"content-type": "application/json"}
        )
        assert json.loads(connection.getresponse().read())["told_by"] == "orders"
        assert json.loads(request(sock, "/stock/tea")[1]) == {"item": "tea", "count": 9}


def test_the_outer_middleware_decides_once(example: Launched) -> None:
    """The launcher and the extension both guard; a refusal is in the log once."""
    with closing(Caller.of(example.agent, "once").connect(example.port, "stock")) as sock:
        status, body = request(sock, "/once")
    assert (status, json.loads(body)["reason"]) == (403, "default_deny")
    assert example.log.count("refused GET /once") == 1

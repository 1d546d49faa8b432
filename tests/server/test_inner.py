"""What the application's own middleware says counts under the launcher."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from fastapi import FastAPI
from flask import Flask
from starlette.applications import Starlette

from mesh_middleware.flask import MeshExtension
from mesh_middleware.middleware.asgi import MeshMiddleware
from mesh_middleware.middleware.wsgi import MeshWSGIMiddleware
from mesh_middleware.server.exits import ExitCode, LaunchError
from mesh_middleware.server.inner import inner_arguments
from mesh_middleware.server.worker import WithoutQueries
from mesh_middleware.server.wsgi import ThreadedWSGI
from mesh_middleware.testing import static_mesh
from tests.server.apps import hello


@pytest.mark.parametrize("framework", [FastAPI, Starlette])
def test_arguments_of_add_middleware_are_taken_over(framework: type[Starlette]) -> None:
    app = framework()
    app.add_middleware(MeshMiddleware, service="api", exempt_paths=["/live"], enforcement="audit")
    assert inner_arguments(app, "api") == {"exempt_paths": ["/live"], "enforcement": "audit"}


def test_an_application_that_is_wrapped_by_hand_is_found_too() -> None:
    app = MeshMiddleware(hello, mesh=static_mesh("api"), exempt_paths=iter(["/live"]))
    found = inner_arguments(app, "api")
    assert found["exempt_paths"] == ("/live",)
    MeshMiddleware(app, mesh=static_mesh("api"), **found)


def hello_wsgi(_environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    return [b"hello"]


def test_wsgi_applications_and_flask_are_looked_into() -> None:
    wrapped = MeshWSGIMiddleware(hello_wsgi, service="api", drain_seconds=30)
    assert inner_arguments(ThreadedWSGI(wrapped, 1), "api")["drain_seconds"] == 30
    flask = Flask("api")
    MeshExtension(flask, service="api", enforcement="audit")
    found = inner_arguments(ThreadedWSGI(flask, 1), "api")
    assert found["enforcement"] == "audit"
    MeshMiddleware(hello, mesh=static_mesh("api"), **found)
    with pytest.raises(LaunchError, match="books"):
        inner_arguments(ThreadedWSGI(MeshWSGIMiddleware(hello_wsgi, service="books"), 1), "api")
    assert inner_arguments(ThreadedWSGI(Flask("api"), 1), "api") == {}
    assert inner_arguments(ThreadedWSGI(hello_wsgi, 1), "api") == {}


def test_an_application_without_one_says_nothing() -> None:
    assert inner_arguments(hello, "api") == {}
    assert inner_arguments(FastAPI(), "api") == {}


@pytest.mark.parametrize("given", [{"service": "books"}, {"mesh": static_mesh("books")}])
def test_two_services_in_one_process_are_found_at_the_start(given: dict[str, object]) -> None:
    app = FastAPI()
    app.add_middleware(MeshMiddleware, **given)
    with pytest.raises(LaunchError, match=r"--service api: .*'books'") as raised:
        inner_arguments(app, "api")
    assert raised.value.code is ExitCode.USAGE


@pytest.mark.parametrize(
    ("target", "logged"), [("/x?access_token=eyJ", "/x?..."), ("/x", "/x"), ("/x?", "/x?...")]
)
def test_the_access_log_has_no_queries(target: str, logged: str) -> None:
    args = ("127.0.0.1:1", "GET", target, "1.1", 200)
    record = logging.LogRecord("uvicorn.access", 20, "", 1, '%s - "%s %s HTTP/%s" %d', args, None)
    assert WithoutQueries().filter(record)
    assert record.getMessage() == f'127.0.0.1:1 - "GET {logged} HTTP/1.1" 200'

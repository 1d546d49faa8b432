"""``service="api"``: when the manager is started, and what happens when it cannot be."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import asynccontextmanager
from types import ModuleType
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

import mesh_middleware
from mesh_middleware.errors import ConfigError
from mesh_middleware.middleware import MeshMiddleware
from mesh_middleware.state import MeshState, StateSource, sources
from mesh_middleware.testing import as_service, mesh_for, static_mesh
from tests.middleware.calls import WEB_MAY, Recorder, call, http_scope, verified


class Runtime(ModuleType):
    """Stands in for `mesh_middleware.runtime`: registers a source, and remembers who asked."""

    def __init__(self) -> None:
        super().__init__("mesh_middleware.runtime")
        self.asked: list[str] = []
        self.threads: set[int] = set()
        self.error: Exception | None = None
        self.state: MeshState = static_mesh("api", WEB_MAY).state
        self.added: list[StateSource] = []

    def manager_for(self, service: str) -> StateSource:
        self.asked.append(service)
        self.threads.add(threading.get_ident())
        if self.error is not None:
            raise self.error
        sources.add(service, self)
        self.added.append(self)
        return self


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    fake = Runtime()
    monkeypatch.setitem(sys.modules, "mesh_middleware.runtime", fake)
    monkeypatch.setattr(mesh_middleware, "runtime", fake, raising=False)
    yield fake
    sources.remove("api", fake)


def test_the_constructor_starts_nothing(runtime: Runtime) -> None:
    MeshMiddleware(Recorder(), service="api")
    assert runtime.asked == []


def test_the_manager_is_started_with_the_application(runtime: Runtime) -> None:
    started: list[list[str]] = []

    @asynccontextmanager
    async def lifespan(app: Starlette) -> Any:
        started.append(list(runtime.asked))
        yield

    app = Starlette(lifespan=lifespan)
    app.add_middleware(MeshMiddleware, service="api")
    with TestClient(app) as client:
        assert started == [["api"]]
        assert as_service(client, "web").get("/").status_code == 404
        assert client.get("/").status_code == 403
    assert runtime.asked == ["api"]
    assert threading.get_ident() not in runtime.threads


def test_the_manager_is_started_by_the_first_request_otherwise(runtime: Runtime) -> None:
    app = MeshMiddleware(Recorder(), service="api")
    for _ in range(3):
        assert call(app, http_scope(peer=verified())).status == 200
    assert runtime.asked == ["api"]
    assert threading.get_ident() not in runtime.threads


def test_until_it_is_ready_requests_are_refused_with_503(runtime: Runtime) -> None:
    runtime.state = MeshState("api")
    app = MeshMiddleware(Recorder(), service="api")
    assert call(app, http_scope(peer=verified())).status == 503
    runtime.state = static_mesh("api", WEB_MAY).state
    assert call(app, http_scope(peer=verified())).status == 200


def test_a_manager_that_cannot_be_configured_fails_the_startup(runtime: Runtime) -> None:
    runtime.error = ConfigError("CONSUL_HTTP_ADDR: no")
    app = Starlette()
    app.add_middleware(MeshMiddleware, service="api")
    with pytest.raises(ConfigError, match="CONSUL_HTTP_ADDR"), TestClient(app):
        pass


def test_a_manager_that_cannot_be_configured_lets_no_request_pass(runtime: Runtime) -> None:
    runtime.error = ConfigError("CONSUL_HTTP_ADDR: no")
    app = Recorder()
    with pytest.raises(ConfigError):
        call(MeshMiddleware(app, service="api"), http_scope(peer=verified()))
    assert app.scopes == []


def test_a_registered_source_is_found_by_name(runtime: Runtime) -> None:
    app = MeshMiddleware(Recorder(), service="api")
    with mesh_for("api", WEB_MAY):
        assert call(app, http_scope(peer=verified())).status == 200
    with mesh_for("api"):
        assert call(app, http_scope(peer=verified())).reason == "default_deny"
    assert runtime.asked == []

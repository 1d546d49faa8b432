"""Django, through WSGI and through ASGI, as docs/guides/flask.md shows."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import django
import pytest
from django.conf import settings
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpRequest, HttpResponse
from django.urls import path
from starlette.testclient import TestClient
from werkzeug.test import Client

from mesh_middleware import MeshMiddleware, MeshWSGIMiddleware, peer_identity
from mesh_middleware.policy.intentions import Action, Intention
from mesh_middleware.testing import as_service, caller_environ, static_mesh

MESH = static_mesh("shop", [Intention("web", "shop", Action.ALLOW)])


def orders(request: HttpRequest) -> HttpResponse:
    """A view that greets its caller, whatever the interface."""
    source: Any = getattr(request, "scope", request.META)
    return HttpResponse(f"hello {peer_identity(source).service}")


@pytest.fixture(scope="module", autouse=True)
def configured() -> None:
    urls = ModuleType("urls")
    urls.urlpatterns = [path("orders", orders)]  # type: ignore[attr-defined]
    settings.configure(ROOT_URLCONF=urls, ALLOWED_HOSTS=["*"], SECRET_KEY="test")
    django.setup()


@pytest.mark.parametrize(("caller", "status"), [("web", 200), ("stranger", 403)])
def test_wsgi(caller: str, status: int) -> None:
    client = Client(MeshWSGIMiddleware(WSGIHandler(), mesh=MESH))
    answer = client.get("/orders", environ_overrides=caller_environ(caller))
    assert answer.status_code == status
    assert ("hello web" in answer.text) is (status == 200)


@pytest.mark.parametrize(("caller", "status"), [("web", 200), ("stranger", 403)])
def test_asgi(caller: str, status: int) -> None:
    client = TestClient(MeshMiddleware(ASGIHandler(), mesh=MESH))
    answer = as_service(client, caller).get("/orders")
    assert answer.status_code == status
    assert ("hello web" in answer.text) is (status == 200)

"""The Flask extension: decides, and puts the caller into ``g``."""

from __future__ import annotations

import pytest
from flask import Flask, g

from mesh_middleware import ConfigError
from mesh_middleware.flask import MeshExtension
from mesh_middleware.policy.intentions import Action, Intention
from mesh_middleware.testing import caller_environ, mesh_for, static_mesh

WEB_MAY = [Intention("web", "api", Action.ALLOW)]


def application() -> Flask:
    app = Flask("api")

    @app.get("/")
    def hello() -> str:
        return f"hello {g.mesh_peer.service if g.mesh_peer else 'nobody'}"

    return app


def get(app: Flask, caller: str = "") -> tuple[int, str]:
    overrides = caller_environ(caller) if caller else {}
    answer = app.test_client().get("/", environ_overrides=overrides)
    return answer.status_code, answer.text


def test_the_caller_is_in_g() -> None:
    app = application()
    MeshExtension(app, mesh=static_mesh("api", WEB_MAY))
    assert get(app, "web") == (200, "hello web")
    assert get(app, "batch")[0] == 403
    assert get(app)[0] == 403


def test_an_exempt_path_has_no_caller() -> None:
    app = application()
    MeshExtension(app, mesh=static_mesh("api"), exempt_paths=["/"])
    assert get(app) == (200, "hello nobody")


def test_one_extension_for_several_applications() -> None:
    extension = MeshExtension()
    for name in ("one", "two"):
        app = application()
        app.config["MESH_SERVICE"] = name
        extension.init_app(app)
        with mesh_for(name, [Intention("web", name, Action.ALLOW)]):
            assert get(app, "web") == (200, "hello web")


def test_the_argument_wins_over_the_configuration() -> None:
    app = application()
    app.config["MESH_SERVICE"] = "other"
    MeshExtension(app, service="api")
    with mesh_for("api", WEB_MAY):
        assert get(app, "web")[0] == 200


def test_no_service_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="MESH_SERVICE"):
        MeshExtension(application())


def test_twice_is_a_mistake() -> None:
    app = application()
    MeshExtension(app, service="api")
    with pytest.raises(ConfigError, match="already"):
        MeshExtension(app, service="api")

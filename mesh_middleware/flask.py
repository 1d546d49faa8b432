"""The mesh for Flask: every request decided, the caller in ``flask.g``.

    from mesh_middleware.flask import MeshExtension

    mesh = MeshExtension(app, service="orders")  # or MeshExtension(service=...).init_app(app)

    @app.get("/orders")
    def orders():
        return f"hello {g.mesh_peer.service}"

``g.mesh_peer`` is the `ServiceIdentity` that calls, None on an exempt path. `MeshWSGIMiddleware`
around ``app.wsgi_app`` decides; put other middleware that changes path or method inside of it, that
is, wrap it before the extension does.
"""

from __future__ import annotations

from typing import Any

from flask import Flask, g, request

from mesh_middleware.errors import ConfigError, PeerIdentityError
from mesh_middleware.middleware.peer import peer_identity
from mesh_middleware.middleware.wsgi import MeshWSGIMiddleware
from mesh_middleware.state import StateSource

NAME = "mesh_middleware"
"""The key in ``app.extensions`` and the prefix of nothing else."""

SERVICE = "MESH_SERVICE"
"""The key in ``app.config`` that names the service where no argument does."""


class MeshExtension:
    """Puts `MeshWSGIMiddleware` around a Flask application and the caller into ``flask.g``.

    `service` or `mesh` as `MeshWSGIMiddleware` takes them, and its other `options`. Without both
    ``app.config["MESH_SERVICE"]`` names the service. With `app` it is initialised at once, else by
    `init_app`; one extension can serve several applications.
    """

    def __init__(
        self,
        app: Flask | None = None,
        *,
        service: str | None = None,
        mesh: StateSource | None = None,
        **options: Any,
    ) -> None:
        self._service = service
        self._mesh = mesh
        self._options = options
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Guard `app` from now on. ConfigError for no service, or a second time."""
        if NAME in app.extensions:
            raise ConfigError("this application has a MeshExtension already")
        service = self._service
        if service is None and self._mesh is None:
            service = app.config.get(SERVICE)
            if not service:
                raise ConfigError(f"give service='name', or set app.config[{SERVICE!r}]")
        guard = MeshWSGIMiddleware(app.wsgi_app, service=service, mesh=self._mesh, **self._options)
        app.wsgi_app = guard  # type: ignore[method-assign]
        app.extensions[NAME] = self
        app.before_request(_know_the_caller)


def _know_the_caller() -> None:
    try:
        g.mesh_peer = peer_identity(request.environ)
    except PeerIdentityError:  # an exempt path, or a caller that is no service
        g.mesh_peer = None

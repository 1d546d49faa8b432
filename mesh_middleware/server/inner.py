"""The application's own middleware, found before the launcher puts its own around it.

The launcher's middleware decides, and an inner one of the same service passes on. So what the
application says there is taken over, or its author would be ignored without a word; and two
different services in one process are found at the start, not with the first request.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mesh_middleware.middleware.asgi import MeshMiddleware
from mesh_middleware.middleware.wsgi import MeshWSGIMiddleware
from mesh_middleware.server.exits import ExitCode, LaunchError

TAKEN_OVER = (
    "exempt_paths",
    "enforcement",
    "audit",
    "debug_headers",
    "drain_seconds",
    "identity_from",
)
"""Arguments of the application's middleware that count under the launcher, too."""


def inner_arguments(app: Any, service: str) -> dict[str, Any]:
    """What the application's own middleware was given, as far as it is in `TAKEN_OVER`.

    Looked for in `app` itself, where FastAPI and Starlette keep what `add_middleware` was given,
    and in a WSGI application and its ``wsgi_app`` (Flask). `LaunchError` (usage) when it is for
    another service than `service`.
    """
    arguments = _arguments(app)
    named = arguments.get("service")
    if named is None and (mesh := arguments.get("mesh")) is not None:
        named = mesh.state.service
    if named is not None and named != service:
        raise LaunchError(
            ExitCode.USAGE,
            f"--service {service}: the application says MeshMiddleware(service={named!r}); "
            "one application is one service, so name the same in both, or in --service alone",
        )
    return {name: arguments[name] for name in TAKEN_OVER if name in arguments}


def _arguments(app: Any) -> Mapping[str, Any]:
    if isinstance(app, MeshMiddleware):
        return app.arguments
    wsgi = getattr(app, "app", None)  # what a `ThreadedWSGI` serves
    guard = getattr(wsgi, "wsgi_app", wsgi)
    if isinstance(guard, MeshWSGIMiddleware):
        return guard.arguments
    for added in getattr(app, "user_middleware", ()):
        if getattr(added, "cls", None) is MeshMiddleware:
            kwargs: Mapping[str, Any] = added.kwargs
            return kwargs
    return {}

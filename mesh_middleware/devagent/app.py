"""The agent's HTTP API as a Starlette application over a `Store`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mesh_middleware._types import Receive, Scope, Send
from mesh_middleware.devagent import agent_endpoints as agent
from mesh_middleware.devagent import config_endpoints as config
from mesh_middleware.devagent import mesh_endpoints as mesh
from mesh_middleware.devagent.guard import Guard
from mesh_middleware.devagent.responses import text_response
from mesh_middleware.devagent.schema import RefusedError
from mesh_middleware.devagent.store import Store

Handler = Callable[[Request], Awaitable[Response]]

ENDPOINTS: Mapping[str, Mapping[str, Handler]] = {
    "/agent/connect/ca/roots": {"GET": mesh.agent_roots},
    "/agent/connect/ca/leaf/{service:path}": {"GET": mesh.leaf},
    "/agent/connect/authorize": {"POST": mesh.authorize},
    "/connect/intentions": {"GET": mesh.list_intentions},
    "/connect/intentions/match": {"GET": mesh.match},
    "/connect/intentions/check": {"GET": mesh.check},
    "/connect/intentions/exact": {
        "GET": mesh.get_exact,
        "PUT": mesh.put_exact,
        "DELETE": mesh.delete_exact,
    },
    "/connect/ca/roots": {"GET": mesh.server_roots},
    "/connect/ca/configuration": {
        "GET": config.get_ca_configuration,
        "PUT": config.put_ca_configuration,
    },
    "/config": {"PUT": config.put_config},
    "/config/{kind}": {"GET": config.config_list},
    "/config/{kind}/{name:path}": {"GET": config.config_entry, "DELETE": config.delete_config},
    "/agent/service/register": {"PUT": agent.register},
    "/agent/service/deregister/{id:path}": {"PUT": agent.deregister},
    "/agent/service/maintenance/{id:path}": {"PUT": agent.maintenance},
    "/agent/service/{id:path}": {"GET": agent.service},
    "/agent/services": {"GET": agent.services},
    "/agent/check/pass/{id:path}": {"PUT": agent.check_pass},
    "/agent/check/warn/{id:path}": {"PUT": agent.check_warn},
    "/agent/check/fail/{id:path}": {"PUT": agent.check_fail},
    "/agent/check/update/{id:path}": {"PUT": agent.check_update},
    "/agent/checks": {"GET": agent.checks},
    "/agent/self": {"GET": agent.agent_self},
    "/health/connect/{service:path}": {"GET": agent.health_connect},
    "/health/service/{service:path}": {"GET": agent.health_service},
    "/status/leader": {"GET": agent.leader},
}
"""Path below ``/v1`` -> method -> handler; order matters where one path contains another."""


class _Endpoint:
    """One path as an ASGI app: any method reaches it, and errors become text as Consul's do."""

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        self._handlers = handlers
        self._allow = {"Allow": ",".join(("OPTIONS", *handlers))}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            response = await self._answer(request)
        except RefusedError as error:
            response = text_response(error.text, error.status)
        response.headers["Vary"] = "Accept-Encoding"
        response.headers["X-Consul-Default-Acl-Policy"] = (
            request.app.state.store.default_action.value
        )
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        if request.method == "OPTIONS":
            return Response(headers=self._allow)
        handler = self._handlers.get(request.method)
        if handler is None:
            return text_response(f"method {request.method} not allowed", 405, self._allow)
        _same_datacenter(request)
        _no_filter(request)
        return await handler(request)


def _same_datacenter(request: Request) -> None:
    """Refuse what would have to be asked of servers elsewhere; there are none."""
    asked = request.query_params.get("datacenter") or request.query_params.get("dc")
    of_the_agent = request.url.path.startswith("/v1/agent/")
    if asked and asked != request.app.state.store.ca.datacenter and not of_the_agent:
        raise RefusedError(500, "No path to datacenter")


def _no_filter(request: Request) -> None:
    """Refuse what would be answered with rows that the caller does not want."""
    if request.query_params.get("filter"):
        raise RefusedError(400, "Bad request: the development agent evaluates no filters")


async def _unknown_path(_request: Request, _error: Exception) -> Response:
    return Response(status_code=404)


def create_app(store: Store) -> Starlette:
    """The API of an agent that knows what `store` knows."""
    app = Starlette(
        routes=[Route(f"/v1{path}", _Endpoint(handlers)) for path, handlers in ENDPOINTS.items()],
        middleware=[Middleware(Guard)],
        exception_handlers={404: _unknown_path},
    )
    app.router.redirect_slashes = False
    app.state.store = store
    return app

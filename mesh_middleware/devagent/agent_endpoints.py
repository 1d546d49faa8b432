"""Registration, checks, health, the agent itself.

Source: Consul /v1/agent, /v1/health, /v1/status.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from mesh_middleware.devagent import blocking, registration, schema
from mesh_middleware.devagent.responses import (
    body_of,
    empty_response,
    has_flag,
    json_of,
    json_response,
)
from mesh_middleware.devagent.schema import Entry, RefusedError
from mesh_middleware.devagent.store import Store

NODE = "mesh-dev-agent"
VERSION = "1.21.0"
"""The Consul whose API is imitated."""


def _store(request: Request) -> Store:
    store: Store = request.app.state.store
    return store


async def register(request: Request) -> Response:
    """PUT /v1/agent/service/register"""
    store = _store(request)
    document = await json_of(request)
    body = schema.read(document, schema.SERVICE, snake_case=True)
    service = registration.service_from(body, store.clock())
    replace = has_flag(request, "replace-existing-checks")
    store.catalog.register(service, replace_checks=replace)
    return empty_response()


async def deregister(request: Request) -> Response:
    """PUT /v1/agent/service/deregister/:id"""
    _store(request).catalog.deregister(request.path_params["id"])
    return empty_response()


async def maintenance(request: Request) -> Response:
    """PUT /v1/agent/service/maintenance/:id?enable=true&reason=…"""
    enable = request.query_params.get("enable")
    if not enable:
        raise RefusedError(400, "Missing value for enable")
    if enable not in ("true", "false"):
        raise RefusedError(400, f'Invalid value for enable: "{enable}"')
    _store(request).catalog.maintenance(
        request.path_params["id"],
        enable=enable == "true",
        reason=request.query_params.get("reason", ""),
    )
    return empty_response()


async def check_pass(request: Request) -> Response:
    """PUT /v1/agent/check/pass/:id?note=…"""
    return _noted(request, "passing")


async def check_warn(request: Request) -> Response:
    """PUT /v1/agent/check/warn/:id?note=…"""
    return _noted(request, "warning")


async def check_fail(request: Request) -> Response:
    """PUT /v1/agent/check/fail/:id?note=…"""
    return _noted(request, "critical")


def _noted(request: Request, status: str) -> Response:
    note = request.query_params.get("note", "")
    _store(request).catalog.update_check(request.path_params["id"], status, note)
    return empty_response()


async def check_update(request: Request) -> Response:
    """PUT /v1/agent/check/update/:id"""
    body = await body_of(request, schema.CHECK_UPDATE)
    check_id, status = request.path_params["id"], body.get("Status", "")
    _store(request).catalog.update_check(check_id, status, body.get("Output", ""))
    return empty_response()


async def checks(request: Request) -> Response:
    """GET /v1/agent/checks"""
    store = _store(request)
    with store.lock:
        found = {
            check.id: registration.check_document(service, check, node=NODE, in_catalog=False)
            for service, check in store.catalog.checks()
        }
    return json_response(found)


async def services(request: Request) -> Response:
    """GET /v1/agent/services"""
    found = _store(request).catalog.services
    return json_response({key: found[key].document for key in sorted(found)})


async def service(request: Request) -> Response:
    """GET /v1/agent/service/:id; ``?hash=`` waits until the content hash is another one"""
    store, service_id = _store(request), request.path_params["id"]
    query, wanted = blocking.Query.of(request), request.query_params.get("hash")

    def read() -> tuple[int, Any]:
        document = store.catalog.get(service_id).described()
        # For `blocking`, index 1 means what the caller has and 2 another one.
        return (1 if document["ContentHash"] == wanted else 2), document

    result = await blocking.blocking(
        store, blocking.Query(1 if wanted else 0, query.wait), read, jitter=False
    )
    headers = {"X-Consul-Contenthash": result.body["ContentHash"]}
    return json_response(result.body, headers=headers)


async def health_connect(request: Request) -> Response:
    """GET /v1/health/connect/:service"""
    return await _health(request, connect=True)


async def health_service(request: Request) -> Response:
    """GET /v1/health/service/:service"""
    return await _health(request, connect=False)


async def _health(request: Request, *, connect: bool) -> Response:
    store, name = _store(request), request.path_params["service"]
    if not name:
        raise RefusedError(400, "Missing service name")
    passing = has_flag(request, "passing")

    def read() -> tuple[int, Any]:
        with store.lock:
            found = [
                _health_row(each, store.ca.datacenter)
                for each in store.catalog.services.values()
                if name == (each.upstream_of if connect else each.name)
                and (each.status == "passing" or not passing)
            ]
            known = any(name in (s.name, s.upstream_of) for s in store.catalog.services.values())
            table = f"service:{name}" if known else "services"
            return store.changed(table), found

    response = await blocking.answer(request, read)
    response.headers["X-Consul-Effective-Consistency"] = "leader"
    return response


def _health_row(service: registration.Service, datacenter: str) -> Entry:
    document = {k: v for k, v in service.document.items() if k not in ("Proxy", "Connect")}
    indexes = {"CreateIndex": service.create_index, "ModifyIndex": service.modify_index}
    checks = [
        registration.check_document(service, check, node=NODE, in_catalog=True)
        for check in service.checks.values()
    ]
    return {
        "Node": {**_NODE_DOCUMENT, "Datacenter": datacenter},
        "Service": {
            **document,
            "Proxy": service.document.get("Proxy", {}),
            "Connect": service.document.get("Connect", {}),
            **indexes,
        },
        "Checks": [_SERF, *checks],
    }


_NODE_DOCUMENT = {
    "ID": "00000000-0000-4000-8000-000000000001",
    "Node": NODE,
    "Address": "127.0.0.1",
    "TaggedAddresses": dict.fromkeys(("lan", "lan_ipv4", "wan", "wan_ipv4"), "127.0.0.1"),
    "Meta": {"consul-network-segment": ""},
    "CreateIndex": 5,
    "ModifyIndex": 5,
}
_SERF = {
    "Node": NODE,
    "CheckID": "serfHealth",
    "Name": "Serf Health Status",
    "Status": "passing",
    "Notes": "",
    "Output": "Agent alive and reachable",
    "ServiceID": "",
    "ServiceName": "",
    "ServiceTags": [],
    "Type": "",
    "Definition": {},
    "CreateIndex": 5,
    "ModifyIndex": 5,
}


async def agent_self(request: Request) -> Response:
    """GET /v1/agent/self, as much of it as tells the version and the default action"""
    store = _store(request)
    policy = store.default_action.value
    return json_response(
        {
            "Config": {
                "Datacenter": store.ca.datacenter,
                "NodeName": NODE,
                "NodeID": _NODE_DOCUMENT["ID"],
                "Revision": "",
                "Server": True,
                "Version": VERSION,
                "VersionMetadata": "mesh-dev-agent",
            },
            "DebugConfig": {
                "ACLDefaultPolicy": policy,
                "ACLsEnabled": False,
                "ConnectEnabled": True,
                "DefaultIntentionPolicy": policy,
                "DevMode": True,
                "Version": VERSION,
            },
            "Member": {"Name": NODE, "Addr": "127.0.0.1", "Status": 1},
        }
    )


async def leader(_request: Request) -> Response:
    """GET /v1/status/leader"""
    return json_response("127.0.0.1:8300")

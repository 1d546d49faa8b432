"""Config entries and the CA's configuration.

Source: Consul /v1/config, /v1/connect/ca/configuration.
"""

from __future__ import annotations

from typing import Any

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from starlette.requests import Request
from starlette.responses import Response

from mesh_middleware.devagent import blocking, intentions, schema
from mesh_middleware.devagent.durations import seconds
from mesh_middleware.devagent.responses import empty_response, json_of, json_response, text_response
from mesh_middleware.devagent.schema import RefusedError
from mesh_middleware.devagent.store import Store


def _store(request: Request) -> Store:
    store: Store = request.app.state.store
    return store


async def config_entry(request: Request) -> Response:
    """GET /v1/config/:kind/:name"""
    store, (kind, name) = _store(request), _kind_and_name(request)

    def read() -> tuple[int, Any]:
        with store.lock:
            return store.changed("config"), store.config.get((kind, name))

    query = blocking.Query.of(request)
    result = await blocking.blocking(store, query, read)
    headers = blocking.server_headers(result.index)
    if result.body is None:
        text = f'Config entry not found for "{kind}" / "{name}"'
        return text_response(text, 404, headers)
    return json_response(result.body, headers=headers)


async def config_list(request: Request) -> Response:
    """GET /v1/config/:kind"""
    store, kind = _store(request), _kind(request)

    def read() -> tuple[int, Any]:
        with store.lock:
            found = [entry for (of, _), entry in sorted(store.config.items()) if of == kind]
            return store.changed("config"), found

    return await blocking.answer(request, read)


async def put_config(request: Request) -> Response:
    """PUT /v1/config, ``?cas=<ModifyIndex>``"""
    store, entry = _store(request), intentions.decode_entry(await json_of(request))
    expected = request.query_params.get("cas")
    with store.lock:
        now = store.config.get((entry["Kind"], entry["Name"]), {}).get("ModifyIndex", 0)
        if expected is not None and expected != str(now):
            return json_response(False)
        store.put_entry(entry)
    return json_response(True)


async def delete_config(request: Request) -> Response:
    """DELETE /v1/config/:kind/:name"""
    kind, name = _kind_and_name(request)
    _store(request).delete_entry(kind, name)
    return json_response({})


def _kind(request: Request) -> str:
    kind: str = request.path_params["kind"]
    if kind not in intentions.KINDS:
        raise RefusedError(400, f"invalid config entry kind: {kind}")
    return kind


def _kind_and_name(request: Request) -> tuple[str, str]:
    return _kind(request), request.path_params["name"]


async def get_ca_configuration(request: Request) -> Response:
    """GET /v1/connect/ca/configuration"""
    store = _store(request)
    index = store.changed("ca")
    return json_response(
        {
            "Provider": "consul",
            "Config": {
                "IntermediateCertTTL": "8760h",
                "LeafCertTTL": f"{store.ca.leaf_ttl_seconds:g}s",
                "RotationPeriod": "2160h",
            },
            "State": None,
            "ForceWithoutCrossSigning": False,
            "CreateIndex": 5,
            "ModifyIndex": max(5, index),
        }
    )


async def put_ca_configuration(request: Request) -> Response:
    """PUT /v1/connect/ca/configuration: another PrivateKey makes a new root

    The key itself is checked and then not used: the new root gets one of its own.
    """
    store = _store(request)
    body = schema.read(await json_of(request), schema.CA_CONFIGURATION)
    if body.get("Provider") != "consul":
        raise RefusedError(500, f'unknown CA provider "{body.get("Provider", "")}"')
    config = body.get("Config", {})
    key = config.get("PrivateKey") or ""
    if key:
        try:
            load_pem_private_key(str(key).encode(), None)
        except (ValueError, TypeError) as error:
            raise RefusedError(500, f"failed parsing private key: {error}") from None
    if "LeafCertTTL" in config:
        ttl = seconds(str(config["LeafCertTTL"]))
        if ttl <= 0:
            raise RefusedError(500, "leaf cert TTL must be greater than 0")
        store.ca.leaf_ttl_seconds = ttl
    with store.lock:
        store.write("ca")
        if key and key != store.ca_private_key:
            store.ca_private_key = key
            store.rotate()
    return empty_response()

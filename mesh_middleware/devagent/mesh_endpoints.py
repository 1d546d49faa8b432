"""Roots, leaf, authorize, intentions: what makes a mesh.

Source: Consul /v1/agent/connect and /v1/connect.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from mesh_middleware.devagent import blocking, intentions, schema, validate
from mesh_middleware.devagent.responses import (
    body_of,
    has_flag,
    json_response,
    required,
)
from mesh_middleware.devagent.schema import Entry, RefusedError
from mesh_middleware.devagent.store import Store
from mesh_middleware.errors import SpiffeIDError
from mesh_middleware.policy.intentions import Action
from mesh_middleware.policy.spiffe import DEFAULT, Kind, ServiceIdentity, SpiffeID


def _store(request: Request) -> Store:
    store: Store = request.app.state.store
    return store


async def agent_roots(request: Request) -> Response:
    """GET /v1/agent/connect/ca/roots"""
    return await blocking.cached_answer(request, lambda: _roots(_store(request)))


async def server_roots(request: Request) -> Response:
    """GET /v1/connect/ca/roots, ``?pem=true`` for the certificates alone"""
    store = _store(request)
    if not has_flag(request, "pem"):
        return await blocking.answer(request, lambda: _roots(store))
    pem = "".join(
        part
        for root in store.ca.roots()
        for part in (root["RootCert"], *(root["IntermediateCerts"] or ()))
    )
    return Response(pem, media_type="application/pem-certificate-chain")


def _roots(store: Store) -> tuple[int, Any]:
    with store.lock:
        store.notice_roots()
        return store.changed("roots"), store.ca.roots_document()


async def leaf(request: Request) -> Response:
    """GET /v1/agent/connect/ca/leaf/:service; with an index it waits for a new certificate"""
    store, service = _store(request), request.path_params["service"]
    had = False

    def read() -> tuple[int, Any]:
        nonlocal had
        issued, had = store.leaves.current(service)
        return issued.index, issued

    result = await blocking.blocking(store, blocking.Query.of(request), read, jitter=False)
    issued = result.body
    hit = had and not result.waited
    return json_response(
        issued.leaf.document(create_index=issued.index, modify_index=issued.index),
        headers={
            "X-Consul-Index": str(issued.index),
            **blocking.cache_headers(hit=hit, age=store.clock() - issued.issued),
        },
    )


async def authorize(request: Request) -> Response:
    """POST /v1/agent/connect/authorize: the connection-level decision"""
    store, body = _store(request), await body_of(request, schema.AUTHORIZE)
    if "Target" not in body:
        raise RefusedError(400, "Target service must be specified")
    caller = _caller(body.get("ClientCertURI", ""))
    # The open edition has no partitions: a caller from one is nobody that a row could name.
    namespace = caller.namespace if caller.partition == DEFAULT else ""
    row = store.first_match(caller.service, body["Target"], namespace=namespace)
    if row is None:
        allowed, reason = store.default_action is Action.ALLOW, "Default intention policy"
    else:
        allowed, reason = row.get("Action") == Action.ALLOW, _matched(row)
    return json_response(
        {"Authorized": allowed, "Reason": reason}, headers=blocking.cache_headers(hit=True)
    )


def _caller(uri: str) -> ServiceIdentity:
    try:
        spiffe_id = SpiffeID.from_string(uri)
    except SpiffeIDError:
        spiffe_id = None
    if spiffe_id is None or spiffe_id.kind is Kind.OTHER:
        raise RefusedError(400, "ClientCertURI not a valid Connect identifier")
    try:
        return ServiceIdentity.from_spiffe_id(spiffe_id)
    except SpiffeIDError:
        raise RefusedError(400, "ClientCertURI not a valid Service identifier") from None


def _matched(row: Entry) -> str:
    names = (
        f"{row['SourceNS']}/{row['SourceName']} => "
        f"{row['DestinationNS']}/{row['DestinationName']} (Precedence: {row['Precedence']}, "
    )
    if "Permissions" in row:
        return f"Matched L7 intention: {names}Permissions: {len(row['Permissions'])})"
    return f"Matched L4 intention: {names}Action: {row['Action'].upper()})"


async def match(request: Request) -> Response:
    """GET /v1/connect/intentions/match?by=destination&name=…"""
    store, by = _store(request), required(request, "by")
    if by not in ("source", "destination"):
        raise RefusedError(500, "'by' parameter must be one of 'source' or 'destination'")
    required(request, "name")
    names = {text: _name(text) for text in request.query_params.getlist("name")}

    def read() -> tuple[int, Any]:
        with store.lock:
            body = {text: store.rows(**{by: name}) or None for text, name in names.items()}
            return store.changed("config"), body

    if has_flag(request, "cached"):
        return await blocking.cached_answer(request, read)
    response = await blocking.answer(request, read)
    response.headers["X-Consul-Effective-Consistency"] = "leader"
    return response


def _name(text: str) -> str:
    *namespaces, name = text.split("/")
    if len(namespaces) > 1:
        raise RefusedError(500, f"name \"{text}\" is invalid: input can contain at most one '/'")
    if namespaces and namespaces[0] != DEFAULT:
        raise RefusedError(
            500,
            f'Invalid match entry namespace "{namespaces[0]}": '
            "Namespaces is a Consul Enterprise feature",
        )
    return name


async def check(request: Request) -> Response:
    """GET /v1/connect/intentions/check?source=…&destination=…"""
    store, source = _store(request), _name(required(request, "source"))
    row = store.first_match(source, _name(required(request, "destination")), namespace=DEFAULT)
    action = store.default_action if row is None else row.get("Action")
    return json_response({"Allowed": action == Action.ALLOW})


async def list_intentions(request: Request) -> Response:
    """GET /v1/connect/intentions"""
    store = _store(request)
    return await blocking.answer(request, lambda: (store.changed("config"), store.rows()))


async def get_exact(request: Request) -> Response:
    """GET /v1/connect/intentions/exact?source=…&destination=…"""
    source, destination = _exact(request)
    for row in _store(request).rows(destination=destination):
        both = (row["SourceName"], row["DestinationName"]) == (source, destination)
        if both and "SourcePeer" not in row:
            return json_response(row)
    raise RefusedError(404, "Intention not found")


async def put_exact(request: Request) -> Response:
    """PUT /v1/connect/intentions/exact?source=…&destination=…"""
    (source, destination), store = _exact(request), _store(request)
    body = await body_of(request, schema.INTENTION)
    if "Meta" in body:
        raise RefusedError(500, "Meta must not be specified; use a config entry")
    body |= {"SourceName": source, "DestinationName": destination}
    entry = intentions.entry_from_row(body)
    with store.lock:
        old = store.config.get((intentions.KIND, destination), {"Sources": []})
        kept = intentions.without_source(old, source)
        sources = [*(kept["Sources"] if kept else ()), *entry["Sources"]]
        store.put_entry(validate.service_intentions({**old, **entry, "Sources": sources}))
    return json_response(True)


async def delete_exact(request: Request) -> Response:
    """DELETE /v1/connect/intentions/exact?source=…&destination=…"""
    (source, destination), store = _exact(request), _store(request)
    with store.lock:
        entry = store.config.get((intentions.KIND, destination))
        if entry and (left := intentions.without_source(entry, source)) != entry:
            if left:
                store.put_entry(left)
            else:
                store.delete_entry(intentions.KIND, destination)
    return json_response(True)


def _exact(request: Request) -> tuple[str, str]:
    return _name(required(request, "source")), _name(required(request, "destination"))

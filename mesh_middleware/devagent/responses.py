"""Answers in the agent's form, and request bodies read as the agent reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from mesh_middleware.devagent import schema
from mesh_middleware.devagent.schema import Entry, RefusedError


def json_response(body: Any, *, headers: Mapping[str, str] | None = None) -> Response:
    """200 with compact JSON."""
    text = json.dumps(body, separators=(",", ":"), ensure_ascii=False)
    return Response(text, headers=headers, media_type="application/json")


def empty_response() -> Response:
    """200 without a body or a content type, as successful agent writes answer."""
    return Response()


def text_response(text: str, status: int, headers: Mapping[str, str] | None = None) -> Response:
    """An error: its text, and nothing else."""
    return Response(text, status, headers=headers, media_type="text/plain")


async def body_of(request: Request, fields: Mapping[str, Any]) -> Entry:
    """The request's JSON object, checked against a schema; RefusedError (400)."""
    return schema.read(await json_of(request), fields)


async def json_of(request: Request) -> Any:
    """The request's JSON value; RefusedError (400)."""
    data = await request.body()
    if not data.strip():
        raise RefusedError(400, "Request decode failed: EOF")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, f"Request decode failed: {error}") from None


def required(request: Request, name: str) -> str:
    """A query parameter; RefusedError (500, as Consul answers) without it."""
    value = request.query_params.get(name)
    if value is None:
        raise RefusedError(500, f"required query parameter '{name}' not set")
    return value


def has_flag(request: Request, name: str) -> bool:
    """A flag such as ``?passing``; ``?passing=false`` turns it off, as Consul reads it."""
    value = request.query_params.get(name)
    return value is not None and value.lower() not in ("false", "0", "f")

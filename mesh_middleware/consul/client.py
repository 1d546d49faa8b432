"""A Consul agent's HTTP API: one method for each endpoint, no retries, no interpretation.

Everything can raise these two, and they mean different things:

* `ConsulError`: there was no complete answer (`status` is None), or it was not a success.
* `DecodeError`: the agent answered with success, but what it sent cannot be read: no JSON, broken
  compression, more than `MAX_BODY` bytes.

Reading is on demand (`Answer.json`), since nobody needs the JSON of a body that did not change.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Callable, Mapping
from typing import Any, cast
from urllib.parse import quote

import httpx

from mesh_middleware._text import gist
from mesh_middleware.config import MeshConfig
from mesh_middleware.consul.answer import Answer, parse_index
from mesh_middleware.consul.body import ACCEPTED, read_body
from mesh_middleware.consul.connection import agent_transport, base_url
from mesh_middleware.consul.token import TokenSource
from mesh_middleware.errors import ConsulError, DecodeError

MAX_BODY = 64 * 2**20
"""Bytes of a body after decompression; 10,000 intentions take about 4 MiB."""

CONNECT_SECONDS = 5.0
MARGIN_SECONDS = 10.0
"""How much longer than the longest wait we listen: agents retry 7 s for a leader; and slack."""


class ConsulClient:
    """Talks to the agent that `config` names. Belongs to one event loop; close it there.

    `wait` is in seconds everywhere and always sent; None is `config.wait_seconds`. An `index` of 0
    never blocks. ConfigError when a TLS or token file cannot be used.
    """

    def __init__(
        self, config: MeshConfig, *, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._config = config
        self._token = TokenSource(config)
        self._scope = {
            key: value
            for key, value in (("ns", config.namespace), ("partition", config.partition))
            if value
        }
        self._dc = {"dc": config.datacenter} if config.datacenter else {}
        self._transport = agent_transport(config) if transport is None else transport
        self._http = httpx.AsyncClient(
            base_url=base_url(config),
            transport=self._transport,
            trust_env=False,
            follow_redirects=False,
            headers={
                "User-Agent": "mesh-middleware",
                "Accept": "application/json",
                "Accept-Encoding": ACCEPTED,
            },
        )

    def __repr__(self) -> str:
        return f"<ConsulClient {self._config.address}>"

    @property
    def address(self) -> str:
        """Where the agent is, as a URL."""
        return self._config.address

    def token_changed(self) -> bool:
        """Whether the token file changed since the last request."""
        return self._token.changed()

    def token_watch(self) -> Callable[[], bool]:
        """Says, each time it is called, whether there is a new token since the last call.

        Everybody who waits needs one: whoever asks first makes the file look unchanged.
        """
        seen = self._token.version

        def renewed() -> bool:
            nonlocal seen
            self._token.get()
            before, seen = seen, self._token.version
            return seen != before

        return renewed

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    # -- the mesh -----------------------------------------------------------------------------

    async def roots(self, index: int = 0, wait: float | None = None) -> Answer:
        """Consul: GET /v1/agent/connect/ca/roots."""
        return await self._watch("/v1/agent/connect/ca/roots", {}, index, wait)

    async def leaf(self, service: str, index: int = 0, wait: float | None = None) -> Answer:
        """Consul: GET /v1/agent/connect/ca/leaf/:service."""
        path = f"/v1/agent/connect/ca/leaf/{_segment(service)}"
        return await self._watch(path, {}, index, wait)

    async def match(
        self, service: str, index: int = 0, wait: float | None = None, cached: bool = False
    ) -> Answer:
        """Consul: GET /v1/connect/intentions/match, by destination."""
        query = {"by": "destination", "name": service, **self._dc}
        if cached:
            query["cached"] = ""
        return await self._watch("/v1/connect/intentions/match", query, index, wait)

    async def intentions(self, index: int = 0, wait: float | None = None) -> Answer:
        """Consul: GET /v1/connect/intentions."""
        return await self._watch("/v1/connect/intentions", dict(self._dc), index, wait)

    async def authorize(self, target: str, uri: str) -> Answer:
        """Consul: POST /v1/agent/connect/authorize."""
        body = {"Target": target, "ClientCertURI": uri}
        return await self._send("POST", "/v1/agent/connect/authorize", {}, body)

    async def config_entry(
        self, kind: str, name: str, index: int = 0, wait: float | None = None
    ) -> Answer:
        """Consul: GET /v1/config/:kind/:name."""
        path = f"/v1/config/{_segment(kind)}/{_segment(name)}"
        return await self._watch(path, dict(self._dc), index, wait)

    async def config_entries(
        self, kind: str, index: int = 0, wait: float | None = None, cached: bool = False
    ) -> Answer:
        """Consul: GET /v1/config/:kind, all entries of a kind."""
        query = {**self._dc, **({"cached": ""} if cached else {})}
        return await self._watch(f"/v1/config/{_segment(kind)}", query, index, wait)

    async def health_connect(
        self,
        service: str,
        index: int = 0,
        wait: float | None = None,
        passing: bool = True,
        where: Mapping[str, str] | None = None,
    ) -> Answer:
        """Consul: GET /v1/health/connect/:service. `where`: ``dc``, ``ns`` and so on, if others."""
        query = {**self._dc, **({"passing": ""} if passing else {}), **(where or {})}
        return await self._watch(f"/v1/health/connect/{_segment(service)}", query, index, wait)

    async def health_service(
        self, service: str, passing: bool = True, where: Mapping[str, str] | None = None
    ) -> Answer:
        """Consul: GET /v1/health/service/:service; whoever has the name, in the mesh or not."""
        query = {**self._dc, **({"passing": ""} if passing else {}), **(where or {})}
        return await self._send("GET", f"/v1/health/service/{_segment(service)}", query)

    # -- the local agent ----------------------------------------------------------------------

    async def agent_self(self) -> Answer:
        """Consul: GET /v1/agent/self."""
        return await self._send("GET", "/v1/agent/self")

    async def service(self, service_id: str) -> Answer:
        """Consul: GET /v1/agent/service/:id."""
        return await self._send("GET", f"/v1/agent/service/{_segment(service_id)}")

    async def register(self, body: Mapping[str, Any]) -> Answer:
        """Consul: PUT /v1/agent/service/register. Checks that are not in `body` are dropped."""
        query = {"replace-existing-checks": "true"}
        return await self._send("PUT", "/v1/agent/service/register", query, body)

    async def deregister(self, service_id: str) -> Answer:
        """Consul: PUT /v1/agent/service/deregister/:id."""
        return await self._send("PUT", f"/v1/agent/service/deregister/{_segment(service_id)}")

    async def update_check(self, check_id: str, status: str, output: str = "") -> Answer:
        """Consul: PUT /v1/agent/check/update/:id. `status`: passing, warning or critical."""
        body = {"Status": status, "Output": output}
        return await self._send("PUT", f"/v1/agent/check/update/{_segment(check_id)}", {}, body)

    # -- requests -----------------------------------------------------------------------------

    async def _watch(
        self, path: str, query: dict[str, str], index: int, wait: float | None
    ) -> Answer:
        wait = self._config.wait_seconds if wait is None else wait
        query["wait"] = f"{max(1, round(wait * 1000))}ms"
        if index:
            query["index"] = str(index)
        return await self._send("GET", path, query, wait=wait)

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        *,
        wait: float = 0.0,
    ) -> Answer:
        limit = wait + wait / 16 + MARGIN_SECONDS  # servers add a jitter of wait/16
        try:
            request = self._http.build_request(
                method,
                path,
                params={**self._scope, **(query or {})},
                json=body,
                headers=self._headers(),
                timeout=httpx.Timeout(limit, connect=CONNECT_SECONDS),
                extensions=self._extensions(),
            )
            # httpx's own limit is for each read: an agent that trickles would never end
            async with asyncio.timeout(limit + CONNECT_SECONDS):
                return await self._receive(request)
        except TimeoutError as error:
            raise ConsulError(f"{path}: no complete answer within {limit:.0f} s") from error
        except (httpx.HTTPError, UnicodeError) as error:  # the host may begin with xn--
            raise ConsulError(f"{path}: {_cause(error)}") from error

    async def _receive(self, request: httpx.Request) -> Answer:
        # Not by the client, which logs each request at INFO: the application's log would be full
        # of blocking queries and health checks.
        response = await self._transport.handle_async_request(request)
        path = request.url.path
        try:
            stream = cast("httpx.AsyncByteStream", response.stream)
            encoding = response.headers.get("content-encoding", "")
            body = await read_body(stream.__aiter__(), encoding, MAX_BODY, path)
        except DecodeError:
            # An error that cannot be read is still an error of the agent: the last state stays.
            if response.is_success:
                raise
            body = b""
        finally:
            await response.aclose()
        if not response.is_success:
            text = _without_token(body, request)[:500].decode("utf-8", "replace").strip()
            raise ConsulError(
                f"{path}: status {response.status_code}: {gist(text)}",
                status=response.status_code,
                body=text,
            )
        headers = {key.lower(): value for key, value in response.headers.items()}
        index = parse_index(headers.get("x-consul-index"))
        return Answer(response.status_code, body, index, headers)

    def _headers(self) -> dict[str, str]:
        token = self._token.get()
        return {} if token is None else {"X-Consul-Token": token}

    def _extensions(self) -> dict[str, Any]:
        name = self._config.tls_server_name
        return {"sni_hostname": name} if name else {}


__all__ = ["Answer", "ConsulClient"]


def _segment(text: str) -> str:
    return quote(text, safe="")


def _cause(error: Exception) -> str:
    """The innermost words: httpx's own say only that all attempts failed."""
    found: BaseException = error
    words = str(error)
    while (inner := found.__cause__ or found.__context__) is not None:
        found = inner
        if isinstance(found, ssl.SSLError):  # its number is none of the system's
            words = f"{found.reason or found} (does the agent speak TLS there?)"
        elif isinstance(found, OSError) and found.errno and found.errno > 0:
            words = os.strerror(found.errno)
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def _without_token(body: bytes, request: httpx.Request) -> bytes:
    """`body` as it may be logged: an error page may repeat the headers of its request."""
    token = request.headers.get("X-Consul-Token")
    return body.replace(token.encode("ascii"), b"(token)") if token else body

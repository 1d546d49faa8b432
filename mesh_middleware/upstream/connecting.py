"""Connections to services that do not speak HTTP."""

from __future__ import annotations

import asyncio
import ssl
import weakref

from mesh_middleware import runtime
from mesh_middleware.errors import MeshError
from mesh_middleware.state import StateSource
from mesh_middleware.tls.contexts import MeshContext, TLSContexts
from mesh_middleware.upstream.balance import Balancer
from mesh_middleware.upstream.calls import Attempts, contexts_within
from mesh_middleware.upstream.catalog import resolver_for
from mesh_middleware.upstream.endpoints import Endpoint
from mesh_middleware.upstream.names import UpstreamName
from mesh_middleware.upstream.resolver import Resolver

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

_balancers: weakref.WeakKeyDictionary[Resolver, Balancer] = weakref.WeakKeyDictionary()


async def open_mesh_connection(
    mesh: StateSource | str,
    upstream: UpstreamName | str,
    *,
    resolver: Resolver | None = None,
    timeout: float = 10.0,  # noqa: ASYNC109 - as in asyncio's own streams, callers expect one
    attempts: int = 3,
    alpn: tuple[str, ...] = (),
    limit: int = 2**16,
) -> Streams:
    """A TLS connection to an instance of `upstream`, whose identity is proven when this returns.

    `mesh`: a started manager, or the name of the calling service. `upstream`: a name as in URLs
    (``"redis"``, ``"redis.service.dc2.consul"``), or an `UpstreamName`. `timeout`: seconds for
    everything: certificate, finding, connecting. `attempts`: most instances that are tried.
    `limit`: as in `asyncio.open_connection`.

    ConnectionError says what was looked for, what is registered and what failed; TimeoutError that
    the time is over; ConfigError that `upstream` is no name.
    """
    source = runtime.manager_for(mesh) if isinstance(mesh, str) else mesh
    name = _name(upstream)
    found = resolver or resolver_for(source)
    course = Attempts(name, timeout)
    try:
        async with asyncio.timeout(timeout):
            return await _open(source, found, course, attempts=attempts, alpn=alpn, limit=limit)
    except TimeoutError as error:
        tried = "; ".join(course.failures)
        words = str(error) or tried or "no answer"
        raise TimeoutError(f"upstream {name}: not connected within {timeout} s: {words}") from error
    except MeshError as error:
        raise ConnectionError(str(error)) from error


async def _open(
    mesh: StateSource,
    resolver: Resolver,
    course: Attempts,
    *,
    attempts: int,
    alpn: tuple[str, ...],
    limit: int,
) -> Streams:
    if mesh.state.contexts is None:
        await asyncio.to_thread(contexts_within, mesh, course.left)
    endpoints = resolver.known(course.name)
    if endpoints is None:
        endpoints = await asyncio.to_thread(resolver.wait, course.name, course.left)
    balancer = _balancers.setdefault(resolver, Balancer())
    while len(course.tried) < attempts:
        endpoint = balancer.pick(endpoints, course.tried)
        if endpoint is None:
            break
        try:
            async with asyncio.timeout(course.share(endpoints, attempts)):
                streams = await _dial(contexts_within(mesh, 0), endpoint, alpn, limit)
        except (OSError, ssl.SSLError, TimeoutError) as error:
            course.failed(endpoint, error)
            balancer.failed(endpoint)
        else:
            balancer.connected(endpoint)
            return streams
        finally:
            balancer.done(endpoint)
    raise ConnectionError(course.unreachable(endpoints))


async def _dial(
    contexts: TLSContexts, endpoint: Endpoint, alpn: tuple[str, ...], limit: int
) -> Streams:
    trust_domain = contexts.svid.identity.trust_domain
    identity = endpoint.identity(trust_domain)
    return await asyncio.open_connection(
        endpoint.host,
        endpoint.port,
        ssl=MeshContext.for_client(lambda: contexts, identity, alpn=alpn),
        server_hostname=endpoint.server_name(trust_domain),
        limit=limit,
    )


def _name(upstream: UpstreamName | str) -> UpstreamName:
    if isinstance(upstream, UpstreamName):
        return upstream
    return UpstreamName.from_host(upstream) if "." in upstream else UpstreamName(upstream)

"""One request to a service of the mesh, made by hand: what ``mesh-middleware call`` does.

The leaf and the roots come from the agent for this one request. The server must prove a service
of our trust domain, and the expected one where there is an expectation. The request target goes
out exactly as written: rules about paths are tried with odd paths.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

import httpx

from mesh_middleware.config import MeshConfig
from mesh_middleware.consul.client import ConsulClient
from mesh_middleware.consul.decode import decode_leaf, decode_roots
from mesh_middleware.consul.decode_health import decode_health
from mesh_middleware.errors import ConfigError, MeshError
from mesh_middleware.policy.spiffe import ServiceIdentity, SpiffeID
from mesh_middleware.tls.certificates import X509SVID, TrustBundle
from mesh_middleware.tls.contexts import MeshContext, TLSContexts, verified_peer
from mesh_middleware.tls.handshake import Judge, JudgingContext
from mesh_middleware.tls.keys import load_svid
from mesh_middleware.upstream.catalog import usable_endpoints
from mesh_middleware.upstream.endpoints import Endpoint
from mesh_middleware.upstream.names import UpstreamName
from mesh_middleware.upstream.resolver import refuse_peer


class CallError(MeshError):
    """The request got no HTTP answer."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request. `headers` as written; `connect_to`: host and port in the place of the URL's.

    `expect`: the service that must answer, by name (of our namespace and datacenter) or SPIFFE ID;
    None takes it from the service that the URL's host names, else any service of our trust domain
    will do.
    """

    url: str
    method: str = "GET"
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None
    expect: str | None = None
    connect_to: tuple[str, int] | None = None
    timeout_seconds: float = 30.0

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            _ = parts.port
        except ValueError as error:
            raise ConfigError(f"{self.url!r} is no URL: {error}") from error
        if parts.scheme != "https" or not parts.hostname:
            raise ConfigError(
                f"{self.url!r}: the mesh speaks https; write https://127.0.0.1:8443/path or "
                "https://web.service.consul/path"
            )

    @property
    def authority(self) -> str:
        """Host and port as written."""
        return urlsplit(self.url).netloc.rpartition("@")[2]

    @property
    def target(self) -> bytes:
        """Path and query as written, without the fragment."""
        rest = self.url.split("://", 1)[1]
        start = min((i for i in (rest.find("/"), rest.find("?")) if i >= 0), default=len(rest))
        target = rest[start:].partition("#")[0]
        return (target if target.startswith("/") else "/" + target).encode("utf-8")

    @property
    def upstream(self) -> UpstreamName | None:
        """The service that the URL's host names, in any form that `UpstreamName` knows.

        A single word does so only without a port: with one it is a host of the network.
        """
        parts = urlsplit(self.url)
        host = parts.hostname or ""
        if host == "localhost" or ("." not in host and parts.port is not None):
            return None
        try:
            return UpstreamName.from_host(host)
        except ConfigError:
            return None


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer. `server`: who proved to have sent it; `certificate`: with what (DER)."""

    status: int
    reason: str
    http_version: str
    headers: Sequence[tuple[str, str]]
    body: bytes
    server: ServiceIdentity | SpiffeID
    certificate: bytes


async def call_once(config: MeshConfig, call: Call) -> Reply:
    """Make `call` as ``config.service``.

    ConsulError, DecodeError: the agent. `CallError`: no answer, or a server that is somebody else.
    """
    client = ConsulClient(config)
    try:
        bundle = decode_roots((await client.roots()).json)
        svid = decode_leaf((await client.leaf(config.service)).json)
        expected, name = _expected(call, svid.identity), call.upstream
        if name is not None and call.connect_to is None:
            endpoint = await _endpoint(client, name)
            call = replace(call, connect_to=(endpoint.host, endpoint.port))
            if call.expect is None:
                expected = endpoint.identity(bundle.trust_domain)
    finally:
        await client.aclose()
    return _send(call, client_context(svid, bundle, expected))


def expected_identity(text: str, ours: ServiceIdentity) -> ServiceIdentity:
    """`text` as an identity: a SPIFFE ID, or the name of a service next to `ours`."""
    if text.startswith("spiffe://"):
        return ServiceIdentity.from_string(text)
    return replace(ours, service=text)


def client_context(
    svid: X509SVID, bundle: TrustBundle, expected: ServiceIdentity | None
) -> ssl.SSLContext:
    """A client context for `expected`; None takes any service of our trust domain."""
    if expected is not None:
        contexts = TLSContexts(svid, bundle, generation=1)
        return MeshContext.for_client(lambda: contexts, expected)
    context = JudgingContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # the judge looks at the URI, no other name is in there
    context.verify_mode = ssl.CERT_REQUIRED
    load_svid(context, svid)
    context.load_verify_locations(cadata=bundle.der())
    context.mesh_judge = Judge(bundle, 1)
    return context


def _expected(call: Call, ours: ServiceIdentity) -> ServiceIdentity | None:
    """Who must answer, as far as `call` says it; what it leaves open is as in `ours`."""
    name = call.upstream
    if call.expect is not None or name is None:
        return None if call.expect is None else expected_identity(call.expect, ours)
    return replace(
        ours,
        service=name.service,
        namespace=name.namespace or ours.namespace,
        partition=name.partition or ours.partition,
        datacenter=name.datacenter or ours.datacenter,
    )


async def _endpoint(client: ConsulClient, name: UpstreamName) -> Endpoint:
    """A healthy instance of `name` in the catalogue."""
    refuse_peer(name)
    where = {"dc": name.datacenter, "ns": name.namespace, "partition": name.partition}
    answer = await client.health_connect(
        name.service, where={key: value for key, value in where.items() if value}
    )
    found = usable_endpoints(decode_health(answer.json), name)
    if not found:
        raise CallError(
            f"the agent knows no healthy instance of {name}; "
            "is it registered and passing? --connect-to HOST:PORT goes without the catalogue"
        )
    return found[0]


def _send(call: Call, context: ssl.SSLContext) -> Reply:
    parts = urlsplit(call.url)
    host, port = call.connect_to or (parts.hostname or "", parts.port or 443)
    url = f"https://[{host}]:{port}/" if ":" in host else f"https://{host}:{port}/"
    headers = list(call.headers)
    if not any(name.lower() == "host" for name, _ in headers):
        headers.insert(0, ("host", call.authority))
    with (
        _translated(f"{host}:{port}"),
        httpx.Client(verify=context, trust_env=False, timeout=call.timeout_seconds) as client,
        client.stream(
            call.method, url, headers=headers, content=call.body, extensions={"target": call.target}
        ) as response,
    ):
        # httpcore's "ssl_object" would be the one beneath Python's socket, which knows no peer
        peer = verified_peer(response.extensions["network_stream"].get_extra_info("socket"))
        if peer is None:
            raise CallError(f"{host}:{port}: the server proved no identity")
        return Reply(
            response.status_code,
            response.reason_phrase,
            response.http_version,
            [(k.decode("latin-1"), v.decode("latin-1")) for k, v in response.headers.raw],
            b"".join(response.iter_raw()),
            peer.certificate.identity,
            peer.certificate.der,
        )


@contextmanager
def _translated(where: str) -> Iterator[None]:
    """httpx's errors as ours, with the likely cause."""
    try:
        yield
    except httpx.InvalidURL as error:
        raise CallError(f"{where}: {error}") from error
    except (httpx.ReadError, httpx.RemoteProtocolError) as error:
        # in TLS 1.3 a server judges the client after the client's handshake is done
        raise CallError(
            f"{where}: the server closed the connection ({error or 'no answer'}); it may not trust "
            "our certificate, or not speak HTTP"
        ) from error
    except httpx.HTTPError as error:
        raise CallError(f"{where}: {error or type(error).__name__}") from error

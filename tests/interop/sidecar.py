"""A real Envoy as a sidecar: a public listener with mTLS and RBAC, and an upstream with mTLS."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx

from mesh_middleware.devagent.ca import CertificateAuthority
from tests.interop.sds import Secrets
from tests.servers.envoy import require_envoy
from tests.support import free_port, wait_for

_TYPE = "type.googleapis.com/envoy.extensions"

_POOLS: dict[str, dict[str, Any]] = {
    "fresh": {"max_requests_per_connection": 1},
    # Envoy has an hour: the server closes first, after 5 s, and a request may just then be sent.
    "kept": {"idle_timeout": "1s"},
}


@contextlib.contextmanager
def envoy(
    config: dict[str, Any], folder: Path, port: int, *, admin: int | None = None
) -> Iterator[None]:
    """An Envoy with `config` that listens on `port`; it tells its counters on `admin`."""
    file, log = folder / "envoy.json", folder / "envoy.log"
    bootstrap: dict[str, Any] = {
        "node": {"id": "sidecar", "cluster": "sidecars"},  # secrets are not asked for without
        "static_resources": config,
    }
    if admin is not None:
        bootstrap["admin"] = {"address": _address(admin)}
    file.write_text(json.dumps(bootstrap))
    command = [require_envoy(), "--config-path", str(file), "--concurrency", "1"]
    command += ["--disable-hot-restart", "--log-level", "warning", "--log-path", str(log)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(lambda: process.poll() is not None or _listens(port), timeout=30)
            assert process.poll() is None, log.read_text()[-3000:]
            yield
        finally:
            process.terminate()
            process.wait(20)


@contextlib.contextmanager
def inbound(
    ca: CertificateAuthority,
    backend: int,
    folder: Path,
    *,
    allowed: str,
    secrets: Secrets | None = None,
) -> Iterator[int]:
    """The public listener of a sidecar of billing in front of `backend`; its port.

    Only the service `allowed` may call, by RBAC on the certificate's URI. `secrets`: for who wants
    to renew them.
    """
    port = free_port()
    uri = f"spiffe://{ca.trust_domain}/ns/default/dc/dc1/svc/{allowed}"
    rules = {
        "action": "ALLOW",
        "policies": {
            "callers": {
                "permissions": [{"any": True}],
                "principals": [{"authenticated": {"principal_name": {"exact": uri}}}],
            }
        },
    }
    manager = _manager(
        {"/": "backend"},
        [
            {
                "name": "envoy.filters.http.rbac",
                "typed_config": {
                    "@type": f"{_TYPE}.filters.http.rbac.v3.RBAC",
                    "rules": rules,
                },
            }
        ],
    )
    tls = {
        "@type": f"{_TYPE}.transport_sockets.tls.v3.DownstreamTlsContext",
        "require_client_certificate": True,
        "common_tls_context": {
            **(secrets or Secrets(ca, "billing", folder)).common_tls([]),
            "alpn_protocols": ["h2", "http/1.1"],
        },
    }
    chain = {
        "filters": [manager],
        "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": tls},
    }
    config = {
        "listeners": [{"name": "public", "address": _address(port), "filter_chains": [chain]}],
        "clusters": [_cluster("backend", backend)],
    }
    with envoy(config, folder, port):
        yield port


@contextlib.contextmanager
def outbound(
    ca: CertificateAuthority,
    server: int,
    folder: Path,
    *,
    caller: str = "web",
    http2: bool = False,
    routes: Mapping[str, str] = MappingProxyType({"/": "fresh"}),
    secrets: Secrets | None = None,
    admin: int | None = None,
) -> Iterator[int]:
    """The upstream listener of a sidecar of `caller` for billing at `server`; its plain port.

    `routes`: by prefix of the path, in this order, ``fresh`` for a connection to each request, so
    that every one is a handshake or a resumption, or ``kept`` for Envoy's own pool. `secrets`: for
    who wants to renew them. `admin`: the port of Envoy's counters.
    """
    port = free_port()
    uri = f"spiffe://{ca.trust_domain}/ns/default/dc/dc1/svc/billing"
    sans = [{"san_type": "URI", "matcher": {"exact": uri}}]
    tls = {
        "@type": f"{_TYPE}.transport_sockets.tls.v3.UpstreamTlsContext",
        "sni": f"billing.default.dc1.internal.{ca.trust_domain}",
        "common_tls_context": (secrets or Secrets(ca, caller, folder)).common_tls(sans),
    }
    clusters = [
        {
            **_cluster(name, server),
            "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": tls},
            "typed_extension_protocol_options": _protocol(common, http2=http2),
        }
        for name, common in _POOLS.items()
    ]
    listener = {
        "name": "upstream",
        "address": _address(port),
        "filter_chains": [{"filters": [_manager(routes, [])]}],
    }
    with envoy({"listeners": [listener], "clusters": clusters}, folder, port, admin=admin):
        yield port


def _protocol(common: dict[str, Any], *, http2: bool) -> dict[str, Any]:
    options: dict[str, Any] = {"http2_protocol_options": {}} if http2 else {}
    return {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": f"{_TYPE}.upstreams.http.v3.HttpProtocolOptions",
            "common_http_protocol_options": common,
            "explicit_http_config": options or {"http_protocol_options": {}},
        }
    }


def _manager(routes: Mapping[str, str], filters: list[dict[str, Any]]) -> dict[str, Any]:
    router = {
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": f"{_TYPE}.filters.http.router.v3.Router"},
    }
    host = {
        "name": "all",
        "domains": ["*"],
        "routes": [
            {"match": {"prefix": prefix}, "route": {"cluster": cluster}}
            for prefix, cluster in routes.items()
        ],
    }
    return {
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": f"{_TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "http",
            "route_config": {"name": "all", "virtual_hosts": [host]},
            "upgrade_configs": [{"upgrade_type": "websocket"}],
            "http_filters": [*filters, router],
        },
    }


def _cluster(name: str, port: int) -> dict[str, Any]:
    endpoint = {"endpoint": {"address": _address(port)}}
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "2s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [endpoint]}],
        },
    }


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def counters(admin: int) -> Counter[str]:
    """What the clusters of an Envoy have counted, all of them together (`outbound`)."""
    answer = httpx.get(f"http://127.0.0.1:{admin}/stats?filter=^cluster", trust_env=False)
    found: Counter[str] = Counter()
    for line in answer.text.splitlines():
        name, _, value = line.partition(": ")
        if value.isdigit():
            found[name.split(".", 2)[-1]] += int(value)
    return found


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False

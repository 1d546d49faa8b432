"""A real Envoy as a sidecar: a public listener with mTLS and RBAC, and an upstream with mTLS."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mesh_middleware.devagent.ca import CertificateAuthority
from tests.servers.envoy import require_envoy
from tests.support import free_port, wait_for

_TYPE = "type.googleapis.com/envoy.extensions"


@contextlib.contextmanager
def envoy(config: dict[str, Any], folder: Path, port: int) -> Iterator[None]:
    """An Envoy with `config` that listens on `port`."""
    file, log = folder / "envoy.json", folder / "envoy.log"
    file.write_text(json.dumps({"static_resources": config}))
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
def inbound(ca: CertificateAuthority, backend: int, folder: Path, *, allowed: str) -> Iterator[int]:
    """The public listener of a sidecar of billing in front of `backend`; its port.

    Only the service `allowed` may call, by RBAC on the certificate's URI.
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
        "backend",
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
            **_common_tls(ca, "billing", []),
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
    ca: CertificateAuthority, server: int, folder: Path, *, caller: str = "web", http2: bool = False
) -> Iterator[int]:
    """The upstream listener of a sidecar of `caller` for billing at `server`; its plain port."""
    port = free_port()
    uri = f"spiffe://{ca.trust_domain}/ns/default/dc/dc1/svc/billing"
    sans = [{"san_type": "URI", "matcher": {"exact": uri}}]
    tls = {
        "@type": f"{_TYPE}.transport_sockets.tls.v3.UpstreamTlsContext",
        "sni": f"billing.default.dc1.internal.{ca.trust_domain}",
        "common_tls_context": _common_tls(ca, caller, sans),
    }
    cluster = _cluster("billing", server)
    cluster["transport_socket"] = {"name": "envoy.transport_sockets.tls", "typed_config": tls}
    # one request for each connection: every one of them is a handshake, or a resumption
    options: dict[str, Any] = {"common_http_protocol_options": {"max_requests_per_connection": 1}}
    options["explicit_http_config"] = (
        {"http2_protocol_options": {}} if http2 else {"http_protocol_options": {}}
    )
    cluster["typed_extension_protocol_options"] = {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": f"{_TYPE}.upstreams.http.v3.HttpProtocolOptions",
            **options,
        }
    }
    listener = {
        "name": "upstream",
        "address": _address(port),
        "filter_chains": [{"filters": [_manager("billing", [])]}],
    }
    with envoy({"listeners": [listener], "clusters": [cluster]}, folder, port):
        yield port


def _common_tls(
    ca: CertificateAuthority, service: str, sans: list[dict[str, Any]]
) -> dict[str, Any]:
    leaf = ca.issue(service)
    validation: dict[str, Any] = {
        "trusted_ca": {"inline_string": "".join(root["RootCert"] for root in ca.roots())}
    }
    if sans:
        validation["match_typed_subject_alt_names"] = sans
    return {
        "tls_certificates": [
            {
                "certificate_chain": {"inline_string": leaf.cert_pem},
                "private_key": {"inline_string": leaf.key_pem},
            }
        ],
        "validation_context": validation,
    }


def _manager(cluster: str, filters: list[dict[str, Any]]) -> dict[str, Any]:
    router = {
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": f"{_TYPE}.filters.http.router.v3.Router"},
    }
    host = {
        "name": cluster,
        "domains": ["*"],
        "routes": [{"match": {"prefix": "/"}, "route": {"cluster": cluster}}],
    }
    return {
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": f"{_TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": cluster,
            "route_config": {"name": cluster, "virtual_hosts": [host]},
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


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False

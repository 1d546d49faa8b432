"""A real Envoy as the mesh gateway by which the services of a peered cluster call ours.

Its listener takes certificates of the peer, its upstream shows that of a gateway of ours, and
``x-forwarded-client-cert`` says who called, as Consul has gateways write it: what the caller sent
under that name is thrown away (SANITIZE_SET).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mesh_middleware.devagent.ca import CertificateAuthority, Leaf
from tests.interop.sidecar import _TYPE, _address, _cluster, _manager, envoy
from tests.support import free_port


def gateway_leaf(ca: CertificateAuthority) -> Leaf:
    """The certificate of a mesh gateway of `ca`'s cluster."""
    return ca.issue_raw([f"spiffe://{ca.trust_domain}/gateway/mesh/dc/dc1"])


@contextlib.contextmanager
def gateway(
    ours: CertificateAuthority, peer: CertificateAuthority, server: int, folder: Path
) -> Iterator[int]:
    """A gateway of `ours` in front of `server`, for callers of `peer`; its port."""
    port = free_port()
    leaf = gateway_leaf(ours)
    manager = _manager({"/": "server"}, [])
    manager["typed_config"] |= {
        "forward_client_cert_details": "SANITIZE_SET",
        "set_current_client_cert_details": {
            "subject": True,
            "cert": True,
            "chain": True,
            "dns": True,
            "uri": True,
        },
    }
    inbound = {
        "@type": f"{_TYPE}.transport_sockets.tls.v3.DownstreamTlsContext",
        "require_client_certificate": True,
        "common_tls_context": _tls(leaf, peer),
    }
    cluster = _cluster("server", server)
    cluster["transport_socket"] = {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": f"{_TYPE}.transport_sockets.tls.v3.UpstreamTlsContext",
            "common_tls_context": _tls(leaf, ours),
        },
    }
    listener = {
        "name": "public",
        "address": _address(port),
        "filter_chains": [
            {
                "filters": [manager],
                "transport_socket": {
                    "name": "envoy.transport_sockets.tls",
                    "typed_config": inbound,
                },
            }
        ],
    }
    with envoy({"listeners": [listener], "clusters": [cluster]}, folder, port):
        yield port


def _tls(leaf: Leaf, trusted: CertificateAuthority) -> dict[str, Any]:
    roots = "".join(root["RootCert"] for root in trusted.roots())
    return {
        "tls_certificates": [
            {
                "certificate_chain": {"inline_string": leaf.cert_pem},
                "private_key": {"inline_string": leaf.key_pem},
            }
        ],
        "validation_context": {"trusted_ca": {"inline_string": roots}},
    }

"""Native Consul service mesh for Python: mTLS and layer-7 intentions without a sidecar.

The public names are imported on first use: `import mesh_middleware` alone costs nothing, and a
program that only decides requests never loads a TLS or HTTP library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mesh_middleware.config import MeshConfig
    from mesh_middleware.consul.manager import MeshManager
    from mesh_middleware.errors import (
        ConfigError,
        ConsulError,
        DecodeError,
        MeshError,
        NotReadyError,
        PeerIdentityError,
        SpiffeIDError,
    )
    from mesh_middleware.middleware.asgi import MeshMiddleware
    from mesh_middleware.middleware.audit import AuditRule
    from mesh_middleware.middleware.peer import decision_of, peer_identity
    from mesh_middleware.middleware.wsgi import MeshWSGIMiddleware
    from mesh_middleware.policy.decision import Decision, Reason
    from mesh_middleware.policy.engine import Policy, compile_policy
    from mesh_middleware.policy.intentions import (
        Action,
        HeaderMatch,
        HTTPMatch,
        Intention,
        Permission,
    )
    from mesh_middleware.policy.request import HTTPRequest
    from mesh_middleware.policy.spiffe import ServiceIdentity, SpiffeID, TrustDomain
    from mesh_middleware.server.launcher import run, serve
    from mesh_middleware.state import MeshState, StateSource, StaticState
    from mesh_middleware.upstream.connecting import open_mesh_connection
    from mesh_middleware.upstream.names import UpstreamName
    from mesh_middleware.upstream.resolver import StaticResolver
    from mesh_middleware.upstream.streams import connection_peer, start_mesh_server
    from mesh_middleware.upstream.transport import AsyncMeshTransport, MeshTransport

__all__ = [
    "Action",
    "AsyncMeshTransport",
    "AuditRule",
    "ConfigError",
    "ConsulError",
    "Decision",
    "DecodeError",
    "HTTPMatch",
    "HTTPRequest",
    "HeaderMatch",
    "Intention",
    "MeshConfig",
    "MeshError",
    "MeshManager",
    "MeshMiddleware",
    "MeshState",
    "MeshTransport",
    "MeshWSGIMiddleware",
    "NotReadyError",
    "PeerIdentityError",
    "Permission",
    "Policy",
    "Reason",
    "ServiceIdentity",
    "SpiffeID",
    "SpiffeIDError",
    "StateSource",
    "StaticResolver",
    "StaticState",
    "TrustDomain",
    "UpstreamName",
    "compile_policy",
    "connection_peer",
    "decision_of",
    "open_mesh_connection",
    "peer_identity",
    "run",
    "serve",
    "start_mesh_server",
]

_HOMES = {
    "config": ("MeshConfig",),
    "consul.manager": ("MeshManager",),
    "errors": (
        "ConfigError",
        "ConsulError",
        "DecodeError",
        "MeshError",
        "NotReadyError",
        "PeerIdentityError",
        "SpiffeIDError",
    ),
    "middleware.asgi": ("MeshMiddleware",),
    "middleware.audit": ("AuditRule",),
    "middleware.peer": ("decision_of", "peer_identity"),
    "middleware.wsgi": ("MeshWSGIMiddleware",),
    "policy.decision": ("Decision", "Reason"),
    "policy.engine": ("Policy", "compile_policy"),
    "policy.intentions": ("Action", "HTTPMatch", "HeaderMatch", "Intention", "Permission"),
    "policy.request": ("HTTPRequest",),
    "policy.spiffe": ("ServiceIdentity", "SpiffeID", "TrustDomain"),
    "server.launcher": ("run", "serve"),
    "state": ("MeshState", "StateSource", "StaticState"),
    "upstream.connecting": ("open_mesh_connection",),
    "upstream.names": ("UpstreamName",),
    "upstream.resolver": ("StaticResolver",),
    "upstream.streams": ("connection_peer", "start_mesh_server"),
    "upstream.transport": ("AsyncMeshTransport", "MeshTransport"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import the module that a public name lives in (PEP 562)."""
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{home}"), name)
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))

"""Native Consul service mesh for Python: mTLS and layer-7 intentions without a sidecar.

The public names are imported on first use: `import mesh_middleware` alone costs nothing, and a
program that only decides requests never loads a TLS or HTTP library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mesh_middleware.config import MeshConfig as MeshConfig
    from mesh_middleware.consul.manager import MeshManager as MeshManager
    from mesh_middleware.errors import ConfigError as ConfigError
    from mesh_middleware.errors import ConsulError as ConsulError
    from mesh_middleware.errors import DecodeError as DecodeError
    from mesh_middleware.errors import MeshError as MeshError
    from mesh_middleware.errors import NotReadyError as NotReadyError
    from mesh_middleware.errors import PeerIdentityError as PeerIdentityError
    from mesh_middleware.errors import SpiffeIDError as SpiffeIDError
    from mesh_middleware.middleware.asgi import MeshMiddleware as MeshMiddleware
    from mesh_middleware.middleware.audit import AuditRule as AuditRule
    from mesh_middleware.middleware.peer import decision_of as decision_of
    from mesh_middleware.middleware.peer import peer_identity as peer_identity
    from mesh_middleware.middleware.wsgi import MeshWSGIMiddleware as MeshWSGIMiddleware
    from mesh_middleware.policy.decision import Decision as Decision
    from mesh_middleware.policy.decision import Reason as Reason
    from mesh_middleware.policy.engine import Policy as Policy
    from mesh_middleware.policy.engine import compile_policy as compile_policy
    from mesh_middleware.policy.intentions import Action as Action
    from mesh_middleware.policy.intentions import ClaimMatch as ClaimMatch
    from mesh_middleware.policy.intentions import HeaderMatch as HeaderMatch
    from mesh_middleware.policy.intentions import HTTPMatch as HTTPMatch
    from mesh_middleware.policy.intentions import Intention as Intention
    from mesh_middleware.policy.intentions import JWTProviderRequirement as JWTProviderRequirement
    from mesh_middleware.policy.intentions import JWTRequirement as JWTRequirement
    from mesh_middleware.policy.intentions import Permission as Permission
    from mesh_middleware.policy.jwt import JWTProvider as JWTProvider
    from mesh_middleware.policy.peering import PeerBundle as PeerBundle
    from mesh_middleware.policy.request import EscapedSlashes as EscapedSlashes
    from mesh_middleware.policy.request import HTTPRequest as HTTPRequest
    from mesh_middleware.policy.request import Normalization as Normalization
    from mesh_middleware.policy.request import Underscores as Underscores
    from mesh_middleware.policy.spiffe import ServiceIdentity as ServiceIdentity
    from mesh_middleware.policy.spiffe import SpiffeID as SpiffeID
    from mesh_middleware.policy.spiffe import TrustDomain as TrustDomain
    from mesh_middleware.server.launcher import run as run
    from mesh_middleware.server.launcher import serve as serve
    from mesh_middleware.state import MeshState as MeshState
    from mesh_middleware.state import StateSource as StateSource
    from mesh_middleware.state import StaticState as StaticState
    from mesh_middleware.upstream.calls import Outgoing as Outgoing
    from mesh_middleware.upstream.connecting import open_mesh_connection as open_mesh_connection
    from mesh_middleware.upstream.names import UpstreamName as UpstreamName
    from mesh_middleware.upstream.resolver import StaticResolver as StaticResolver
    from mesh_middleware.upstream.streams import MeshServer as MeshServer
    from mesh_middleware.upstream.streams import connection_peer as connection_peer
    from mesh_middleware.upstream.streams import start_mesh_server as start_mesh_server
    from mesh_middleware.upstream.transport import AsyncMeshTransport as AsyncMeshTransport
    from mesh_middleware.upstream.transport import MeshTransport as MeshTransport

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
    "policy.intentions": (
        "Action",
        "ClaimMatch",
        "HTTPMatch",
        "HeaderMatch",
        "Intention",
        "JWTProviderRequirement",
        "JWTRequirement",
        "Permission",
    ),
    "policy.jwt": ("JWTProvider",),
    "policy.peering": ("PeerBundle",),
    "policy.request": ("EscapedSlashes", "HTTPRequest", "Normalization", "Underscores"),
    "policy.spiffe": ("ServiceIdentity", "SpiffeID", "TrustDomain"),
    "server.launcher": ("run", "serve"),
    "state": ("MeshState", "StateSource", "StaticState"),
    "upstream.calls": ("Outgoing",),
    "upstream.connecting": ("open_mesh_connection",),
    "upstream.names": ("UpstreamName",),
    "upstream.resolver": ("StaticResolver",),
    "upstream.streams": ("MeshServer", "connection_peer", "start_mesh_server"),
    "upstream.transport": ("AsyncMeshTransport", "MeshTransport"),
}
"""Module -> the public names that live there; what type checkers see is above."""

_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

if not TYPE_CHECKING:  # else a misspelt name would be anything to them
    __all__ = list(_HOME_OF)

    def __getattr__(name: str) -> object:
        """Import the module that a public name lives in (PEP 562)."""
        home = _HOME_OF.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f"{__name__}.{home}"), name)
        return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | _HOME_OF.keys())

"""Enforce: thin adapters between a server's interface and the policy."""

from mesh_middleware.middleware.asgi import MeshMiddleware
from mesh_middleware.middleware.audit import AuditRule
from mesh_middleware.middleware.peer import EXTENSION, PEER_KEY, decision_of, peer_identity

__all__ = ["EXTENSION", "PEER_KEY", "AuditRule", "MeshMiddleware", "decision_of", "peer_identity"]

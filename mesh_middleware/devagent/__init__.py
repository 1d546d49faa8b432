"""Pretend: a Consul agent small enough to embed, for development and tests only."""

from mesh_middleware.devagent.agent import DevAgent
from mesh_middleware.devagent.ca import CertificateAuthority

__all__ = ["CertificateAuthority", "DevAgent"]

"""How connections to an agent are made: TCP, TLS or a unix socket, and nothing in between."""

from __future__ import annotations

import ssl

import httpx

from mesh_middleware.config import MeshConfig
from mesh_middleware.errors import ConfigError


def agent_transport(config: MeshConfig) -> httpx.AsyncHTTPTransport:
    """Connections to the agent of `config`. ConfigError when a TLS file cannot be used.

    No proxies and no certificates of the environment: a proxy would see keys and tokens.
    """
    return httpx.AsyncHTTPTransport(
        verify=_ssl_context(config),
        trust_env=False,
        uds=config.socket_path,
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=8),
    )


def base_url(config: MeshConfig) -> str:
    """What paths are appended to."""
    return "http://localhost" if config.socket_path is not None else config.address


def _ssl_context(config: MeshConfig) -> ssl.SSLContext:
    """What proves an https agent to us, and us to it; one that trusts nobody for plain HTTP."""
    if not config.address.startswith("https://"):
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context = ssl.create_default_context(cafile=config.ca_cert)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"ca_cert (CONSUL_CACERT): cannot use {config.ca_cert}: {error}; "
            "name a PEM file with the CA of the agent"
        ) from error
    if config.client_cert is not None:
        try:
            context.load_cert_chain(config.client_cert, config.client_key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"client_cert, client_key (CONSUL_CLIENT_CERT, CONSUL_CLIENT_KEY): cannot use "
                f"{config.client_cert} with {config.client_key}: {error}; name two PEM files"
            ) from error
    return context

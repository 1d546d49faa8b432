"""The TLS context that uvicorn asks for, in whatever process it asks."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mesh_middleware.errors import NotReadyError
from mesh_middleware.runtime import manager_for
from mesh_middleware.tls.contexts import MeshContext, TLSContexts


@dataclass(frozen=True, slots=True)
class ServerContext:
    """``Config(ssl_context_factory=ServerContext("web"))``: certificates of `service`, always new.

    Plain data, so that uvicorn can hand it to spawned workers; each gets the context of its own
    process's manager, which is started here when nobody did. Connections that come before the
    first leaf are dropped.
    """

    service: str

    def __call__(self, config: Any, _default: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
        """The facade context; uvicorn's default would read certificates from files."""
        source = manager_for(self.service)

        def current() -> TLSContexts:
            contexts = source.state.contexts
            if contexts is None:
                raise NotReadyError(
                    f"no certificate for {self.service!r} yet", missing=source.state.missing()
                )
            return contexts

        # uvicorn before 0.53 looks for the class only after the context
        protocol = getattr(config, "http_protocol_class", config.http)
        return MeshContext.for_server(current, alpn=getattr(protocol, "alpn_protocols", ()))

"""ASGI applications under gunicorn: a uvicorn worker that tells the application who calls.

    worker_class = "mesh_middleware.server.gunicorn_worker.MeshUvicornWorker"

beside the lines of `mesh_middleware.server.gunicorn`. Needs the package ``uvicorn-worker``.
"""

from __future__ import annotations

import socket
import sys
from typing import Any

from gunicorn.arbiter import Arbiter  # type: ignore[import-untyped]  # no py.typed in 27
from uvicorn import Server
from uvicorn_worker import UvicornWorker  # type: ignore[import-untyped]  # no py.typed in 0.4

from mesh_middleware.server.linger import lingering_cut
from mesh_middleware.server.protocols import MeshHTTP, MeshScope


class _Server(Server):
    """uvicorn's server, whose stop no silent client holds."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain as uvicorn does."""
        async with lingering_cut(self.server_state.connections):
            await super().shutdown(sockets=sockets)


class MeshUvicornWorker(UvicornWorker):  # type: ignore[misc]  # for the same reason
    """uvicorn's worker: TLS by gunicorn's ``ssl_context`` hook, the proven caller in the scopes.

    Addresses and schemes from headers are not believed, whatever ``forwarded_allow_ips`` says.
    """

    CONFIG_KWARGS: dict[str, Any] = {  # noqa: RUF012 - as uvicorn-worker declares it
        "http": MeshHTTP,
        "proxy_headers": False,
    }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.config.ssl_context_factory = self._ssl_context

    def _ssl_context(self, _config: Any, default: Any) -> Any:
        return self.cfg.ssl_context(self.cfg, default)

    async def _serve(self) -> None:
        """As in the base class (0.4), with a server of ours."""
        self.config.app = self.wsgi
        server = _Server(config=self.config)
        self._install_sigquit_handler()
        await server.serve(sockets=self.sockets)
        if not server.started:
            sys.exit(Arbiter.WORKER_BOOT_ERROR)

    def load_wsgi(self) -> None:
        """Load the application, which gunicorn calls WSGI whatever it is."""
        super().load_wsgi()
        self.wsgi: Any = MeshScope(self.wsgi)

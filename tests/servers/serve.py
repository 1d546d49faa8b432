"""Programs that serve an application of tests.servers.apps: ``python -m tests.servers.serve``.

Arguments: which server, the application's name, the port.
"""

from __future__ import annotations

import sys

import uvicorn
from hypercorn.run import run as run_hypercorn
from werkzeug.serving import run_simple

from mesh_middleware import MeshConfig, MeshManager
from mesh_middleware.server.context import ServerContext
from mesh_middleware.server.hypercorn import HypercornConfig
from tests.servers import apps


def with_hypercorn(name: str, port: int) -> None:
    config = HypercornConfig("api")
    config.bind = [f"127.0.0.1:{port}"]
    config.application_path = f"tests.servers.apps:{name}"
    config.workers = 2
    config.graceful_timeout = 1
    config.accesslog = config.errorlog = "-"
    run_hypercorn(config)


def with_werkzeug(name: str, port: int) -> None:
    with MeshManager(MeshConfig.from_env("api")) as manager:
        manager.wait_ready(60)
        context = manager.server_context()
        run_simple("127.0.0.1", port, getattr(apps, name), threaded=True, ssl_context=context)


def with_uvicorn(name: str, port: int) -> None:
    """uvicorn's own `run`: its certificates are the mesh's, but it tells nobody who calls."""
    uvicorn.run(getattr(apps, name), port=port, ssl_context_factory=ServerContext("api"))


if __name__ == "__main__":
    globals()[f"with_{sys.argv[1]}"](sys.argv[2], int(sys.argv[3]))
